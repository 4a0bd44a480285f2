"""The table of entities: each of each pack as the registry, the state machine and the device page have it, and the
discovery messages behind them."""

from collections.abc import Callable
from typing import Any

from expected import BRIDGE_IDENTIFIER, BRIDGE_UNIQUE_ID, Entity, Pack
from hass import View
from observer import Observer
from report import eventually

# Entities come by the dozen, within seconds.
FIRST_PATIENCE = 20.0

NEEDED_KEYS = {"name", "unique_id", "default_entity_id", "state_topic", "device", "origin"}
# Home Assistant knows these in every version since 2025.4.
KNOWN_KEYS = NEEDED_KEYS | set(
    """
    availability availability_mode device_class enabled_by_default entity_category icon options payload_off payload_on
    state_class suggested_display_precision unit_of_measurement
    """.split()
)
KNOWN_DEVICE_KEYS = set("hw_version identifiers manufacturer model name serial_number sw_version via_device".split())


async def check_entities(observer: Observer) -> None:
    """One check an entity."""
    report, hass, packs = observer.report, observer.hass, observer.house.packs
    # What is missing or wrong then is told below, by entity.
    view = await eventually(hass.view, lambda view: all(is_there(view, pack) for pack in packs), FIRST_PATIENCE)
    details = await hass.details(view)
    devices = {device["id"]: identifier for identifier, device in view.devices.items()}
    for pack in packs:
        report.note(f"{pack.name}: {len(pack.entities)} entities")
        for entity in pack.entities:
            found = details.get(pack.unique_id(entity))
            what = f"{pack.id} {entity.key}"
            if found:
                report.check(what, facts(pack, entity), seen(view, devices, entity, found))
            else:
                report.check(what, "an entity", "none")
        # Of what this board has not: another's cells, sensors, counters and learned capacity.
        keys = {entity.key for other in packs for entity in other.entities} - {entity.key for entity in pack.entities}
        more = [key for key in keys if f"{pack.identifier}_{key}" in details]
        report.check(f"{pack.id} has no entity more", [], more)
    unique_ids = {pack.unique_id(entity) for pack in packs for entity in pack.entities} | {BRIDGE_UNIQUE_ID}
    report.check("nobody has an entity more", set(), set(view.registry) - unique_ids)


def is_there(view: View, pack: Pack) -> bool:
    """All of it, and what is enabled says what it is to say."""
    if not {pack.unique_id(entity) for entity in pack.entities} <= set(view.registry):
        return False
    enabled = [entity for entity in pack.entities if pack.is_enabled(entity)]
    return all(pack.states[entity.key] == view.state(pack.entity_id(entity)) for entity in enabled)


def facts(pack: Pack, entity: Entity) -> dict[str, Any]:
    enabled = pack.is_enabled(entity)
    return {
        "entity id": pack.entity_id(entity),
        "unique id": pack.unique_id(entity),
        "platform": "mqtt",
        "name": entity.name,
        "named after its device": True,
        "device": pack.identifier,
        "category": "diagnostic" if entity.diagnostic else None,
        "disabled by": None if enabled else "integration",
        "device class": entity.device_class,
        "state class": entity.state_class,
        "options": list(entity.options) if entity.options else None,
        "icon beside a device class": False,
        # Home Assistant gives these only of what is enabled.
        "unit": entity.unit if enabled else None,
        "precision": entity.precision if enabled else None,
        "state": pack.states[entity.key] if enabled else None,
        "shown as": f"{pack.name} {entity.name}" if enabled else None,
    }


def seen(view: View, devices: dict[str, str], entity: Entity, entry: dict[str, Any]) -> dict[str, Any]:
    state = view.states.get(entry["entity_id"])
    attributes = state["attributes"] if state else {}
    capabilities = entry["capabilities"] or {}
    return {
        "entity id": entry["entity_id"],
        "unique id": entry["unique_id"],
        "platform": entry["platform"],
        "name": entry["original_name"],
        "named after its device": entry["has_entity_name"],
        "device": devices.get(entry["device_id"]),
        "category": entry["entity_category"],
        "disabled by": entry["disabled_by"],
        "device class": entry["original_device_class"],
        "state class": capabilities.get("state_class"),
        "options": capabilities.get("options"),
        "icon beside a device class": bool(entry["original_icon"] and entry["original_device_class"]),
        "unit": attributes.get("unit_of_measurement"),
        "precision": entry["options"].get(entity.component, {}).get("suggested_display_precision"),
        "state": state and state["state"],
        "shown as": attributes.get("friendly_name"),
    }


async def check_devices(observer: Observer) -> None:
    report, packs = observer.report, observer.house.packs
    devices = (await observer.hass.view()).devices
    bridge = devices.get(BRIDGE_IDENTIFIER, {})
    report.check("device page of the bridge", ("bms2mqtt", None), (bridge.get("name"), bridge.get("via_device_id")))
    for pack in packs:
        device = devices.get(pack.identifier, {})
        expected = {"name": pack.name, "manufacturer": "JBD", "sw_version": pack.software_version}
        report.check(f"device page of {pack.id}", expected, {key: device.get(key) for key in expected})
        via = device.get("via_device_id")
        report.check(f"{pack.id} is connected via the bridge", True, via is not None and via == bridge.get("id"))
        if pack.model:
            report.check(f"model of {pack.id}", pack.model, device.get("model"))
        else:
            report.check(f"model of {pack.id}, which tells none: something", True, bool(device.get("model")))


# What holds for every discovery message.
RULES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "no object_id": lambda config: "object_id" not in config,
    "all that is needed": lambda config: set(config) >= NEEDED_KEYS,
    "only known keys": lambda config: set(config) <= KNOWN_KEYS,
    "only known keys of the device": lambda config: set(config["device"]) <= KNOWN_DEVICE_KEYS,
    "no null": lambda config: not has_null(config),
    "no name repeats its device's": lambda config: config["device"]["name"].lower() not in config["name"].lower(),
    "origin is this program": lambda config: (
        config["origin"]["name"] == "bms2mqtt" and set(config["origin"]) == {"name", "sw_version", "support_url"}
    ),
    "icons only without a device class": lambda config: not {"icon", "device_class"} <= set(config),
    "a precision for every number": lambda config: (
        ("state_class" in config) == ("suggested_display_precision" in config)
    ),
}


def has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_null, value.values()))
    return value is None or (isinstance(value, list) and any(map(has_null, value)))


async def check_messages(observer: Observer) -> None:
    """Nothing deprecated or unknown in any discovery message; and what the contract says of each pack's topics."""
    report, house = observer.report, observer.house
    configs = await observer.configs()
    for what, holds in RULES.items():
        wrong = [topic for topic, config in configs.items() if not holds(config)]
        report.check(f"discovery: {what}", [], wrong)
    for pack in house.packs:
        expected = {
            f"homeassistant/{entity.component}/{pack.identifier}/{entity.key}/config": address(pack, entity)
            for entity in pack.entities
        }
        found = {
            topic: {key: config.get(key) for key in ADDRESS_KEYS}
            for topic, config in configs.items()
            if f"/{pack.identifier}/" in topic
        }
        report.check(f"discovery of {pack.id}: ids, state topics, availability", expected, found)
        topics = {f"bms2mqtt/{pack.id}/{entity.key}" for entity in pack.entities}
        topics.add(f"bms2mqtt/{pack.id}/availability")
        retained = await house.retained(f"bms2mqtt/{pack.id}/#")
        report.check(f"a retained topic for each value of {pack.id}, no other", topics, set(retained))
    retained = await house.retained("bms2mqtt/bridge/#")
    report.check("topics of the bridge", {"bms2mqtt/bridge/availability": "online"}, retained)


ADDRESS_KEYS = ["unique_id", "default_entity_id", "state_topic", "availability", "availability_mode"]


def address(pack: Pack, entity: Entity) -> dict[str, Any]:
    own = [] if entity.bridge_alone else [{"topic": f"bms2mqtt/{pack.id}/availability"}]
    return {
        "unique_id": pack.unique_id(entity),
        "default_entity_id": f"{entity.component}.{pack.id}_{entity.key}",
        "state_topic": f"bms2mqtt/{pack.id}/{entity.key}",
        "availability": [{"topic": "bms2mqtt/bridge/availability"}, *own],
        "availability_mode": "all",
    }
