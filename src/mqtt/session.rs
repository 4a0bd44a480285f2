//! Sessions with the broker, one after the other for ever: connect, say what should stand there, send what changes,
//! and say `offline` at the end.
//!
//! Two tasks: one polls the event loop and never waits for anything else, one decides what to send and may wait for a
//! slow broker. Each connection has a client of its own, so nothing of a dead session hangs the next.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ClientError, ConnectionError, Event, EventLoop, LastWill, Outgoing, Packet, Publish, QoS,
    SubscribeFilter,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::access::Access;
use super::mirror::{Message, Mirror};
use super::names::{Names, OFFLINE, ONLINE, PackName};
use crate::blocking;
use crate::hub::{Hub, States};
use crate::json_line::json_line;
use crate::pack::dead_band::{DeadBand, Rules};
use crate::pack::state::PackState;
use crate::stop::Stop;

/// How long retained messages of an earlier run may take to arrive after subscribing.
const READ_BACK: Duration = Duration::from_secs(5);
/// Short, so that a broker that comes back has everything within seconds.
const RETRY: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(3)];

/// How long the broker may take over a line that is published alone.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// A pack as it is published.
pub struct Feed {
    pub name: PackName,
    /// Where its one-line JSON goes at every poll.
    pub json_topic: Option<String>,
}

pub struct Publisher {
    pub access: Access,
    pub names: Names,
    /// In the order of the states.
    pub feeds: Vec<Feed>,
    /// Packs of earlier configurations, whose leftovers are removed.
    pub former: Vec<String>,
    /// What is held back of the values.
    pub dead_bands: Rules,
    pub hub: Arc<Hub>,
}

impl Publisher {
    /// Publishes until `stop`, and then says `offline`.
    pub async fn run(&self, mut stop: Stop) {
        let mut states = self.hub.states();
        let mut shown = Shown::new(self.dead_bands, self.feeds.len());
        let mut failures = 0;
        let mut last_reason = String::new();
        loop {
            let reason = match self.session(&mut states, &mut shown, &mut stop, &mut failures).await {
                Ok(()) => return,
                Err(reason) => reason,
            };
            self.hub.broker_lost();
            let pause = RETRY[RETRY.len().min(failures + 1) - 1];
            failures += 1;
            if reason == last_reason && failures > 1 {
                debug!("{reason}");
            } else {
                warn!("{reason}; trying again until it works");
                last_reason = reason;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.wanted() => return,
            }
        }
    }

    /// One connection: `Ok` when it was stopped, else why it ended. Sets `failures` to 0 once connected.
    async fn session(
        &self,
        states: &mut States,
        shown: &mut Shown,
        stop: &mut Stop,
        failures: &mut usize,
    ) -> Result<(), String> {
        let will = LastWill::new(self.names.bridge_availability(), OFFLINE, QoS::AtLeastOnce, true);
        let Access { client_id, keep_alive, .. } = &self.access;
        let endpoint = self.access.endpoint().await?;
        let at = |reason| format!("{endpoint}: {reason}");
        let ended = || at("the connection ended".to_owned());
        let (client, event_loop) = endpoint.client(client_id, *keep_alive, Some(will)).map_err(at)?;
        let (sender, mut events) = mpsc::unbounded_channel();
        let _pump = AbortOnDrop(tokio::spawn(pump(event_loop, sender)));
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(BrokerEvent::Connected) => break,
                    Some(BrokerEvent::Ended(error)) => return Err(at(endpoint.explain(&error))),
                    Some(_) => {}
                    None => return Err(ended()),
                },
                () = stop.wanted() => return Ok(()),
            }
        }
        *failures = 0;
        self.hub.broker_connected();
        info!("connected to {endpoint}");
        let mut session = Session::new(&client, self, shown);
        let outcome = session.run(&mut events, states, stop).await;
        match outcome {
            Ok(()) => {
                // What was queued before goes out before the DISCONNECT, after which the broker forgets the will and
                // closes. Closing first, with an acknowledgement unread, would be a reset: the broker may then not
                // read what was still on its way. If the event loop has ended, the will says it.
                if client.disconnect().await.is_ok() {
                    while !matches!(events.recv().await, None | Some(BrokerEvent::Ended(_))) {}
                }
                Ok(())
            }
            Err(Some(error)) => Err(at(endpoint.explain(&error))),
            Err(None) => Err(ended()),
        }
    }
}

/// Publishes these messages, topic and payload, in a session of their own, and leaves when the
/// broker has them.
///
/// # Errors
/// Why the broker does not take them, and what to do.
pub async fn publish(access: &Access, messages: &[(String, String)]) -> Result<(), String> {
    let endpoint = access.endpoint().await?;
    let at = |reason| format!("{endpoint}: {reason}");
    // A bridge that runs under this id must not be thrown out.
    let client_id = format!("{}-once", access.client_id);
    let (client, mut event_loop) = endpoint.client(&client_id, access.keep_alive, None).map_err(at)?;
    let mut messages = messages.iter();
    let mut publish_next = || match messages.next() {
        Some((topic, line)) => client.try_publish(topic, QoS::AtLeastOnce, false, line.as_str()),
        None => client.try_disconnect(),
    };
    let conversation = async {
        loop {
            match event_loop.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_) | Packet::PubAck(_))) => {
                    publish_next().map_err(|error| error.to_string())?;
                }
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(endpoint.explain(&error)),
            }
        }
    };
    let outcome = timeout(PUBLISH_TIMEOUT, conversation).await;
    outcome.unwrap_or_else(|_| Err("the broker does not take the line".to_owned())).map_err(at)
}

/// What the publisher needs to know of the event loop.
enum BrokerEvent {
    Connected,
    /// A subscription of ours was acknowledged.
    Subscribed,
    Received(Received),
    /// Also by the broker's closing after our own DISCONNECT.
    Ended(Box<ConnectionError>),
}

/// What the publisher needs to know of a message. What was kept from earlier waits here until hundreds of configs have
/// been announced: so not the texts.
struct Received {
    topic: String,
    retained: bool,
    payload: Payload,
}

enum Payload {
    Empty,
    Online,
    Else,
}

impl From<Publish> for Received {
    fn from(publish: Publish) -> Received {
        let payload = match &publish.payload[..] {
            [] => Payload::Empty,
            online if online == ONLINE.as_bytes() => Payload::Online,
            _ => Payload::Else,
        };
        Received { topic: publish.topic, retained: publish.retain, payload }
    }
}

/// Polls the event loop and waits for nothing else: the channel is unbounded because what comes in is only what is
/// subscribed, and waiting here would stop the very loop that lets the other task go on.
async fn pump(mut event_loop: EventLoop, happened: mpsc::UnboundedSender<BrokerEvent>) {
    let (host, port) = event_loop.mqtt_options.broker_address();
    // tokio looks names up on a thread, and panics where there is none.
    let is_name = format!("{host}:{port}").parse::<SocketAddr>().is_err();
    if let Some(Err(reason)) = is_name.then(blocking::can_start) {
        let error = ConnectionError::Io(io::Error::other(reason));
        // Who no longer listens needs no reason.
        let _ = happened.send(BrokerEvent::Ended(Box::new(error)));
        return;
    }
    loop {
        let what = match event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => BrokerEvent::Connected,
            Ok(Event::Incoming(Packet::SubAck(_))) => BrokerEvent::Subscribed,
            Ok(Event::Incoming(Packet::Publish(publish))) => match Received::from(publish) {
                // Our own words that come back. Of what is said now, only a birth and a wiped topic concern us.
                Received { retained: false, payload: Payload::Else, .. } => continue,
                received => BrokerEvent::Received(received),
            },
            Ok(_) => continue,
            Err(error) => BrokerEvent::Ended(Box::new(error)),
        };
        let ended = matches!(what, BrokerEvent::Ended(_));
        if happened.send(what).is_err() || ended {
            return;
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The part of a connection after CONNACK.
struct Session<'a> {
    client: &'a AsyncClient,
    names: &'a Names,
    feeds: &'a [Feed],
    former: &'a [String],
    birth_topic: &'a str,
    mirror: Mirror,
    shown: &'a mut Shown,
    /// The poll whose line was published last, for each feed.
    lines: Vec<u64>,
    /// Subscribed to only while retained messages of an earlier run come in.
    read_back: Vec<String>,
    /// Subscriptions that were acknowledged.
    subscribed: usize,
}

/// Why a session ends that was not stopped: the event loop's error, where it had one.
type Lost = Option<Box<ConnectionError>>;

impl<'a> Session<'a> {
    fn new(client: &'a AsyncClient, publisher: &'a Publisher, shown: &'a mut Shown) -> Session<'a> {
        Session {
            client,
            names: &publisher.names,
            feeds: &publisher.feeds,
            former: &publisher.former,
            birth_topic: &publisher.access.birth_topic,
            mirror: Mirror::new(
                publisher.names.clone(),
                publisher.feeds.iter().map(|feed| feed.name.clone()).collect(),
            ),
            shown,
            lines: vec![0; publisher.feeds.len()],
            read_back: Vec::new(),
            subscribed: 0,
        }
    }

    /// Runs until it is stopped and everything is said, or the connection is lost.
    async fn run(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<BrokerEvent>,
        states: &mut States,
        stop: &mut Stop,
    ) -> Result<(), Lost> {
        let outcome = self.run_until_stopped(events, states, stop).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(Failed::Lost(lost)) => Err(lost),
            // The event loop ended while something was handed to it: it has said why.
            Err(Failed::Client) => loop {
                match events.recv().await {
                    Some(BrokerEvent::Ended(error)) => return Err(Some(error)),
                    Some(_) => {}
                    None => return Err(None),
                }
            },
        }
    }

    async fn run_until_stopped(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<BrokerEvent>,
        states: &mut States,
        stop: &mut Stop,
    ) -> Result<(), Failed> {
        let mut filters: Vec<String> = self.names.own_filters().into();
        for pack in self.feeds.iter().map(|feed| &feed.name.id).chain(self.former) {
            filters.extend(self.names.leftover_filters(pack));
        }
        self.read_back(filters).await?;
        // For as long as the connection lasts: Home Assistant's birth, and whether somebody wipes our packs. A broker does
        // one after the other: once this is acknowledged, what it keeps under the filters before has come.
        let own = self.feeds.iter().map(|feed| self.names.availability(&feed.name.id));
        let lasting = own.chain([self.birth_topic.to_owned()]);
        let lasting = lasting.map(|topic| SubscribeFilter::new(topic, QoS::AtMostOnce));
        self.client.subscribe_many(lasting).await?;
        let read_back_over = Instant::now() + READ_BACK;
        let mut changed = true;
        loop {
            let stopping = stop.is_wanted();
            // What an earlier run has left is known first, so that it goes before anything new comes: a renamed pack's
            // entities would find their ids taken.
            if (changed && self.subscribed >= 2) || stopping {
                self.send_changes(states, stopping).await?;
                changed = false;
            }
            if stopping {
                return Ok(());
            }
            // Nothing is due to be shown before anything is.
            let due = self.shown.due().filter(|_| self.subscribed >= 2);
            changed |= tokio::select! {
                Some(event) = events.recv() => {
                    let mut changed = self.handle(event).await?;
                    // A burst of retained messages is one occasion to look at what has changed.
                    while let Ok(event) = events.try_recv() {
                        changed |= self.handle(event).await?;
                    }
                    changed
                }
                _ = states.changed() => true,
                () = stop.wanted() => true,
                () = sleep_until(due.unwrap_or(read_back_over)), if due.is_some() => true,
                () = sleep_until(read_back_over), if !self.read_back.is_empty() => {
                    for filter in std::mem::take(&mut self.read_back) {
                        self.client.unsubscribe(filter).await?;
                    }
                    // A broker that has acknowledged nothing by now never will.
                    self.subscribed += 2;
                    true
                }
            };
        }
    }

    /// Subscribes for a while, to find what an earlier run has left behind.
    async fn read_back(&mut self, filters: Vec<String>) -> Result<(), ClientError> {
        let subscriptions =
            filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtMostOnce));
        self.client.subscribe_many(subscriptions).await?;
        self.read_back.extend(filters);
        Ok(())
    }

    /// Does what happened change what is to be sent?
    async fn handle(&mut self, event: BrokerEvent) -> Result<bool, Failed> {
        let Received { topic, retained, payload } = match event {
            BrokerEvent::Ended(error) => return Err(Failed::Lost(Some(error))),
            BrokerEvent::Connected => return Ok(false),
            BrokerEvent::Subscribed => {
                self.subscribed += 1;
                return Ok(false);
            }
            BrokerEvent::Received(received) => received,
        };
        if topic == self.birth_topic {
            let born = matches!(payload, Payload::Online);
            if born {
                info!("Home Assistant has started: announcing everything again");
                self.mirror.forget_payloads();
            }
            return Ok(born);
        }
        let Some(pack) = self.names.pack_of(&topic) else {
            return Ok(false);
        };
        let ours = self.feeds.iter().any(|feed| feed.name.id == pack);
        if !retained {
            // Somebody may have emptied the broker, or another bridge may have taken this pack for a leftover of its own.
            let wiped = ours && matches!(payload, Payload::Empty) && topic == self.names.availability(pack);
            if wiped {
                warn!("somebody has removed the topics of pack {pack}: announcing everything again");
                self.mirror.forget_payloads();
            }
            return Ok(wiped);
        }
        let known = ours
            || pack == self.names.bridge_id()
            || self.former.iter().any(|former| former == pack)
            || self.read_back.contains(&self.names.leftover_filters(pack)[0]);
        if !known {
            if matches!(payload, Payload::Online) {
                warn!(
                    "pack {pack} at this base topic is not ours: another bridge needs a base_topic of its own; \
                     if it is a leftover, remove its retained messages"
                );
                return Ok(false);
            }
            let filters = self.names.leftover_filters(pack);
            info!("removing what pack {pack} of an earlier configuration has left at the broker");
            self.read_back(filters.into()).await?;
        }
        self.mirror.found(topic);
        Ok(true)
    }

    async fn send_changes(&mut self, states: &mut States, stopping: bool) -> Result<(), ClientError> {
        let (changes, lines) = {
            let states = states.borrow_and_update();
            let changes = self.mirror.difference(&self.shown.of(&states), stopping);
            (changes, new_lines(self.feeds, &states, &mut self.lines))
        };
        for change in changes {
            let Message { topic, payload, confirmed } = self.mirror.message(change, &states.borrow());
            let qos = if confirmed { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            self.client.publish(topic, qos, true, payload).await?;
        }
        for (topic, line) in lines {
            self.client.publish(topic, QoS::AtMostOnce, false, line).await?;
        }
        Ok(())
    }
}

/// What is shown of the packs.
struct Shown {
    started: Instant,
    /// Of each pack; empty where nothing is ever held back.
    dead_bands: Vec<DeadBand>,
}

impl Shown {
    fn new(rules: Rules, packs: usize) -> Shown {
        let packs = if rules == Rules::default() { 0 } else { packs };
        Shown { started: Instant::now(), dead_bands: (0..packs).map(|_| DeadBand::new(rules)).collect() }
    }

    fn of<'s>(&mut self, states: &'s [PackState]) -> Cow<'s, [PackState]> {
        if self.dead_bands.is_empty() {
            return states.into();
        }
        let now = self.started.elapsed();
        let mut states = states.to_vec();
        for (state, dead_band) in states.iter_mut().zip(&mut self.dead_bands) {
            state.reading = state.reading.take().map(|reading| dead_band.show(reading, now).clone());
        }
        states.into()
    }

    /// When more of what is known may be shown.
    fn due(&self) -> Option<Instant> {
        self.dead_bands.iter().filter_map(DeadBand::due).min().map(|due| self.started + due)
    }
}

/// The one-line JSON of each poll since the last call: said once and not retained, as `smart_bms` does.
fn new_lines(feeds: &[Feed], states: &[PackState], last: &mut [u64]) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for ((feed, state), last) in feeds.iter().zip(states).zip(last) {
        let poll = state.last_poll;
        if let Some(topic) = &feed.json_topic {
            if std::mem::replace(last, poll.number) != poll.number {
                lines.push((topic.clone(), json_line(state.reading.as_ref().filter(|_| poll.good))));
            }
        }
    }
    lines
}

enum Failed {
    Lost(Lost),
    /// The event loop takes no more requests.
    Client,
}

impl From<ClientError> for Failed {
    fn from(_: ClientError) -> Failed {
        Failed::Client
    }
}
