//! What is known of a pack now: what the poller hands to the publisher.

use super::energy::Energy;
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
    /// `None` until what was counted before has been loaded.
    pub energy: Option<Energy>,
    /// The one-line JSON of the last poll, where a topic for it is configured.
    pub json_line: Option<JsonLine>,
}

/// What a board says of itself once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The board's own name; `None` where it has none.
    pub model: Option<String>,
}

/// The line of one poll: `poll` tells two equal lines of two polls apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonLine {
    pub poll: u64,
    pub text: String,
}
