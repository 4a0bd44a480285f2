//! What must not happen in months, tried in minutes: cables pulled, brokers that go and hang, power that fails, and a
//! great many polls. Real program, real pseudo-terminals, Mosquitto; nothing but loopback.
//!
//! Each test has a short variant that always runs, and a long one that prints a line of figures:
//! `cargo test --release --test reliability -- --ignored --nocapture`. docs/reliability.md has those lines.

mod support;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bms2mqtt::jbd::simulator::{Pace, Pack, Reply};
use bms2mqtt::pack::record::Record;
use bms2mqtt::state_file;
use serde_json::Value;
use support::{
    Answers, BANK, Board, Broker, HOUSE, Listener, Program, Stopwatch, eventually, mosquitto, scratch, tell,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// No long test takes longer.
const LONGEST: Duration = Duration::from_secs(20 * 60);

async fn bounded(test: impl Future<Output = ()>) {
    timeout(LONGEST, test).await.expect("within the longest time");
}

fn config(url: &str, extra: &str, port: &Path, interval: &str) -> String {
    let port = port.display();
    format!(
        "mqtt: {{url: '{url}'{extra}}}\npacks:\n  - {{id: house, name: House, port: {port}, interval: {interval}}}\n"
    )
}

/// The same numbers at every run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn milliseconds(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(least * 1000 + self.next() % ((most - least) * 1000))
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Footprint {
    files: usize,
    threads: usize,
    resident_kb: u64,
}

impl Footprint {
    fn of(program: &Program) -> Footprint {
        let proc = PathBuf::from(format!("/proc/{}", program.child.id()));
        let count = |name| fs::read_dir(proc.join(name)).unwrap().count();
        Footprint { files: count("fd"), threads: count("task"), resident_kb: resident_kb(program) }
    }
}

fn resident_kb(program: &Program) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// By how much the second is more or less than the first, in percent.
fn percent(first: f64, second: f64) -> f64 {
    (second / first - 1.0) * 100.0
}

fn kb_percent(first: u64, second: u64) -> f64 {
    percent(first as f64, second as f64)
}

fn spread(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    let (least, most) = (seconds[0], seconds[seconds.len() - 1]);
    format!("{least:.2} / {:.2} / {most:.2}", seconds[seconds.len() / 2])
}

const AVAILABILITY: &str = "bms2mqtt/house/availability";
const BRIDGE: &str = "bms2mqtt/bridge/availability";

// --- The cable ------------------------------------------------------------------------------------------------------

/// `offline` within three polls of the unplugging, which is `offline_after`, and `online` within two of the return. An
/// unplugged port hangs up, so no poll is silent and none of the board's own time-outs (500 ms a try) is to be allowed
/// for: a poll is one interval. What is allowed for is [`SLACK`], the way to the listener.
async fn replugs(count: u32) {
    const INTERVAL: Duration = Duration::from_millis(200);
    const SLACK: Duration = Duration::from_millis(100);

    let broker = Broker::start().await;
    let directory = scratch("cable");
    let link = directory.join("by-id");
    let answers = Answers::new(&HOUSE);
    let plug = || Board::start(answers.clone(), None, Pace::Unpaced);
    let mut random = Random(1);
    let mut board = plug();
    symlink(&board.port, &link).unwrap();
    let program = Program::start(&directory, &config(&broker.url(), "", &link, "200ms"));
    let listener = Listener::start(broker.address).await;
    listener.wait_for(AVAILABILITY, "online").await;

    let (mut before, mut moved) = (None, 0);
    let (mut gone_after, mut back_after) = (Vec::new(), Vec::new());
    // The first is for warming up: code that has not run yet is not in memory yet.
    for round in 0..=count {
        sleep(INTERVAL + random.milliseconds(0, 200)).await;
        if round == 1 {
            before = Some(Footprint::of(&program));
        }
        listener.clear();
        let earlier = board.port.clone();
        // The number of a pseudo-terminal is given again once it is closed; so another has to be made before.
        let next = (round % 2 == 0).then(plug);
        let took = Stopwatch::start();
        // First the link, or another program's terminal might take over what it points to.
        fs::remove_file(&link).unwrap();
        board.unplug().await;
        listener.wait_for(AVAILABILITY, "offline").await;
        gone_after.push(took.elapsed());

        sleep(random.milliseconds(0, 200)).await;
        listener.clear();
        board = next.unwrap_or_else(plug);
        moved += u32::from(board.port != earlier);
        assert!(round % 2 == 1 || board.port != earlier);
        let took = Stopwatch::start();
        symlink(&board.port, &link).unwrap();
        listener.wait_for(AVAILABILITY, "online").await;
        back_after.push(took.elapsed());
    }
    let before = before.unwrap();
    let after = eventually("files and threads as before", || {
        let after = Footprint::of(&program);
        (after.files == before.files && after.threads == before.threads).then_some(after)
    })
    .await;
    let polls = |times: &[Duration]| {
        let most = times.iter().max().unwrap();
        most.as_secs_f64() / INTERVAL.as_secs_f64()
    };
    println!(
        "cable: {count} times unplugged, {moved} times back as another terminal; offline after at most {:.2} polls, \
         online after at most {:.2}; open files {} then {}, threads {} then {}, resident {} kB then {} kB ({:+.1} %)",
        polls(&gone_after),
        polls(&back_after),
        before.files,
        after.files,
        before.threads,
        after.threads,
        before.resident_kb,
        after.resident_kb,
        kb_percent(before.resident_kb, after.resident_kb),
    );
    assert!(gone_after.iter().all(|time| *time <= INTERVAL * 3 + SLACK), "{gone_after:?}");
    assert!(back_after.iter().all(|time| *time <= INTERVAL * 2 + SLACK), "{back_after:?}");
    assert!(kb_percent(before.resident_kb, after.resident_kb).abs() <= 5.0, "{before:?} {after:?}");
}

#[tokio::test]
async fn an_adapter_pulled_and_plugged_a_few_times() {
    bounded(replugs(5)).await;
}

#[tokio::test]
#[ignore = "minutes: cargo test --release --test reliability -- --ignored --nocapture"]
async fn an_adapter_pulled_and_plugged_a_hundred_times() {
    bounded(replugs(100)).await;
}

// --- The broker -----------------------------------------------------------------------------------------------------

/// Changes with time and trouble, not with the pack.
const OF_THE_LINE: [&str; 3] = ["polls", "response_time", "last_success"];

/// Everything retained, each topic once, without the values that change by themselves.
fn state(messages: Vec<support::Heard>) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for heard in messages {
        let topic = heard.topic.clone();
        let of_the_line = topic.strip_prefix("bms2mqtt/house/").is_some_and(|key| OF_THE_LINE.contains(&key));
        let payload = if of_the_line { String::new() } else { heard.payload };
        assert!(state.insert(heard.topic, payload).is_none(), "{topic} twice");
    }
    state
}

/// Eight cells in mV, each time others, whose mean is a whole mV.
fn cells_of_round(round: u32) -> [u16; 8] {
    let mut cells = [0, 1, 2, 3, 5, 6, 7, 8].map(|step| 3000 + 10 * (round % 50) as u16 + step);
    cells.rotate_left(round as usize % 8);
    cells
}

fn set_cells(answers: &Answers, cells: [u16; 8]) {
    answers.change(4, |data| {
        for (place, cell) in cells.into_iter().enumerate() {
            data[2 * place..2 * place + 2].copy_from_slice(&cell.to_be_bytes());
        }
    });
}

/// What stands at the broker when the cells have these voltages, and all else is as before.
fn with_cells(before: &BTreeMap<String, String>, cells: [u16; 8]) -> BTreeMap<String, String> {
    let mut state = before.clone();
    let mut set = |key: &str, value: String| {
        let known = state.insert(format!("bms2mqtt/house/{key}"), value);
        assert!(known.is_some(), "{key}");
    };
    let volts = |millivolts: u16| format!("{}.{:03}", millivolts / 1000, millivolts % 1000);
    for (place, cell) in cells.into_iter().enumerate() {
        set(&format!("cell_{}_voltage", place + 1), volts(cell));
    }
    let (lowest, highest) = (*cells.iter().min().unwrap(), *cells.iter().max().unwrap());
    let number_of = |voltage| (1 + cells.iter().position(|cell| *cell == voltage).unwrap()).to_string();
    set("minimum_cell_voltage", volts(lowest));
    set("maximum_cell_voltage", volts(highest));
    set("cell_voltage_delta", (highest - lowest).to_string());
    set("lowest_cell", number_of(lowest));
    set("highest_cell", number_of(highest));
    set("average_cell_voltage", volts(cells.iter().sum::<u16>() / 8));
    state
}

/// What the broker holds once it holds what is expected of it, by a subscriber of its own each time.
async fn settled(
    broker: &Broker,
    what: &str,
    is_so: impl Fn(&BTreeMap<String, String>) -> bool,
) -> BTreeMap<String, String> {
    let began = Instant::now();
    loop {
        let found = state(broker.retained_messages().await);
        if is_so(&found) {
            return found;
        }
        assert!(began.elapsed() < support::PATIENCE, "waited in vain: {what}: {found:?}");
    }
}

/// The pack has told everything: its values, and a config for each of them.
fn is_announced(found: &BTreeMap<String, String>) -> bool {
    let values = found.keys().filter(|topic| topic.starts_with("bms2mqtt/house/")).count();
    let configs = found.keys().filter(|topic| topic.contains("/bms2mqtt_house/")).count();
    // The availability has no config.
    configs > 60 && values == configs + 1 && found.contains_key("bms2mqtt/house/energy_charged")
}

/// Half of the times the broker comes back with a file: what it knew when it was ended in order, or, being killed, what
/// it had known some time before. The other half it comes back with nothing.
async fn broker_restarts(count: u32) {
    if mosquitto().is_none() {
        tell("mosquitto is not installed: a broker that restarts with what it has kept is not tried");
        return;
    }
    let mut broker = Broker::start_keeping().await;
    let directory = scratch("broker-restarts");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let program = Program::start(&directory, &config(&broker.url(), "", &board.port, "100ms"));
    let first = settled(&broker, "announced", is_announced).await;

    let mut random = Random(2);
    let (mut seconds, mut in_order, mut older, mut empty) = (Vec::new(), 0, 0, 0);
    let polls_before = answers.polls();
    for round in 0..count {
        let known =
            |kept: &[u8]| kept.windows(AVAILABILITY.len()).any(|part| part == AVAILABILITY.as_bytes());
        match round % 4 {
            0 => {
                broker.end().await;
                assert!(known(&fs::read(broker.kept()).unwrap()));
                in_order += 1;
            }
            1 => {
                broker.kill().await;
                assert!(known(&fs::read(broker.kept()).unwrap()));
                older += 1;
            }
            _ => {
                broker.kill().await;
                let _ = fs::remove_file(broker.kept());
                empty += 1;
            }
        }
        // Now and then long enough for the longest pause between two tries.
        sleep(if round % 10 == 9 { Duration::from_millis(3500) } else { random.milliseconds(50, 1500) })
            .await;
        let cells = cells_of_round(round);
        set_cells(&answers, cells);
        let expected = with_cells(&first, cells);
        broker.resume().await;
        let listening = Instant::now();
        let listener = Listener::start(broker.address).await;
        eventually("all of the board's state", || {
            // Retained messages first, then what the bridge sends: the last of each topic stands.
            let last: HashMap<String, support::Heard> =
                listener.messages().into_iter().map(|heard| (heard.topic.clone(), heard)).collect();
            (state(last.into_values().collect()) == expected).then_some(())
        })
        .await;
        seconds.push(listening.elapsed().as_secs_f64());
        assert_eq!(state(broker.retained_messages().await), expected);
    }
    let polls = answers.polls() - polls_before;
    let last = state(broker.retained_messages().await);
    assert_eq!(last.keys().collect::<Vec<_>>(), first.keys().collect::<Vec<_>>(), "leftovers");
    assert_eq!(program.log().matches("connected to").count(), count as usize + 1);
    println!(
        "broker: {count} times gone and back ({in_order} with what it knew, {older} with something older, {empty} \
         empty), {polls} polls meanwhile; from listening to complete {} s (min / median / max); {} topics, each once",
        spread(seconds),
        last.len(),
    );
}

#[tokio::test]
async fn a_broker_that_restarts_a_few_times() {
    bounded(broker_restarts(4)).await;
}

#[tokio::test]
#[ignore = "minutes: cargo test --release --test reliability -- --ignored --nocapture"]
async fn a_broker_that_restarts_a_hundred_times() {
    bounded(broker_restarts(100)).await;
}

// --- The way to the broker ------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Free,
    /// Bytes a second, each way.
    Slow(u32),
    /// Nothing gets through, neither bytes nor the end of a connection, and nothing is closed.
    Stopped,
}

/// Stands between bridge and broker.
struct Proxy {
    address: SocketAddr,
    flow: watch::Sender<Flow>,
    to_broker: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    fn start(broker: SocketAddr) -> Proxy {
        let socket = TcpSocket::new_v4().unwrap();
        // Small, so that what does not get through soon stands in the bridge's own way.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        let (flow, flows) = watch::channel(Flow::Free);
        let to_broker = Arc::new(AtomicU64::new(0));
        let carried = Arc::clone(&to_broker);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((bridge, _)) = listener.accept().await {
                let (mut flows, carried) = (flows.clone(), Arc::clone(&carried));
                connections.spawn(async move {
                    not_stopped(&mut flows).await;
                    let Ok(broker) = TcpStream::connect(broker).await else {
                        return;
                    };
                    let ((from_bridge, to_bridge), (from_broker, to_broker)) =
                        (bridge.into_split(), broker.into_split());
                    let none = Arc::new(AtomicU64::new(0));
                    tokio::join!(
                        carry(from_bridge, to_broker, flows.clone(), carried),
                        carry(from_broker, to_bridge, flows, none)
                    );
                });
            }
        });
        Proxy { address, flow, to_broker, task }
    }

    fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn not_stopped(flows: &mut watch::Receiver<Flow>) -> Flow {
    flows.wait_for(|flow| *flow != Flow::Stopped).await.map_or(Flow::Stopped, |flow| *flow)
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut flows: watch::Receiver<Flow>,
    carried: Arc<AtomicU64>,
) {
    let mut lump = [0; 1024];
    loop {
        not_stopped(&mut flows).await;
        let count = from.read(&mut lump).await.unwrap_or(0);
        let flow = not_stopped(&mut flows).await;
        if count == 0 || to.write_all(&lump[..count]).await.is_err() {
            // Dropping the halves closes both ways.
            return;
        }
        carried.fetch_add(count as u64, Ordering::Relaxed);
        if let Flow::Slow(rate) = flow {
            sleep(Duration::from_secs(count as u64) / rate).await;
        }
    }
}

/// Other cells at every few milliseconds, until it is dropped.
struct Restless(JoinHandle<()>);

impl Restless {
    fn start(answers: &Answers) -> Restless {
        let answers = answers.clone();
        Restless(tokio::spawn(async move {
            for round in 0.. {
                set_cells(&answers, cells_of_round(round));
                sleep(Duration::from_millis(20)).await;
            }
        }))
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What was seen in some time.
struct Watched {
    /// The most memory that was held.
    most_kb: u64,
    polls: u64,
    /// What there was of the time on this machine.
    time: Duration,
}

async fn watched(program: &Program, answers: &Answers, time: Duration) -> Watched {
    let (began, stopwatch, polls) = (Instant::now(), Stopwatch::start(), answers.polls());
    let mut most_kb = 0;
    while began.elapsed() < time {
        most_kb = most_kb.max(resident_kb(program));
        sleep(Duration::from_millis(20)).await;
    }
    Watched { most_kb, polls: answers.polls() - polls, time: stopwatch.elapsed() }
}

/// While nothing gets through, and while little does: the board is polled as always, at no less than nine tenths of the
/// interval's rate; memory stays within 5 %; a half-open way is noticed within 2 keep-alives and 5 s; and after it the
/// newest state stands at the broker.
async fn bad_ways(count: u32, keep_alive: Duration, stopped: Duration, slow: Duration) {
    const INTERVAL: Duration = Duration::from_millis(20);
    /// Half of what the bridge has to say while all its cells change every 20 ms.
    const TRICKLE: u32 = 12 * 1024;

    let broker = Broker::start().await;
    let proxy = Proxy::start(broker.address);
    let directory = scratch("ways");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let url = format!("mqtt://{}", proxy.address);
    let extra = format!(", keep_alive: {}s", keep_alive.as_secs());
    let program = Program::start(&directory, &config(&url, &extra, &board.port, "20ms"));
    let first = settled(&broker, "announced", is_announced).await;
    let announcement = proxy.to_broker.load(Ordering::Relaxed);
    let losses = || program.log().matches("trying again until it works").count();
    assert_eq!(losses(), 0);
    // All that happens later happens once before memory is looked at.
    let restless = Restless::start(&answers);
    proxy.set(Flow::Stopped);
    eventually("the first loss", || (losses() == 1).then_some(())).await;
    proxy.set(Flow::Free);
    eventually("the first return", || (program.log().matches("connected to").count() > 1).then_some(()))
        .await;
    sleep(Duration::from_secs(1)).await;
    drop(restless);

    let before = Footprint::of(&program);
    let (mut most, mut noticed, mut back) = (before.resident_kb, Vec::new(), Vec::new());
    let (mut polls, mut polled_for, mut slow_losses, mut caught_up) = (0, Duration::ZERO, 0, Vec::new());
    for round in 0..count {
        let restless = Restless::start(&answers);
        sleep(Duration::from_millis(200)).await;
        let lost_before = losses();
        proxy.set(Flow::Stopped);
        let took = Stopwatch::start();
        let notices = async {
            eventually("the loss is noticed", || (losses() > lost_before).then(|| took.elapsed())).await
        };
        let (notice, seen) = tokio::join!(notices, watched(&program, &answers, stopped));
        noticed.push(notice.as_secs_f64());
        (most, polls, polled_for) = (most.max(seen.most_kb), polls + seen.polls, polled_for + seen.time);

        drop(restless);
        let cells = cells_of_round(round);
        set_cells(&answers, cells);
        answers.wait_for_polls(2).await;
        proxy.set(Flow::Free);
        let began = Instant::now();
        let expected = with_cells(&first, cells);
        settled(&broker, "the newest state", |found| *found == expected).await;
        back.push(began.elapsed().as_secs_f64());

        let lost_before = losses();
        let restless = Restless::start(&answers);
        proxy.set(Flow::Slow(TRICKLE));
        let seen = watched(&program, &answers, slow).await;
        (most, polls, polled_for) = (most.max(seen.most_kb), polls + seen.polls, polled_for + seen.time);
        slow_losses += losses() - lost_before;
        drop(restless);
        let cells = cells_of_round(round + 25);
        set_cells(&answers, cells);
        answers.wait_for_polls(2).await;
        proxy.set(Flow::Free);
        let began = Instant::now();
        let expected = with_cells(&first, cells);
        settled(&broker, "the newest state after the trickle", |found| *found == expected).await;
        caught_up.push(began.elapsed().as_secs_f64());
    }
    // Nothing of the old connections comes through later.
    sleep(keep_alive * 2).await;
    let expected = with_cells(&first, cells_of_round(count + 24));
    assert_eq!(state(broker.retained_messages().await), expected);

    let after = Footprint::of(&program);
    let due = polled_for.as_secs_f64() / INTERVAL.as_secs_f64();
    let longest = noticed.iter().copied().fold(0.0, f64::max);
    println!(
        "way to the broker: {count} times half-open for {} s and at {} kB/s for {} s; {polls} polls of {due:.0} due \
         meanwhile; noticed after {} s (keep-alive {} s), complete {} s after the one and {} s after \
         the other (min / median / max); {slow_losses} sessions lost to slowness; the first announcement took {} kB; resident {} kB before, {} kB at \
         most ({:+.1} %), {} kB after",
        stopped.as_secs(),
        TRICKLE / 1024,
        slow.as_secs(),
        spread(noticed),
        keep_alive.as_secs(),
        spread(back),
        spread(caught_up),
        announcement / 1024,
        before.resident_kb,
        most,
        kb_percent(before.resident_kb, most),
        after.resident_kb,
    );
    assert!(longest <= (keep_alive * 2 + Duration::from_secs(5)).as_secs_f64(), "{longest}");
    assert!(polls as f64 >= due * 0.9, "{polls} of {due}");
    assert!(kb_percent(before.resident_kb, most) <= 5.0, "{before:?}, {most} kB");
    assert_eq!((before.files, before.threads), (after.files, after.threads));
}

#[tokio::test]
async fn a_way_to_the_broker_that_hangs_once() {
    let second = Duration::from_secs(1);
    bounded(bad_ways(1, second, second * 3, second)).await;
}

#[tokio::test]
#[ignore = "minutes: cargo test --release --test reliability -- --ignored --nocapture"]
async fn a_way_to_the_broker_that_hangs_again_and_again() {
    let seconds = Duration::from_secs;
    bounded(bad_ways(8, seconds(2), seconds(12), seconds(6))).await;
}

// --- Power ----------------------------------------------------------------------------------------------------------

/// The program is killed at its beginning, when it loads and saves the energy, or at its end, when it saves what it has
/// counted. Its file then always loads, holds no less than it did, and no less than was shown at the broker.
async fn killed_programs(count: u32) {
    let broker = Broker::start().await;
    let directory = scratch("power");
    let file = directory.join("state/house.json");
    let answers = Answers::new(&BANK);
    // 300 A in, and nearly 10 Wh already, which is one step of what is shown.
    answers.change(3, |data| data[2..4].copy_from_slice(&30_000_i16.to_be_bytes()));
    let mut saved = 356_400_000_000;
    state_file::save(&file, &format!(r#"{{"charged_100nj":{saved},"discharged_100nj":0}}"#)).unwrap();
    let listener = Listener::start(broker.address).await;
    let mut random = Random(4);
    let (mut in_a_write, mut taken_away, mut shown) = (0, 0, 0);
    let mut all_shown = Vec::new();
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    for round in 0..count {
        listener.clear();
        let mut program = Program::start(&directory, &config(&broker.url(), "", &board.port, "10ms"));
        let began = Instant::now();
        // Of this program: what the one before said last, and its will, may still be on their way.
        let has_begun = |heard: &support::Heard| !heard.retained && heard.topic.ends_with("/config");
        while !listener.messages().iter().any(has_begun) {
            assert!(began.elapsed() < support::PATIENCE, "no first publish");
            sleep(Duration::from_millis(1)).await;
        }
        sleep(random.milliseconds(5, 60)).await;
        if round % 2 == 1 {
            program.signal("TERM");
            sleep(random.milliseconds(0, 6)).await;
        }
        program.child.kill().unwrap();
        program.child.wait().unwrap();
        listener.wait_for(BRIDGE, "offline").await;

        in_a_write += u32::from(file.with_extension("new").exists());
        let energies =
            listener.messages().into_iter().filter(|heard| heard.topic.ends_with("energy_charged"));
        for energy in energies {
            if energy.payload.is_empty() {
                taken_away += 1;
                continue;
            }
            let tens_of_wh: u64 = energy.payload.replace('.', "").parse().unwrap();
            assert!(tens_of_wh >= shown, "round {round}: {tens_of_wh} after {shown}");
            shown = tens_of_wh;
            all_shown.push(shown);
        }
        let text = state_file::load(&file).unwrap().expect("the file");
        Record::from_json(&text).unwrap_or_else(|error| panic!("round {round}: {text:?}: {error}"));
        let held = serde_json::from_str::<Value>(&text).unwrap()["charged_100nj"].as_u64().unwrap();
        assert!(held >= saved, "round {round}: {held} after {saved}");
        assert!(held / 360_000_000_000 >= shown, "round {round}: {held} and {shown} shown");
        saved = held;
    }
    println!(
        "power, the program: {count} times killed, {in_a_write} times with the new file not yet in its place; the file \
         always loaded and never fell, to {:.1} Wh; shown {} times, never more than was saved, {}0 Wh at last; taken \
         away at {taken_away} starts",
        saved as f64 / 36e9,
        all_shown.len(),
        shown,
    );
    assert!(!all_shown.is_empty());
    assert_eq!(taken_away, 0);
}

#[tokio::test]
async fn power_that_fails_a_few_times() {
    bounded(killed_programs(15)).await;
}

#[tokio::test]
#[ignore = "minutes: cargo test --release --test reliability -- --ignored --nocapture"]
async fn power_that_fails_three_hundred_times() {
    bounded(killed_programs(300)).await;
}

/// A file that is read slowly stands for a slow card. Home Assistant forgets an entity whose config is emptied, with all
/// that a person has set about it.
#[tokio::test]
async fn energy_stays_announced_while_a_slow_disk_is_waited_for() {
    let broker = Broker::start().await;
    let directory = scratch("slow-disk");
    let file = directory.join("state/house.json");
    let answers = Answers::new(&HOUSE);
    let start = |board: &Board| Program::start(&directory, &config(&broker.url(), "", &board.port, "100ms"));
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let mut program = start(&board);
    settled(&broker, "announced", is_announced).await;
    program.signal("TERM");
    program.ended().await;
    let text = fs::read_to_string(&file).unwrap();

    // Whoever reads this waits until somebody has written it.
    fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let listener = Listener::start(broker.address).await;
    listener.wait_for(BRIDGE, "offline").await;
    listener.clear();
    let _program = start(&board);
    listener.wait_for(AVAILABILITY, "online").await;
    answers.wait_for_polls(10).await;
    let written = tokio::task::spawn_blocking(move || fs::write(&file, text));
    timeout(support::PATIENCE, written).await.expect("the file is read").unwrap().unwrap();
    settled(&broker, "announced again", is_announced).await;
    let ours = |heard: &support::Heard| !heard.topic.starts_with("test/");
    let heard = listener.messages().into_iter().filter(ours);
    let emptied: Vec<_> = heard.filter(|heard| heard.payload.is_empty()).collect();
    assert_eq!(emptied, []);
}

const SAVES_TO: &str = "BMS2MQTT_TEST_SAVES_TO";

/// Of another length each time, so that a mixture of two would show.
fn text_of(number: u64) -> String {
    format!("{number} {}\n", "x".repeat((number * 37 % 5000) as usize))
}

fn number_of(text: &str) -> u64 {
    let number = text.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(text, text_of(number), "neither the old text nor the new one");
    number
}

/// The child of the test below: saves until it is killed, and says each number once it is saved.
#[test]
#[ignore = "does nothing by itself: a child of the test below"]
fn a_child_that_saves() {
    let Some(path) = std::env::var_os(SAVES_TO).map(PathBuf::from) else {
        return;
    };
    let mut number = state_file::load(&path).unwrap().map_or(0, |text| number_of(&text));
    // Nobody needs it for longer, should nobody kill it.
    let began = Instant::now();
    while began.elapsed() < support::PATIENCE {
        number += 1;
        state_file::save(&path, &text_of(number)).unwrap();
        // One write of a few bytes, which a pipe takes whole.
        io::stdout().write_all(format!("{number}\n").as_bytes()).unwrap();
        io::stdout().flush().unwrap();
    }
}

/// After every kill the file loads and shows no less than the child had said, and no more than the number after that.
fn killed_writes(kills: u32, writes: u64) {
    let path = scratch("writes").join("house.json");
    let mut random = Random(5);
    let (mut killed, mut written, mut in_a_write, mut worst) = (0, 0, 0, 0);
    let mut held = 0;
    while killed < kills || written < writes {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "a_child_that_saves", "--nocapture"])
            .env(SAVES_TO, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (mut said, mut line) = (None, String::new());
        while said.is_none() {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "the child has ended by itself");
            said = line.trim().parse::<u64>().ok();
        }
        let first = said.unwrap();
        std::thread::sleep(random.milliseconds(0, 60));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        let last = rest.lines().last().map_or(first, |line| line.parse().unwrap());
        in_a_write += u32::from(path.with_extension("new").exists());
        let found = number_of(&state_file::load(&path).unwrap().expect("the file"));
        assert!(first > held, "{first} after {held}");
        assert!((last..=last + 1).contains(&found), "said {last}, found {found}");
        (worst, killed, written) = (worst.max(found - last), killed + 1, written + found - held);
        held = found;
    }
    println!(
        "power, the file: {killed} kills, {in_a_write} of them before the new file was in its place; {written} writes; \
         the file always loaded, at most {worst} ahead of what was said to be saved, never behind"
    );
}

#[test]
fn a_few_writes_that_are_killed() {
    killed_writes(10, 0);
}

#[test]
#[ignore = "minutes: cargo test --release --test reliability -- --ignored --nocapture"]
fn thousands_of_writes_that_are_killed() {
    killed_writes(200, 3000);
}

// --- A great many polls ---------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Silent,
    /// The answer with a wrong checksum.
    Broken,
}

/// What the board knows of its questions, which is all that it takes to know what the bridge has counted.
#[derive(Default)]
struct Ledger {
    /// For the next questions.
    troubles: VecDeque<Trouble>,
    /// The last question, and whether it was answered well.
    last: Option<(u8, bool)>,
    /// Questions in a row that brought the bridge nothing.
    bad_in_a_row: u64,
    /// The register that this poll has got already: 03, or 04 after a poll of which 03 was given up.
    half: Option<u8>,
    /// Polls in a row of which a register was given up.
    failed_in_a_row: u64,
    count: Counts,
    /// As it was at the last trouble: when the bridge shows its own.
    at_the_last_trouble: Counts,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    polls: u64,
    silent: u64,
    broken: u64,
    /// Answered well and yet asked again: this machine was too busy for half a second.
    late: u64,
    given_up: u64,
    reopened: u64,
}

impl Counts {
    fn bad(&self) -> u64 {
        self.silent + self.broken + self.late
    }
}

impl Ledger {
    const TRIES: u64 = 3;
    const OFFLINE_AFTER: u64 = 3;

    fn bad(&mut self, register: u8) {
        self.bad_in_a_row += 1;
        if self.bad_in_a_row % Ledger::TRIES == 0 {
            self.count.given_up += 1;
            if is_of_a_poll(register) {
                self.half = None;
                self.failed_in_a_row += 1;
                self.count.reopened += u64::from(self.failed_in_a_row >= Ledger::OFFLINE_AFTER);
            }
        }
        self.at_the_last_trouble = self.count;
    }

    fn asked(&mut self, register: u8) -> Option<Trouble> {
        if let Some((last, true)) = self.last {
            // A poll that ends with 03 is followed by one that begins with it. Else no question is the same as the one
            // before it, unless that was not heard.
            if last == register && (register != 3 || self.half.is_none()) {
                self.count.late += 1;
                self.bad(register);
            } else {
                self.bad_in_a_row = 0;
                if is_of_a_poll(last) {
                    let ends = self.half.is_some();
                    self.half = (!ends).then_some(last);
                    self.failed_in_a_row *= u64::from(!ends);
                }
            }
        }
        let first_try = self.bad_in_a_row % Ledger::TRIES == 0;
        self.count.polls += u64::from(is_of_a_poll(register) && self.half.is_none() && first_try);
        let trouble = self.troubles.pop_front();
        match trouble {
            Some(Trouble::Silent) => self.count.silent += 1,
            Some(Trouble::Broken) => self.count.broken += 1,
            None => {}
        }
        self.last = Some((register, trouble.is_none()));
        if trouble.is_some() {
            self.bad(register);
        }
        trouble
    }
}

fn is_of_a_poll(register: u8) -> bool {
    matches!(register, 3 | 4)
}

#[derive(Clone)]
struct Troubled {
    answers: Answers,
    ledger: Arc<Mutex<Ledger>>,
}

impl Pack for Troubled {
    fn answer(&mut self, register: u8) -> Reply {
        let reply = self.answers.answer(register);
        match (self.ledger.lock().unwrap().asked(register), reply) {
            (None, reply) => reply,
            (Some(Trouble::Broken), Reply::Verbatim(mut frame)) => {
                let checksum = frame.len() - 2;
                frame[checksum] ^= 0x01;
                Reply::Verbatim(frame)
            }
            // A refusal is not broken; there is none between the two registers of a poll.
            (Some(_), _) => Reply::Silent,
        }
    }
}

/// A silence until the pack is offline: three polls fail, with a question of its own before the third, for two registers
/// are in doubt by then; the port is opened again, and the last question asked once more and answered.
const LONG_SILENCE: [Trouble; 13] = [Trouble::Silent; 13];
/// Shorter than that.
const TROUBLES: [&[Trouble]; 7] = [
    &[Trouble::Silent],
    &[Trouble::Broken],
    &[Trouble::Broken, Trouble::Silent],
    &[Trouble::Silent],
    &[Trouble::Broken, Trouble::Broken, Trouble::Broken],
    &[Trouble::Broken],
    &[Trouble::Broken, Trouble::Silent, Trouble::Broken, Trouble::Broken],
];

/// Memory: the mean of the last tenth of the polls within 2 % of the mean of a tenth after the first twentieth; 5 % in a
/// short run, in which code still runs for the first time (200 kB of the unoptimized program).
///
/// Counters, which are compared with what the board did, as of the last trouble: `polls` is how often the board was
/// asked for the first of a poll's registers and not again. Every question that brought nothing is a timeout or a checksum error, and
/// there are no others: timeouts + checksum_errors = silent + broken + late, timeouts ≥ silent, checksum_errors ≥ broken
/// (the same where no answer came late). Every such question is asked again, but for each third in a row, at which the
/// register is given up: retries = timeouts + checksum_errors − given up. A port is opened again at every poll from the
/// third in a row that fails.
async fn soak(polls: u64, between_troubles: u64, long_silence: bool, most_percent: f64) {
    let broker = Broker::start().await;
    let directory = scratch("soak");
    let answers = Answers::new(&HOUSE);
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let troubled = Troubled { answers: answers.clone(), ledger: Arc::clone(&ledger) };
    let board = Board::start(troubled, None, Pace::Unpaced);
    let program = Program::start(&directory, &config(&broker.url(), "", &board.port, "1ms"));
    settled(&broker, "announced", is_announced).await;
    let trouble = |troubles: &[Trouble]| ledger.lock().unwrap().troubles.extend(troubles);
    let counts = || ledger.lock().unwrap().count;

    // Every trouble once before the count, for code that has not run yet is not in memory yet.
    trouble(&[Trouble::Broken, Trouble::Silent, Trouble::Silent]);
    if long_silence {
        eventually("the first troubles are over", || (counts().given_up == 1).then_some(())).await;
        trouble(&LONG_SILENCE);
    }
    eventually("the warming up", || ledger.lock().unwrap().troubles.is_empty().then_some(())).await;

    let (began, begun) = (Instant::now(), counts().polls);
    let (mut samples, mut next, mut round) = (Vec::new(), between_troubles / 2, 0);
    let mut long_silences = u64::from(long_silence);
    let mut progress = (0, Instant::now());
    loop {
        let done = counts().polls - begun;
        if done >= polls {
            break;
        }
        if done > progress.0 {
            progress = (done, Instant::now());
        }
        assert!(progress.1.elapsed() < support::PATIENCE, "no poll after {done}");
        samples.push((done, resident_kb(&program)));
        set_cells(&answers, cells_of_round(samples.len() as u32));
        if done >= next {
            next += between_troubles;
            trouble(TROUBLES[round % TROUBLES.len()]);
            round += 1;
            if long_silence && round % 25 == 0 {
                trouble(&LONG_SILENCE);
                long_silences += 1;
            }
        }
        sleep(Duration::from_millis(10)).await;
    }
    let (done, seconds) = (counts().polls - begun, began.elapsed().as_secs_f64());
    let mean = |from: u64, to: u64| {
        let part = samples.iter().filter(|(done, _)| (polls * from / 100..polls * to / 100).contains(done));
        let (count, sum) = part.fold((0, 0), |(count, sum), (_, kb)| (count + 1, sum + kb));
        sum as f64 / f64::from(count)
    };
    let (first, last) = (mean(5, 15), mean(90, 100));
    eventually("the last trouble is over", || ledger.lock().unwrap().troubles.is_empty().then_some(())).await;

    // Nothing is lost: what changes is still heard, over a listener that was not there before.
    let listener = Listener::start(broker.address).await;
    set_cells(&answers, [3211; 8]);
    listener.wait_for("bms2mqtt/house/cell_8_voltage", "3.211").await;
    listener.wait_for(AVAILABILITY, "online").await;
    trouble(&[Trouble::Silent]);
    let mut shown = [0; 5];
    let mut all = false;
    let (asked, mut counted) = (Instant::now(), counts());
    while !all && asked.elapsed() < support::PATIENCE {
        sleep(Duration::from_millis(200)).await;
        let retained = broker.retained().await;
        shown = ["polls", "timeouts", "checksum_errors", "retries", "reopened_links"]
            .map(|key| retained[&format!("bms2mqtt/house/{key}")].parse().unwrap());
        counted = ledger.lock().unwrap().at_the_last_trouble;
        let troubles_left = ledger.lock().unwrap().troubles.len();
        all = troubles_left == 0 && shown[0] == counted.polls && shown[1] + shown[2] == counted.bad();
    }
    let [shown_polls, timeouts, checksum_errors, retries, reopened] = shown;
    let log = program.log();
    println!(
        "soak: {} polls in {seconds:.0} s, {long_silences} of the silences until offline; resident {first:.0} kB in the \
         first tenth, {last:.0} kB in the last ({:+.2} %); counted by the bridge and by the board: polls {shown_polls} \
         and {}, timeouts {timeouts} and {} silent, checksum errors {checksum_errors} and {} broken, {} answers late, \
         retries {retries} and {}, links opened again {reopened} and {}",
        done,
        percent(first, last),
        counted.polls,
        counted.silent,
        counted.broken,
        counted.late,
        counted.bad() - counted.given_up,
        counted.reopened,
    );
    assert_eq!(shown_polls, counted.polls);
    assert_eq!(timeouts + checksum_errors, counted.bad());
    assert!(timeouts >= counted.silent && checksum_errors >= counted.broken, "{shown:?} {counted:?}");
    assert_eq!(retries, counted.bad() - counted.given_up);
    assert_eq!(reopened, counted.reopened);
    assert!(percent(first, last).abs() <= most_percent, "{first} kB, {last} kB");
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn two_thousand_polls() {
    bounded(soak(2000, 400, false, 5.0)).await;
}

#[tokio::test]
#[ignore = "minutes: cargo test --release --test reliability -- --ignored --nocapture"]
async fn two_hundred_thousand_polls() {
    bounded(soak(200_000, 2000, true, 2.0)).await;
}
