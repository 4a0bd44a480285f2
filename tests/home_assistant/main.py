"""Runs all checks in an order in which little is waited for, and tells how many passed.

Started by `run`, in the environment of Home Assistant.
"""

import argparse
import asyncio
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cost
import energy
import expected
import life
import logs
import table
from hass import PASSWORD, USER, Hass
from house import House
from observer import Observer
from report import Report

FEWEST_CHECKS = 150


async def check(observer: Observer) -> None:
    report, house, hass = observer.report, observer.house, observer.hass
    began = time.time()
    report.section("start and onboarding")
    await house.open()
    await hass.onboard()
    entry = await hass.add_mqtt("127.0.0.1", house.broker_port)
    house.packs = [replace(pack, prefix=expected.prefix(pack, hass.version)) for pack in house.packs]
    report.note(f"Home Assistant {hass.version}")

    report.section("entities")
    await table.check_entities(observer)
    report.section("devices and discovery messages")
    await table.check_devices(observer)
    await table.check_messages(observer)

    report.section("entities enabled and deleted by the user, Home Assistant restarted")
    await life.enabled_by_the_user(observer, entry)
    await life.under_load(observer)
    await life.home_assistant_restarted(observer)
    report.section("broker restarted")
    await life.broker_restarted(observer)
    report.section("bridge restarted and killed")
    await life.bridge_restarted(observer)
    await life.bridge_killed(observer)
    report.section("packs renamed")
    await life.display_name_changed(observer)
    await life.id_changed(observer)
    report.section("discovery switched off and on")
    await life.discovery_switched_off(observer)
    restarted = time.time()
    # By now all entities have their last ids.
    await energy.save_preferences(observer)
    report.section("boards unplugged and replaced")
    await life.board_unplugged(observer)
    await life.cells_gone(observer)
    report.section("protections, and charging")
    await life.protected(observer)
    await life.charged(observer)
    report.section("energy and statistics, with all packs at rest")
    rest = await cost.come_to_rest(observer)
    await energy.check_statistics(observer, began, restarted)
    report.section("cost of packs at rest")
    await cost.check_rest(observer, rest)
    await cost.check_changes(observer, rest)
    report.section("logs")
    running = house.running()
    report.check("everything still runs", dict.fromkeys(running, True), running)
    logs.check_logs(observer)


def when_told_to_end(do: Callable[[], object]) -> None:
    for told in [signal.SIGINT, signal.SIGTERM]:
        asyncio.get_running_loop().add_signal_handler(told, do)


async def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bridge", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if task := asyncio.current_task():
        when_told_to_end(task.cancel)
    began = time.monotonic()
    report = Report()
    house = House(options.directory, options.bridge.resolve(), [expected.HOUSE, expected.BANK, expected.VAN])
    async with Hass(house.hass_url) as hass:
        observer = Observer(report, house, hass)
        try:
            try:
                await check(observer)
            except Exception:
                report.check("all checks ran", True, False)
                traceback.print_exc(file=sys.stdout)
            report.section("")
            if report.failed:
                print(f"\n{logs.excerpt(observer)}")
            if options.keep:
                print(f"\n{house.hass_url}\nuser {USER}\npassword {PASSWORD}\ntoken {hass.token}", flush=True)
                print("Ctrl-C ends it", flush=True)
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
        finally:
            # It is on the way, and nothing is to be left behind.
            when_told_to_end(lambda: None)
            await house.close()
    enough = report.passed + report.failed >= FEWEST_CHECKS
    print(f"\nafter {time.monotonic() - began:.0f} s" + ("" if enough else f": fewer than {FEWEST_CHECKS} checks"))
    print(f"{report.passed} passed, {report.failed} failed")
    return 0 if enough and not report.failed else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except asyncio.CancelledError:
        sys.exit("ended before all checks ran")
