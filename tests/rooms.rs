//! The house's rules: which room may look into which. See docs/architecture.md.

use std::fs;
use std::path::{Path, PathBuf};

/// For every file of `src`, by the longest beginning of its path: which other rooms it may look into. What a file's own
/// tests look into counts too.
const ROOMS: &[(&str, &[&str])] = &[
    // Pure: no clock, no I/O, and nothing of the world around.
    ("src/hex.rs", &[]),
    ("src/pack/", &["pack"]),
    ("src/catalogue.rs", &["pack"]),
    ("src/health.rs", &["hub", "pack"]),
    ("src/jbd/frame.rs", &["hex"]),
    ("src/jbd/message.rs", &["pack"]),
    ("src/jbd/reading.rs", &["pack"]),
    ("src/json_line.rs", &["pack", "jbd"]),
    ("src/home_assistant/", &["catalogue", "pack"]),
    ("src/mqtt/names.rs", &["home_assistant"]),
    ("src/mqtt/mirror.rs", &["catalogue", "home_assistant", "pack"]),
    // From the wire to the hub.
    ("src/link.rs", &["blocking"]),
    ("src/stop.rs", &[]),
    ("src/trace.rs", &["hex"]),
    ("src/bus.rs", &["link", "stop", "trace"]),
    ("src/blocking.rs", &[]),
    ("src/jbd/mod.rs", &[]),
    ("src/jbd/board.rs", &["bus", "jbd", "link", "pack", "stop"]),
    ("src/board.rs", &["bus", "jbd", "link", "pack", "stop"]),
    ("src/state_file.rs", &[]),
    ("src/memory.rs", &["blocking", "pack", "state_file"]),
    ("src/poller.rs", &["board", "bus", "config", "hub", "link", "memory", "pack", "stop"]),
    ("src/hub.rs", &["pack"]),
    // Faces.
    ("src/mqtt/session.rs", &["blocking", "hub", "json_line", "pack", "stop"]),
    ("src/mqtt/supervisor.rs", &["blocking"]),
    ("src/mqtt/", &[]),
    ("src/control.rs", &["health", "hub", "json_line"]),
    ("src/systemd.rs", &["health", "hub"]),
    // Boards that are not there: they must not share what they test. Their own tests ask them as others do.
    ("src/jbd/simulator/living.rs", &["jbd"]),
    ("src/jbd/simulator/", &["board", "hex", "link"]),
    ("src/jbd/simulator.rs", &["board", "hex", "link", "pack"]),
    // What a person meets.
    ("src/cli.rs", &[]),
    ("src/logging.rs", &["cli"]),
    ("src/config/", &["home_assistant", "link", "pack"]),
    ("src/config.rs", &["cli", "home_assistant", "link", "logging", "mqtt", "pack"]),
    (
        "src/bridge.rs",
        &["config", "control", "health", "hub", "mqtt", "poller", "state_file", "stop", "systemd"],
    ),
    (
        "src/commands/",
        &[
            "board",
            "bridge",
            "catalogue",
            "cli",
            "config",
            "control",
            "hex",
            "home_assistant",
            "jbd",
            "json_line",
            "link",
            "mqtt",
            "pack",
            "trace",
        ],
    ),
    ("src/lib.rs", &[]),
    ("src/main.rs", &[]),
];

/// What is nobody's but these files': a word, and where it may stand.
const ONLY: &[(&str, &[&str])] = &[
    ("rumqttc", &["src/mqtt/endpoint.rs", "src/mqtt/session.rs", "src/mqtt/broker.rs"]),
    ("tokio_serial", &["src/link.rs", "src/jbd/simulator.rs"]),
    ("minreq", &["src/mqtt/supervisor.rs"]),
    ("clap::", &["src/cli.rs", "src/main.rs"]),
    ("process::exit", &[]),
    // They panic where the stream cannot be written, and where there is no thread.
    ("println!", &[]),
    ("thread::spawn", &[]),
    ("spawn_blocking", &[]),
    ("lookup_host", &[]),
];

/// What pure files must not mention: clocks, files and sockets.
const IMPURE: &[&str] = &["tokio", "rumqttc", "std::fs", "std::io", "std::net", "Instant", "SystemTime::now"];
const PURE: &[&str] = &[
    "src/hex.rs",
    "src/pack/",
    "src/catalogue.rs",
    "src/health.rs",
    "src/jbd/frame.rs",
    "src/jbd/message.rs",
    "src/jbd/reading.rs",
    "src/json_line.rs",
    "src/home_assistant/",
    "src/mqtt/names.rs",
    "src/mqtt/mirror.rs",
];

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap();
    entries.flat_map(|entry| sources(&entry.unwrap().path())).collect()
}

/// The code of a file: comments may speak of anything.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The rooms that this code names: after `crate::`, alone or in braces, and after a `super` that leads out of the room.
fn looks_into(path: &str, code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    let first =
        |rest: &str| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().map(str::to_owned);
    for (place, _) in code.match_indices("crate::") {
        let rest = &code[place + "crate::".len()..];
        match rest.strip_prefix('{').and_then(|rest| rest.split('}').next()) {
            Some(several) => rooms.extend(several.split(',').filter_map(|one| first(one.trim()))),
            None => rooms.extend(first(rest)),
        }
    }
    // As often as the path is deep, `super` is the whole house.
    let house = "super::".repeat(path.matches('/').count());
    let above = code.match_indices(&house).filter_map(|(place, _)| first(&code[place + house.len()..]));
    rooms.extend(above.filter(|name| ROOMS.iter().any(|(path, _)| room_of(path) == name)));
    rooms
}

fn room_of(path: &str) -> &str {
    path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default()
}

/// What is wrong with a file of this path and text.
fn wrong(path: &str, text: &str) -> Vec<String> {
    let code = code(text);
    let within =
        |(room, _): &&(&str, &[&str])| path == *room || (room.ends_with('/') && path.starts_with(room));
    let Some((_, may)) = ROOMS.iter().filter(within).max_by_key(|(room, _)| room.len()) else {
        return vec![format!("{path} belongs to no room: give it one in tests/rooms.rs")];
    };
    let own = room_of(path);
    let mut wrong: Vec<String> = looks_into(path, &code)
        .into_iter()
        .filter(|room| !may.contains(&room.as_str()) && (room != own || path.contains("simulator/living")))
        .map(|room| format!("{path} looks into {room}"))
        .collect();
    for (word, allowed) in ONLY {
        if code.contains(word) && !allowed.contains(&path) {
            wrong.push(format!("{path} mentions {word}"));
        }
    }
    if PURE.iter().any(|room| path == *room || (room.ends_with('/') && path.starts_with(room))) {
        let impure = IMPURE.iter().filter(|word| code.contains(**word));
        wrong.extend(impure.map(|word| format!("{path} is to be pure and mentions {word}")));
    }
    wrong
}

#[test]
fn nobody_looks_into_a_room_they_do_not_need() {
    let wrong: Vec<String> = sources(Path::new("src"))
        .iter()
        .flat_map(|file| wrong(file.to_str().unwrap(), &fs::read_to_string(file).unwrap()))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_forbidden_import_is_found_in_any_file() {
    for (path, line) in [
        ("src/bus.rs", "use crate::jbd::frame;"),
        ("src/bus.rs", "use crate::{hex::Hex, jbd::frame};"),
        ("src/bus.rs", "use super::jbd::frame;"),
        ("src/mqtt/session.rs", "use super::super::jbd::frame;"),
        ("src/poller.rs", "use crate::jbd::board::Board;"),
        ("src/jbd/simulator.rs", "use crate::mqtt::names::Names;"),
        ("src/jbd/simulator/living.rs", "use crate::pack::reading::Reading;"),
        ("src/pack/tracker.rs", "use tokio::time::Duration;"),
        ("src/pack/tracker.rs", "let now = std::time::Instant::now();"),
        ("src/health.rs", "let now = SystemTime::now();"),
        ("src/mqtt/mirror.rs", "use rumqttc::QoS;"),
        ("src/commands/run.rs", "std::process::exit(1);"),
        ("src/commands/run.rs", "use clap::Parser;"),
        ("src/new.rs", ""),
    ] {
        assert!(!wrong(path, line).is_empty(), "{path}: {line}");
    }
    assert_eq!(wrong("src/bus.rs", "// crate::jbd is not known here\nuse crate::trace::Trace;"), [""; 0]);
}
