"""Compares all that Home Assistant has of the bridge with what it must have at this moment."""

import json
import re
from dataclasses import dataclass
from typing import Any

from expected import BRIDGE_IDENTIFIER, BRIDGE_UNIQUE_ID, States, bridge_entity_id
from hass import Hass, View
from house import House
from report import Report, eventually


@dataclass(frozen=True)
class Situation:
    """Who is there."""

    broker: bool = True
    bridge: bool = True
    discovery: bool = True
    # What the user has deleted, by unique id.
    deleted: frozenset[str] = frozenset()


ALL_IS_WELL = Situation()


class Observer:
    def __init__(self, report: Report, house: House, hass: Hass) -> None:
        self.report, self.house, self.hass = report, house, hass
        # From where to where Home Assistant's log tells of it.
        self.broker_away: list[tuple[int, int]] = []

    async def is_right(self, what: str, situation: Situation = ALL_IS_WELL) -> None:
        """Exactly the right entities, none twice, available or not, with what the boards say; and nothing left over."""
        wanted = self._wanted(situation)

        async def look() -> dict[str, Any]:
            return seen(await self.hass.view(), wanted["states"])

        found = await eventually(look, lambda found: found == wanted, self.report.patience)
        for aspect, expected in wanted.items():
            self.report.check(f"{what}: {aspect}", expected, found[aspect])
        if situation.broker:
            configs = self._configs(situation)
            topics = await eventually(self._config_topics, lambda topics: topics == configs, self.report.patience)
            self.report.check(f"{what}: a config at the broker for each entity, no other", configs, topics)

    async def _config_topics(self) -> set[str]:
        return set(await self.configs())

    async def configs(self) -> dict[str, dict[str, Any]]:
        """The discovery messages at the broker, by topic."""
        messages = await self.house.retained("homeassistant/#")
        return {topic: json.loads(payload) for topic, payload in messages.items() if topic.endswith("/config")}

    def _wanted(self, situation: Situation) -> dict[str, Any]:
        registry: dict[str, tuple[str, str | None]] = {}
        available: dict[str, bool] = {}
        states: States = {}
        devices: dict[str, str] = {}
        if situation.discovery:
            bridge_entity = bridge_entity_id(self.hass.version)
            registry[BRIDGE_UNIQUE_ID] = (bridge_entity, None)
            available[bridge_entity] = situation.broker
            if situation.broker:
                states[bridge_entity] = "on" if situation.bridge else "off"
            devices[BRIDGE_IDENTIFIER] = "bms2mqtt"
        for pack in self.house.packs if situation.discovery else []:
            devices[pack.identifier] = pack.name
            for entity in pack.entities:
                if pack.unique_id(entity) in situation.deleted:
                    continue
                entity_id = pack.entity_id(entity)
                enabled = pack.is_enabled(entity)
                registry[pack.unique_id(entity)] = (entity_id, None if enabled else "integration")
                if not enabled:
                    continue
                available[entity_id] = situation.broker and situation.bridge and (pack.online or entity.bridge_alone)
                if available[entity_id]:
                    states[entity_id] = pack.states[entity.key]
        return {
            "exactly these entities, with the same ids": registry,
            "no id given twice": set(),
            "available or not": available,
            "states": states,
            "devices": devices,
        }

    def _configs(self, situation: Situation) -> set[str]:
        if not situation.discovery:
            return set()
        topics = {f"homeassistant/binary_sensor/{BRIDGE_IDENTIFIER}/connection/config"}
        for pack in self.house.packs:
            topics |= {
                f"homeassistant/{entity.component}/{pack.identifier}/{entity.key}/config"
                for entity in pack.entities
                if pack.unique_id(entity) not in situation.deleted
            }
        return topics


def seen(view: View, states: dict[str, Any]) -> dict[str, Any]:
    """As what is wanted; of states only those that are."""
    ids = {entry["entity_id"] for entry in view.registry.values()}
    return {
        "exactly these entities, with the same ids": {
            unique_id: (entry["entity_id"], entry["disabled_by"]) for unique_id, entry in view.registry.items()
        },
        # Home Assistant numbers the second one of a name.
        "no id given twice": {
            entity for entity in ids if (numbered := re.fullmatch(r"(.+)_\d+", entity)) and numbered[1] in ids
        },
        "available or not": {entity: entity in view.available for entity in view.states},
        "states": {entity: state["state"] for entity, state in view.states.items() if entity in states},
        "devices": {identifier: device["name"] for identifier, device in view.devices.items()},
    }
