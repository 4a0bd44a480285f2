//! One pack for life: open its link, poll at its interval, open again what broke, and tell what is known.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use crate::config::Pack;
use crate::jbd::board::{self, Board};
use crate::json_line::json_line;
use crate::link::{self, Link, OpenError};
use crate::meter::Meter;
use crate::pack::state::{Identity, JsonLine, PackState};

/// So many polls in a row without a reading make the pack `offline`; one may be noise.
const SILENT_POLLS: u32 = 3;
/// How often a missing port is tried at most, however short the interval.
const REOPEN: Duration = Duration::from_millis(200);
/// How often the board's counters are asked for.
const COUNTERS: Duration = Duration::from_secs(300);

/// Polls until `stop`, and keeps the pack's place in the states up to date.
pub async fn run(
    pack: &Pack,
    state_dir: &Path,
    states: Arc<watch::Sender<Vec<PackState>>>,
    place: usize,
    mut stop: watch::Receiver<bool>,
) {
    // Longer than this, and what flowed in between is not known.
    let longest_gap = Duration::from_secs(30).max(pack.interval * 3);
    let file = state_dir.join(format!("{}.json", pack.name.id));
    let mut poller = Poller {
        pack,
        states,
        place,
        board: None,
        open_after: Instant::now(),
        meter: Meter::new(&pack.name.id, file, longest_gap),
        counters_after: None,
        silent: 0,
        polls: 0,
        complaint: String::new(),
    };
    let mut ticks = interval(pack.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let polling = async {
        loop {
            ticks.tick().await;
            poller.turn().await;
        }
    };
    tokio::select! {
        () = polling => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    let Poller { meter, states, .. } = poller;
    // So that the publisher can say `offline` while the energy is saved.
    drop(states);
    meter.close().await;
}

/// Why a turn brought no reading.
enum Failure {
    Open(OpenError),
    Board(board::Error),
}

struct Poller<'a> {
    pack: &'a Pack,
    states: Arc<watch::Sender<Vec<PackState>>>,
    place: usize,
    board: Option<Board<Link>>,
    open_after: Instant,
    meter: Meter,
    /// `None` until the board has been asked for its name and counters on this link; then when the counters are due
    /// again, or never.
    counters_after: Option<Option<Instant>>,
    /// Polls in a row without a reading.
    silent: u32,
    polls: u64,
    /// What was last said of this pack in the log.
    complaint: String,
}

impl Poller<'_> {
    async fn turn(&mut self) {
        self.polls += 1;
        let began = Instant::now();
        match self.poll().await {
            Ok(()) => {
                debug!(pack = self.pack.name.id, "polled in {} ms", began.elapsed().as_millis());
                if !std::mem::take(&mut self.complaint).is_empty() {
                    info!(pack = self.pack.name.id, "the board answers");
                }
            }
            Err(failure) => self.fail(failure),
        }
    }

    async fn poll(&mut self) -> Result<(), Failure> {
        let board = match self.board.as_mut() {
            Some(board) => board,
            None => {
                sleep_until(self.open_after).await;
                self.open_after = Instant::now() + REOPEN;
                let link = link::open(&self.pack.address).await.map_err(Failure::Open)?;
                self.counters_after = None;
                self.board.insert(Board::new(link))
            }
        };
        let reading = board.poll().await.map_err(Failure::Board)?;
        let now = Instant::now();
        if let Some(totals) = &reading.totals {
            self.meter.count(now, totals.power());
        }
        let energy = self.meter.keep().await;
        let json_line = self
            .pack
            .json_topic
            .is_some()
            .then(|| JsonLine { poll: self.polls, text: json_line(Some(&reading)) });
        self.silent = 0;
        self.change(|state| {
            state.answering = Some(true);
            state.reading = Some(reading);
            state.energy = energy;
            state.json_line = json_line;
        });
        self.ask_what_seldom_changes(now).await.map_err(Failure::Board)
    }

    /// Name and counters once per link, after the first reading has gone out; then the counters now and then.
    async fn ask_what_seldom_changes(&mut self, now: Instant) -> Result<(), board::Error> {
        let Some(board) = self.board.as_mut() else {
            return Ok(());
        };
        let identity = match self.counters_after {
            None => Some(Identity { model: board.name().await? }),
            Some(Some(due)) if now >= due => None,
            Some(_) => return Ok(()),
        };
        let counters = board.counters().await?;
        // A board that does not tell them is not asked again on this link.
        self.counters_after = Some(counters.is_some().then(|| now + COUNTERS));
        self.change(|state| {
            state.identity = identity.or(state.identity.take());
            state.counters = counters.or(state.counters.take());
        });
        Ok(())
    }

    fn fail(&mut self, failure: Failure) {
        self.silent += 1;
        let never_answered = self.states.borrow()[self.place].reading.is_none();
        let gone = self.silent >= SILENT_POLLS || never_answered;
        // A line that broke, and a board that stays silent, may do better through a link opened anew.
        if gone || matches!(failure, Failure::Board(board::Error::Line(_))) {
            self.board = None;
        }
        let json_line =
            self.pack.json_topic.is_some().then(|| JsonLine { poll: self.polls, text: json_line(None) });
        self.change(|state| {
            if gone {
                state.answering = Some(false);
                // A pack that is not there has at least its connection to show.
                state.identity.get_or_insert_default();
            }
            state.json_line = json_line;
        });
        let complaint = match failure {
            Failure::Open(error) => error.to_string(),
            Failure::Board(error) => format!("{}: {error}", self.pack.address),
        };
        // The same again every few seconds would bury everything else.
        if complaint != self.complaint && (gone || self.silent == 1) {
            warn!(pack = self.pack.name.id, "{complaint}; trying again until it works");
            self.complaint = complaint;
        } else {
            debug!(pack = self.pack.name.id, "{complaint}");
        }
    }

    /// Changes this pack's state, and wakes the publisher only if it is another then.
    fn change(&self, change: impl FnOnce(&mut PackState)) {
        self.states.send_if_modified(|states| {
            let before = states[self.place].clone();
            change(&mut states[self.place]);
            states[self.place] != before
        });
    }
}
