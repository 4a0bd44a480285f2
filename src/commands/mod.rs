//! One file a command. Each gets what was typed and says how it ended.

use std::fmt;
use std::fs;
use std::io::{self, Write};

pub mod check;
pub mod dashboard;
pub mod decode;
pub mod demo;
pub mod health;
pub mod import;
pub mod once;
pub mod run;
pub mod scan;
pub mod simulate;
pub mod smart_bms;

/// How a command fails, sorted by exit code.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// It failed while running: exit code 1.
    Running(String),
    /// As [`Failure::Running`], and all has been said.
    Silent,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(message) | Failure::Running(message) => f.write_str(message),
            Failure::Silent => Ok(()),
        }
    }
}

impl From<crate::config::Error> for Failure {
    fn from(error: crate::config::Error) -> Failure {
        Failure::Usage(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Running(error.to_string())
    }
}

/// Prints a result. Does somebody still read? Who has read enough, such as `head -n 1`, makes no
/// failure.
///
/// # Errors
/// When it cannot be written, for instance because the disk is full.
pub fn print(text: impl fmt::Display) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Running(format!("cannot write to standard output: {error}"))),
    }
}

/// Says a line that is no result. Where that cannot be written, the exit code still tells.
pub fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Done when the user or the system wants the program to end.
pub fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The terminal was closed. Whoever starts a program with `nohup` wants it to go on then.
    let mut hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
    let hangup = async move {
        match &mut hangup {
            Some(hangup) => hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup => {}
        }
    })
}

/// Was the program started so that it ignores SIGHUP?
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // A bit for each signal, the first of which is SIGHUP's.
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
