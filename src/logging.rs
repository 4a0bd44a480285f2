//! The log: to standard error, so that standard output has only results.

use std::env;
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::panic;

use tracing::error;
use tracing::level_filters::LevelFilter;

use crate::cli::LogFormat;

/// Sets up the program's log; to be called once.
pub fn start(level: LevelFilter, format: LogFormat) {
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(level)
        // It would say that on the very stream that cannot be written, and panic when that fails
        // too.
        .log_internal_errors(false)
        .with_target(false);
    match format {
        // The journal has times of its own.
        LogFormat::Text if is_journal() => log.without_time().init(),
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    // One line like any other, for whom reads the log; and no second panic where it cannot be
    // written.
    panic::set_hook(Box::new(|panic| {
        let what = panic.to_string().replace('\n', " ");
        error!("this is a bug, please report it at {}/issues: {what}", env!("CARGO_PKG_REPOSITORY"));
    }));
}

/// Does standard error go to systemd's journal? It says by device and inode which stream does.
fn is_journal() -> bool {
    let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
    fs::metadata("/proc/self/fd/2").is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}
