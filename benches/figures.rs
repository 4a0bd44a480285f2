//! Figures of the whole program, each beside its aim: `cargo bench --bench figures`.
//!
//! A report and no test: it ends well whatever the figures are, and with 1 only where none can be taken. It takes
//! about a minute, and Linux: CPU time and memory are what `/proc` says of the running program. `FIGURES_BINARY` names
//! another build of the program to take them of, which is how profiles are compared.
//!
//! Cargo builds the program for this with what the tests want of tokio (`test-util`), which is 2 KB more than a release.

#[path = "../tests/support/mod.rs"]
mod support;

use std::env;
use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use bms2mqtt::jbd::board::Board;
use bms2mqtt::jbd::simulator::{Pace, serve, terminal};
use bms2mqtt::link::{self, Address};
use bms2mqtt::mqtt::broker;
use rumqttc::mqttbytes::check;
use rumqttc::{Client, Connection, Event, MqttOptions, Packet, QoS};
use support::{Answers, BANK, HOUSE, bytes, mosquitto, scratch};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BAUD: u32 = 9600;
const WIRE: Pace = Pace::Wire { baud: BAUD };
/// Polls that the poll time is taken of.
const TIMED_POLLS: usize = 100;
/// After so long a bridge has announced everything and has stopped reading back what it left (5 s).
const SETTLED: Duration = Duration::from_secs(6);
/// How long the CPU time of polls is watched.
const WATCHED: Duration = Duration::from_secs(10);
const STARTS: usize = 5;
/// What does not happen within this does not happen.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this too, unoptimized and without this argument.
    if !env::args().any(|argument| argument == "--bench") {
        println!("no figures: they are taken by `cargo bench`");
        return ExitCode::SUCCESS;
    }
    match report() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("no figures: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report() -> Result<()> {
    let binary = env::var_os("FIGURES_BINARY");
    let binary = binary.map_or(PathBuf::from(env!("CARGO_BIN_EXE_bms2mqtt")), PathBuf::from);
    let binary = binary.canonicalize().map_err(|error| format!("{}: {error}", binary.display()))?;
    let place = Place { binary, directory: Scratch(scratch("figures")) };
    let kind = if mosquitto().is_some() { "Mosquitto" } else { "the small broker" };
    println!("{}, boards on pseudo-terminals, {kind} on loopback\n", place.binary.display());
    println!("{:WHAT$}  {:MEASURED$}  aim", "figure", "measured");

    let size = place.binary.metadata()?.len();
    row("size of the binary", format!("{size} bytes"), Some((size <= 3_000_000, "3 MB or less")));
    for frames in [HOUSE, BANK] {
        poll_time(&place, frames)?;
    }
    unchanged_polls(&place)?;
    paced_polls(&place)?;
    start(&place)
}

const WHAT: usize = 56;
const MEASURED: usize = 55;

/// A line of the table. An aim is said with whether it is met.
fn row(figure: impl Display, measured: impl Display, aim: Option<(bool, &str)>) {
    let aim = match aim {
        None => String::new(),
        Some((true, aim)) => aim.to_owned(),
        Some((false, aim)) => format!("{aim}: MISSED"),
    };
    let line = format!("{figure:WHAT$}  {measured:<MEASURED$}  {aim}");
    println!("{}", line.trim_end());
}

/// What a poll cannot be faster than: two requests of 7 bytes and both answers, 10 bits a byte.
fn wire_time(frames: [&str; 2]) -> Duration {
    let answers: usize = frames.iter().map(|frame| bytes(frame).len()).sum();
    Duration::from_secs(10 * (2 * 7 + answers) as u64) / BAUD
}

/// The time of a poll over the wire's own time, nothing subtracted: to the microsecond by asking as the program asks,
/// on one thread, through the same port; and of the program itself by its log, which cuts off milliseconds.
fn poll_time(place: &Place, frames: [&str; 2]) -> Result<()> {
    const AIM: f64 = 1.05;

    let cells = (bytes(frames[1]).len() - 7) / 2;
    let wire = wire_time(frames);
    let simulator = Simulator::start(&Answers::new(&frames), WIRE)?;
    let address = Address::Serial { path: simulator.port.clone(), baud: BAUD };
    let times = runtime()?.block_on(async {
        let mut board = Board::new(link::open(&address).await?);
        let mut times = Vec::with_capacity(TIMED_POLLS);
        for _ in 0..TIMED_POLLS {
            let began = Instant::now();
            board.poll().await?;
            times.push(began.elapsed());
        }
        Ok::<_, Box<dyn Error>>(times)
    })?;
    let Spread { least, median, p99 } = Spread::of(times);
    let over_wire = |time: Duration| time.as_secs_f64() / wire.as_secs_f64();
    row(
        format!("poll time over wire time, {cells} cells, board asked directly"),
        format!(
            "{:.4} (min {:.4}, p99 {:.4}; {TIMED_POLLS} polls)",
            over_wire(median),
            over_wire(least),
            over_wire(p99)
        ),
        Some((over_wire(median) <= AIM, "1.05 or less at 9600 baud")),
    );

    let simulator = Simulator::start(&Answers::new(&frames), WIRE)?;
    let broker = Broker::start(&place.directory.0)?;
    let bridge = Bridge::start(place, &simulator, broker.address, "10ms", &["--debug"])?;
    let polled = bridge.wait_for("30 polls", || {
        let log = bridge.log();
        let times = log.lines().filter_map(|line| line.split("polled in ").nth(1)?.split(" ms").next());
        // The first opens the port, and asks for more than a poll does.
        let times: Vec<u64> = times.skip(1).filter_map(|time| time.parse().ok()).collect();
        (times.len() >= 30).then_some(times)
    })?;
    let Spread { median, .. } = Spread::of(polled.into_iter().map(Duration::from_millis).collect());
    let most = over_wire(median + Duration::from_millis(1));
    row(
        format!("poll time over wire time, {cells} cells, by the program's log"),
        format!("less than {most:.3} ({} ms, which it rounds down)", median.as_millis()),
        Some((most <= AIM, "1.05 or less at 9600 baud")),
    );
    Ok(())
}

/// A bridge that polls 50 times a second and always hears the same: CPU time, memory, threads, and what it sends.
fn unchanged_polls(place: &Place) -> Result<()> {
    let answers = Answers::new(&BANK);
    let simulator = Simulator::start(&answers, Pace::Unpaced)?;
    let broker = Broker::start(&place.directory.0)?;
    let proxy = Proxy::start(broker.address)?;
    let bridge = Bridge::start(place, &simulator, proxy.address, "20ms", &[])?;
    bridge.wait_for("its announcement", || (proxy.sent() > 10_000).then_some(()))?;
    sleep(SETTLED);

    let announced = proxy.sent();
    let cpu = bridge.cpu_time_of_polls(&answers)?;
    let sent = proxy.sent() - announced;
    row(
        "CPU time per unchanged poll of 16 cells",
        format!("{} µs ({} polls, each answer all at once)", cpu.per_poll.as_micros(), cpu.polls),
        None,
    );
    row(
        "bytes sent to the broker by a poll without changes",
        format!("{sent} by {} polls (announcement: {announced})", cpu.polls),
        Some((sent == 0, "0, but for pings")),
    );

    let resident = bridge.kilobytes("status", &["VmRSS:"])?;
    let proportional = bridge.kilobytes("smaps_rollup", &["Pss:"])?;
    let private = bridge.kilobytes("smaps_rollup", &["Private_Clean:", "Private_Dirty:"])?;
    row(
        "resident memory, TLS compiled in",
        format!("{resident} kB (Pss {proportional} kB, private {private} kB)"),
        Some((resident * 1024 <= 5_000_000, "5 MB or less")),
    );
    let threads = bridge.number("status", "Threads:")?;
    row("threads", threads, Some((threads == 1, "1")));
    Ok(())
}

/// CPU time when every byte of an answer wakes the program, which is the worst that a port can do.
fn paced_polls(place: &Place) -> Result<()> {
    let answers = Answers::new(&BANK);
    let simulator = Simulator::start(&answers, WIRE)?;
    let broker = Broker::start(&place.directory.0)?;
    let bridge = Bridge::start(place, &simulator, broker.address, "100ms", &[])?;
    sleep(SETTLED);
    let cpu = bridge.cpu_time_of_polls(&answers)?;
    row(
        "CPU time per unchanged poll of 16 cells, byte by byte",
        format!("{} µs ({} polls at 9600 baud)", cpu.per_poll.as_micros(), cpu.polls),
        None,
    );
    Ok(())
}

/// From starting the program to its first value at a subscriber, with files that have been read before.
fn start(place: &Place) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let simulator = Simulator::start(&Answers::new(&BANK), WIRE)?;
        let broker = Broker::start(&place.directory.0)?;
        let mut subscriber = Subscriber::start(broker.address)?;
        let began = Instant::now();
        let bridge = Bridge::start(place, &simulator, broker.address, "5s", &[])?;
        bridge.explain(subscriber.wait_for_value())?;
        times.push(began.elapsed());
    }
    let Spread { least, median, .. } = Spread::of(times);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    row(
        "start to first value at the broker, 16 cells",
        format!(
            "{:.1} ms (min {:.1}; {STARTS} starts), {:.1} ms of it the wire's",
            milliseconds(median),
            milliseconds(least),
            milliseconds(wire_time(BANK)),
        ),
        None,
    );
    Ok(())
}

struct Spread {
    least: Duration,
    median: Duration,
    p99: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Spread {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        Spread { least: at(0), median: at(50), p99: at(99) }
    }
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(value) = condition() {
            return Ok(value);
        }
        sleep(Duration::from_millis(5));
    }
    Err(format!("waited in vain for {what}").into())
}

/// As the program's own.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// What is measured, and where its files go.
struct Place {
    binary: PathBuf,
    directory: Scratch,
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Ends with its owner.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Process> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        Ok(Process(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Work on a thread with a runtime of its own, so that nobody else's turn is in its way. Ends with its owner.
struct Worker {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Calls `begin` in the runtime, and does the work that it returns until the end. Returns what else it returns.
    fn start<T: Send + 'static, W: Future>(
        begin: impl AsyncFnOnce() -> io::Result<(T, W)> + Send + 'static,
    ) -> Result<(T, Worker)> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let work = async move |tell: mpsc::Sender<io::Result<T>>| {
            let work = match begin().await {
                Ok((value, work)) => tell.send(Ok(value)).map(|()| work),
                Err(error) => return drop(tell.send(Err(error))),
            };
            if let Ok(work) = work {
                tokio::select! { _ = work => {}, _ = stopped => {} }
            }
        };
        let thread = thread::spawn(move || match runtime() {
            Ok(runtime) => runtime.block_on(work(tell)),
            Err(error) => drop(tell.send(Err(error))),
        });
        let value = told.recv()??;
        Ok((value, Worker { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A board on a pseudo-terminal.
struct Simulator {
    port: String,
    _worker: Worker,
}

impl Simulator {
    fn start(answers: &Answers, pace: Pace) -> Result<Simulator> {
        let mut answers = answers.clone();
        let (port, worker) = Worker::start(async move || {
            let (terminal, line) = terminal(None)?;
            let port = terminal.path().display().to_string();
            let serving = async move {
                let _keep = terminal;
                serve(line, &mut answers, pace).await
            };
            Ok((port, serving))
        })?;
        Ok(Simulator { port, _worker: worker })
    }
}

/// Mosquitto where it is installed, else the small broker; with nothing in it.
struct Broker {
    address: SocketAddr,
    _runs: Runs,
}

#[expect(dead_code, reason = "kept for their end")]
enum Runs {
    Mosquitto(Process),
    Small(Worker),
}

impl Broker {
    fn start(directory: &Path) -> Result<Broker> {
        let Some(mosquitto) = mosquitto() else {
            let (address, worker) = Worker::start(async || {
                let broker = broker::Broker::bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
                Ok((broker.address()?, broker.serve()))
            })?;
            return Ok(Broker { address, _runs: Runs::Small(worker) });
        };
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = directory.join("mosquitto.conf");
        let port = address.port();
        fs::write(
            &config,
            format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n"),
        )?;
        let log = File::create(directory.join("mosquitto.log"))?;
        let process = Process::start(Command::new(mosquitto).arg("-c").arg(config).stderr(log))?;
        wait_for("Mosquitto to listen", || TcpStream::connect(address).ok())?;
        Ok(Broker { address, _runs: Runs::Mosquitto(process) })
    }
}

/// One connection to the broker, and how many bytes of it the client has sent, pings not counted.
struct Proxy {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Proxy {
    fn start(broker: SocketAddr) -> Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
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
        Ok(Proxy { address, sent })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn pass_on(mut client: TcpStream, mut broker: TcpStream, count: &AtomicU64) -> io::Result<()> {
    const PINGREQ: u8 = 0xC0;

    let (mut pending, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let length = client.read(&mut chunk)?;
        if length == 0 {
            return broker.shutdown(std::net::Shutdown::Write);
        }
        broker.write_all(&chunk[..length])?;
        pending.extend(&chunk[..length]);
        while let Ok(header) = check(pending.iter(), usize::MAX) {
            let packet: Vec<u8> = pending.drain(..header.frame_length()).collect();
            if packet[0] != PINGREQ {
                count.fetch_add(packet.len() as u64, Ordering::Relaxed);
            }
        }
    }
}

/// Waits for values.
struct Subscriber {
    connection: Connection,
    _client: Client,
}

impl Subscriber {
    fn start(broker: SocketAddr) -> Result<Subscriber> {
        let options = MqttOptions::new("figures", broker.ip().to_string(), broker.port());
        let (client, connection) = Client::new(options, 10);
        client.subscribe("bms2mqtt/bank/+", QoS::AtMostOnce)?;
        let mut subscriber = Subscriber { connection, _client: client };
        subscriber.wait_for("the subscription", |packet| matches!(packet, Packet::SubAck(_)))?;
        Ok(subscriber)
    }

    fn wait_for_value(&mut self) -> Result<()> {
        self.wait_for(
            "a value at the broker",
            |packet| matches!(packet, Packet::Publish(publish) if !publish.topic.ends_with("/availability")),
        )
    }

    fn wait_for(&mut self, what: &str, wanted: impl Fn(&Packet) -> bool) -> Result<()> {
        loop {
            let event = self.connection.recv_timeout(PATIENCE);
            match event.map_err(|_| format!("waited in vain for {what}"))?? {
                Event::Incoming(packet) if wanted(&packet) => return Ok(()),
                _ => {}
            }
        }
    }
}

/// The program at work.
struct Bridge {
    process: Process,
    directory: Scratch,
}

impl Bridge {
    fn start(
        place: &Place,
        simulator: &Simulator,
        broker: SocketAddr,
        interval: &str,
        more: &[&str],
    ) -> Result<Bridge> {
        let directory = Scratch(scratch("figures-bridge"));
        let log = File::create(directory.0.join("log"))?;
        let mut command = Command::new(&place.binary);
        command.current_dir(&directory.0).env_clear().stderr(log);
        command.args(["run", "--id", "bank", "--port", &simulator.port, "--interval", interval]);
        command.args(["--mqtt-url", &format!("mqtt://{broker}"), "--state-dir", "state"]).args(more);
        Ok(Bridge { process: Process::start(&mut command)?, directory })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.0.join("log")).unwrap_or_default()
    }

    /// To what went wrong, what the program says of it.
    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(5)..].join("\n");
            format!("bridge: {error}\nIts last log lines:\n{last}").into()
        })
    }

    fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> Result<T> {
        self.explain(wait_for(what, condition))
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.process.0.id());
        // Of a program that has ended, this fails too.
        self.explain(fs::read_to_string(&path).map_err(|error| format!("{path}: {error}").into()))
    }

    /// The number behind a key of `status`, or of a file like it.
    fn number(&self, file: &str, key: &str) -> Result<u64> {
        let text = self.proc(file)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
        Ok(self.explain(value.ok_or_else(|| format!("no {key} in its {file}").into()))?.parse()?)
    }

    fn kilobytes(&self, file: &str, keys: &[&str]) -> Result<u64> {
        keys.iter().map(|key| self.number(file, key)).sum()
    }

    /// How long its thread has been on a CPU, in user and system.
    fn cpu_time(&self) -> Result<Duration> {
        let text = self.proc("schedstat")?;
        Ok(Duration::from_nanos(text.split_whitespace().next().unwrap_or_default().parse()?))
    }

    fn cpu_time_of_polls(&self, answers: &Answers) -> Result<CpuTime> {
        let (polls, cpu) = (answers.polls(), self.cpu_time()?);
        sleep(WATCHED);
        let (polls, cpu) = (answers.polls() - polls, self.cpu_time()? - cpu);
        if polls < 50 {
            return self.explain(Err(format!("it has polled {polls} times only").into()));
        }
        let per_poll = cpu.as_nanos() / u128::from(polls);
        Ok(CpuTime { per_poll: Duration::from_nanos(per_poll as u64), polls })
    }
}

struct CpuTime {
    per_poll: Duration,
    polls: u64,
}
