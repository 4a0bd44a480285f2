//! Is the bridge at work? A function of what the hub holds, for `bms2mqtt health` and for systemd's watchdog.
//!
//! Two questions, two measures. *Healthy*, for people: every pack was read and the broker reached
//! lately. *Alive*, for whoever would start it again: its tasks make progress, so that a new start
//! would better nothing. A pack that sleeps and a broker that is away are no reason for one.

use std::fmt::Write as _;
use std::time::Duration;

use crate::hub::BrokerState;
use crate::pack::state::PackState;

/// What one turn of a poller may take besides its interval: opening a link, and every request in all its tries.
const LONGEST_TURN: Duration = Duration::from_secs(45);
/// A session with the broker that broke this recently is being made again.
const BROKER_GRACE: Duration = Duration::from_secs(30);

/// What is expected of a pack.
#[derive(Clone, Debug)]
pub struct Expected {
    pub id: String,
    pub interval: Duration,
    /// So many polls may fail before it counts as gone.
    pub offline_after: u32,
}

impl Expected {
    /// For so long a pack may not have been read and still count as read lately.
    fn lately(&self) -> Duration {
        self.interval * self.offline_after + LONGEST_TURN
    }
}

/// Was every pack read lately, and the broker reached? And a line for each.
pub fn report(
    packs: &[Expected],
    states: &[PackState],
    broker: BrokerState,
    uptime: Duration,
) -> (bool, String) {
    let mut well = true;
    let mut lines = String::new();
    // Writing to a String cannot fail.
    for (pack, state) in packs.iter().zip(states) {
        let ago = state.last_poll.read.map(|read| uptime.saturating_sub(read));
        well &= ago.is_some_and(|ago| ago <= pack.lately());
        let _ = match ago {
            Some(ago) => writeln!(lines, "pack {}: read {} s ago", pack.id, ago.as_secs()),
            None => writeln!(lines, "pack {}: never read", pack.id),
        };
    }
    match broker {
        BrokerState::Connected => lines.push_str("broker: connected\n"),
        BrokerState::Away(since) => {
            let away = uptime.saturating_sub(since);
            well &= away <= BROKER_GRACE;
            let _ = writeln!(lines, "broker: not connected for {} s", away.as_secs());
        }
        BrokerState::Abandoned => {
            well = false;
            lines.push_str("broker: nobody publishes any more\n");
        }
    }
    (well, lines)
}

/// What makes no progress, if anything does not.
pub fn stuck(
    packs: &[Expected],
    states: &[PackState],
    broker: BrokerState,
    uptime: Duration,
) -> Option<String> {
    let hangs = |(pack, state): &(&Expected, &PackState)| {
        uptime.saturating_sub(state.last_poll.ended) > pack.interval * 2 + LONGEST_TURN
    };
    let poller =
        packs.iter().zip(states).find(hangs).map(|(pack, _)| format!("the poller of pack {}", pack.id));
    poller.or_else(|| (broker == BrokerState::Abandoned).then(|| "the publisher".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::state::LastPoll;

    const SECOND: Duration = Duration::from_secs(1);

    fn house() -> [Expected; 1] {
        [Expected { id: "house".to_owned(), interval: 5 * SECOND, offline_after: 3 }]
    }

    fn polled(ended: Duration, read: Option<Duration>) -> [PackState; 1] {
        [PackState { last_poll: LastPoll { ended, read, ..LastPoll::default() }, ..PackState::default() }]
    }

    #[test]
    fn well_is_who_was_read_lately_and_has_a_broker() {
        let (start, later) = (SECOND, 62 * SECOND);
        for (read, broker, uptime, well, says) in [
            (Some(start), BrokerState::Connected, start, true, "read 0 s ago"),
            (None, BrokerState::Connected, start, false, "never read"),
            (Some(start), BrokerState::Connected, later, false, "read 61 s ago"),
            (Some(later), BrokerState::Away(later), later, true, "not connected for 0 s"),
            (Some(later), BrokerState::Away(start), later, false, "not connected for 61 s"),
            (Some(later), BrokerState::Abandoned, later, false, "nobody publishes"),
        ] {
            let (found, lines) = report(&house(), &polled(start, read), broker, uptime);
            assert!(found == well && lines.contains(says), "{found}: {lines}");
        }
    }

    #[test]
    fn who_ends_no_poll_is_stuck_and_who_sleeps_is_not() {
        let asleep = polled(SECOND, None);
        assert_eq!(stuck(&house(), &asleep, BrokerState::Away(SECOND), 50 * SECOND), None);
        let poller = stuck(&house(), &asleep, BrokerState::Connected, 60 * SECOND);
        assert_eq!(poller.as_deref(), Some("the poller of pack house"));
        let publisher = stuck(&house(), &asleep, BrokerState::Abandoned, SECOND);
        assert_eq!(publisher.as_deref(), Some("the publisher"));
    }
}
