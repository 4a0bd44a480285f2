//! What is known of a pack now: what the poller hands to the publisher.

use std::time::{Duration, SystemTime};

use super::alarms::Alarm;
use super::energy::Energy;
use super::forecast::Forecast;
use super::reading::{Counters, Reading};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackState {
    /// Does the board answer? `None` until it has answered or been silent once.
    pub answering: Option<bool>,
    /// `None` until the board has been asked, or has been silent when it was to be asked.
    pub identity: Option<Identity>,
    /// The last good poll, as it is shown.
    pub reading: Option<Reading>,
    /// The same as it was read, where damping may hold a part of it back.
    pub undamped: Option<Reading>,
    /// Asked seldom, so mostly older than the reading.
    pub counters: Option<Counters>,
    /// From this reading and those before; `None` as long as the board tells no totals.
    pub forecast: Option<Forecast>,
    /// `None` until what was kept before has been loaded.
    pub remembered: Option<Remembered>,
    /// How the line does, as of a while ago: see [`LineStatistics`].
    pub line: Option<LineStatistics>,
    /// The one-line JSON of the last poll, where a topic for it is configured.
    pub json_line: Option<JsonLine>,
}

/// What is kept over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub energy: Energy,
    /// `None` if there never was one.
    pub last_alarm: Option<Alarm>,
}

/// What a board says of itself once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The board's own name; `None` where it has none.
    pub model: Option<String>,
}

/// What has happened on a pack's line since the start.
///
/// Polls and times are others at every poll, and would be news at every poll; so what is shown is renewed when
/// something went wrong, and else only now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineStatistics {
    pub polls: u64,
    /// Questions asked again.
    pub retries: u64,
    /// Questions, first or again, after which nothing came.
    pub timeouts: u64,
    /// Questions, first or again, after which something came and no right answer among it.
    pub checksum_errors: u64,
    /// How often the link was opened after the first time.
    pub reopened_links: u64,
    /// Of the last good poll: from its first question to its last answer.
    pub response_time: Option<Duration>,
    /// When the last good poll was.
    pub last_success: Option<SystemTime>,
}

/// The line of one poll: `poll` tells two equal lines of two polls apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonLine {
    pub poll: u64,
    pub text: String,
}
