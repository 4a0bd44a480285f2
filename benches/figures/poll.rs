//! How long a poll takes beyond what the wire takes.

use std::time::Duration;

use bms2mqtt::jbd::message::register;
use bms2mqtt::jbd::simulator::Pace;

use crate::Place;
use crate::board::{Battery, Exchange};
use crate::machine::{Result, wait_for};
use crate::program::{Rig, Setup, Subject};
use crate::table::{Aim, Cell, Spread, Table, median};

pub const FIGURES: &str =
    "poll over wire time, cells at 9600 115200 baud; reaction from answer to next question";

const POLLS: usize = 25;
const AIM: f64 = 1.02;

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    for baud in [9600, 115_200] {
        for cells in [4, 8, 16, 24, 32] {
            let times = place.programs().each(|subject| polls(subject, baud, cells))?;
            let wire = Battery::of(cells)?.wire_time(baud);
            // At 115200 a poll is over before a timer's millisecond is.
            let aim = if baud == 9600 { Aim::Ratio(AIM) } else { Aim::None };
            let cells_of = times.map(|polls| polls.time.clone()).with_floor(Cell::millis(wire));
            table.row(format!("poll over wire time, {cells} cells at {baud} baud"), cells_of, aim);
            if (baud, cells) == (9600, 16) {
                let bare = reactions(&asked(&Subject::Bare, baud, cells)?.board().exchanges());
                let all = times.map(|polls| polls.reactions.clone()).with_floor(bare);
                let spreads = all.map(|times| Spread::of(times.clone()));
                let name = "reaction: an answer's last byte to the next question";
                table.row(
                    format!("{name}, p50"),
                    spreads.map(|spread| Cell::micros(spread.median)),
                    Aim::None,
                );
                table.row(format!("{name}, p99"), spreads.map(|spread| Cell::micros(spread.p99)), Aim::None);
            }
        }
    }
    Ok(())
}

struct Polls {
    /// By the program's own log.
    time: Cell,
    /// By the board's clock.
    reactions: Vec<Duration>,
}

/// A program that has polled often enough.
fn asked(subject: &Subject, baud: u32, cells: usize) -> Result<Rig> {
    let setup = Setup {
        cells,
        baud,
        pace: Pace::Wire { baud },
        interval: Duration::from_millis(10),
        proxied: false,
        debug: true,
        ..Setup::paced()
    };
    let rig = Rig::start(subject, &setup)?;
    rig.explain(wait_for("polls", || (rig.board().polls() > POLLS as u64 + 2).then_some(())))?;
    Ok(rig)
}

fn polls(subject: &Subject, baud: u32, cells: usize) -> Result<Polls> {
    let rig = asked(subject, baud, cells)?;
    let log = rig.log();
    let times = log.lines().filter_map(|line| line.split("polled in ").nth(1)?.split(" ms").next());
    // The first opens the port, and asks for more than a poll does.
    let times: Vec<&str> = times.skip(1).collect();
    let micros: Vec<u64> = times
        .iter()
        .filter_map(|time| time.parse::<f64>().ok())
        .map(|millis| (millis * 1000.0).round() as u64)
        .collect();
    if micros.is_empty() {
        return rig.explain(Err("its log does not say how long a poll took".into()));
    }
    let typical = Duration::from_micros(median(micros));
    let whole = !times.iter().any(|time| time.contains('.'));
    let time = if whole {
        // Milliseconds that were rounded down: it may have been nearly one more, which is what counts.
        let least = typical.as_millis();
        Cell::new((least + 1) as f64, format!("{least} to {} ms", least + 1))
    } else {
        Cell::millis(typical)
    };
    Ok(Polls { time, reactions: reactions(&rig.board().exchanges()) })
}

/// From the answer about the totals to the question about the cells, which needs nobody's timer.
fn reactions(exchanges: &[Exchange]) -> Vec<Duration> {
    let pairs = exchanges.windows(2).filter_map(|pair| match pair {
        [totals, cells]
            if (totals.register, cells.register) == (register::BASIC_INFO, register::CELL_VOLTAGES) =>
        {
            Some(cells.asked.saturating_duration_since(totals.answered))
        }
        _ => None,
    });
    pairs.skip(1).collect()
}
