//! The command line: every command shows its own options on a terminal of 80 columns, takes them
//! before its name and behind it, and refuses the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const COMMANDS: [&str; 9] =
    ["run", "check", "health", "scan", "dashboard", "import", "decode", "simulate", "demo"];

/// The options that stand before every command, each with a value if it has one.
const OPTIONS: [&[&str]; 21] = [
    &["--once"],
    &["--config", "x"],
    &["--port", "x"],
    &["--debug"],
    &["--log-format", "json"],
    &["--state-dir", "x"],
    &["--language", "de"],
    &["--id", "x"],
    &["--name", "x"],
    &["--baud", "9600"],
    &["--interval", "5s"],
    &["--mqtt-url", "x"],
    &["--mqtt-username", "x"],
    &["--mqtt-password", "x"],
    &["--mqtt-password-file", "x"],
    &["--mqtt-ca-file", "x"],
    &["--mqtt-cert-file", "x"],
    &["--mqtt-key-file", "x"],
    &["--mqtt-base-topic", "x"],
    &["--mqtt-client-id", "x"],
    &["--mqtt-keep-alive", "5s"],
];

/// Exit code, standard output and standard error.
fn run(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bms2mqtt"));
    let output = command.args(arguments).current_dir(directory).env_clear().stdin(Stdio::null()).output();
    let output = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn help_fits_a_terminal_of_80_columns() {
    let own = COMMANDS.iter().map(|command| vec![*command, "--help"]);
    for arguments in own.chain([vec!["--help"], vec!["help", "simulate"]]) {
        let (code, help, _) = run(Path::new("."), &arguments);
        assert_eq!(code, Some(0));
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{arguments:?}: {line}");
        }
    }
}

#[test]
fn a_command_refuses_what_it_does_not_show() {
    let has = |help: &str, option: &str| help.split_whitespace().any(|word| word == option);
    let (_, all, _) = run(Path::new("."), &["--help"]);
    for command in COMMANDS {
        let (_, help, _) = run(Path::new("."), &[command, "--help"]);
        for option in OPTIONS {
            assert!(has(&all, option[0]), "{option:?}");
            if has(&help, option[0]) {
                continue;
            }
            for arguments in [[&[command], option].concat(), [option, &[command]].concat()] {
                let (code, out, err) = run(Path::new("."), &arguments);
                let name = option[0];
                let expected =
                    format!("error: {name} means nothing to {command}; see `bms2mqtt {command} --help`\n");
                assert_eq!((code, out.as_str(), err), (Some(2), "", expected), "{arguments:?}");
            }
        }
    }
    // A few of them by name.
    for (command, shown, not_shown) in [
        ("decode", "--json", "--debug"),
        ("demo", "--debug", "--port"),
        ("check", "--mqtt-url", "--once"),
        ("scan", "--baud", "--config"),
        ("dashboard", "--language", "--mqtt-url"),
    ] {
        let (_, help, _) = run(Path::new("."), &[command, "--help"]);
        assert!(has(&help, shown) && !has(&help, not_shown), "{help}");
    }
}

#[test]
fn options_stand_before_the_command_or_behind_it() {
    let directory = scratch("usage");
    fs::write(directory.join("file.yaml"), "packs: [{id: house, port: /dev/nowhere}]").unwrap();
    for arguments in [
        &["-c", "file.yaml", "check"][..],
        &["check", "-c", "file.yaml"],
        &["-c", "other.yaml", "check", "-c", "file.yaml"],
        &["--language", "de", "check", "-c", "file.yaml"],
        &["-p", "/dev/nowhere", "check", "--id", "house"],
        &["check", "-p/dev/nowhere", "--id=house"],
    ] {
        let (code, out, err) = run(&directory, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        assert!(out.contains("\npack house "), "{arguments:?}: {out}");
        assert_eq!(out.contains("in German"), arguments.contains(&"de"), "{arguments:?}: {out}");
    }
    for arguments in [
        &["-1", "-c", "file.yaml"][..],
        &["-c", "file.yaml", "-1"],
        &["run", "-1", "-c", "file.yaml"],
        &["-1", "run", "-c", "file.yaml"],
        &["-c", "file.yaml", "run", "--once"],
        &["-1", "-p", "/dev/nowhere", "--id", "house"],
    ] {
        let (code, out, err) = run(&directory, arguments);
        assert_eq!((code, out.as_str()), (Some(1), "{\"BMS_status\":0}\n"), "{arguments:?}: {err}");
    }
    for arguments in
        [&["-d", "scan", "/dev/nowhere"][..], &["scan", "-d", "--baud", "9600", "-p", "/dev/nowhere"]]
    {
        let (code, _, err) = run(&directory, arguments);
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(err.contains("/dev/nowhere: cannot open"), "{arguments:?}: {err}");
    }
    fs::remove_dir_all(directory).unwrap();
}
