//! Sessions with the broker, one after the other for ever: connect, say what should stand there, send what changes,
//! and say `offline` at the end.
//!
//! Two tasks: one polls the event loop and never waits for anything else, one decides what to send and may wait for a
//! slow broker. Each connection has a client of its own, so nothing of a dead session hangs the next.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ClientError, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions,
    NetworkOptions, Packet, Publish, QoS, StateError, SubscribeFilter, TlsConfiguration, TlsError, Transport,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::topics::{Message, Names, OFFLINE, ONLINE, PackName, Sent, wanted};
use crate::pack::state::PackState;

/// Requests that wait for the event loop; more are held back until it has sent some.
const QUEUE: usize = 32;
/// The largest packet either way: a config is about 1 KB, a foreign retained message may be anything.
const LARGEST_PACKET: usize = 256 * 1024;
/// How long retained messages of an earlier run may take to arrive after subscribing.
const READ_BACK: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Short, so that a broker that comes back has everything within seconds.
const RETRY: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(3)];

/// How the broker is reached.
pub struct Broker {
    pub host: String,
    pub port: u16,
    pub tls: Option<Tls>,
    pub login: Option<Login>,
    pub client_id: String,
    pub keep_alive: Duration,
    /// Where Home Assistant says `online` when it has started.
    pub birth_topic: String,
}

/// Files are read at every connection, so that renewed certificates and passwords are taken up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM; without it the system's certificate authorities are trusted.
    pub ca_file: Option<PathBuf>,
    pub client: Option<ClientFiles>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: Password,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    None,
    Text(String),
    File(PathBuf),
}

/// Never shows the password.
impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Password::None => f.write_str("no password"),
            Password::Text(_) => f.write_str("a password"),
            Password::File(path) => write!(f, "the password in {}", path.display()),
        }
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// A pack as it is published.
pub struct Feed {
    pub name: PackName,
    /// Where its one-line JSON goes at every poll.
    pub json_topic: Option<String>,
}

pub struct Publisher {
    pub broker: Broker,
    pub names: Names,
    /// In the order of the states.
    pub feeds: Vec<Feed>,
    /// Packs of earlier configurations, whose leftovers are removed.
    pub former: Vec<String>,
}

/// The states of all packs. Closed when none will come any more: then it is time to say `offline`.
pub type States = watch::Receiver<Vec<PackState>>;

impl Publisher {
    /// Publishes until the states are closed.
    pub async fn run(&self, mut states: States) {
        let mut failures = 0;
        let mut last_reason = String::new();
        loop {
            let reason = match self.session(&mut states, &mut failures).await {
                Ok(()) => return,
                Err(reason) => reason,
            };
            let pause = RETRY[RETRY.len().min(failures + 1) - 1];
            failures += 1;
            if reason == last_reason && failures > 1 {
                debug!("{}: {reason}", self.broker);
            } else {
                warn!("{}: {reason}; trying again until it works", self.broker);
                last_reason = reason;
            }
            let over = Instant::now() + pause;
            while tokio::select! {
                changed = states.changed() => changed.is_ok(),
                () = sleep_until(over) => false,
            } {}
            if states.has_changed().is_err() {
                return;
            }
        }
    }

    /// One connection: `Ok` when the states were closed, else why it ended. Sets `failures` to 0 once connected.
    async fn session(&self, states: &mut States, failures: &mut usize) -> Result<(), String> {
        let (client, event_loop) = self.connect()?;
        let (sender, mut events) = mpsc::unbounded_channel();
        let _pump = AbortOnDrop(tokio::spawn(pump(event_loop, sender)));
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Happened::Connected) => break,
                    Some(Happened::Ended(error)) => return Err(self.explain(&error)),
                    Some(_) => {}
                    None => return Err("the connection ended".to_owned()),
                },
                changed = states.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
        *failures = 0;
        info!("connected to {}", self.broker);
        let mut session = Session::new(&client, self);
        let outcome = session.run(&mut events, states).await;
        match outcome {
            Ok(()) => {
                // What was queued before goes out before the DISCONNECT, after which the broker forgets the will and
                // closes. Closing first, with an acknowledgement unread, would be a reset: the broker may then not
                // read what was still on its way. If the event loop has ended, the will says it.
                if client.disconnect().await.is_ok() {
                    while !matches!(events.recv().await, None | Some(Happened::Ended(_))) {}
                }
                Ok(())
            }
            Err(Some(error)) => Err(self.explain(&error)),
            Err(None) => Err("the connection ended".to_owned()),
        }
    }

    fn connect(&self) -> Result<(AsyncClient, EventLoop), String> {
        let broker = &self.broker;
        let mut options = MqttOptions::new(&broker.client_id, &broker.host, broker.port);
        options.set_keep_alive(broker.keep_alive);
        options.set_max_packet_size(LARGEST_PACKET, LARGEST_PACKET);
        let will_topic = self.names.bridge_availability();
        options.set_last_will(LastWill::new(will_topic, OFFLINE, QoS::AtLeastOnce, true));
        if let Some(Login { username, password }) = &broker.login {
            options.set_credentials(username, password.read()?);
        }
        if let Some(tls) = &broker.tls {
            let tls = TlsConfiguration::Rustls(Arc::new(tls.client_config()?));
            options.set_transport(Transport::Tls(tls));
        }
        let (client, mut event_loop) = AsyncClient::new(options, QUEUE);
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        // Values are many small packets: waiting to fill larger ones would hold each back for 40 ms.
        network.set_tcp_nodelay(true);
        event_loop.set_network_options(network);
        Ok((client, event_loop))
    }

    /// What happened, and what to do, for the log.
    fn explain(&self, error: &ConnectionError) -> String {
        // Wherever it happened: a broker that dislikes our certificate says so after the handshake only.
        if let Some(error) = cause::<rustls::Error>(error) {
            return format!("TLS: {}", self.explain_tls(error));
        }
        match error {
            ConnectionError::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "connection refused; is the broker running, and is this its port?".to_owned()
            }
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
            ) => match &self.broker.login {
                Some(login) => format!(
                    "the broker refuses user \"{}\" with {:?}; check mqtt.username and mqtt.password",
                    login.username, login.password
                ),
                None => "the broker wants a user; give mqtt.username and mqtt.password".to_owned(),
            },
            ConnectionError::ConnectionRefused(code) => {
                format!("the broker refuses the connection: {code:?}")
            }
            ConnectionError::NetworkTimeout => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            ConnectionError::MqttState(StateError::AwaitPingResp) => {
                "the broker does not answer any more".to_owned()
            }
            ConnectionError::Tls(TlsError::Io(error)) => {
                format!("TLS: {error}; check that mqtt.url has the broker's port for TLS")
            }
            ConnectionError::Tls(TlsError::DNSName(_)) => {
                format!("TLS: {} is no name for a certificate; write another in mqtt.url", self.broker.host)
            }
            other => cause::<io::Error>(other).map_or_else(|| other.to_string(), ToString::to_string),
        }
    }

    fn explain_tls(&self, error: &rustls::Error) -> String {
        use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
        let client = self.broker.tls.as_ref().and_then(|tls| tls.client.as_ref());
        let what = match (error, client) {
            (InvalidCertificate(error), _) => return self.explain_certificate(error),
            (AlertReceived(AlertDescription::CertificateRequired), None) => {
                "the broker wants a client certificate; give mqtt.cert_file and mqtt.key_file"
            }
            // TLS 1.2 has no alert of its own for it.
            (AlertReceived(AlertDescription::HandshakeFailure), None) => {
                "the broker breaks off; if it wants a client certificate, give mqtt.cert_file and mqtt.key_file"
            }
            (AlertReceived(AlertDescription::UnknownCA), Some(_)) => {
                "the broker does not know the authority of our certificate; check mqtt.cert_file"
            }
            (AlertReceived(AlertDescription::CertificateExpired), Some(_)) => {
                "our certificate has expired; renew mqtt.cert_file"
            }
            (InvalidMessage(_), _) => "no TLS there; check that mqtt.url has the broker's port for TLS",
            (other, _) => return other.to_string(),
        };
        what.to_owned()
    }

    fn explain_certificate(&self, error: &CertificateError) -> String {
        let host = &self.broker.host;
        let what = match error {
            // An authority made anew with the same name is known, but did not sign.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                return match self.broker.tls.as_ref().and_then(|tls| tls.ca_file.as_ref()) {
                    Some(path) => format!(
                        "the broker's certificate is from an authority that is not in {}; check mqtt.ca_file",
                        path.display()
                    ),
                    None => "the broker's certificate is from an authority that this system does not know; \
                             give mqtt.ca_file"
                        .to_owned(),
                };
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the broker's certificate has expired; renew it, or correct this machine's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the broker's certificate is not valid yet; check this machine's clock"
            }
            CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
                return format!("the broker's certificate is for no host; give it the subjectAltName {host}");
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                // Written as `DnsName("localhost")` and `IpAddress(127.0.0.1)`.
                let bare = |name: &String| {
                    let name = name.split_once('(').map_or(name.as_str(), |(_, name)| name);
                    name.trim_matches(['"', ')']).to_owned()
                };
                let names: Vec<String> = presented.iter().map(bare).collect();
                let names = names.join(", ");
                return format!(
                    "the broker's certificate is not for {host} but for {names}; write one of these in mqtt.url"
                );
            }
            // An error of webpki's, of which there is only the name.
            CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
                "the broker's certificate is that of an authority; let this issue one for the broker"
            }
            other => return format!("the broker's certificate: {other}"),
        };
        what.to_owned()
    }
}

/// The first of the errors behind this one that is of this kind.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error is made of is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

impl Password {
    fn read(&self) -> Result<String, String> {
        match self {
            Password::None => Ok(String::new()),
            Password::Text(text) => Ok(text.clone()),
            Password::File(path) => {
                let text = fs::read_to_string(path);
                let text = text.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }
}

impl Tls {
    /// # Errors
    /// When a file cannot be read, or holds no certificate or key: which, and why.
    pub fn client_config(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                for certificate in certificates(path)? {
                    let added = roots.add(certificate);
                    added.map_err(|error| {
                        format!("{}: not a certificate authority: {error}", path.display())
                    })?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    return Err("this system has no certificate authorities; give mqtt.ca_file".to_owned());
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let Some(ClientFiles { cert_file, key_file }) = &self.client else {
            return Ok(config.with_no_client_auth());
        };
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|error| format!("{}: no private key: {error}", key_file.display()))?;
        config
            .with_client_auth_cert(certificates(cert_file)?, key)
            .map_err(|error| format!("{} and {}: {error}", cert_file.display(), key_file.display()))
    }
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: no certificate: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("{}: no certificate in it", path.display()));
    }
    Ok(certificates)
}

/// What the publisher needs to know of the event loop.
enum Happened {
    Connected,
    Received(Publish),
    /// Also by the broker's closing after our own DISCONNECT.
    Ended(Box<ConnectionError>),
}

/// Polls the event loop and waits for nothing else: the channel is unbounded because what comes in is only what is
/// subscribed, and waiting here would stop the very loop that lets the other task go on.
async fn pump(mut event_loop: EventLoop, happened: mpsc::UnboundedSender<Happened>) {
    loop {
        let what = match event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => Happened::Connected,
            Ok(Event::Incoming(Packet::Publish(publish))) => Happened::Received(publish),
            Ok(_) => continue,
            Err(error) => Happened::Ended(Box::new(error)),
        };
        let ended = matches!(what, Happened::Ended(_));
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
    sent: Sent,
    /// The poll whose line was published last, for each feed.
    lines: Vec<Option<u64>>,
    /// Subscribed to only while retained messages of an earlier run come in.
    read_back: Vec<String>,
}

/// Why a session ends that was not stopped: the event loop's error, where it had one.
type Lost = Option<Box<ConnectionError>>;

impl<'a> Session<'a> {
    fn new(client: &'a AsyncClient, publisher: &'a Publisher) -> Session<'a> {
        Session {
            client,
            names: &publisher.names,
            feeds: &publisher.feeds,
            former: &publisher.former,
            birth_topic: &publisher.broker.birth_topic,
            sent: Sent::default(),
            lines: vec![None; publisher.feeds.len()],
            read_back: Vec::new(),
        }
    }

    /// Runs until the states are closed and everything is said, or the connection is lost.
    async fn run(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Happened>,
        states: &mut States,
    ) -> Result<(), Lost> {
        let outcome = self.run_until_closed(events, states).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(Failed::Lost(lost)) => Err(lost),
            // The event loop ended while something was handed to it: it has said why.
            Err(Failed::Client) => loop {
                match events.recv().await {
                    Some(Happened::Ended(error)) => return Err(Some(error)),
                    Some(_) => {}
                    None => return Err(None),
                }
            },
        }
    }

    async fn run_until_closed(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Happened>,
        states: &mut States,
    ) -> Result<(), Failed> {
        let mut filters: Vec<String> = self.names.own_filters().into();
        for pack in self.feeds.iter().map(|feed| &feed.name.id).chain(self.former) {
            filters.extend(self.names.leftover_filters(pack));
        }
        // For as long as the connection lasts: Home Assistant's birth, and whether somebody wipes our packs.
        let own = self.feeds.iter().map(|feed| self.names.availability(&feed.name.id));
        let lasting = own.chain([self.birth_topic.to_owned()]);
        let lasting = lasting.map(|topic| SubscribeFilter::new(topic, QoS::AtMostOnce));
        self.client.subscribe_many(lasting).await?;
        self.read_back(filters).await?;
        let read_back_over = Instant::now() + READ_BACK;
        let mut changed = true;
        loop {
            let closed = states.has_changed().is_err();
            if changed || closed {
                self.send_changes(states, closed).await?;
            }
            if closed {
                return Ok(());
            }
            changed = tokio::select! {
                Some(event) = events.recv() => {
                    let mut changed = self.happened(event).await?;
                    // A burst of retained messages is one occasion to look at what has changed.
                    while let Ok(event) = events.try_recv() {
                        changed |= self.happened(event).await?;
                    }
                    changed
                }
                _ = states.changed() => true,
                () = sleep_until(read_back_over), if !self.read_back.is_empty() => {
                    for filter in std::mem::take(&mut self.read_back) {
                        self.client.unsubscribe(filter).await?;
                    }
                    false
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
    async fn happened(&mut self, event: Happened) -> Result<bool, Failed> {
        let publish = match event {
            Happened::Ended(error) => return Err(Failed::Lost(Some(error))),
            Happened::Connected => return Ok(false),
            Happened::Received(publish) => publish,
        };
        if publish.topic == self.birth_topic {
            let born = publish.payload == ONLINE.as_bytes();
            if born {
                info!("Home Assistant has started: announcing everything again");
                self.sent.forget_payloads();
            }
            return Ok(born);
        }
        let Some(pack) = self.names.pack_of(&publish.topic) else {
            return Ok(false);
        };
        let ours = self.feeds.iter().any(|feed| feed.name.id == pack);
        if !publish.retain {
            // Mostly our own message that comes back. But somebody may have emptied the broker, or another bridge
            // may have taken this pack for a leftover of its own.
            let wiped = ours && publish.payload.is_empty() && publish.topic == self.names.availability(pack);
            if wiped {
                warn!("somebody has removed the topics of pack {pack}: announcing everything again");
                self.sent.forget_payloads();
            }
            return Ok(wiped);
        }
        let known = ours
            || pack == self.names.bridge_id()
            || self.former.iter().any(|former| former == pack)
            || self.read_back.contains(&self.names.leftover_filters(pack)[0]);
        if !known {
            if publish.payload == ONLINE.as_bytes() {
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
        self.sent.found(publish.topic);
        Ok(true)
    }

    async fn send_changes(&mut self, states: &mut States, stopping: bool) -> Result<(), ClientError> {
        let (messages, lines) = {
            let states = states.borrow_and_update();
            let packs: Vec<(&PackName, &PackState)> =
                self.feeds.iter().map(|feed| &feed.name).zip(states.iter()).collect();
            let messages = self.sent.difference(self.names, wanted(self.names, &packs, stopping));
            (messages, new_lines(self.feeds, &states, &mut self.lines))
        };
        for Message { topic, payload, confirmed } in messages {
            let qos = if confirmed { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            self.client.publish(topic, qos, true, payload).await?;
        }
        for (topic, line) in lines {
            self.client.publish(topic, QoS::AtMostOnce, false, line).await?;
        }
        Ok(())
    }
}

/// The one-line JSON of each poll since the last call: said once and not retained, as `smart_bms` does.
fn new_lines(feeds: &[Feed], states: &[PackState], last: &mut [Option<u64>]) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for ((feed, state), last) in feeds.iter().zip(states).zip(last) {
        if let (Some(topic), Some(line)) = (&feed.json_topic, &state.json_line) {
            if last.replace(line.poll) != Some(line.poll) {
                lines.push((topic.clone(), line.text.clone()));
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
