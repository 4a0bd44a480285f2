//! Instructions and allocations of a poll of the real program, by valgrind.
//!
//! Two runs differ in nothing but the number of polls, which the board sees to: the difference is what the polls cost.
//! The program runs as it is, under a processor that counts; so this is the same on a machine that is busy.

use crate::Place;
use crate::board::Change;
use crate::machine::{Result, installed};
use crate::program::{Of, Rig, Setup, Subject, Under, settle};
use crate::table::{Aim, Cell, Table};

pub const FIGURES: &str =
    "instructions, allocations, bytes allocated per unchanged, changed poll of 16 cells";

const FEW: u64 = 100;
const MANY: u64 = 400;

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    if !installed("valgrind") {
        let missing = Of::only(Cell::missing("valgrind is not installed"));
        table.row("instructions and allocations per poll", missing, Aim::None);
        return Ok(());
    }
    for (tool, names) in
        [(Under::Callgrind, ["instructions", ""]), (Under::Memcheck, ["allocations", "bytes allocated"])]
    {
        let kinds = [
            ("unchanged poll", Change::Nothing, place.programs_and_bare()),
            ("poll, one cell changed", Change::OneCell, place.programs()),
            ("poll, every cell changed", Change::EveryCell, place.programs()),
        ];
        let mut runs = Vec::new();
        for (kind, change, subjects) in &kinds {
            // Both at once, with everything else that is counted by this tool.
            let start = |subject: &Subject| -> Result<[Rig; 2]> {
                let setup = Setup { change: *change, under: tool, ..Setup::unpaced() };
                Ok([Rig::start(subject, &setup)?, Rig::start(subject, &setup)?])
            };
            runs.push((kind, subjects.each(start)?));
        }
        settle(runs.iter().flat_map(|(_, pairs)| pairs.iter().flatten()))?;
        for (kind, pairs) in runs {
            let per_poll = pairs.into_each(|[few, many]| {
                let (few, many) = (total(few, tool, FEW)?, total(many, tool, MANY)?);
                let polls = (many.polls - few.polls) as f64;
                Ok([0, 1].map(|place| (many.counts[place] - few.counts[place]) / polls))
            })?;
            for (place, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                let cells = per_poll.map(|counts| Cell::count(counts[place]));
                table.row(format!("{name} per {kind}, answers at once"), cells, Aim::None);
            }
        }
    }
    Ok(())
}

struct Total {
    polls: u64,
    counts: [f64; 2],
}

/// What a whole run counts in which the board changes for so many polls, and then is silent until the end.
fn total(mut rig: Rig, tool: Under, polls: u64) -> Result<Total> {
    rig.board().change();
    let polls = rig.explain(rig.board().serve_more_and_hold(polls))?;
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
    Ok(Total { polls, counts: rig.explain(counts.map_err(Into::into))? })
}
