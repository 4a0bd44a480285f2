"""Tells what was found, one line a check, and how long each section took."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

# No check waits longer for anything; those that pass wait seconds at most.
PATIENCE = 45.0
# Where something has failed, more will, and nobody wants to wait for each.
PATIENCE_AFTER_FAILURE = 8.0
LONGEST_DIFFERENCE = 20


def differences(expected: Any, found: Any) -> list[str]:
    """Lines that say what was expected and what was found, of long ones only where they differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = []
        for key in sorted(expected | found, key=str):
            if key not in expected:
                lines.append(f"{key}: expected nothing, found {found[key]!r}")
            elif key not in found:
                lines.append(f"{key}: expected {expected[key]!r}, found nothing")
            elif expected[key] != found[key]:
                lines.append(f"{key}: expected {expected[key]!r}, found {found[key]!r}")
    elif isinstance(expected, set) and isinstance(found, set):
        lines = [f"missing: {item}" for item in sorted(expected - found, key=str)]
        lines += [f"too much: {item}" for item in sorted(found - expected, key=str)]
    elif isinstance(expected, list) and isinstance(found, list):
        lines = [f"missing: {item!r}" for item in expected if item not in found]
        lines += [f"too much: {item!r}" for item in found if item not in expected]
    else:
        lines = [f"expected {expected!r}", f"found    {found!r}"]
    more = len(lines) - LONGEST_DIFFERENCE
    return lines if more <= 1 else [*lines[:LONGEST_DIFFERENCE], f"and {more} more"]


class Report:
    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self._began = self._section_began = time.monotonic()
        self._section = ""

    def section(self, name: str) -> None:
        """Ends the section before, and tells how long it took."""
        now = time.monotonic()
        if self._section:
            print(f"--   {self._section}: {now - self._section_began:.0f} s", flush=True)
        self._section, self._section_began = name, now
        if name:
            print(f"\n== {name}", flush=True)

    def check(self, name: str, expected: Any, found: Any) -> None:
        if expected == found:
            self.passed += 1
            print(f"ok   {name}", flush=True)
        else:
            self.failed += 1
            print(f"FAIL {name}", *differences(expected, found), sep="\n     ", flush=True)

    @property
    def patience(self) -> float:
        return PATIENCE_AFTER_FAILURE if self.failed else PATIENCE

    def note(self, text: str) -> None:
        print(f"     {text}", flush=True)


async def eventually[T](
    find: Callable[[], Awaitable[T]], good: Callable[[T], bool], patience: float = PATIENCE
) -> T:
    """What is found once it is good, or at last."""
    until = time.monotonic() + patience
    while True:
        found = await find()
        if good(found) or time.monotonic() > until:
            return found
        await asyncio.sleep(0.1)
