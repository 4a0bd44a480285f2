//! What a running bridge is asked on its socket: `--once` beside it, `health` and `health --alive`.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Output;

use bms2mqtt::bridge::control_address;
use bms2mqtt::cli::Options;
use bms2mqtt::config::Config;
use bms2mqtt::jbd::simulator::Pace;
use support::{Answers, Board, Broker, HOUSE, HOUSE_LINE, Program, bms2mqtt, eventually, scratch};

const STATUS_0: &str = r#"{"BMS_status":0}"#;

/// Runs it while board and broker of this test go on.
async fn run(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = bms2mqtt(directory);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let Output { status, stdout, stderr } = output;
    (status.code(), text(stdout), text(stderr))
}

async fn is_polled(answers: &Answers) {
    eventually("the first poll", || (answers.polls() > 0).then_some(())).await;
}

/// A cron line of somebody who comes from `smart_bms`.
#[tokio::test]
async fn once_beside_the_bridge_of_a_bms_conf_tells_what_the_board_says_now() {
    let broker = Broker::start().await;
    let directory = scratch("once");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let port = board.port.display();
    // An interval that does not come round in this test: the bridge asks when it is asked.
    let conf = format!(
        "device={port}\nMQTTserver={}\nMQTTtopik=test_1\nrun_interval=3600\nout_to=mqtt\n",
        broker.url()
    );
    fs::write(directory.join("bms.conf"), conf).unwrap();
    let log = fs::File::create(directory.join("log")).unwrap();
    let child = bms2mqtt(&directory).stderr(log).spawn().unwrap();
    let _program = Program { child, directory: directory.clone() };
    is_polled(&answers).await;
    for turn in 0..20 {
        let (code, out, err) = run(&directory, &["-1"]).await;
        let now = HOUSE_LINE.replace("26.66", &format!("26.{}", 66 + turn));
        assert_eq!((code, out.trim_end()), (Some(0), now.as_str()), "turn {turn}: {err}");
        assert_eq!(err, "");
        answers.change(3, |data| data[1] += 1);
    }
    assert_eq!(answers.polls(), 21, "one poll for each, and nobody beside the bridge");
    // What was read before is not what the board says now.
    answers.mute(true);
    let (code, out, err) = run(&directory, &["-1"]).await;
    assert_eq!((code, out.trim_end()), (Some(1), STATUS_0), "{err}");
}

#[tokio::test]
async fn once_has_undamped_values_and_a_status_0_for_a_pack_that_is_gone() {
    let broker = Broker::start().await;
    let directory = scratch("once-packs");
    let (house, van) = (Answers::new(&HOUSE), Answers::new(&HOUSE));
    let boards = [house.clone(), van.clone()].map(|answers| Board::start(answers, None, Pace::Unpaced));
    let yaml = format!(
        "mqtt: {{url: '{}'}}\ndead_band: {{voltage: 1}}\npacks:\n\
         - {{id: house, port: {}, interval: 100ms}}\n- {{id: van, port: {}, interval: 100ms}}\n",
        broker.url(),
        boards[0].port.display(),
        boards[1].port.display(),
    );
    let _program = Program::start(&directory, &yaml);
    is_polled(&house).await;
    let (code, out, err) = run(&directory, &["--once"]).await;
    assert_eq!((code, out), (Some(0), format!("{HOUSE_LINE}\n{HOUSE_LINE}\n")), "{err}");

    // 26.67 V: the dead band keeps it from the broker, not from here.
    house.change(3, |data| data[1] += 1);
    house.wait_for_polls(2).await;
    van.mute(true);
    let raised = HOUSE_LINE.replace("26.66", "26.67");
    let expected = format!("{raised}\n{STATUS_0}\n");
    let began = std::time::Instant::now();
    loop {
        let (code, out, err) = run(&directory, &["--once"]).await;
        if (code, &out) == (Some(1), &expected) {
            break;
        }
        assert!(began.elapsed() < support::PATIENCE, "{code:?} {out} {err}");
    }
    let retained = broker.retained().await;
    assert_eq!(retained["bms2mqtt/house/voltage"], "26.66");
}

/// Same broker and same pack, and yet another battery.
#[tokio::test]
async fn once_on_another_port_is_not_answered_by_the_bridge() {
    let broker = Broker::start().await;
    let directory = scratch("once-other");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let yaml = format!("mqtt: {{url: '{}'}}\npacks: [{{port: {}}}]\n", broker.url(), board.port.display());
    let _program = Program::start(&directory, &yaml);
    is_polled(&answers).await;
    let other = Answers::new(&HOUSE);
    other.change(3, |data| data[1] += 1);
    let other = Board::start(other, None, Pace::Unpaced);
    let yaml = yaml.replace(&board.port.display().to_string(), &other.port.display().to_string());
    fs::write(directory.join("other.yaml"), yaml).unwrap();
    let (code, out, err) = run(&directory, &["-1", "-c", "other.yaml"]).await;
    assert_eq!((code, out.trim_end()), (Some(0), HOUSE_LINE.replace("26.66", "26.67").as_str()), "{err}");
}

#[tokio::test]
async fn once_says_whose_the_port_may_be() {
    let directory = scratch("once-taken");
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let port = board.port.to_str().unwrap();
    let _other = tokio_serial::SerialStream::open(&tokio_serial::new(port, 9600)).unwrap();
    let (code, out, err) = run(&directory, &["-1", "-p", port]).await;
    assert_eq!((code, out.trim_end()), (Some(1), STATUS_0));
    assert!(err.contains("a running bms2mqtt is asked by `--once` with its configuration"), "{err}");
}

/// Where the bridge of the directory's `config.yaml` is asked.
fn socket(directory: &Path) -> SocketAddr {
    let options = Options { config: Some(directory.join("config.yaml")), ..Options::default() };
    control_address(&Config::load(&options).unwrap()).unwrap()
}

fn connect(address: &SocketAddr) -> UnixStream {
    UnixStream::connect_addr(address).unwrap()
}

fn response(mut client: UnixStream) -> String {
    client.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    response
}

#[tokio::test]
async fn a_bridge_is_alive_while_its_pack_sleeps_and_its_broker_is_away() {
    let mut broker = Broker::start().await;
    let directory = scratch("alive");
    let answers = Answers::new(&HOUSE);
    answers.mute(true);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let yaml = format!(
        "mqtt: {{url: '{}'}}\npacks: [{{id: house, port: {}, interval: 100ms}}]\n",
        broker.url(),
        board.port.display()
    );
    let program = Program::start(&directory, &yaml);
    program.logged("the board is silent").await;
    broker.kill().await;
    program.logged("trying again until it works").await;
    let (code, out, err) = run(&directory, &["health"]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.starts_with("not healthy\npack house: never read\nbroker: not connected for "), "{out}");
    let (code, out, err) = run(&directory, &["health", "--alive"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.starts_with("alive\npack house: never read\nbroker: not connected for "), "{out}");

    // Stopped, it still takes connections, and that is all.
    program.signal("STOP");
    let (code, out, err) = run(&directory, &["health", "--alive"]).await;
    program.signal("CONT");
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("does not answer"), "{err}");
}

#[tokio::test]
async fn old_and_new_at_the_two_ends_understand_each_other_and_nobody_holds_the_socket() {
    let broker = Broker::start().await;
    let directory = scratch("versions");
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let yaml = format!("mqtt: {{url: '{}'}}\npacks: [{{port: {}}}]\n", broker.url(), board.port.display());
    let program = Program::start(&directory, &yaml);
    let address = socket(&directory);
    let well =
        || UnixStream::connect_addr(&address).ok().map(response)?.starts_with("healthy\n").then_some(());
    eventually("health", well).await;

    // A client of an older version only reads; others say what nobody knows, or too much, or go.
    let what_is_said: [&[u8]; 5] = [b"", b"\n", b"nonsense\n", &[0xFF; 64], b"health"];
    let clients: Vec<UnixStream> = what_is_said
        .iter()
        .map(|said| {
            let mut client = connect(&address);
            client.write_all(said).unwrap();
            client
        })
        .collect();
    // More than are served at a time, and they keep silent.
    let silent: Vec<UnixStream> = (0..40).map(|_| connect(&address)).collect();
    let (code, out, err) = run(&directory, &["health", "--alive"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    drop(silent);
    for client in clients {
        let response = response(client);
        assert!(response.starts_with("healthy\npack battery: read "), "{response}");
    }
    drop(program);

    // A bridge of an older version reads nothing and answers at once.
    eventually("the socket is free", || UnixStream::connect_addr(&address).err()).await;
    let listener = UnixListener::bind_addr(&address).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            client.unwrap().write_all(b"not healthy\npack battery: never read\n").unwrap();
        }
    });
    let (code, out, _) = run(&directory, &["health"]).await;
    assert_eq!((code, out.as_str()), (Some(1), "not healthy\npack battery: never read\n"));
    let (code, out, _) = run(&directory, &["health", "--alive"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "not healthy\npack battery: never read\n"));
    let (code, out, err) = run(&directory, &["--once"]).await;
    assert_eq!((code, out.trim_end()), (Some(0), HOUSE_LINE), "{err}");
    assert!(err.contains("is of an older version"), "{err}");
}
