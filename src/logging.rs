//! The log: to standard error, so that standard output has only results.

use std::env;
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::panic;

use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;

/// Levels by module, as `--log` has them.
pub const VARIABLE: &str = "BMS2MQTT_LOG";

/// Reads levels by module, such as `info,bms2mqtt::jbd=debug`. Of nothing given, all have this level.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn levels(given: Option<&str>, otherwise: LevelFilter) -> Result<Targets, String> {
    let Some(text) = given else {
        return Ok(Targets::new().with_default(otherwise));
    };
    let right = "write a level (error, warn, info, debug, trace, off), or such as info,bms2mqtt::bus=debug";
    text.parse().map_err(|error| format!("\"{text}\" names no levels ({error}); {right}"))
}

/// Sets up the program's log; to be called once.
pub fn start(levels: Targets, format: LogFormat) {
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // What is told is for the levels to say.
        .with_max_level(LevelFilter::TRACE)
        // It would say that on the very stream that cannot be written, and panic when that fails
        // too.
        .log_internal_errors(false)
        .with_target(false);
    match format {
        // The journal has times of its own.
        LogFormat::Text if is_journal() => log.without_time().finish().with(levels).init(),
        LogFormat::Text => log.finish().with(levels).init(),
        LogFormat::Json => {
            log.json().flatten_event(true).with_span_list(false).finish().with(levels).init();
        }
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

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_by_module_and_else_what_the_command_has() {
        let levels = |given: Option<&str>| levels(given, LevelFilter::INFO).unwrap();
        let enabled = |levels: &Targets, module: &str| {
            [Level::WARN, Level::INFO, Level::DEBUG].map(|level| levels.would_enable(module, &level))
        };
        assert_eq!(enabled(&levels(None), "bms2mqtt::bus"), [true, true, false]);
        assert_eq!(enabled(&levels(Some("warn")), "bms2mqtt::bus"), [true, false, false]);
        let mixed = levels(Some("warn,bms2mqtt::trace=debug"));
        assert_eq!(enabled(&mixed, "bms2mqtt::trace"), [true, true, true]);
        assert_eq!(enabled(&mixed, "bms2mqtt::poller"), [true, false, false]);
    }

    #[test]
    fn wrong_levels_say_what_would_be_right() {
        let error = levels(Some("bms2mqtt=loud"), LevelFilter::INFO).unwrap_err();
        assert!(error.contains("\"bms2mqtt=loud\"") && error.contains("info,bms2mqtt::bus=debug"), "{error}");
    }
}
