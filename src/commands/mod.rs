//! One file a command. Each gets what was typed and says how it ended.

use std::fmt;

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

/// Done when the user or the system wants the program to end.
pub fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
