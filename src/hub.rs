//! All that tasks share: states of packs go out, commands to boards come in. Buses and faces know the hub, and not each
//! other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::pack::state::PackState;

/// Commands that may wait for a bus. Nobody has more to say to a battery at once.
const WAITING: usize = 8;

/// Where a pack stands in the configuration, from 0.
pub type PackIndex = usize;

/// The states of all packs, in the order of the configuration.
pub type States = watch::Receiver<Vec<PackState>>;

/// What a board is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Poll now, not only when it is time.
    Poll,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    Done,
}

/// Why nothing came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The board does not answer.
    Offline,
    /// Others wait already.
    Busy,
    /// The bridge is ending, or has no such pack.
    Gone,
}

/// A command on its way to a bus.
pub struct Command {
    pub pack: PackIndex,
    pub action: Action,
    /// Whoever gave it may have gone.
    pub done: oneshot::Sender<Result<Receipt, Refusal>>,
}

/// Is there a session with the broker?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerState {
    Connected,
    /// Since then, after the start.
    Away(Duration),
    /// Nobody tries any more.
    Abandoned,
}

pub struct Hub {
    started: Instant,
    states: watch::Sender<Vec<PackState>>,
    broker: Mutex<BrokerState>,
    /// Of the bus of each pack.
    buses: Vec<mpsc::Sender<Command>>,
}

impl Hub {
    /// For packs of which each has its bus at this index; and where the commands to each bus arrive.
    pub fn new(bus_of_pack: &[usize]) -> (Arc<Hub>, Vec<mpsc::Receiver<Command>>) {
        let bus_count = bus_of_pack.iter().max().map_or(0, |last| last + 1);
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..bus_count).map(|_| mpsc::channel(WAITING)).unzip();
        let hub = Hub {
            started: Instant::now(),
            states: watch::Sender::new(vec![PackState::default(); bus_of_pack.len()]),
            broker: Mutex::new(BrokerState::Away(Duration::ZERO)),
            buses: bus_of_pack.iter().map(|&bus| senders[bus].clone()).collect(),
        };
        (Arc::new(hub), receivers)
    }

    /// How long the bridge has been there.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn states(&self) -> States {
        self.states.subscribe()
    }

    /// Looks at the states without waiting for a change.
    pub fn look<T>(&self, at: impl FnOnce(&[PackState]) -> T) -> T {
        at(&self.states.borrow())
    }

    /// Changes a pack's state, and wakes the faces only if `change` says that it is another one then.
    pub fn update<T: Default>(&self, pack: PackIndex, change: impl FnOnce(&mut PackState) -> (bool, T)) -> T {
        let mut outcome = T::default();
        self.states.send_if_modified(|states| {
            let changed;
            (changed, outcome) = change(&mut states[pack]);
            changed
        });
        outcome
    }

    /// Gives a board something to do, and waits until it has been done or refused.
    ///
    /// # Errors
    /// Every [`Refusal`].
    pub async fn command(&self, pack: PackIndex, action: Action) -> Result<Receipt, Refusal> {
        let bus = self.buses.get(pack).ok_or(Refusal::Gone)?;
        let (done, outcome) = oneshot::channel();
        bus.try_send(Command { pack, action, done }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::Busy,
            mpsc::error::TrySendError::Closed(_) => Refusal::Gone,
        })?;
        outcome.await.unwrap_or(Err(Refusal::Gone))
    }

    pub fn broker(&self) -> BrokerState {
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn broker_connected(&self) {
        self.set_broker(|_, _| BrokerState::Connected);
    }

    pub fn broker_lost(&self) {
        self.set_broker(|before, now| match before {
            BrokerState::Connected => BrokerState::Away(now),
            other => other,
        });
    }

    pub fn broker_abandoned(&self) {
        self.set_broker(|_, _| BrokerState::Abandoned);
    }

    fn set_broker(&self, to: impl FnOnce(BrokerState, Duration) -> BrokerState) {
        let mut broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        *broker = to(*broker, self.uptime());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_changed_wakes() {
        let (hub, _buses) = Hub::new(&[0]);
        let mut states = hub.states();
        hub.update(0, |state| {
            state.last_poll.number += 1;
            (false, ())
        });
        assert!(!states.has_changed().unwrap());
        assert_eq!(hub.look(|states| states[0].last_poll.number), 1);
        assert_eq!(hub.update(0, |state| (state.answering.replace(true).is_none(), "told")), "told");
        assert!(states.has_changed().unwrap());
        assert_eq!(states.borrow_and_update()[0].answering, Some(true));
    }

    #[tokio::test]
    async fn a_command_comes_to_its_bus_and_its_outcome_back() {
        let (hub, mut buses) = Hub::new(&[0, 1, 1]);
        assert_eq!(buses.len(), 2);
        let asked = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.command(2, Action::Poll).await }
        });
        let Command { pack, action, done } = buses[1].recv().await.unwrap();
        assert_eq!((pack, action), (2, Action::Poll));
        done.send(Err(Refusal::Offline)).unwrap();
        assert_eq!(asked.await.unwrap(), Err(Refusal::Offline));
    }

    #[tokio::test]
    async fn commands_that_nobody_takes_are_refused() {
        let (hub, mut buses) = Hub::new(&[0]);
        assert_eq!(hub.command(1, Action::Poll).await, Err(Refusal::Gone));
        // A bus that is busy for long.
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| {
                let hub = Arc::clone(&hub);
                tokio::spawn(async move { hub.command(0, Action::Poll).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(hub.command(0, Action::Poll).await, Err(Refusal::Busy));
        // And ends.
        buses.clear();
        for command in waiting {
            assert_eq!(command.await.unwrap(), Err(Refusal::Gone));
        }
        assert_eq!(hub.command(0, Action::Poll).await, Err(Refusal::Gone));
    }
}
