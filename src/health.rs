//! Is the bridge at work? Pollers and publisher leave marks here; systemd's watchdog is fed by them, and
//! `bms2mqtt health` asks for them.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::time::{Instant, interval};
use tracing::{debug, info, warn};

/// What one turn of a poller may take besides its interval: opening a link, and every question in all its tries.
const LONGEST_TURN: Duration = Duration::from_secs(45);
/// A session with the broker that broke this recently is being made again.
const BROKER_GRACE: Duration = Duration::from_secs(30);
/// The first line of the answer to `health` when all is well.
const WELL: &str = "healthy";

/// The marks of one bridge, shared by its tasks.
#[derive(Clone)]
pub struct Health(Arc<Mutex<Marks>>);

struct Marks {
    packs: Vec<PackMarks>,
    broker: BrokerMark,
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
        Health(Arc::new(Mutex::new(Marks { packs: packs.collect(), broker: BrokerMark::Away(now) })))
    }

    /// A poller has come to the end of a turn.
    pub fn turned(&self, place: usize, read: bool) {
        self.with(|marks| {
            let now = Instant::now();
            if let Some(pack) = marks.packs.get_mut(place) {
                pack.turn = now;
                pack.reading = if read { Some(now) } else { pack.reading };
            }
        });
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

    /// Answers who asks for the health of this bridge, for ever.
    pub async fn serve(self, address: SocketAddr) {
        let listener = StdUnixListener::bind_addr(&address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                warn!("`bms2mqtt health` will not reach this bridge: {error}");
                return;
            }
        };
        while let Ok((mut client, _)) = listener.accept().await {
            let report = self.with(|marks| marks.report(Instant::now()));
            // A client that is gone has no use for it.
            let _ = client.write_all(report.as_bytes()).await;
        }
    }

    /// Tells systemd that the bridge has started, and feeds its watchdog as long as every poller makes progress.
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
                Some(pack) => warn!(pack, "the poller makes no progress: the watchdog is not fed"),
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
    /// A pack whose poller hangs.
    fn stuck(&self, now: Instant) -> Option<String> {
        let hangs = |pack: &&PackMarks| now - pack.turn > pack.interval * 2 + LONGEST_TURN;
        self.packs.iter().find(hangs).map(|pack| pack.id.clone())
    }

    /// `healthy` or not, and a line for each pack and the broker.
    fn report(&self, now: Instant) -> String {
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
        format!("{}\n{lines}", if well { WELL } else { "not healthy" })
    }
}

/// Where the bridge is asked that is told from others by this: a name that needs no file, so that it works on a
/// read-only root and is gone with the bridge.
///
/// # Errors
/// When the system does not take the name.
pub fn address(identity: impl Hash) -> io::Result<SocketAddr> {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    SocketAddr::from_abstract_name(format!("bms2mqtt-{:016x}", hasher.finish()))
}

/// Asks the bridge at this address: is it well, and what it says.
///
/// # Errors
/// When there is none, or it does not answer within seconds.
pub fn ask(address: &SocketAddr) -> io::Result<(bool, String)> {
    let mut bridge = StdUnixStream::connect_addr(address)?;
    bridge.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut report = String::new();
    bridge.read_to_string(&mut report)?;
    Ok((report.lines().next() == Some(WELL), report))
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
        Marks { packs: vec![pack], broker }
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
            let report = marks(reading, broker, start).report(now);
            assert_eq!(report.lines().next() == Some(WELL), well, "{report}");
        }
    }

    #[test]
    fn a_poller_that_ends_no_turn_is_stuck() {
        let start = Instant::now();
        let marks = marks(None, BrokerMark::Connected, start);
        assert_eq!(marks.stuck(start + Duration::from_secs(50)), None);
        assert_eq!(marks.stuck(start + Duration::from_secs(60)).as_deref(), Some("house"));
    }
}
