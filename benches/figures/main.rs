//! Figures of the whole program, each beside the least it could be and its aim: `cargo bench --bench figures`.
//!
//! A report: it ends with 0 whatever the figures are, and with 1 where one cannot be taken or a *count* is above its
//! bound. All of it takes four minutes or so, with `--against` five. It wants Linux, for what a program has used is what
//! `/proc` says of it; Mosquitto, valgrind and strace are used where they are installed, and a row says so where they
//! are not.
//!
//! ```text
//! cargo bench --bench figures -- [--against BINARY] [--binary PATH] [--only WORD] [--counts]
//! ```
//!
//! * `--against BINARY` takes the same figures of another build, at the same time or right after: column `before`
//! * `--binary PATH` takes them of this build instead of the one that Cargo has just made
//! * `--only WORD` takes only figures whose group or name has the word in it
//! * `--counts` takes only what can be counted exactly, however busy the machine is, in a quarter of a minute
//!
//! The column `floor` is what no program could do without: the wire's own time, the broker's own time, or what the
//! smallest program that asks the same of the same board has used meanwhile (`bare.rs`).
//!
//! Cargo builds the program for this with what tests and figures want of tokio and nix, 2 KB more than a release.

#[path = "../../tests/support/mod.rs"]
mod support;

mod bare;
mod board;
mod broker;
mod counts;
mod freshness;
mod instructions;
mod machine;
mod memory;
mod poll;
mod processor;
mod program;
mod start;
mod syscalls;
mod table;
mod traffic;
mod work;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use machine::Result;
use program::{Of, Subject};
use table::Table;

#[global_allocator]
static ALLOCATOR: counts::Counting = counts::Counting;

/// What is measured.
struct Place {
    program: PathBuf,
    before: Option<PathBuf>,
}

impl Place {
    fn programs(&self) -> Of<Subject> {
        Of {
            this: Subject::Program(self.program.clone()),
            before: self.before.clone().map(Subject::Program),
            floor: None,
        }
    }

    fn programs_and_bare(&self) -> Of<Subject> {
        Of { floor: Some(Subject::Bare), ..self.programs() }
    }
}

/// One question and what answers it.
struct Group {
    name: &'static str,
    /// Words of the figures in it, for `--only`: a group that has none of them is not begun.
    figures: &'static str,
    take: fn(&Place, &mut Table) -> Result<()>,
}

const GROUPS: &[Group] = &[
    Group { name: "counts", figures: counts::FIGURES, take: counts::take },
    Group { name: "poll", figures: poll::FIGURES, take: poll::take },
    Group { name: "freshness", figures: freshness::FIGURES, take: freshness::take },
    Group { name: "processor", figures: processor::FIGURES, take: processor::take },
    Group { name: "instructions", figures: instructions::FIGURES, take: instructions::take },
    Group { name: "syscalls", figures: syscalls::FIGURES, take: syscalls::take },
    Group { name: "memory", figures: memory::FIGURES, take: memory::take },
    Group { name: "traffic", figures: traffic::FIGURES, take: traffic::take },
    Group { name: "start", figures: start::FIGURES, take: start::take },
    Group { name: "work", figures: work::FIGURES, take: work::take },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let hidden: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match hidden.as_slice() {
        [bare::ARGUMENT, port, baud, interval] => bare::run(port, baud, interval),
        [work::ARGUMENT, name, times] => work::run(name, times),
        // `cargo test --all-targets` runs this too, unoptimized and without this argument.
        _ if !hidden.contains(&"--bench") => {
            println!("no figures: they are taken by `cargo bench`");
            Ok(true)
        }
        _ => report(arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("no figures: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Could everything be taken, and is no count above its bound?
fn report(arguments: Vec<String>) -> Result<bool> {
    let (mut program, mut before, mut only, mut counts) =
        (PathBuf::from(env!("CARGO_BIN_EXE_bms2mqtt")), None, None, false);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants something behind it"));
        match argument.as_str() {
            "--bench" => {}
            "--binary" => program = value()?.into(),
            "--against" => before = Some(PathBuf::from(value()?)),
            "--only" => only = Some(value()?),
            "--counts" => counts = true,
            _ => return Err(format!("{argument} means nothing here; see the head of benches/figures").into()),
        }
    }
    let real = |path: PathBuf| path.canonicalize().map_err(|error| format!("{}: {error}", path.display()));
    let place = Place { program: real(program)?, before: before.map(real).transpose()? };
    let broker = if support::mosquitto().is_some() { "Mosquitto" } else { "the small broker" };
    println!("{}, boards on pseudo-terminals, {broker} on loopback", place.program.display());
    if let Some(before) = &place.before {
        println!("before: {}", before.display());
    }

    let began = Instant::now();
    let mut table = Table::new(only.clone(), place.before.is_some());
    let (mut complete, mut took) = (true, Vec::new());
    for group in GROUPS {
        let wanted =
            only.as_ref().is_none_or(|word| group.name.contains(word) || group.figures.contains(word));
        if !wanted || (counts && group.name != "counts") {
            continue;
        }
        table.group(group.name);
        let group_began = Instant::now();
        if let Err(error) = (group.take)(&place, &mut table) {
            complete = false;
            eprintln!("{}: {error}", group.name);
        }
        took.push(format!("{} {}", group.name, group_began.elapsed().as_secs()));
    }
    if took.is_empty() {
        return Err(format!("nothing has \"{}\" in its name", only.unwrap_or_default()).into());
    }
    println!("\ntaken in {} s: {}", began.elapsed().as_secs(), took.join(", "));
    for line in &table.above {
        println!("above its bound: {line}");
    }
    Ok(complete && table.above.is_empty())
}
