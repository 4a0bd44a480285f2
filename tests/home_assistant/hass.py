"""A user of Home Assistant: sets it up as a browser does, and asks over HTTP and WebSocket what it shows."""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from report import eventually

USER, PASSWORD = "tester", "a battery of tests"
# Home Assistant on a busy machine, and its first start.
START_PATIENCE = 180.0


@dataclass(frozen=True)
class View:
    """What Home Assistant has of MQTT at one moment."""

    # The registry's entries by unique id, and by entity id the states, without those that nothing provides any more.
    registry: dict[str, dict[str, Any]]
    states: dict[str, dict[str, Any]]
    # By the identifier that the bridge gives them.
    devices: dict[str, dict[str, Any]]

    @property
    def available(self) -> set[str]:
        return {entity for entity, state in self.states.items() if state["state"] != "unavailable"}

    def state(self, entity_id: str) -> str | None:
        return self.states[entity_id]["state"] if entity_id in self.states else None


class Refused(Exception):
    """Home Assistant does not do what it was asked for."""


class Hass:
    def __init__(self, url: str) -> None:
        self.url = url
        self.client_id = f"{url}/"
        self.token = ""
        self.version = ""
        self._session = aiohttp.ClientSession()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._last_id = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def request(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        async with self._session.request(method, self.url + path, headers=headers, **options) as answer:
            if answer.status >= 400:
                raise Refused(f"{method} {path}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def _listens(self, path: str) -> bool:
        try:
            await self.request("GET", path)
        except (aiohttp.ClientConnectionError, Refused):
            return False
        return True

    async def onboard(self) -> None:
        """The pages that a new user is led through, and a token that lasts."""
        if not await eventually(lambda: self._listens("/api/onboarding"), bool, START_PATIENCE):
            raise Refused("Home Assistant does not answer")
        steps = await self.request("GET", "/api/onboarding")
        due = {step["step"] for step in steps if not step["done"]}
        client = {"client_id": self.client_id}
        user = client | {"name": "Tester", "username": USER, "password": PASSWORD, "language": "en"}
        code = (await self.request("POST", "/api/onboarding/users", json=user))["auth_code"]
        form = client | {"grant_type": "authorization_code", "code": code}
        self.token = (await self.request("POST", "/auth/token", data=form))["access_token"]
        for step in due & {"core_config", "analytics"}:
            await self.request("POST", f"/api/onboarding/{step}", json={})
        redirect = client | {"redirect_uri": f"{self.url}/?auth_callback=1"}
        await self.request("POST", "/api/onboarding/integration", json=redirect)
        await self.connect()
        await self.call("config/core/update", country="DE", currency="EUR", unit_system="metric", time_zone="UTC")
        self.token = await self.call("auth/long_lived_access_token", client_name="tests", lifespan=365)

    async def connect(self) -> None:
        """Opens the WebSocket once Home Assistant is up."""
        await eventually(lambda: self._listens("/api/config"), bool, START_PATIENCE)
        self._socket = await self._session.ws_connect(f"{self.url}/api/websocket", max_msg_size=0)
        await self._socket.receive_json()
        await self._socket.send_json({"type": "auth", "access_token": self.token})
        answer = await self._socket.receive_json()
        if answer["type"] != "auth_ok":
            raise Refused(f"authentication: {answer}")

        async def state() -> str:
            config = await self.call("get_config")
            self.version = config["version"]
            return str(config["state"])

        running = await eventually(state, lambda state: state == "RUNNING", START_PATIENCE)
        if running != "RUNNING":
            raise Refused(f"Home Assistant is {running}")

    async def disconnect(self) -> None:
        if self._socket:
            await self._socket.close()
            self._socket = None

    async def call(self, command: str, **fields: Any) -> Any:
        """One command over the WebSocket, and its result."""
        if self._socket is None:
            raise Refused("there is no connection")
        self._last_id += 1
        await self._socket.send_json({"id": self._last_id, "type": command} | fields)
        async with asyncio.timeout(30):
            answer = await self._socket.receive_json()
        if answer["id"] != self._last_id or not answer.get("success"):
            raise Refused(f"{command}: {answer}")
        return answer["result"]

    async def add_mqtt(self, host: str, port: int) -> str:
        """Settings, Add integration, MQTT: the form with its defaults, and the broker filled in."""
        flow = await self.request("POST", "/api/config/config_entries/flow", json={"handler": "mqtt"})
        path = f"/api/config/config_entries/flow/{flow['flow_id']}"
        if flow["type"] == "menu":
            flow = await self.request("POST", path, json={"next_step_id": "broker"})
        form = defaults(flow["data_schema"]) | {"broker": host, "port": port}
        flow = await self.request("POST", path, json=form)
        if flow["type"] != "create_entry":
            raise Refused(f"MQTT: {flow}")
        return str(flow["result"]["entry_id"])

    async def reload(self, entry: str) -> None:
        await self.request("POST", f"/api/config/config_entries/entry/{entry}/reload")

    async def view(self) -> View:
        listed = await self.call("config/entity_registry/list")
        entries = {entry["unique_id"]: entry for entry in listed if entry["platform"] == "mqtt"}
        ids = {entry["entity_id"] for entry in entries.values()}
        states = {state["entity_id"]: state for state in await self.call("get_states") if state["entity_id"] in ids}
        devices = await self.call("config/device_registry/list")
        ours = {
            identifier: device
            for device in devices
            for domain, identifier in device["identifiers"]
            if domain == "mqtt"
        }
        return View(entries, states, ours)

    async def details(self, view: View) -> dict[str, dict[str, Any]]:
        """The registry's entries by unique id, with all that the list leaves out."""
        ids = [entry["entity_id"] for entry in view.registry.values()]
        entries = await self.call("config/entity_registry/get_entries", entity_ids=ids)
        return {entry["unique_id"]: entry for entry in entries.values()}


def defaults(schema: list[dict[str, Any]]) -> dict[str, Any]:
    """What a form holds before anybody has typed anything."""
    filled = {field["name"]: field["default"] for field in schema if "default" in field}
    sections = [field for field in schema if field.get("type") == "expandable"]
    return filled | {section["name"]: defaults(section["schema"]) for section in sections}
