//! Is the bridge at work? Pollers and publisher leave marks here; systemd's watchdog is fed by them, and
//! `bms2mqtt health` asks for them.
//!
//! Two questions, two measures. *Healthy*, for people: every pack was read and the broker reached
//! lately. *Alive*, for whoever would start it again: its tasks make progress, so that a new start
//! would better nothing. A pack that sleeps and a broker that is away are no reason for one.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval};
use tracing::{debug, info, warn};

/// What one turn of a poller may take besides its interval: opening a link, and every question in all its tries.
const LONGEST_TURN: Duration = Duration::from_secs(45);
/// A session with the broker that broke this recently is being made again.
const BROKER_GRACE: Duration = Duration::from_secs(30);
/// What a poll may take that succeeds in its last tries.
const LONGEST_POLL: Duration = Duration::from_secs(5);
/// The first line of the report when all is well, and the end of the first line when not.
pub const WELL: &str = "healthy";
/// The first line of what is said of being alive, likewise.
pub const ALIVE: &str = "alive";

/// The marks of one bridge, shared by its tasks.
#[derive(Clone)]
pub struct Health(Arc<Mutex<Marks>>);

struct Marks {
    packs: Vec<PackMarks>,
    broker: BrokerMark,
    /// `None` until it has started.
    publisher: Option<AbortHandle>,
}

struct PackMarks {
    id: String,
    interval: Duration,
    /// For so long a pack may not have been read and still count as read lately.
    lately: Duration,
    turn: Instant,
    reading: Option<Instant>,
}

enum BrokerMark {
    Connected,
    /// Since when, or since the start.
    Away(Instant),
}

impl Health {
    /// Of these packs, in this order: id, interval, and how many polls may fail before a pack counts as gone.
    pub fn new(packs: impl Iterator<Item = (String, Duration, u32)>) -> Health {
        let now = Instant::now();
        let packs = packs.map(|(id, interval, offline_after)| PackMarks {
            id,
            interval,
            lately: interval * offline_after + LONGEST_TURN,
            turn: now,
            reading: None,
        });
        let broker = BrokerMark::Away(now);
        Health(Arc::new(Mutex::new(Marks { packs: packs.collect(), broker, publisher: None })))
    }

    /// A poller has come to the end of a turn.
    pub fn turned(&self, place: usize) {
        self.with(|marks| {
            if let Some(pack) = marks.packs.get_mut(place) {
                pack.turn = Instant::now();
            }
        });
    }

    /// A pack has been read.
    pub fn read(&self, place: usize) {
        self.with(|marks| {
            if let Some(pack) = marks.packs.get_mut(place) {
                pack.reading = Some(Instant::now());
            }
        });
    }

    /// So lately that its values are those of now, as far as its interval goes.
    pub fn was_read_just_now(&self, place: usize) -> bool {
        let now = Instant::now();
        self.with(|marks| {
            let pack = marks.packs.get(place);
            let just_now = |pack: &PackMarks| {
                pack.reading.is_some_and(|reading| now - reading <= pack.interval * 2 + LONGEST_POLL)
            };
            pack.is_some_and(just_now)
        })
    }

    /// This is the publisher's task, which should not end before the bridge does.
    pub fn publishes(&self, publisher: AbortHandle) {
        self.with(|marks| marks.publisher = Some(publisher));
    }

    pub fn broker_connected(&self) {
        self.with(|marks| marks.broker = BrokerMark::Connected);
    }

    pub fn broker_lost(&self) {
        self.with(|marks| {
            if matches!(marks.broker, BrokerMark::Connected) {
                marks.broker = BrokerMark::Away(Instant::now());
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Marks) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `healthy` or not, and a line for each pack and the broker.
    pub fn report(&self) -> String {
        let now = Instant::now();
        self.with(|marks| {
            let (well, lines) = marks.report(now);
            format!("{}{WELL}\n{lines}", if well { "" } else { "not " })
        })
    }

    /// `alive` or not, and the lines of the report.
    pub fn is_alive(&self) -> String {
        let now = Instant::now();
        self.with(|marks| {
            let (_, lines) = marks.report(now);
            match marks.stuck(now) {
                None => format!("{ALIVE}\n{lines}"),
                Some(who) => format!("not {ALIVE}: {who} makes no progress\n{lines}"),
            }
        })
    }

    /// Tells systemd that the bridge has started, and feeds its watchdog as long as it is alive.
    /// Ends at once where there is no systemd.
    pub async fn tell_systemd(self) {
        if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
            debug!("systemd is not told: {error}");
        }
        let Some(timeout) = sd_notify::watchdog_enabled() else {
            return;
        };
        info!("feeding systemd's watchdog, which bites after {} s", timeout.as_secs());
        let mut ticks = interval(timeout / 3);
        loop {
            ticks.tick().await;
            match self.with(|marks| marks.stuck(Instant::now())) {
                Some(who) => warn!("{who} makes no progress: the watchdog is not fed"),
                None => {
                    if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                        warn!("systemd's watchdog cannot be fed: {error}");
                    }
                }
            }
        }
    }
}

impl Marks {
    /// A task that hangs or has ended.
    fn stuck(&self, now: Instant) -> Option<String> {
        let hangs = |pack: &&PackMarks| now - pack.turn > pack.interval * 2 + LONGEST_TURN;
        let poller = self.packs.iter().find(hangs).map(|pack| format!("the poller of pack {}", pack.id));
        let ended = self.publisher.as_ref().is_some_and(AbortHandle::is_finished);
        poller.or_else(|| ended.then(|| "the publisher".to_owned()))
    }

    /// Is all well? And a line for each pack and the broker.
    fn report(&self, now: Instant) -> (bool, String) {
        let mut well = true;
        let mut lines = String::new();
        // Writing to a String cannot fail.
        for PackMarks { id, lately, reading, .. } in &self.packs {
            let ago = reading.map(|reading| now - reading);
            well &= ago.is_some_and(|ago| ago <= *lately);
            let _ = match ago {
                Some(ago) => writeln!(lines, "pack {id}: read {} s ago", ago.as_secs()),
                None => writeln!(lines, "pack {id}: never read"),
            };
        }
        match self.broker {
            BrokerMark::Connected => lines.push_str("broker: connected\n"),
            BrokerMark::Away(since) => {
                well &= now - since <= BROKER_GRACE;
                let _ = writeln!(lines, "broker: not connected for {} s", (now - since).as_secs());
            }
        }
        (well, lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(reading: Option<Instant>, broker: BrokerMark, turn: Instant) -> Marks {
        let pack = PackMarks {
            id: "house".to_owned(),
            interval: Duration::from_secs(5),
            lately: Duration::from_secs(60),
            turn,
            reading,
        };
        Marks { packs: vec![pack], broker, publisher: None }
    }

    #[test]
    fn well_is_who_was_read_lately_and_has_a_broker() {
        let start = Instant::now();
        let later = start + Duration::from_secs(61);
        for (reading, broker, now, well) in [
            (Some(start), BrokerMark::Connected, start, true),
            (None, BrokerMark::Connected, start, false),
            (Some(start), BrokerMark::Connected, later, false),
            (Some(later), BrokerMark::Away(later), later, true),
            (Some(later), BrokerMark::Away(start), later, false),
        ] {
            let (is_well, lines) = marks(reading, broker, start).report(now);
            assert_eq!(is_well, well, "{lines}");
        }
    }

    #[test]
    fn a_poller_that_ends_no_turn_is_stuck() {
        let start = Instant::now();
        let marks = marks(None, BrokerMark::Connected, start);
        assert_eq!(marks.stuck(start + Duration::from_secs(50)), None);
        let stuck = marks.stuck(start + Duration::from_secs(60));
        assert_eq!(stuck.as_deref(), Some("the poller of pack house"));
    }

    /// As long as its tasks go on: a start anew would wake no pack and bring no broker back.
    #[tokio::test]
    async fn a_pack_that_sleeps_and_a_broker_that_is_away_do_not_end_a_life() {
        let packs = [("house".to_owned(), Duration::from_secs(5), 3)];
        let health = Health::new(packs.into_iter());
        assert!(health.report().starts_with("not healthy\npack house: never read\n"));
        assert!(health.is_alive().starts_with("alive\npack house: never read\n"));
        let publisher = tokio::spawn(std::future::pending::<()>());
        health.publishes(publisher.abort_handle());
        assert!(health.is_alive().starts_with("alive\n"));
        publisher.abort();
        let _ = publisher.await;
        assert!(health.is_alive().starts_with("not alive: the publisher makes no progress\npack house"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_is_of_now_for_two_intervals_and_a_slow_poll() {
        let packs = [("house".to_owned(), Duration::from_secs(60), 3)];
        let health = Health::new(packs.into_iter());
        assert!(!health.was_read_just_now(0));
        health.read(0);
        tokio::time::advance(Duration::from_secs(125)).await;
        assert!(health.was_read_just_now(0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!health.was_read_just_now(0));
    }
}
