//! What the outcome of a poll means for a pack: when it is offline, when its link is to be opened again, what is asked
//! next, and what a person is told. Pure: it is given the time.

use std::time::{Duration, SystemTime};

use super::forecast::Forecaster;
use super::reading::{Counters, Reading};
use super::state::{Identity, LastPoll, LineStatistics, PackState, Remembered};

/// So often in a row a board must keep back a part of a reading before it counts as one that does not have it. What it
/// has once told it has: then a poll without it is a bad one.
const INCOMPLETE_POLLS: u32 = 2;
/// How often the board's counters are asked for.
const COUNTERS: Duration = Duration::from_secs(300);
/// How often the line's statistics are renewed while nothing goes wrong.
const STATISTICS: Duration = Duration::from_secs(300);
/// How often they are told in the log.
const REPORT: Duration = Duration::from_secs(3600);

/// The policy of one pack, and what it goes by besides the pack's state.
pub struct Tracker {
    policy: Policy,
    forecaster: Forecaster,
    /// Has there been a link?
    opened: bool,
    /// `None` until the board has been asked for its name and counters on this link; then when the counters are due
    /// again.
    counters_due: Option<Duration>,
    /// Polls in a row without a reading.
    silent: u32,
    /// Polls of a board that tells the pack's totals and has never told a cell.
    silent_about_cells: u32,
    /// Readings in a row that lack a part.
    incomplete: u32,
    line: LineStatistics,
    /// As it was before this poll.
    line_before: LineStatistics,
    /// `None` until they have been shown.
    statistics_due: Option<Duration>,
    report_due: Duration,
    /// As they were told in the log last.
    reported: LineStatistics,
    /// What was last said of this pack in the log; empty when all is well.
    complaint: String,
}

#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// So many polls in a row without a reading make the pack offline.
    pub offline_after: u32,
    /// Does somebody wait for every poll, be it like the one before?
    pub tell_every_poll: bool,
    /// Who makes such boards.
    pub maker: &'static str,
}

/// When a poll ended: since the start of the bridge, and by the clock on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub uptime: Duration,
    pub clock: SystemTime,
}

/// What to ask in a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    All,
    /// The board keeps silent about its cells.
    Totals,
}

/// What to ask behind a poll, of what seldom changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seldom {
    Nothing,
    Counters,
    IdentityAndCounters,
}

/// Why a poll brought no reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// For people: where, what, and what to do.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// There is no link.
    NotOpened,
    /// The link has ended.
    Broken,
    /// The board did not answer.
    Silent,
    /// The board has told the totals and did not answer when it was asked for its cells.
    SilentAboutCells,
    /// The board does not tell a part of what it has told before, or for the first time.
    Incomplete,
}

/// What came with a reading.
#[derive(Clone, Copy, Debug)]
pub struct Polled {
    /// From the first request to the last response.
    pub took: Duration,
    /// Since the reading before; `None` is a gap of which nothing is known.
    pub since_last: Option<Duration>,
    pub remembered: Option<Remembered>,
}

/// What to do after a poll.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Is the state another one, or is it wanted anyway?
    pub changed: bool,
    /// Close the link: it is broken, or a board that stays silent may do better through a new one.
    pub reopen: bool,
    /// What a person is told.
    pub say: Option<Say>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Say {
    /// All is well, for the first time or again.
    Well(String),
    Trouble(String),
    /// One bad poll is in the hourly count; the same trouble again every few seconds would bury everything else.
    InPassing(String),
}

impl Tracker {
    pub fn new(policy: Policy) -> Tracker {
        Tracker {
            policy,
            forecaster: Forecaster::default(),
            opened: false,
            counters_due: None,
            silent: 0,
            silent_about_cells: 0,
            incomplete: 0,
            line: LineStatistics::default(),
            line_before: LineStatistics::default(),
            statistics_due: None,
            report_due: REPORT,
            reported: LineStatistics::default(),
            complaint: String::new(),
        }
    }

    pub fn poll_begins(&mut self) -> Parts {
        self.line_before = self.line;
        self.line.polls += 1;
        if self.silent_about_cells >= INCOMPLETE_POLLS { Parts::Totals } else { Parts::All }
    }

    pub fn link_opened(&mut self) {
        self.counters_due = None;
        self.line.reopened_links += u64::from(self.opened);
        self.opened = true;
    }

    /// Takes over what was counted on the line.
    pub fn count(&mut self, retries: u64, timeouts: u64, checksum_errors: u64) {
        self.line.retries += retries;
        self.line.timeouts += timeouts;
        self.line.checksum_errors += checksum_errors;
    }

    /// Is a reading to be taken, though it may lack a part?
    ///
    /// # Errors
    /// When it lacks what the pack has, or for the first time: that may be noise.
    pub fn accept(&mut self, state: &PackState, reading: Reading) -> Result<Reading, Failure> {
        let had = |part: fn(&Reading) -> bool| state.reading.as_ref().is_some_and(part);
        let (no_totals, no_cells) = (reading.totals.is_none(), reading.cells.is_empty());
        self.incomplete = if no_totals || no_cells { self.incomplete + 1 } else { 0 };
        let new_to_it = self.incomplete == 1 && self.silent_about_cells < INCOMPLETE_POLLS;
        let lost = (no_totals && had(|reading| reading.totals.is_some()))
            || (no_cells && had(|reading| !reading.cells.is_empty()));
        if new_to_it || lost {
            let text = "the board refuses a part of its values".to_owned();
            return Err(Failure { kind: FailureKind::Incomplete, text });
        }
        Ok(reading)
    }

    /// A poll brought a reading.
    pub fn read(&mut self, state: &mut PackState, reading: Reading, polled: Polled, now: Now) -> Next {
        self.silent = 0;
        self.line.response_time = Some(polled.took);
        self.line.last_success = Some(now.clock);
        let forecast = reading.totals.as_ref().map(|totals| self.forecaster.add(totals, polled.since_last));
        let is_first = state.reading.is_none();
        let was_well = std::mem::take(&mut self.complaint).is_empty();
        let say = (is_first || !was_well).then(|| Say::Well(answers(&reading)));
        let changed = set(&mut state.answering, Some(true))
            | set(&mut state.reading, Some(reading))
            | set(&mut state.forecast, forecast)
            | set(&mut state.remembered, polled.remembered)
            | self.poll_ends(state, now, true);
        Next { changed, reopen: false, say }
    }

    /// A poll brought none.
    pub fn failed(&mut self, state: &mut PackState, failure: Failure, now: Now) -> Next {
        self.silent += 1;
        let has_cells = state.reading.as_ref().is_some_and(|reading| !reading.cells.is_empty());
        self.silent_about_cells += u32::from(failure.kind == FailureKind::SilentAboutCells && !has_cells);
        let gone = self.silent >= self.policy.offline_after || state.reading.is_none();
        let went = gone && {
            // A pack that is not there has at least its connection to show.
            let identity = state.identity.clone().unwrap_or(self.unknown_board());
            set(&mut state.answering, Some(false)) | set(&mut state.identity, Some(identity))
        };
        let Failure { kind, text } = failure;
        let matters = gone || matches!(kind, FailureKind::NotOpened | FailureKind::Broken);
        let say = if matters && text != self.complaint {
            self.complaint.clone_from(&text);
            Say::Trouble(text)
        } else {
            Say::InPassing(text)
        };
        let reopen = gone || kind == FailureKind::Broken;
        Next { changed: self.poll_ends(state, now, false) | went, reopen, say: Some(say) }
    }

    fn poll_ends(&mut self, state: &mut PackState, now: Now, good: bool) -> bool {
        let read = if good { Some(now.uptime) } else { state.last_poll.read };
        state.last_poll = LastPoll { number: self.line.polls, ended: now.uptime, good, read };
        let trouble =
            |line: &LineStatistics| (line.retries, line.timeouts, line.checksum_errors, line.reopened_links);
        let due = self.statistics_due.is_none_or(|due| now.uptime >= due);
        let renewed = (due || trouble(&self.line) != trouble(&self.line_before)) && {
            self.statistics_due = Some(now.uptime + STATISTICS);
            set(&mut state.line, Some(self.line))
        };
        renewed || self.policy.tell_every_poll
    }

    /// Name and counters once per link, after the first reading; then the counters now and then.
    pub fn seldom(&self, now: Now) -> Seldom {
        match self.counters_due {
            None => Seldom::IdentityAndCounters,
            Some(due) if now.uptime >= due => Seldom::Counters,
            Some(_) => Seldom::Nothing,
        }
    }

    /// What was told stays, should the line have swallowed it this time. Is the state another one?
    pub fn told(
        &mut self,
        state: &mut PackState,
        identity: Option<Identity>,
        counters: Option<Counters>,
        now: Now,
    ) -> bool {
        self.counters_due = Some(now.uptime + COUNTERS);
        let mut known = state.identity.clone().unwrap_or(self.unknown_board());
        if let Some(Identity { model: Some(model), .. }) = identity {
            known.model = Some(model);
        }
        set(&mut state.identity, Some(known)) | (counters.is_some() && set(&mut state.counters, counters))
    }

    fn unknown_board(&self) -> Identity {
        Identity { maker: self.policy.maker, model: None }
    }

    /// What happened on the line in the last hour, once an hour.
    pub fn report(&mut self, now: Now) -> Option<String> {
        if now.uptime < self.report_due {
            return None;
        }
        self.report_due = now.uptime + REPORT;
        let (line, before) = (self.line, std::mem::replace(&mut self.reported, self.line));
        Some(format!(
            "in the last hour {} polls, {} retries, {} timeouts, {} checksum errors, {} links opened again",
            line.polls - before.polls,
            line.retries - before.retries,
            line.timeouts - before.timeouts,
            line.checksum_errors - before.checksum_errors,
            line.reopened_links - before.reopened_links,
        ))
    }
}

/// The pack as it is when the board answers for the first time, or again.
fn answers(reading: &Reading) -> String {
    let cells = reading.cell_count();
    match &reading.totals {
        Some(totals) => format!("the board answers: {cells} cells, {} V", totals.voltage),
        None => format!("the board answers: {cells} cells"),
    }
}

/// Sets a value. Is it another one?
fn set<T: PartialEq>(held: &mut T, value: T) -> bool {
    let changed = *held != value;
    if changed {
        *held = value;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::decimal::Decimal;
    use crate::pack::reading::Totals;

    const SECOND: Duration = Duration::from_secs(1);

    /// A pack whose polls end a second after one another.
    struct Pack {
        tracker: Tracker,
        state: PackState,
        now: Now,
        parts: Vec<Parts>,
    }

    fn pack(offline_after: u32) -> Pack {
        Pack {
            tracker: Tracker::new(Policy { offline_after, tell_every_poll: false, maker: "JBD" }),
            state: PackState::default(),
            now: Now { uptime: Duration::ZERO, clock: SystemTime::UNIX_EPOCH },
            parts: Vec::new(),
        }
    }

    impl Pack {
        fn poll(&mut self, outcome: Result<Reading, FailureKind>) -> Next {
            self.now.uptime += SECOND;
            self.parts.push(self.tracker.poll_begins());
            let outcome = outcome.map_err(|kind| Failure { kind, text: format!("{kind:?}") });
            match outcome.and_then(|reading| self.tracker.accept(&self.state, reading)) {
                Ok(reading) => {
                    let polled = Polled { took: SECOND / 10, since_last: Some(SECOND), remembered: None };
                    self.tracker.read(&mut self.state, reading, polled, self.now)
                }
                Err(failure) => self.tracker.failed(&mut self.state, failure, self.now),
            }
        }

        fn told(&mut self, model: Option<&str>) -> bool {
            let model = model.map(str::to_owned);
            self.tracker.told(&mut self.state, Some(Identity { maker: "JBD", model }), None, self.now)
        }
    }

    fn whole(millivolts: i64) -> Reading {
        let voltage = Decimal::new(2 * millivolts / 10, 2);
        let totals = Totals { voltage, cell_count: 2, ..Totals::default() };
        Reading { totals: Some(totals), ..only_cells(millivolts) }
    }

    fn only_cells(millivolts: i64) -> Reading {
        Reading { totals: None, cells: [Decimal::new(millivolts, 3); 2].into_iter().collect() }
    }

    fn only_totals() -> Reading {
        Reading { cells: Default::default(), ..whole(3300) }
    }

    fn trouble(text: &str) -> Option<Say> {
        Some(Say::Trouble(text.to_owned()))
    }

    fn in_passing(text: &str) -> Option<Say> {
        Some(Say::InPassing(text.to_owned()))
    }

    #[test]
    fn a_pack_goes_offline_after_so_many_polls_and_comes_back_with_the_first() {
        let mut pack = pack(3);
        let first = pack.poll(Ok(whole(3300)));
        assert_eq!(first.say, Some(Say::Well("the board answers: 2 cells, 6.60 V".to_owned())));
        for (outcome, answering, reopen, say) in [
            (Err(FailureKind::Silent), true, false, in_passing("Silent")),
            (Err(FailureKind::Silent), true, false, in_passing("Silent")),
            (Ok(whole(3300)), true, false, None),
            (Err(FailureKind::Silent), true, false, in_passing("Silent")),
            (Err(FailureKind::Silent), true, false, in_passing("Silent")),
            (Err(FailureKind::Silent), false, true, trouble("Silent")),
            (Err(FailureKind::Silent), false, true, in_passing("Silent")),
            (Err(FailureKind::NotOpened), false, true, trouble("NotOpened")),
            (Ok(whole(3200)), true, false, Some(Say::Well("the board answers: 2 cells, 6.40 V".to_owned()))),
        ] {
            let what = format!("{outcome:?}");
            let next = pack.poll(outcome);
            assert_eq!((pack.state.answering, next.reopen), (Some(answering), reopen), "{what}");
            assert_eq!(next.say, say, "{what}");
        }
    }

    #[test]
    fn a_pack_that_has_never_answered_is_offline_at_once_and_has_a_maker_to_show() {
        let mut pack = pack(3);
        let next = pack.poll(Err(FailureKind::NotOpened));
        assert!(next.changed && next.reopen);
        assert_eq!((pack.state.answering, next.say), (Some(false), trouble("NotOpened")));
        assert_eq!(pack.state.identity, Some(Identity { maker: "JBD", model: None }));
        assert!(!pack.poll(Err(FailureKind::NotOpened)).changed, "nothing new");
    }

    #[test]
    fn a_broken_link_is_opened_again_and_told_at_once_and_costs_no_availability() {
        let mut pack = pack(3);
        pack.poll(Ok(whole(3300)));
        let next = pack.poll(Err(FailureKind::Broken));
        assert!(next.reopen);
        assert_eq!((pack.state.answering, next.say), (Some(true), trouble("Broken")));
    }

    #[test]
    fn what_the_pack_has_told_must_come_and_what_it_never_told_may_lack_from_the_second_poll_on() {
        for (had, lacking) in [(whole as fn(i64) -> Reading, only_totals()), (whole, only_cells(3300))] {
            let mut pack = pack(3);
            pack.poll(Ok(had(3300)));
            for _ in 0..2 {
                assert!(!pack.poll(Ok(lacking.clone())).reopen);
                assert_eq!(pack.state.reading, Some(whole(3300)), "the last whole reading stays");
            }
            assert!(pack.poll(Ok(lacking)).reopen);
            assert_eq!(pack.state.answering, Some(false));
        }
        for lacking in [only_totals(), only_cells(3300)] {
            let mut pack = pack(3);
            assert!(pack.poll(Ok(lacking.clone())).reopen, "it may be noise");
            assert_eq!(pack.state.reading, None);
            pack.poll(Ok(lacking.clone()));
            assert_eq!(pack.state.reading, Some(lacking));
        }
    }

    #[test]
    fn a_board_that_keeps_silent_about_its_cells_is_asked_for_its_totals() {
        let mut pack = pack(3);
        for outcome in [
            Err(FailureKind::SilentAboutCells),
            Err(FailureKind::Silent),
            Err(FailureKind::SilentAboutCells),
            Ok(only_totals()),
        ] {
            pack.poll(outcome);
        }
        assert_eq!(pack.parts, [Parts::All, Parts::All, Parts::All, Parts::Totals]);
        assert_eq!(pack.state.reading, Some(only_totals()));

        // One that has told them once is asked again.
        let mut pack = self::pack(3);
        pack.poll(Ok(whole(3300)));
        for _ in 0..5 {
            pack.poll(Err(FailureKind::SilentAboutCells));
        }
        assert!(pack.parts.iter().all(|parts| *parts == Parts::All));
    }

    #[test]
    fn the_same_reading_again_is_no_news_unless_somebody_waits_for_every_poll() {
        let mut pack = pack(3);
        assert!(pack.poll(Ok(whole(3300))).changed);
        assert!(!pack.poll(Ok(whole(3300))).changed);
        assert_eq!(pack.state.last_poll.number, 2);
        assert!(pack.poll(Ok(whole(3301))).changed);
        pack.tracker.policy.tell_every_poll = true;
        assert!(pack.poll(Ok(whole(3301))).changed);
        assert!(pack.poll(Err(FailureKind::Silent)).changed);
        let LastPoll { number, ended, good, read } = pack.state.last_poll;
        assert_eq!((number, ended, good, read), (5, 5 * SECOND, false, Some(4 * SECOND)));
    }

    #[test]
    fn what_seldom_changes_is_asked_once_a_link_and_counters_now_and_then() {
        let mut pack = pack(3);
        pack.tracker.link_opened();
        pack.poll(Ok(whole(3300)));
        assert_eq!(pack.tracker.seldom(pack.now), Seldom::IdentityAndCounters);
        assert!(pack.told(Some("JBD-SP10S009")));
        assert!(!pack.told(None), "what was told stays");
        assert_eq!(pack.state.identity.as_ref().unwrap().model.as_deref(), Some("JBD-SP10S009"));
        assert_eq!(pack.tracker.seldom(pack.now), Seldom::Nothing);
        pack.now.uptime += COUNTERS;
        assert_eq!(pack.tracker.seldom(pack.now), Seldom::Counters);
        pack.tracker.link_opened();
        assert_eq!(pack.tracker.seldom(pack.now), Seldom::IdentityAndCounters);
        assert_eq!(pack.tracker.line.reopened_links, 1, "the first link was not opened again");
    }

    #[test]
    fn statistics_are_shown_at_first_when_something_went_wrong_and_now_and_then() {
        let mut pack = pack(3);
        pack.poll(Ok(whole(3300)));
        let polls = |pack: &Pack| pack.state.line.unwrap().polls;
        assert_eq!(polls(&pack), 1);
        pack.poll(Ok(whole(3300)));
        assert_eq!(polls(&pack), 1);
        pack.now.uptime += SECOND;
        pack.tracker.poll_begins();
        pack.tracker.count(1, 1, 0);
        let next = pack.tracker.failed(
            &mut pack.state,
            Failure { kind: FailureKind::Silent, text: String::new() },
            pack.now,
        );
        assert!(next.changed);
        assert_eq!((polls(&pack), pack.state.line.unwrap().retries), (3, 1));
        pack.poll(Ok(whole(3300)));
        assert_eq!(polls(&pack), 3);
        pack.now.uptime += STATISTICS;
        assert!(pack.poll(Ok(whole(3300))).changed);
        assert_eq!(polls(&pack), 5);
    }

    #[test]
    fn once_an_hour_the_line_is_told() {
        let mut pack = pack(3);
        pack.poll(Ok(whole(3300)));
        assert_eq!(pack.tracker.report(pack.now), None);
        pack.now.uptime = REPORT;
        pack.tracker.count(2, 1, 1);
        assert_eq!(
            pack.tracker.report(pack.now).as_deref(),
            Some("in the last hour 1 polls, 2 retries, 1 timeouts, 1 checksum errors, 0 links opened again")
        );
        assert_eq!(pack.tracker.report(pack.now), None);
        pack.now.uptime += REPORT;
        pack.poll(Ok(whole(3300)));
        assert!(pack.tracker.report(pack.now).unwrap().starts_with("in the last hour 1 polls, 0 retries"));
    }
}
