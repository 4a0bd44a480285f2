//! How old a value is when it arrives: from the last byte of the board's answer to a subscriber.
//!
//! After each value, when all is quiet again, a prepared packet takes the same way through the same broker to the same
//! subscriber: what that takes is the broker's own time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Place;
use crate::board::{CHANGING_CELL, Change, Exchange};
use crate::broker::{RawPublisher, Subscriber};
use crate::machine::Result;
use crate::program::{Rig, Setup, Subject, settle};
use crate::table::{Aim, Cell, Spread, Table};

pub const FIGURES: &str = "freshness, answers at once, at 9600 baud, p50 p99";

/// What the program may take beyond the broker's own time.
const AIM: Duration = Duration::from_micros(300);
/// After a value, before the broker is asked for its own time.
const QUIET: Duration = Duration::from_millis(2);
const OWN_TOPIC: &str = "figures/own";

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    let one_cell = |setup| Setup { change: Change::OneCell, proxied: false, ..setup };
    for (how, setup, samples) in [
        ("answers at once", one_cell(Setup::unpaced()), 500),
        ("at 9600 baud", one_cell(Setup::paced()), 300),
    ] {
        let times = place.programs().each(|subject| sample(subject, &setup, samples))?;
        let broker = Spread::of(times.this.broker.clone());
        let spreads = times.map(|times| Spread::of(times.fresh.clone())).with_floor(broker);
        let name = |percent| format!("freshness, {how}, {percent} of {samples}");
        table.row(name("p50"), spreads.map(|spread| Cell::micros(spread.median)), Aim::None);
        let most = (broker.p99 + AIM).as_secs_f64() * 1e6;
        let aim = Aim::Most(most, "floor + 300 µs".to_owned());
        table.row(name("p99"), spreads.map(|spread| Cell::micros(spread.p99)), aim);
    }
    Ok(())
}

struct Times {
    fresh: Vec<Duration>,
    broker: Vec<Duration>,
}

fn sample(subject: &Subject, setup: &Setup, samples: usize) -> Result<Times> {
    let rig = Rig::start(subject, setup)?;
    settle([&rig])?;
    let broker = rig.around().broker.address;
    let topic = format!("bms2mqtt/bank/cell_{CHANGING_CELL}_voltage");
    let subscriber = Subscriber::start(broker, &[&topic, OWN_TOPIC])?;
    let mut publisher = RawPublisher::start(broker, OWN_TOPIC, "3.362")?;
    rig.explain(subscriber.wait("what is retained", |arrival| arrival.topic == topic).map(drop))?;
    rig.board().change();

    let (mut arrivals, mut times) = (Vec::new(), Times { fresh: Vec::new(), broker: Vec::new() });
    while arrivals.len() < samples {
        let value = subscriber.wait("a changed value", |arrival| arrival.topic == topic);
        arrivals.push(rig.explain(value)?);
        sleep(QUIET);
        let published = Instant::now();
        publisher.publish()?;
        let own = subscriber.wait("a packet of our own", |arrival| arrival.topic == OWN_TOPIC)?;
        times.broker.push(own.at - published);
    }
    // Each value is the opposite of the one before: it is of the latest answer that had it.
    let exchanges: Vec<Exchange> =
        rig.board().exchanges().into_iter().filter(|exchange| exchange.register == 4).collect();
    let unchanged = arrivals.iter().map(|arrival| arrival.payload.clone()).min().unwrap_or_default();
    for arrival in &arrivals {
        let changed = arrival.payload != unchanged;
        let source = exchanges
            .iter()
            .rev()
            .find(|exchange| exchange.answered <= arrival.at && exchange.changed == changed)
            .ok_or("a value came before its answer")?;
        times.fresh.push(arrival.at - source.answered);
    }
    Ok(times)
}
