//! What users of `smart_bms` have: its folder, its script and its `bms.conf`, and a link of its
//! name to this program.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bms2mqtt::jbd::simulator::Pace;
use support::{
    Answers, Board, Broker, HOUSE, HOUSE_LINE, Listener, Program, eventually, scratch, write_script,
};

/// A folder with the link in it, as the scripts of its users expect it.
fn folder(name: &str, conf: &[u8]) -> PathBuf {
    let folder = scratch(name);
    symlink(env!("CARGO_BIN_EXE_bms2mqtt"), folder.join("smart_bms")).unwrap();
    fs::write(folder.join("bms.conf"), conf).unwrap();
    folder
}

/// `bms.conf` with comments in CP1251: "BMS port" and "where to".
fn conf(port: &Path, broker: &str, interval: &str, out_to: &str) -> Vec<u8> {
    let mut conf = b"# \xCF\xEE\xF0\xF2 BMS\r\n".to_vec();
    conf.extend(format!("device={}\r\nMQTTserver={broker}\r\n", port.display()).bytes());
    conf.extend(format!("MQTTtopik=/test_1\r\nrun_interval={interval}\r\n").bytes());
    conf.extend(b"// \xEA\xF3\xE4\xE0: mqtt, consol\r\n");
    conf.extend(format!("out_to={out_to}\r\n").bytes());
    conf
}

fn command(folder: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", folder);
    command.stdin(Stdio::null());
    command
}

/// Runs it while the board of this test goes on answering.
async fn run(mut command: Command) -> (i32, String, String) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let Output { status, stdout, stderr } = output;
    (status.code().unwrap(), text(stdout), text(stderr))
}

async fn smart_bms(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = command(folder, "./smart_bms");
    command.args(arguments);
    run(command).await
}

#[tokio::test]
async fn a_script_that_asks_once_and_sends_the_line_itself_goes_on_as_it_is() {
    let broker = Broker::start().await;
    let listener = Listener::start(broker.address).await;
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let folder = folder("seed-script", &conf(&board.port, "localhost", "5", "consol"));
    // As they stand in cron: into the script's folder, ask, take the line, send it on.
    let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\" || exit\nBMS=$(./smart_bms -1)\n\
                  case $BMS in\n*'\"BMS_status\":1'*) ./send \"$BMS\" ;;\nesac\n";
    write_script(&folder.join("bms.sh"), script);
    write_script(&folder.join("send"), "#!/bin/sh\nprintf '%s' \"$1\" > sent\n");
    let script = || command(Path::new("/"), folder.join("bms.sh").to_str().unwrap());
    assert_eq!(run(script()).await, (0, String::new(), String::new()));
    let sent = fs::read_to_string(folder.join("sent")).unwrap();
    assert_eq!(sent, HOUSE_LINE);
    assert_eq!(listener.messages(), [], "with out_to=consol nothing goes to a broker");

    let address = broker.address.to_string();
    fs::write(folder.join("bms.conf"), conf(&board.port, &address, "5", "mqtt")).unwrap();
    assert_eq!(run(script()).await, (0, String::new(), String::new()));
    listener.wait_for("/test_1", HOUSE_LINE).await;
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn once_publishes_the_line_where_out_to_is_mqtt() {
    let broker = Broker::start().await;
    let listener = Listener::start(broker.address).await;
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let address = broker.address.to_string();
    let folder = folder("seed-once", &conf(&board.port, &address, "5", "mqtt"));
    let (code, out, err) = smart_bms(&folder, &["-1"]).await;
    assert_eq!((code, out.trim(), err.as_str()), (0, HOUSE_LINE, ""));
    listener.wait_for("/test_1", HOUSE_LINE).await;
    assert_eq!(listener.messages().len(), 1, "nothing else");
    assert!(broker.retained().await.is_empty());

    // By the program's own name it only prints.
    listener.clear();
    let mut ours = support::bms2mqtt(&folder);
    ours.arg("-1");
    let (code, out, _) = run(ours).await;
    assert_eq!((code, out.trim()), (0, HOUSE_LINE));
    // Nor is anything published of a board that is silent.
    answers.mute(true);
    let (code, out, err) = smart_bms(&folder, &["--once"]).await;
    assert_eq!((code, out.trim()), (1, r#"{"BMS_status":0}"#), "{err}");
    assert_eq!(listener.messages().iter().filter(|m| m.topic != "test/last").count(), 0);

    answers.mute(false);
    fs::write(folder.join("bms.conf"), conf(&board.port, "127.0.0.1:1", "5", "mqtt")).unwrap();
    let (code, out, err) = smart_bms(&folder, &["-1"]).await;
    assert_eq!((code, out.trim()), (1, HOUSE_LINE));
    assert_eq!(
        err,
        "bms2mqtt: mqtt://127.0.0.1:1: connection refused; is the broker running, and is this its port?\n"
    );
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn without_options_it_does_for_ever_what_bms_conf_says() {
    let broker = Broker::start().await;
    let listener = Listener::start(broker.address).await;
    let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
    let address = broker.address.to_string();
    let folder = folder("seed-run", &conf(&board.port, &address, "0.3", "mqtt"));
    // The script's folder may have another program's file of this name.
    fs::write(folder.join("config.yaml"), "somebody: else's\n").unwrap();
    let start = || {
        let log = fs::File::create(folder.join("log")).unwrap();
        let out = fs::File::create(folder.join("out")).unwrap();
        let child = command(&folder, "./smart_bms").stdout(out).stderr(log).spawn().unwrap();
        Program { child, directory: folder.clone() }
    };
    let program = start();
    let lines = || listener.messages().iter().filter(|m| m.topic == "/test_1").count();
    eventually("a line at every poll", || (lines() >= 3).then_some(())).await;
    assert!(listener.position("/test_1", HOUSE_LINE).is_some());
    assert!(!broker.retained().await.contains_key("/test_1"));
    drop(program);

    fs::write(folder.join("bms.conf"), conf(&board.port, "", "0.2", "consol")).unwrap();
    let mut program = start();
    let out = || fs::read_to_string(folder.join("out")).unwrap();
    eventually("three lines", || (out().lines().count() >= 3).then_some(())).await;
    assert!(out().lines().all(|line| line == HOUSE_LINE), "{}", out());
    program.signal("TERM");
    assert_eq!(program.ended().await.code(), Some(0));
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn debug_prints_what_smart_bms_printed_and_where() {
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    let folder = folder("seed-debug", &conf(&board.port, "192.168.1.10", "5", "consol"));
    let (code, out, err) = smart_bms(&folder, &["-1", "-d"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let port = board.port.display();
    let expected = format!(
        "BMS: Debug set

device: <{port}>
MQTTserver: <192.168.1.10>
MQTTtopik: </test_1>
run_interval: 5
out_to: <consol>


ZAPROS 0: DD A5 3 0 FF FD 77 \n\
OTVET: DD 3 0 1B A 6A 0 0 1E E7 1F 40 0 0 27 72 0 0 0 0 0 0 15 63 3 8 2 B 89 B 8B FB C5 77 \n\
CRC: fbc5 => OK
   n = 34  rashet: 3  tRUE

ZAPROS 1: DD A5 4 0 FF FC 77 \n\
OTVET: DD 4 0 10 D 4 D 5 D 4 D 4 D 6 D 8 D 3 D 6 FF 60 77 \n\
CRC: ff60 => OK
   n = 23  rashet: 4  tRUE

{HOUSE_LINE}

BMS: queries complete, exiting loop.

"
    );
    assert_eq!(out, expected);

    // A wrong checksum, and a refusal, which is no answer though its checksum is right.
    let wrong = HOUSE[1].replace("FF 60", "FF 61");
    let answers = Broken { answers, wrong: support::bytes(&wrong) };
    let board = Board::start(answers, None, Pace::Unpaced);
    fs::write(folder.join("bms.conf"), conf(&board.port, "", "5", "consol")).unwrap();
    let (code, out, _) = smart_bms(&folder, &["-1", "--debug"]).await;
    assert_eq!(code, 1);
    let tries = out.matches("ZAPROS 1: DD A5 4 0 FF FC 77 \nOTVET: DD 4 0 10 D 4 ").count();
    assert_eq!(tries, 3, "{out}");
    assert_eq!(out.matches(" FF 61 77 \nCRC: ff60 => NOT ok !!!!   n = 23  fALSE\n\n").count(), 3, "{out}");
    assert!(out.ends_with("{\"BMS_status\":0}\n\n"), "{out}");

    // By its own name the same goes to the log, and what the serial library thinks goes nowhere.
    let mut ours = support::bms2mqtt(&folder);
    ours.args(["-1", "-d"]);
    let (_, out, err) = run(ours).await;
    assert_eq!(out, "{\"BMS_status\":0}\n");
    assert!(err.contains("→ DD A5 04 00 FF FC 77\n") && err.contains("checksum is FF61"), "{err}");
    assert!(!err.contains("serial port") && !err.contains("O_NONBLOCK"), "{err}");
    fs::remove_dir_all(folder).unwrap();
}

/// Answers register 04 with something else than it should.
struct Broken {
    answers: Answers,
    wrong: Vec<u8>,
}

impl bms2mqtt::jbd::simulator::Pack for Broken {
    fn answer(&mut self, register: u8) -> bms2mqtt::jbd::simulator::Reply {
        match register {
            4 => bms2mqtt::jbd::simulator::Reply::Verbatim(self.wrong.clone()),
            _ => self.answers.answer(register),
        }
    }
}
