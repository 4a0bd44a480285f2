"""The house in which everything runs: a broker, boards, the bridge and Home Assistant, each on a free port of
127.0.0.1. It ends what it has started, and nothing else."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from board import Board
from expected import Pack
from report import PATIENCE, eventually

INTERVAL = "50ms"
END_PATIENCE = 60.0


def free_ports(count: int) -> list[int]:
    """All at once, so that none comes twice."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


class Program:
    """A program whose output goes to a file, over restarts to the same."""

    def __init__(self, log: Path, *command: str | Path) -> None:
        self.log = log
        self.command = [str(word) for word in command]
        # What the user has set for the bridge is not meant for this one.
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("BMS2MQTT_")}
        self._process: asyncio.subprocess.Process | None = None
        self._output: IO[bytes] | None = None

    async def start(self) -> None:
        self._output = self.log.open("ab")
        # A session of its own: what Ctrl-C ends is the test, which then ends the programs in order.
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int | None:
        """Its exit status: by this signal, or killed where that is not enough."""
        if self._process is None:
            return None
        if self.runs:
            self._process.send_signal(how)
        try:
            async with asyncio.timeout(END_PATIENCE):
                status = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            status = await self._process.wait()
        self._process = None
        if self._output:
            self._output.close()
        return status


class House:
    def __init__(self, directory: Path, bridge: Path, packs: list[Pack]) -> None:
        """The first packs have a board of ours, the last one the program's own simulator on a pseudo-terminal."""
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        self.config = directory / "config"
        self.config.mkdir(parents=True)
        *own, simulated = packs
        self.broker_port, self.hass_port, *board_ports = free_ports(2 + len(own))
        self.packs = packs
        self.boards = {pack.id: Board(port, pack.frames) for pack, port in zip(own, board_ports, strict=True)}
        link = directory / simulated.id
        self.ports = {simulated.id: str(link)}
        self.ports |= {pack_id: f"tcp://127.0.0.1:{board.port}" for pack_id, board in self.boards.items()}

        profile = directory / "profile.json"
        profile.write_text(json.dumps([{"response_hex": frame.hex()} for frame in simulated.frames]))
        settings = directory / "mosquitto.conf"
        settings.write_text(
            f"listener {self.broker_port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            f"persistence true\npersistence_location {directory}/\n"
        )
        self.kept = directory / "mosquitto.db"
        mosquitto = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if mosquitto is None:
            sys.exit("mosquitto is not installed: apt-get install mosquitto")
        self.broker = Program(directory / "broker.log", mosquitto, "-c", settings)
        self.simulator = Program(
            directory / "simulator.log", bridge, "simulate", "--link", link, "--profile", profile, "--unpaced"
        )
        self.bridge = Program(directory / "bridge.log", bridge, "--config", directory / "bms2mqtt.yaml", "run")
        self.hass = Program(
            directory / "home-assistant.log", sys.executable, "-m", "homeassistant", "--config", self.config
        )
        self._configure_hass()
        self.configure_bridge()

    def _configure_hass(self) -> None:
        (self.config / "configuration.yaml").write_text(
            f"""\
api:
config:
energy:
frontend:
history:
websocket_api:
http:
  server_host: 127.0.0.1
  server_port: {self.hass_port}
recorder:
  commit_interval: 1
logger:
  default: warning
"""
        )
        # With this step of the onboarding done, Home Assistant does not set up radio, weather and speech, which would
        # be installed first and then ask the internet.
        done = {"version": 4, "minor_version": 1, "key": "onboarding", "data": {"done": ["core_config"]}}
        (self.config / ".storage").mkdir()
        (self.config / ".storage" / "onboarding").write_text(json.dumps(done))

    @property
    def hass_url(self) -> str:
        return f"http://127.0.0.1:{self.hass_port}"

    @property
    def database(self) -> Path:
        return self.config / "home-assistant_v2.db"

    def configure_bridge(self, *, discovery: bool = True) -> None:
        """As it is from its next start on."""
        config = {
            "mqtt": {"url": f"mqtt://127.0.0.1:{self.broker_port}"},
            "home_assistant": {"discovery": discovery},
            "state_dir": str(self.directory / "state"),
            "packs": [
                {"id": pack.id, "name": pack.name, "port": self.ports[pack.id], "interval": INTERVAL}
                for pack in self.packs
            ],
        }
        # JSON is YAML.
        (self.directory / "bms2mqtt.yaml").write_text(json.dumps(config))

    def pack(self, pack_id: str) -> Pack:
        return next(pack for pack in self.packs if pack.id == pack_id)

    def change(self, before: Pack, after: Pack) -> None:
        """Another pack behind the same port, or the same under another name."""
        self.packs = [after if pack.id == before.id else pack for pack in self.packs]
        self.ports[after.id] = self.ports[before.id]
        if before.id in self.boards:
            self.boards[after.id] = self.boards[before.id]

    async def start_broker(self) -> None:
        await self.broker.start()
        await eventually(lambda: listens(self.broker_port), bool)

    def running(self) -> dict[str, bool]:
        programs = [self.broker, self.simulator, self.bridge, self.hass]
        return {program.log.stem: program.runs for program in programs}

    async def open(self) -> None:
        await self.start_broker()
        for board in set(self.boards.values()):
            await board.plug_in()
        await self.simulator.start()
        await self.bridge.start()
        await self.hass.start()

    async def close(self) -> None:
        await self.hass.end()
        await self.bridge.end()
        await self.simulator.end()
        for board in set(self.boards.values()):
            await board.unplug()
        await self.broker.end()

    @asynccontextmanager
    async def birth(self) -> AsyncIterator[None]:
        """Lasts until Home Assistant has told the broker that it is there, and the bridge has said all again."""
        loop = asyncio.get_running_loop()
        born, announced = asyncio.Event(), asyncio.Event()

        def take(topic: str, payload: bytes, retained: bool) -> None:
            if topic == "homeassistant/status" and payload == b"online":
                born.set()
            # The configs come before it.
            elif topic == "bms2mqtt/bridge/availability" and not retained and born.is_set():
                announced.set()

        def received(_: mqtt.Client, __: None, message: mqtt.MQTTMessage) -> None:
            loop.call_soon_threadsafe(take, message.topic, message.payload, message.retain)

        def connected(client: mqtt.Client, *_: object) -> None:
            client.subscribe([("homeassistant/status", 0), ("bms2mqtt/bridge/availability", 0)])

        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.on_connect = connected
        client.on_message = received
        client.connect("127.0.0.1", self.broker_port)
        client.loop_start()
        try:
            yield
            async with asyncio.timeout(PATIENCE):
                await announced.wait()
        finally:
            client.disconnect()
            await asyncio.to_thread(client.loop_stop)

    async def retained(self, topics: str) -> dict[str, str]:
        """What a fresh subscriber gets of these topics."""
        return await asyncio.to_thread(retained, self.broker_port, topics)


def retained(port: int, topics: str) -> dict[str, str]:
    found: dict[str, str] = {}
    last = f"test/last/{os.getpid()}"

    def connected(client: mqtt.Client, *_: object) -> None:
        client.subscribe([(topics, 0), (last, 0)])

    def subscribed(client: mqtt.Client, *_: object) -> None:
        # Comes behind all that was there before it.
        client.publish(last, "")

    def received(client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        if message.topic == last:
            client.disconnect()
        elif message.retain:
            found[message.topic] = message.payload.decode()

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = connected
    client.on_subscribe = subscribed
    client.on_message = received
    client.connect("127.0.0.1", port)
    client.loop_forever(retry_first_connection=False)
    return found
