//! The small broker as clients of MQTT 5 meet it: byte by byte, by a client library, and beside
//! clients of 3.1.1.

use std::net::SocketAddr;
use std::time::Duration;

use bms2mqtt::mqtt::broker::{Broker, Retained};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, Filter, LastWill, LastWillProperties, PublishProperties,
};
use rumqttc::v5::mqttbytes::v5::{Packet, RetainForwardRule};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

async fn start() -> (SocketAddr, Retained, JoinSet<()>) {
    let broker = Broker::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (address, retained) = (broker.address().unwrap(), broker.retained());
    let mut serving = JoinSet::new();
    serving.spawn(broker.serve());
    (address, retained, serving)
}

/// Bytes in, bytes out.
struct Raw(TcpStream);

impl Raw {
    async fn open(address: SocketAddr) -> Raw {
        Raw(soon(TcpStream::connect(address)).await.unwrap())
    }

    /// Connected with this id.
    async fn join(address: SocketAddr, id: &str) -> Raw {
        Raw::join_with(address, id, b"").await
    }

    /// With these properties of the CONNECT.
    async fn join_with(address: SocketAddr, id: &str, properties: &[u8]) -> Raw {
        let mut raw = Raw::open(address).await;
        let mut body = b"\0\x04MQTT\x05\x02\0\0".to_vec();
        body.push(properties.len() as u8);
        body.extend(properties);
        body.extend([0, id.len() as u8]);
        body.extend(id.as_bytes());
        raw.send(&[&[0x10, body.len() as u8], &body[..]].concat()).await;
        assert_eq!(raw.packet().await[..4], [0x20, raw_length(&LIMITS), 0, 0]);
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        soon(self.0.write_all(bytes)).await.unwrap();
    }

    async fn packet(&mut self) -> Vec<u8> {
        let mut packet = vec![0; 2];
        soon(self.0.read_exact(&mut packet)).await.unwrap();
        assert!(packet[1] < 0x80, "longer than these tests need");
        packet.resize(2 + usize::from(packet[1]), 0);
        soon(self.0.read_exact(&mut packet[2..])).await.unwrap();
        packet
    }

    /// What comes is exactly this.
    async fn gets(&mut self, expected: &[u8]) {
        let packet = self.packet().await;
        assert_eq!(packet, expected, "{} and not {}", packet.escape_ascii(), expected.escape_ascii());
    }

    /// A PINGREQ is answered, and by nothing else: so nothing else was on its way.
    async fn gets_nothing(&mut self) {
        self.send(b"\xc0\0").await;
        self.gets(b"\xd0\0").await;
    }

    async fn is_closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is as good as an orderly end.
        let _ = soon(self.0.read_to_end(&mut rest)).await;
        assert_eq!(rest, b"");
    }
}

/// Of every CONNACK: no packets over 256 KiB, neither subscription identifiers nor shared
/// subscriptions.
const LIMITS: [u8; 9] = [0x27, 0, 4, 0, 0, 0x29, 0, 0x2A, 0];

fn raw_length(limits: &[u8]) -> u8 {
    // Flags, reason, and the length of the properties.
    3 + limits.len() as u8
}

#[tokio::test]
async fn a_client_is_told_what_there_is_and_what_not() {
    let (address, _, _serving) = start().await;
    let mut raw = Raw::open(address).await;
    raw.send(b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01x").await;
    raw.gets(&[&[0x20, 12, 0, 0, 9], &LIMITS[..]].concat()).await;

    // An earlier session and one that lasts an hour are wanted: there is none, and will be none.
    let mut raw = Raw::open(address).await;
    raw.send(b"\x10\x13\0\x04MQTT\x05\0\0\x3c\x05\x11\0\0\x0e\x10\0\x01y").await;
    raw.gets(&[&[0x20, 17, 0, 0, 14, 0x11, 0, 0, 0, 0], &LIMITS[..]].concat()).await;

    // Without an id it is given one.
    let mut raw = Raw::open(address).await;
    raw.send(b"\x10\x0d\0\x04MQTT\x05\0\0\x3c\0\0\0").await;
    let accepted = raw.packet().await;
    assert_eq!(accepted[2..4], [0, 0]);
    assert!(accepted.windows(9).any(|bytes| bytes == b"nameless-"), "{}", accepted.escape_ascii());

    // Logging in by SCRAM is more than there is.
    let mut raw = Raw::open(address).await;
    raw.send(b"\x10\x16\0\x04MQTT\x05\x02\0\x3c\x08\x15\0\x05SCRAM\0\x01z").await;
    raw.gets(b"\x20\x03\0\x8c\0").await;
    raw.is_closed().await;
}

#[tokio::test]
async fn what_goes_along_with_a_message_reaches_who_speaks_5_and_the_rest_reaches_all() {
    let (address, retained, _serving) = start().await;
    let mut new = Raw::join(address, "new").await;
    new.send(b"\x82\x07\0\x01\0\0\x01#\x01").await;
    new.gets(b"\x90\x04\0\x01\0\x01").await;
    let mut old = Raw::open(address).await;
    old.send(b"\x10\x0f\0\x04MQTT\x04\x02\0\0\0\x03old\x82\x06\0\x01\0\x01#\x01").await;
    old.gets(b"\x20\x02\0\0").await;
    old.gets(b"\x90\x03\0\x01\x01").await;

    let mut writer = Raw::join(address, "writer").await;
    // Text, of use for an hour, content type, response topic, correlation data, two properties of
    // the user's.
    let properties = b"\x01\x01\x03\0\x01t\x08\0\x01r\x09\0\x02\0\xff\x26\0\x01k\0\x01v\x26\0\x01k\0\x01w";
    let expiry = b"\x02\0\0\x0e\x10";
    let publish = |first: u8, expiry: &[u8], properties: &[u8]| {
        let count = (expiry.len() + properties.len()) as u8;
        let head = [first, 3 + 2 + 1 + count + 2, 0, 1, b'a', 0, 1, count];
        [&head[..], expiry, properties, b"hi"].concat()
    };
    writer.send(&publish(0x33, properties, expiry)).await;
    writer.gets(b"\x40\x02\0\x01").await;
    new.gets(&publish(0x32, expiry, properties)).await;
    new.send(b"\x40\x02\0\x01").await;
    old.gets(b"\x32\x07\0\x01a\0\x01hi").await;
    assert_eq!(retained.get("a").unwrap(), b"hi");

    // And the other way round.
    old.send(b"\x30\x05\0\x01bho").await;
    new.gets(b"\x30\x06\0\x01b\0ho").await;
}

#[tokio::test]
async fn a_subscription_has_options() {
    let (address, _, _serving) = start().await;
    let mut client = Raw::join(address, "client").await;
    let publish = |topic: u8, payload: u8| [0x31, 5, 0, 1, topic, 0, payload];
    let [live, kept] =
        [0x30, 0x31].map(|first| move |topic: u8, payload: u8| [first, 5, 0, 1, topic, 0, payload]);
    let mut other = Raw::join(address, "other").await;
    other.send(&publish(b'a', b'1')).await;
    other.gets_nothing().await;

    // Retained messages: only with a new subscription (0x10), never (0x20), always (0).
    for (options, comes) in [(0x10, true), (0x10, false), (0x20, false), (0x00, true)] {
        client.send(&[0x82, 7, 0, 1, 0, 0, 1, b'a', options]).await;
        client.gets(b"\x90\x04\0\x01\0\0").await;
        if comes {
            client.gets(&kept(b'a', b'1')).await;
        }
        client.gets_nothing().await;
    }
    // The retain flag is for what was retained (0), or as published (8).
    for (options, as_published) in [(0x20, false), (0x28, true)] {
        client.send(&[0x82, 7, 0, 1, 0, 0, 1, b'a', options]).await;
        client.gets(b"\x90\x04\0\x01\0\0").await;
        other.send(&publish(b'a', b'2')).await;
        client.gets(&if as_published { kept(b'a', b'2') } else { live(b'a', b'2') }).await;
    }
    // What it publishes itself does not come back (4), now and later; by another filter it does.
    client.send(b"\x82\x07\0\x01\0\0\x01b\x04").await;
    client.gets(b"\x90\x04\0\x01\0\0").await;
    client.send(&publish(b'b', b'3')).await;
    client.gets_nothing().await;
    client.send(b"\x82\x07\0\x01\0\0\x01b\x04").await;
    client.gets(b"\x90\x04\0\x01\0\0").await;
    client.gets_nothing().await;
    other.send(&publish(b'b', b'4')).await;
    client.gets(&live(b'b', b'4')).await;
    client.send(b"\x82\x07\0\x01\0\0\x01+\x20").await;
    client.gets(b"\x90\x04\0\x01\0\0").await;
    client.send(&publish(b'b', b'5')).await;
    client.gets(&live(b'b', b'5')).await;
}

#[tokio::test]
async fn what_is_asked_for_and_not_there_has_a_reason() {
    let (address, _, _serving) = start().await;
    let mut client = Raw::join(address, "client").await;
    // A good filter with QoS 2, a shared one, and one that is no filter.
    client.send(b"\x82\x19\0\x07\0\0\x01a\x02\0\x0a$share/g/a\x00\0\x02a#\x00").await;
    client.gets(b"\x90\x06\0\x07\0\x01\x9e\x8f").await;
    // With a subscription identifier.
    client.send(b"\x82\x09\0\x08\x02\x0b\x05\0\x01b\x00").await;
    client.gets(b"\x90\x04\0\x08\0\xa1").await;
    client.send(b"\xa2\x09\0\x09\0\0\x01a\0\x01b").await;
    client.gets(b"\xb0\x05\0\x09\0\x00\x11").await;
    // Released, and never received.
    client.send(b"\x62\x02\0\x01").await;
    client.gets(b"\x70\x03\0\x01\x92").await;
    client.send(b"\x34\x07\0\x01q\0\x01\0.").await;
    client.gets(b"\x50\x02\0\x01").await;
    client.send(b"\x62\x04\0\x01\0\0").await;
    client.gets(b"\x70\x02\0\x01").await;
}

#[tokio::test]
async fn who_breaks_the_rules_is_told_which_and_disconnected() {
    let (address, _, _serving) = start().await;
    let cases: [(&[u8], u8); 17] = [
        (b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01x", 0x82), // a second CONNECT
        (b"\xf0\x02\x19\x00", 0x82),                          // AUTH, which nobody has begun
        (b"\x50\x02\0\x01", 0x82),                            // PUBREC, for nothing we have sent
        (b"\x30\x08\0\x01a\x03\x23\0\x01x", 0x94),            // a topic alias
        (b"\x30\x04\0\0\0x", 0x90),                           // no topic
        (b"\x30\x05\0\x01#\0x", 0x90),                        // a wildcard in it
        (b"\x32\x07\0\x01a\0\0\0x", 0x82),                    // packet id 0
        (b"\x36\x07\0\x01a\0\x01\0x", 0x81),                  // QoS 3
        (b"\x30\x05\0\x01a\x05x", 0x81),                      // properties longer than the packet
        (b"\x30\x09\0\x01a\x04\x01\0\x01\0x", 0x82),          // the same property twice
        (b"\x30\x09\0\x01a\x04\x08\0\x01+x", 0x82),           // a wildcard in the response topic
        (b"\x30\x0a\0\x01a\x05\x11\0\0\0\0x", 0x82),          // a property of other packets
        (b"\x82\x07\0\x01\0\0\x01a\x40", 0x81),               // reserved bits
        (b"\x82\x07\0\x01\0\0\x01a\x30", 0x82),               // retain handling 3
        (b"\x80\x07\0\x01\0\0\x01a\0", 0x81),                 // reserved flags
        (b"\x30\xff\xff\xff\x7f", 0x95),                      // 256 MiB
        (b"\x30\xff\xff\xff\xff", 0x81),                      // no length
    ];
    for (packet, reason) in cases {
        let mut client = Raw::join(address, "client").await;
        client.send(packet).await;
        client.gets(&[0xE0, 1, reason]).await;
        client.is_closed().await;
    }
    // Who comes with the same id takes over.
    let mut first = Raw::join(address, "same").await;
    let mut second = Raw::join(address, "same").await;
    first.gets(b"\xe0\x01\x8e").await;
    first.is_closed().await;
    second.gets_nothing().await;
    // A CONNECT with a mistake: a receive maximum of 0, and one that is cut off.
    for connect in
        [&b"\x10\x11\0\x04MQTT\x05\x02\0\x3c\x03\x21\0\0\0\x01x"[..], b"\x10\x0b\0\x04MQTT\x05\x02\0\x3c\x05"]
    {
        let mut raw = Raw::open(address).await;
        raw.send(connect).await;
        raw.is_closed().await;
    }
    // It keeps silent for longer than it has said.
    let mut silent = Raw::open(address).await;
    silent.send(b"\x10\x0e\0\x04MQTT\x05\x02\0\x01\0\0\x01s").await;
    silent.packet().await;
    silent.gets(b"\xe0\x01\x8d").await;
    silent.is_closed().await;
}

#[tokio::test]
async fn a_will_is_published_unless_the_client_takes_it_back() {
    let (address, retained, _serving) = start().await;
    let mut reader = Raw::join(address, "reader").await;
    reader.send(b"\x82\x07\0\x01\0\0\x01w\x08").await;
    reader.gets(b"\x90\x04\0\x01\0\0").await;
    // Retained, with a delay that no session is there to wait for, an expiry of 60 s and a property
    // of the user's.
    let connect = b"\x10\x28\0\x04MQTT\x05\x26\0\0\0\0\x01c\x11\x18\0\0\0\x0a\x02\0\0\0\x3c\x26\0\x01k\0\x01v\0\x01w\0\x03end";
    let will = b"\x31\x13\0\x01w\x0c\x02\0\0\0\x3c\x26\0\x01k\0\x01vend";
    let ways: [(&[u8], bool); 6] = [
        (b"", true),
        (b"\xe0\0", false),
        (b"\xe0\x01\x00", false),
        (b"\xe0\x02\x00\x00", false),
        (b"\xe0\x01\x04", true),
        (b"\xe0\x0b\x04\x09\x26\0\x01k\0\x03why", true),
    ];
    for (goodbye, comes) in ways {
        let mut client = Raw::open(address).await;
        client.send(connect).await;
        client.packet().await;
        client.send(goodbye).await;
        if goodbye.is_empty() {
            drop(client);
        } else {
            client.is_closed().await;
        }
        if comes {
            reader.gets(will).await;
        }
        reader.gets_nothing().await;
    }
    assert_eq!(retained.get("w").unwrap(), b"end");
}

#[tokio::test]
async fn nobody_gets_more_or_larger_messages_than_they_want() {
    let (address, _, _serving) = start().await;
    // A receive maximum of 2, and packets of up to 20 bytes.
    let mut client = Raw::join_with(address, "client", b"\x21\0\x02\x27\0\0\0\x14").await;
    client.send(b"\x82\x07\0\x01\0\0\x01#\x01").await;
    client.gets(b"\x90\x04\0\x01\0\x01").await;
    let mut writer = Raw::join(address, "writer").await;
    for number in *b"12345" {
        writer.send(&[0x33, 7, 0, 1, number, 0, 1, 0, number]).await;
        writer.gets(b"\x40\x02\0\x01").await;
    }
    writer.send(b"\x32\x15\0\x01x\0\x01\0fifteen bytes..").await;
    writer.gets(b"\x40\x02\0\x01").await;
    let message = |first: u8, id: u8, number: u8| [first, 7, 0, 1, number, 0, id, 0, number];
    client.gets(&message(0x32, 1, b'1')).await;
    client.gets(&message(0x32, 2, b'2')).await;
    client.gets_nothing().await;
    // An acknowledgement of nothing makes no room.
    client.send(b"\x40\x02\0\x09").await;
    client.gets_nothing().await;
    client.send(b"\x40\x04\0\x02\0\0").await;
    client.gets(&message(0x32, 3, b'3')).await;
    client.send(b"\x40\x02\0\x01\x40\x02\0\x03").await;
    client.gets(&message(0x32, 4, b'4')).await;
    client.gets(&message(0x32, 5, b'5')).await;
    client.send(b"\x40\x02\0\x04\x40\x02\0\x05").await;
    client.gets_nothing().await;
    // Retained ones wait likewise. Id 6 was for the message that was too large.
    client.send(b"\x82\x07\0\x01\0\0\x01+\x01").await;
    client.gets(b"\x90\x04\0\x01\0\x01").await;
    for (id, number) in (7..).zip(*b"12345") {
        client.gets(&message(0x33, id, number)).await;
        if id % 2 == 0 {
            client.gets_nothing().await;
            client.send(&[0x40, 2, 0, id - 1, 0x40, 2, 0, id]).await;
        }
    }
}

#[tokio::test]
async fn who_acknowledges_nothing_is_disconnected_when_too_much_waits() {
    let (address, _, _serving) = start().await;
    let mut client = Raw::join_with(address, "client", b"\x21\0\x01").await;
    client.send(b"\x82\x07\0\x01\0\0\x01#\x01").await;
    client.gets(b"\x90\x04\0\x01\0\x01").await;
    let mut writer = Raw::join(address, "writer").await;
    // 8192 bytes, of which the topic, packet id and properties' length are 6.
    let message = [&b"\x32\x80\x40\0\x01a\0\x01\0"[..], &[b'.'; 8186]].concat();
    for _ in 0..600 {
        writer.send(&message).await;
        writer.gets(b"\x40\x02\0\x01").await;
    }
    let mut first = vec![0; message.len()];
    soon(client.0.read_exact(&mut first)).await.unwrap();
    assert_eq!(first, message);
    client.gets(b"\xe0\x01\x97").await;
    client.is_closed().await;
}

#[tokio::test]
async fn what_has_expired_is_retained_no_longer() {
    let (address, retained, _serving) = start().await;
    let mut writer = Raw::join(address, "writer").await;
    writer.send(b"\x33\x0c\0\x01a\0\x01\x05\x02\0\0\0\x01x").await;
    writer.gets(b"\x40\x02\0\x01").await;
    writer.send(b"\x33\x0c\0\x01b\0\x01\x05\x02\0\0\x0e\x10x").await;
    writer.gets(b"\x40\x02\0\x01").await;
    let gone = async {
        while retained.get("a").is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(gone).await;
    assert_eq!(retained.snapshot().into_keys().collect::<Vec<_>>(), ["b"]);
    writer.send(b"\x82\x07\0\x01\0\0\x01#\0").await;
    writer.gets(b"\x90\x04\0\x01\0\0").await;
    let kept = writer.packet().await;
    // An hour, less what has gone by.
    let (head, rest) = kept.split_at(7);
    assert_eq!(head, b"\x31\x0a\0\x01b\x05\x02");
    let left = u32::from_be_bytes(rest[..4].try_into().unwrap());
    assert!((3500..3600).contains(&left), "{left}");
    writer.gets_nothing().await;
}

fn rumqtt(address: SocketAddr, id: &str) -> (AsyncClient, EventLoop) {
    AsyncClient::new(options(address, id), 10)
}

fn options(address: SocketAddr, id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(5));
    options
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

#[tokio::test]
async fn a_client_library_connects_subscribes_publishes_and_leaves_a_will() {
    let (address, retained, _serving) = start().await;
    let (reader, mut received) = rumqtt(address, "reader");
    let filter = Filter {
        preserve_retain: true,
        retain_forward_rule: RetainForwardRule::OnNewSubscribe,
        ..Filter::new("p/#", QoS::AtLeastOnce)
    };
    let code = until(&mut received, |packet| match packet {
        Packet::ConnAck(accepted) => {
            let limits = accepted.properties.unwrap();
            assert_eq!(
                (limits.subscription_identifiers_available, limits.shared_subscription_available),
                (Some(0), Some(0))
            );
            Some(accepted.code)
        }
        _ => None,
    });
    assert_eq!(code.await, ConnectReturnCode::Success);
    reader.subscribe_many([filter]).await.unwrap();
    until(&mut received, |packet| matches!(packet, Packet::SubAck(_)).then_some(())).await;

    let mut options = options(address, "writer");
    let properties = LastWillProperties { content_type: Some("text/plain".to_owned()), ..will_properties() };
    options.set_last_will(LastWill::new("p/will", "gone", QoS::AtLeastOnce, true, Some(properties)));
    let (writer, mut events) = AsyncClient::new(options, 10);
    let mine = PublishProperties {
        user_properties: vec![("unit".to_owned(), "V".to_owned())],
        content_type: Some("text/plain".to_owned()),
        ..PublishProperties::default()
    };
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        writer.publish_with_properties("p/voltage", qos, true, "13.2", mine.clone()).await.unwrap();
    }
    until(&mut events, |packet| matches!(packet, Packet::PubComp(_)).then_some(())).await;
    for _ in 0..3 {
        let message = until(&mut received, |packet| match packet {
            Packet::Publish(message) => Some(message),
            _ => None,
        });
        let message = message.await;
        assert_eq!(
            (&message.topic[..], &message.payload[..], message.retain),
            (&b"p/voltage"[..], &b"13.2"[..], true)
        );
        let properties = message.properties.unwrap();
        assert_eq!(
            (properties.user_properties, properties.content_type),
            (mine.user_properties.clone(), mine.content_type.clone())
        );
    }
    drop((writer, events));
    let will = until(&mut received, |packet| match packet {
        Packet::Publish(message) => Some(message),
        _ => None,
    });
    let will = will.await;
    assert_eq!(
        (&will.topic[..], will.properties.unwrap().content_type.as_deref()),
        (&b"p/will"[..], Some("text/plain"))
    );
    assert_eq!(retained.get("p/will").unwrap(), b"gone");
}

fn will_properties() -> LastWillProperties {
    LastWillProperties {
        delay_interval: None,
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    }
}
