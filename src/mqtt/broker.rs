//! A small broker for MQTT 3.1.1 and 5, so that `demo` and the tests need nothing installed. It is
//! deliberately not a broker to run a home on: no TLS, no passwords (any are accepted), no sessions
//! that outlive their connection, nothing on disk, no shared subscriptions and no ids of them; QoS
//! 2 is taken from publishers but granted to nobody. Clients of MQTT 5 are told so when they
//! connect.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Bound::{Included, Unbounded};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use packet::{Connect, Filter, Message, Packet, Reason, Replay, Response, Version};

mod packet;

/// A client that is more bytes behind than this is disconnected.
const MAX_BACKLOG: usize = 4 * 1024 * 1024;
/// About how much of the retained messages goes into one write.
const REPLAY_CHUNK: usize = 64 * 1024;
const READ_CHUNK: usize = 8 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to be told why it is disconnected.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// What is retained: topic → payload, ordered by topic. Cheap to clone, shared with the running broker.
#[derive(Clone)]
pub struct Retained(Arc<Mutex<State>>);

impl Retained {
    pub fn get(&self, topic: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let kept = state.retained.get(topic)?;
        kept.message_now(Instant::now()).map(|message| message.payload.to_vec())
    }

    pub fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
        let (state, now) = (self.lock(), Instant::now());
        let messages = state.retained.values().filter_map(|kept| kept.message_now(now));
        messages.map(|m| (m.topic, m.payload.to_vec())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Broker {
    listener: TcpListener,
    shared: Retained,
}

impl Broker {
    /// Port 0 means a free one.
    pub async fn bind(address: SocketAddr) -> io::Result<Broker> {
        let listener = TcpListener::bind(address).await?;
        let shared = Retained(Arc::default());
        Ok(Broker { listener, shared })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub fn retained(&self) -> Retained {
        self.shared.clone()
    }

    /// Serves until the future is dropped; dropping it closes every connection.
    pub async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((socket, peer)) => {
                        let shared = self.shared.clone();
                        connections.spawn(async move {
                            match connection(socket, &shared).await {
                                Ok(()) => debug!(%peer, "connection closed"),
                                Err(ended) => debug!(%peer, "connection closed: {ended}"),
                            }
                        });
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        // Out of file descriptors, most likely: trying again at once would only spin.
                        sleep(Duration::from_millis(100)).await;
                    }
                },
                // Ended tasks stay in the set until they are taken out.
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Everything the connections share. A client is in `clients` exactly as long as it is connected: whoever
/// takes it out publishes its will in the same step, so that no will comes after a successor's messages.
#[derive(Default)]
struct State {
    clients: BTreeMap<u64, Client>,
    retained: BTreeMap<String, Kept>,
    /// Counts clients and retained messages.
    clock: u64,
}

struct Client {
    /// Its own, or one that it was given.
    id: String,
    will: Option<Message>,
    subscriptions: BTreeMap<String, Subscription>,
    outbox: Outbox,
    /// Packet ids of QoS 2 messages that have been passed on but not yet released.
    unreleased: HashSet<u16>,
    /// Sent why, or dropped, when the client is taken out, which ends its connection even in the
    /// middle of a write.
    connected: oneshot::Sender<Reason>,
}

struct Subscription {
    /// The QoS, 0 or 1.
    granted: u8,
    no_local: bool,
    as_published: bool,
    /// What was retained later than this has been sent as a live message.
    since: u64,
    /// The first topic whose retained message is yet to be sent. They are not queued on subscribing but
    /// fetched as the client takes them, so that thousands neither need memory nor count as being slow.
    replay: Option<String>,
}

/// A message that waits for somebody to want it.
struct Kept {
    message: Message,
    until: Option<Instant>,
    /// On the broker's clock.
    since: u64,
    /// The id of its publisher.
    from: String,
}

impl Kept {
    /// As it is now, with the time that it has left; `None` when it has none.
    fn message_now(&self, now: Instant) -> Option<Message> {
        match self.until {
            Some(until) if until <= now => None,
            until => Some(Message { expiry: until.map(|until| until - now), ..self.message.clone() }),
        }
    }
}

/// What the connection is to write. Nothing is ever sent again within a connection, and no session
/// reaches into the next one; but a client has no more messages to acknowledge at a time than it
/// wants.
struct Outbox {
    version: Version,
    bytes: BytesMut,
    /// The largest packet that the client takes.
    largest: usize,
    last_id: u16,
    unacknowledged: HashSet<u16>,
    /// So many are unacknowledged at most.
    receive_maximum: u16,
    /// Those that wait for an acknowledgement, with the time when they are of no use any more.
    waiting: VecDeque<(Message, Option<Instant>)>,
    /// How much that is.
    waiting_bytes: usize,
    filled: Arc<Notify>,
}

impl Outbox {
    /// Returns whether the client keeps up.
    fn respond(&mut self, response: &Response) -> bool {
        response.write(&mut self.bytes, self.version);
        self.filled.notify_one();
        self.keeps_up()
    }

    fn keeps_up(&self) -> bool {
        self.bytes.len() + self.waiting_bytes <= MAX_BACKLOG
    }

    fn takes_more(&self) -> bool {
        self.unacknowledged.len() < usize::from(self.receive_maximum)
    }

    /// Returns whether the client keeps up.
    fn publish(&mut self, message: Message) -> bool {
        if message.qos == 0 || (self.takes_more() && self.waiting.is_empty()) {
            self.write(&message);
        } else {
            self.waiting_bytes += size(&message);
            let until = message.expiry.map(|expiry| Instant::now() + expiry);
            self.waiting.push_back((message, until));
        }
        self.keeps_up()
    }

    fn acknowledged(&mut self, id: u16) {
        self.unacknowledged.remove(&id);
        while self.takes_more() {
            let Some((mut message, until)) = self.waiting.pop_front() else {
                break;
            };
            self.waiting_bytes -= size(&message);
            let left = until.map(|until| until - Instant::now());
            if left != Some(Duration::ZERO) {
                message.expiry = left;
                self.write(&message);
            }
        }
        // Retained messages may have waited too.
        self.filled.notify_one();
    }

    fn write(&mut self, message: &Message) {
        let before = self.bytes.len();
        let id = if message.qos == 0 { 0 } else { self.free_id() };
        packet::write_message(&mut self.bytes, self.version, message, id, self.largest);
        if message.qos > 0 && self.bytes.len() > before {
            self.unacknowledged.insert(id);
        }
        self.filled.notify_one();
    }

    /// Fewer are taken than there are.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.unacknowledged.contains(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// About what it needs.
fn size(message: &Message) -> usize {
    size_of::<Message>() + message.topic.len() + message.payload.len() + message.properties.len()
}

impl State {
    /// Returns the client's number, what tells of a filled outbox, and what ends with the client.
    fn join(&mut self, connect: Connect) -> (u64, Arc<Notify>, oneshot::Receiver<Reason>) {
        self.clock += 1;
        let number = self.clock;
        let nameless = connect.client_id.is_empty();
        let id = if nameless { format!("nameless-{number}") } else { connect.client_id };
        let same = self.clients.iter().find(|(_, other)| other.id == id);
        if let Some(number) = same.map(|(&number, _)| number) {
            self.leave(number, false, Some(Reason::SessionTakenOver));
        }
        let (connected, gone) = oneshot::channel();
        let mut outbox = Outbox {
            version: connect.version,
            bytes: BytesMut::new(),
            largest: connect.largest_packet,
            last_id: 0,
            unacknowledged: HashSet::new(),
            receive_maximum: connect.receive_maximum,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            filled: Arc::default(),
        };
        let assigned_id = nameless.then_some(id.as_str());
        outbox.respond(&Response::Accepted { assigned_id, no_session: connect.session_expiry });
        let filled = Arc::clone(&outbox.filled);
        let client = Client {
            id,
            will: connect.will,
            subscriptions: BTreeMap::new(),
            outbox,
            unreleased: HashSet::new(),
            connected,
        };
        self.clients.insert(number, client);
        (number, filled, gone)
    }

    fn leave(&mut self, number: u64, said_goodbye: bool, why: Option<Reason>) {
        let Some(Client { id, will, connected, .. }) = self.clients.remove(&number) else {
            return;
        };
        if let Some(why) = why {
            // If its connection has ended by itself, nobody is told.
            let _ = connected.send(why);
        }
        if let Some(will) = will.filter(|_| !said_goodbye) {
            self.publish(will, &id);
        }
    }

    fn publish(&mut self, message: Message, from: &str) {
        let mut pending = vec![(message, from.to_owned())];
        while let Some((message, from)) = pending.pop() {
            if message.retain && message.payload.is_empty() {
                self.retained.remove(&message.topic);
            } else if message.retain {
                let mut kept = message.clone();
                // As they were read, they keep the whole read buffer alive.
                kept.payload = Bytes::copy_from_slice(&message.payload);
                kept.properties = Bytes::copy_from_slice(&message.properties);
                self.clock += 1;
                let (since, from) = (self.clock, from.clone());
                let until = kept.expiry.map(|expiry| Instant::now() + expiry);
                self.retained.insert(kept.topic.clone(), Kept { message: kept, until, since, from });
            }
            self.clients.retain(|_, client| {
                let own = client.id == from;
                let subscriptions = client.subscriptions.iter();
                let matching: Vec<&Subscription> = subscriptions
                    .filter(|(filter, to)| !(own && to.no_local) && matches(filter, &message.topic))
                    .map(|(_, to)| to)
                    .collect();
                let Some(granted) = matching.iter().map(|to| to.granted).max() else {
                    return true;
                };
                let retain = message.retain && matching.iter().any(|to| to.as_published);
                let qos = message.qos.min(granted);
                let keeps_up = client.outbox.publish(Message { qos, retain, ..message.clone() });
                if !keeps_up {
                    warn!(id = client.id, "disconnected: reads too slowly");
                    let will = client.will.take();
                    pending.extend(will.map(|will| (will, client.id.clone())));
                }
                keeps_up
            });
        }
    }

    fn handle(&mut self, number: u64, packet: Packet) -> Result<(), Ended> {
        let taken_out = || Ended::Broken(io::ErrorKind::ConnectionAborted.into());
        let client = self.clients.get_mut(&number).ok_or_else(taken_out)?;
        let version = client.outbox.version;
        let mut passed_on = None;
        let response = match packet {
            Packet::Publish(id, message) => {
                let qos = message.qos;
                if qos < 2 || client.unreleased.insert(id) {
                    passed_on = Some((message, client.id.clone()));
                }
                match qos {
                    0 => None,
                    1 => Some(Response::PubAck(id)),
                    _ => Some(Response::PubRec(id)),
                }
            }
            Packet::PubRel(id) => {
                let known = client.unreleased.remove(&id);
                let reason = if known { Reason::Success } else { Reason::PacketIdNotFound };
                Some(Response::PubComp(id, reason))
            }
            Packet::Subscribe { id, filters, numbered } => {
                if version == Version::V4 && !filters.iter().all(|filter| is_filter(&filter.path)) {
                    return Err(Reason::TopicFilterInvalid.into());
                }
                self.retained.retain(|_, kept| kept.until.is_none_or(|until| until > Instant::now()));
                let since = self.clock;
                let mut granted = Vec::new();
                for filter in filters {
                    granted.push(match refusal(&filter, numbered, version) {
                        Some(reason) => reason as u8,
                        None => client.subscribe(filter, since),
                    });
                }
                Some(Response::SubAck(id, granted))
            }
            Packet::Unsubscribe { id, filters } => {
                let remove = |filter| match client.subscriptions.remove(&filter) {
                    Some(_) => Reason::Success,
                    None => Reason::NoSubscriptionExisted,
                };
                Some(Response::UnsubAck(id, filters.into_iter().map(remove).collect()))
            }
            Packet::PingReq => Some(Response::PingResp),
            Packet::PubAck(id) => {
                client.outbox.acknowledged(id);
                None
            }
            Packet::Connect(_) | Packet::Disconnect { .. } => return Err(Reason::ProtocolError.into()),
        };
        let keeps_up = response.is_none_or(|response| client.outbox.respond(&response));
        if let Some((message, from)) = passed_on {
            self.publish(message, &from);
        }
        if keeps_up { Ok(()) } else { Err(Reason::QuotaExceeded.into()) }
    }

    /// What is to be written next, possibly nothing; `None` when the client has been taken out.
    fn take(&mut self, number: u64) -> Option<BytesMut> {
        let Client { id, subscriptions, outbox, .. } = self.clients.get_mut(&number)?;
        let now = Instant::now();
        for (filter, subscription) in subscriptions {
            let Some(from) = subscription.replay.take() else {
                continue;
            };
            for (topic, kept) in self.retained.range((Included(from), Unbounded)) {
                let waits = subscription.granted > 0 && !outbox.takes_more();
                if outbox.bytes.len() >= REPLAY_CHUNK || waits {
                    subscription.replay = Some(topic.clone());
                    break;
                }
                let own = subscription.no_local && kept.from == *id;
                if own || kept.since > subscription.since || !matches(filter, topic) {
                    continue;
                }
                if let Some(mut message) = kept.message_now(now) {
                    message.qos = message.qos.min(subscription.granted);
                    outbox.publish(message);
                }
            }
        }
        Some(std::mem::take(&mut outbox.bytes))
    }
}

impl Client {
    /// Returns the QoS.
    fn subscribe(&mut self, filter: Filter, since: u64) -> u8 {
        let Filter { path, qos, no_local, as_published, replay } = filter;
        let granted = qos.min(1);
        let earlier = self.subscriptions.remove(&path);
        let (since, replay) = match (replay, earlier) {
            (Replay::Always, _) | (Replay::IfNew, None) => (since, Some(String::new())),
            (Replay::Never, None) => (since, None),
            // It goes on where it was.
            (Replay::IfNew | Replay::Never, Some(earlier)) => (earlier.since, earlier.replay),
        };
        let subscription = Subscription { granted, no_local, as_published, since, replay };
        self.subscriptions.insert(path, subscription);
        granted
    }
}

/// Why a filter is not subscribed to.
fn refusal(filter: &Filter, numbered: bool, version: Version) -> Option<Reason> {
    let shared = version == Version::V5 && filter.path.starts_with("$share/");
    if !is_filter(&filter.path) {
        Some(Reason::TopicFilterInvalid)
    } else if numbered {
        Some(Reason::NoSubscriptionIds)
    } else if shared {
        Some(Reason::NoSharedSubscriptions)
    } else {
        None
    }
}

/// Why a connection has ended that nobody has said goodbye on.
#[derive(Debug)]
enum Ended {
    Broken(io::Error),
    Refused(Reason),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Broken(error) => error.fmt(f),
            Ended::Refused(reason) => write!(f, "{reason:?}"),
        }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended::Broken(error)
    }
}

impl From<Reason> for Ended {
    fn from(reason: Reason) -> Ended {
        Ended::Refused(reason)
    }
}

async fn connection(mut socket: TcpStream, shared: &Retained) -> Result<(), Ended> {
    // What there is goes out in one write already; waiting for more would only delay it.
    socket.set_nodelay(true)?;
    let mut buffer = BytesMut::new();
    let first = timeout(CONNECT_TIMEOUT, receive(&mut socket, &mut buffer, Version::V4)).await;
    let connect = match first.map_err(io::Error::from)? {
        Ok(Packet::Connect(connect)) => connect,
        Ok(_) => return Err(Reason::ProtocolError.into()),
        Err(ended) => {
            if matches!(ended, Ended::Refused(Reason::UnsupportedVersion)) {
                // Whoever speaks another version understands this one's refusal at least.
                refuse(&mut socket, Reason::UnsupportedVersion, Version::V4).await?;
            }
            return Err(ended);
        }
    };
    let version = connect.version;
    let refusal = match version {
        Version::V4 if connect.client_id.is_empty() && !connect.clean_start => Some(Reason::ClientIdNotValid),
        _ if connect.authentication => Some(Reason::BadAuthenticationMethod),
        _ => None,
    };
    if let Some(reason) = refusal {
        refuse(&mut socket, reason, version).await?;
        return Err(reason.into());
    }
    let patience = match connect.keep_alive {
        0 => Duration::MAX,
        seconds => Duration::from_millis(1500 * u64::from(seconds)),
    };
    let (number, filled, gone) = shared.lock().join(connect);
    let (mut reader, mut writer) = socket.split();
    let reading = async {
        loop {
            let packet = timeout(patience, receive(&mut reader, &mut buffer, version)).await;
            match packet.map_err(|_| Reason::KeepAliveTimeout)?? {
                Packet::Disconnect { publish_will } => return Ok(publish_will),
                packet => shared.lock().handle(number, packet)?,
            }
        }
    };
    // A farewell in the middle of a packet would be read as a part of it.
    let between_packets = AtomicBool::new(true);
    let writing = async {
        loop {
            let next = shared.lock().take(number);
            match next {
                None => return io::Result::Ok(()),
                Some(bytes) if bytes.is_empty() => filled.notified().await,
                Some(bytes) => {
                    between_packets.store(false, Ordering::Relaxed);
                    writer.write_all(&bytes).await?;
                    between_packets.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    let ended = tokio::select! {
        // Why it was taken out is there before its outbox is gone.
        biased;
        why = gone => Err(Ended::Refused(why.unwrap_or(Reason::QuotaExceeded))),
        ended = reading => ended,
        // A failed write is not the end: the peer's DISCONNECT may be there to be read.
        Ok(()) = writing => Err(Ended::Broken(io::ErrorKind::ConnectionAborted.into())),
    };
    shared.lock().leave(number, matches!(ended, Ok(false)), None);
    let between_packets = between_packets.load(Ordering::Relaxed);
    if let (Version::V5, true, Err(Ended::Refused(reason))) = (version, between_packets, &ended) {
        let mut farewell = BytesMut::new();
        Response::Disconnect(*reason).write(&mut farewell, version);
        let _ = timeout(FAREWELL_TIMEOUT, writer.write_all(&farewell)).await;
    }
    ended.map(drop)
}

async fn refuse(socket: &mut TcpStream, reason: Reason, version: Version) -> io::Result<()> {
    let mut response = BytesMut::new();
    Response::Refused(reason).write(&mut response, version);
    socket.write_all(&response).await
}

async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    version: Version,
) -> Result<Packet, Ended> {
    loop {
        if let Some(packet) = packet::decode(buffer, version)? {
            return Ok(packet);
        }
        buffer.reserve(READ_CHUNK);
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// A wildcard has a level to itself, and # is the last.
fn is_filter(filter: &str) -> bool {
    let all_below = filter.strip_suffix('#').filter(|rest| rest.is_empty() || rest.ends_with('/'));
    let mut levels = all_below.unwrap_or(filter).split('/');
    !filter.is_empty() && levels.all(|level| level == "+" || !level.contains(['+', '#']))
}

/// Topics that begin with $ only reach those who subscribe to them by name.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for level in filter.split('/') {
        match (level, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(same)) if level == same => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::mqttbytes::v4::{
        ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, PubComp, PubRec, PubRel, Publish,
        SubAck, Subscribe, SubscribeFilter, UnsubAck, Unsubscribe,
    };
    use rumqttc::mqttbytes::{Error, QoS};
    use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions};
    use std::future::Future;

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        let limit = Duration::from_secs(20);
        timeout(limit, future).await.expect("in time")
    }

    async fn start() -> (SocketAddr, Retained, JoinSet<()>) {
        let broker = Broker::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let (address, retained) = (broker.address().unwrap(), broker.retained());
        let mut serving = JoinSet::new();
        serving.spawn(broker.serve());
        (address, retained, serving)
    }

    /// A client that does only what it is told.
    struct Raw(TcpStream, BytesMut);

    impl Raw {
        async fn open(address: SocketAddr) -> Raw {
            let socket = soon(TcpStream::connect(address)).await.unwrap();
            Raw(socket, BytesMut::new())
        }

        async fn join(address: SocketAddr, connect: Connect) -> Raw {
            let mut raw = Raw::open(address).await;
            raw.send(Packet::Connect(connect)).await;
            let accepted = ConnAck::new(ConnectReturnCode::Success, false);
            assert_eq!(raw.next().await, Packet::ConnAck(accepted));
            raw
        }

        async fn send(&mut self, packet: Packet) {
            let mut bytes = BytesMut::new();
            packet.write(&mut bytes, usize::MAX).unwrap();
            soon(self.0.write_all(&bytes)).await.unwrap();
        }

        async fn next(&mut self) -> Packet {
            loop {
                match Packet::read(&mut self.1, usize::MAX) {
                    Err(Error::InsufficientBytes(_)) => {}
                    packet => return packet.unwrap(),
                }
                assert!(soon(self.0.read_buf(&mut self.1)).await.unwrap() > 0, "closed");
            }
        }

        async fn message(&mut self) -> Publish {
            match self.next().await {
                Packet::Publish(message) => message,
                other => panic!("{other:?}"),
            }
        }

        /// Topic, payload, retain.
        async fn line(&mut self) -> (String, String, bool) {
            let message = self.message().await;
            let payload = String::from_utf8(message.payload.to_vec()).unwrap();
            (message.topic, payload, message.retain)
        }

        async fn subscribe(&mut self, filters: &[(&str, QoS)]) {
            let filters = filters.iter().map(|(path, qos)| SubscribeFilter::new(path.to_string(), *qos));
            let filters = filters.collect();
            self.send(Packet::Subscribe(Subscribe { pkid: 1, filters })).await;
            assert!(matches!(self.next().await, Packet::SubAck(SubAck { pkid: 1, .. })));
        }

        /// Returns when the broker has stored and passed it on.
        async fn publish(&mut self, topic: &str, payload: &str, retain: bool) {
            let message = Publish::new(topic, QoS::AtLeastOnce, payload);
            self.send(Packet::Publish(Publish { pkid: 7, retain, ..message })).await;
            assert_eq!(self.next().await, Packet::PubAck(PubAck::new(7)));
        }

        /// Waits until the broker has closed the connection, whatever it sends until then.
        async fn closed(mut self) {
            let mut rest = Vec::new();
            // A reset is as good as an orderly end.
            let _ = soon(self.0.read_to_end(&mut rest)).await;
        }
    }

    fn with_will(id: &str, topic: &str, payload: &str, retain: bool) -> Connect {
        let last_will = Some(LastWill::new(topic, payload, QoS::AtLeastOnce, retain));
        Connect { last_will, ..Connect::new(id) }
    }

    fn line(topic: &str, payload: &str, retain: bool) -> (String, String, bool) {
        (topic.to_owned(), payload.to_owned(), retain)
    }

    fn rumqtt(address: SocketAddr, id: &str) -> (AsyncClient, EventLoop) {
        let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
        options.set_keep_alive(Duration::from_secs(5));
        AsyncClient::new(options, 10)
    }

    /// The next incoming packet for which `wanted` finds something.
    async fn until<T>(events: &mut EventLoop, wanted: impl Fn(Packet) -> Option<T>) -> T {
        let search = async {
            loop {
                if let Event::Incoming(packet) = events.poll().await.unwrap() {
                    if let Some(found) = wanted(packet) {
                        return found;
                    }
                }
            }
        };
        soon(search).await
    }

    fn a_message(packet: Packet) -> Option<Publish> {
        if let Packet::Publish(message) = packet { Some(message) } else { None }
    }

    fn an_acknowledgement(packet: Packet) -> Option<u16> {
        if let Packet::PubAck(PubAck { pkid }) = packet { Some(pkid) } else { None }
    }

    #[test]
    fn filters_match_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
            ("a/B", "a/b", false),
            ("#", "a/b/c", true),
            ("#", "/", true),
            ("a/#", "a", true),
            ("a/#", "a/", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("+", "a", true),
            ("+", "", true),
            ("+", "a/b", false),
            ("+", "/a", false),
            ("+/+", "/a", true),
            ("/+", "/a", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a/b/d", false),
            ("+/b/#", "a/b", true),
            ("+/b/#", "a/c/b", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/+", "$SYS/x", true),
            ("a/+", "a/$x", true),
            ("ü/#", "ü/€", true),
            ("#", "ü", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
        for filter in ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "a/b+"] {
            assert!(!is_filter(filter), "{filter}");
        }
    }

    #[tokio::test]
    async fn retained_messages_come_on_subscribing_and_go_with_an_empty_payload() {
        let (address, retained, _serving) = start().await;
        let (client, mut events) = rumqtt(address, "writer");
        for (topic, payload) in [("p/b", "1"), ("p/a", "2"), ("p/a", "3"), ("q", "4")] {
            client.publish(topic, QoS::AtLeastOnce, true, payload).await.unwrap();
            until(&mut events, an_acknowledgement).await;
        }
        assert_eq!(retained.get("p/a").unwrap(), b"3");
        assert_eq!(retained.snapshot().into_keys().collect::<Vec<_>>(), ["p/a", "p/b", "q"]);

        let (reader, mut received) = rumqtt(address, "reader");
        reader.subscribe("p/+", QoS::AtLeastOnce).await.unwrap();
        for (topic, payload) in [("p/a", "3"), ("p/b", "1")] {
            let message = until(&mut received, a_message).await;
            assert_eq!((message.topic.as_str(), &message.payload[..]), (topic, payload.as_bytes()));
            assert!(message.retain);
        }
        client.publish("p/a", QoS::AtLeastOnce, true, "").await.unwrap();
        until(&mut events, an_acknowledgement).await;
        assert_eq!(retained.get("p/a"), None);
        let message = until(&mut received, a_message).await;
        assert_eq!((message.topic.as_str(), message.payload.len()), ("p/a", 0));
        assert!(!message.retain);
    }

    #[tokio::test]
    async fn a_message_comes_once_with_the_highest_quality_of_its_subscriptions() {
        let (address, _, _serving) = start().await;
        let mut reader = Raw::join(address, Connect::new("reader")).await;
        reader
            .subscribe(&[("a/#", QoS::AtMostOnce), ("a/+", QoS::ExactlyOnce), ("+/b", QoS::AtMostOnce)])
            .await;
        let mut writer = Raw::join(address, Connect::new("writer")).await;
        writer.publish("a/b", "1", false).await;
        writer.publish("a/b/c", "2", false).await;
        writer.send(Packet::Publish(Publish::new("a/b", QoS::AtMostOnce, "3"))).await;
        writer.send(Packet::PingReq).await;
        assert_eq!(writer.next().await, Packet::PingResp);
        for (payload, qos) in [("1", QoS::AtLeastOnce), ("2", QoS::AtMostOnce), ("3", QoS::AtMostOnce)] {
            let message = reader.message().await;
            assert_eq!((&message.payload[..], message.qos), (payload.as_bytes(), qos));
        }
        let topics = vec!["a/#".to_owned(), "+/b".to_owned()];
        reader.send(Packet::Unsubscribe(Unsubscribe { pkid: 2, topics })).await;
        assert_eq!(reader.next().await, Packet::UnsubAck(UnsubAck::new(2)));
        writer.publish("a/b/c", "4", false).await;
        writer.publish("a/d", "5", false).await;
        assert_eq!(reader.line().await, line("a/d", "5", false));
    }

    #[tokio::test]
    async fn a_message_of_quality_2_is_passed_on_once() {
        let (address, _, _serving) = start().await;
        let mut client = Raw::join(address, Connect::new("both")).await;
        client.subscribe(&[("#", QoS::AtMostOnce)]).await;
        let message = Publish::new("a", QoS::ExactlyOnce, "1");
        for dup in [false, true] {
            client.send(Packet::Publish(Publish { pkid: 3, dup, ..message.clone() })).await;
            assert_eq!(client.next().await, Packet::PubRec(PubRec::new(3)));
            if !dup {
                assert_eq!(client.line().await, line("a", "1", false));
            }
        }
        client.send(Packet::PubRel(PubRel::new(3))).await;
        assert_eq!(client.next().await, Packet::PubComp(PubComp::new(3)));
    }

    #[tokio::test]
    async fn the_will_is_published_unless_the_client_says_goodbye() {
        let (address, retained, _serving) = start().await;
        let mut reader = Raw::join(address, Connect::new("reader")).await;
        reader.subscribe(&[("will/#", QoS::AtLeastOnce)]).await;

        let mut polite = Raw::join(address, with_will("polite", "will/polite", "x", true)).await;
        polite.send(Packet::Disconnect).await;
        polite.closed().await;
        drop(Raw::join(address, with_will("dropped", "will/dropped", "x", true)).await);
        assert_eq!(reader.line().await, line("will/dropped", "x", false));
        assert_eq!(retained.snapshot().into_keys().collect::<Vec<_>>(), ["will/dropped"]);

        let mut wrong = Raw::join(address, with_will("wrong", "will/wrong", "x", false)).await;
        wrong.send(Packet::Connect(Connect::new("wrong"))).await;
        assert_eq!(reader.line().await, line("will/wrong", "x", false));
        wrong.closed().await;

        let mut silent = with_will("silent", "will/silent", "x", false);
        silent.keep_alive = 1;
        let silent = Raw::join(address, silent).await;
        assert_eq!(reader.line().await, line("will/silent", "x", false));
        silent.closed().await;
    }

    #[tokio::test]
    async fn a_second_connection_with_the_same_id_takes_over() {
        let (address, retained, _serving) = start().await;
        let first = Raw::join(address, with_will("same", "status", "offline", true)).await;
        let mut second = Raw::join(address, with_will("same", "status", "offline", true)).await;
        assert_eq!(retained.get("status").unwrap(), b"offline");
        second.publish("status", "online", true).await;
        first.closed().await;
        second.send(Packet::PingReq).await;
        assert_eq!(second.next().await, Packet::PingResp);
        assert_eq!(retained.get("status").unwrap(), b"online");

        // Clients without an id have nothing in common.
        let mut nameless = Raw::join(address, Connect::new("")).await;
        let _other = Raw::join(address, Connect::new("")).await;
        nameless.send(Packet::PingReq).await;
        assert_eq!(nameless.next().await, Packet::PingResp);
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_refused() {
        let (address, _, _serving) = start().await;
        let mqtt_3_1 = b"\x10\x0f\0\x06MQIsdp\x03\x02\0\x0a\0\x01x".to_vec();
        let mqtt_6 = b"\x10\x11\0\x04MQTT\x06\x02\0\x0a\x03\x21\0\x14\0\x01x".to_vec();
        let resumed = b"\x10\x0c\0\x04MQTT\x04\x00\0\x0a\0\0".to_vec();
        let version = ConnectReturnCode::RefusedProtocolVersion;
        let cases = [(mqtt_3_1, version), (mqtt_6, version), (resumed, ConnectReturnCode::BadClientId)];
        for (connect, code) in cases {
            let mut raw = Raw::open(address).await;
            raw.0.write_all(&connect).await.unwrap();
            assert_eq!(raw.next().await, Packet::ConnAck(ConnAck::new(code, false)));
            raw.closed().await;
        }
    }

    #[tokio::test]
    async fn garbage_ends_the_connection_it_came_on_and_no_other() {
        let (address, retained, serving) = start().await;
        let mut bystander = Raw::join(address, Connect::new("bystander")).await;
        bystander.subscribe(&[("#", QoS::AtLeastOnce)]).await;
        let garbage: [&[u8]; 14] = [
            b"GET / HTTP/1.1\r\nHost: localhost:1883\r\nUser-Agent: browser\r\nAccept: text/html\r\n\r\n",
            b"\xff\xff\xff\xff\xff\xff",
            b"\x00\x00",
            b"\x10\x00",
            b"\x10\x02\xff\xff",
            b"\x30\x00",
            b"\x30\x02\xff\xff",
            b"\x30\x03\x00\x01#",
            b"\x30\xff\xff\xff\x7f",
            b"\x32\x05\x00\x01a\x00\x00",
            b"\x36\x05\x00\x01a\x00\x01",
            b"\x82\x06\x00\x01\x00\x01\xff\x00",
            b"\xa2\x02\x00\x01",
            b"\xc0\x01\x00",
        ];
        for bytes in garbage {
            let mut stranger = Raw::open(address).await;
            stranger.0.write_all(bytes).await.unwrap();
            stranger.closed().await;
            let mut client = Raw::join(address, with_will("client", "will", "x", false)).await;
            client.0.write_all(bytes).await.unwrap();
            assert_eq!(bystander.line().await, line("will", "x", false), "{bytes:?}");
            client.closed().await;
        }
        // The first character of this topic is what rumqttc's `matches` trips over.
        bystander.send(Packet::Publish(Publish::new("ü", QoS::AtMostOnce, "x"))).await;
        assert_eq!(bystander.line().await, line("ü", "x", false));
        assert!(retained.snapshot().is_empty());
        drop(serving);
        bystander.closed().await;
    }

    /// A state with one client in it.
    fn joined(version: Version) -> (State, u64) {
        let mut connect = BytesMut::from(match version {
            Version::V4 => &b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01c"[..],
            Version::V5 => b"\x10\x0e\0\x04MQTT\x05\x02\0\0\0\0\x01c",
        });
        let Ok(Some(packet::Packet::Connect(connect))) = packet::decode(&mut connect, version) else {
            panic!("no CONNECT")
        };
        let mut state = State::default();
        let (number, ..) = state.join(connect);
        state.take(number);
        (state, number)
    }

    #[test]
    fn no_packet_makes_the_broker_panic() {
        let mut random = 1_u32;
        for version in [Version::V4, Version::V5] {
            for first in 0..=255_u8 {
                for length in 0..=40_u8 {
                    for filler in [Some(0), Some(1), Some(255), None, None, None] {
                        let mut bytes = BytesMut::from(&[first, length][..]);
                        bytes.extend((0..length).map(|_| {
                            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            // Mostly small numbers, so that the lengths of strings are often right.
                            filler.unwrap_or((random >> 24) as u8 & (random >> 16) as u8 & 0x7F)
                        }));
                        match packet::decode(&mut bytes, version) {
                            Ok(Some(packet)) => {
                                let (mut state, number) = joined(version);
                                let _ = state.handle(number, packet);
                                state.take(number);
                            }
                            Ok(None) => panic!("all of it was there: {first} {length}"),
                            Err(_) => {}
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn whatever_is_cut_off_or_changed_in_a_packet_is_found_or_harmless() {
        let packets: [&[u8]; 6] = [
            // CONNECT: a will with delay, expiry and content type, and all that a client may want.
            b"\x10\x4e\0\x04MQTT\x05\xee\0\x3c\x14\x11\0\0\0\x0a\x21\0\x0a\x27\0\0\x10\0\x22\0\x05\x19\x01\x17\x01\
              \0\x01c\x10\x18\0\0\0\x05\x02\0\0\0\x3c\x03\0\x03t/p\0\x04will\0\x03end\0\x04name\0\x06secret",
            b"\x33\x1b\0\x03a/b\0\x07\x0e\x26\0\x01k\0\x01v\x02\0\0\0\x05\x01\x01hello",
            b"\x82\x0f\0\x01\x07\x26\0\x01k\0\x01v\0\x01#\x2d",
            b"\xa2\x0d\0\x01\x07\x26\0\x01k\0\x01v\0\x01#",
            b"\x62\x0a\0\x07\x92\x06\x1f\0\x03why",
            b"\xe0\x07\x04\x05\x11\0\0\0\x05",
        ];
        for whole in packets {
            // Its own length is reckoned here: only those within it are what is tested.
            let whole = [&[whole[0], (whole.len() - 2) as u8], &whole[2..]].concat();
            let mut bytes = BytesMut::from(&whole[..]);
            assert!(matches!(packet::decode(&mut bytes, Version::V5), Ok(Some(_))), "{whole:?}");
            for end in 0..whole.len() {
                // Not there yet …
                let mut bytes = BytesMut::from(&whole[..end]);
                assert!(matches!(packet::decode(&mut bytes, Version::V5), Ok(None)), "{whole:?} {end}");
                // … and said to be all.
                if end >= 2 {
                    let mut bytes =
                        BytesMut::from(&[&[whole[0], end as u8 - 2], &whole[2..end]].concat()[..]);
                    let cut = packet::decode(&mut bytes, Version::V5);
                    assert!(!matches!(cut, Ok(None)), "{whole:?} {end}");
                }
                for bit in 0..8 {
                    let mut changed = whole.clone();
                    changed[end] ^= 1 << bit;
                    let mut bytes = BytesMut::from(&changed[..]);
                    if let Ok(Some(packet)) = packet::decode(&mut bytes, Version::V5) {
                        let (mut state, number) = joined(Version::V5);
                        let _ = state.handle(number, packet);
                        state.take(number);
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn thousands_of_retained_messages_reach_a_client_that_takes_its_time() {
        const COUNT: usize = 6000;
        let (address, retained, _serving) = start().await;
        let payload = "x".repeat(1000);
        for number in 0..COUNT {
            let payload = Bytes::from(payload.clone());
            let topic = format!("r/{number:04}");
            retained
                .lock()
                .publish(Message { topic, payload, qos: 1, retain: true, ..Message::default() }, "");
        }
        let mut reader = Raw::join(address, Connect::new("reader")).await;
        reader.subscribe(&[("#", QoS::AtLeastOnce)]).await;
        let mut writer = Raw::join(address, Connect::new("writer")).await;
        for _ in 0..100 {
            writer.publish("live", &payload, false).await;
        }
        let (mut live, mut replayed) = (0, 0);
        while live < 100 || replayed < COUNT {
            let message = reader.message().await;
            if message.retain {
                assert_eq!(message.topic, format!("r/{replayed:04}"));
                replayed += 1;
            } else {
                live += 1;
            }
        }
    }

    #[test]
    fn what_changes_while_retained_messages_are_sent_comes_once() {
        let (mut state, number) = joined(Version::V4);
        let retained = |topic: &str, payload: &'static str| {
            let (topic, payload) = (topic.to_owned(), Bytes::from(payload));
            Message { topic, payload, retain: true, ..Message::default() }
        };
        for topic in ["a", "b", "c"] {
            state.publish(retained(topic, "old"), "");
        }
        let subscribe = packet::decode(&mut BytesMut::from(&b"\x82\x06\0\x01\0\x01#\0"[..]), Version::V4);
        state.handle(number, subscribe.unwrap().unwrap()).unwrap();
        state.publish(retained("b", "new"), "");
        state.publish(retained("c", ""), "");
        let mut bytes = state.take(number).unwrap();
        let mut seen = Vec::new();
        while let Ok(packet) = Packet::read(&mut bytes, usize::MAX) {
            seen.extend(a_message(packet).map(|m| (m.topic, m.payload, m.retain)));
        }
        let expected = [("b", "new", false), ("c", "", false), ("a", "old", true)];
        assert_eq!(seen, expected.map(|(topic, payload, retain)| (topic.into(), payload.into(), retain)));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_disconnected_and_delays_nobody() {
        let (address, _, _serving) = start().await;
        let mut watcher = Raw::join(address, Connect::new("watcher")).await;
        watcher.subscribe(&[("will", QoS::AtMostOnce)]).await;
        let mut slow = Raw::join(address, with_will("slow", "will", "x", false)).await;
        slow.subscribe(&[("bulk", QoS::AtMostOnce)]).await;
        let mut writer = Raw::join(address, Connect::new("writer")).await;
        let bulk = "x".repeat(200_000);
        let flooding = async {
            loop {
                writer.publish("bulk", &bulk, false).await;
            }
        };
        let will = tokio::select! {
            will = watcher.line() => will,
            () = flooding => unreachable!(),
        };
        assert_eq!(will, line("will", "x", false));
        slow.closed().await;
    }
}
