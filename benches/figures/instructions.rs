//! Instructions and allocations of a poll of the real program, by valgrind.
//!
//! Two runs differ in nothing but the number of polls, which the board sees to: the difference is what the polls cost.
//! The program runs as it is, under a processor that counts; so this is the same on a machine that is busy.

use std::thread;
use std::time::Duration;

use crate::Place;
use crate::board::Change;
use crate::machine::{Result, installed};
use crate::program::{Of, Rig, Setup, Subject, Under, settle};
use crate::table::{Aim, Cell, Table};

pub const FIGURES: &str =
    "instructions, allocations, bytes allocated per unchanged, changed poll of 16 cells";

const FEW: u64 = 10;
const MANY: u64 = 60;
/// Long enough for a poll that is slowed down fifty times: two in one would be published once.
const INTERVAL: Duration = Duration::from_millis(100);

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    if !installed("valgrind") {
        let missing = Of::only(Cell::missing("valgrind is not installed"));
        table.row("instructions and allocations per poll", missing, Aim::None);
        return Ok(());
    }
    let kinds = [
        ("unchanged poll", Change::Nothing, place.programs_and_bare()),
        ("poll, one cell changed", Change::OneCell, place.programs()),
        ("poll, every cell changed", Change::EveryCell, place.programs()),
    ];
    for (tool, names) in
        [(Under::Callgrind, ["instructions", ""]), (Under::Memcheck, ["allocations", "bytes allocated"])]
    {
        let mut pairs = Vec::new();
        for (_, change, subjects) in &kinds {
            let setup = Setup { change: *change, under: tool, interval: INTERVAL, ..Setup::unpaced() };
            let pair = |subject: &Subject| Ok([Rig::start(subject, &setup)?, Rig::start(subject, &setup)?]);
            pairs.push(subjects.each(pair)?);
        }
        settle(pairs.iter().flat_map(Of::iter).flatten())?;
        // Those of one kind at once: more of them, and they would not keep up with their intervals.
        for ((kind, ..), mut pairs) in kinds.iter().zip(pairs) {
            let per_poll = per_poll(&mut pairs, tool)?;
            for (place, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                let cells = per_poll.map(|counts| Cell::count(counts[place]));
                table.row(format!("{name} per {kind}, answers at once"), cells, Aim::None);
            }
        }
    }
    Ok(())
}

/// What two runs differ in.
fn per_poll(pairs: &mut Of<[Rig; 2]>, tool: Under) -> Result<Of<[f64; 2]>> {
    // The same poll for all, which none has come to.
    let from = pairs.iter().flatten().map(|rig| rig.board().polls()).max().unwrap_or_default() + 3;
    let run = |[few, many]: &mut [Rig; 2]| -> Result<[f64; 2]> {
        let (few, many) = thread::scope(|scope| {
            let many = scope.spawn(|| total(many, tool, from, MANY));
            (total(few, tool, from, FEW), many.join())
        });
        let many = many.map_err(|_| "a thread has panicked")??;
        let few = few?;
        Ok([0, 1].map(|place| (many[place] - few[place]) / (MANY - FEW) as f64))
    };
    thread::scope(|scope| {
        let runs = pairs.each_mut(|pair| Ok(scope.spawn(move || run(pair))))?;
        runs.into_each(|run| run.join().map_err(|_| "a thread has panicked")?)
    })
}

/// What a whole run counts in which the board changes for so many polls.
fn total(rig: &mut Rig, tool: Under, from: u64, polls: u64) -> Result<[f64; 2]> {
    rig.explain(rig.board().change_and_hold(from, polls))?;
    rig.end()?;
    let text = rig.tool_log();
    let number = |text: &str| text.trim().replace(',', "").parse::<f64>().ok();
    let counts = match tool {
        // "Collected : 912985"
        Under::Callgrind => {
            let line = text.lines().find_map(|line| line.split("Collected :").nth(1));
            line.and_then(number).map(|count| [count, 0.0])
        }
        // "total heap usage: 611 allocs, 608 frees, 411,859 bytes allocated"
        _ => {
            let line =
                text.lines().find_map(|line| line.split("total heap usage: ").nth(1)).unwrap_or_default();
            let before = |word| line.split(word).next().and_then(|text| number(text.rsplit(", ").next()?));
            before(" allocs").zip(before(" bytes allocated")).map(|(allocations, bytes)| [allocations, bytes])
        }
    };
    let counts = counts.ok_or_else(|| format!("valgrind does not say what it has counted:\n{text}"));
    rig.explain(counts.map_err(Into::into))
}
