//! The matrix of faults: every fault alone and in pairs, at 9600 baud on pseudo-terminals, with the real program and
//! broker. No value is ever published that the board did not hold just before, and two polls after the faults have
//! ended all is well.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bms2mqtt::jbd::frame::Status;
use bms2mqtt::jbd::message::{BasicInfo, CellVoltages, register};
use bms2mqtt::jbd::simulator::{FaultKind, Faults, Pace, Pack, Reply, serve_with, terminal};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use support::{Broker, Program, Stopwatch, eventually, scratch};

const INTERVAL: Duration = Duration::from_millis(100);
/// What may lie between a board's giving a value and its arrival at a subscriber: both questions of a poll in all
/// their tries, and what the machine takes that is not busy otherwise.
const FRESH: Duration = Duration::from_secs(4);

/// Each kind as it is tried, so that it strikes often and lets polls through too.
fn spec(kind: FaultKind) -> String {
    match kind {
        FaultKind::Mute => "mute@1s-4s/12s".to_owned(),
        FaultKind::Sleepy => "sleepy=5".to_owned(),
        kind => format!("{}=7", kind.name()),
    }
}

/// A board that holds another value at every poll: 10.00 V and 3.000 V at first, 10 mV and 1 mV more at each.
#[derive(Clone)]
struct Held {
    since: Arc<Mutex<Vec<Duration>>>,
    clock: Stopwatch,
}

impl Held {
    fn polls(&self) -> usize {
        self.since.lock().unwrap().len()
    }

    /// When the board last held its nth value.
    fn until(&self, place: usize) -> Option<Duration> {
        let since = self.since.lock().unwrap();
        since.get(place)?;
        Some(since.get(place + 1).copied().unwrap_or_else(|| self.clock.elapsed()))
    }
}

impl Pack for Held {
    fn answer(&mut self, register: u8) -> Reply {
        let mut since = self.since.lock().unwrap();
        if register == register::BASIC_INFO {
            since.push(self.clock.elapsed());
        }
        let place = since.len().saturating_sub(1) as u16;
        match register {
            register::BASIC_INFO => Reply::Data(
                BasicInfo {
                    voltage: 1000 + place,
                    state_of_charge: 50,
                    cell_count: 1,
                    ..BasicInfo::default()
                }
                .encode(),
            ),
            register::CELL_VOLTAGES => Reply::Data(CellVoltages(vec![3000 + place].into()).encode()),
            _ => Reply::Refused(Status::NO_SUCH_REGISTER),
        }
    }
}

/// One pack of a batch.
struct Trial {
    id: String,
    specs: Vec<String>,
    held: Held,
    faults: Faults,
    port: PathBuf,
}

impl Trial {
    fn start(place: usize, specs: Vec<String>, clock: &Stopwatch) -> Trial {
        let held = Held { since: Arc::default(), clock: clock.clone() };
        let faults = Faults::new(&specs, place as u64).unwrap();
        let (terminal, line) = terminal(None).unwrap();
        let port = terminal.path().to_owned();
        let (mut pack, its_faults) = (held.clone(), faults.clone());
        tokio::spawn(async move {
            let _keep = terminal;
            let _ = serve_with(line, &mut pack, Pace::Wire { baud: 9600 }, &its_faults).await;
        });
        Trial { id: format!("p{place}"), specs, held, faults, port }
    }
}

type Heard = Arc<Mutex<Vec<(Duration, String, String)>>>;

async fn listen(broker: &Broker, clock: &Stopwatch) -> Heard {
    let mut options = MqttOptions::new("faults", broker.address.ip().to_string(), broker.address.port());
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut event_loop) = AsyncClient::new(options, 10);
    client.subscribe("bms2mqtt/+/+", QoS::AtMostOnce).await.unwrap();
    let heard = Heard::default();
    let (keep, clock) = (Arc::clone(&heard), clock.clone());
    tokio::spawn(async move {
        let _client = client;
        while let Ok(event) = event_loop.poll().await {
            if let Event::Incoming(Packet::Publish(publish)) = event {
                let payload = String::from_utf8_lossy(&publish.payload).into_owned();
                keep.lock().unwrap().push((clock.elapsed(), publish.topic, payload));
            }
        }
    });
    heard
}

/// What was published of one pack, and the longest time between the board's holding a value and its arrival.
fn examine(trial: &Trial, heard: &[(Duration, String, String)]) -> (usize, Duration) {
    let mut values = 0;
    let mut oldest = Duration::ZERO;
    let mut constant: BTreeMap<&str, &str> = BTreeMap::new();
    for (at, topic, payload) in heard {
        let Some((id, key)) = topic.strip_prefix("bms2mqtt/").and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        if id != trial.id {
            continue;
        }
        let digits = payload.replace('.', "").parse::<usize>();
        let place = match key {
            "voltage" => digits.unwrap().checked_sub(1000),
            "cell_1_voltage" | "minimum_cell_voltage" | "maximum_cell_voltage" | "average_cell_voltage" => {
                digits.unwrap().checked_sub(3000)
            }
            "availability" | "connection" | "polls" | "retries" | "timeouts" | "checksum_errors"
            | "reopened_links" | "response_time" | "last_success" => continue,
            key => {
                let before = constant.insert(key, payload);
                assert!(
                    before.is_none_or(|before| before == payload),
                    "{:?}: {key} became {payload}",
                    trial.specs
                );
                continue;
            }
        };
        values += 1;
        let until = place.and_then(|place| trial.held.until(place));
        let until = until.unwrap_or_else(|| panic!("{:?}: {key} {payload} was never held", trial.specs));
        oldest = oldest.max(at.saturating_sub(until));
    }
    assert!(oldest < FRESH, "{:?}: a value {oldest:?} after the board held it", trial.specs);
    (values, oldest)
}

/// Tries these faults side by side, each on a pack of its own, for so many polls.
async fn batch(first: usize, trials: &[Vec<String>], polls: usize) {
    let broker = Broker::start().await;
    let clock = Stopwatch::start();
    let heard = listen(&broker, &clock).await;
    let directory = scratch("faults");
    let trials = trials.iter().enumerate();
    let trials: Vec<Trial> =
        trials.map(|(place, specs)| Trial::start(first + place, specs.clone(), &clock)).collect();
    let mut yaml = format!("mqtt: {{url: '{}'}}\npacks:\n", broker.url());
    for Trial { id, port, .. } in &trials {
        yaml +=
            &format!("  - {{id: {id}, port: {}, interval: {}ms}}\n", port.display(), INTERVAL.as_millis());
    }
    let _program = Program::start(&directory, &yaml);
    let began = Instant::now();
    for trial in &trials {
        // A mute board is not polled but asked in vain: those count by the clock.
        while trial.held.polls() < polls {
            assert!(
                began.elapsed() < Duration::from_secs(300),
                "{:?}: {} polls",
                trial.specs,
                trial.held.polls()
            );
            tokio::time::sleep(INTERVAL).await;
        }
    }
    let before: Vec<usize> = trials
        .iter()
        .map(|trial| {
            trial.faults.clear();
            trial.held.polls()
        })
        .collect();
    for (trial, before) in trials.iter().zip(before) {
        let topic = format!("bms2mqtt/{}/voltage", trial.id);
        let first = eventually("a value after the faults", || {
            let heard = heard.lock().unwrap();
            let voltages = heard.iter().filter(|(_, heard, _)| *heard == topic);
            let mut places = voltages
                .filter_map(|(.., volts)| volts.replace('.', "").parse::<usize>().ok()?.checked_sub(1000));
            places.find(|place| *place >= before)
        });
        // The poll that was under way, and two.
        assert!(first.await <= before + 3, "{:?}", trial.specs);
    }
    let heard = heard.lock().unwrap().clone();
    for trial in &trials {
        let (values, oldest) = examine(trial, &heard);
        assert!(values > polls / 4, "{:?}: only {values} values", trial.specs);
        let kinds =
            FaultKind::all().filter(|kind| trial.specs.iter().any(|spec| spec.starts_with(kind.name())));
        let struck: Vec<String> =
            kinds.map(|kind| format!("{} {}", kind.name(), trial.faults.struck(kind))).collect();
        assert!(struck.iter().all(|struck| !struck.ends_with(" 0")), "{struck:?} never struck");
        println!(
            "{}: {} polls, {values} values, the oldest {} ms after the board held it",
            struck.join(" + "),
            trial.held.polls(),
            oldest.as_millis()
        );
    }
}

fn alone() -> Vec<Vec<String>> {
    FaultKind::all().map(|kind| vec![spec(kind)]).collect()
}

fn in_pairs() -> Vec<Vec<String>> {
    let kinds: Vec<FaultKind> = FaultKind::all().collect();
    let pairs = kinds
        .iter()
        .enumerate()
        .flat_map(|(place, one)| kinds[..place].iter().map(move |other| (one, other)));
    pairs.map(|(one, other)| vec![spec(*one), spec(*other)]).collect()
}

#[tokio::test]
async fn every_fault_alone_invents_and_loses_nothing() {
    batch(0, &alone(), 40).await;
}

#[tokio::test]
#[ignore = "ten minutes: cargo test --release --test faults -- --ignored --nocapture"]
async fn every_fault_alone_and_in_pairs_invents_and_loses_nothing() {
    let trials: Vec<Vec<String>> = alone().into_iter().chain(in_pairs()).collect();
    for (place, some) in trials.chunks(13).enumerate() {
        batch(place * 13, some, 200).await;
    }
    println!("{} combinations of faults, 200 polls each", trials.len());
}
