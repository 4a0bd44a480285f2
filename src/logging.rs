//! The log: to standard error, so that standard output has only results.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;

use crate::cli::LogFormat;

/// Sets up the program's log; to be called once.
pub fn start(level: LevelFilter, format: LogFormat) {
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(level)
        .with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
