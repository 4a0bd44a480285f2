//! What a broker sees of a running bridge: real program, real pseudo-terminal, captured frames, Mosquitto.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bms2mqtt::jbd::simulator::Pace;
use serde_json::{Value, json};
use support::{
    Answers, BANK, Board, Broker, COUNTERS, HOUSE, HOUSE_LINE, Heard, Listener, NAME, OwnPort, Program,
    Stopwatch, eventually, mosquitto, scratch, spawn, tell,
};

const WIRE: Pace = Pace::Wire { baud: 9600 };

/// The contract's keys of a pack with so many cells and temperatures, without those that need a newer board.
fn keys(cells: usize, temperatures: usize) -> Vec<String> {
    let mut keys: Vec<String> = "voltage current power state_of_charge remaining_capacity nominal_capacity cycles \
        minimum_cell_voltage maximum_cell_voltage average_cell_voltage cell_voltage_delta lowest_cell highest_cell \
        energy_charged energy_discharged balancing charge_mosfet discharge_mosfet charging problem \
        cell_overvoltage cell_undervoltage pack_overvoltage pack_undervoltage charge_overtemperature \
        charge_undertemperature discharge_overtemperature discharge_undertemperature charge_overcurrent \
        discharge_overcurrent short_circuit front_end_error mosfet_software_lock charge_mosfet_breakdown \
        discharge_mosfet_breakdown protections connection stored_energy time_to_full time_to_empty mode \
        last_protection last_protection_time"
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    for cell in 1..=cells {
        keys.push(format!("cell_{cell}_voltage"));
        keys.push(format!("cell_{cell}_balancing"));
    }
    keys.extend((1..=temperatures).map(|sensor| format!("temperature_{sensor}")));
    // Behind it nothing is announced any more.
    keys.push("last_success".to_owned());
    keys
}

/// What tells of the line, and is there without a board too.
const LINE: [&str; 7] =
    ["polls", "retries", "timeouts", "checksum_errors", "reopened_links", "response_time", "last_success"];

/// Is it what the line's trouble changes, of which a busy machine makes some?
fn is_of_the_line(topic: &str) -> bool {
    LINE.iter().any(|key| topic.ends_with(&format!("house/{key}")))
}

fn without_line(mut retained: BTreeMap<String, String>) -> BTreeMap<String, String> {
    retained.retain(|topic, _| !is_of_the_line(topic));
    retained
}

fn config(broker: &Broker, packs: &[(&str, &Path)]) -> String {
    let mut yaml = format!("mqtt: {{url: '{}'}}\npacks:\n", broker.url());
    for (id, port) in packs {
        yaml += &format!("  - {{id: {id}, name: The {id}, port: {}, interval: 300ms}}\n", port.display());
    }
    yaml
}

/// Everything retained, once this pack has told all its keys.
async fn announced(broker: &Broker, pack: &str, keys: &[String]) -> BTreeMap<String, String> {
    let began = Instant::now();
    loop {
        let retained = broker.retained().await;
        let value = |key: &String| retained.contains_key(&format!("bms2mqtt/{pack}/{key}"));
        let config =
            |key: &String| retained.keys().any(|topic| topic.ends_with(&format!("_{pack}/{key}/config")));
        let missing: Vec<_> = keys.iter().filter(|key| !value(key) || !config(key)).collect();
        if missing.is_empty() {
            return retained;
        }
        assert!(began.elapsed() < support::PATIENCE, "missing: {missing:?}");
    }
}

/// Waits until just this stands at the broker, but for what the line's trouble changes.
async fn stands(broker: &Broker, expected: BTreeMap<String, String>) {
    let expected = without_line(expected);
    let began = Instant::now();
    loop {
        let found = without_line(broker.retained().await);
        if found == expected {
            return;
        }
        if began.elapsed() > support::PATIENCE {
            assert_eq!(found, expected);
        }
    }
}

#[tokio::test]
async fn an_8_cell_and_a_16_cell_pack_are_there_with_every_key() {
    let broker = Broker::start().await;
    let directory = scratch("keys");
    let house = Board::start(Answers::new(&[HOUSE[0], HOUSE[1], NAME]), None, WIRE);
    let bank = Board::start(Answers::new(&[BANK[0], BANK[1], COUNTERS]), None, WIRE);
    let _program =
        Program::start(&directory, &config(&broker, &[("house", &house.port), ("bank", &bank.port)]));
    announced(&broker, "house", &keys(8, 2)).await;
    announced(&broker, "bank", &keys(16, 4)).await;
    let retained = announced(&broker, "bank", &["system_restart_count".to_owned()]).await;

    let online: Vec<_> =
        retained.iter().filter(|(_, payload)| *payload == "online").map(|(topic, _)| topic).collect();
    assert_eq!(
        online,
        ["bms2mqtt/bank/availability", "bms2mqtt/bridge/availability", "bms2mqtt/house/availability"]
    );
    for (topic, payload) in [
        ("house/voltage", "26.66"),
        ("house/current", "0.00"),
        ("house/state_of_charge", "99"),
        ("house/remaining_capacity", "79.11"),
        ("house/cell_6_voltage", "3.336"),
        ("house/highest_cell", "6"),
        ("house/cell_voltage_delta", "5"),
        ("house/temperature_2", "22.4"),
        ("house/charge_mosfet", "ON"),
        ("house/charging", "OFF"),
        ("house/protections", "none"),
        ("house/connection", "ON"),
        ("house/stored_energy", "2.11"),
        ("house/time_to_full", "None"),
        ("house/time_to_empty", "None"),
        ("house/mode", "idle"),
        ("house/last_protection", "none"),
        ("house/last_protection_time", "None"),
        ("house/energy_charged", "0.00"),
        ("house/production_date", "2019-11-18"),
        ("bank/voltage", "52.97"),
        ("bank/current", "-6.92"),
        ("bank/power", "-366.55"),
        ("bank/mode", "discharging"),
        ("bank/time_to_full", "None"),
        ("bank/cell_16_voltage", "3.366"),
        ("bank/temperature_1", "10.5"),
        ("bank/system_restart_count", "42"),
    ] {
        assert_eq!(retained.get(&format!("bms2mqtt/{topic}")).map(String::as_str), Some(payload), "{topic}");
    }
    // What these boards do not have has neither topic nor entity.
    for key in ["full_charge_capacity", "state_of_health", "cell_17_voltage", "temperature_5"] {
        assert!(!retained.keys().any(|topic| topic.contains(key)), "{key}");
    }
    assert!(!retained.contains_key("bms2mqtt/house/cell_9_voltage"));

    let config: Value =
        serde_json::from_str(&retained["homeassistant/sensor/bms2mqtt_house/cell_1_voltage/config"]).unwrap();
    let expected = json!({
        "name": "Cell 1 voltage",
        "unique_id": "bms2mqtt_house_cell_1_voltage",
        "default_entity_id": "sensor.house_cell_1_voltage",
        "state_topic": "bms2mqtt/house/cell_1_voltage",
        "availability": [{"topic": "bms2mqtt/bridge/availability"}, {"topic": "bms2mqtt/house/availability"}],
        "availability_mode": "all",
        "device_class": "voltage",
        "unit_of_measurement": "V",
        "state_class": "measurement",
        "entity_category": "diagnostic",
        "suggested_display_precision": 3,
        "device": {
            "identifiers": ["bms2mqtt_house"],
            "name": "The house",
            "manufacturer": "JBD",
            "model": "SP15S001-P13S-30A",
            "sw_version": "1.5",
            "via_device": "bms2mqtt_bridge",
        },
        "origin": {
            "name": "bms2mqtt",
            "sw_version": env!("CARGO_PKG_VERSION"),
            "support_url": env!("CARGO_PKG_REPOSITORY"),
        },
    });
    assert_eq!(config, expected);
    let mode: Value =
        serde_json::from_str(&retained["homeassistant/sensor/bms2mqtt_house/mode/config"]).unwrap();
    assert_eq!(mode["device_class"], "enum");
    assert_eq!(mode["options"], json!(["idle", "charging", "discharging"]));
    let connection = &retained["homeassistant/binary_sensor/bms2mqtt_house/connection/config"];
    let connection: Value = serde_json::from_str(connection).unwrap();
    assert_eq!(connection["availability"], json!([{"topic": "bms2mqtt/bridge/availability"}]));
    for (topic, payload) in retained.iter().filter(|(topic, _)| topic.ends_with("/config")) {
        let config: Value = serde_json::from_str(payload).unwrap();
        let (_, id) = topic.split_once("/bms2mqtt_").unwrap();
        let id = id.trim_end_matches("/config").replace('/', "_");
        assert_eq!(config["unique_id"], format!("bms2mqtt_{id}"), "{topic}");
        assert!(!payload.contains("null"), "{payload}");
    }
}

/// Topics and payloads, but for what the line's trouble changes.
fn heard(listener: &Listener) -> Vec<String> {
    let messages = listener.messages().into_iter().filter(|m| !is_of_the_line(&m.topic));
    messages.map(|m| format!("{} {}", m.topic, m.payload)).collect()
}

#[tokio::test]
async fn only_what_changes_is_published() {
    let broker = Broker::start().await;
    let directory = scratch("changes");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, WIRE);
    let _program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    announced(&broker, "house", &keys(8, 2)).await;

    let listener = Listener::start(broker.address).await;
    listener.catch_up().await;
    listener.clear();
    answers.wait_for_polls(4).await;
    listener.catch_up().await;
    assert_eq!(heard(&listener), [] as [String; 0]);

    answers.change(4, |data| data[5] = 0x06); // cell 3: 3.332 → 3.334 V
    listener.wait_for("bms2mqtt/house/cell_3_voltage", "3.334").await;
    answers.wait_for_polls(2).await;
    listener.catch_up().await;
    assert_eq!(heard(&listener), ["bms2mqtt/house/cell_3_voltage 3.334"]);

    listener.clear();
    answers.change(3, |data| data[17] = 0x01); // cell overvoltage
    listener.wait_for("bms2mqtt/house/protections", "cell_overvoltage").await;
    assert_eq!(
        heard(&listener),
        [
            "bms2mqtt/house/problem ON",
            "bms2mqtt/house/cell_overvoltage ON",
            "bms2mqtt/house/protections cell_overvoltage",
        ]
    );
}

#[tokio::test]
async fn noise_within_the_dead_band_is_not_published_and_a_protection_always_is() {
    let broker = Broker::start().await;
    let directory = scratch("dead-band");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, WIRE);
    let config = config(&broker, &[("house", &board.port)]) + "dead_band: {cell_voltage: 0.003}\n";
    let _program = Program::start(&directory, &config);
    announced(&broker, "house", &keys(8, 2)).await;

    let listener = Listener::start(broker.address).await;
    listener.catch_up().await;
    listener.clear();
    answers.change(4, |data| data[1] = 0x06); // cell 1: 3.332 → 3.334 V
    answers.change(4, |data| data[5] = 0x06); // cell 3: 3.332 → 3.334 V
    answers.wait_for_polls(3).await;
    listener.catch_up().await;
    assert_eq!(heard(&listener), [] as [String; 0]);

    answers.change(3, |data| data[17] = 0x01); // cell overvoltage
    listener.wait_for("bms2mqtt/house/protections", "cell_overvoltage").await;
    for (key, value) in [
        ("cell_1_voltage", "3.334"),
        ("cell_3_voltage", "3.334"),
        ("cell_overvoltage", "ON"),
        ("problem", "ON"),
    ] {
        listener.wait_for(&format!("bms2mqtt/house/{key}"), value).await;
    }
}

#[tokio::test]
async fn home_assistants_birth_brings_everything_again() {
    let broker = Broker::start().await;
    let directory = scratch("birth");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let _program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    let retained = announced(&broker, "house", &keys(8, 2)).await;

    let listener = Listener::start(broker.address).await;
    listener.catch_up().await;
    listener.clear();
    listener.client.publish(BIRTH, rumqttc::QoS::AtMostOnce, false, "online").await.unwrap();
    let again = || -> BTreeMap<_, _> {
        let heard = listener.messages().into_iter().filter(|message| message.topic != BIRTH);
        without_line(heard.map(|message| (message.topic, message.payload)).collect())
    };
    let expected = without_line(retained);
    eventually("all again", || (again().len() == expected.len()).then_some(())).await;
    assert_eq!(again(), expected);
    let kind = |topic: &str| match topic {
        BIRTH => 0,
        topic if topic.ends_with("/config") => 1,
        topic if topic.ends_with("/availability") => 2,
        _ => 3,
    };
    let heard: Vec<Heard> =
        listener.messages().into_iter().filter(|message| !is_of_the_line(&message.topic)).collect();
    assert!(heard.is_sorted_by_key(|message| kind(&message.topic)), "{heard:?}");
}

const BIRTH: &str = "homeassistant/status";

#[tokio::test]
async fn a_stop_says_offline_at_once_and_a_kill_leaves_it_to_the_will() {
    let broker = Broker::start().await;
    let directory = scratch("stop");
    let board = Board::start(Answers::new(&HOUSE), None, WIRE);
    let yaml = config(&broker, &[("house", &board.port)]);
    let mut program = Program::start(&directory, &yaml);
    announced(&broker, "house", &keys(8, 2)).await;
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/bridge/availability", "online").await;
    listener.clear();
    let took = Stopwatch::start();
    program.signal("TERM");
    assert_eq!(program.ended().await.code(), Some(0));
    assert!(took.elapsed() < Duration::from_secs(2), "{:?}", took.elapsed());
    listener.catch_up().await;
    let mut heard = heard(&listener);
    heard.sort();
    let offline = ["bms2mqtt/bridge/availability offline", "bms2mqtt/house/availability offline"];
    assert_eq!(heard, offline, "a clean stop has no will");

    let mut program = Program::start(&directory, &yaml);
    listener.wait_for("bms2mqtt/house/availability", "online").await;
    listener.clear();
    program.child.kill().unwrap();
    listener.wait_for("bms2mqtt/bridge/availability", "offline").await;
}

#[tokio::test]
async fn a_broker_that_comes_back_empty_has_everything_within_5_seconds() {
    let mut broker = Broker::start().await;
    let directory = scratch("restart");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, WIRE);
    let _program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    let before = announced(&broker, "house", &keys(8, 2)).await;
    broker.kill().await;
    answers.wait_for_polls(8).await;
    broker.resume().await;
    let back = Stopwatch::start();
    stands(&broker, before).await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
}

#[tokio::test]
async fn health_and_systemd_know_whether_it_is_at_work() {
    let mut broker = Broker::start().await;
    let directory = scratch("health");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let health = || {
        let output = support::bms2mqtt(&directory).arg("health").output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    fs::write(directory.join("config.yaml"), config(&broker, &[("house", &board.port)])).unwrap();
    let (code, said) = health();
    assert_eq!(code, Some(1));
    assert!(said.contains("no bridge runs with this configuration"), "{said}");

    let socket = directory.join("notify");
    let systemd = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = systemd.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    };
    let mut command = support::bms2mqtt(&directory);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "600000");
    let child = spawn(command.stderr(fs::File::create(directory.join("log")).unwrap()));
    let _program = Program { child, directory: directory.clone() };
    assert_eq!(eventually("ready", told).await, "READY=1\n");
    for _ in 0..3 {
        assert_eq!(eventually("the watchdog is fed", told).await, "WATCHDOG=1\n");
    }
    announced(&broker, "house", &keys(8, 2)).await;
    let (code, said) = health();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("healthy\npack house: read "), "{said}");
    assert!(said.ends_with(" s ago\nbroker: connected\n"), "{said}");
    broker.kill().await;
    eventually("the loss shows", || health().1.contains("broker: not connected for").then_some(())).await;
}

#[tokio::test]
async fn a_board_that_falls_silent_is_offline_and_comes_back() {
    let broker = Broker::start().await;
    let directory = scratch("silence");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/availability", "online").await;
    answers.mute(true);
    listener.wait_for("bms2mqtt/house/availability", "offline").await;
    listener.wait_for("bms2mqtt/house/connection", "OFF").await;
    program.logged("the board is silent").await;
    listener.clear();
    answers.mute(false);
    listener.wait_for("bms2mqtt/house/availability", "online").await;
    listener.wait_for("bms2mqtt/house/connection", "ON").await;
    program.logged("the board answers").await;
}

#[tokio::test]
async fn an_adapter_that_is_pulled_and_comes_back_by_the_same_name_is_used_again() {
    let broker = Broker::start().await;
    let directory = scratch("replug");
    let link = directory.join("by-id");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), Some(&link), Pace::Unpaced);
    let program = Program::start(&directory, &config(&broker, &[("house", &link)]));
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/availability", "online").await;
    board.unplug().await;
    listener.wait_for("bms2mqtt/house/availability", "offline").await;
    program.logged("there is no such port").await;
    listener.clear();
    let _board = Board::start(answers, Some(&link), Pace::Unpaced);
    listener.wait_for("bms2mqtt/house/availability", "online").await;
}

#[tokio::test]
async fn a_pack_that_is_not_there_shows_its_connection_only() {
    let broker = Broker::start().await;
    let directory = scratch("absent");
    let _program = Program::start(&directory, &config(&broker, &[("house", Path::new("/dev/no-such-port"))]));
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/availability", "offline").await;
    listener.wait_for("bms2mqtt/house/connection", "OFF").await;
    let retained = broker.retained().await;
    let of_the_line = |topic: &str| LINE.iter().any(|key| topic.contains(&format!("/{key}")));
    let topics: Vec<&str> = retained.keys().map(String::as_str).filter(|topic| !of_the_line(topic)).collect();
    assert_eq!(
        topics,
        [
            "bms2mqtt/bridge/availability",
            "bms2mqtt/house/availability",
            "bms2mqtt/house/connection",
            "homeassistant/binary_sensor/bms2mqtt_bridge/connection/config",
            "homeassistant/binary_sensor/bms2mqtt_house/connection/config",
        ]
    );
}

#[tokio::test]
async fn leftovers_of_a_renamed_pack_and_of_lost_cells_are_removed() {
    let broker = Broker::start().await;
    let directory = scratch("leftovers");
    let bank = Board::start(Answers::new(&BANK), None, Pace::Unpaced);
    let mut program = Program::start(
        &directory,
        &config(&broker, &[("house", &bank.port), ("van", Path::new("/dev/none"))]),
    );
    announced(&broker, "house", &keys(16, 4)).await;
    // Killed: the pack's `online` stays behind, and so does everything else.
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    drop(bank);

    // A foreign entity and another bridge's pack are nobody's leftovers.
    let foreign = [
        ("homeassistant/sensor/other_house/voltage/config", "{}"),
        ("bms2mqtt/shed/availability", "online"),
        ("bms2mqtt/shed/voltage", "13.20"),
    ];
    let listener = Listener::start(broker.address).await;
    for (topic, payload) in foreign {
        listener.client.publish(topic, rumqttc::QoS::AtLeastOnce, true, payload).await.unwrap();
    }
    let house = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let mut program = Program::start(&directory, &config(&broker, &[("house", &house.port)]));
    let gone = |retained: &BTreeMap<String, String>| {
        !retained
            .keys()
            .any(|topic| topic.contains("cell_9_") || topic.contains("_van") || topic.contains("/van/"))
    };
    let began = Instant::now();
    let retained = loop {
        let retained = broker.retained().await;
        if gone(&retained) && retained["bms2mqtt/house/voltage"] == "26.66" {
            break retained;
        }
        assert!(began.elapsed() < support::PATIENCE, "{:?}", retained.keys());
    };
    for (topic, payload) in foreign {
        assert_eq!(retained.get(topic).map(String::as_str), Some(payload), "{topic}");
    }
    program.logged("pack shed at this base topic is not ours").await;
    program.signal("TERM");
    program.ended().await;

    // Without its memory of earlier packs it finds them by their `offline`.
    fs::remove_dir_all(directory.join("state")).unwrap();
    let program = Program::start(&directory, &config(&broker, &[("home", &house.port)]));
    announced(&broker, "home", &keys(8, 2)).await;
    program.logged("removing what pack house").await;
    let began = Instant::now();
    while broker
        .retained()
        .await
        .keys()
        .any(|topic| topic.contains("_house/") && !topic.contains("other_house"))
    {
        assert!(began.elapsed() < support::PATIENCE);
    }
}

#[tokio::test]
async fn a_renamed_packs_entities_go_before_the_new_ones_come() {
    if mosquitto().is_none() {
        tell("mosquitto is not installed: what a broker has kept of a renamed pack is not tried");
        return;
    }
    let mut broker = Broker::start_keeping().await;
    let directory = scratch("renamed");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let mut program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    announced(&broker, "house", &keys(8, 2)).await;
    program.signal("TERM");
    program.ended().await;

    // All is known of the pack before the broker is there: what it kept of the old id must come to light first.
    broker.end().await;
    let _program = Program::start(&directory, &config(&broker, &[("home", &board.port)]));
    answers.wait_for_polls(3).await;
    broker.resume().await;
    let listener = Listener::start(broker.address).await;
    let place = |of: &dyn Fn(&Heard) -> bool| {
        let messages = listener.messages();
        let live: Vec<_> = messages.iter().filter(|message| !message.retained).collect();
        (live.iter().position(|message| of(message)), live.iter().rposition(|message| of(message)))
    };
    let gone = |message: &Heard| message.topic.contains("/bms2mqtt_house/") && message.payload.is_empty();
    let new = |message: &Heard| message.topic.contains("/bms2mqtt_home/") && !message.payload.is_empty();
    listener.wait_for("bms2mqtt/home/availability", "online").await;
    let (last_gone, first_new) = (place(&gone).1, place(&new).0);
    assert!(last_gone.is_some() && last_gone < first_new, "{last_gone:?} {first_new:?}");
}

#[tokio::test]
async fn energy_goes_on_where_it_was() {
    let broker = Broker::start().await;
    let directory = scratch("energy");
    fs::create_dir_all(directory.join("state")).unwrap();
    let one_and_a_half = r#"{"charged_100nj":54000000000000,"discharged_100nj":0}"#;
    fs::write(directory.join("state/house.json"), one_and_a_half).unwrap();
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let _program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/energy_charged", "1.50").await;
    listener.wait_for("bms2mqtt/house/energy_discharged", "0.00").await;
    let energies: Vec<_> =
        listener.messages().into_iter().filter(|m| m.topic.ends_with("energy_charged")).collect();
    assert_eq!(energies.len(), 1, "nothing before what was counted is loaded");
}

#[tokio::test]
async fn the_last_protection_is_told_and_kept_over_restarts() {
    let mut broker = Broker::start().await;
    let directory = scratch("alarm");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let yaml = config(&broker, &[("house", &board.port)]);
    let mut program = Program::start(&directory, &yaml);
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/last_protection", "none").await;

    let cell_undervoltage = |data: &mut [u8]| data[17] = 0b10;
    answers.change(3, cell_undervoltage);
    listener.wait_for("bms2mqtt/house/problem", "ON").await;
    listener.wait_for("bms2mqtt/house/last_protection", "cell_undervoltage").await;
    answers.change(3, |data| data[17] = 0);
    listener.wait_for("bms2mqtt/house/problem", "OFF").await;
    let time = broker.retained().await["bms2mqtt/house/last_protection_time"].clone();
    let age = humantime::parse_rfc3339(&time).unwrap().elapsed().unwrap();
    assert!(age < support::PATIENCE, "{age:?}");
    program.signal("KILL");
    program.ended().await;

    broker.kill().await;
    broker.resume().await;
    let _program = Program::start(&directory, &yaml);
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/last_protection", "cell_undervoltage").await;
    listener.wait_for("bms2mqtt/house/last_protection_time", &time).await;
}

#[tokio::test]
async fn names_are_in_the_users_language_and_nothing_else_is() {
    let broker = Broker::start().await;
    let directory = scratch("language");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let yaml = config(&broker, &[("house", &board.port)]);
    let mut program = Program::start(&directory, &yaml);
    let english = announced(&broker, "house", &keys(8, 2)).await;
    program.signal("TERM");
    program.ended().await;

    let _program = Program::start(&directory, &(yaml + "home_assistant: {language: ru}\n"));
    let listener = Listener::start(broker.address).await;
    // The last of what is asked, and the last of what is loaded.
    for key in ["last_success", "last_protection_time"] {
        let topic = format!("homeassistant/sensor/bms2mqtt_house/{key}/config");
        let is_russian = |heard: &Heard| heard.topic == topic && heard.payload.contains("последн");
        eventually(&topic, || listener.messages().iter().any(is_russian).then_some(())).await;
    }
    let russian = broker.retained().await;
    assert_eq!(english.keys().collect::<Vec<_>>(), russian.keys().collect::<Vec<_>>());
    let configs = english.iter().filter(|(topic, _)| topic.ends_with("/config"));
    for (topic, config) in configs {
        let [mut english, mut russian] =
            [config, &russian[topic]].map(|config| serde_json::from_str::<Value>(config).unwrap());
        let name = russian["name"].take();
        assert!(!name.as_str().unwrap().is_ascii(), "{topic}: {name}");
        assert_ne!(name, english["name"].take(), "{topic}");
        assert_eq!(english, russian, "{topic}");
    }
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_costs_only_what_would_be_kept_there() {
    let broker = Broker::start().await;
    let directory = scratch("no-state");
    fs::write(directory.join("state"), "a file in the way").unwrap();
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    program.logged("energy and the last protection are not shown: cannot read").await;
    let kept = |key: &str| key.starts_with("energy_") || key.starts_with("last_protection");
    let keys: Vec<String> = keys(8, 2).into_iter().filter(|key| !kept(key)).collect();
    let retained = announced(&broker, "house", &keys).await;
    assert!(!retained.keys().any(|topic| topic.split('/').any(kept)));
}

#[tokio::test]
async fn the_older_configuration_gives_its_line_and_everything_else() {
    let broker = Broker::start().await;
    let directory = scratch("older");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let conf = format!(
        "// smart_bms\ndevice={}\nMQTTserver={} # here\nMQTTtopik=test_1\nrun_interval=0.3\nout_to=mqtt\n",
        board.port.display(),
        broker.address
    );
    fs::write(directory.join("bms.conf"), conf).unwrap();
    let log = fs::File::create(directory.join("log")).unwrap();
    let child = spawn(support::bms2mqtt(&directory).stderr(log));
    let _program = Program { child, directory: directory.clone() };
    let listener = Listener::start(broker.address).await;
    listener.wait_for("test_1", HOUSE_LINE).await;
    let lines = || listener.messages().iter().filter(|m| m.topic == "test_1").count();
    eventually("a line at every poll", || (lines() >= 3).then_some(())).await;
    assert!(!broker.retained().await.contains_key("test_1"), "a line of a dead bridge would pass for news");
    announced(&broker, "battery", &keys(8, 2)).await;
}

#[tokio::test]
async fn a_broker_that_refuses_is_told_readably_and_tried_patiently() {
    let directory = scratch("refused");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let nobody = OwnPort::new();
    let url = format!("mqtt://{}", nobody.address);
    let yaml = format!(
        "mqtt: {{url: '{url}', username: bms, password: hunter2}}\npacks: [{{port: {}}}]",
        board.port.display()
    );
    let mut program = Program::start(&directory, &yaml);
    program.logged(&format!("{url}: connection refused; is the broker running")).await;
    assert!(program.child.try_wait().unwrap().is_none());
    program.signal("TERM");
    assert_eq!(program.ended().await.code(), Some(0));

    if mosquitto().is_none() {
        tell("mosquitto is not installed: passwords are not tried");
        return;
    }
    let passwords = directory.join("passwords");
    let hash = std::process::Command::new("mosquitto_passwd")
        .args(["-b", "-c", passwords.to_str().unwrap(), "bms", "right"])
        .status();
    assert!(hash.unwrap().success());
    let broker = Broker::start_with(&format!("password_file {}\n", passwords.display())).await;
    let yaml = yaml.replace(&url, &broker.url());
    let program = Program::start(&directory, &yaml);
    program
        .logged("the broker refuses user \"bms\" with a password; check mqtt.username and mqtt.password")
        .await;
    assert!(!program.log().contains("hunter2"));
    drop(program);

    // A password file is read again at every try, as a renewed secret needs it.
    let secret = directory.join("secret");
    fs::write(&secret, "hunter2\n").unwrap();
    let yaml = yaml.replace("password: hunter2", "password_file: secret");
    let program = Program::start(&directory, &yaml);
    program.logged("the broker refuses user").await;
    fs::write(&secret, "right\n").unwrap();
    program.logged("connected to").await;
}

#[tokio::test]
async fn what_somebody_wipes_is_put_back() {
    let broker = Broker::start().await;
    let directory = scratch("wiped");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    let before = announced(&broker, "house", &keys(8, 2)).await;
    let listener = Listener::start(broker.address).await;
    let last = "bms2mqtt/house/availability";
    for topic in before.keys().map(String::as_str).filter(|topic| *topic != last).chain([last]) {
        listener.client.publish(topic, rumqttc::QoS::AtLeastOnce, true, "").await.unwrap();
    }
    program.logged("announcing everything again").await;
    stands(&broker, before).await;
}

#[tokio::test]
async fn two_bridges_leave_each_others_packs_alone() {
    let broker = Broker::start().await;
    let directory = scratch("two");
    let (house, bank) =
        (Board::start(Answers::new(&HOUSE), None, WIRE), Board::start(Answers::new(&BANK), None, WIRE));
    let _one = Program::start(&directory, &config(&broker, &[("house", &house.port)]));
    announced(&broker, "house", &keys(8, 2)).await;
    // On the same machine, with the same state directory: that it knows the other pack does not make it a leftover.
    let two = Program::start(&directory, &config(&broker, &[("bank", &bank.port)]));
    announced(&broker, "bank", &keys(16, 4)).await;
    two.logged("pack house at this base topic is not ours").await;
    announced(&broker, "house", &keys(8, 2)).await;
}

#[tokio::test]
async fn a_board_that_keeps_silent_about_its_cells_gives_what_it_has() {
    let broker = Broker::start().await;
    let directory = scratch("no-cells");
    let answers = Answers::new(&HOUSE[..1]);
    answers.silent_about(4);
    let board = Board::start(answers, None, Pace::Unpaced);
    let _program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    let keys: Vec<String> =
        ["voltage", "state_of_charge", "cell_8_balancing", "protections"].map(str::to_owned).into();
    announced(&broker, "house", &keys).await;
    // Twice it is asked in vain for its cells, and counts as gone until it is asked no more.
    Listener::start(broker.address).await.wait_for("bms2mqtt/house/availability", "online").await;
    let retained = broker.retained().await;
    assert!(!retained.contains_key("bms2mqtt/house/cell_1_voltage"));
    assert!(!retained.contains_key("bms2mqtt/house/minimum_cell_voltage"));
}

#[tokio::test]
async fn a_refusal_takes_nothing_away_that_was_there() {
    let broker = Broker::start().await;
    let directory = scratch("refusal");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let _program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    announced(&broker, "house", &keys(8, 2)).await;
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/availability", "online").await;
    listener.clear();
    answers.refuse(3);
    listener.wait_for("bms2mqtt/house/availability", "offline").await;
    answers.set(HOUSE[0]);
    listener.wait_for("bms2mqtt/house/availability", "online").await;
    let removed: Vec<_> =
        listener.messages().into_iter().filter(|message| message.payload.is_empty()).collect();
    assert_eq!(removed, []);
}

#[tokio::test]
async fn what_cannot_be_is_shown_as_doubted() {
    let broker = Broker::start().await;
    let directory = scratch("doubts");
    let answers = Answers::new(&HOUSE);
    answers.change(3, |data| {
        data[21] = 9; // cells, of which 8 have a voltage
        data[23..25].copy_from_slice(&[0, 0]); // temperature 1: 0 K
    });
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let _program = Program::start(&directory, &config(&broker, &[("house", &board.port)]));
    let retained = announced(&broker, "house", &keys(8, 2)).await;
    assert_eq!(retained["bms2mqtt/house/implausible_values"], "cell_count,temperature_1");
    assert_eq!(retained["bms2mqtt/house/temperature_1"], "None");
    assert_eq!(retained["bms2mqtt/house/temperature_2"], "22.4");
    answers.set(HOUSE[0]);
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/implausible_values", "none").await;
    listener.wait_for("bms2mqtt/house/temperature_1", "22.2").await;
}
