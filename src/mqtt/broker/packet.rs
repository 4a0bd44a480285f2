//! The packets of MQTT 3.1.1 and 5 as a broker meets them: what clients send is read, what it sends
//! is written.
//!
//! Not rumqttc's, which are made for a client: they let reserved bits pass, read a CONNECT of MQTT
//! 5 as one of 3.1.1, refuse the DISCONNECT of MQTT 5 that has no body, and take properties that
//! are cut off for a packet still to come.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The largest packet that is taken, all of it counted.
pub const MAX_PACKET: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1
    V4,
    V5,
}

/// Why something is refused or ends: the reason codes of MQTT 5. With 3.1.1 most of them are just
/// an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Success = 0x00,
    NoSubscriptionExisted = 0x11,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    UnsupportedVersion = 0x84,
    ClientIdNotValid = 0x85,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    PacketIdNotFound = 0x92,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    NoSharedSubscriptions = 0x9E,
    NoSubscriptionIds = 0xA1,
}

/// What a client sends.
#[derive(Debug)]
pub enum Packet {
    Connect(Connect),
    /// The id is 0 with QoS 0.
    Publish(u16, Message),
    PubAck(u16),
    PubRel(u16),
    Subscribe {
        id: u16,
        filters: Vec<Filter>,
        /// Does it want messages to tell which subscription they are for?
        numbered: bool,
    },
    Unsubscribe {
        id: u16,
        filters: Vec<String>,
    },
    PingReq,
    Disconnect {
        publish_will: bool,
    },
}

#[derive(Debug)]
pub struct Connect {
    pub version: Version,
    pub client_id: String,
    /// Of 3.1.1 a clean session.
    pub clean_start: bool,
    /// Seconds; 0 is none.
    pub keep_alive: u16,
    pub will: Option<Message>,
    /// Wants its session to outlive the connection.
    pub session_expiry: bool,
    /// So many messages it takes unacknowledged.
    pub receive_maximum: u16,
    pub largest_packet: usize,
    /// Wants to log in by more than a password.
    pub authentication: bool,
}

/// A message on its way from one client to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    /// 0 to 2.
    pub qos: u8,
    pub retain: bool,
    /// For so long it is of use, from when it is published.
    pub expiry: Option<Duration>,
    /// Those of MQTT 5 that go along unchanged, as they came.
    pub properties: Bytes,
}

#[derive(Debug)]
pub struct Filter {
    pub path: String,
    pub qos: u8,
    /// Not what the subscriber itself publishes.
    pub no_local: bool,
    /// With the retain flag that the publisher has set.
    pub as_published: bool,
    pub replay: Replay,
}

/// When a subscription brings what is retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    Always,
    IfNew,
    Never,
}

/// What the broker sends besides messages.
#[derive(Debug)]
pub enum Response<'a> {
    Accepted {
        /// The id of a client that has given none.
        assigned_id: Option<&'a str>,
        /// The session ends with the connection, against the client's wish.
        no_session: bool,
    },
    Refused(Reason),
    PubAck(u16),
    PubRec(u16),
    PubComp(u16, Reason),
    /// A QoS or a reason for each filter.
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<Reason>),
    PingResp,
    Disconnect(Reason),
}

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const PUBREL: u8 = 6;
const SUBSCRIBE: u8 = 8;
const UNSUBSCRIBE: u8 = 10;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;
/// Not a packet's type, but it has properties of its own.
const WILL: u8 = 0;

/// Takes the next packet out of the buffer; `None` if not all of it is there yet. Of a CONNECT the
/// version is its own.
pub fn decode(buffer: &mut BytesMut, version: Version) -> Result<Option<Packet>, Reason> {
    let Some(length_bytes) = buffer.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0) else {
        return if buffer.len() >= 5 { Err(Reason::MalformedPacket) } else { Ok(None) };
    };
    let start = 2 + length_bytes;
    let length = buffer[1..start].iter().rev().fold(0, |length, byte| length << 7 | usize::from(byte & 0x7F));
    if start + length > MAX_PACKET {
        return Err(Reason::PacketTooLarge);
    }
    if buffer.len() < start + length {
        return Ok(None);
    }
    let mut body = Body(buffer.split_to(start + length).freeze());
    let first = body.byte()?;
    body.0.advance(start - 1);
    let (kind, flags) = (first >> 4, first & 0x0F);
    let reserved = if matches!(kind, PUBREL | SUBSCRIBE | UNSUBSCRIBE) { 2 } else { 0 };
    if kind != PUBLISH && flags != reserved {
        return Err(Reason::MalformedPacket);
    }
    let packet = match kind {
        CONNECT => Packet::Connect(connect(&mut body)?),
        PUBLISH => publish(&mut body, flags, version)?,
        PUBACK => Packet::PubAck(acknowledgement(&mut body, kind, version)?),
        PUBREL => Packet::PubRel(acknowledgement(&mut body, kind, version)?),
        SUBSCRIBE => subscribe(&mut body, version)?,
        UNSUBSCRIBE => {
            let id = body.packet_id()?;
            body.properties(kind, version)?;
            let mut filters = vec![body.text()?];
            while !body.0.is_empty() {
                filters.push(body.text()?);
            }
            Packet::Unsubscribe { id, filters }
        }
        PINGREQ => Packet::PingReq,
        DISCONNECT => {
            let mut publish_will = false;
            if version == Version::V5 && !body.0.is_empty() {
                publish_will = body.byte()? != Reason::Success as u8;
                body.properties_if_any(kind)?;
            }
            Packet::Disconnect { publish_will }
        }
        _ => return Err(Reason::ProtocolError),
    };
    if body.0.is_empty() { Ok(Some(packet)) } else { Err(Reason::MalformedPacket) }
}

fn connect(body: &mut Body) -> Result<Connect, Reason> {
    let version = match (&body.binary()?[..], body.byte()?) {
        (b"MQTT", 4) => Version::V4,
        (b"MQTT", 5) => Version::V5,
        (b"MQTT" | b"MQIsdp", _) => return Err(Reason::UnsupportedVersion),
        _ => return Err(Reason::ProtocolError),
    };
    let flags = body.byte()?;
    let is_set = |flag: u8| flags & flag != 0;
    let (has_will, will_qos) = (is_set(0x04), flags >> 3 & 3);
    let (has_password, has_name) = (is_set(0x40), is_set(0x80));
    let wills_flags_alone = !has_will && is_set(0x38);
    let password_alone = version == Version::V4 && has_password && !has_name;
    if is_set(0x01) || will_qos == 3 || wills_flags_alone || password_alone {
        return Err(Reason::MalformedPacket);
    }
    let keep_alive = body.short()?;
    let properties = body.properties(CONNECT, version)?;
    let client_id = body.text()?;
    let will = if has_will {
        let Properties { expiry, passed_on, .. } = body.properties(WILL, version)?;
        let (topic, payload) = (body.text()?, body.binary()?);
        if !is_topic(&topic) {
            return Err(Reason::TopicNameInvalid);
        }
        Some(Message { topic, payload, qos: will_qos, retain: is_set(0x20), expiry, properties: passed_on })
    } else {
        None
    };
    // Anybody may come in.
    if has_name {
        body.text()?;
    }
    if has_password {
        body.binary()?;
    }
    Ok(Connect {
        version,
        client_id,
        clean_start: is_set(0x02),
        keep_alive,
        will,
        session_expiry: properties.session_expiry,
        receive_maximum: properties.receive_maximum.unwrap_or(u16::MAX),
        largest_packet: properties.largest_packet.unwrap_or(usize::MAX),
        authentication: properties.authentication,
    })
}

fn publish(body: &mut Body, flags: u8, version: Version) -> Result<Packet, Reason> {
    let qos = flags >> 1 & 3;
    if qos == 3 {
        return Err(Reason::MalformedPacket);
    }
    let topic = body.text()?;
    let id = if qos == 0 { 0 } else { body.packet_id()? };
    let properties = body.properties(PUBLISH, version)?;
    if properties.topic_alias {
        // None was offered.
        return Err(Reason::TopicAliasInvalid);
    }
    if !is_topic(&topic) {
        return Err(Reason::TopicNameInvalid);
    }
    let message = Message {
        topic,
        payload: std::mem::take(&mut body.0),
        qos,
        retain: flags & 1 != 0,
        expiry: properties.expiry,
        properties: properties.passed_on,
    };
    Ok(Packet::Publish(id, message))
}

/// What it acknowledges; how well that went is no concern of ours.
fn acknowledgement(body: &mut Body, kind: u8, version: Version) -> Result<u16, Reason> {
    let id = body.packet_id()?;
    if version == Version::V5 && !body.0.is_empty() {
        body.byte()?;
        body.properties_if_any(kind)?;
    }
    Ok(id)
}

fn subscribe(body: &mut Body, version: Version) -> Result<Packet, Reason> {
    let id = body.packet_id()?;
    let numbered = body.properties(SUBSCRIBE, version)?.subscription_id;
    let mut filters = Vec::new();
    while filters.is_empty() || !body.0.is_empty() {
        let path = body.text()?;
        let options = body.byte()?;
        let qos = options & 3;
        let reserved = if version == Version::V5 { 0xC0 } else { 0xFC };
        if qos == 3 || options & reserved != 0 {
            return Err(Reason::MalformedPacket);
        }
        let replay = match options >> 4 & 3 {
            0 => Replay::Always,
            1 => Replay::IfNew,
            2 => Replay::Never,
            _ => return Err(Reason::ProtocolError),
        };
        let (no_local, as_published) = (options & 4 != 0, options & 8 != 0);
        filters.push(Filter { path, qos, no_local, as_published, replay });
    }
    Ok(Packet::Subscribe { id, filters, numbered })
}

/// Not a filter.
pub fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#'])
}

/// What a packet has behind its first bytes. Everything taken from it is there, or the packet is
/// malformed.
struct Body(Bytes);

impl Body {
    fn take(&mut self, count: usize) -> Result<Bytes, Reason> {
        if count > self.0.len() { Err(Reason::MalformedPacket) } else { Ok(self.0.split_to(count)) }
    }

    fn byte(&mut self) -> Result<u8, Reason> {
        Ok(self.take(1)?.get_u8())
    }

    fn short(&mut self) -> Result<u16, Reason> {
        Ok(self.take(2)?.get_u16())
    }

    fn packet_id(&mut self) -> Result<u16, Reason> {
        self.short().and_then(|id| if id == 0 { Err(Reason::ProtocolError) } else { Ok(id) })
    }

    /// A variable byte integer, of up to four bytes.
    fn number(&mut self) -> Result<u32, Reason> {
        let mut number = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number |= u32::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Reason::MalformedPacket)
    }

    fn binary(&mut self) -> Result<Bytes, Reason> {
        let length = self.short()?;
        self.take(length.into())
    }

    fn text(&mut self) -> Result<String, Reason> {
        let text = String::from_utf8(self.binary()?.into()).map_err(|_| Reason::MalformedPacket)?;
        if text.contains('\0') { Err(Reason::MalformedPacket) } else { Ok(text) }
    }

    fn properties(&mut self, of: u8, version: Version) -> Result<Properties, Reason> {
        let mut found = Properties::default();
        if version == Version::V5 {
            let length = self.number()? as usize;
            Body(self.take(length)?).read_properties(of, &mut found)?;
        }
        Ok(found)
    }

    /// Of MQTT 5, behind a reason: where nothing follows, not even their length is there.
    fn properties_if_any(&mut self, of: u8) -> Result<(), Reason> {
        if self.0.is_empty() { Ok(()) } else { self.properties(of, Version::V5).map(drop) }
    }

    fn read_properties(mut self, of: u8, found: &mut Properties) -> Result<(), Reason> {
        let mut seen = 0_u64;
        let mut passed_on = BytesMut::new();
        while !self.0.is_empty() {
            let before = self.0.clone();
            let id = self.byte()?;
            let property = PROPERTIES.iter().find(|property| property.0 == id);
            let &(_, form, packets) = property.ok_or(Reason::MalformedPacket)?;
            let again = seen & 1 << id != 0 && form != Form::Pair;
            if again || !packets.contains(&of) {
                return Err(Reason::ProtocolError);
            }
            seen |= 1 << id;
            let (mut number, mut text) = (0, String::new());
            match form {
                Form::Flag => number = self.byte()?.into(),
                Form::Short => number = self.short()?.into(),
                Form::Long => number = self.take(4)?.get_u32(),
                Form::Number => number = self.number()?,
                Form::Text => text = self.text()?,
                Form::Binary => drop(self.binary()?),
                Form::Pair => {
                    self.text()?;
                    self.text()?;
                }
            }
            let never_zero = [SUBSCRIPTION_ID, RECEIVE_MAXIMUM, LARGEST_PACKET].contains(&id);
            let wrong = (form == Form::Flag && number > 1)
                || (never_zero && number == 0)
                || (id == RESPONSE_TOPIC && !is_topic(&text));
            if wrong {
                return Err(Reason::ProtocolError);
            }
            match id {
                EXPIRY => found.expiry = Some(Duration::from_secs(number.into())),
                SUBSCRIPTION_ID => found.subscription_id = true,
                SESSION_EXPIRY => found.session_expiry = number > 0,
                AUTHENTICATION_METHOD => found.authentication = true,
                RECEIVE_MAXIMUM => found.receive_maximum = Some(number as u16),
                TOPIC_ALIAS => found.topic_alias = true,
                LARGEST_PACKET => found.largest_packet = Some(number as usize),
                _ if packets.contains(&PUBLISH) => {
                    passed_on.put_slice(&before[..before.len() - self.0.len()]);
                }
                _ => {}
            }
        }
        found.passed_on = passed_on.freeze();
        Ok(())
    }
}

/// What the broker looks at, or passes on.
#[derive(Default)]
struct Properties {
    expiry: Option<Duration>,
    subscription_id: bool,
    session_expiry: bool,
    authentication: bool,
    receive_maximum: Option<u16>,
    topic_alias: bool,
    largest_packet: Option<usize>,
    passed_on: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Flag,
    Short,
    Long,
    Number,
    Text,
    Binary,
    Pair,
}

const EXPIRY: u8 = 2;
const RESPONSE_TOPIC: u8 = 8;
const SUBSCRIPTION_ID: u8 = 11;
const SESSION_EXPIRY: u8 = 17;
const ASSIGNED_ID: u8 = 18;
const AUTHENTICATION_METHOD: u8 = 21;
const RECEIVE_MAXIMUM: u8 = 33;
const TOPIC_ALIAS: u8 = 35;
const LARGEST_PACKET: u8 = 39;
const SUBSCRIPTION_IDS_AVAILABLE: u8 = 41;
const SHARED_SUBSCRIPTIONS_AVAILABLE: u8 = 42;

/// Those that a client may send, from table 2-4 of the specification: number, form, and in which
/// packets.
const PROPERTIES: [(u8, Form, &[u8]); 18] = [
    (1, Form::Flag, &[PUBLISH, WILL]), // payload format
    (EXPIRY, Form::Long, &[PUBLISH, WILL]),
    (3, Form::Text, &[PUBLISH, WILL]), // content type
    (RESPONSE_TOPIC, Form::Text, &[PUBLISH, WILL]),
    (9, Form::Binary, &[PUBLISH, WILL]), // correlation data
    (SUBSCRIPTION_ID, Form::Number, &[SUBSCRIBE]),
    (SESSION_EXPIRY, Form::Long, &[CONNECT, DISCONNECT]),
    (AUTHENTICATION_METHOD, Form::Text, &[CONNECT]),
    (22, Form::Binary, &[CONNECT]),                  // authentication data
    (23, Form::Flag, &[CONNECT]),                    // wants problem information
    (24, Form::Long, &[WILL]),                       // will delay: no session outlives its connection
    (25, Form::Flag, &[CONNECT]),                    // wants response information: there is none
    (31, Form::Text, &[PUBACK, PUBREL, DISCONNECT]), // reason in words
    (RECEIVE_MAXIMUM, Form::Short, &[CONNECT]),
    (34, Form::Short, &[CONNECT]), // topic aliases taken: none are sent
    (TOPIC_ALIAS, Form::Short, &[PUBLISH]),
    // The user's own.
    (38, Form::Pair, &[CONNECT, PUBLISH, PUBACK, PUBREL, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, WILL]),
    (LARGEST_PACKET, Form::Long, &[CONNECT]),
];

/// Writes a message as a subscriber gets it, with its own QoS and retain flag; with QoS 0 the id is
/// not written. Nothing is written if that makes a larger packet than this.
pub fn write_message(out: &mut BytesMut, version: Version, message: &Message, id: u16, largest: usize) {
    let Message { qos, retain, expiry, .. } = *message;
    let properties = expiry.map_or(0, |_| 5) + message.properties.len();
    let length = 2
        + message.topic.len()
        + if qos > 0 { 2 } else { 0 }
        + if version == Version::V5 { length_of_number(properties) + properties } else { 0 }
        + message.payload.len();
    if 1 + length_of_number(length) + length > largest {
        return;
    }
    out.put_u8(PUBLISH << 4 | qos << 1 | u8::from(retain));
    write_number(out, length);
    write_text(out, &message.topic);
    if qos > 0 {
        out.put_u16(id);
    }
    if version == Version::V5 {
        write_number(out, properties);
        if let Some(left) = expiry {
            out.put_u8(EXPIRY);
            // Rounded up, so that one that goes on at once has all its time.
            out.put_u32(left.as_millis().div_ceil(1000) as u32);
        }
        out.put_slice(&message.properties);
    }
    out.put_slice(&message.payload);
}

impl Response<'_> {
    pub fn write(&self, out: &mut BytesMut, version: Version) {
        let is_v5 = version == Version::V5;
        let mut body = BytesMut::new();
        let kind = match self {
            Response::Accepted { assigned_id, no_session } => {
                body.put_slice(&[0, Reason::Success as u8]);
                if is_v5 {
                    let mut limits = BytesMut::new();
                    if *no_session {
                        limits.put_slice(&[SESSION_EXPIRY, 0, 0, 0, 0]);
                    }
                    if let Some(id) = assigned_id {
                        limits.put_u8(ASSIGNED_ID);
                        write_text(&mut limits, id);
                    }
                    limits.put_u8(LARGEST_PACKET);
                    limits.put_u32(MAX_PACKET as u32);
                    limits.put_slice(&[SUBSCRIPTION_IDS_AVAILABLE, 0, SHARED_SUBSCRIPTIONS_AVAILABLE, 0]);
                    // What is not said is as the specification has it: QoS 2 and retained messages
                    // are taken, topic aliases are not.
                    write_number(&mut body, limits.len());
                    body.put_slice(&limits);
                }
                2
            }
            Response::Refused(reason) => {
                let code = match (version, reason) {
                    (Version::V4, Reason::UnsupportedVersion) => 1,
                    (Version::V4, Reason::ClientIdNotValid) => 2,
                    (Version::V4, _) => 3, // unavailable
                    (Version::V5, reason) => *reason as u8,
                };
                body.put_slice(&[0, code]);
                if is_v5 {
                    body.put_u8(0);
                }
                2
            }
            // Where all went well, neither reason nor properties are written.
            Response::PubAck(id) => {
                body.put_u16(*id);
                4
            }
            Response::PubRec(id) => {
                body.put_u16(*id);
                5
            }
            Response::PubComp(id, reason) => {
                body.put_u16(*id);
                if is_v5 && *reason != Reason::Success {
                    body.put_u8(*reason as u8);
                }
                7
            }
            Response::SubAck(id, granted) => {
                body.put_u16(*id);
                if is_v5 {
                    body.put_u8(0);
                }
                body.put_slice(granted);
                9
            }
            Response::UnsubAck(id, reasons) => {
                body.put_u16(*id);
                if is_v5 {
                    body.put_u8(0);
                    body.extend(reasons.iter().map(|reason| *reason as u8));
                }
                11
            }
            Response::PingResp => 13,
            Response::Disconnect(reason) => {
                body.put_u8(*reason as u8);
                14
            }
        };
        out.put_u8(kind << 4);
        write_number(out, body.len());
        out.put_slice(&body);
    }
}

fn write_text(out: &mut BytesMut, text: &str) {
    // All texts come from packets, where their length had two bytes too.
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

fn write_number(out: &mut BytesMut, mut number: usize) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn length_of_number(number: usize) -> usize {
    match number {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
