//! What is known of a pack now: as it was read, whatever is shown of it.

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
    /// The last good poll.
    pub reading: Option<Reading>,
    /// Asked seldom, so mostly older than the reading.
    pub counters: Option<Counters>,
    /// From this reading and those before; `None` as long as the board tells no totals.
    pub forecast: Option<Forecast>,
    /// `None` until what was kept before has been loaded.
    pub remembered: Option<Remembered>,
    /// How the line does, as of a while ago: see [`LineStatistics`].
    pub line: Option<LineStatistics>,
    /// Another at every poll, and so no news by itself.
    pub last_poll: LastPoll,
}

/// The last poll that has ended. Times are since the start of the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastPoll {
    /// Counted from 1; 0 before the first.
    pub number: u64,
    pub ended: Duration,
    /// Did it bring a reading?
    pub good: bool,
    /// When the last reading came.
    pub read: Option<Duration>,
}

/// What is kept over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub energy: Energy,
    /// `None` if there never was one.
    pub last_alarm: Option<Alarm>,
}

/// What a board says of itself once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Who makes such boards, as the protocol tells.
    pub maker: &'static str,
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
    /// Requests sent again.
    pub retries: u64,
    /// Requests, first or again, after which nothing came.
    pub timeouts: u64,
    /// Requests, first or again, after which something came and no right response among it.
    pub checksum_errors: u64,
    /// How often the link was opened after the first time.
    pub reopened_links: u64,
    /// Of the last good poll: from its first request to its last response.
    pub response_time: Option<Duration>,
    /// When the last good poll was.
    pub last_success: Option<SystemTime>,
}
