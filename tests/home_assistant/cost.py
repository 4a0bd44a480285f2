"""What the bridge costs Home Assistant's database: nothing while packs rest, and then what has changed."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass

import board
import life
from expected import FIFTEEN_FRAMES, HOUSE_FRAMES, Number
from observer import Observer
from report import eventually

FEWEST_POLLS = 300

# Number, entity id, state.
type Row = tuple[int, str, str]


@dataclass(frozen=True)
class Rest:
    """How things stood when it began."""

    last_row: int
    polls: dict[board.Board, int]


async def rows(observer: Observer, after: int) -> list[Row]:
    """The recorder's rows of our entities behind this one."""
    ids = {entry["entity_id"] for entry in (await observer.hass.view()).registry.values()}
    query = """
        select states.state_id, states_meta.entity_id, states.state from states join states_meta using (metadata_id)
        where states.state_id > ? order by states.state_id
    """
    with closing(sqlite3.connect(f"file:{observer.house.database}?mode=ro", uri=True)) as database:
        return [row for row in database.execute(query, [after]) if row[1] in ids]


async def change_cell(
    observer: Observer, cell: int, millivolts: int, after: int, expected: dict[str, str]
) -> list[Row]:
    """The rows once these are among them: all that were to be written before have come before them."""
    observer.house.boards["house"].set(board.with_cell(HOUSE_FRAMES[1], cell, millivolts))

    async def look() -> list[Row]:
        return await rows(observer, after)

    return await eventually(look, lambda found: expected.items() <= states(found).items(), observer.report.patience)


def states(found: list[Row]) -> dict[str, str]:
    return {entity: state for _, entity, state in found}


async def come_to_rest(observer: Observer) -> Rest:
    house = observer.house
    barn = house.pack("barn")
    house.boards["barn"].set(board.with_words(FIFTEEN_FRAMES[0], {board.CURRENT: 0}))
    house.change(barn, barn.says(current=Number(0), power=Number(0), mode="idle", time_to_empty="unknown"))
    # What was charged and discharged before is saved at its end, so that it comes to no row later.
    await life.end_bridge(observer, "all packs at rest")
    await life.start_bridge(observer, "all packs at rest")
    # Neither the lowest nor the highest cell, before and after.
    found = await change_cell(observer, 3, 3333, 0, {house.pack("house").id_of("cell_3_voltage"): "3.333"})
    return Rest(found[-1][0], {each: each.polls for each in house.boards.values()})


async def check_rest(observer: Observer, rest: Rest) -> None:
    async def polls() -> int:
        return min(each.polls - before for each, before in rest.polls.items())

    polled = await eventually(polls, lambda polled: polled >= FEWEST_POLLS, 120)
    found = await rows(observer, rest.last_row)
    observer.report.check(f"at rest for {FEWEST_POLLS} polls or more", True, polled >= FEWEST_POLLS)
    observer.report.note(f"{len(found)} rows in the database in {polled} polls of packs at rest")
    observer.report.check("packs at rest: no row in the database", [], found)


async def check_changes(observer: Observer, rest: Rest) -> None:
    report, pack = observer.report, observer.house.pack("house")
    expected = {pack.id_of("cell_3_voltage"): "3.332"}
    found = await change_cell(observer, 3, 3332, rest.last_row, expected)
    report.check("one cell changed: its row and no other", expected, states(found))
    report.check("one cell changed: one row", 1, len(found))
    expected = {
        pack.id_of("cell_6_voltage"): "3.340",
        pack.id_of("maximum_cell_voltage"): "3.340",
        pack.id_of("cell_voltage_delta"): "9",
    }
    found = await change_cell(observer, 6, 3340, found[-1][0], expected)
    report.check("the highest cell changed: its row and those of what follows from it", expected, states(found))
    report.check("the highest cell changed: one row each", len(expected), len(found))
    observer.house.boards["house"].set(HOUSE_FRAMES[1])
    await observer.is_right("all packs at rest again")
