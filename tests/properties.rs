//! What must hold of any bytes on the line: noise and splitting change no reading, flipped bits give none, and what is
//! decoded survives the round trip.
//!
//! The cases are random and the same on every machine: a case's number is its seed. `BMS2MQTT_TEST_CASES=100` makes
//! a hundred times as many.

use std::cell::Cell;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use bms2mqtt::board::Direct;
use bms2mqtt::hex::Hex;
use bms2mqtt::jbd::frame::{Answer, Frame, Parsed, Request, Status, frames, parse};
use bms2mqtt::jbd::message::{BasicInfo, CellVoltages, ErrorCounters, Tail, register};
use bms2mqtt::jbd::reading::reading;
use bms2mqtt::link::Timing;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, sleep, sleep_until};

/// What the fuzz targets ask.
#[path = "../fuzz/src/lib.rs"]
mod holds;

/// The contract's pack: 8 cells at 26.66 V, 2 temperatures; its answers to 0x03 and 0x04.
const HOUSE: [&str; 2] = [
    "DD 03 00 1B 0A 6A 00 00 1E E7 1F 40 00 00 27 72 00 00 00 00 00 00 15 63 03 08 02 0B 89 0B 8B FB C5 77",
    "DD 04 00 10 0D 04 0D 05 0D 04 0D 04 0D 06 0D 08 0D 03 0D 06 FF 60 77",
];
const POLLED: [u8; 2] = [register::BASIC_INFO, register::CELL_VOLTAGES];
/// Behind the answer to it comes the break between two polls.
const LAST: u8 = register::CELL_VOLTAGES;
const BREAK: Duration = Duration::from_secs(3);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    let byte = |place| u8::from_str_radix(&digits[place..place + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn answer_to(register: u8) -> Vec<u8> {
    bytes(HOUSE[usize::from(register == register::CELL_VOLTAGES)])
}

/// SplitMix64 (Steele, Lea, Flood 2014): any seed will do, also one after the other.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + (self.word() % (range.end() - range.start() + 1) as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.within(0..=choice.len() - 1)]
    }

    fn byte(&mut self) -> u8 {
        self.word() as u8
    }

    fn short(&mut self) -> u16 {
        self.word() as u16
    }

    fn bytes(&mut self, length: RangeInclusive<usize>) -> Vec<u8> {
        (0..self.within(length)).map(|_| self.byte()).collect()
    }
}

/// So many cases, each with its number and its own random numbers.
fn cases(count: u64) -> impl Iterator<Item = (u64, Random)> {
    let times = std::env::var("BMS2MQTT_TEST_CASES").map_or(1, |times| times.parse().unwrap());
    (0..count * times).map(|case| (case, Random(case << 20)))
}

// Noise, splits and pauses

/// What is sent for one question: noise, the answer, noise. A lost answer is empty.
struct Reply {
    register: u8,
    /// Before the first byte.
    delay: Duration,
    before: Vec<u8>,
    answer: Vec<u8>,
    after: Vec<u8>,
}

impl Reply {
    fn good(random: &mut Random, register: u8) -> Reply {
        Reply {
            register,
            delay: Duration::ZERO,
            before: noise(random, register, &[register]),
            answer: answer_to(register),
            after: noise(random, register, if register == LAST { &[] } else { &POLLED }),
        }
    }

    /// Silence, or noise alone: an answer that broke off or has a wrong bit is noise too.
    fn lost(random: &mut Random, register: u8) -> Reply {
        let before =
            if random.within(0..=2) == 0 { Vec::new() } else { noise(random, register, &[register]) };
        Reply { register, delay: Duration::ZERO, before, answer: Vec::new(), after: Vec::new() }
    }
}

/// Up to some hundred bytes, with no right answer of a register in `never` among them.
fn noise(random: &mut Random, register: u8, never: &[u8]) -> Vec<u8> {
    let mut noise = Vec::new();
    for _ in 0..random.within(0..=6) {
        let start = noise.len();
        match random.within(0..=9) {
            0 => noise.extend(random.bytes(1..=60)),
            1 => noise.extend(vec![0xDD; random.within(1..=8)]),
            2 => noise.extend(vec![random.one_of(&[0x00, 0x77, 0xFF]); random.within(1..=8)]),
            // A false start that claims more than will come: the answer lies in its shadow.
            3 => {
                noise.extend([0xDD, random.one_of(&[register, 0xA5, 0x05]), 0x00, random.byte() | 0x80]);
                noise.extend(random.bytes(0..=20));
            }
            4 => Request::read(random.one_of(&[register, 0x03, 0x04, 0x05])).encode(&mut noise),
            5 => {
                noise.extend(answer_to(register));
                noise.truncate(start + random.within(1..=22));
            }
            6 => {
                noise.extend(answer_to(register));
                let place = random.within(start..=noise.len() - 1);
                noise[place] ^= 1 << random.within(0..=7);
            }
            // A right answer to another question, or a refusal of it, with its checksum or without.
            kind => {
                let other = random.one_of(&[0x03, 0x04, 0x05, 0xAA, 0x00, 0xFB]);
                if never.contains(&other) {
                    continue;
                }
                let data = random.bytes(0..=if kind == 7 { 60 } else { 0 });
                let status = if kind == 7 { Status::OK } else { Status::NO_SUCH_REGISTER };
                Answer { register: other, status, data: &data }.encode(&mut noise);
                if kind == 9 {
                    noise[start + 4..start + 6].fill(0);
                }
            }
        }
    }
    noise
}

/// Now and then noise makes a right answer by chance, alone or with what stands beside it. Nobody could tell that from
/// the true one, so such cases are left out: a frame may not reach over the start of a true answer, and an answer of a
/// register that is polled may stand only where it is known that another one is asked for, or none.
fn is_fair(replies: &[Reply]) -> bool {
    let mut line = Vec::new();
    let mut answers = Vec::new();
    let mut harmless: Vec<(u8, Range<usize>)> = Vec::new();
    // Behind a late answer it is not known which question a byte comes after.
    let is_late = replies.iter().any(|reply| !reply.delay.is_zero());
    for Reply { register, before, answer, after, .. } in replies {
        if !is_late {
            harmless.push((*register, line.len()..line.len() + before.len()));
        }
        line.extend(before);
        answers.extend((!answer.is_empty()).then_some(line.len()));
        line.extend(answer);
        if *register == LAST && !answer.is_empty() {
            harmless.push((0, line.len()..line.len() + after.len()));
        }
        line.extend(after);
    }
    (0..line.len()).filter(|start| line[*start] == 0xDD && !answers.contains(start)).all(|start| {
        let Parsed::Frame(frame, length) = parse(&line[start..]) else {
            return true;
        };
        let end = start + length;
        let is_taken = match frame {
            Frame::Answer(answer) => {
                POLLED.contains(&answer.register)
                    && !harmless.iter().any(|(asked, place)| {
                        *asked != answer.register && place.start <= start && end <= place.end
                    })
            }
            Frame::Request(_) => false,
        };
        !is_taken && !answers.iter().any(|answer| (start..end).contains(answer))
    })
}

/// How long a reply's parts may take, in ms, and each pause in them.
///
/// The board waits 500 ms for an answer to begin, whatever else comes meanwhile, 200 ms for it to go on, and 2 s for its
/// end. So the noise behind one answer, that before the next and a pause take less than 500 ms together.
const PROMPT: [(usize, usize); 3] = [(140, 140), (1200, 190), (140, 140)];
/// Behind a late answer there is a second one under way, with noise before and behind it.
const LATE: [(usize, usize); 3] = [(60, 60); 3];

/// The other end of the line: a reply for each question, in random pieces with random pauses between them. Gives the
/// registers it was asked for.
async fn serve(mut line: DuplexStream, replies: Vec<Reply>, mut random: Random) -> Vec<u8> {
    let is_late = replies.iter().any(|reply| !reply.delay.is_zero());
    let mut asked = Vec::new();
    for Reply { delay, before, answer, after, .. } in replies {
        let mut request = [0; 7];
        if line.read_exact(&mut request).await.is_err() {
            break;
        }
        if let Some(Frame::Request(request)) = frames(&request).next() {
            asked.push(request.register);
        }
        sleep(delay).await;
        let times = if is_late { LATE } else { PROMPT };
        for (part, (all, longest)) in [before, answer, after].iter().zip(times) {
            let mut rest = part.as_slice();
            let mut pieces = random.within(1..=8);
            let longest = longest.min(all / pieces);
            while !rest.is_empty() {
                let count = if pieces == 1 { rest.len() } else { random.within(1..=rest.len()) };
                pieces -= 1;
                sleep(Duration::from_millis(random.within(0..=longest) as u64)).await;
                if line.write_all(&rest[..count]).await.is_err() {
                    break; // the board has all it wants
                }
                rest = &rest[count..];
            }
        }
    }
    // Whoever asks more is heard.
    let mut more = Vec::new();
    let _ = line.read_to_end(&mut more).await;
    asked.extend(more);
    asked
}

/// Two polls of one board give the clean reading, with one question for each reply.
async fn is_read_right(case: u64, replies: Vec<Reply>, random: Random) {
    let [info, cells] = POLLED.map(answer_to);
    let info = BasicInfo::decode(&info[4..info.len() - 3]).unwrap();
    let cells = CellVoltages::decode(&cells[4..cells.len() - 3]).unwrap();
    let clean = reading(Some(&info), Some(&cells));
    assert_eq!((info.voltage, clean.cells.len()), (2666, 8));

    let said: String = replies
        .iter()
        .map(|r| format!("{:02X}: {} | {} | {}\n", r.register, Hex(&r.before), Hex(&r.answer), Hex(&r.after)))
        .collect();
    let registers: Vec<_> = replies.iter().map(|reply| reply.register).collect();
    // Room for all that may come between the polls.
    let (here, there) = duplex(4096);
    let polls = async {
        let mut board = Direct::new(here, Timing::SERIAL);
        let first = board.poll().await;
        sleep(BREAK).await;
        ([first, board.poll().await], board.take_tally())
    };
    let ((readings, tally), asked) = tokio::join!(polls, serve(there, replies, random));
    for reading in readings {
        assert_eq!(reading.as_ref().ok(), Some(&clean), "case {case}: {reading:?}\n{said}");
    }
    assert_eq!(asked, registers, "case {case}\n{said}");
    let retries = registers.len() as u64 - 4;
    assert_eq!(tally.retries, retries, "case {case}\n{said}");
    assert_eq!(tally.timeouts + tally.checksum_errors, retries, "case {case}\n{said}");
}

async fn are_read_right(count: u64, make: impl Fn(&mut Random) -> Vec<Reply>) {
    let (mut all, mut unfair) = (0, 0);
    for (case, mut random) in cases(count) {
        let mut replies = make(&mut random);
        while !is_fair(&replies) {
            unfair += 1;
            replies = make(&mut random);
        }
        is_read_right(case, replies, random).await;
        all += 1;
    }
    println!("{all} cases; {unfair} left out");
    assert!(unfair * 100 <= all, "{unfair} of {all} cases left out");
}

/// Not even a question more is asked: an answer in the shadow of a false start is found when the line pauses.
#[tokio::test(start_paused = true)]
async fn noise_splits_and_pauses_change_nothing() {
    are_read_right(500, |random| {
        [0x03, 0x04, 0x03, 0x04].map(|register| Reply::good(random, register)).into()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn two_of_three_answers_may_be_lost() {
    are_read_right(500, |random| {
        let mut replies = Vec::new();
        for register in [0x03, 0x04, 0x03, 0x04] {
            for _ in 0..random.within(0..=2) {
                replies.push(Reply::lost(random, register));
            }
            replies.push(Reply::good(random, register));
        }
        replies
    })
    .await;
}

/// It is taken for the answer to the question asked again; the answer to that comes while another one is waited for.
#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_does_no_harm() {
    are_read_right(500, |random| {
        let late = random.within(0..=1);
        let mut registers = vec![0x03, 0x04, 0x03, 0x04];
        registers.insert(late, registers[late]);
        let mut replies: Vec<_> = registers
            .into_iter()
            .map(|register| Reply {
                before: noise(random, register, &POLLED),
                ..Reply::good(random, register)
            })
            .collect();
        // FIRST_BYTE is 500 ms, and the second question waits no longer than that either.
        replies[late].delay = Duration::from_millis(random.within(510..=800) as u64);
        if late > 0 {
            replies[late - 1].after.clear();
        }
        replies
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_a_flipped_bit_is_asked_for_again() {
    for register in POLLED {
        for bit in 0..8 * answer_to(register).len() {
            let mut random = Random(bit as u64);
            let clean = |register| Reply {
                register,
                delay: Duration::ZERO,
                before: Vec::new(),
                answer: answer_to(register),
                after: Vec::new(),
            };
            let mut replies: Vec<_> = [0x03, 0x04, 0x03, 0x04].map(clean).into();
            let mut flipped = Reply { before: answer_to(register), answer: Vec::new(), ..clean(register) };
            flip(&mut flipped.before, bit);
            replies.insert(random.within(0..=1) * 2 + usize::from(register == 0x04), flipped);
            is_read_right(bit as u64, replies, random).await;
        }
    }
}

/// A line that answers each question in its order, some late, some never, and says in the answer which one it is.
async fn answer_in_order(
    line: DuplexStream,
    questions: &Cell<u16>,
    latency: RangeInclusive<usize>,
    mut random: Random,
) {
    let (mut requests, mut answers) = tokio::io::split(line);
    let (send, mut receive) = unbounded_channel();
    let lost = random.within(0..=2);
    let hear = async move {
        let mut due = Instant::now();
        let mut request = [0; 7];
        while requests.read_exact(&mut request).await.is_ok() {
            questions.set(questions.get() + 1);
            let number = questions.get();
            let mut bytes = Vec::new();
            // An adapter that echoes.
            if latency.start() % 2 == 0 {
                bytes.extend(request);
                send.send((Instant::now().max(due), std::mem::take(&mut bytes))).unwrap();
            }
            let data = match request[2] {
                register::BASIC_INFO => BasicInfo { cycles: number, ..BasicInfo::default() }.encode(),
                register::CELL_VOLTAGES => CellVoltages(vec![number].into()).encode(),
                register::NAME => b"JBD".to_vec(),
                _ => ErrorCounters::default().encode(),
            };
            Answer { register: request[2], status: Status::OK, data: &data }.encode(&mut bytes);
            // Name and counters are never lost: by them it finds out that nothing older is under way any more.
            if matches!(request[2], register::NAME | register::COUNTERS) || random.within(1..=10) > lost {
                due = due.max(Instant::now() + Duration::from_millis(random.within(latency.clone()) as u64));
                send.send((due, bytes)).unwrap();
            }
        }
    };
    let say = async move {
        while let Some((due, bytes)) = receive.recv().await {
            sleep_until(due).await;
            if answers.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(hear, say);
}

/// Polls of a slow line give nothing that was asked for before them. `only_totals` is a board that tells no cells.
async fn are_of_this_poll(only_totals: bool) {
    let mut readings = 0;
    for (case, mut random) in cases(60) {
        let (here, there) = duplex(4096);
        let fastest = random.within(1..=1200);
        let latency = fastest..=fastest + random.within(0..=200);
        let questions = Cell::new(0);
        let line = answer_in_order(there, &questions, latency.clone(), Random(random.word()));
        let polls = async {
            let mut board = Direct::new(here, Timing::SERIAL);
            for poll in 1..=8 {
                let before = i64::from(questions.get());
                let outcome = if only_totals { board.poll_totals().await } else { board.poll().await };
                if let Ok(reading) = outcome {
                    readings += 1;
                    let info = i64::from(reading.totals.unwrap().cycles);
                    let cells = reading.cells.first().map_or(i64::MAX, |cell| cell.digits());
                    let what = format!("case {case}, {latency:?} ms, poll {poll}");
                    assert!(info > before, "{what}: totals of question {info} after {before}");
                    assert!(cells > before, "{what}: cells of question {cells} after {before}");
                }
                let pause = random.one_of(&[0, 0, 100, 500, 900]);
                sleep(Duration::from_millis(pause)).await;
            }
        };
        tokio::join!(polls, line);
    }
    println!("{readings} readings");
    assert!(readings > 0);
}

/// An answer does not tell which of two equal questions it answers.
#[tokio::test(start_paused = true)]
async fn no_reading_is_older_than_its_poll() {
    are_of_this_poll(false).await;
}

#[tokio::test(start_paused = true)]
async fn no_totals_are_older_than_their_poll() {
    are_of_this_poll(true).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_behind_an_echo_is_not_the_next_polls() {
    let (here, mut there) = duplex(4096);
    let mut old = answer_to(0x03);
    old[4..6].copy_from_slice(&[0x0B, 0x69]); // 29.21 V, and the same sum
    let line = async {
        for _ in 0..3 {
            let mut request = [0; 7];
            there.read_exact(&mut request).await.unwrap();
            there.write_all(&request).await.unwrap();
        }
        // By then the poll is over.
        sleep(Duration::from_millis(501)).await;
        there.write_all(&old).await.unwrap();
        for _ in POLLED {
            let mut request = [0; 7];
            there.read_exact(&mut request).await.unwrap();
            there.write_all(&answer_to(request[2])).await.unwrap();
        }
    };
    let polls = async {
        let mut board = Direct::new(here, Timing::SERIAL);
        assert!(board.poll().await.is_err());
        board.poll().await
    };
    let (reading, ()) = tokio::join!(polls, line);
    assert_eq!(reading.unwrap().totals.unwrap().voltage.to_string(), "26.66");
}

// Wrong bits

fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// What real boards answered to the registers that are read.
fn captures() -> Vec<Vec<u8>> {
    let captures: Vec<Value> = serde_json::from_str(include_str!("data/jbd-frames.json")).unwrap();
    let good = captures.iter().filter(|capture| {
        let read = matches!(capture["register"].as_str(), Some("0x03" | "0x04" | "0x05" | "0xAA"));
        read && capture["checksum_ok"] == true
    });
    let good: Vec<_> = good.map(|capture| bytes(capture["response_hex"].as_str().unwrap())).collect();
    assert_eq!(good.len(), 62);
    good
}

/// The registers of all answers that these bytes are taken for.
fn answered(bytes: &[u8]) -> Vec<u8> {
    let registers = frames(bytes).filter_map(|frame| match frame {
        Frame::Answer(answer) => Some(answer.register),
        Frame::Request(_) => None,
    });
    registers.collect()
}

#[test]
fn no_flipped_bit_is_accepted_as_an_answer_to_the_question() {
    for capture in captures() {
        assert_eq!(answered(&capture), [capture[1]]);
        for bit in 0..8 * capture.len() {
            let mut flipped = capture.clone();
            flip(&mut flipped, bit);
            // The one byte that the checksum does not cover is the register. With a wrong one it is a right answer to
            // another question, which the board drops.
            let expected: &[u8] = if bit / 8 == 1 { &flipped[1..2] } else { &[] };
            assert_eq!(answered(&flipped), expected, "bit {bit} of {}", Hex(&capture));
        }
    }
}

/// The exception: without data and with status 0 the checksum is 0000, and so it may be in a refusal. Of the registers
/// that are read only a name may be empty, and an empty one is as good as none.
#[test]
fn a_flipped_bit_makes_a_refusal_of_an_empty_name() {
    let empty = bytes("DD 05 00 00 00 00 77");
    let accepted = |bit: &usize| {
        let mut flipped = empty.clone();
        flip(&mut flipped, *bit);
        answered(&flipped) == [register::NAME]
    };
    assert!((0..8 * empty.len()).filter(accepted).eq(16..24), "other bits than those of the status");
}

/// A byte counts by its value wherever it stands, so a burst, in which each place of a byte is hit once at most, cannot
/// cancel itself out.
#[test]
fn no_burst_of_up_to_eight_bits_is_accepted() {
    for register in POLLED {
        let answer = answer_to(register);
        for first in 0..8 * answer.len() {
            // All patterns of eight bits from the first wrong one on, in the order of the wire: lowest bit first.
            for pattern in (1..256_usize).step_by(2) {
                let mut wrong = answer.clone();
                let hit = (0..8).filter(|place| pattern & 1 << place != 0).map(|place| first + place);
                hit.filter(|bit| *bit < 8 * answer.len()).for_each(|bit| flip(&mut wrong, bit));
                assert!(!answered(&wrong).contains(&register), "{pattern:b} from bit {first} on");
            }
        }
    }
}

/// A sum cannot see what one byte gains and another loses: the measured share is in docs/reliability.md.
#[test]
fn two_flipped_bits_pass_when_they_cancel_out() {
    let captures = captures();
    let (mut passed, mut all) = (0, 0);
    for (_, mut random) in cases(100_000) {
        let capture = &captures[random.within(0..=captures.len() - 1)];
        // What the checksum covers, and the checksum.
        let covered = 16..=8 * (capture.len() - 1) - 1;
        let (one, other) = (random.within(covered.clone()), random.within(covered));
        if one == other {
            continue;
        }
        let mut flipped = capture.clone();
        flip(&mut flipped, one);
        flip(&mut flipped, other);
        all += 1;
        if answered(&flipped).contains(&capture[1]) {
            passed += 1;
            assert_eq!(one % 8, other % 8);
            assert_ne!(one / 8, other / 8);
        }
    }
    println!("{passed} of {all} pairs pass: {:.2} %", 100.0 * f64::from(passed) / f64::from(all));
    assert!(passed * 100 < all * 6);
}

// Any bytes

#[test]
fn what_fuzzing_asks_holds_of_captured_and_of_random_bytes() {
    for capture in captures() {
        for end in 0..=capture.len() {
            holds::frames(&capture[..end]);
            let data = capture[..end].get(4..).unwrap_or_default();
            holds::basic_info(data);
            holds::cell_voltages(data);
            holds::name(data);
            holds::counters(data);
        }
    }
    for (_, mut random) in cases(500) {
        let register = random.one_of(&POLLED);
        holds::frames(
            &[vec![random.byte()], noise(&mut random, register, &[]), random.bytes(0..=600)].concat(),
        );
        let mut data = random.bytes(0..=280);
        holds::name(&data);
        if let Some(count) = data.get_mut(22) {
            *count %= 120;
        }
        holds::basic_info(&data);
        let length = random.within(0..=80);
        holds::cell_voltages(&random.bytes(length..=length));
        holds::counters(&random.bytes(20..=26));
    }
}

#[test]
fn an_answer_may_have_data_of_any_length() {
    for (case, mut random) in cases(100) {
        let data = match case {
            0 => vec![0xFF; 1 << 20],
            1 => vec![0xDD; 1 << 16],
            _ => random.bytes(0..=1000),
        };
        let mut encoded = Vec::new();
        let answer = Answer { register: 0x03, status: Status(random.byte()), data: &data };
        answer.encode(&mut encoded);
        // What does not fit is cut.
        let answer = Answer { data: &data[..data.len().min(255)], ..answer };
        assert_eq!(parse(&encoded), Parsed::Frame(Frame::Answer(answer), encoded.len()));
        holds::frames(&data[..data.len().min(1 << 16)]);
    }
}

// Round trips

#[test]
fn messages_survive_the_round_trip() {
    for (case, mut random) in cases(1000) {
        let info = BasicInfo {
            voltage: random.short(),
            current: random.word() as i16,
            remaining_capacity: random.short(),
            nominal_capacity: random.short(),
            cycles: random.short(),
            production_date: random.short(),
            balancing: random.word() as u32,
            protections: random.short(),
            software_version: random.byte(),
            state_of_charge: random.byte(),
            mosfets: random.byte(),
            cell_count: random.byte(),
            temperatures: (0..random.within(0..=255)).map(|_| random.short()).collect(),
            tail: (random.byte() < 128).then(|| Tail {
                humidity: random.byte(),
                alarms: random.short(),
                full_charge_capacity: random.short(),
                remaining_capacity: random.short(),
                balance_current: random.short(),
            }),
        };
        assert_eq!(BasicInfo::decode(&info.encode()), Ok(info), "case {case}");
        let cells =
            CellVoltages((0..random.within(1..=CellVoltages::MOST)).map(|_| random.short()).collect());
        assert_eq!(CellVoltages::decode(&cells.encode()), Ok(cells), "case {case}");
        let counters = ErrorCounters {
            trips: std::array::from_fn(|_| random.short()),
            system_restarts: (random.byte() < 128).then(|| random.short()),
        };
        assert_eq!(ErrorCounters::decode(&counters.encode()), Ok(counters), "case {case}");
    }
}
