//! The broker, what counts the packets on the way to it, and who waits for values behind it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bms2mqtt::mqtt::broker;
use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{Connect, Packet, Publish, Subscribe};
use rumqttc::mqttbytes::{Error, QoS, check};

use crate::machine::{Process, Result, Scratch, Worker, wait_for};
use crate::support::mosquitto;

/// Mosquitto where it is installed, else the small broker; with nothing in it.
pub struct Broker {
    pub address: SocketAddr,
    _runs: Runs,
}

#[expect(dead_code, reason = "kept for their end")]
enum Runs {
    Mosquitto(Process, Scratch),
    Small(Worker),
}

impl Broker {
    pub fn start() -> Result<Broker> {
        let Some(mosquitto) = mosquitto() else {
            let (address, worker) = Worker::start(async || {
                let broker = broker::Broker::bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
                Ok((broker.address()?, broker.serve()))
            })?;
            return Ok(Broker { address, _runs: Runs::Small(worker) });
        };
        let directory = Scratch::new();
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = directory.path().join("mosquitto.conf");
        let port = address.port();
        fs::write(
            &config,
            format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n"),
        )?;
        let log = File::create(directory.path().join("log"))?;
        let process = Process::start(Command::new(mosquitto).arg("-c").arg(config).stderr(log))?;
        wait_for("Mosquitto to listen", || TcpStream::connect(address).ok())?;
        Ok(Broker { address, _runs: Runs::Mosquitto(process, directory) })
    }
}

/// What a client has sent, pings not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

impl Traffic {
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic { packets: self.packets - before.packets, bytes: self.bytes - before.bytes }
    }
}

#[derive(Default)]
struct Counted {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// Reads the counts of one [`Proxy`].
#[derive(Clone)]
pub struct Meter(Arc<Counted>);

impl Meter {
    pub fn sent(&self) -> Traffic {
        Traffic {
            packets: self.0.packets.load(Ordering::Relaxed),
            bytes: self.0.bytes.load(Ordering::Relaxed),
        }
    }
}

/// One connection to the broker.
pub struct Proxy {
    pub address: SocketAddr,
    pub meter: Meter,
}

impl Proxy {
    pub fn start(broker: SocketAddr) -> Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let meter = Meter(Arc::default());
        let count = Arc::clone(&meter.0);
        // Both threads end with the connection, whose ends see what has become of it.
        thread::spawn(move || -> io::Result<()> {
            let (client, _) = listener.accept()?;
            let broker = TcpStream::connect(broker)?;
            client.set_nodelay(true)?;
            broker.set_nodelay(true)?;
            let (mut answers, mut to_client) = (broker.try_clone()?, client.try_clone()?);
            thread::spawn(move || io::copy(&mut answers, &mut to_client));
            pass_on(client, broker, &count)
        });
        Ok(Proxy { address, meter })
    }
}

fn pass_on(mut client: TcpStream, mut broker: TcpStream, count: &Counted) -> io::Result<()> {
    const PINGREQ: u8 = 0xC0;

    let (mut pending, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let length = client.read(&mut chunk)?;
        if length == 0 {
            return broker.shutdown(Shutdown::Write);
        }
        // Counted first: who sees what it brings about sees it counted.
        pending.extend(&chunk[..length]);
        while let Ok(header) = check(pending.iter(), usize::MAX) {
            let packet: Vec<u8> = pending.drain(..header.frame_length()).collect();
            if packet[0] != PINGREQ {
                count.packets.fetch_add(1, Ordering::Relaxed);
                count.bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
            }
        }
        broker.write_all(&chunk[..length])?;
    }
}

/// A message, and when it was read.
pub struct Arrival {
    pub at: Instant,
    pub topic: String,
    pub payload: String,
}

/// Waits for values on a thread of its own, which blocks and does nothing else.
pub struct Subscriber {
    pub arrivals: Receiver<Arrival>,
    connection: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Subscriber {
    pub fn start(broker: SocketAddr, topics: &[&str]) -> Result<Subscriber> {
        let mut connection = connect(broker, "subscriber")?;
        let mut packet = BytesMut::new();
        let mut subscribe = Subscribe::new_many([]);
        subscribe.pkid = 1;
        for topic in topics {
            subscribe.add((*topic).to_owned(), QoS::AtMostOnce);
        }
        subscribe.write(&mut packet)?;
        connection.write_all(&packet)?;
        let mut buffer = BytesMut::new();
        read_packet(&mut connection, &mut buffer, |packet| matches!(packet, Packet::SubAck(_)))?;
        connection.set_read_timeout(None)?;
        let (tell, arrivals) = mpsc::channel();
        let mut stream = connection.try_clone()?;
        let thread = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut chunk) {
                let at = Instant::now();
                buffer.extend_from_slice(&chunk[..length]);
                while let Ok(packet) = Packet::read(&mut buffer, usize::MAX) {
                    let Packet::Publish(Publish { topic, payload, .. }) = packet else { continue };
                    let payload = String::from_utf8_lossy(&payload).into_owned();
                    if tell.send(Arrival { at, topic, payload }).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Subscriber { arrivals, connection, thread: Some(thread) })
    }

    pub fn wait(&self, what: &str, wanted: impl Fn(&Arrival) -> bool) -> Result<Arrival> {
        loop {
            let arrival = self.arrivals.recv_timeout(Duration::from_secs(10));
            let arrival = arrival.map_err(|_| format!("waited in vain for {what}"))?;
            if wanted(&arrival) {
                return Ok(arrival);
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.connection.shutdown(Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Sends one prepared packet again and again: nothing can publish faster.
pub struct RawPublisher {
    connection: TcpStream,
    packet: BytesMut,
}

impl RawPublisher {
    pub fn start(broker: SocketAddr, topic: &str, payload: &str) -> Result<RawPublisher> {
        let connection = connect(broker, "publisher")?;
        let mut publish = Publish::new(topic, QoS::AtMostOnce, payload);
        publish.retain = true;
        let mut packet = BytesMut::new();
        publish.write(&mut packet)?;
        Ok(RawPublisher { connection, packet })
    }

    pub fn publish(&mut self) -> io::Result<()> {
        self.connection.write_all(&self.packet)
    }
}

/// A session that is never pinged: the keep-alive is 0.
fn connect(broker: SocketAddr, id: &str) -> Result<TcpStream> {
    let mut connection = TcpStream::connect(broker)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut connect, mut packet) = (Connect::new(id), BytesMut::new());
    connect.keep_alive = 0;
    connect.write(&mut packet)?;
    connection.write_all(&packet)?;
    read_packet(&mut connection, &mut BytesMut::new(), |packet| matches!(packet, Packet::ConnAck(_)))?;
    Ok(connection)
}

fn read_packet(
    connection: &mut TcpStream,
    buffer: &mut BytesMut,
    wanted: impl Fn(&Packet) -> bool,
) -> Result<()> {
    let mut chunk = [0; 4096];
    loop {
        match Packet::read(buffer, usize::MAX) {
            Ok(packet) if wanted(&packet) => return Ok(()),
            Ok(_) => {}
            Err(Error::InsufficientBytes(_)) => match connection.read(&mut chunk)? {
                0 => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                length => buffer.extend_from_slice(&chunk[..length]),
            },
            Err(error) => return Err(error.into()),
        }
    }
}
