//! What a poll costs the processor, and how often it wakes the program.
//!
//! All programs work at the same time, each with a board and a broker of its own: whatever else the machine does, it
//! does to all of them.

use std::thread::sleep;
use std::time::Duration;

use crate::Place;
use crate::board::Change;
use crate::machine::Result;
use crate::program::{Of, Rig, Setup, Used, settle};
use crate::table::{Aim, Cell, Table, median};

pub const FIGURES: &str =
    "processor time and wake-ups per unchanged, changed poll of 16 cells, answers at once, byte by byte";

/// The programs are watched for this, so often; the middle one counts, whatever else was begun in one of them.
const SLICE: Duration = Duration::from_secs(2);
const SLICES: usize = 5;
const AIM: f64 = 150.0;

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    for (how, setup) in [("answers at once", Setup::unpaced()), ("byte by byte", Setup::paced())] {
        let with = |change| Setup { change, ..setup };
        let unchanged = place.programs_and_bare().each(|subject| Rig::start(subject, &setup))?;
        let one_cell = place.programs().each(|subject| Rig::start(subject, &with(Change::OneCell)))?;
        let every_cell = place.programs().each(|subject| Rig::start(subject, &with(Change::EveryCell)))?;
        let kinds = [unchanged, one_cell, every_cell];
        settle(kinds.iter().flat_map(Of::iter))?;
        for rig in kinds.iter().flat_map(Of::iter) {
            rig.board().change();
        }
        let mut used = kinds.each_ref().map(|kind| kind.map(|_| Vec::new()));
        for _ in 0..=SLICES {
            for (rigs, used) in kinds.iter().zip(&mut used) {
                for (rig, used) in rigs.iter().zip(used.iter_mut()) {
                    used.push(rig.used()?);
                }
            }
            sleep(SLICE);
        }
        let per_poll = |kind: usize| used[kind].each(|used| PerPoll::of(used));
        let [unchanged, one_cell, every_cell] = [per_poll(0)?, per_poll(1)?, per_poll(2)?];
        let cost = |poll: &PerPoll| Cell::micros(poll.processor);
        let aim = || Aim::Most(AIM, format!("{AIM} µs or less"));
        table.row(format!("processor per unchanged poll, {how}"), unchanged.map(cost), aim());
        table.row(format!("processor per poll, one cell changed, {how}"), one_cell.map(cost), Aim::None);
        table.row(format!("processor per poll, every cell changed, {how}"), every_cell.map(cost), Aim::None);
        let wakeups = unchanged.map(|poll| Cell::new(poll.wakeups, format!("{:.2}", poll.wakeups)));
        table.row(format!("wake-ups per unchanged poll, {how}"), wakeups, Aim::None);
    }
    Ok(())
}

struct PerPoll {
    processor: Duration,
    wakeups: f64,
}

impl PerPoll {
    fn of(used: &[Used]) -> Result<PerPoll> {
        let polls = |before: &Used, after: &Used| u32::try_from(after.polls - before.polls);
        let mut slices = Vec::new();
        for pair in used.windows(2) {
            let polls = polls(&pair[0], &pair[1])?;
            if polls < 10 {
                return Err(format!("only {polls} polls were made within {SLICE:?}").into());
            }
            slices.push((pair[1].processor - pair[0].processor) / polls);
        }
        let (first, last) = (&used[0], &used[SLICES]);
        let wakeups = (last.wakeups - first.wakeups) as f64 / f64::from(polls(first, last)?);
        Ok(PerPoll { processor: median(slices), wakeups })
    }
}
