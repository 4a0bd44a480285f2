"""Takes the pictures of the dashboard that stand in docs/: `run --screenshots`.

A living pack of 16 cells and one of 8 captured cells with a protection active, in a real Home Assistant, seen by Chromium on
a phone and on a tablet, light and dark. A day of statistics is made up, since nobody waits a day for a graph.
"""

import argparse
import asyncio
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from playwright.async_api import Browser, async_playwright

import board
import expected
from hass import Hass
from house import House, Program
from report import eventually

SCREENS = {"phone": (390, 844, 2), "tablet": (1280, 800, 1)}
SCHEMES = ("light", "dark")
# The graphs and fonts of a page that has everything.
SETTLED_MS = 4000

LIVING = {"cells": 16, "capacity_ah": 280, "state_of_charge": 76, "ambient": 18, "name": "JBD-SP16S030-L16S-200A"}


def van() -> expected.Pack:
    """The captured 8-cell pack, full, with cells 2 and 6 bleeding and cell overvoltage active."""
    totals, cells, *rest = expected.HOUSE.frames
    balancing, charge = 12, 19
    totals = board.with_words(totals, {board.VOLTAGE: 2921, balancing: 0b100010, board.PROTECTIONS: 1})
    totals = board.with_byte(board.with_byte(totals, charge, 100), board.MOSFETS, 2)
    for cell, millivolts in enumerate([3648, 3655, 3651, 3649, 3650, 3657, 3652, 3650], 1):
        cells = board.with_cell(cells, cell, millivolts)
    return replace(expected.HOUSE, id="van", name="Van", frames=[totals, cells, *rest])


def house(directory: Path, bridge: Path) -> House:
    living = replace(expected.VAN, id="house", name="House")
    house = House(directory, bridge, [van(), living])
    profile = directory / "living.json"
    profile.write_text(json.dumps(LIVING))
    house.simulator = Program(
        directory / "simulator.log", bridge, "simulate", "--link", directory / living.id, "--profile", profile
    )
    # The living one first.
    house.packs.reverse()
    house.configure_bridge()
    return house


async def a_day(hass: Hass, entity: str, unit: str, value: Callable[[int], float]) -> None:
    """Hourly statistics of the last day, of a value by the hour."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    hours = [now - timedelta(hours=back) for back in range(24, 0, -1)]
    stats = [{"start": hour.isoformat()} | dict.fromkeys(("mean", "min", "max"), value(hour.hour)) for hour in hours]
    metadata = {
        "has_mean": True, "has_sum": False, "name": None, "source": "recorder", "statistic_id": entity,
        "unit_of_measurement": unit,
    }  # fmt: skip
    await hass.call("recorder/import_statistics", metadata=metadata, stats=stats)


async def picture(browser: Browser, hass: Hass, screen: str, scheme: str, path: Path) -> None:
    width, height, scale = SCREENS[screen]
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=scale
    )
    tokens = {
        "access_token": hass.token, "token_type": "Bearer", "refresh_token": "", "expires_in": 86400,
        "expires": 4102444800000, "hassUrl": hass.url, "clientId": hass.client_id,
    }  # fmt: skip
    storage = {"hassTokens": json.dumps(tokens), "dockedSidebar": json.dumps("always_hidden")}
    script = "".join(f"localStorage.setItem({json.dumps(key)}, {json.dumps(text)});" for key, text in storage.items())
    await context.add_init_script(script)
    page = await context.new_page()
    await page.goto(f"{hass.url}/lovelace/battery")
    await page.get_by_text("House", exact=True).first.wait_for(timeout=60_000)
    await page.wait_for_timeout(SETTLED_MS)
    if screen == "phone":
        # All of the first pack, as one scrolls.
        await page.set_viewport_size({"width": width, "height": 1580})
        await page.wait_for_timeout(SETTLED_MS)
    await page.screenshot(path=path)
    await context.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bridge", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("chromium is needed: apt-get install chromium")
    bridge = options.bridge.resolve()
    here = house(options.directory, bridge)
    async with Hass(here.hass_url) as hass:
        try:
            await here.open()
            await hass.onboard()
            await hass.add_mqtt("127.0.0.1", here.broker_port)
            await eventually(hass.view, lambda view: len(view.available) > 150)
            view = await hass.view()
            ids = {unique_id: entry["entity_id"] for unique_id, entry in view.registry.items()}
            await a_day(hass, ids["bms2mqtt_house_power"], "W", lambda hour: 2600 * math.sin((hour - 7) * math.pi / 12))
            await a_day(
                hass, ids["bms2mqtt_house_cell_voltage_delta"], "mV", lambda hour: 6 + 14 * math.exp(-(((hour - 13) / 2.5) ** 2))
            )
            words = [bridge, "dashboard", "--config", options.directory / "bms2mqtt.yaml"]
            if ids["bms2mqtt_house_power"] != "sensor.house_power":
                words.append("--ids-from-names")
            dashboard = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            await hass.call("lovelace/config/save", config=yaml.safe_load(dashboard))
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                for screen in SCREENS:
                    for scheme in SCHEMES:
                        path = Path("docs") / f"dashboard-{screen}-{scheme}.png"
                        await picture(browser, hass, screen, scheme, path)
                        print(f"{path}: {path.stat().st_size} bytes")
                await browser.close()
        finally:
            await here.close()


if __name__ == "__main__":
    asyncio.run(main())
