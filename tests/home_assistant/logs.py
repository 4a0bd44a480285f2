"""What Home Assistant and the bridge have written into their logs meanwhile."""

import re

from observer import Observer

# Each says that a message of the bridge is wrong.
PHRASES = [
    "Invalid MQTT device discovery payload",
    "when processing MQTT discovery message topic",
    "illegal discovery topic",
    "Unable to parse JSON",
    "Unable to parse origin information",
    "does not generate unique IDs",
    "conflicting MQTT discovery message",
    "is impossible considering device class",
    "is not valid together with device class",
    "deprecated option `object_id`",
    "Template variable warning",
    "while updating state",
    "No matching payload found",
    "Invalid state message",
    "exceeds the maximum allowed length",
    "not strictly increasing",
    "cannot be added as the entity category",
]

RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.MULTILINE)
# What Home Assistant says of a broker that is away.
BROKER_AWAY = re.compile(r"\[homeassistant\.components\.mqtt\.client\] .*(Disconnected|connect|connection)")


def records(text: str) -> list[tuple[int, str]]:
    """Where each record begins, and its lines."""
    starts = [found.start() for found in RECORD.finditer(text)]
    return [(start, text[start:end].rstrip()) for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def complaints(observer: Observer) -> list[str]:
    """Warnings and errors that name MQTT or one of our entities, but for those of the broker's absence."""
    house = observer.house
    # Latin 1, so that places are those of the bytes.
    text = house.hass.log.read_text("latin-1")
    prefixes = "|".join(sorted({pack.prefix for pack in house.packs} | {"bank", "bms2mqtt"}))
    ours = re.compile(rf"mqtt|sensor\.({prefixes})_", re.IGNORECASE)
    found = []
    for place, record in records(text):
        level = record.split(maxsplit=3)[2]
        away = any(began <= place <= ended for began, ended in observer.broker_away) and BROKER_AWAY.search(record)
        # The path of this directory may well name us.
        told = record.replace(str(house.directory.parent), "")
        if level in {"WARNING", "ERROR", "CRITICAL"} and ours.search(told) and not away:
            found.append(record)
    return found


def check_logs(observer: Observer) -> None:
    report, house = observer.report, observer.house
    text = house.hass.log.read_text(errors="replace")
    for phrase in PHRASES:
        lines = [line for line in text.splitlines() if phrase in line]
        report.check(f'Home Assistant\'s log: no "{phrase}"', [], lines)
    report.check("Home Assistant's log: no other warning of MQTT or of our entities", [], complaints(observer))
    bridge = house.bridge.log.read_text(errors="replace").splitlines()
    report.check("the bridge's log: no error", [], [line for line in bridge if re.search(r"^\S+\s+ERROR\b", line)])
    report.check("the bridge's log: no panic", [], [line for line in bridge if "panicked" in line])


def excerpt(observer: Observer) -> str:
    """What to read after a failure."""
    house = observer.house
    lines = [f"Home Assistant's log: {house.hass.log}"]
    lines += [line for record in complaints(observer) for line in record.splitlines()[:10]][-40:]
    lines += [f"the bridge's log: {house.bridge.log}"]
    lines += house.bridge.log.read_text(errors="replace").splitlines()[-20:]
    return "\n".join(lines)
