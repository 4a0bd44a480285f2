//! As an app of Home Assistant: the form's options and the Supervisor, played by a small HTTP server, with the real
//! program and Mosquitto.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use bms2mqtt::jbd::simulator::Pace;
use bms2mqtt::pack::dead_band::Quantity;
use serde_yaml::Value;
use support::{
    Answers, Board, Broker, HOUSE, Listener, Program, eventually, mosquitto, scratch, spawn, tell,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const TOKEN: &str = "t0ken-of-the-app";
const SERVICE: &str = "GET /services/mqtt HTTP/1.1";

/// Status and body of what it answers now, and the requests that came.
#[derive(Clone, Default)]
struct Supervisor(Arc<Mutex<(u16, String, Vec<String>)>>);

impl Supervisor {
    async fn start() -> (Supervisor, String) {
        let supervisor = Supervisor::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = supervisor.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if client.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let answer = {
                    let (status, body, requests) = &mut *served.0.lock().unwrap();
                    requests.push(String::from_utf8_lossy(&request).into_owned());
                    let length = body.len();
                    format!("HTTP/1.1 {status} As It Is\r\nContent-Length: {length}\r\n\r\n{body}")
                };
                let _ = client.write_all(answer.as_bytes()).await;
            }
        });
        (supervisor, url)
    }

    fn says(&self, status: u16, body: &str) {
        let mut state = self.0.lock().unwrap();
        (state.0, state.1) = (status, body.to_owned());
    }

    /// The broker, with this password.
    fn names(&self, broker: &Broker, password: &str) {
        let (host, port) = (broker.address.ip(), broker.address.port());
        self.says(
            200,
            &format!(
                r#"{{"result":"ok","data":{{"host":"{host}","port":{port},"ssl":false,"username":"addons","password":"{password}","protocol":"3.1.1"}}}}"#
            ),
        );
    }

    fn requests(&self) -> Vec<String> {
        self.0.lock().unwrap().2.clone()
    }
}

/// As the app is started: options in a file, everything else in variables.
fn start(directory: &Path, options: &str, supervisor: &str) -> Program {
    let file = directory.join("options.json");
    fs::write(&file, options).unwrap();
    let log = fs::File::create(directory.join("log")).unwrap();
    let mut command = support::bms2mqtt(directory);
    command
        .env("BMS2MQTT_CONFIG", file)
        .env("BMS2MQTT_SUPERVISOR_URL", supervisor)
        .env("SUPERVISOR_TOKEN", TOKEN);
    let child = spawn(command.stdin(Stdio::null()).stderr(log));
    Program { child, directory: directory.to_owned() }
}

/// What the form leaves of a pack: the device is picked, the rest is as it was.
fn options(port: &Path, url: &str) -> String {
    let port = port.display();
    format!(
        r#"{{"mqtt":{{"url":"{url}"}},"home_assistant":{{"discovery":true}},"packs":[{{"id":"house","name":"House","device":"{port}","port":"","interval":"300ms"}}]}}"#
    )
}

fn password_file(directory: &Path, password: &str) -> PathBuf {
    let passwords = directory.join("passwords");
    let hash = Command::new("mosquitto_passwd")
        .args(["-b", "-c", passwords.to_str().unwrap(), "addons", password])
        .status();
    assert!(hash.unwrap().success());
    passwords
}

#[tokio::test]
async fn the_supervisor_is_asked_until_it_names_a_broker_that_lets_us_in() {
    if mosquitto().is_none() {
        tell("mosquitto is not installed: that passwords come from the Supervisor is not tried");
        return;
    }
    let directory = scratch("app");
    let passwords = password_file(&directory, "first");
    let mut broker = Broker::start_with(&format!("password_file {}\n", passwords.display())).await;
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let (supervisor, url) = Supervisor::start().await;

    supervisor.says(400, r#"{"result":"error","message":"Service not enabled"}"#);
    let mut program = start(&directory, &options(&board.port, ""), &url);
    let none_yet =
        "Home Assistant has no MQTT broker yet; install the Mosquitto broker app, or give mqtt.url";
    program.logged(none_yet).await;
    supervisor.says(403, r#"{"result":"error","message":"Forbidden"}"#);
    program.logged("Home Assistant's Supervisor does not tell this app its broker; give mqtt.url").await;
    supervisor.says(200, "{}");
    program.logged("names no broker that makes sense").await;
    supervisor.names(&broker, "wrong");
    program.logged("the broker refuses user \"addons\" with a password").await;
    supervisor.names(&broker, "first");
    program.logged(&format!("connected to {}", broker.url())).await;

    // The password is changed behind our back: the Supervisor knows.
    broker.kill().await;
    password_file(&directory, "second");
    supervisor.names(&broker, "second");
    broker.resume().await;
    eventually("again", || (program.log().matches("connected to").count() == 2).then_some(())).await;

    program.signal("TERM");
    assert_eq!(program.ended().await.code(), Some(0));
    let log = program.log();
    assert_eq!(log.matches(none_yet).count(), 1, "{log}");
    for secret in [TOKEN, "first", "second"] {
        assert!(!log.contains(secret), "{log}");
    }
    for request in supervisor.requests() {
        assert!(request.starts_with(SERVICE), "{request}");
        assert!(request.contains(&format!("Authorization: Bearer {TOKEN}\r\n")), "{request}");
    }
}

#[tokio::test]
async fn a_broker_in_the_options_wins() {
    let directory = scratch("app-own");
    let broker = Broker::start().await;
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let (supervisor, url) = Supervisor::start().await;
    let _program = start(&directory, &options(&board.port, &broker.url()), &url);
    let listener = Listener::start(broker.address).await;
    listener.wait_for("bms2mqtt/house/availability", "online").await;
    listener.wait_for("bms2mqtt/house/voltage", "26.66").await;
    assert!(supervisor.requests().is_empty());
}

#[tokio::test]
async fn a_supervisor_that_does_not_answer_is_told_and_holds_up_nothing() {
    let directory = scratch("app-silent");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    // Takes the question and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut program = start(&directory, &options(&board.port, ""), &url);
    program.logged(&format!("Home Assistant's Supervisor does not answer at {url}: ")).await;
    program.signal("TERM");
    assert_eq!(program.ended().await.code(), Some(0));
}

#[tokio::test]
async fn wrong_options_get_the_same_messages_as_a_file() {
    let directory = scratch("app-wrong");
    for (options, message) in [
        (r#"{"packs":[]}"#, "packs: there is no pack"),
        (r#"{"packs":[{"id":"house","device":""}]}"#, "packs[0].port: is missing"),
        (r#"{"packs":[{"port":"a","baud":"fast"}]}"#, "packs[0].baud: \"fast\" is not a baud rate"),
        (r#"{"mqtt":{"username":"x"},"packs":[{"port":"a"}]}"#, "give mqtt.url with it, or leave it empty"),
        (r#"{"mqtt":{"usrname":"x"},"packs":[{"port":"a"}]}"#, "mqtt.usrname: is no key here"),
    ] {
        let mut program = start(&directory, options, "http://127.0.0.1:1");
        assert_eq!(program.ended().await.code(), Some(2));
        let log = program.log();
        assert!(
            log.lines().count() == 1 && log.contains("options.json:1: ") && log.contains(message),
            "{log}"
        );
    }
}

const APP: &str = include_str!("../ha-addon/config.yaml");

/// What the form may hold for each type of the Supervisor's schema.
fn filled(place: &str, kind: &Value, ca_file: &str) -> serde_json::Value {
    match kind {
        Value::Mapping(map) => {
            let fields = map.iter().map(|(key, kind)| (key.as_str().unwrap(), kind));
            fields.map(|(key, kind)| (key.to_owned(), filled(key, kind, ca_file))).collect()
        }
        Value::Sequence(kinds) => kinds.iter().map(|kind| filled(place, kind, ca_file)).collect(),
        kind => {
            let kind = kind.as_str().unwrap().trim_end_matches('?');
            match place {
                "url" => "mqtts://broker".into(),
                "port" => "/dev/serial".into(),
                "interval" | "keep_alive" => "5s".into(),
                "ca_file" => ca_file.into(),
                "cert_file" | "key_file" => "".into(),
                _ if kind.starts_with("int(") => {
                    kind[4..].split(',').next().unwrap().parse::<u64>().unwrap().into()
                }
                _ if kind.starts_with("float(") => {
                    kind[6..].split(',').next().unwrap().parse::<f64>().unwrap().into()
                }
                _ if kind.contains("(s|m|min|h)") => "30s".into(),
                _ if kind == "bool" => true.into(),
                _ if kind.starts_with("list(") => kind[5..].split('|').next().unwrap().into(),
                place => place.into(),
            }
        }
    }
}

/// The options that are refused when they are saved, because no `match(…)` of the form takes them.
fn refused(place: &str, kind: &Value, given: &serde_json::Value) -> Vec<String> {
    let each = |kind: &Value, given: &serde_json::Value| refused(place, kind, given);
    match (kind, given) {
        (Value::Mapping(map), _) => {
            let fields = map.iter().map(|(key, kind)| (key.as_str().unwrap(), kind));
            fields.flat_map(|(key, kind)| refused(key, kind, &given[key])).collect()
        }
        (Value::Sequence(kinds), given) => {
            given.as_array().unwrap().iter().flat_map(|given| each(&kinds[0], given)).collect()
        }
        (_, serde_json::Value::String(given)) => {
            let kind = kind.as_str().unwrap().trim_end_matches('?');
            let expression = kind.strip_prefix("match(").and_then(|rest| rest.strip_suffix(')'));
            let taken = expression.is_none_or(|expression| matches(expression, given));
            if taken { Vec::new() } else { vec![place.to_owned()] }
        }
        _ => Vec::new(),
    }
}

/// As the Supervisor's `re.match`: what the form uses means the same to grep.
fn matches(expression: &str, text: &str) -> bool {
    let mut grep =
        Command::new("grep").args(["-qE", "--", expression]).stdin(Stdio::piped()).spawn().unwrap();
    writeln!(grep.stdin.take().unwrap(), "{text}").unwrap();
    let code = grep.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 1)), "grep does not understand {expression}");
    code == Some(0)
}

/// `check` of these options: exit code and what it said.
fn check(directory: &Path, options: &serde_json::Value) -> (Option<i32>, String) {
    fs::write(directory.join("options.json"), options.to_string()).unwrap();
    let mut command = support::bms2mqtt(directory);
    command.args(["check", "-c", "options.json"]).env("SUPERVISOR_TOKEN", TOKEN);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn the_apps_form_is_the_programs_configuration() {
    let app: Value = serde_yaml::from_str(APP).unwrap();
    let directory = scratch("app-form");
    let accepted = |options: &serde_json::Value| {
        assert_eq!(refused("", &app["schema"], options), [""; 0], "{options}");
        let (code, said) = check(&directory, options);
        assert_eq!(code, Some(0), "{options}: {said}");
        said
    };
    // Any certificate authority will do.
    let bundle = "/etc/ssl/certs/ca-certificates.crt";
    if !Path::new(bundle).exists() {
        tell("there are no certificate authorities here: the app's form is not tried");
        return;
    }
    let all = accepted(&filled("", &app["schema"], bundle));
    assert!(all.contains("broker mqtts://broker:8883 as user username with a password"), "{all}");
    assert!(all.contains("pack id \"name\": /dev/serial at 300 baud, every 5s"), "{all}");
    for name in Quantity::ALL.map(|(_, name, ..)| name) {
        assert!(all.contains(&format!("{name} is not sent when it changes by less than 0.")), "{all}");
        assert!(all.contains(&format!("{name} is sent every 30s at most")), "{all}");
    }

    // As it is when a device has been picked and nothing else touched.
    let mut fresh = serde_json::to_value(&app["options"]).unwrap();
    fresh["packs"][0]["device"] = "/dev/ttyUSB0".into();
    let fresh = accepted(&fresh);
    assert!(fresh.contains("broker that Home Assistant's Supervisor names"), "{fresh}");
    assert!(fresh.contains("pack battery \"Battery\": /dev/ttyUSB0 at 9600 baud, every 5s"), "{fresh}");
}

#[test]
fn the_app_asks_no_port_that_nobody_has_named() {
    let app: Value = serde_yaml::from_str(APP).unwrap();
    let options = serde_json::to_value(&app["options"]).unwrap();
    let (code, said) = check(&scratch("app-unnamed"), &options);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("packs[0].port: is missing"), "{said}");
}

/// Section, key, and what is written there.
type Written<'a> = (&'a str, &'a str, &'a [&'a str]);

const WELL: &[Written] = &[
    ("packs", "id", &["house", "van_2"]),
    (
        "packs",
        "port",
        &["", "/dev/serial/by-id/usb-FTDI_x", "tcp://192.168.1.20:2000", "tcp://[fd00::1]:2000"],
    ),
    ("packs", "interval", &["", "5s", "500ms", "1m30s", "1m 30s", "90 s", "2min", "24h"]),
    ("packs", "json_topic", &["", "test_1", "a/b"]),
    ("home_assistant", "discovery_prefix", &["", "homeassistant", "ha/discovery"]),
    ("home_assistant", "birth_topic", &["homeassistant/status"]),
    ("mqtt", "url", &["", "mqtt://core-mosquitto", "mqtts://broker.example:8883", "mqtt://[fd00::1]:1883/"]),
    ("mqtt", "keep_alive", &["", "10s", "1m 30s", "1h"]),
    ("mqtt", "base_topic", &["", "bms2mqtt", "garden/bms"]),
    ("minimum_interval", "current", &["", "30s", "5m", "1h"]),
];

const WRONG: &[Written] = &[
    ("packs", "id", &["House", "a b", "a-b"]),
    ("packs", "port", &["tcp://192.168.1.20", "udp://192.168.1.20:2000"]),
    ("packs", "interval", &["5", "0s", "-5s", "soon", "5s!", "5 s 3"]),
    ("packs", "json_topic", &["a/#", "+"]),
    ("home_assistant", "discovery_prefix", &["/homeassistant", "home+", "$SYS"]),
    ("home_assistant", "birth_topic", &["a/#"]),
    ("mqtt", "url", &["192.168.1.10", "http://broker", "mqtt://user:word@broker", "mqtt://"]),
    ("mqtt", "ca_file", &["ca.pem"]),
    ("mqtt", "keep_alive", &["10", "0s", "500ms"]),
    ("mqtt", "base_topic", &["/bms2mqtt", "bms/#"]),
    ("minimum_interval", "current", &["30", "0s"]),
];

#[test]
fn what_the_program_refuses_is_refused_when_it_is_saved() {
    let app: Value = serde_yaml::from_str(APP).unwrap();
    let directory = scratch("app-refused");
    let with = |section: &str, key: &str, text: &str| {
        let mut options = serde_json::to_value(&app["options"]).unwrap();
        options["packs"][0]["device"] = "/dev/ttyUSB0".into();
        match section {
            "packs" => options["packs"][0][key] = text.into(),
            _ => options[section][key] = text.into(),
        }
        options
    };
    for (section, key, texts) in WELL {
        for text in *texts {
            let options = with(section, key, text);
            assert_eq!(refused("", &app["schema"], &options), [""; 0], "{options}");
            let (code, said) = check(&directory, &options);
            assert_eq!(code, Some(0), "{options}: {said}");
        }
    }
    for (section, key, texts) in WRONG {
        for text in *texts {
            let options = with(section, key, text);
            assert_eq!(refused("", &app["schema"], &options), [*key], "{options}");
            let (code, said) = check(&directory, &options);
            assert_eq!(code, Some(2), "{options}: {said}");
        }
    }
}

/// How many options these words are for: each, and no other, has a name and a description.
fn worded(of: &str, schema: &Value, words: &Value) -> usize {
    let (schema, words) = (schema.as_mapping().unwrap(), words.as_mapping().unwrap());
    assert_eq!(schema.keys().collect::<Vec<_>>(), words.keys().collect::<Vec<_>>(), "{of}");
    let options = schema.iter().map(|(key, kind)| {
        let (of, words) = (format!("{of}: {key:?}"), &words[key]);
        assert!(words["name"].is_string() && words["description"].is_string(), "{of}");
        match kind {
            Value::Sequence(kinds) => worded(&of, &kinds[0], &words["fields"]),
            Value::Mapping(_) => worded(&of, kind, &words["fields"]),
            _ => 1,
        }
    });
    options.sum()
}

#[test]
fn what_lies_beside_the_apps_form_is_as_home_assistant_wants_it() {
    let app: Value = serde_yaml::from_str(APP).unwrap();
    // Each of these would lower the security rating: 5, and 1 more for a profile of its own.
    for key in
        ["full_access", "host_network", "host_pid", "privileged", "docker_api", "hassio_role", "devicetree"]
    {
        assert!(app.get(key).is_none(), "{key}");
    }
    let profile = fs::read_to_string("ha-addon/apparmor.txt").unwrap();
    assert_eq!(profile.lines().filter(|line| line.starts_with("profile ")).count(), 1);
    for language in ["en", "de", "ru"] {
        let text = fs::read_to_string(format!("ha-addon/translations/{language}.yaml")).unwrap();
        let translation: Value = serde_yaml::from_str(&text).unwrap();
        let options = worded(language, &app["schema"], &translation["configuration"]);
        assert_eq!(options, 31, "{language}");
    }
    for (file, width, height) in [("icon.png", 128, 128), ("logo.png", 250, 100)] {
        let png = fs::read(format!("ha-addon/{file}")).unwrap();
        let number = |place: usize| u32::from_be_bytes(png[place..place + 4].try_into().unwrap());
        assert_eq!((number(16), number(20)), (width, height), "{file}");
    }
    assert_eq!(fs::read("ha-addon/CHANGELOG.md").unwrap(), fs::read("CHANGELOG.md").unwrap());
}
