"""The energy dashboard takes the packs' energy, and Home Assistant keeps statistics of all that is measured."""

import time
from datetime import UTC, datetime
from typing import Any

from expected import Pack
from observer import Observer
from report import eventually

# Statistics are compiled at each of these, and a few seconds later.
PERIOD = 300.0
COMPILING = 60.0


async def save_preferences(observer: Observer) -> None:
    """Settings, Dashboards, Energy, Add battery system."""
    sources = [
        {
            "type": "battery",
            "stat_energy_from": pack.id_of("energy_discharged"),
            "stat_energy_to": pack.id_of("energy_charged"),
        }
        for pack in observer.house.packs
    ]
    saved = await observer.hass.call("energy/save_prefs", energy_sources=sources, device_consumption=[])
    kept = ["type", "stat_energy_from", "stat_energy_to"]
    found = [{key: source.get(key) for key in kept} for source in saved["energy_sources"]]
    observer.report.check("energy dashboard: batteries saved", sources, found)


async def check_statistics(observer: Observer, began: float, restarted: float) -> None:
    """Once the statistics of the period are there in which the bridge was restarted last."""
    report, hass, house = observer.report, observer.hass, observer.house
    boundary = (restarted // PERIOD + 1) * PERIOD
    wait = max(0.0, boundary - time.time())
    report.note(f"{wait:.0f} s to the next statistics")
    ids = {pack.id: statistics_of(pack) for pack in house.packs}
    every = sorted(set().union(*(found.keys() for found in ids.values())))

    async def compiled() -> dict[str, list[dict[str, Any]]]:
        statistics: dict[str, list[dict[str, Any]]] = await hass.call(
            "recorder/statistics_during_period",
            start_time=datetime.fromtimestamp(began - PERIOD, UTC).isoformat(),
            statistic_ids=every,
            period="5minute",
        )
        return statistics

    def done(found: dict[str, list[dict[str, Any]]]) -> bool:
        ends = [row["end"] / 1000 for rows in found.values() for row in rows]
        return max(ends, default=0) >= boundary and set(every) <= set(found)

    found = await eventually(compiled, done, wait + COMPILING)
    listed = {entry["statistic_id"]: entry for entry in await hass.call("recorder/list_statistic_ids")}
    for pack in house.packs:
        expected = ids[pack.id]
        kinds = {statistic: kind_of(listed[statistic]) for statistic in expected if statistic in listed}
        report.check(f"statistics of {pack.id}: listed, with their units", expected, kinds)
        report.check(f"statistics of {pack.id}: compiled", set(), set(expected) - set(found))
    validated = await hass.call("energy/validate")
    report.check("energy dashboard: nothing to complain of", [[] for _ in house.packs], validated["energy_sources"])


def statistics_of(pack: Pack) -> dict[str, tuple[str | None, str]]:
    """What is measured or counted and known now, with its unit."""
    return {
        pack.entity_id(entity): (entity.unit, "sum" if entity.state_class == "total_increasing" else "mean")
        for entity in pack.entities
        if entity.state_class and pack.is_enabled(entity) and pack.states[entity.key] != "unknown"
    }


def kind_of(listed: dict[str, Any]) -> tuple[str | None, str]:
    return listed["statistics_unit_of_measurement"], "sum" if listed["has_sum"] else "mean"
