//! A stop cuts no exchange: a request that was written has its response read, or its time over, before the port closes.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bms2mqtt::jbd::simulator::Pace;
use support::{Answers, BANK, Board, Broker, Program, Stopwatch, bms2mqtt, scratch, spawn};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// As fast as the wire lets it: at nearly every moment an exchange is under way.
const INTERVAL: &str = "100ms";
const WIRE: Pace = Pace::Wire { baud: 9600 };
/// What a service may take to end.
const PROMPTLY: Duration = Duration::from_millis(2500);
const AT_ONCE: u32 = 10;

/// Starts a program, ends it at a moment of its own, and counts its exchanges.
async fn exchanges_until_stopped(number: u32, broker: String, port: PathBuf) -> usize {
    let directory = scratch("stop");
    let port = port.display();
    let yaml = format!(
        "mqtt: {{url: '{broker}', base_topic: stop_{number}}}\npacks: [{{port: {port}, interval: {INTERVAL}}}]\n"
    );
    fs::write(directory.join("config.yaml"), yaml).unwrap();
    let log = fs::File::create(directory.join("log")).unwrap();
    let child = spawn(bms2mqtt(&directory).args(["run", "--debug"]).stdin(Stdio::null()).stderr(log));
    let mut program = Program { child, directory: directory.clone() };
    program.logged("polled in").await;
    // All over the 150 ms that a poll of sixteen cells takes on this wire.
    sleep(Duration::from_millis(u64::from(number * 37 % 150))).await;
    let stopwatch = Stopwatch::start();
    program.signal("TERM");
    assert!(program.ended().await.success());
    assert!(stopwatch.elapsed() < PROMPTLY, "{:?}", stopwatch.elapsed());
    let log = program.log();
    let arrows: Vec<char> = log.chars().filter(|c| matches!(c, '→' | '←')).collect();
    assert!(arrows.chunks(2).all(|pair| pair == ['→', '←']), "an exchange was cut:\n{log}");
    fs::remove_dir_all(directory).unwrap();
    arrows.len() / 2
}

async fn stopped(count: u32) {
    let broker = Broker::start().await;
    let boards: Vec<Board> = (0..AT_ONCE).map(|_| Board::start(Answers::new(&BANK), None, WIRE)).collect();
    let mut exchanges = 0;
    for first in (0..count).step_by(boards.len()) {
        let programs = boards
            .iter()
            .zip(first..)
            .map(|(board, number)| exchanges_until_stopped(number, broker.url(), board.port.clone()));
        exchanges += programs.collect::<JoinSet<usize>>().join_all().await.into_iter().sum::<usize>();
    }
    println!("{count} programs ended, {exchanges} exchanges, none cut");
}

#[tokio::test]
async fn a_stop_cuts_no_exchange() {
    stopped(20).await;
}

#[tokio::test]
#[ignore = "minutes: cargo test --release --test stop -- --ignored --nocapture"]
async fn two_hundred_stops_cut_no_exchange() {
    stopped(200).await;
}
