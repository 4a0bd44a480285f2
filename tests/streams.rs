//! Standard output, standard error and the terminal, when they are full, closed or gone; and a
//! system that starts no more threads. The bridge lives on, and every command ends with the code
//! that its result has.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use bms2mqtt::jbd::simulator::Pace;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Answers, Board, Broker, HOUSE, HOUSE_LINE, Listener, PATIENCE, bms2mqtt, eventually, scratch};

const TOPIC: &str = "bms2mqtt/bridge/availability";

/// A stream that takes nothing because the disk is full.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A stream whose reader is gone.
fn unread() -> Stdio {
    OwnedFd::from(UnixStream::pair().unwrap().0).into()
}

/// A bridge in a test, which ends with it.
struct Bridge(Child);

impl Bridge {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        eventually("the bridge ends", || self.0.try_wait().unwrap()).await
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn yaml(broker: &str, board: &Board) -> String {
    let port = board.port.display();
    format!("mqtt: {{url: {broker}}}\npacks: [{{id: house, port: {port}, interval: 50ms}}]\n")
}

/// Is it polling and publishing, now? Each time by a voltage that was not there before.
async fn is_at_work(broker: &Broker, answers: &Answers) {
    static HUNDREDTHS: AtomicU16 = AtomicU16::new(2600);
    let listener = Listener::start(broker.address).await;
    let hundredths = HUNDREDTHS.fetch_add(1, Ordering::Relaxed);
    answers.change(3, |data| data[..2].copy_from_slice(&hundredths.to_be_bytes()));
    let volts = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    listener.wait_for("bms2mqtt/house/voltage", &volts).await;
}

#[tokio::test]
async fn the_bridge_outlives_its_log() {
    let directory = scratch("log");
    let broker = Broker::start().await;
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    fs::write(directory.join("config.yaml"), yaml(&broker.url(), &board)).unwrap();
    for (what, log) in [("full", full()), ("without a reader", unread())] {
        // With `--debug` every poll writes lines.
        let mut command = bms2mqtt(&directory);
        command.args(["run", "--debug"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut bridge = Bridge(command.spawn().unwrap());
        is_at_work(&broker, &answers).await;
        bridge.signal(Signal::SIGTERM);
        assert_eq!(bridge.ended().await.code(), Some(0), "{what}");
        assert_eq!(broker.retained().await[TOPIC], "offline", "{what}");
    }

    // A reader that goes away meanwhile.
    let mut command = bms2mqtt(&directory);
    command.args(["run", "--debug"]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut bridge = Bridge(command.spawn().unwrap());
    let mut log = BufReader::new(bridge.0.stderr.take().unwrap());
    log.read_line(&mut String::new()).unwrap();
    drop(log);
    is_at_work(&broker, &answers).await;
    bridge.signal(Signal::SIGTERM);
    assert_eq!(bridge.ended().await.code(), Some(0));
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_closed_terminal_ends_the_bridge_as_sigterm_does() {
    let directory = scratch("terminal");
    let broker = Broker::start().await;
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    fs::write(directory.join("config.yaml"), yaml(&broker.url(), &board)).unwrap();
    // No child of another test must keep it open.
    let terminal = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits());
    let end = options.open(ptsname_r(&terminal).unwrap()).unwrap();
    let mut command = bms2mqtt(&directory);
    command.arg("--debug").stdin(end.try_clone().unwrap()).stdout(end.try_clone().unwrap()).stderr(end);
    let mut bridge = Bridge(command.spawn().unwrap());
    drop(command);
    let mut lines = BufReader::new(terminal);
    lines.read_line(&mut String::new()).unwrap();
    drop(lines);
    is_at_work(&broker, &answers).await;
    bridge.signal(Signal::SIGHUP);
    assert_eq!(bridge.ended().await.code(), Some(0));
    assert_eq!(broker.retained().await[TOPIC], "offline");
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn nohup_keeps_its_promise() {
    let directory = scratch("nohup");
    let broker = Broker::start().await;
    let answers = Answers::new(&HOUSE);
    let board = Board::start(answers.clone(), None, Pace::Unpaced);
    fs::write(directory.join("config.yaml"), yaml(&broker.url(), &board)).unwrap();
    let mut command = wrapped(&directory, "trap '' HUP; exec \"$@\"", &["run"]);
    command.stdin(Stdio::null()).stderr(File::create(directory.join("log")).unwrap());
    let mut bridge = Bridge(command.spawn().unwrap());
    is_at_work(&broker, &answers).await;
    bridge.signal(Signal::SIGHUP);
    is_at_work(&broker, &answers).await;
    bridge.signal(Signal::SIGTERM);
    assert_eq!(bridge.ended().await.code(), Some(0));
    fs::remove_dir_all(directory).unwrap();
}

/// The program as a shell starts it; `"$@"` in the script is its command line.
fn wrapped(directory: &Path, script: &str, arguments: &[&str]) -> Command {
    let program = bms2mqtt(directory);
    let mut command = Command::new("/bin/sh");
    command.current_dir(directory).env_clear();
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-c", script, "sh"]).arg(program.get_program()).args(arguments);
    command
}

/// Exit code and what was said on standard error.
async fn outcome(mut command: Command) -> (Option<i32>, String) {
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A pack that answers, one that does not, and every command that prints a result of them, with its
/// exit code.
struct House {
    directory: std::path::PathBuf,
    board: Board,
}

impl House {
    fn new(name: &str) -> House {
        let directory = scratch(name);
        let board = Board::start(Answers::new(&HOUSE), None, Pace::Unpaced);
        let port = board.port.display();
        fs::write(directory.join("config.yaml"), format!("packs: [{{port: {port}}}]")).unwrap();
        let two = format!("packs: [{{port: {port}}}, {{port: /dev/no-such-port}}]");
        fs::write(directory.join("two.yaml"), two).unwrap();
        let consol = format!("device={port}\nrun_interval=0.2\nout_to=consol\n");
        fs::write(directory.join("bms.conf"), consol).unwrap();
        House { directory, board }
    }

    fn results(&self) -> Vec<(Vec<&str>, i32)> {
        let port = self.board.port.to_str().unwrap();
        vec![
            (vec!["--help"], 0),
            (vec!["help", "check"], 0),
            (vec!["-V"], 0),
            (vec!["check"], 0),
            (vec!["dashboard"], 0),
            (vec!["decode", HOUSE[0]], 0),
            (vec!["decode", "--json", HOUSE[0], HOUSE[1]], 0),
            (vec!["decode", "--json", HOUSE[0], "00"], 0),
            (vec!["--once"], 0),
            (vec!["--once", "-c", "two.yaml"], 1),
            (vec!["-c", "bms.conf"], 0),
            (vec!["scan", port, "/dev/no-such-port"], 0),
        ]
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[tokio::test]
async fn who_has_read_enough_makes_no_failure() {
    let house = House::new("unread");
    for (arguments, code) in house.results() {
        let mut command = bms2mqtt(&house.directory);
        command.args(&arguments).stdin(Stdio::null()).stdout(unread());
        let (found, err) = outcome(command).await;
        assert_eq!(found, Some(code), "{arguments:?}: {err}");
        assert!(!err.contains("roken pipe") && !err.contains("panicked"), "{arguments:?}: {err}");
    }
    let mut command = wrapped(&house.directory, "\"$@\" | head -n 1", &["check"]);
    command.stdin(Stdio::null());
    assert_eq!(outcome(command).await, (Some(0), String::new()));
    // `scan` does not go on to write to ports of which nobody wants to know.
    let mut command = bms2mqtt(&house.directory);
    command.args(["scan", house.board.port.to_str().unwrap(), "/dev/no-such-port"]).stdout(unread());
    assert_eq!(outcome(command).await, (Some(0), String::new()));
    // A file that was written is written, whether or not somebody reads the advice.
    let mut command = bms2mqtt(&house.directory);
    command.args(["import", "-o", "new.yaml"]).stdout(unread());
    assert_eq!(outcome(command).await, (Some(0), String::new()));
}

#[tokio::test]
async fn a_result_that_cannot_be_written_is_a_failure_with_a_reason() {
    let house = House::new("full");
    let more = [
        (vec!["import", "-o", "new.yaml"], 0),
        (vec!["simulate", "--link", "tty"], 0),
        (vec!["simulate", "--listen", "127.0.0.1:0"], 0),
        (vec!["demo", "--listen", "127.0.0.1:0"], 0),
    ];
    for (arguments, _) in house.results().into_iter().chain(more) {
        let mut command = bms2mqtt(&house.directory);
        command.args(&arguments).stdin(Stdio::null()).stdout(full());
        let (code, err) = outcome(command).await;
        assert_eq!(code, Some(1), "{arguments:?}: {err}");
        let last = err.lines().last().unwrap_or_default();
        let reason = "bms2mqtt: cannot write to standard output: No space left on device";
        assert!(last.starts_with(reason), "{arguments:?}: {err}");
        assert!(!err.contains("panicked"), "{arguments:?}: {err}");
    }
}

#[tokio::test]
async fn exit_codes_need_no_stream() {
    let house = House::new("streams");
    fs::write(house.directory.join("wrong.yaml"), "packs: []").unwrap();
    let failures = [
        (vec!["--no-such-option"], 2),
        (vec!["check", "--mqtt-url"], 2),
        (vec!["check", "-c", "wrong.yaml"], 2),
        (vec!["decode", "hello!"], 2),
        (vec!["decode"], 1), // nothing on standard input
        (vec!["decode", "DD030000FFFF77"], 1),
        (vec!["scan", "/dev/no-such-port"], 1),
        (vec!["--once", "-p", "/dev/no-such-port"], 1),
        (vec!["health"], 1), // no bridge runs
        (vec!["--once", "-p", "/dev/no-such-port", "--log-format", "json"], 1),
    ];
    for (arguments, code) in house.results().into_iter().chain(failures) {
        for (what, log) in [("full", full()), ("without a reader", unread())] {
            let mut command = bms2mqtt(&house.directory);
            command.args(&arguments).stdin(Stdio::null()).stderr(log);
            // The one that would go on for ever.
            if arguments == ["-c", "bms.conf"] {
                command.stdout(unread());
            }
            assert_eq!(outcome(command).await.0, Some(code), "{arguments:?}, standard error {what}");
        }
        if arguments == ["-c", "bms.conf"] {
            continue;
        }
        for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
            let command = wrapped(&house.directory, &format!("exec \"$@\" {closed}"), &arguments);
            let (found, err) = outcome(command).await;
            assert_eq!(found, Some(code), "{arguments:?} {closed}: {err}");
            assert!(!err.contains("panicked"), "{arguments:?} {closed}: {err}");
        }
    }
}

#[tokio::test]
async fn the_line_of_json_is_the_same_whatever_becomes_of_the_log() {
    let house = House::new("line");
    let mut command = bms2mqtt(&house.directory);
    command.args(["--once", "--debug"]).stdin(Stdio::null()).stderr(full());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{HOUSE_LINE}\n"));
    assert_eq!(output.status.code(), Some(0));
}

/// Where root runs the tests, who is not bound by limits: a user of whom there is no other process,
/// and whom containers that know 65536 users have too.
fn nobody_else() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    20_000 + std::process::id() % 4_000 * 10 + COUNT.fetch_add(1, Ordering::Relaxed)
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The program, for which this system starts so many threads, its first included; `None` where that
/// cannot be had. More than one only where it is root who asks: other users have processes.
fn limited(directory: &Path, user: u32, threads: u32, arguments: &[&str]) -> Option<Command> {
    let root = is_root();
    if !Path::new("/usr/bin/prlimit").exists() {
        return None;
    }
    let program = directory.join("bms2mqtt");
    let environment = bms2mqtt(directory);
    let mut command = Command::new("/usr/bin/prlimit");
    command.current_dir(directory).env_clear();
    command.envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // The soft limit only, which may be lifted again.
    command.arg(format!("--nproc={threads}:")).arg(&program).args(arguments);
    fs::copy(environment.get_program(), &program).unwrap();
    if root {
        chown(directory, Some(user), None).ok()?;
        command.uid(user);
    }
    // Can this user reach the program at all?
    let mut trial = Command::new(&program);
    trial.current_dir(directory).arg("-V");
    if root {
        trial.uid(user);
    }
    trial.output().is_ok().then_some(command)
}

#[tokio::test]
async fn a_thread_that_cannot_be_started_is_an_error_with_a_name() {
    let directory = scratch("threads");
    let broker = Broker::start().await;
    let answers = Answers::new(&HOUSE);
    // A board and a broker by names, which are looked up, and energy, which is saved: all want a
    // thread.
    let served = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let board = format!("tcp://localhost:{}", served.local_addr().unwrap().port());
    let mut pack = answers.clone();
    let serving = tokio::spawn(async move {
        loop {
            let (socket, _) = served.accept().await.unwrap();
            let _ = bms2mqtt::jbd::simulator::serve(socket, &mut pack, Pace::Unpaced).await;
        }
    });
    let url = format!("mqtt://localhost:{}", broker.address.port());
    let yaml = format!("mqtt: {{url: '{url}'}}\npacks: [{{id: house, port: '{board}', interval: 50ms}}]\n");
    fs::write(directory.join("config.yaml"), yaml).unwrap();
    let user = nobody_else();
    let Some(mut command) = limited(&directory, user, 1, &["run"]) else {
        eprintln!("not tried without threads: this user has no prlimit, or cannot start the program");
        return;
    };
    let log = File::create(directory.join("log")).unwrap();
    let mut bridge = Bridge(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
    let log = || fs::read_to_string(directory.join("log")).unwrap();
    for what in [
        format!("cannot open {board}: this system starts no further thread"),
        format!("{url}: this system starts no further thread"),
        "energy and the last protection are not shown: this system starts no further thread".to_owned(),
    ] {
        eventually(&format!("{what} in {}", log()), || log().contains(&what).then_some(())).await;
    }
    assert!(bridge.0.try_wait().unwrap().is_none(), "{}", log());
    // When there is room again, it goes on by itself: room for a single one, where nobody else has
    // a share of it.
    let id = bridge.0.id().to_string();
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max processes")).unwrap();
    let room = if is_root() { "2" } else { limit.split_whitespace().nth(3).unwrap() };
    let mut lift = Command::new("/usr/bin/prlimit");
    lift.args([&format!("--nproc={room}:"), "-p", &id]);
    if is_root() {
        lift.uid(user);
    }
    assert!(lift.status().unwrap().success());
    is_at_work(&broker, &answers).await;
    bridge.signal(Signal::SIGTERM);
    assert_eq!(bridge.ended().await.code(), Some(0), "{}", log());
    assert_eq!(broker.retained().await[TOPIC], "offline");
    assert!(!log().contains("this is a bug"), "{}", log());
    serving.abort();
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn without_a_thread_the_supervisor_is_asked_later() {
    // The last room is for the thread that asks, which wants another for its timeout.
    for threads in if is_root() { 1..=2 } else { 1..=1 } {
        let directory = scratch("supervisor");
        fs::write(directory.join("config.yaml"), "packs: [{port: 'tcp://127.0.0.1:1'}]").unwrap();
        let Some(mut command) = limited(&directory, nobody_else(), threads, &["run"]) else {
            eprintln!("not tried without threads: this user has no prlimit, or cannot start the program");
            return;
        };
        let path = directory.join("log");
        command.env("SUPERVISOR_TOKEN", "t").env("BMS2MQTT_SUPERVISOR_URL", "http://127.0.0.1:1");
        let log = File::create(&path).unwrap();
        let mut bridge = Bridge(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        let log = || fs::read_to_string(&path).unwrap();
        let said = || log().contains(" WARN this system starts no further thread").then_some(());
        eventually("that in the log", said).await;
        bridge.signal(Signal::SIGTERM);
        assert_eq!(bridge.ended().await.code(), Some(0), "{}", log());
        assert!(!log().contains("this is a bug"), "{}", log());
        fs::remove_dir_all(directory).unwrap();
    }
}
