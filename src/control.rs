//! The socket of a running bridge, where the same program asks it: is it well, is it alive, what
//! did it read?
//!
//! A client sends one line, gets one response, and the connection ends. Both sides cope with an
//! older one at the other end: a client that says nothing gets the report on health, and a bridge
//! that never reads answers with it.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write as _};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::health::{self, Expected};
use crate::hub::{Action, Hub, Refusal};
use crate::json_line::json_line;

/// More clients than these wait until one has ended.
const MOST_CLIENTS: usize = 32;
/// How long a client may take to say what it wants. One that says nothing is of an older version,
/// and waits.
const SILENCE: Duration = Duration::from_millis(250);
/// How long a client may be connected in all.
const LONGEST_CLIENT: Duration = Duration::from_secs(4);
/// How long a poll may take before the last one must do.
const FRESH_POLL: Duration = Duration::from_secs(2);
/// How long a client waits for the bridge to say something.
const PATIENCE: Duration = Duration::from_secs(4);
const LONGEST_REQUEST: usize = 64;
/// No report is nearly as long.
const LONGEST_RESPONSE: u64 = 1 << 20;
/// The first line of the report when all is well, and the end of the first line when not.
const WELL: &str = "healthy";
/// The first line of what is said of being alive, likewise.
const ALIVE: &str = "alive";
/// The first line of a response with the packs' lines of JSON.
const LINES: &str = "lines";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Was every pack read and the broker reached lately?
    Health,
    /// Do its tasks make progress?
    Alive,
    /// The one-line JSON of a poll of each pack.
    Once,
}

impl Request {
    const ALL: [Request; 3] = [Request::Health, Request::Alive, Request::Once];

    const fn word(self) -> &'static str {
        match self {
            Request::Health => "health",
            Request::Alive => "alive",
            Request::Once => "once",
        }
    }
}

/// What the bridge has to say.
pub struct Control {
    pub hub: Arc<Hub>,
    /// In the order of the states.
    pub packs: Vec<Expected>,
    /// Of the packs, in the same order.
    pub ports: Vec<String>,
}

impl Control {
    /// Serves for ever.
    pub async fn serve(self, address: SocketAddr) {
        let listener = StdUnixListener::bind_addr(&address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                warn!("`bms2mqtt health` and `--once` will not reach this bridge: {error}");
                return;
            }
        };
        let control = Arc::new(self);
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if clients.len() < MOST_CLIENTS => match accepted {
                    Ok((client, _)) => {
                        let control = Arc::clone(&control);
                        clients.spawn(async move {
                            // A client that is gone, or does not read, has no use for a response.
                            let _ = timeout(LONGEST_CLIENT, control.respond(client)).await;
                        });
                    }
                    Err(error) => {
                        debug!("no connection at the control socket: {error}");
                        // Out of file descriptors, most likely: trying again at once would only
                        // spin.
                        sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }

    async fn respond(&self, mut client: UnixStream) -> io::Result<()> {
        let response = match timeout(SILENCE, request(&mut client)).await.ok().flatten() {
            Some(Request::Once) if !may_read(client.peer_cred()?.uid(), geteuid().as_raw()) => {
                "refused: only root and the bridge's own user may know\n".to_owned()
            }
            Some(Request::Once) => self.lines().await,
            Some(Request::Alive) => self.alive(),
            Some(Request::Health) | None => {
                let (well, lines) = self.report();
                format!("{}{WELL}\n{lines}", if well { "" } else { "not " })
            }
        };
        client.write_all(response.as_bytes()).await
    }

    fn report(&self) -> (bool, String) {
        let Control { hub, packs, .. } = self;
        hub.look(|states| health::report(packs, states, hub.broker(), hub.uptime()))
    }

    fn alive(&self) -> String {
        let Control { hub, packs, .. } = self;
        let (_, lines) = self.report();
        match hub.look(|states| health::stuck(packs, states, hub.broker(), hub.uptime())) {
            None => format!("{ALIVE}\n{lines}"),
            Some(who) => format!("not {ALIVE}: {who} makes no progress\n{lines}"),
        }
    }

    /// Each pack's port and line.
    async fn lines(&self) -> String {
        let mut polls = JoinSet::new();
        for pack in 0..self.packs.len() {
            let hub = Arc::clone(&self.hub);
            polls.spawn(async move { (pack, timeout(FRESH_POLL, hub.command(pack, Action::Poll)).await) });
        }
        let outcomes = polls.join_all().await;
        let is_silent = |pack| outcomes.contains(&(pack, Ok(Err(Refusal::Offline))));
        let uptime = self.hub.uptime();
        self.hub.look(|states| {
            let mut response = format!("{LINES}\n");
            let packs = states.iter().zip(&self.packs).zip(&self.ports).enumerate();
            for (index, ((state, pack), port)) in packs {
                // A poll that takes long, or that had to wait for others, leaves the last one.
                let fresh = pack.interval * 2 + FRESH_POLL;
                let is_fresh = state.last_poll.read.is_some_and(|read| uptime.saturating_sub(read) <= fresh);
                let holds = state.answering == Some(true) && is_fresh && !is_silent(index);
                // Writing to a String cannot fail.
                let _ = writeln!(response, "{port} {}", json_line(state.reading.as_ref().filter(|_| holds)));
            }
            response
        })
    }
}

/// What the client wants; `None` if that is nothing we know.
async fn request(client: &mut UnixStream) -> Option<Request> {
    let mut line = [0; LONGEST_REQUEST];
    let mut length = 0;
    while !line[..length].contains(&b'\n') && length < line.len() {
        match client.read(&mut line[length..]).await {
            Ok(0) | Err(_) => break,
            Ok(count) => length += count,
        }
    }
    let word = line[..length].split(|&byte| byte == b'\n').next()?;
    Request::ALL.into_iter().find(|request| request.word().as_bytes() == word)
}

fn may_read(client: u32, own: u32) -> bool {
    client == own || client == 0
}

/// Where the bridge is asked that is told from others by this: a name that needs no file, so that
/// it works on a read-only root and is gone with the bridge.
///
/// # Errors
/// When the system does not take the name.
pub fn address(identity: impl Hash) -> io::Result<SocketAddr> {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    SocketAddr::from_abstract_name(format!("bms2mqtt-{:016x}", hasher.finish()))
}

/// What the bridge at this address says, and whether that is good.
///
/// # Errors
/// `ConnectionRefused` when there is no bridge, and others when it does not answer within seconds.
pub fn ask(address: &SocketAddr, what: Request) -> io::Result<(bool, String)> {
    let mut bridge = StdUnixStream::connect_addr(address)?;
    bridge.set_read_timeout(Some(PATIENCE))?;
    bridge.set_write_timeout(Some(PATIENCE))?;
    // An older bridge may have said its say and closed already; that can be read all the same, up
    // to a reset.
    let _ = writeln!(bridge, "{}", what.word());
    let mut response = Vec::new();
    match bridge.take(LONGEST_RESPONSE).read_to_end(&mut response) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !response.is_empty() => {}
        outcome => drop(outcome?),
    }
    let response = String::from_utf8_lossy(&response).into_owned();
    let first = response.lines().next();
    let good = match what {
        Request::Health => first == Some(WELL),
        // One that knows only of health is alive if it says anything of it.
        Request::Alive => first == Some(ALIVE) || first.is_some_and(|first| first.ends_with(WELL)),
        Request::Once => first == Some(LINES),
    };
    Ok((good, response))
}

/// From the response to [`Request::Once`]: the line of each of these ports. `None` if the bridge
/// has others.
pub fn lines_of<'a>(response: &'a str, ports: &[String]) -> Option<Vec<&'a str>> {
    let told = response.lines().skip(1);
    let same_number = told.clone().count() == ports.len();
    let line = |(port, told): (&String, &'a str)| told.strip_prefix(port.as_str())?.strip_prefix(' ');
    ports.iter().zip(told).map(line).collect::<Option<_>>().filter(|_| same_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_for_the_own_user_and_root() {
        for (client, own, may) in [(1000, 1000, true), (0, 1000, true), (1000, 0, false), (1000, 1001, false)]
        {
            assert_eq!(may_read(client, own), may, "{client} {own}");
        }
    }

    #[test]
    fn lines_are_those_of_the_ports_that_were_asked_for() {
        let response = "lines\n/dev/ttyUSB0 {\"a\":1}\ntcp://[::1]:2000 {}\n";
        let lines = |ports: &[&str]| {
            let ports: Vec<String> = ports.iter().map(|&port| port.to_owned()).collect();
            lines_of(response, &ports)
        };
        assert_eq!(lines(&["/dev/ttyUSB0", "tcp://[::1]:2000"]), Some(vec![r#"{"a":1}"#, "{}"]));
        for others in [&["/dev/ttyUSB0"][..], &["/dev/ttyUSB", "tcp://[::1]:2000"], &["/dev/ttyUSB0"; 3], &[]]
        {
            assert_eq!(lines(others), None, "{others:?}");
        }
    }
}
