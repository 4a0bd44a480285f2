//! An address → an open stream of bytes: a serial port or a TCP socket.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
#[allow(deprecated)]
use nix::fcntl::{FlockArg, flock};
use nix::sys::stat::major;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_serial::{ErrorKind, SerialStream};

use crate::blocking;

/// Both ends of a link are the same to the board: bytes in, bytes out.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub type Link = Box<dyn Stream>;

/// How long a TCP peer may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long things take on a link. A wire, a gateway and a dongle differ here and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a board may take to begin its response.
    pub first_byte: Duration,
    /// How long the line may pause inside a response.
    pub pause: Duration,
    /// How long one response may take in all, so that a line that babbles for ever is not listened to for ever.
    pub whole_response: Duration,
    /// How often a request is sent before it counts as not answered.
    pub tries: u32,
    /// How often a link that is not there is tried at most, however short the interval.
    pub reopen: Duration,
}

impl Timing {
    /// Boards begin within 100 ms, and adapters hand bytes on in lumps. A sleeping board loses the request that wakes it
    /// (V11), a noisy line loses another.
    pub const SERIAL: Timing = Timing {
        first_byte: Duration::from_millis(500),
        pause: Duration::from_millis(200),
        whole_response: Duration::from_secs(2),
        tries: 3,
        reopen: Duration::from_millis(200),
    };
    /// A gateway adds its own delays, within what a wire is given anyway.
    pub const TCP: Timing = Timing::SERIAL;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Serial {
        path: String,
        baud: u32,
    },
    /// `host:port`, the host a name, an IPv4 address or an IPv6 address in brackets.
    Tcp {
        peer: String,
    },
}

impl Address {
    pub const fn timing(&self) -> Timing {
        match self {
            Address::Serial { .. } => Timing::SERIAL,
            Address::Tcp { .. } => Timing::TCP,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Serial { path, .. } => f.write_str(path),
            Address::Tcp { peer } => write!(f, "tcp://{peer}"),
        }
    }
}

/// Why a link could not be opened: what happened, and what to do.
#[derive(Debug)]
pub struct OpenError {
    address: Address,
    reason: String,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open {}: {}", self.address, self.reason)
    }
}

impl std::error::Error for OpenError {}

/// What is told of a port that another program has.
const USED: &str = "another program uses this port; a port has one user";

impl OpenError {
    /// Does another program have the port?
    pub fn port_is_taken(&self) -> bool {
        self.reason.starts_with(USED)
    }
}

/// Opens the address; a serial port with 8 data bits, no parity, 1 stop bit, locked against other programs.
///
/// # Errors
/// When it cannot be opened now. Every cause can pass (an adapter is plugged in, a program ends), so
/// trying again later by the same address is always right.
pub async fn open(address: &Address) -> Result<Link, OpenError> {
    let opened = match address {
        Address::Serial { path, baud } => open_serial(path, *baud).map(|port| Box::new(port) as Link),
        Address::Tcp { peer } => open_tcp(peer).await.map(|socket| Box::new(socket) as Link),
    };
    opened.map_err(|reason| OpenError { address: address.clone(), reason })
}

/// Locked twice against other programs. `flock` keeps out who looks at it, another bridge, picocom
/// or tio, and root too; `TIOCEXCL` keeps out who looks at nothing, such as minicom, stty or a
/// script, unless it is root. The kernel drops both when a port is closed, however its program
/// ended. But a pseudo-terminal stays `TIOCEXCL` until its other end is closed as well: with its
/// bridge killed, nobody but root could open it again. So there it is `flock` alone.
fn open_serial(path: &str, baud: u32) -> Result<SerialStream, String> {
    let pseudo_terminal = is_pseudo_terminal(Path::new(path));
    let port = tokio_serial::new(path, baud).exclusive(!pseudo_terminal);
    let port = SerialStream::open(&port).map_err(|error| match error.kind() {
        ErrorKind::Io(io::ErrorKind::NotFound) => {
            "there is no such port; is the adapter plugged in? `bms2mqtt scan` lists the ports".to_owned()
        }
        ErrorKind::Io(io::ErrorKind::PermissionDenied) => {
            "permission denied; add the user to the group that owns the port (often `dialout`)".to_owned()
        }
        // By its `TIOCEXCL`, which it may have left behind.
        ErrorKind::NoDevice if pseudo_terminal && error.description == Errno::EBUSY.desc() => format!(
            "{USED}; if it was killed, start what is at the other end of this pseudo-terminal anew"
        ),
        // What serialport reports when its lock is taken, and for EBUSY.
        ErrorKind::NoDevice => USED.to_owned(),
        // Not the port's own rights: a container or a service that may not use this device.
        _ if error.description == Errno::EPERM.desc() => {
            "this container or service may not use it; give it the device (docker run --device, or DeviceAllow)"
                .to_owned()
        }
        _ if !is_terminal_device(Path::new(path)) => "this is not a serial port".to_owned(),
        _ => format!("{}; is the adapter still there?", error.description),
    })?;
    if pseudo_terminal {
        // Opened without `TIOCEXCL` it shares its lock. Of two that are here at once, the last to
        // ask has it alone.
        #[allow(deprecated)] // nix's other way, Flock, would own the port
        flock(port.as_raw_fd(), FlockArg::LockExclusiveNonblock).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => USED.to_owned(),
            errno => format!("it cannot be locked: {}", errno.desc()),
        })?;
    }
    Ok(port)
}

/// The end for programs of a pseudo-terminal, by whatever name: what socat and simulators make.
fn is_pseudo_terminal(path: &Path) -> bool {
    // UNIX98_PTY_SLAVE_MAJOR and the seven behind it, in the kernel's list of devices.
    const MAJORS: std::ops::RangeInclusive<u64> = 136..=143;
    is_terminal_device(path) && path.metadata().is_ok_and(|metadata| MAJORS.contains(&major(metadata.rdev())))
}

/// Serial ports and pseudo-terminals are character devices; what else is opened by mistake is mostly a file.
fn is_terminal_device(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device())
}

async fn open_tcp(peer: &str) -> Result<TcpStream, String> {
    let connecting = async {
        let addresses = addresses(peer).await?;
        TcpStream::connect(&addresses[..]).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "connection refused; is the serial server running, and is this its port?".to_owned()
            }
            _ => error.to_string(),
        })
    };
    let socket = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))??;
    // A request is one small packet: holding it back for more would only delay it.
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(socket)
}

/// All addresses of this peer, each of which is to be tried.
async fn addresses(peer: &str) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = peer.parse() {
        return Ok(vec![address]);
    }
    let peer = peer.to_owned();
    let found = blocking::run(move || peer.to_socket_addrs().map(Vec::from_iter)).await?;
    found.map_err(|error| error.to_string())
}

/// The serial ports of this machine, those with a name that survives a re-plug first.
pub fn serial_ports() -> Vec<PathBuf> {
    let mut ports: Vec<PathBuf> = Vec::new();
    let mut devices = Vec::new();
    for entry in sorted_entries(Path::new("/dev/serial/by-id")) {
        devices.extend(entry.canonicalize());
        ports.push(entry);
    }
    for entry in sorted_entries(Path::new("/dev")) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        let serial =
            ["ttyUSB", "ttyACM", "ttyAMA", "ttyS", "rfcomm"].iter().any(|prefix| name.starts_with(prefix));
        if serial && !devices.contains(&entry) {
            ports.push(entry);
        }
    }
    ports
}

fn sorted_entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
