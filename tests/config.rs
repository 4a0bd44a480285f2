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
    (
        "packs:\n  - port: 192.168.1.20:2000",
        "config.yaml:2",
        "packs[0].port",
        "\"192.168.1.20:2000\" is no serial port",
        "did you mean tcp://192.168.1.20:2000?",
    ),
    (
        "packs:\n  - port: esp.lan:6638",
        "config.yaml:2",
        "packs[0].port",
        "\"esp.lan:6638\" is no serial port",
        "did you mean tcp://esp.lan:6638?",
    ),
    (
        "packs:\n  - port: 192.168.1.20",
        "config.yaml:2",
        "packs[0].port",
        "no serial port",
        "did you mean tcp://192.168.1.20:2000, with",
    ),
    (
        "packs:\n  - port: 'fe80::1'",
        "config.yaml:2",
        "packs[0].port",
        "no serial port",
        "did you mean tcp://[fe80::1]:2000, with",
    ),
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
    (
        "mqtt:\n  username: u\n  password: !secret hunter2\npacks: [{port: a}]",
        "config.yaml:3",
        "mqtt.password",
        "has the tag !secret",
        "password_file",
    ),
    (
        "mqtt:\n  username: !env_var hunter2",
        "config.yaml:2",
        "mqtt.username",
        "the tag !env_var",
        "value itself",
    ),
    ("packs: !include packs.yaml", "config.yaml:1", "packs", "the tag !include", "value itself"),
    ("packs:\n  - !secret pack", "config.yaml:2", "packs[0]", "the tag !secret", "value itself"),
    ("mqtt:\n  password: !vault", "config.yaml:2", "mqtt.password", "the tag !vault", "password_file"),
    ("mqtt: &m\n  url: *m", "config.yaml:", "", "nested too deeply", "more than one level"),
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
fn a_flag_is_what_yaml_1_1_calls_true_or_false() {
    let directory = directory("flags");
    let yes = ["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON", "'yes'"];
    let no = ["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"];
    for (spellings, shown) in [(&yes[..], "discovery under homeassistant/"), (&no, "no discovery")] {
        for spelling in spellings {
            let yaml = format!("home_assistant:\n  discovery: {spelling}\npacks: [{{port: a}}]\n");
            fs::write(directory.join("config.yaml"), yaml).unwrap();
            let (out, err) = text(&bms2mqtt(&directory).arg("check").output().unwrap());
            assert!(out.contains(shown), "{spelling}: {out}{err}");
        }
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_file_that_is_silly_or_hostile_is_refused_at_once() {
    let directory = directory("hostile");
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{inner}]\n");
    }
    let wide = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(20_000), "*a,".repeat(20_000));
    for (what, yaml) in [
        ("brackets", "[".repeat(1_000_000)),
        ("fewer brackets", format!("packs: {}", "[".repeat(100_000))),
        ("braces", "{a: ".repeat(100_000)),
        ("dashes", "- ".repeat(100_000)),
        ("complex keys", "? ".repeat(100_000)),
        ("brackets that close", format!("{}{}", "[".repeat(50_000), "]".repeat(50_000))),
        ("a chain of aliases", laughs),
        ("a wide list of aliases", wide),
        ("itself", "packs: &p\n  - *p\n".to_owned()),
        ("half the brackets", format!("packs: {}", "[".repeat(60_000))),
        (
            "a wide list of a long text",
            format!("a: &a {}\nb: [{}]\n", "x".repeat(60_000), "*a,".repeat(20_000)),
        ),
        ("a long key", format!("{}: 1\n", "x".repeat(900))),
        ("a large file", "# \n".repeat(1_000_000)),
        ("a large value", format!("state_dir: {}", "x".repeat(2_000_000))),
        ("many directives", "%TAG !a! tag:a\n".repeat(60_000)),
        ("some directives", (0..6000).map(|n| format!("%TAG !a{n}! tag:a\n")).collect()),
        ("many anchors", (0..6000).map(|n| format!("a{n}: &a{n} x\n")).collect()),
        ("quotes", "'".repeat(200_001)),
    ] {
        fs::write(directory.join("config.yaml"), yaml).unwrap();
        // A second of the processor's time, however much else it has to do: over that the system
        // ends it.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -t 1 && exec \"$0\" check", env!("CARGO_BIN_EXE_bms2mqtt")]);
        let output = command.current_dir(&directory).env_clear().output().unwrap();
        let (_, err) = text(&output);
        assert_eq!(output.status.code(), Some(2), "{what}: {} {err:.300}", output.status);
        assert!(err.starts_with("bms2mqtt: ./config.yaml") && err.lines().count() == 1, "{what}: {err:.300}");
        assert!(err.len() < 600, "{what}: {} bytes: {err:.300}", err.len());
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_smart_bms_took_is_taken() {
    let directory = directory("seed");
    // "# the port" and "// seconds" in CP1251.
    let comment: &[u8] = b"# \xEF\xEE\xF0\xF2\n// \xF1\xE5\xEA\xF3\xED\xE4\xFB\n";
    let good =
        "device=/dev/ttyUSB7\nMQTTserver=192.168.1.10\nMQTTtopik=/test_1\nrun_interval=7\nout_to=mqtt\n";
    let crlf = good.replace('\n', "\r\n");
    let spaced = good.replace('=', " = ").replace('\n', " \t\n");
    let commented = good.replace('\n', " # here\n").replace("=7 #", "=7 //");
    for (what, bytes) in [
        ("as it is", good.as_bytes().to_vec()),
        ("CP1251", [comment, good.as_bytes(), comment].concat()),
        ("CP1251 beside values", good.replace("mqtt\n", "mqtt # ").bytes().chain([0xEF, b'\n']).collect()),
        ("UTF-8 with a byte-order mark", [b"\xEF\xBB\xBF", good.as_bytes()].concat()),
        ("a mark before a comment", [b"\xEF\xBB\xBF", comment, good.as_bytes()].concat()),
        ("CRLF", crlf.into_bytes()),
        ("spaces", spaced.into_bytes()),
        ("comments behind values", commented.into_bytes()),
        ("words behind the seconds", good.replace("=7", "=7 sec").into_bytes()),
    ] {
        fs::write(directory.join("bms.conf"), bytes).unwrap();
        let (out, err) = text(&bms2mqtt(&directory).arg("check").output().unwrap());
        for words in
            ["broker mqtt://192.168.1.10:1883", "/dev/ttyUSB7 at 9600 baud, every 7s", "at /test_1\n"]
        {
            assert!(out.contains(words), "{what}: {words}: {out}{err}");
        }
    }

    // What begins a comment does so at the line's beginning or behind a space, and nowhere else.
    for (value, taken) in [
        ("/a//b/", "/a//b/"),
        ("//a", "//a"),
        ("a/b/ // c", "a/b/"),
        ("a b #c", "a b"),
        ("a\t// b", "a"),
        ("a=b", "a=b"),
    ] {
        fs::write(directory.join("bms.conf"), format!("device=tty#1\nMQTTtopik={value}\n")).unwrap();
        let (out, err) = text(&bms2mqtt(&directory).arg("check").output().unwrap());
        assert!(out.contains(&format!("one-line JSON at {taken}\n")), "{value}: {out}{err}");
        assert!(out.contains("\"Battery\": tty#1 at"), "{out}{err}");
    }

    // On the console nothing goes to a broker or a topic, so whatever is written there does no
    // harm.
    for topic in [
        "MQTTtopik=a/#",
        "MQTTtopik=",
        "MQTTserver=",
        "MQTTserver=?",
        "MQTTserver=host -q 1",
        "MQTTtopik=\u{FFFD}",
        "",
    ] {
        fs::write(directory.join("bms.conf"), format!("device=a\n{topic}\nout_to=consol\n")).unwrap();
        let (out, err) = text(&bms2mqtt(&directory).arg("check").output().unwrap());
        assert!(out.contains("one-line JSON on standard output, no broker"), "{topic}: {out}{err}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn an_encoding_that_matters_is_told() {
    let directory = directory("encoding");
    for (name, bytes, place, wrong) in [
        ("bms.conf", &b"device=a\nMQTTtopik=\xE1\xE0\xF2\n"[..], "bms.conf:2: MQTTtopik: ", "not UTF-8"),
        ("bms.conf", b"\xFF\xFEd\0e\0v\0", "bms.conf: ", "is UTF-16"),
        ("config.yaml", b"packs:\n  - port: a\n    name: \xE1\n", "config.yaml:3: ", "not UTF-8"),
        ("config.yaml", b"\xFE\xFF\0p", "config.yaml: ", "is UTF-16"),
    ] {
        let file = directory.join(name);
        fs::write(&file, bytes).unwrap();
        let output = bms2mqtt(&directory).arg("check").output().unwrap();
        let (_, err) = text(&output);
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(err.starts_with(&format!("bms2mqtt: ./{place}")) && err.contains(wrong), "{err}");
        assert!(err.contains("UTF-8") && err.lines().count() == 1, "{err}");
        fs::remove_file(file).unwrap();
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
        ("device=/dev/ttyUSB0\nMQTTtopik=a/#/b", "bms.conf:2", "MQTTtopik", "wildcard"),
        ("device /dev/ttyUSB0", "bms.conf:1", "", "not a setting"),
        ("device=a\nMQTTserver=host -q hunter2", "bms.conf:2", "MQTTserver", "behind the host"),
        ("device=a\nMQTTserver=host -u bms -P", "bms.conf:2", "MQTTserver", "behind the host"),
        ("device=a\nMQTTserver=ho/st -u bms -P hunter2", "bms.conf:2", "MQTTserver", "is not a host"),
    ] {
        fs::write(directory.join("bms.conf"), conf).unwrap();
        let output = bms2mqtt(&directory).arg("check").output().unwrap();
        let (_, err) = text(&output);
        assert_eq!(output.status.code(), Some(2), "{conf}\n{err}");
        assert!(err.contains(place) && err.contains(key) && err.contains(wrong), "{conf}: {err}");
        assert!(!err.contains("hunter2"), "{err}");
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
