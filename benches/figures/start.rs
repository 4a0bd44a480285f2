//! From starting the program to its first value at a subscriber, with files that have been read before.

use std::time::{Duration, Instant};

use crate::Place;
use crate::board::{BAUD, Battery};
use crate::broker::Subscriber;
use crate::machine::Result;
use crate::program::{Of, Rig, Setup, Subject, Surroundings};
use crate::table::{Aim, Cell, Table, median};

pub const FIGURES: &str = "start to first value at a subscriber";

const STARTS: usize = 7;
/// Beyond the wire's time of one poll.
const AIM: Duration = Duration::from_millis(30);

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    let setup = Setup { proxied: false, interval: Duration::from_secs(5), ..Setup::paced() };
    // In turns: what disturbs one start of one program does not disturb all of its starts.
    let mut rounds = Vec::new();
    for _ in 0..STARTS {
        rounds.push(place.programs().each(|subject| start(subject, &setup))?);
    }
    let middle = |times: Vec<Duration>| Cell::millis(median(times));
    let wire = Battery::of(setup.cells)?.wire_time(BAUD);
    let cells = Of {
        this: middle(rounds.iter().map(|round| round.this).collect()),
        before: place
            .before
            .as_ref()
            .map(|_| middle(rounds.iter().filter_map(|round| round.before).collect())),
        floor: Some(Cell::millis(wire)),
    };
    let most = (wire + AIM).as_secs_f64() * 1e3;
    table.row(
        "start to first value at a subscriber, 16 cells",
        cells,
        Aim::Most(most, "floor + 30 ms".to_owned()),
    );
    Ok(())
}

fn start(subject: &Subject, setup: &Setup) -> Result<Duration> {
    let around = Surroundings::start(setup)?;
    let subscriber = Subscriber::start(around.broker.address, &["bms2mqtt/bank/+"])?;
    let began = Instant::now();
    let rig = Rig::start_in(subject, setup, around)?;
    let value = subscriber.wait("a value", |arrival| !arrival.topic.ends_with("/availability"));
    Ok(rig.explain(value)?.at - began)
}
