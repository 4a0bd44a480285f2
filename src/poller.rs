//! One pack for life: open its link, poll at its interval, open again what broke, and tell what is known.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use crate::config::Pack;
use crate::health::Health;
use crate::jbd::board::{self, Board};
use crate::jbd::message::register;
use crate::json_line::json_line;
use crate::link::{self, Link, OpenError};
use crate::memory::Memory;
use crate::pack::damping::{Damping, Shown};
use crate::pack::forecast::Forecaster;
use crate::pack::reading::Reading;
use crate::pack::state::{Identity, JsonLine, LineStatistics, PackState};

/// So often in a row a board must keep back a part of a reading before it counts as one that does not have it. What it
/// has once told it has: then a poll without it is a bad one.
const INCOMPLETE_POLLS: u32 = 2;
/// How often a missing port is tried at most, however short the interval.
const REOPEN: Duration = Duration::from_millis(200);
/// How often the board's counters are asked for.
const COUNTERS: Duration = Duration::from_secs(300);
/// How often the line's statistics are renewed while nothing goes wrong.
const STATISTICS: Duration = Duration::from_secs(300);
/// How often they are told in the log.
const REPORT: Duration = Duration::from_secs(3600);

/// Polls until `stop`, and keeps the pack's place in the states up to date.
pub async fn run(
    pack: &Pack,
    damping: Damping,
    state_dir: &Path,
    desk: Desk,
    mut stop: watch::Receiver<bool>,
) {
    // Longer than this, and what flowed in between is not known.
    let longest_gap = Duration::from_secs(30).max(pack.interval * 3);
    let file = state_dir.join(format!("{}.json", pack.name.id));
    let mut poller = Poller {
        pack,
        desk,
        board: None,
        opened: false,
        open_after: Instant::now(),
        memory: Memory::new(&pack.name.id, file, longest_gap),
        forecaster: Forecaster::default(),
        shown: Shown::new(damping),
        started: Instant::now(),
        counters_after: None,
        silent: 0,
        silent_about_cells: 0,
        incomplete: 0,
        line: LineStatistics::default(),
        statistics_after: None,
        report_after: Instant::now() + REPORT,
        reported: LineStatistics::default(),
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
    let Poller { memory, desk, .. } = poller;
    // So that the publisher can say `offline` while the energy is saved.
    drop(desk);
    memory.close().await;
}

/// Where a poller puts down what it knows.
pub struct Desk {
    pub states: Arc<watch::Sender<Vec<PackState>>>,
    /// This pack's place in the states.
    pub place: usize,
    pub health: Health,
}

/// Why a turn brought no reading.
enum Failure {
    Open(OpenError),
    Board(board::Error),
    /// The board refused a part of what it has told before, or for the first time.
    Incomplete,
}

struct Poller<'a> {
    pack: &'a Pack,
    desk: Desk,
    board: Option<Board<Link>>,
    /// Has there been a link?
    opened: bool,
    open_after: Instant,
    memory: Memory,
    forecaster: Forecaster,
    shown: Shown,
    started: Instant,
    /// `None` until the board has been asked for its name and counters on this link; then when the counters are due
    /// again.
    counters_after: Option<Instant>,
    /// Polls in a row without a reading.
    silent: u32,
    /// Polls of a board that tells the pack's totals and has never told a cell.
    silent_about_cells: u32,
    /// Readings in a row that lack a part.
    incomplete: u32,
    line: LineStatistics,
    /// `None` until they have been shown.
    statistics_after: Option<Instant>,
    report_after: Instant,
    /// As they were told in the log last.
    reported: LineStatistics,
    /// What was last said of this pack in the log.
    complaint: String,
}

impl Poller<'_> {
    async fn turn(&mut self) {
        let before = self.line;
        self.line.polls += 1;
        let outcome = self.poll().await;
        self.add_up();
        self.desk.health.turned(self.desk.place);
        match outcome {
            Ok(()) => {
                if !std::mem::take(&mut self.complaint).is_empty() {
                    info!(pack = self.pack.name.id, "the board answers");
                }
            }
            Err(failure) => self.fail(failure),
        }
        self.show_statistics(before);
    }

    async fn poll(&mut self) -> Result<(), Failure> {
        let board = match self.board.as_mut() {
            Some(board) => board,
            None => {
                sleep_until(self.open_after).await;
                self.open_after = Instant::now() + REOPEN;
                let link = link::open(&self.pack.address).await.map_err(Failure::Open)?;
                self.counters_after = None;
                self.line.reopened_links += u64::from(self.opened);
                self.opened = true;
                self.board.insert(Board::new(link))
            }
        };
        let began = Instant::now();
        let silent_about_cells = self.silent_about_cells >= INCOMPLETE_POLLS;
        let answer = if silent_about_cells { board.poll_totals().await } else { board.poll().await };
        let (had_totals, had_cells) = {
            let reading = &self.desk.states.borrow()[self.desk.place].reading;
            let of = |part: fn(&Reading) -> bool| reading.as_ref().is_some_and(part);
            (of(|reading| reading.totals.is_some()), of(|reading| !reading.cells.is_empty()))
        };
        if matches!(answer, Err(board::Error::NoAnswer { register: register::CELL_VOLTAGES, .. }))
            && !had_cells
        {
            self.silent_about_cells += 1;
        }
        let reading = answer.map_err(Failure::Board)?;
        let (no_totals, no_cells) = (reading.totals.is_none(), reading.cells.is_empty());
        self.incomplete = if no_totals || no_cells { self.incomplete + 1 } else { 0 };
        let new_to_it = self.incomplete == 1 && !silent_about_cells;
        if new_to_it || (no_totals && had_totals) || (no_cells && had_cells) {
            return Err(Failure::Incomplete);
        }
        let now = Instant::now();
        self.desk.health.read(self.desk.place);
        let took = now - began;
        self.line.response_time = Some(took);
        self.line.last_success = Some(SystemTime::now());
        debug!(pack = self.pack.name.id, "polled in {:.2} ms", took.as_secs_f64() * 1000.0);
        let forecast = reading.totals.as_ref().map(|totals| {
            let since_last = self.memory.count(now, totals.power());
            self.memory.see(totals.protections);
            self.forecaster.add(totals, since_last)
        });
        let remembered = self.memory.keep();
        let json_line = self
            .pack
            .json_topic
            .is_some()
            .then(|| JsonLine { poll: self.line.polls, text: json_line(Some(&reading)) });
        self.silent = 0;
        let undamped = self.shown.may_differ().then(|| reading.clone());
        // Last, so that what is counted and reckoned comes of what was read.
        let reading = self.shown.after(reading, now - self.started);
        self.change(|state| {
            // Not news: what is held back is not to be published.
            state.undamped = undamped;
            set(&mut state.answering, Some(true))
                | set(&mut state.reading, Some(reading))
                | set(&mut state.forecast, forecast)
                | set(&mut state.remembered, remembered)
                | set(&mut state.json_line, json_line)
        });
        self.ask_what_seldom_changes(now).await.map_err(Failure::Board)
    }

    /// Name and counters once per link, after the first reading has gone out; then the counters now and then.
    async fn ask_what_seldom_changes(&mut self, now: Instant) -> Result<(), board::Error> {
        let Some(board) = self.board.as_mut() else {
            return Ok(());
        };
        let name = match self.counters_after {
            None => board.name().await?,
            Some(due) if now >= due => None,
            Some(_) => return Ok(()),
        };
        let counters = board.counters().await?;
        self.counters_after = Some(now + COUNTERS);
        // What was told once stays, should the line have swallowed it this time.
        self.change(|state| {
            let known = state.identity.as_ref().and_then(|identity| identity.model.clone());
            set(&mut state.identity, Some(Identity { model: name.or(known) }))
                | (counters.is_some() && set(&mut state.counters, counters))
        });
        Ok(())
    }

    /// Takes over what the board has counted.
    fn add_up(&mut self) {
        let tally = self.board.as_mut().map(Board::take_tally).unwrap_or_default();
        self.line.retries += tally.retries;
        self.line.timeouts += tally.timeouts;
        self.line.checksum_errors += tally.checksum_errors;
    }

    fn show_statistics(&mut self, before: LineStatistics) {
        let now = Instant::now();
        let went_wrong =
            |line: &LineStatistics| (line.retries, line.timeouts, line.checksum_errors, line.reopened_links);
        let due = self.statistics_after.is_none_or(|due| now >= due);
        if due || went_wrong(&self.line) != went_wrong(&before) {
            self.statistics_after = Some(now + STATISTICS);
            self.change(|state| set(&mut state.line, Some(self.line)));
        }
        if now >= self.report_after {
            self.report_after = now + REPORT;
            let (line, before) = (self.line, std::mem::replace(&mut self.reported, self.line));
            info!(
                pack = self.pack.name.id,
                "in the last hour {} polls, {} retries, {} timeouts, {} checksum errors, {} links opened again",
                line.polls - before.polls,
                line.retries - before.retries,
                line.timeouts - before.timeouts,
                line.checksum_errors - before.checksum_errors,
                line.reopened_links - before.reopened_links,
            );
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.silent += 1;
        let never_answered = self.desk.states.borrow()[self.desk.place].reading.is_none();
        let gone = self.silent >= self.pack.offline_after || never_answered;
        // A line that broke, and a board that stays silent, may do better through a link opened anew.
        if gone || matches!(failure, Failure::Board(board::Error::Line(_))) {
            self.board = None;
        }
        let json_line =
            self.pack.json_topic.is_some().then(|| JsonLine { poll: self.line.polls, text: json_line(None) });
        self.change(|state| {
            let went = gone && {
                // A pack that is not there has at least its connection to show.
                let identity = state.identity.clone().unwrap_or_default();
                set(&mut state.answering, Some(false)) | set(&mut state.identity, Some(identity))
            };
            set(&mut state.json_line, json_line) | went
        });
        // One bad poll is in the hourly count; the same trouble again every few seconds would bury everything else.
        let (complaint, worth_a_line) = match failure {
            Failure::Open(error) => (error.to_string(), true),
            Failure::Board(error) => {
                let broken = matches!(error, board::Error::Line(_));
                (format!("{}: {error}", self.pack.address), gone || broken)
            }
            Failure::Incomplete => {
                (format!("{}: the board refuses a part of its values", self.pack.address), gone)
            }
        };
        if worth_a_line && complaint != self.complaint {
            warn!(pack = self.pack.name.id, "{complaint}; trying again until it works");
            self.complaint = complaint;
        } else {
            debug!(pack = self.pack.name.id, "{complaint}");
        }
    }

    /// Changes this pack's state, and wakes the publisher only if `change` says that it is another then.
    fn change(&self, change: impl FnOnce(&mut PackState) -> bool) {
        self.desk.states.send_if_modified(|states| change(&mut states[self.desk.place]));
    }
}

/// Puts the value in its place. Is it another one?
fn set<T: PartialEq>(place: &mut T, value: T) -> bool {
    let changed = *place != value;
    if changed {
        *place = value;
    }
    changed
}
