//! What a poll asks of the kernel, by strace.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use crate::Place;
use crate::machine::{Result, installed};
use crate::program::{Of, Rig, Setup, Under, settle};
use crate::table::{Aim, Cell, Table};

pub const FIGURES: &str = "system calls per unchanged poll of 16 cells, answers at once, byte by byte";

/// The write of a request for register 0x03, as `strace -xx` prints it.
const REQUEST: &str = r#""\xdd\xa5\x03"#;
/// As many as are looked at, at least.
const POLLS: usize = 30;

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    if let Some(reason) = cannot_trace() {
        let missing = Of::only(Cell::missing(reason));
        table.row("system calls per poll", missing, Aim::None);
        return Ok(());
    }
    for (how, setup) in [("answers at once", Setup::unpaced()), ("byte by byte", Setup::paced())] {
        let setup = Setup { under: Under::Strace, ..setup };
        let rigs = place.programs_and_bare().each(|subject| Rig::start(subject, &setup))?;
        settle(rigs.iter())?;
        sleep(Duration::from_secs(4));
        let polls = rigs.each(typical_poll)?;
        let cells = polls.map(|poll| Cell::count(poll.values().sum::<u64>() as f64));
        table.row(format!("system calls per unchanged poll, {how}"), cells, Aim::None);
        for name in ["read", "write", "epoll_wait"] {
            let cells = polls.map(|poll| Cell::count(poll.get(name).copied().unwrap_or_default() as f64));
            table.row(format!("… of these {name}"), cells, Aim::None);
        }
        let rest = polls.map(|poll| {
            let rest =
                poll.iter().filter(|(name, _)| !["read", "write", "epoll_wait"].contains(&name.as_str()));
            let text: Vec<String> = rest.map(|(name, count)| format!("{count} {name}")).collect();
            Cell::missing(text.join(", "))
        });
        table.row("… and the others", rest, Aim::None);
    }
    Ok(())
}

/// Why nothing can be traced here, if nothing can.
pub fn cannot_trace() -> Option<&'static str> {
    if !installed("strace") {
        return Some("strace is not installed");
    }
    // A container may forbid it.
    let tried = std::process::Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    (!tried.is_ok_and(|tried| tried.status.success())).then_some("strace may not trace here")
}

/// System calls of a poll, by name.
pub type Calls = BTreeMap<String, u64>;

/// Of the poll that has the middle number of them: timers end on whole milliseconds, and some polls meet one more.
fn typical_poll(rig: &Rig) -> Result<Calls> {
    Ok(polls(rig)?.swap_remove(POLLS / 2))
}

/// What no poll does without, waiting apart.
pub fn least_work(rig: &Rig) -> Result<u64> {
    let work =
        |poll: &Calls| poll.iter().filter(|(name, _)| *name != "epoll_wait").map(|(_, count)| count).sum();
    Ok(polls(rig)?.iter().map(work).min().unwrap_or_default())
}

/// The last ones, those with the fewest first.
fn polls(rig: &Rig) -> Result<Vec<Calls>> {
    let log = rig.tool_log();
    let mut polls: Vec<Calls> = Vec::new();
    for line in log.lines() {
        // "1234  write(9, …", and of a call that another thread's came into: "1234  <... read resumed>…".
        let Some((_, call)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        if !name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_') {
            continue;
        }
        if name.starts_with("write") && arguments.contains(REQUEST) {
            polls.push(Calls::new());
        }
        if let Some(poll) = polls.last_mut() {
            *poll.entry(name.to_owned()).or_default() += 1;
        }
    }
    // The last may not be over; those before the last ones are of a program that was still announcing.
    polls.pop();
    if polls.len() < POLLS {
        return rig.explain(Err(format!("strace has seen {} polls", polls.len()).into()));
    }
    let mut polls = polls.split_off(polls.len() - POLLS);
    polls.sort_by_key(|poll| poll.values().sum::<u64>());
    Ok(polls)
}
