//! What a person meets who writes a configuration: one message with the place, the key, what is wrong and what would
//! be right, and exit code 2.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

fn bms2mqtt(directory: &PathBuf) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bms2mqtt"));
    command.current_dir(directory).env_clear();
    command
}

fn directory(name: &str) -> PathBuf {
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("config-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

fn text(output: &Output) -> (String, String) {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    (out, err)
}

/// A file, the place the message begins with, the key it names, and words of what is wrong and what would be right.
const WRONG: &[(&str, &str, &str, &str, &str)] = &[
    ("", "config.yaml", "packs", "there is no pack", "write packs:"),
    (
        "packs: [port: a]\nhome_assistant:\n  language: fr",
        "config.yaml:3",
        "home_assistant.language",
        "\"fr\"",
        "en, de, ru",
    ),
    ("packs: []", "config.yaml:1", "packs", "there is no pack", "- port: /dev/ttyUSB0"),
    ("packs: /dev/ttyUSB0", "config.yaml:1", "packs", "is one value", "write a list"),
    ("packs:\n  port: /dev/ttyUSB0", "config.yaml:2", "packs", "is a group of keys", "write a list"),
    ("packs:\n  - id: house", "config.yaml:2", "packs[0].port", "is missing", "tcp://"),
    ("packs:\n  - port: ''", "config.yaml:2", "packs[0].port", "is empty", "leave the key out"),
    ("packs:\n  - port: tcp://host", "config.yaml:2", "packs[0].port", "has no port", "tcp://host:2000"),
    ("packs:\n  - port: udp://host:1", "config.yaml:2", "packs[0].port", "udp://", "/dev/ttyUSB0"),
    ("packs:\n  - port: tcp://host:99999", "config.yaml:2", "packs[0].port", "99999", "1 to 65535"),
    ("packs:\n  - port: [a, b]", "config.yaml:2", "packs[0].port", "is a list", "one value"),
    ("packs:\n  - port: a\n    id: House", "config.yaml:3", "packs[0].id", "\"House\"", "small letters"),
    (
        "packs:\n  - port: a\n    id: bridge",
        "config.yaml:3",
        "packs[0].id",
        "the bridge itself",
        "another id",
    ),
    (
        "packs:\n  - port: a\n    id: x\n  - port: b\n    id: x",
        "config.yaml:5",
        "packs[1].id",
        "pack x",
        "of its own",
    ),
    ("packs:\n  - port: a\n  - port: a", "config.yaml:3", "packs[1].port", "pack battery", "of its own"),
    ("packs:\n  - port: a\n    baud: fast", "config.yaml:3", "packs[0].baud", "\"fast\"", "9600"),
    ("packs:\n  - port: a\n    baud: 0", "config.yaml:3", "packs[0].baud", "\"0\"", "9600"),
    ("packs:\n  - port: a\n    interval: 5", "config.yaml:3", "packs[0].interval", "no unit", "5s"),
    ("packs:\n  - port: a\n    interval: soon", "config.yaml:3", "packs[0].interval", "\"soon\"", "5s"),
    (
        "packs:\n  - port: a\n    interval: 0s",
        "config.yaml:3",
        "packs[0].interval",
        "out of range",
        "from 1ms",
    ),
    (
        "packs:\n  - port: a\n    offline_after: 0",
        "config.yaml:3",
        "packs[0].offline_after",
        "\"0\"",
        "1 to 1000",
    ),
    ("packs:\n  - port: a\n    name: ''", "config.yaml:3", "packs[0].name", "is empty", "write something"),
    (
        "packs:\n  - port: a\n    json_topic: a/#",
        "config.yaml:3",
        "packs[0].json_topic",
        "wildcard",
        "without +, #",
    ),
    (
        "dead_band:\n  cell_voltage: 0.0005\n",
        "config.yaml:2",
        "dead_band.cell_voltage",
        "no dead band",
        "steps of 0.001",
    ),
    ("dead_band:\n  current: -1", "config.yaml:2", "dead_band.current", "no dead band", "number of A"),
    ("dead_band:\n  voltage: 50mV", "config.yaml:2", "dead_band.voltage", "\"50mV\"", "number of V"),
    ("dead_band:\n  power: 5", "config.yaml:2", "dead_band.power", "is no key", "voltage, current"),
    ("minimum_interval:\n  current: 30", "config.yaml:2", "minimum_interval.current", "no unit", "5s"),
    (
        "minimum_interval:\n  current: 2h",
        "config.yaml:2",
        "minimum_interval.current",
        "out of range",
        "from 1s to 1h",
    ),
    ("packs:\n  - port: a\n    prot: b", "config.yaml:3", "packs[0].prot", "is no key", "port"),
    ("packs:\n  - port: a\n    port: b", "config.yaml:2", "packs[0].port", "second time", "keep one"),
    ("pakcs:\n  - port: a", "config.yaml:1", "pakcs", "is no key", "packs"),
    ("mqtt: localhost", "config.yaml:1", "mqtt", "is one value", "key: value"),
    ("mqtt:\n  url: localhost", "config.yaml:2", "mqtt.url", "no scheme", "mqtt://localhost"),
    ("mqtt:\n  url: http://localhost", "config.yaml:2", "mqtt.url", "http://", "mqtt://"),
    ("mqtt:\n  url: mqtt://u:hunter2@host", "config.yaml:2", "mqtt.url", "has a user", "mqtt.username"),
    ("mqtt:\n  url: mqtt://", "config.yaml:2", "mqtt.url", "not a host", "name or an address"),
    ("mqtt:\n  base_topic: a/+/b", "config.yaml:2", "mqtt.base_topic", "wildcard", "without +, #"),
    ("mqtt:\n  base_topic: /a", "config.yaml:2", "mqtt.base_topic", "empty level", "slashes"),
    (
        "mqtt:\n  base_topic: homeassistant",
        "config.yaml:2",
        "mqtt.base_topic",
        "discovery prefix",
        "of their own",
    ),
    ("mqtt:\n  keep_alive: 10", "config.yaml:2", "mqtt.keep_alive", "no unit", "5s"),
    ("mqtt:\n  password: hunter2", "config.yaml:2", "mqtt.password", "has no user", "mqtt.username"),
    ("mqtt:\n  username: u\n  pasword: hunter2", "config.yaml:3", "mqtt.pasword", "is no key", "password"),
    (
        "mqtt:\n  username: u\n  password: hunter2\n  password_file: config.yaml",
        "config.yaml:4",
        "mqtt.password_file",
        "beside mqtt.password",
        "one of the two",
    ),
    (
        "mqtt:\n  username: u\n  password_file: no-such-file",
        "config.yaml:3",
        "mqtt.password_file",
        "there is no such file",
        "can read",
    ),
    ("mqtt:\n  ca_file: config.yaml", "config.yaml:2", "mqtt.ca_file", "is for TLS", "mqtts://"),
    (
        "mqtt:\n  url: mqtts://host\n  ca_file: config.yaml",
        "config.yaml:3",
        "mqtt.ca_file",
        "no certificate",
        "PEM",
    ),
    (
        "mqtt:\n  url: mqtts://host\n  cert_file: config.yaml",
        "config.yaml:3",
        "mqtt.cert_file",
        "has no key",
        "mqtt.key_file",
    ),
    ("mqtt: {url: hunter2", "config.yaml:", "", "not YAML", "quotes"),
    ("mqtt:\n\turl: mqtt://host", "config.yaml:2", "", "not YAML", "no tabs"),
    ("mqtt:\n  password:hunter2", "config.yaml:2", "mqtt", "is one value", "key: value"),
    (
        "home_assistant:\n  discovery: maybe",
        "config.yaml:2",
        "home_assistant.discovery",
        "\"maybe\"",
        "true or false",
    ),
    (
        "home_assistant:\n  discovery_prefix: a b/",
        "config.yaml:2",
        "home_assistant.discovery_prefix",
        "empty level",
        "slashes",
    ),
];

#[test]
fn a_wrong_file_gets_one_message_that_says_all() {
    let directory = directory("wrong");
    for (yaml, place, key, wrong, right) in WRONG {
        fs::write(directory.join("config.yaml"), yaml).unwrap();
        for arguments in [&["check"][..], &["run"], &["--once"]] {
            let output = bms2mqtt(&directory).args(arguments).output().unwrap();
            let (out, err) = text(&output);
            assert_eq!(output.status.code(), Some(2), "{arguments:?} of\n{yaml}\n{err}");
            assert_eq!((out.as_str(), err.lines().count()), ("", 1), "{err}");
            assert!(err.contains(place) && err.contains(key), "{place} {key}: {err}");
            let (before, after) = err.split_once("; ").unwrap();
            assert!(before.contains(wrong), "{wrong}: {err}");
            assert!(after.contains(right), "{right}: {err}");
            assert!(!err.contains("hunter2"), "{err}");
        }
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_wrong_bms_conf_is_told_in_its_own_words() {
    let directory = directory("bms-conf");
    for (conf, place, key, wrong) in [
        ("MQTTserver=localhost", "bms.conf", "packs[0].port", "is missing"),
        ("device=/dev/ttyUSB0\nspeed=9600", "bms.conf:2", "speed", "is no key"),
        ("device=/dev/ttyUSB0\nrun_interval=soon", "bms.conf:2", "run_interval", "not a number"),
        ("device=/dev/ttyUSB0\nrun_interval=0", "bms.conf:2", "run_interval", "out of range"),
        ("device=/dev/ttyUSB0\nout_to=console // no", "bms.conf:2", "out_to", "not a way out"),
        ("device=/dev/ttyUSB0\ndevice=/dev/ttyUSB1", "bms.conf:2", "device", "second time"),
        ("device=/dev/ttyUSB0\nMQTTtopik=a/#/b", "bms.conf:2", "MQTTtopik", "empty level"),
        ("device /dev/ttyUSB0", "bms.conf:1", "", "not a setting"),
    ] {
        fs::write(directory.join("bms.conf"), conf).unwrap();
        let output = bms2mqtt(&directory).arg("check").output().unwrap();
        let (_, err) = text(&output);
        assert_eq!(output.status.code(), Some(2), "{conf}\n{err}");
        assert!(err.contains(place) && err.contains(key) && err.contains(wrong), "{conf}: {err}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn the_example_is_good_and_no_password_is_shown() {
    let directory = directory("good");
    fs::copy("config.yaml", directory.join("config.yaml")).unwrap();
    let (out, _) = text(&bms2mqtt(&directory).arg("check").output().unwrap());
    assert!(out.starts_with("./config.yaml: good\nbroker mqtt://localhost:1883\n"), "{out}");
    assert!(out.contains("pack house \"House battery\": /dev/ttyUSB0 at 9600 baud, every 5s\n"), "{out}");

    fs::write(
        directory.join("mine.yaml"),
        "mqtt: {username: bms, password: hunter2}\npacks: [{port: /dev/null}]",
    )
    .unwrap();
    for arguments in [&["check"][..], &["--once", "--debug"]] {
        let output = bms2mqtt(&directory).args(arguments).args(["--config", "mine.yaml"]).output().unwrap();
        let (out, err) = text(&output);
        assert!((out.clone() + &err).contains("user bms with a password"), "{out}{err}");
        assert!(!(out + &err).contains("hunter2"));
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let directory = directory("layers");
    fs::write(
        directory.join("config.yaml"),
        "mqtt: {url: 'mqtt://file', base_topic: file, username: file, password: x}\npacks: [{port: /dev/file, id: file}]",
    )
    .unwrap();
    let check = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = bms2mqtt(&directory)
            .arg("check")
            .args(arguments)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let (out, err) = text(&output);
        assert!(output.status.success(), "{err}");
        out
    };
    let file = check(&[], &[]);
    assert!(
        file.contains("mqtt://file:1883 as user file") && file.contains("values at file/file/"),
        "{file}"
    );

    let variables = [
        ("BMS2MQTT_MQTT_URL", "mqtt://variable"),
        ("BMS2MQTT_MQTT_USERNAME", "variable"),
        ("BMS2MQTT_PORT", "/dev/variable"),
        ("BMS2MQTT_INTERVAL", "7s"),
        ("BMS2MQTT_LANGUAGE", "de"),
        ("BMS2MQTT_MQTT_PASSWORD", ""), // as compose files leave what is not set
    ];
    let variable = check(&[], &variables);
    for word in [
        "mqtt://variable:1883 as user variable",
        "/dev/variable",
        "every 7s",
        "values at file/file/",
        "in German",
    ] {
        assert!(variable.contains(word), "{word}: {variable}");
    }

    let flags = ["--mqtt-url", "mqtt://flag", "-c", "config.yaml", "-p", "/dev/flag", "--interval", "9s"];
    let flag = check(&flags, &variables);
    for word in ["mqtt://flag:1883 as user variable", "/dev/flag", "every 9s", "values at file/file/"] {
        assert!(flag.contains(word), "{word}: {flag}");
    }

    // Without a file at all, as in a container; and a port alone leaves the file in this directory alone.
    let container = check(&["-p", "tcp://serial.lan:2000"], &[("BMS2MQTT_MQTT_URL", "mqtt://variable")]);
    for word in ["flags and environment: good", "tcp://serial.lan:2000", "values at bms2mqtt/battery/"] {
        assert!(container.contains(word), "{word}: {container}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_names_one_pack_is_refused_where_there_are_two() {
    let directory = directory("two");
    fs::write(directory.join("config.yaml"), "packs: [{port: a}, {port: b}]").unwrap();
    let output = bms2mqtt(&directory).arg("check").env("BMS2MQTT_PORT", "/dev/ttyUSB0").output().unwrap();
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(err.contains("BMS2MQTT_PORT") && err.contains("has 2 packs"), "{err}");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn without_any_configuration_it_says_what_to_do() {
    let directory = directory("none");
    let output = bms2mqtt(&directory).output().unwrap();
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(err.contains("./config.yaml") && err.contains("--port /dev/ttyUSB0"), "{err}");
    let output = bms2mqtt(&directory).args(["-c", "nothing.yaml"]).output().unwrap();
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(err.contains("nothing.yaml: there is no such file"), "{err}");
    fs::remove_dir_all(directory).unwrap();
}
