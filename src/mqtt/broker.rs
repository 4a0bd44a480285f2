//! A small MQTT 3.1.1 broker, so that `demo` and the tests need nothing installed.
//! It is deliberately not a broker to run a home on: no TLS, no passwords (any are accepted), no sessions
//! that outlive their connection, nothing on disk; QoS 2 is taken from publishers but granted to nobody.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::ops::Bound::{Included, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{Error, QoS, check, v4::*, valid_filter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

const MAX_PACKET: usize = 256 * 1024;
/// A client that is more bytes behind than this is disconnected.
const MAX_BACKLOG: usize = 4 * 1024 * 1024;
/// About how much of the retained messages goes into one write.
const REPLAY_CHUNK: usize = 64 * 1024;
const READ_CHUNK: usize = 8 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is retained: topic → payload, ordered by topic. Cheap to clone, shared with the running broker.
#[derive(Clone)]
pub struct Retained(Arc<Mutex<State>>);

impl Retained {
    pub fn get(&self, topic: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let (_, message) = state.retained.get(topic)?;
        Some(message.payload.to_vec())
    }

    pub fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.lock();
        let messages = state.retained.values().map(|(_, message)| message);
        messages.map(|m| (m.topic.clone(), m.payload.to_vec())).collect()
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
                            let ended = connection(socket, &shared).await;
                            debug!(%peer, ?ended, "connection closed");
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
    /// With the time on `clock` when it was published.
    retained: BTreeMap<String, (u64, Publish)>,
    /// Counts clients and retained messages.
    clock: u64,
}

struct Client {
    id: String,
    will: Option<Publish>,
    subscriptions: BTreeMap<String, Subscription>,
    outbox: Outbox,
    /// Packet ids of QoS 2 messages that have been passed on but not yet released.
    unreleased: HashSet<u16>,
    /// Dropped with the client, which ends its connection even in the middle of a write.
    _connected: oneshot::Sender<()>,
}

struct Subscription {
    acknowledged: bool,
    /// What was retained later than this has been sent as a live message.
    since: u64,
    /// The first topic whose retained message is yet to be sent. They are not queued on subscribing but
    /// fetched as the client takes them, so that thousands neither need memory nor count as being slow.
    replay: Option<String>,
}

/// What the connection is to write. Acknowledgements of it are not awaited: within a connection nothing
/// is ever sent again, and no session reaches into the next one.
#[derive(Default)]
struct Outbox {
    bytes: BytesMut,
    last_id: u16,
    filled: Arc<Notify>,
}

impl Outbox {
    /// Returns whether the client keeps up.
    fn push(&mut self, packet: Packet) -> bool {
        let written = packet.write(&mut self.bytes, usize::MAX);
        self.filled.notify_one();
        written.is_ok() && self.bytes.len() <= MAX_BACKLOG
    }

    fn publish(&mut self, message: &Publish, acknowledged: bool) -> bool {
        let mut message = message.clone();
        if acknowledged && message.qos != QoS::AtMostOnce {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            (message.qos, message.pkid) = (QoS::AtLeastOnce, self.last_id);
        } else {
            message.qos = QoS::AtMostOnce;
        }
        self.push(Packet::Publish(message))
    }
}

impl State {
    /// Returns the client's number, what tells of a filled outbox, and what ends with the client.
    fn join(&mut self, connect: Connect) -> (u64, Arc<Notify>, oneshot::Receiver<()>) {
        let id = connect.client_id;
        let mut clients = self.clients.iter();
        let same = clients.find(|(_, other)| !id.is_empty() && other.id == id);
        if let Some(number) = same.map(|(&number, _)| number) {
            self.leave(number, false);
        }
        let will = connect.last_will.map(|will| Publish {
            retain: will.retain,
            ..Publish::from_bytes(will.topic, will.qos, will.message)
        });
        let (connected, gone) = oneshot::channel();
        let mut client = Client {
            id,
            will,
            subscriptions: BTreeMap::new(),
            outbox: Outbox::default(),
            unreleased: HashSet::new(),
            _connected: connected,
        };
        let accepted = ConnAck::new(ConnectReturnCode::Success, false);
        client.outbox.push(Packet::ConnAck(accepted));
        let filled = client.outbox.filled.clone();
        self.clock += 1;
        self.clients.insert(self.clock, client);
        (self.clock, filled, gone)
    }

    fn leave(&mut self, number: u64, said_goodbye: bool) {
        let will = self.clients.remove(&number).and_then(|client| client.will);
        if let Some(will) = will.filter(|_| !said_goodbye) {
            self.publish(will);
        }
    }

    fn publish(&mut self, message: Publish) {
        let mut pending = vec![message];
        while let Some(mut message) = pending.pop() {
            message.dup = false;
            if message.retain && message.payload.is_empty() {
                self.retained.remove(&message.topic);
            } else if message.retain {
                let mut kept = message.clone();
                // As it was read, the payload keeps the whole read buffer alive.
                kept.payload = Bytes::copy_from_slice(&message.payload);
                self.clock += 1;
                self.retained.insert(kept.topic.clone(), (self.clock, kept));
            }
            message.retain = false;
            self.clients.retain(|_, client| {
                let subscriptions = client.subscriptions.iter();
                let matching = subscriptions.filter(|(filter, _)| matches(filter, &message.topic));
                let best = matching.map(|(_, granted)| granted.acknowledged).max();
                let keeps_up = best.is_none_or(|best| client.outbox.publish(&message, best));
                if !keeps_up {
                    warn!(id = client.id, "disconnected: reads too slowly");
                    pending.extend(client.will.take());
                }
                keeps_up
            });
        }
    }

    fn handle(&mut self, number: u64, packet: Packet) -> Result<(), Error> {
        let taken_out = || Error::Io(io::ErrorKind::ConnectionAborted.into());
        let client = self.clients.get_mut(&number).ok_or_else(taken_out)?;
        let mut passed_on = None;
        let answer = match packet {
            Packet::Publish(message) if is_topic(&message.topic) => {
                let (qos, id) = (message.qos, message.pkid);
                if qos != QoS::ExactlyOnce || client.unreleased.insert(id) {
                    passed_on = Some(message);
                }
                match qos {
                    QoS::AtMostOnce => None,
                    QoS::AtLeastOnce => Some(Packet::PubAck(PubAck::new(id))),
                    QoS::ExactlyOnce => Some(Packet::PubRec(PubRec::new(id))),
                }
            }
            Packet::PubRel(PubRel { pkid }) => {
                client.unreleased.remove(&pkid);
                Some(Packet::PubComp(PubComp::new(pkid)))
            }
            Packet::Subscribe(Subscribe { pkid, filters })
                if pkid != 0 && filters.iter().all(|filter| is_filter(&filter.path)) =>
            {
                let mut granted = Vec::new();
                for SubscribeFilter { path, qos } in filters {
                    let acknowledged = qos != QoS::AtMostOnce;
                    let highest = if acknowledged { QoS::AtLeastOnce } else { qos };
                    granted.push(SubscribeReasonCode::Success(highest));
                    let subscription =
                        Subscription { acknowledged, since: self.clock, replay: Some(String::new()) };
                    client.subscriptions.insert(path, subscription);
                }
                Some(Packet::SubAck(SubAck::new(pkid, granted)))
            }
            Packet::Unsubscribe(Unsubscribe { pkid, topics }) if pkid != 0 && !topics.is_empty() => {
                for filter in topics {
                    client.subscriptions.remove(&filter);
                }
                Some(Packet::UnsubAck(UnsubAck::new(pkid)))
            }
            Packet::PingReq => Some(Packet::PingResp),
            Packet::PubAck(_) => None,
            _ => return Err(Error::IncorrectPacketFormat),
        };
        let keeps_up = answer.is_none_or(|answer| client.outbox.push(answer));
        if let Some(message) = passed_on {
            self.publish(message);
        }
        let slow = || Error::Io(io::Error::other("reads its answers too slowly"));
        keeps_up.then_some(()).ok_or_else(slow)
    }

    /// What is to be written next, possibly nothing; `None` when the client has been taken out.
    fn take(&mut self, number: u64) -> Option<BytesMut> {
        let client = self.clients.get_mut(&number)?;
        for (filter, subscription) in &mut client.subscriptions {
            let Some(from) = subscription.replay.take() else {
                continue;
            };
            for (topic, (since, message)) in self.retained.range((Included(from), Unbounded)) {
                if client.outbox.bytes.len() >= REPLAY_CHUNK {
                    subscription.replay = Some(topic.clone());
                    break;
                }
                if *since <= subscription.since && matches(filter, topic) {
                    client.outbox.publish(message, subscription.acknowledged);
                }
            }
        }
        Some(std::mem::take(&mut client.outbox.bytes))
    }
}

async fn connection(mut socket: TcpStream, shared: &Retained) -> Result<(), Error> {
    // What there is goes out in one write already; waiting for more would only delay it.
    socket.set_nodelay(true)?;
    let mut buffer = BytesMut::new();
    let first = timeout(CONNECT_TIMEOUT, receive(&mut socket, &mut buffer)).await;
    let first = first.map_err(io::Error::from)?;
    let refusal = match &first {
        Err(Error::InvalidProtocol) => Some(ConnectReturnCode::RefusedProtocolVersion),
        Ok(Packet::Connect(connect)) if connect.client_id.is_empty() && !connect.clean_session => {
            Some(ConnectReturnCode::BadClientId)
        }
        _ => None,
    };
    if let Some(code) = refusal {
        let mut answer = BytesMut::new();
        ConnAck::new(code, false).write(&mut answer)?;
        return Ok(socket.write_all(&answer).await?);
    }
    let Packet::Connect(connect) = first? else {
        return Err(Error::IncorrectPacketFormat);
    };
    let will = connect.last_will.as_ref();
    if connect.client_id.contains('\0') || will.is_some_and(|will| !is_topic(&will.topic)) {
        return Err(Error::IncorrectPacketFormat);
    }
    let patience = match connect.keep_alive {
        0 => Duration::MAX,
        seconds => Duration::from_millis(1500 * u64::from(seconds)),
    };
    let (number, filled, gone) = shared.lock().join(connect);
    let (mut reader, mut writer) = socket.split();
    let reading = async {
        loop {
            let packet = timeout(patience, receive(&mut reader, &mut buffer)).await;
            match packet.map_err(io::Error::from)?? {
                Packet::Disconnect => return Ok(()),
                packet => shared.lock().handle(number, packet)?,
            }
        }
    };
    let writing = async {
        loop {
            let next = shared.lock().take(number);
            match next {
                None => return io::Result::Ok(()),
                Some(bytes) if bytes.is_empty() => filled.notified().await,
                Some(bytes) => writer.write_all(&bytes).await?,
            }
        }
    };
    let ended = tokio::select! {
        ended = reading => ended,
        // A failed write is not the end: the peer's DISCONNECT may be there to be read.
        Ok(()) = writing => Ok(()),
        _ = gone => Ok(()),
    };
    shared.lock().leave(number, ended.is_ok());
    ended
}

async fn receive(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Result<Packet, Error> {
    loop {
        match decode(buffer) {
            Err(Error::InsufficientBytes(_)) => {}
            decoded => return decoded,
        }
        buffer.reserve(READ_CHUNK);
        if stream.read_buf(buffer).await? == 0 {
            return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// `Packet::read`, except for what that lets pass: reserved bits, bodies where none may be, and a CONNECT
/// of MQTT 5, which it reads as if it were one of 3.1.1. A CONNECT of another version is `InvalidProtocol`.
fn decode(buffer: &mut BytesMut) -> Result<Packet, Error> {
    let length = check(buffer.iter(), MAX_PACKET)?.frame_length();
    let (kind, flags) = (buffer[0] >> 4, buffer[0] & 0x0F);
    let lengths = buffer[1..].iter().take_while(|&&byte| byte & 0x80 != 0);
    let body = &buffer[2 + lengths.count()..length];
    let well_formed = match (kind, body) {
        (1, [0, 4, b'M', b'Q', b'T', b'T', 4, connect_flags, ..]) => flags == 0 && connect_flags & 1 == 0,
        (1, _) => return Err(Error::InvalidProtocol),
        (3, _) => true,
        (6 | 8 | 10, _) => flags == 2,
        (12 | 14, body) => flags == 0 && body.is_empty(),
        _ => flags == 0,
    };
    if well_formed { Packet::read(buffer, MAX_PACKET) } else { Err(Error::MalformedPacket) }
}

fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0'])
}

fn is_filter(filter: &str) -> bool {
    valid_filter(filter) && !filter.contains('\0')
}

/// Not rumqttc's `matches`: that one panics when a topic begins with a character beyond ASCII, and keeps
/// `$` topics even from those who subscribe to them by name.
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
            soon(receive(&mut self.0, &mut self.1)).await.unwrap()
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
        for filter in ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "a/b+", "a\0"] {
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
        let mqtt_5 = b"\x10\x11\0\x04MQTT\x05\x02\0\x0a\x03\x21\0\x14\0\x01x".to_vec();
        let resumed = b"\x10\x0c\0\x04MQTT\x04\x00\0\x0a\0\0".to_vec();
        let version = ConnectReturnCode::RefusedProtocolVersion;
        let cases = [(mqtt_3_1, version), (mqtt_5, version), (resumed, ConnectReturnCode::BadClientId)];
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

    #[test]
    fn no_packet_makes_the_broker_panic() {
        let mut random = 1_u32;
        for first in 0..=255_u8 {
            for length in 0..=40_u8 {
                for filler in [Some(0), Some(1), Some(255), None, None, None] {
                    let mut bytes = BytesMut::from(&[first, length][..]);
                    bytes.extend((0..length).map(|_| {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        // Mostly small numbers, so that the lengths of strings are often right.
                        filler.unwrap_or((random >> 24) as u8 & (random >> 16) as u8 & 0x7F)
                    }));
                    let mut state = State::default();
                    let (number, ..) = state.join(Connect::new("client"));
                    if let Ok(packet) = decode(&mut bytes) {
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
            let message = Publish::new(format!("r/{number:04}"), QoS::AtLeastOnce, payload.clone());
            retained.lock().publish(Publish { retain: true, ..message });
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
        let mut state = State::default();
        let retained = |topic: &str, payload: &str| {
            let message = Publish::new(topic, QoS::AtMostOnce, payload);
            Publish { retain: true, ..message }
        };
        for topic in ["a", "b", "c"] {
            state.publish(retained(topic, "old"));
        }
        let (number, ..) = state.join(Connect::new("reader"));
        let subscribe = Subscribe { pkid: 1, ..Subscribe::new("#", QoS::AtMostOnce) };
        state.handle(number, Packet::Subscribe(subscribe)).unwrap();
        state.publish(retained("b", "new"));
        state.publish(retained("c", ""));
        let mut bytes = state.take(number).unwrap();
        let mut seen = Vec::new();
        while let Ok(packet) = decode(&mut bytes) {
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
