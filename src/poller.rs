//! One bus for life: whose turn is it, a poll or a command; open the link, and open again what broke. What an outcome
//! means is `pack::tracker`'s to say.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, Span, debug, info, info_span, warn};

use crate::board::{self, Board};
use crate::bus::Bus;
use crate::config::Pack;
use crate::hub::{Action, Command, Hub, PackIndex, Receipt, Refusal};
use crate::link::{self, Address, Link, OpenError};
use crate::memory::Memory;
use crate::pack::reading::Reading;
use crate::pack::state::PackState;
use crate::pack::tracker::{Failure, FailureKind, Next, Now, Policy, Polled, Say, Seldom, Tracker};
use crate::stop::Stop;

/// Over a longer gap between two readings, so many intervals or this, nobody knows what flowed.
const LONGEST_GAP: (u32, Duration) = (3, Duration::from_secs(30));

/// Polls the packs of one bus, which have one address, and does what they are commanded, until `stop`.
pub async fn run(
    packs: Vec<(PackIndex, Pack)>,
    state_dir: &Path,
    hub: Arc<Hub>,
    mut commands: mpsc::Receiver<Command>,
    mut stop: Stop,
) {
    let Some(address) = packs.first().map(|(_, pack)| pack.address.clone()) else {
        return;
    };
    let members = packs.into_iter().map(|(index, pack)| Member::new(index, pack, state_dir)).collect();
    let mut poller =
        Poller { address, hub, stop: stop.clone(), bus: None, open_after: Instant::now(), members };
    while let Some((place, due)) = poller.next() {
        tokio::select! {
            biased;
            () = stop.wanted() => break,
            Some(command) = commands.recv() => poller.execute(command).await,
            () = sleep_until(due) => poller.poll_in_turn(place).await,
        }
    }
    // The link goes before the disk is waited for: another program may want it.
    poller.bus = None;
    for member in poller.members {
        member.memory.close().await;
    }
}

struct Poller {
    address: Address,
    hub: Arc<Hub>,
    stop: Stop,
    bus: Option<Bus<Link>>,
    open_after: Instant,
    members: Vec<Member>,
}

/// A pack on the bus.
struct Member {
    index: PackIndex,
    pack: Pack,
    span: Span,
    board: Board,
    tracker: Tracker,
    memory: Memory,
    due: Instant,
}

impl Member {
    fn new(index: PackIndex, pack: Pack, state_dir: &Path) -> Member {
        let id = &pack.name.id;
        let longest_gap = LONGEST_GAP.1.max(pack.interval * LONGEST_GAP.0);
        let board = Board::default();
        Member {
            index,
            span: info_span!("pack", id),
            tracker: Tracker::new(Policy {
                offline_after: pack.offline_after,
                tell_every_poll: pack.json_topic.is_some(),
                maker: board.maker(),
            }),
            board,
            memory: Memory::new(id, state_dir.join(format!("{id}.json")), longest_gap),
            due: Instant::now(),
            pack,
        }
    }

    /// The next time of the interval that is not over yet: what was missed is not made up for.
    fn put_off(&mut self, now: Instant) {
        let interval = self.pack.interval;
        self.due += interval;
        if let Some(late) = now.checked_duration_since(self.due) {
            let into = late.as_nanos() % interval.as_nanos().max(1);
            // A remainder of the interval is no longer than it.
            let into = Duration::from_nanos(u64::try_from(into).unwrap_or_default());
            self.due = now + (interval - into);
        }
    }
}

/// Why a poll did not end.
enum Unpolled {
    Failed(Failure),
    /// All is to end.
    Stopped,
}

impl From<OpenError> for Unpolled {
    fn from(error: OpenError) -> Unpolled {
        Unpolled::Failed(Failure { kind: FailureKind::NotOpened, text: error.to_string() })
    }
}

impl Poller {
    /// Which pack is polled next, and when.
    fn next(&self) -> Option<(usize, Instant)> {
        let dues = self.members.iter().map(|member| member.due).enumerate();
        dues.min_by_key(|(_, due)| *due)
    }

    async fn poll_in_turn(&mut self, place: usize) {
        let span = self.members[place].span.clone();
        self.poll(place).instrument(span).await;
        self.members[place].put_off(Instant::now());
    }

    async fn execute(&mut self, command: Command) {
        let Command { pack, action, done } = command;
        let Some(place) = self.members.iter().position(|member| member.index == pack) else {
            return;
        };
        let span = self.members[place].span.clone();
        let outcome = match action {
            Action::Poll => {
                self.poll(place).instrument(span).await;
                let good = self.hub.look(|states| states[pack].last_poll.good);
                if good { Ok(Receipt::Done) } else { Err(Refusal::Offline) }
            }
        };
        // Whoever asked may not wait any more.
        let _ = done.send(outcome);
    }

    async fn poll(&mut self, place: usize) {
        let outcome = self.read(place).await;
        let Poller { hub, members, bus, .. } = self;
        let Member { index, board, tracker, memory, .. } = &mut members[place];
        let tally = board.take_tally();
        tracker.count(tally.retries, tally.timeouts, tally.checksum_errors);
        let uptime = hub.uptime();
        let now = Now { uptime, clock: SystemTime::now() };
        let good = outcome.is_ok();
        let Next { reopen, say, .. } = match outcome {
            Err(Unpolled::Stopped) => return,
            Err(Unpolled::Failed(failure)) => {
                hub.update(*index, |state| changed(tracker.failed(state, failure, now)))
            }
            Ok((reading, took)) => {
                let ended = Instant::now();
                let since_last = reading.totals.as_ref().and_then(|totals| {
                    let since_last = memory.count(ended, totals.power());
                    memory.see(totals.protections);
                    since_last
                });
                let remembered = memory.keep();
                debug!("polled in {:.2} ms", took.as_secs_f64() * 1000.0);
                let polled = Polled { took, since_last, remembered };
                hub.update(*index, |state| changed(tracker.read(state, reading, polled, now)))
            }
        };
        match say {
            Some(Say::Well(text)) => info!("{text}"),
            Some(Say::Trouble(text)) => warn!("{text}; trying again until it works"),
            Some(Say::InPassing(text)) => debug!("{text}"),
            None => {}
        }
        if let Some(report) = tracker.report(now) {
            info!("{report}");
        }
        if reopen {
            *bus = None;
        } else if good {
            self.ask_what_seldom_changes(place, now).await;
        }
    }

    /// Opens the link if it is not open, and polls the board once: what it tells, and how long that took.
    async fn read(&mut self, place: usize) -> Result<(Reading, Duration), Unpolled> {
        let parts = self.members[place].tracker.poll_begins();
        let bus = match self.bus.as_mut() {
            Some(bus) => bus,
            None => {
                let timing = self.address.timing();
                let opening = async {
                    sleep_until(self.open_after).await;
                    self.open_after = Instant::now() + timing.reopen;
                    link::open(&self.address).await
                };
                let link = tokio::select! {
                    link = opening => link?,
                    () = self.stop.wanted() => return Err(Unpolled::Stopped),
                };
                for member in &mut self.members {
                    member.board.link_opened();
                    member.tracker.link_opened();
                }
                self.bus.insert(Bus::new(link, timing, self.stop.clone()))
            }
        };
        let Member { index, board, tracker, .. } = &mut self.members[place];
        let failed = |error: &board::Error| match error.kind() {
            None => Unpolled::Stopped,
            Some(kind) => Unpolled::Failed(Failure { kind, text: format!("{}: {error}", self.address) }),
        };
        let began = Instant::now();
        let reading = board.poll(bus, parts).await.map_err(|error| failed(&error))?;
        let took = began.elapsed();
        let accepted = self.hub.look(|states: &[PackState]| tracker.accept(&states[*index], reading));
        match accepted {
            Ok(reading) => Ok((reading, took)),
            Err(Failure { kind, text }) => {
                Err(Unpolled::Failed(Failure { kind, text: format!("{}: {text}", self.address) }))
            }
        }
    }

    /// Name and counters once per link, after the first reading has gone out; then the counters now and then.
    async fn ask_what_seldom_changes(&mut self, place: usize, now: Now) {
        let Member { index, board, tracker, .. } = &mut self.members[place];
        let Some(bus) = self.bus.as_mut() else {
            return;
        };
        let seldom = tracker.seldom(now);
        if seldom == Seldom::Nothing {
            return;
        }
        let asked = async {
            let identity = match seldom {
                Seldom::IdentityAndCounters => Some(board.identity(bus).await?),
                Seldom::Nothing | Seldom::Counters => None,
            };
            Ok((identity, board.counters(bus).await?))
        };
        match asked.await {
            Ok((identity, counters)) => {
                self.hub.update(*index, |state| (tracker.told(state, identity, counters, now), ()));
            }
            Err::<_, board::Error>(error) => {
                // The next poll opens the link again, and says so if it cannot.
                debug!("{}: {error}", self.address);
                self.bus = None;
            }
        }
    }
}

/// For the hub: whether to wake the faces, and the rest for the poller.
fn changed(next: Next) -> (bool, Next) {
    (next.changed, next)
}
