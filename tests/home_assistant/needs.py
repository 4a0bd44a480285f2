"""Prints what Home Assistant's integrations need besides the package itself, one requirement a line.

Home Assistant would install it at its first start, a package at a time, while people wait for it; installed before,
the first start is like any other and needs no network. What is missed here it still installs by itself.
"""

import ast
import json
from pathlib import Path

import homeassistant

PACKAGE = Path(homeassistant.__file__).parent
# Those of the test's configuration, and one that is loaded before all others.
CONFIGURED = "api config energy frontend history http logger mqtt recorder websocket_api isal".split()


def always_set_up() -> set[str]:
    """Read from the source, which cannot be imported before what it needs is there."""
    for statement in ast.parse((PACKAGE / "bootstrap.py").read_text()).body:
        match statement:
            case ast.Assign(targets=[ast.Name("DEFAULT_INTEGRATIONS")], value=value):
                return set(ast.literal_eval(value))
    return set()


def walk(domain: str, seen: dict[str, list[str]]) -> None:
    manifest = PACKAGE / "components" / domain / "manifest.json"
    if domain in seen or not manifest.exists():
        return
    told = json.loads(manifest.read_text())
    seen[domain] = told.get("requirements", [])
    for other in told.get("dependencies", []) + told.get("after_dependencies", []):
        walk(other, seen)


found: dict[str, list[str]] = {}
for integration in [*CONFIGURED, *always_set_up()]:
    walk(integration, found)
print("\n".join(sorted({requirement for needed in found.values() for requirement in needed})))
