//! The house's rules: which room may look into which. See docs/architecture.md.

use std::fs;
use std::path::{Path, PathBuf};

/// What the files below a path must not mention, tests included.
const RULES: &[(&str, &[&str])] = &[
    (
        "src/pack",
        &[
            "tokio",
            "rumqttc",
            "std::fs",
            "std::io",
            "Instant",
            "crate::jbd",
            "crate::home_assistant",
            "crate::mqtt",
        ],
    ),
    ("src/jbd/frame.rs", &["tokio", "std::io", "crate::"]),
    ("src/jbd/message.rs", &["tokio", "std::io", "crate::link", "crate::home_assistant", "crate::mqtt"]),
    ("src/jbd/reading.rs", &["tokio", "std::io", "crate::link", "crate::home_assistant", "crate::mqtt"]),
    ("src/jbd/board.rs", &["tokio_serial", "crate::link", "crate::home_assistant", "crate::mqtt"]),
    ("src/jbd/simulator", &["crate::pack::reading", "crate::pack::decimal", "crate::mqtt"]),
    ("src/home_assistant", &["tokio", "rumqttc", "crate::jbd", "crate::mqtt", "crate::config"]),
    ("src/mqtt/topics.rs", &["tokio", "rumqttc", "crate::jbd", "crate::config"]),
    ("src/mqtt/session.rs", &["crate::jbd", "crate::config", "crate::link"]),
    ("src/mqtt/access.rs", &["crate::", "rumqttc"]),
    ("src/mqtt/endpoint.rs", &["crate::", "super::"]),
    ("src/mqtt/supervisor.rs", &["crate::", "rumqttc"]),
    ("src/mqtt/broker.rs", &["crate::"]),
    ("src/mqtt/broker", &["crate::", "tokio", "rumqttc", "std::io", "Instant"]),
    ("src/link.rs", &["crate::"]),
    ("src/health.rs", &["crate::"]),
    ("src/blocking.rs", &["crate::"]),
    ("src/control.rs", &["crate::jbd", "crate::mqtt", "crate::config", "crate::link"]),
];

/// What only these files may mention.
const ONLY: &[(&str, &[&str])] = &[
    ("rumqttc", &["src/mqtt/endpoint.rs", "src/mqtt/session.rs", "src/mqtt/broker.rs"]),
    ("tokio_serial", &["src/link.rs", "src/jbd/simulator.rs"]),
    ("minreq", &["src/mqtt/supervisor.rs"]),
    ("clap::", &["src/cli.rs", "src/main.rs"]),
    ("process::exit", &[]),
    // Each of them panics where the stream, or the thread, is not to be had.
    ("println!", &[]),
    ("spawn_blocking", &[]),
    ("thread::spawn", &[]),
    ("lookup_host", &[]),
];

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap();
    entries.flat_map(|entry| sources(&entry.unwrap().path())).collect()
}

/// The code of a file: comments may speak of anything, and everybody may have work done on another
/// thread.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap().replace("use crate::blocking;", "");
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn nobody_reaches_into_a_room_they_do_not_need() {
    for (path, forbidden) in RULES {
        for file in sources(Path::new(path)) {
            let code = code(&file);
            for word in *forbidden {
                assert!(!code.contains(word), "{} mentions {word}", file.display());
            }
        }
    }
    for (word, allowed) in ONLY {
        for file in sources(Path::new("src")) {
            let allowed = allowed.iter().any(|allowed| Path::new(allowed) == file);
            assert!(allowed || !code(&file).contains(word), "{} mentions {word}", file.display());
        }
    }
}
