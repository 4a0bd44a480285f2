//! Instructions of single pieces of work: this program under callgrind does one of them so and so many times, and so
//! many more, and the difference is what they take.

use std::env;
use std::hint::black_box;
use std::process::Command;

use bms2mqtt::config::Config;
use bms2mqtt::jbd::frame::{Answer, Frame, Parsed, parse};
use bms2mqtt::jbd::message::{BasicInfo, CellVoltages, register};
use bms2mqtt::jbd::reading::reading;
use bms2mqtt::json_line::json_line;
use bms2mqtt::mqtt::mirror::Mirror;
use bms2mqtt::mqtt::names::PackName;
use bms2mqtt::pack::reading::Reading;
use bms2mqtt::pack::state::{Identity, PackState};

use crate::Place;
use crate::board::{Battery, Change};
use crate::machine::{Result, installed};
use crate::program::Of;
use crate::table::{Aim, Cell, Table};

pub const FIGURES: &str = "work: instructions to decode, print, decide";

/// `figures --work NAME TIMES`
pub const ARGUMENT: &str = "--work";

/// What it is, and what does it so many times.
type Work = (&'static str, fn(usize) -> Result<()>);

const WORKS: &[Work] = &[
    ("decode both answers of a poll", decode),
    ("print the one-line JSON", print),
    ("decide and word what to publish, nothing changed", |times| decide(times, Change::Nothing)),
    ("decide and word what to publish, one cell changed", |times| decide(times, Change::OneCell)),
    ("decide and word what to publish, every cell changed", |times| decide(times, Change::EveryCell)),
];

const FEW: usize = 20;
const MANY: usize = 220;

pub fn take(_: &Place, table: &mut Table) -> Result<()> {
    for (name, _) in WORKS {
        let cell = if installed("valgrind") {
            Cell::count((total(name, MANY)? - total(name, FEW)?) / (MANY - FEW) as f64)
        } else {
            Cell::missing("valgrind is not installed")
        };
        table.row(format!("instructions to {name}"), Of::only(cell), Aim::None);
    }
    Ok(())
}

fn total(name: &str, times: usize) -> Result<f64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(env::current_exe()?);
    let done = command.args([ARGUMENT, name, &times.to_string()]).output()?;
    let text = String::from_utf8_lossy(&done.stderr);
    let count = text.lines().find_map(|line| line.split("Collected :").nth(1)?.trim().parse().ok());
    count.ok_or_else(|| format!("{name}: callgrind does not say what it has counted:\n{text}").into())
}

pub fn run(name: &str, times: &str) -> Result<bool> {
    let work = WORKS.iter().find(|(known, _)| *known == name);
    let (_, work) = work.ok_or_else(|| format!("no such work: {name}"))?;
    work(times.parse()?)?;
    Ok(true)
}

/// Frames are found in what came, taken apart, and made a reading.
fn decode(times: usize) -> Result<()> {
    let answers = Battery::of(16)?.answers(Change::Nothing);
    for _ in 0..times {
        black_box(read(black_box(&answers))?);
    }
    Ok(())
}

fn read(answers: &[Vec<u8>; 2]) -> Result<Reading> {
    let [info, cells] = answers;
    let info = BasicInfo::decode(data(info, register::BASIC_INFO)?)?;
    let cells = CellVoltages::decode(data(cells, register::CELL_VOLTAGES)?)?;
    Ok(reading(Some(&info), Some(&cells)))
}

fn data(bytes: &[u8], wanted: u8) -> Result<&[u8]> {
    match parse(bytes) {
        Parsed::Frame(Frame::Answer(Answer { register, data, .. }), _) if register == wanted => Ok(data),
        _ => Err("not the answer".into()),
    }
}

fn print(times: usize) -> Result<()> {
    let reading = read(&Battery::of(16)?.answers(Change::Nothing))?;
    for _ in 0..times {
        black_box(json_line(Some(black_box(&reading))));
    }
    Ok(())
}

/// Of a pack that has been announced, and whose readings alternate.
fn decide(times: usize, change: Change) -> Result<()> {
    let battery = Battery::of(16)?;
    let state = |change| -> Result<PackState> {
        Ok(PackState {
            answering: Some(true),
            identity: Some(Identity::default()),
            reading: Some(read(&battery.answers(change))?),
            ..PackState::default()
        })
    };
    let states = [state(Change::Nothing)?, state(change)?];
    let names = Config::to_broker(String::new(), 0).names;
    let pack = PackName { id: "bank".to_owned(), name: "Bank".to_owned() };
    let mut sent = Mirror::new(names, vec![pack]);
    let mut publish = |states: &[PackState]| {
        for change in sent.difference(states, false) {
            black_box(sent.message(change, states));
        }
    };
    publish(&states[..1]);
    for time in 0..times {
        let place = (time + 1) % 2;
        publish(black_box(&states[place..=place]));
    }
    Ok(())
}
