"""Life with the bridge: everything is restarted, unplugged, renamed, replaced, deleted, switched off and on again.
After each, exactly the right entities exist, available or not, with what the boards say."""

import signal
import time
from dataclasses import replace

import board
from expected import (
    BANK,
    BANK_HIDDEN,
    FIFTEEN_FRAMES,
    FIFTEEN_STATES,
    HOUSE,
    HOUSE_FRAMES,
    Moment,
    Number,
    Pack,
    States,
    Within,
    entities,
    prefix,
)
from observer import ALL_IS_WELL, Observer, Situation
from report import eventually


async def enabled_by_the_user(observer: Observer, entry: str) -> None:
    """Entities that are off at first are switched on in their settings."""
    bank = observer.house.pack("bank")
    for key in BANK_HIDDEN:
        await observer.hass.call("config/entity_registry/update", entity_id=bank.id_of(key), disabled_by=None)
    # Home Assistant does it by itself half a minute later.
    await observer.hass.reload(entry)
    observer.house.change(bank, replace(bank.says(**BANK_HIDDEN), enabled=frozenset(BANK_HIDDEN)))
    await observer.is_right("entities enabled by the user")


async def under_load(observer: Observer) -> None:
    """So much that energy is to be seen: 16 kW are 0.01 kWh every 2.3 s."""
    house = observer.house
    house.boards["bank"].set(board.with_words(BANK.frames[0], {board.CURRENT: -30000}))
    loaded = house.pack("bank").says(
        current=Number(-300),
        power=Number(-15891),
        # The forecast follows the load slowly.
        time_to_empty=Within(36, 1620),
        energy_discharged=Within(0, 20),
    )
    house.change(house.pack("bank"), loaded)
    await observer.is_right("under load")


async def home_assistant_restarted(observer: Observer) -> None:
    """And an entity that the user has deleted comes back by it."""
    house, hass = observer.house, observer.hass
    await delete(observer, house.pack("house"), "cell_3_voltage")
    await hass.disconnect()
    observer.report.check("Home Assistant ends in order", 0, await house.hass.end())
    async with house.birth():
        await house.hass.start()
        await hass.connect()
    await observer.is_right("Home Assistant restarted")


async def broker_restarted(observer: Observer) -> None:
    for what in ["broker restarted", "broker restarted with nothing in it"]:
        await observer.house.broker.end()
        began = observer.house.hass.log.stat().st_size
        await observer.is_right(f"{what}: away", Situation(broker=False))
        if "nothing" in what:
            observer.house.kept.unlink()
        await observer.house.start_broker()
        async with observer.house.birth():
            await observer.is_right(what)
        observer.broker_away.append((began, observer.house.hass.log.stat().st_size))


async def bridge_restarted(observer: Observer) -> None:
    """And an entity that the user has deleted comes back by it."""
    deleted = await delete(observer, observer.house.pack("house"), "problem")
    await end_bridge(observer, "bridge restarted", deleted)
    await start_bridge(observer, "bridge restarted")


async def bridge_killed(observer: Observer) -> None:
    """Nobody says goodbye: the last will does."""
    house, hass = observer.house, observer.hass

    async def energy() -> float:
        return float((await hass.view()).state(house.pack("bank").id_of("energy_discharged")) or 0)

    # It is shown once it has been loaded, a poll after all the rest.
    before = await eventually(energy, lambda energy: energy > 0, observer.report.patience)
    await house.bridge.end(signal.SIGKILL)
    await observer.is_right("bridge killed", Situation(bridge=False))
    await house.bridge.start()
    await observer.is_right("bridge started after it was killed")
    after = await eventually(energy, lambda energy: energy >= before, observer.report.patience)
    observer.report.note(f"energy discharged: {before} kWh, then {after} kWh")
    observer.report.check("energy is there and has not fallen", True, 0 < before <= after)


async def board_unplugged(observer: Observer) -> None:
    """Its pack is unavailable, its connection is known to be off, and the other packs notice nothing."""
    house, hass = observer.house, observer.hass

    async def others() -> dict[str, str]:
        states = (await hass.view()).states
        pack = house.pack("house")
        return {
            entity: states[entity]["last_changed"]
            for entity in map(pack.entity_id, filter(pack.is_enabled, pack.entities))
        }

    before = await others()
    van = house.pack("van")
    await house.simulator.end()
    house.change(van, replace(van.says(connection="off"), online=False))
    await observer.is_right("board unplugged")
    await house.simulator.start()
    house.change(van, van)
    await observer.is_right("board back")
    observer.report.check("nothing of another pack has changed meanwhile", before, await others())


async def display_name_changed(observer: Observer) -> None:
    """The device is called otherwise, and all ids stay."""
    pack = observer.house.pack("house")
    await end_bridge(observer, "display name changed")
    observer.house.change(pack, replace(pack, name="Garage battery"))
    await start_bridge(observer, "display name changed")


async def id_changed(observer: Observer) -> None:
    """Another id is another pack: the old one's entities go. Its name stays, and the other pack has its own again."""
    house = observer.house
    await end_bridge(observer, "id changed")
    renamed = house.pack("house")
    house.change(renamed, replace(renamed, name=HOUSE.name))
    old = house.pack("bank")
    new = replace(old, id="barn", entities=BANK.entities, enabled=frozenset())
    house.change(old, replace(new, prefix=prefix(new, observer.hass.version)))
    await start_bridge(observer, "id changed")


async def discovery_switched_off(observer: Observer) -> None:
    await end_bridge(observer, "discovery switched off")
    await start_bridge(observer, "discovery switched off", Situation(discovery=False))
    observer.report.check("discovery switched off: the bridge ends in order", 0, await observer.house.bridge.end())
    await start_bridge(observer, "discovery switched on again")


async def cells_gone(observer: Observer) -> None:
    """A board with 15 cells in the place of one with 16; it has learned its capacity too."""
    house = observer.house
    barn = house.pack("barn")
    await house.boards["barn"].unplug()
    house.boards["barn"].set(*FIFTEEN_FRAMES)
    await house.boards["barn"].plug_in()
    fifteen = entities(15, 4, learned_capacity=True, counters=True)
    house.change(barn, replace(barn.says(**FIFTEEN_STATES), entities=fifteen))
    await observer.is_right("15 cells instead of 16")


async def protected(observer: Observer) -> None:
    house = observer.house
    calm = house.pack("house")
    totals = HOUSE_FRAMES[0]
    charging_off, both_off = 0b10, 0b00
    began = time.time() - 1
    house.boards["house"].set(
        board.with_byte(board.with_words(totals, {board.PROTECTIONS: 1}), board.MOSFETS, charging_off)
    )
    last: States = {"last_protection": "cell_overvoltage", "last_protection_time": Moment(began)}
    alarm = calm.says(
        problem="on", cell_overvoltage="on", protections="cell_overvoltage", charge_mosfet="off", **last
    )
    house.change(calm, alarm)
    await observer.is_right("a protection active")

    house.boards["house"].set(totals)
    house.change(alarm, calm.says(**last))
    await observer.is_right("a protection over")

    house.boards["house"].set(
        board.with_byte(board.with_words(totals, {board.PROTECTIONS: 1 << 12}), board.MOSFETS, both_off)
    )
    locked = calm.says(
        mosfet_software_lock="on",
        protections="mosfet_software_lock",
        charge_mosfet="off",
        discharge_mosfet="off",
        **last,
    )
    house.change(calm, locked)
    await observer.is_right("switched off by command, which is no problem")
    house.boards["house"].set(totals)
    house.change(locked, calm.says(**last))


async def charged(observer: Observer) -> None:
    house = observer.house
    resting = house.pack("house")
    house.boards["house"].set(board.with_words(HOUSE_FRAMES[0], {board.CURRENT: 1000}))
    charging = resting.says(
        current=Number(10),
        power=Number(266.6),
        charging="on",
        mode="charging",
        energy_charged=Within(0, 0.1),
        # 0.89 Ah to go, at once after rest.
        time_to_full=Number(5),
    )
    house.change(resting, charging)
    await observer.is_right("charging")
    house.boards["house"].set(HOUSE_FRAMES[0])
    house.change(charging, resting.says(energy_charged=Within(0, 0.1)))
    await observer.is_right("charging over")


async def delete(observer: Observer, pack: Pack, key: str) -> frozenset[str]:
    """As in the entity's settings. Gives its unique id."""
    await observer.hass.call("config/entity_registry/remove", entity_id=pack.id_of(key))
    deleted = frozenset({f"{pack.identifier}_{key}"})
    await observer.is_right(f"{key} deleted by the user", Situation(deleted=deleted))
    return deleted


async def end_bridge(observer: Observer, what: str, deleted: frozenset[str] = frozenset()) -> None:
    observer.report.check(f"{what}: the bridge ends in order", 0, await observer.house.bridge.end())
    await observer.is_right(f"{what}: no bridge", Situation(bridge=False, deleted=deleted))


async def start_bridge(observer: Observer, what: str, situation: Situation = ALL_IS_WELL) -> None:
    """With the packs as they are now."""
    observer.house.configure_bridge(discovery=situation.discovery)
    await observer.house.bridge.start()
    await observer.is_right(what, situation)
