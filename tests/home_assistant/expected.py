"""What Home Assistant must make of each pack: every entity and what it says, typed from the contract with the users.

Nothing here is taken from what the bridge publishes, so what the bridge forgets, invents or calls otherwise shows.
The frames are captures of real boards, and their values were decoded by hand.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

import board


@dataclass(frozen=True)
class Entity:
    key: str
    component: str = "sensor"
    device_class: str | None = None
    unit: str | None = None
    state_class: str | None = None
    diagnostic: bool = False
    precision: int | None = None
    enabled: bool = True
    # Available as long as the bridge is, whatever the board does.
    bridge_alone: bool = False
    options: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The key is Home Assistant's slug of it."""
        return NAMES.get(self.key) or self.key.replace("_", " ").capitalize()


NAMES = {
    "charge_mosfet": "Charge MOSFET",
    "discharge_mosfet": "Discharge MOSFET",
    "charge_mosfet_breakdown": "Charge MOSFET breakdown",
    "discharge_mosfet_breakdown": "Discharge MOSFET breakdown",
    "mosfet_software_lock": "MOSFET software lock",
    "front_end_error": "Front-end error",
}

# Bits 0 to 14.
PROTECTIONS = """
    cell_overvoltage cell_undervoltage pack_overvoltage pack_undervoltage
    charge_overtemperature charge_undertemperature discharge_overtemperature discharge_undertemperature
    charge_overcurrent discharge_overcurrent short_circuit front_end_error
    mosfet_software_lock charge_mosfet_breakdown discharge_mosfet_breakdown
""".split()

# In the order of register AA.
COUNTERS = """
    short_circuit charge_overcurrent discharge_overcurrent cell_overvoltage cell_undervoltage
    charge_overtemperature charge_undertemperature discharge_overtemperature discharge_undertemperature
    pack_overvoltage pack_undervoltage system_restart
""".split()

MODES = ("idle", "charging", "discharging")


def flag(key: str, device_class: str | None = None, *, diagnostic: bool = True, bridge_alone: bool = False) -> Entity:
    return Entity(key, "binary_sensor", device_class, diagnostic=diagnostic, bridge_alone=bridge_alone)


def count(key: str, *, bridge_alone: bool = False) -> Entity:
    return Entity(key, "sensor", None, None, "total_increasing", True, 0, enabled=False, bridge_alone=bridge_alone)


def entities(cells: int, temperatures: int, *, learned_capacity: bool, counters: bool) -> list[Entity]:
    """What a board has with so many cells and temperature sensors, with or without newer boards' learned capacity."""
    measured, rising = "measurement", "total_increasing"
    found = [
        Entity("voltage", "sensor", "voltage", "V", measured, precision=2),
        Entity("current", "sensor", "current", "A", measured, precision=2),
        Entity("power", "sensor", "power", "W", measured, precision=0),
        Entity("state_of_charge", "sensor", "battery", "%", measured, precision=0),
        Entity("remaining_capacity", "sensor", None, "Ah", measured, precision=1),
        Entity("nominal_capacity", "sensor", None, "Ah", measured, diagnostic=True, precision=1),
        Entity("cycles", "sensor", None, None, rising, diagnostic=True, precision=0),
        Entity("minimum_cell_voltage", "sensor", "voltage", "V", measured, precision=3),
        Entity("maximum_cell_voltage", "sensor", "voltage", "V", measured, precision=3),
        Entity("average_cell_voltage", "sensor", "voltage", "V", measured, diagnostic=True, precision=3, enabled=False),
        Entity("cell_voltage_delta", "sensor", "voltage", "mV", measured, precision=0),
        Entity("lowest_cell", diagnostic=True, enabled=False),
        Entity("highest_cell", diagnostic=True, enabled=False),
        Entity("energy_charged", "sensor", "energy", "kWh", rising, precision=2),
        Entity("energy_discharged", "sensor", "energy", "kWh", rising, precision=2),
        Entity("stored_energy", "sensor", "energy_storage", "kWh", measured, precision=2),
        Entity("time_to_full", "sensor", "duration", "min", measured, precision=0),
        Entity("time_to_empty", "sensor", "duration", "min", measured, precision=0),
        Entity("mode", "sensor", "enum", options=MODES),
        flag("balancing", "running"),
        flag("charge_mosfet"),
        flag("discharge_mosfet"),
        flag("charging", "battery_charging", diagnostic=False),
        flag("problem", "problem", diagnostic=False),
        Entity("protections", diagnostic=True),
        Entity("last_protection", diagnostic=True),
        Entity("last_protection_time", "sensor", "timestamp", diagnostic=True),
        flag("connection", "connectivity", bridge_alone=True),
        Entity("implausible_values", diagnostic=True),
        Entity("production_date", "sensor", "date", diagnostic=True, enabled=False),
        count("polls", bridge_alone=True),
        count("retries", bridge_alone=True),
        count("timeouts", bridge_alone=True),
        count("checksum_errors", bridge_alone=True),
        count("reopened_links", bridge_alone=True),
        Entity("response_time", "sensor", "duration", "ms", measured, True, 0, enabled=False, bridge_alone=True),
        Entity("last_success", "sensor", "timestamp", diagnostic=True, enabled=False, bridge_alone=True),
    ]
    # Switching a MOSFET off by command is no problem.
    found += [flag(key, None if key == "mosfet_software_lock" else "problem") for key in PROTECTIONS]
    for cell in range(1, cells + 1):
        found.append(Entity(f"cell_{cell}_voltage", "sensor", "voltage", "V", measured, diagnostic=True, precision=3))
        found.append(flag(f"cell_{cell}_balancing"))
    for sensor in range(1, temperatures + 1):
        found.append(Entity(f"temperature_{sensor}", "sensor", "temperature", "°C", measured, precision=1))
    if learned_capacity:
        found.append(Entity("full_charge_capacity", "sensor", None, "Ah", measured, diagnostic=True, precision=1))
        found.append(Entity("state_of_health", "sensor", None, "%", measured, diagnostic=True, precision=1))
    if counters:
        found += [count(f"{key}_count") for key in COUNTERS]
    return found


class State:
    """A state that is not to be compared as text: equal to every text that says the same."""

    def says(self, text: str) -> bool:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        try:
            return isinstance(other, str) and self.says(other)
        except ValueError:
            return False

    __hash__ = object.__hash__


# By key, or by entity id.
type States = dict[str, str | State]


class Within(State):
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def says(self, text: str) -> bool:
        return self.low <= float(text) <= self.high

    def __repr__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"


class Number(Within):
    """Where the contract fixes no decimals."""

    def __init__(self, number: float) -> None:
        super().__init__(number, number)


class Moment(State):
    """A time with its zone, since a time in seconds since 1970."""

    def __init__(self, since: float) -> None:
        self.since = since

    def says(self, text: str) -> bool:
        return datetime.fromisoformat(text).timestamp() >= self.since

    def __repr__(self) -> str:
        return f"a time since {datetime.fromtimestamp(self.since).astimezone().isoformat()}"


@dataclass(frozen=True)
class Pack:
    id: str
    name: str
    # With which its entities' ids begin.
    prefix: str
    model: str | None
    software_version: str
    entities: list[Entity]
    # Of what is enabled.
    states: States
    # What the user has enabled.
    enabled: frozenset[str] = frozenset()
    online: bool = True
    frames: list[bytes] = field(default_factory=list)

    @property
    def identifier(self) -> str:
        return f"bms2mqtt_{self.id}"

    def unique_id(self, entity: Entity) -> str:
        return f"{self.identifier}_{entity.key}"

    def entity_id(self, entity: Entity) -> str:
        return f"{entity.component}.{self.prefix}_{entity.key}"

    def is_enabled(self, entity: Entity) -> bool:
        return entity.enabled or entity.key in self.enabled

    def id_of(self, key: str) -> str:
        return self.entity_id(next(entity for entity in self.entities if entity.key == key))

    def says(self, **states: str | State) -> Self:
        return replace(self, states=self.states | states)


def cell_voltages(cells: list[int]) -> States:
    """From mV; they have three decimals."""
    return {f"cell_{cell}_voltage": f"{millivolts / 1000:.3f}" for cell, millivolts in enumerate(cells, 1)}


def resting(cells: list[int], temperatures: list[str], totals: dict[str, float]) -> States:
    """The states of a pack without current, protections and balancing."""
    off = ["balancing", "charging", "problem", *PROTECTIONS]
    off += [f"cell_{cell}_balancing" for cell in range(1, len(cells) + 1)]
    states: States = dict.fromkeys(off, "off")
    states |= cell_voltages(cells)
    states |= {f"temperature_{sensor}": text for sensor, text in enumerate(temperatures, 1)}
    states |= {key: Number(number) for key, number in totals.items()}
    return states | {
        "current": Number(0),
        "power": Number(0),
        "energy_charged": Number(0),
        "energy_discharged": Number(0),
        "time_to_full": "unknown",
        "time_to_empty": "unknown",
        "mode": "idle",
        "charge_mosfet": "on",
        "discharge_mosfet": "on",
        "protections": "none",
        "last_protection": "none",
        "last_protection_time": "unknown",
        "implausible_values": "none",
        "connection": "on",
    }


# 8 cells at 26.66 V, two temperature sensors, no counters; and the name of another board.
HOUSE_FRAMES = [
    bytes.fromhex("DD03001B0A6A00001EE71F40000027720000000000001563030802 0B890B8B FBC577"),
    bytes.fromhex("DD040010 0D040D050D040D040D060D080D030D06 FF6077"),
    bytes.fromhex("DD050011 53503135533030312D503133532D333041 FBFD77"),
]
HOUSE_CELLS = [3332, 3333, 3332, 3332, 3334, 3336, 3331, 3334]
HOUSE = Pack(
    id="house",
    name="House battery",
    prefix="house",
    model="SP15S001-P13S-30A",
    software_version="1.5",
    entities=entities(8, 2, learned_capacity=False, counters=False),
    states=resting(
        HOUSE_CELLS,
        ["22.2", "22.4"],
        {
            "voltage": 26.66,
            "state_of_charge": 99,
            "remaining_capacity": 79.11,
            "nominal_capacity": 80,
            "cycles": 0,
            "cell_voltage_delta": 5,
            "stored_energy": 2.11,
        },
    )
    | {"minimum_cell_voltage": "3.331", "maximum_cell_voltage": "3.336"},
    frames=HOUSE_FRAMES,
)

# 16 cells, discharging, four temperature sensors, counters with restarts; a board that tells no name.
BANK_FRAMES = [
    bytes.fromhex("DD03001F 14B1FD4C46514E2000012654000000000000205A031004 0B140B350B800B61 FA6C77"),
    bytes.fromhex("DD040020 0D240D250D220D210D220D210D230D25 0D220D220D210D220D230D220D240D26 FCE377"),
    bytes.fromhex("DDAA0018 00010000 00002F53 00000000 00030000 00000001 0000002A FF3777"),
]
BANK_CELLS = [3364, 3365, 3362, 3361, 3362, 3361, 3363, 3365, 3362, 3362, 3361, 3362, 3363, 3362, 3364, 3366]
DISCHARGING: States = {
    "current": Number(-6.92),
    "energy_discharged": Within(0, 1),
    # 180.01 Ah at 6.92 A, which the board's user need not know to the minute.
    "time_to_empty": Within(1500, 1620),
    "mode": "discharging",
}
BANK = Pack(
    id="bank",
    name="Bank",
    prefix="bank",
    model=None,
    software_version="2.0",
    entities=entities(16, 4, learned_capacity=False, counters=True),
    states=resting(
        BANK_CELLS,
        ["10.5", "13.8", "21.3", "18.2"],
        {
            "voltage": 52.97,
            "state_of_charge": 90,
            "remaining_capacity": 180.01,
            "nominal_capacity": 200,
            "cycles": 1,
            "cell_voltage_delta": 5,
            "stored_energy": 9.54,
        },
    )
    | DISCHARGING
    | {
        "power": Within(-366.56, -366.55),
        "minimum_cell_voltage": "3.361",
        "maximum_cell_voltage": "3.366",
    },
    frames=BANK_FRAMES,
)
# What the bank says in the entities that are off until a user enables them.
BANK_HIDDEN: States = {
    "average_cell_voltage": "3.363",
    "lowest_cell": "4",
    "highest_cell": "16",
    "production_date": "2019-02-20",
    "cell_overvoltage_count": Number(12115),
    "charge_undertemperature_count": Number(3),
    "system_restart_count": Number(42),
    "polls": Within(1, 1e6),
    "retries": Within(0, 1e3),
    "timeouts": Within(0, 1e3),
    "checksum_errors": Number(0),
    "reopened_links": Number(0),
    "response_time": Within(0, 2000),
    "last_success": Moment(1.7e9),
}

# The same with 15 cells: cells from the vendor's document, totals made to fit, with what newer boards have learned
# of the capacity (humidity, alarms, full, remaining, balance current) behind them.
FIFTEEN_CELLS = [3942, 3939, 3939, 3940, 3902, 3939, 3895, 3931, 3941, 3899, 3939, 3939, 3900, 3942, 3901]
FIFTEEN_FRAMES = [
    board.answer(
        board.TOTALS,
        board.data_of(board.with_byte(board.with_words(BANK_FRAMES[0], {board.VOLTAGE: 5888}), board.CELL_COUNT, 15))
        + bytes.fromhex("00 0000 49D4 4651 0000"),
    ),
    bytes.fromhex("DD04001E 0F660F630F630F640F3E0F630F370F5B0F650F3B0F630F630F3C0F660F3D F9F977"),
]
# 189.00 Ah of 200.
FIFTEEN_STATES: States = {
    "voltage": Number(58.88),
    "current": Number(-6.92),
    "power": Within(-407.45, -407.44),
    "cell_voltage_delta": Number(47),
    "stored_energy": Number(10.6),
    "full_charge_capacity": Number(189),
    "state_of_health": Number(94.5),
    "minimum_cell_voltage": "3.895",
    "maximum_cell_voltage": "3.942",
    **cell_voltages(FIFTEEN_CELLS),
}

# 4 cells, three temperature sensors, a learned capacity; totals and cells of one board, the name of another.
VAN_FRAMES = [
    bytes.fromhex("DD030026 05350000746576C000042EA800000000000025620304030B5F0B4D0B4F 00000076C074650000 F8FB77"),
    bytes.fromhex("DD040008 0D030D060D050D05 FFB177"),
    bytes.fromhex("DD050019 4A42442D53503034533033342D4C34532D323030412D422D55 FA0877"),
]
VAN = Pack(
    id="van",
    name="Van",
    prefix="van",
    model="JBD-SP04S034-L4S-200A-B-U",
    software_version="2.5",
    entities=entities(4, 3, learned_capacity=True, counters=False),
    states=resting(
        [3331, 3334, 3333, 3333],
        ["18.0", "16.2", "16.4"],
        {
            "voltage": 13.33,
            "state_of_charge": 98,
            "remaining_capacity": 297.97,
            "nominal_capacity": 304,
            "full_charge_capacity": 304,
            "state_of_health": 100,
            "cycles": 4,
            "cell_voltage_delta": 3,
            "stored_energy": 3.97,
        },
    )
    | {"minimum_cell_voltage": "3.331", "maximum_cell_voltage": "3.334"},
    frames=VAN_FRAMES,
)

BRIDGE_IDENTIFIER = "bms2mqtt_bridge"
BRIDGE_UNIQUE_ID = "bms2mqtt_bridge_connection"


def obeys_default_entity_id(version: str) -> bool:
    """Home Assistant before 2025.10 makes entity ids from the names of device and entity."""
    year, month = version.split(".")[:2]
    return (int(year), int(month)) >= (2025, 10)


def bridge_entity_id(version: str) -> str:
    return f"binary_sensor.{BRIDGE_IDENTIFIER if obeys_default_entity_id(version) else 'bms2mqtt'}_connection"


def prefix(pack: Pack, version: str) -> str:
    """With which the ids of a new pack's entities begin."""
    return pack.id if obeys_default_entity_id(version) else pack.name.lower().replace(" ", "_")
