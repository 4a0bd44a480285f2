//! `--once`, `scan`, `decode`, `simulate` and `demo` as scripts use them, with the real program and a real pseudo-terminal.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use bms2mqtt::jbd::simulator::{FaultKind, Pace};
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use support::{
    Answers, Board, HOUSE, HOUSE_LINE, NAME, OwnPort, bms2mqtt, bms2mqtt_without_rights, scratch, signal,
};

const NOBODY: u32 = 65534;
const WIRE: Pace = Pace::Wire { baud: 9600 };

/// Runs it while the board of this test goes on answering.
async fn run(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = bms2mqtt(directory);
    command.args(arguments);
    finished(command).await
}

async fn finished(mut command: Command) -> (i32, String, String) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let Output { status, stdout, stderr } = output;
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[tokio::test]
async fn the_one_line_json_is_the_contracts_to_the_byte() {
    let directory = scratch("once");
    let link = directory.join("tty");
    let _board = Board::start(Answers::new(&HOUSE), Some(&link), WIRE);
    let port = link.to_str().unwrap();
    fs::write(
        directory.join("bms.conf"),
        format!("device={port} // the cable\nrun_interval=5\nout_to=consol\n"),
    )
    .unwrap();
    fs::write(directory.join("mine.yaml"), format!("packs:\n  - id: house\n    port: {port}\n")).unwrap();
    for arguments in [
        &["--once", "--port", port][..],
        &["-1", "-p", port],
        &["--once", "--config", "mine.yaml"],
        &["-1"], // from bms.conf in the working directory
        &["-1", "-c", "bms.conf"],
        &["run", "--once", "-p", port],
    ] {
        let (code, out, err) = run(&directory, arguments).await;
        assert_eq!((code, out.as_str()), (0, format!("{HOUSE_LINE}\n").as_str()), "{arguments:?}: {err}");
        assert_eq!(err, "", "{arguments:?}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn debug_shows_configuration_bytes_and_verdicts() {
    let directory = scratch("debug");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let (code, out, err) = run(&directory, &["-1", "-d", "-p", board.port.to_str().unwrap()]).await;
    assert_eq!((code, out.trim()), (0, HOUSE_LINE));
    for words in ["at 9600 baud, every 5s", "→ DD A5 03 00 FF FD 77", "← DD 04 00 10 0D 04", "checksum right"]
    {
        assert!(err.contains(words), "{words}: {err}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_board_that_does_not_answer_is_status_0_beside_one_that_does() {
    let directory = scratch("silent");
    let good = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let mute = Answers::new(&HOUSE);
    mute.mute(true);
    let silent = Board::start(mute, None, Pace::Unpaced);
    let (silent, good) = (silent.port.display(), good.port.display());
    let yaml = format!("packs: [{{port: {silent}}}, {{port: {good}}}, {{port: /dev/no-such-port}}]");
    fs::write(directory.join("config.yaml"), yaml).unwrap();
    let (code, out, err) = run(&directory, &["--once"]).await;
    assert_eq!(code, 1);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines, [r#"{"BMS_status":0}"#, HOUSE_LINE, r#"{"BMS_status":0}"#]);
    assert!(err.contains("the board is silent; check wiring"), "{err}");
    assert!(err.contains("cannot open /dev/no-such-port: there is no such port"), "{err}");
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_port_that_cannot_be_used_is_told_readably() {
    let directory = scratch("ports");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let port = board.port.to_str().unwrap();
    // As picocom holds a port, and as screen does.
    let open = || {
        fs::File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(port).unwrap()
    };
    let locked = Flock::lock(open(), FlockArg::LockExclusiveNonblock).unwrap();
    let (code, out, err) = run(&directory, &["-1", "-p", port]).await;
    assert_eq!((code, out.trim()), (1, r#"{"BMS_status":0}"#));
    assert!(err.contains("another program uses this port; a port has one user"), "{err}");
    drop(locked);
    let exclusive = tokio_serial::SerialStream::open(&tokio_serial::new(port, 9600)).unwrap();
    #[allow(deprecated)]
    nix::fcntl::flock(exclusive.as_raw_fd(), FlockArg::Unlock).unwrap();
    let mut command = bms2mqtt_without_rights(&directory);
    command.args(["-1", "-p", port]);
    let (code, _, err) = finished(command).await;
    assert!(code == 1 && err.contains("another program uses this port"), "{err}");
    assert!(err.contains("if it was killed, start what is at the other end"), "{err}");
    drop(exclusive);

    let file = directory.join("file");
    fs::write(&file, "").unwrap();
    let (_, _, err) = run(&directory, &["-1", "-p", file.to_str().unwrap()]).await;
    assert!(err.contains("this is not a serial port"), "{err}");

    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    fs::set_permissions(&board.port, fs::Permissions::from_mode(0o000)).unwrap();
    if geteuid().is_root() {
        chown(&board.port, Some(NOBODY), None).unwrap();
    }
    let mut command = bms2mqtt_without_rights(&directory);
    command.arg("-1").arg("-p").arg(&board.port);
    let (code, _, err) = finished(command).await;
    assert!(code == 1 && err.contains("permission denied; add the user to the group"), "{err}");

    let nobody = OwnPort::new();
    let url = format!("tcp://{}", nobody.address);
    let (_, _, err) = run(&directory, &["-1", "-p", &url]).await;
    assert!(err.contains(&format!("{url}: connection refused")), "{err}");
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_port_has_one_user_until_that_is_gone_however_it_went() {
    let directory = scratch("lock");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let conf = format!("device={}\nrun_interval=0.2\nout_to=consol\n", board.port.display());
    fs::write(directory.join("bms.conf"), conf).unwrap();
    let once = async || {
        let mut command = bms2mqtt_without_rights(&directory);
        command.arg("-1");
        finished(command).await
    };
    for end in ["KILL", "ABRT", "TERM"] {
        let mut command = bms2mqtt_without_rights(&directory);
        let mut bridge = Guard(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut out = BufReader::new(bridge.0.stdout.take().unwrap());
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            (line, out)
        });
        let (line, _out) = line.await.unwrap();
        assert_eq!(line.trim(), HOUSE_LINE, "before {end}");
        let (code, out, err) = once().await;
        assert_eq!((code, out.trim()), (1, r#"{"BMS_status":0}"#), "{err}");
        assert!(err.contains("another program uses this port"), "{err}");

        signal(&bridge.0, end);
        bridge.0.wait().unwrap();
        let (code, out, err) = once().await;
        assert_eq!((code, out.trim()), (0, HOUSE_LINE), "after {end}: {err}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn consol_prints_the_line_at_every_interval() {
    let directory = scratch("consol");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let conf = format!("device={}\nrun_interval=0.2\nout_to=consol\n", board.port.display());
    fs::write(directory.join("bms.conf"), conf).unwrap();
    let child = bms2mqtt(&directory).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = Guard(child);
    let out = BufReader::new(child.0.stdout.take().unwrap());
    let lines = tokio::task::spawn_blocking(|| out.lines().take(3).collect::<Result<Vec<_>, _>>().unwrap());
    assert_eq!(tokio::time::timeout(support::PATIENCE, lines).await.unwrap().unwrap(), [HOUSE_LINE; 3]);
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn scan_tells_which_port_answers() {
    let directory = scratch("scan");
    let board = Board::start(Answers::new(&[HOUSE[0], HOUSE[1], NAME]), None, WIRE);
    let port = board.port.to_str().unwrap();
    let (code, out, err) = run(&directory, &["scan", "/dev/no-such-port", port]).await;
    assert_eq!((code, out), (0, format!("{port}: SP15S001-P13S-30A, 8 cells, 26.66 V\n")), "{err}");
    assert!(err.starts_with("/dev/no-such-port: cannot open"), "{err}");
    let (code, out, _) = run(&directory, &["scan", "/dev/no-such-port"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn decode_takes_hex_from_arguments_or_standard_input() {
    let directory = scratch("decode");
    let (code, out, _) = run(&directory, &["decode", HOUSE[0]]).await;
    assert_eq!(code, 0);
    assert!(out.contains("Voltage                     26.66 V\n"), "{out}");
    assert!(out.contains("State of charge             99 %\n"), "{out}");

    let arguments: Vec<&str> = ["decode", "--json"].into_iter().chain(HOUSE[1].split(' ')).collect();
    let (_, out, _) = run(&directory, &arguments).await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["cell_6_voltage"], &json["highest_cell"]), (&3.336.into(), &6.into()));

    let mut child = bms2mqtt(&directory)
        .args(["decode", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(HOUSE.join("\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);

    let (code, out, err) = run(&directory, &["decode", "DD030000FFFF77"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("checksum is FFFF, should be 0000"), "{err}");
    let (code, _, err) = run(&directory, &["decode", "DD0"]).await;
    assert_eq!(code, 2, "{err}");
    let (code, _, err) = run(&directory, &["decode", "hello!"]).await;
    assert_eq!(code, 2, "{err}");
    fs::remove_dir_all(directory).unwrap();
}

/// A child of a test, which ends with it.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `simulate` and gives the port that it says it serves.
fn simulate(directory: &Path, arguments: &[&str]) -> (Guard, String) {
    let mut child =
        bms2mqtt(directory).arg("simulate").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Guard(child), line.trim().to_owned())
}

#[tokio::test]
async fn simulate_serves_captured_frames_and_a_living_pack() {
    let directory = scratch("simulate");
    fs::write(directory.join("house.txt"), HOUSE.join("\n")).unwrap();
    let (_simulator, port) = simulate(&directory, &["--link", "tty", "--profile", "house.txt"]);
    assert_eq!(port, "tty");
    let (code, out, err) = run(&directory, &["-1", "-p", "tty"]).await;
    assert_eq!((code, out.trim()), (0, HOUSE_LINE), "{err}");

    let (_simulator, port) = simulate(&directory, &["--listen", "127.0.0.1:0", "--profile", "house.txt"]);
    assert!(port.starts_with("tcp://127.0.0.1:"), "{port}");
    for _ in 0..2 {
        let (code, out, err) = run(&directory, &["-1", "-p", &port]).await;
        assert_eq!((code, out.trim()), (0, HOUSE_LINE), "{err}");
    }

    let (_simulator, port) = simulate(&directory, &["--cells", "24"]);
    let (code, out, err) = run(&directory, &["-1", "-p", &port]).await;
    assert_eq!(code, 0, "{err}");
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(line["Vbank23"].as_f64().unwrap() > 2.0 && line["Vbank24"].is_null(), "{out}");

    // An interrupted simulator takes its link away.
    let (simulator, _) = simulate(&directory, &["--link", "other"]);
    assert!(directory.join("other").exists());
    signal(&simulator.0, "TERM");
    support::eventually("the link is gone", || (!directory.join("other").is_symlink()).then_some(())).await;
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn simulate_does_what_can_go_wrong_on_purpose() {
    let directory = scratch("faults");
    fs::write(directory.join("house.txt"), HOUSE.join("\n")).unwrap();
    let once = async |faults: &[&str]| {
        let arguments = [&["--profile", "house.txt"], faults].concat();
        let (_simulator, port) = simulate(&directory, &arguments);
        run(&directory, &["-1", "-d", "-p", &port]).await
    };
    // The asker copes with these, and with a board that loses every second request.
    let noise = [
        "--fault",
        "echo=1",
        "--fault",
        "sleepy=2",
        "--fault",
        "split=1",
        "--fault",
        "duplicate=1",
        "--fault",
        "stale=1",
        "--seed",
        "5",
    ];
    let (mut code, mut out, mut err) = once(&noise).await;
    for _ in 0..5 {
        if code == 0 {
            break;
        }
        // A machine that is too busy for half a second loses one more, which is one too many.
        (code, out, err) = once(&noise).await;
    }
    assert_eq!((code, out.trim()), (0, HOUSE_LINE), "{err}");
    assert!(err.contains("(dropped: an echo)"), "{err}");
    let (code, out, err) = once(&["--fault", "mute"]).await;
    assert_eq!((code, out.trim()), (1, r#"{"BMS_status":0}"#), "{err}");
    let (code, out, err) = once(&["--fault", "mute@1h-2h", "--fault", "drop=1@0s-1s/1h", "--unpaced"]).await;
    assert_eq!((code, out.trim()), (0, HOUSE_LINE), "it is over before all tries are: {err}");

    let (code, out, err) = run(&directory, &["simulate", "--fault", "drop", "--fault", "corupt=7"]).await;
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.starts_with("bms2mqtt: --fault corupt=7: \"corupt\" is no fault; there are mute, "), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    let (_, help, _) = run(&directory, &["simulate", "--help"]).await;
    for kind in FaultKind::all() {
        assert!(help.contains(&format!("\n  {} ", kind.name())), "{}: {help}", kind.name());
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn the_journal_is_not_told_the_time() {
    use std::os::unix::fs::MetadataExt;
    let directory = scratch("journal");
    let first_word = |stream: &dyn Fn(&fs::Metadata) -> String| {
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut command = support::bms2mqtt(&directory);
        command
            .args(["--once", "--port", "/dev/nowhere"])
            .env("JOURNAL_STREAM", stream(&log.metadata().unwrap()));
        assert_eq!(command.stderr(log).output().unwrap().status.code(), Some(1));
        let log = fs::read_to_string(directory.join("log")).unwrap();
        log.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(first_word(&|log| format!("{}:{}", log.dev(), log.ino())), "ERROR");
    assert!(first_word(&|_| "1:2".to_owned()).starts_with("20"));
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn import_makes_a_configuration_that_does_what_bms_conf_did() {
    let directory = scratch("import");
    let conf = "device=/dev/ttyUSB7\nMQTTserver=192.168.1.10 // home\nMQTTtopik=/test_1\nrun_interval=7\nout_to=mqtt\n";
    fs::write(directory.join("bms.conf"), conf).unwrap();
    let (_, before, _) = run(&directory, &["check"]).await;
    let (code, advice, err) = run(&directory, &["import", "bms.conf"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        advice.starts_with("config.yaml is written.") && advice.contains("bms2mqtt)\" ./smart_bms\n"),
        "{advice}"
    );
    let (_, after, _) = run(&directory, &["check"]).await;
    assert!(after.starts_with("./config.yaml: good\nbroker mqtt://192.168.1.10:1883\n"), "{after}");
    assert_eq!(before.replace("bms.conf", "config.yaml"), after);

    // `smart_bms` handed what stands behind the host to mosquitto_pub: so a login could be there.
    fs::write(directory.join("bms.conf"), conf.replace(".10 ", ".10 -u bms -P 'hunter#2' -p 1884 ")).unwrap();
    let (code, _, err) = run(&directory, &["import", "bms.conf", "-o", "login.yaml"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let (_, out, _) = run(&directory, &["check", "-c", "login.yaml"]).await;
    assert!(out.contains("broker mqtt://192.168.1.10:1884 as user bms with a password\n"), "{out}");
    let login = directory.join("login.yaml");
    assert!(fs::read_to_string(&login).unwrap().contains("password: hunter#2\n"));
    assert_eq!(fs::metadata(&login).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(directory.join("bms.conf"), conf).unwrap();

    let (code, _, err) = run(&directory, &["import"]).await;
    assert_eq!(code, 2);
    assert!(err.starts_with("bms2mqtt: config.yaml is there already; "), "{err}");
    let (code, _, err) = run(&directory, &["import", "config.yaml", "-o", "new.yaml"]).await;
    assert_eq!(code, 2);
    assert!(err.starts_with("bms2mqtt: config.yaml: this is no bms.conf; "), "{err}");
    fs::write(directory.join("bms.conf"), conf.replace("=mqtt", "=consol")).unwrap();
    let (_, advice, _) = run(&directory, &["import", "-o", "new.yaml"]).await;
    assert!(advice.contains("out_to=consol"), "{advice}");
    fs::write(directory.join("bms.conf"), "divice=x").unwrap();
    let (code, _, err) = run(&directory, &["import", "-o", "other.yaml"]).await;
    assert!(code == 2 && err.starts_with("bms2mqtt: bms.conf:1: divice: is no key of this file; "), "{err}");
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn dashboard_prints_a_view_of_the_configured_packs() {
    let directory = scratch("dashboard");
    let yaml = "packs: [{id: house, name: House battery, port: a}, {id: van, name: Вагон, port: b}]";
    fs::write(directory.join("config.yaml"), yaml).unwrap();
    let (code, out, err) = run(&directory, &["dashboard"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    for word in ["heading: \"House battery\"", "sensor.house_power", "heading: \"Вагон\"", "sensor.van_power"]
    {
        assert!(out.contains(word), "{word}: {out}");
    }
    let (_, german, _) = run(&directory, &["dashboard", "--language", "de"]).await;
    assert!(german.contains("heading: Zellen") && german.contains("sensor.house_power"), "{german}");

    let (code, _, err) = run(&directory, &["dashboard", "--ids-from-names"]).await;
    assert!(code == 2 && err.starts_with("bms2mqtt: --ids-from-names: "), "{err}");
    fs::write(directory.join("config.yaml"), "packs: [{name: House battery, port: a}]").unwrap();
    let (_, out, _) = run(&directory, &["dashboard", "--ids-from-names"]).await;
    assert!(out.contains("sensor.house_battery_power"), "{out}");
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn the_demo_needs_nothing_and_shows_a_pack_that_lives() {
    let directory = scratch("demo");
    let mut command = bms2mqtt(&directory);
    command.args(["demo", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut demo = Guard(command.spawn().unwrap());
    let mut out = BufReader::new(demo.0.stdout.take().unwrap());
    // Until it has shown two tables of a pack that is there.
    let reading = tokio::task::spawn_blocking(move || {
        let (mut said, mut tables) = (String::new(), Vec::new());
        while tables.len() < 2 {
            let mut table = String::new();
            while !table.contains("retained messages") {
                assert!(out.read_line(&mut table).unwrap() > 0, "it has ended: {said}{table}");
            }
            let (before, table) = table.split_once("Demo battery ").unwrap();
            said += before;
            if table.starts_with("(online)") {
                tables.push(table.to_owned());
            }
        }
        (said, tables, out)
    });
    let (said, tables, _out) = tokio::time::timeout(support::PATIENCE, reading).await.unwrap().unwrap();
    assert!(said.contains("The broker is at mqtt://127.0.0.1:"), "{said}");
    assert_ne!(tables[0], tables[1], "it lives");
    signal(&demo.0, "INT");
    let mut err = String::new();
    demo.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((demo.0.wait().unwrap().code(), err.as_str()), (Some(0), ""));

    let (code, _, err) = run(&directory, &["demo", "--for", "100ms", "--listen", "127.0.0.1:0"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    fs::remove_dir_all(directory).unwrap();
}
