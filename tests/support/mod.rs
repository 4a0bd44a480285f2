//! What the end-to-end tests share: a broker, somebody who listens to it, a board, and the program itself.
#![allow(dead_code)] // each test file uses a part

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bms2mqtt::jbd::frame::{Answer, Frame, Status, frames};
use bms2mqtt::jbd::simulator::{Pace, Pack, Reply, serve, terminal};
use bms2mqtt::mqtt::broker;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

/// No test waits longer for anything; those that pass wait milliseconds, on a machine that is busy
/// seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Tells it, once, also of a test that passes: what the test runner catches of those is seen by
/// nobody.
pub fn tell(what: &str) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().unwrap().insert(what.to_owned()) {
        let _ = writeln!(io::stderr(), "{what}");
    }
}

/// Measures time less what this machine was too busy for: it counts sleeps, and a late one counts
/// as one. For what is promised within a time; the program beside it is held up as much as this.
#[derive(Clone)]
pub struct Stopwatch(Arc<StopwatchTask>);

struct StopwatchTask {
    microseconds: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Stopwatch {
    const SLEEP: Duration = Duration::from_millis(5);

    pub fn start() -> Stopwatch {
        let microseconds = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&microseconds);
        let task = tokio::spawn(async move {
            loop {
                let began = Instant::now();
                tokio::time::sleep(Stopwatch::SLEEP).await;
                // A timer's own millisecond is no lateness.
                let took = began.elapsed().min(Stopwatch::SLEEP + Duration::from_millis(2));
                count.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
            }
        });
        Stopwatch(Arc::new(StopwatchTask { microseconds, task }))
    }

    /// Since it was started.
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.0.microseconds.load(Ordering::Relaxed))
    }
}

impl Drop for StopwatchTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A port of loopback that belongs to its test for as long as this lives: nobody else is given it,
/// and nobody answers there until somebody who knows of it listens.
pub struct OwnPort {
    pub address: SocketAddr,
    // Bound and never listening. Whoever listens beside it must allow that, as servers do
    // (SO_REUSEADDR).
    _socket: TcpSocket,
}

impl OwnPort {
    pub fn new() -> OwnPort {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        OwnPort { address: socket.local_addr().unwrap(), _socket: socket }
    }
}

/// Writes a script that is to be run, by a process of its own: were it open here for a moment, a child
/// of another test could hold it open, and nobody could run it meanwhile ("Text file busy").
pub fn write_script(path: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut install = install.spawn().unwrap();
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
}

/// A directory of its own for each caller.
pub fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{count}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Waits until the condition gives something.
pub async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A child that is forked while a terminal is being made would have the board's end of it too, and
/// keep the line up when the board is unplugged.
static FORKS: RwLock<()> = RwLock::new(());

pub fn spawn(command: &mut Command) -> Child {
    let _no_terminal_is_made = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

/// Mosquitto where it is installed, else the small broker. `BMS2MQTT_TEST_MOSQUITTO=required` insists on the one,
/// `never` on the other.
pub struct Broker {
    pub address: SocketAddr,
    _port: OwnPort,
    kind: Kind,
    directory: PathBuf,
    settings: String,
}

enum Kind {
    Mosquitto(Option<Child>),
    Small(Option<JoinHandle<()>>),
}

pub fn mosquitto() -> Option<&'static str> {
    let paths = [
        "/usr/sbin/mosquitto",
        "/usr/local/sbin/mosquitto",
        "/usr/bin/mosquitto",
        "/opt/homebrew/sbin/mosquitto",
    ];
    let found = paths.into_iter().find(|path| Path::new(path).exists());
    match std::env::var("BMS2MQTT_TEST_MOSQUITTO").as_deref() {
        Ok("never") => None,
        Ok("required") => Some(found.expect("mosquitto is required and not installed")),
        _ => found,
    }
}

impl Broker {
    pub async fn start() -> Broker {
        Broker::start_with("allow_anonymous true\n").await
    }

    /// With settings of Mosquitto's, which the small broker does not know.
    pub async fn start_with(settings: &str) -> Broker {
        Broker::start_in(scratch("broker"), settings).await
    }

    /// Keeps what is retained, in [`Broker::kept`], when it is ended by [`Broker::end`]. Mosquitto only.
    pub async fn start_keeping() -> Broker {
        let directory = scratch("broker");
        let location = directory.display();
        let settings = format!("allow_anonymous true\npersistence true\npersistence_location {location}/\n");
        Broker::start_in(directory, &settings).await
    }

    async fn start_in(directory: PathBuf, settings: &str) -> Broker {
        let port = OwnPort::new();
        let kind = if mosquitto().is_some() {
            Kind::Mosquitto(None)
        } else {
            tell("mosquitto is not installed: testing with the small broker instead");
            Kind::Small(None)
        };
        let settings = settings.to_owned();
        let mut broker = Broker { address: port.address, _port: port, kind, directory, settings };
        broker.resume().await;
        broker
    }

    /// Starts it at the same address, with nothing in it but what it has kept.
    pub async fn resume(&mut self) {
        match &mut self.kind {
            Kind::Mosquitto(child) => {
                let config = self.directory.join("mosquitto.conf");
                let port = self.address.port();
                let user = if self.settings.contains("user ") { "" } else { "user root\n" };
                let keeps = self.settings.contains("persistence ");
                let persistence = if keeps { "" } else { "persistence false\n" };
                fs::write(
                    &config,
                    format!("listener {port} 127.0.0.1\n{persistence}{user}{}", self.settings),
                )
                .unwrap();
                let log = fs::File::create(self.directory.join("log")).unwrap();
                let mut command = Command::new(mosquitto().unwrap());
                command.arg("-c").arg(config).stdout(Stdio::null()).stderr(log);
                *child = Some(spawn(&mut command));
            }
            Kind::Small(task) => {
                let broker = broker::Broker::bind(self.address).await.unwrap();
                *task = Some(tokio::spawn(broker.serve()));
            }
        }
        let address = self.address;
        eventually("the broker listens", || TcpStream::connect(address).ok()).await;
    }

    /// Ends it as a crash would.
    pub async fn kill(&mut self) {
        match &mut self.kind {
            Kind::Mosquitto(child) => {
                if let Some(mut child) = child.take() {
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
            }
            Kind::Small(task) => {
                if let Some(task) = task.take() {
                    task.abort();
                    let _ = task.await;
                }
            }
        }
    }

    /// Ends it as the system's shutdown would: it may still write what it keeps.
    pub async fn end(&mut self) {
        if let Kind::Mosquitto(Some(child)) = &mut self.kind {
            signal(child, "TERM");
            eventually("the broker ends", || child.try_wait().unwrap()).await;
        }
        self.kill().await;
    }

    /// Where Mosquitto keeps what is retained, if it does.
    pub fn kept(&self) -> PathBuf {
        self.directory.join("mosquitto.db")
    }

    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// What a fresh subscriber gets: everything retained.
    pub async fn retained(&self) -> BTreeMap<String, String> {
        let messages = self.retained_messages().await;
        messages.into_iter().map(|m| (m.topic, m.payload)).collect()
    }

    /// The same, in the order in which it came and as often. The small broker goes on with its work
    /// while it hands out what is retained: where something was said meanwhile, that is no picture
    /// of one moment, and another is taken.
    pub async fn retained_messages(&self) -> Vec<Heard> {
        let began = Instant::now();
        loop {
            let listener = Listener::start(self.address).await;
            listener.catch_up().await;
            let messages = listener.messages();
            if messages.iter().all(|message| message.retained) {
                return messages;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain: nothing is said");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Mosquitto(Some(child)) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Kind::Small(Some(task)) => task.abort(),
            _ => {}
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub topic: String,
    pub payload: String,
    pub retained: bool,
}

/// Subscribes to everything and keeps it.
pub struct Listener {
    pub client: AsyncClient,
    heard: Arc<Mutex<Vec<Heard>>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub async fn start(address: SocketAddr) -> Listener {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("listener-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut event_loop) = AsyncClient::new(options, 100);
        client.subscribe("#", QoS::AtMostOnce).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&heard);
        let subscribed = Arc::new(tokio::sync::Notify::new());
        let tell = Arc::clone(&subscribed);
        let task = tokio::spawn(async move {
            while let Ok(event) = event_loop.poll().await {
                match event {
                    Event::Incoming(Packet::SubAck(_)) => tell.notify_one(),
                    Event::Incoming(Packet::Publish(publish)) => keep.lock().unwrap().push(Heard {
                        payload: String::from_utf8_lossy(&publish.payload).into_owned(),
                        topic: publish.topic,
                        retained: publish.retain,
                    }),
                    _ => {}
                }
            }
        });
        tokio::time::timeout(PATIENCE, subscribed.notified()).await.expect("subscribed");
        Listener { client, heard, task }
    }

    /// Waits until all has come that was retained or said before: a message of our own comes behind
    /// it.
    pub async fn catch_up(&self) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
        self.client.publish(CAUGHT_UP, QoS::AtLeastOnce, false, number.as_str()).await.unwrap();
        self.wait_for(CAUGHT_UP, &number).await;
        self.heard.lock().unwrap().retain(|heard| heard.topic != CAUGHT_UP);
    }

    pub fn messages(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub fn clear(&self) {
        self.heard.lock().unwrap().clear();
    }

    /// Where in what was heard this message stands, if it was.
    pub fn position(&self, topic: &str, payload: &str) -> Option<usize> {
        self.messages().iter().position(|heard| heard.topic == topic && heard.payload == payload)
    }

    pub async fn wait_for(&self, topic: &str, payload: &str) {
        eventually(&format!("{topic} {payload}"), || self.position(topic, payload)).await;
    }
}

const CAUGHT_UP: &str = "test/caught_up";

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|place| u8::from_str_radix(&digits[place..place + 2], 16).unwrap())
        .collect()
}

/// A board whose answers can be changed while it serves.
#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    frames: BTreeMap<u8, Vec<u8>>,
    mute: bool,
    silent_about: Option<u8>,
    asked: u64,
}

impl Answers {
    pub fn new(frames: &[&str]) -> Answers {
        let answers = Answers::default();
        for frame in frames {
            answers.set(frame);
        }
        answers
    }

    /// Gives this answer from now on.
    pub fn set(&self, hex: &str) {
        let bytes = bytes(hex);
        let Some(Frame::Answer(answer)) = frames(&bytes).next() else { panic!("no answer: {hex}") };
        self.0.lock().unwrap().frames.insert(answer.register, bytes.clone());
    }

    /// Changes the data of an answer and its checksum with it.
    pub fn change(&self, register: u8, change: impl FnOnce(&mut [u8])) {
        let mut state = self.0.lock().unwrap();
        let bytes = state.frames.get_mut(&register).unwrap();
        let end = bytes.len() - 3;
        let mut data = bytes[4..end].to_vec();
        change(&mut data);
        bytes.clear();
        Answer { register, status: Status::OK, data: &data }.encode(bytes);
    }

    pub fn mute(&self, mute: bool) {
        self.0.lock().unwrap().mute = mute;
    }

    /// Refuses this register until it is set again.
    pub fn refuse(&self, register: u8) {
        self.0.lock().unwrap().frames.remove(&register);
    }

    /// Neither answers nor refuses this register.
    pub fn silent_about(&self, register: u8) {
        self.0.lock().unwrap().silent_about = Some(register);
    }

    /// How many polls have begun.
    pub fn polls(&self) -> u64 {
        self.0.lock().unwrap().asked
    }

    pub async fn wait_for_polls(&self, count: u64) {
        let until = self.polls() + count;
        eventually("polls", || (self.polls() >= until).then_some(())).await;
    }
}

impl Pack for Answers {
    fn answer(&mut self, register: u8) -> Reply {
        let mut state = self.0.lock().unwrap();
        state.asked += u64::from(register == 3);
        match state.frames.get(&register) {
            _ if state.mute || state.silent_about == Some(register) => Reply::Silent,
            Some(frame) => Reply::Verbatim(frame.clone()),
            None => Reply::Refused(Status::NO_SUCH_REGISTER),
        }
    }
}

/// A board on a pseudo-terminal.
pub struct Board {
    pub port: PathBuf,
    task: JoinHandle<()>,
}

impl Board {
    pub fn start(mut answers: impl Pack + 'static, link: Option<&Path>, pace: Pace) -> Board {
        let (terminal, line) = {
            let _no_child_is_forked = FORKS.write().unwrap_or_else(PoisonError::into_inner);
            let made = terminal(link).unwrap();
            keep_terminals_from_children();
            made
        };
        let port = terminal.path().to_owned();
        let task = tokio::spawn(async move {
            let _keep = terminal;
            let _ = serve(line, &mut answers, pace).await;
        });
        Board { port, task }
    }

    /// As pulling the adapter.
    pub async fn unplug(self) {
        self.task.abort();
        let _ = (&mut { self }.task).await;
    }
}

#[expect(unsafe_code, reason = "descriptors by their number")]
fn keep_terminals_from_children() {
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let is_terminal = fs::read_link(entry.path()).is_ok_and(|path| path.ends_with("ptmx"));
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (true, Some(number)) = (is_terminal, number) {
            // SAFETY: nothing but the flag is set, and where another test has closed it meanwhile that is an error.
            let file = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends a signal to a child that has not been waited for, so that its number is still its own.
pub fn signal(child: &Child, name: &str) {
    let signal: Signal = format!("SIG{name}").parse().unwrap();
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

/// The program, with nothing of this machine's configuration, and its log in a file.
pub struct Program {
    pub child: Child,
    pub directory: PathBuf,
}

pub fn bms2mqtt(directory: &Path) -> Command {
    in_directory(Command::new(env!("CARGO_BIN_EXE_bms2mqtt")), directory)
}

fn in_directory(mut command: Command, directory: &Path) -> Command {
    command.current_dir(directory).env_clear().env("BMS2MQTT_STATE_DIR", directory.join("state"));
    command
}

/// The same without the rights that root has over others, as services, containers and ordinary
/// users run it: root may open even what is locked, and what belongs to others.
pub fn bms2mqtt_without_rights(directory: &Path) -> Command {
    let none = ["--bounding-set=-all"];
    let gives_up = || Command::new("/usr/bin/setpriv").args(none).arg("true").status();
    // Root in a container may have none to give up.
    if !geteuid().is_root() || !gives_up().is_ok_and(|status| status.success()) {
        return bms2mqtt(directory);
    }
    let mut command = in_directory(Command::new("/usr/bin/setpriv"), directory);
    command.args(none).arg(env!("CARGO_BIN_EXE_bms2mqtt"));
    command
}

impl Program {
    /// `bms2mqtt run` with this `config.yaml`.
    pub fn start(directory: &Path, yaml: &str) -> Program {
        fs::write(directory.join("config.yaml"), yaml).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let child = spawn(bms2mqtt(directory).arg("run").stdin(Stdio::null()).stderr(log));
        Program { child, directory: directory.to_owned() }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    pub async fn logged(&self, what: &str) {
        eventually(&format!("\"{what}\" in the log"), || self.log().contains(what).then_some(())).await;
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Its exit status, once it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the program ends", || child.try_wait().unwrap()).await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the program\n{}", self.log());
        }
    }
}

/// The contract's pack: 8 cells at 26.66 V, 2 temperatures.
pub const HOUSE: [&str; 2] = [
    "DD 03 00 1B 0A 6A 00 00 1E E7 1F 40 00 00 27 72 00 00 00 00 00 00 15 63 03 08 02 0B 89 0B 8B FB C5 77",
    "DD 04 00 10 0D 04 0D 05 0D 04 0D 04 0D 06 0D 08 0D 03 0D 06 FF 60 77",
];
pub const HOUSE_LINE: &str = r#"{"BMS_status":1,"Vbat":26.66,"Abat":0.00,"AhBat":79.1,"AhTyp":80.0,"FET_stat":3,"RSOC":99,"Vbank0":3.332,"Balans0":0,"Vbank1":3.333,"Balans1":0,"Vbank2":3.332,"Balans2":0,"Vbank3":3.332,"Balans3":0,"Vbank4":3.334,"Balans4":0,"Vbank5":3.336,"Balans5":0,"Vbank6":3.331,"Balans6":0,"Vbank7":3.334,"Balans7":0,"Temp0":22.20,"Temp1":22.40,"Protect":"-no-"}"#;
/// A 16-cell pack while discharging, 4 temperatures (two boards' captures).
pub const BANK: [&str; 2] = [
    "dd03001f14b1fd4c46514e2000012654000000000000205a0310040b140b350b800b61fa6c77",
    "dd0400200d240d250d220d210d220d210d230d250d220d220d210d220d230d220d240d26fce377",
];
pub const NAME: &str = "dd05001153503135533030312d503133532d333041fbfd77";
pub const COUNTERS: &str = "ddaa00180001000000002f530000000000030000000000010000002aff3777";
