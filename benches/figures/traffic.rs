//! What is sent to the broker, packet by packet.

use crate::Place;
use crate::board::Change;
use crate::broker::Traffic;
use crate::machine::Result;
use crate::program::{Of, Rig, Setup, settle};
use crate::table::{Aim, Cell, Table, median};

pub const FIGURES: &str = "traffic, packets and bytes per unchanged, changed poll of 16 cells; announcement";

const POLLS: usize = 100;

struct Case {
    name: &'static str,
    change: Change,
    /// In `config.yaml`, which an older build need not understand.
    more: &'static str,
    /// Packets and bytes.
    most: Option<f64>,
}

const CASES: &[Case] = &[
    Case { name: "unchanged poll", change: Change::Nothing, more: "", most: Some(0.0) },
    Case { name: "poll, one cell ±1 mV", change: Change::OneCell, more: "", most: None },
    Case { name: "poll, every cell ±1 mV", change: Change::EveryCell, more: "", most: None },
    Case {
        name: "poll, every cell ±1 mV, dead band 3 mV",
        change: Change::EveryCell,
        more: "dead_band: {cell_voltage: 0.003}\n",
        most: Some(0.0),
    },
];

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    let mut rigs: Vec<Of<Rig>> = Vec::new();
    for &Case { change, more, .. } in CASES {
        let setup = Setup { change, more, ..Setup::unpaced() };
        let programs = place.programs();
        let programs = if more.is_empty() { programs } else { Of::only(programs.this) };
        rigs.push(programs.each(|subject| Rig::start(subject, &setup))?);
    }
    settle(rigs.iter().flat_map(Of::iter))?;
    if let Some(rigs) = rigs.first() {
        let announced = rigs.each(sent)?;
        let packets = announced.map(|traffic| Cell::count(traffic.packets as f64));
        table.row("traffic of the announcement, packets", packets, Aim::None);
        table.row(
            "traffic of the announcement, bytes",
            announced.map(|traffic| Cell::count(traffic.bytes as f64)),
            Aim::None,
        );
    }
    for (case, rigs) in CASES.iter().zip(&rigs) {
        let polls = rigs.each(per_poll)?;
        let aim = || case.most.map_or(Aim::None, |most| Aim::Most(most, format!("{most}")));
        table.row(format!("traffic per {}, packets", case.name), polls.map(|polls| polls.packets()), aim());
        table.row(format!("traffic per {}, bytes", case.name), polls.map(|polls| polls.bytes()), aim());
    }
    Ok(())
}

fn sent(rig: &Rig) -> Result<Traffic> {
    let proxy = rig.around().proxy.as_ref().ok_or("nobody counts its packets")?;
    Ok(proxy.meter.sent())
}

/// What each of some polls in a row has sent.
pub struct Polls(Vec<Traffic>);

/// Lets the board change, and counts poll by poll.
pub fn per_poll(rig: &Rig) -> Result<Polls> {
    let proxy = rig.around().proxy.as_ref().ok_or("nobody counts its packets")?;
    let meter = proxy.meter.clone();
    rig.board().change();
    let marks = rig.explain(rig.board().observe(POLLS + 2, move || meter.sent()))?;
    // Between the first two marks may be the poll in the middle of which the change began.
    Ok(Polls(marks[1..].windows(2).map(|pair| pair[1].since(pair[0])).collect()))
}

impl Polls {
    pub fn packets(&self) -> Cell {
        self.cell(|traffic| traffic.packets)
    }

    pub fn bytes(&self) -> Cell {
        self.cell(|traffic| traffic.bytes)
    }

    /// One number where all polls have the same.
    fn cell(&self, count: fn(&Traffic) -> u64) -> Cell {
        let counts: Vec<u64> = self.0.iter().map(count).collect();
        let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
        let total: u64 = counts.iter().sum();
        let mean = total as f64 / counts.len() as f64;
        let typical = median(counts);
        match (least, most) {
            (Some(least), Some(most)) if least != most => {
                Cell::new(mean, format!("{typical} ({least} to {most})"))
            }
            _ => Cell::count(typical as f64),
        }
    }
}
