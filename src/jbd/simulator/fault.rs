//! Faults of boards and lines, struck into the answers of a virtual board on purpose, and repeatably.
//!
//! A fault is written `KIND[=N][:TIME][@FROM-TO[/PERIOD]]`: it strikes every Nth answer, counted while it is active,
//! which is always or from FROM to TO since the start (TO may be left out), again in every PERIOD. TIME is the
//! silence that a board falls asleep in (`sleepy`), the delay (`late`) or the longest pause (`split`).
//!
//! What the asker may rightly believe: whatever strikes, a right frame on the line says what the board held when it
//! took up the request that this frame answers, or is a refusal. Nothing is forged, for a checksum of 16 bits is
//! all that an asker has. Two things a frame does not prove. It does not carry the number of its request: a `stale` or
//! `late` one answers an older request, of the same register or another. And its checksum does not cover its
//! register: a `corrupt` answer to one may be a right answer to another that differs in one bit, as 04 and 05 do.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::super::frame::{Answer, Status};
use super::random::Random;

/// What goes wrong, in the order in which it is done to one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The board is deaf and silent.
    Mute,
    /// The board loses the request that wakes it, after a silence; with `=N` every Nth request too.
    Sleepy,
    /// The answer is lost.
    Drop,
    /// The answer is a refusal, whose checksum is 0000 and right in turn.
    Status,
    /// One bit of the answer is flipped.
    Corrupt,
    /// The answer breaks off.
    Truncate,
    /// The answer is sent twice.
    Duplicate,
    /// The answer to the previous request that was answered comes before.
    Stale,
    /// Up to eight random bytes, some of them DD, come before, inside or behind.
    Garbage,
    /// All of it comes later.
    Late,
    /// It comes in up to five pieces with pauses between.
    Split,
    /// The request comes back at once, before all else: an adapter that hears itself.
    Echo,
}

/// By kind: its name, every how many it strikes if nothing else is said, and its TIME if it has one.
const KINDS: [(FaultKind, &str, Option<u64>, Option<Duration>); 12] = [
    (FaultKind::Mute, "mute", Some(1), None),
    (FaultKind::Sleepy, "sleepy", None, Some(Duration::from_secs(30))),
    (FaultKind::Drop, "drop", Some(7), None),
    (FaultKind::Status, "status", Some(7), None),
    (FaultKind::Corrupt, "corrupt", Some(7), None),
    (FaultKind::Truncate, "truncate", Some(7), None),
    (FaultKind::Duplicate, "duplicate", Some(7), None),
    (FaultKind::Stale, "stale", Some(7), None),
    (FaultKind::Garbage, "garbage", Some(7), None),
    // Later than an asker waits for a first byte, which is 500 ms.
    (FaultKind::Late, "late", Some(7), Some(Duration::from_millis(700))),
    (FaultKind::Split, "split", Some(7), Some(Duration::from_millis(100))),
    (FaultKind::Echo, "echo", Some(7), None),
];

/// The pauses of `split` are this at least.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_TIME: Duration = Duration::from_secs(24 * 3600);

impl FaultKind {
    pub fn all() -> impl Iterator<Item = FaultKind> {
        KINDS.into_iter().map(|(kind, ..)| kind)
    }

    /// As in a specification.
    pub fn name(self) -> &'static str {
        KINDS[self as usize].1
    }
}

/// When a fault is active, by the time since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Schedule {
    from: Duration,
    to: Option<Duration>,
    period: Option<Duration>,
}

impl Schedule {
    fn holds(&self, since: Duration) -> bool {
        let since = match self.period {
            // u64 holds five centuries of nanoseconds.
            Some(period) => Duration::from_nanos((since.as_nanos() % period.as_nanos()) as u64),
            None => since,
        };
        self.from <= since && self.to.is_none_or(|to| since < to)
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Schedule, String> {
        let (window, period) = match text.split_once('/') {
            Some((window, period)) => (window, Some(duration(period)?)),
            None => (text, None),
        };
        let Some((from, to)) = window.split_once('-') else {
            return Err(format!(
                "\"{text}\" is no schedule; write FROM-TO, such as @30s-40s, @30s- or @0s-5s/20s"
            ));
        };
        let from = duration(from)?;
        let to = Some(to).filter(|to| !to.is_empty()).map(duration).transpose()?;
        if to.is_some_and(|to| to <= from) {
            return Err(format!(
                "the schedule \"{window}\" ends before it begins; write the earlier time first"
            ));
        }
        if period.is_some_and(|period| to.is_none_or(|to| to > period)) {
            return Err(format!(
                "the schedule \"{text}\" does not end within its period; write such as @0s-5s/20s"
            ));
        }
        Ok(Schedule { from, to, period })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("\"{text}\" is not a time ({error}); write such as 5s, 500ms or 1m"))
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    kind: FaultKind,
    every: Option<u64>,
    /// Zero where the kind has none.
    time: Duration,
    schedule: Schedule,
    /// How many answers, or requests where the board loses them, it has been active for.
    seen: u64,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let (head, schedule) = match text.split_once('@') {
            Some((head, schedule)) => (head, schedule.parse()?),
            None => (text, Schedule::default()),
        };
        let (head, time) = match head.split_once(':') {
            Some((head, time)) => (head, Some(duration(time)?)),
            None => (head, None),
        };
        let (name, every) = match head.split_once('=') {
            Some((name, every)) => (name, Some(every)),
            None => (head, None),
        };
        let Some((kind, _, usual_every, usual_time)) =
            KINDS.into_iter().find(|(_, known, ..)| *known == name)
        else {
            let names: Vec<_> = FaultKind::all().map(FaultKind::name).collect();
            return Err(format!("\"{name}\" is no fault; there are {}", names.join(", ")));
        };
        let every = match every.map(|every| (every, every.parse())) {
            None => usual_every,
            Some((_, Ok(every @ 1..))) => Some(every),
            Some((every, _)) => {
                return Err(format!("\"{every}\" is not every how many; write 1 or more, such as {name}=7"));
            }
        };
        let least = if kind == FaultKind::Split { SHORTEST_PAUSE } else { Duration::from_millis(1) };
        let time = match (time, usual_time) {
            (Some(_), None) => {
                return Err(format!("{name} has no time; only sleepy, late and split have one"));
            }
            (Some(time), Some(_)) if !(least..=LONGEST_TIME).contains(&time) => {
                let [time, least, most] = [time, least, LONGEST_TIME].map(humantime::format_duration);
                return Err(format!("the time of {name} is {time}; it can be {least} to {most}"));
            }
            (given, usual) => given.or(usual).unwrap_or_default(),
        };
        Ok(Fault { kind, every, time, schedule, seen: 0 })
    }
}

/// The faults of a virtual board. Clones are handles of the same: one serves, another changes what is active.
#[derive(Clone)]
pub struct Faults(Arc<Mutex<State>>);

struct State {
    active: Vec<Fault>,
    began: Instant,
    asked: Instant,
    /// How long nobody had asked, before the request that is under way.
    silence: Duration,
    /// What the board answered last, before any fault.
    previous: Vec<u8>,
    /// By kind: each has its own random numbers, so that they stay the same beside other faults.
    randoms: [Random; KINDS.len()],
    struck: [u64; KINDS.len()],
}

/// What the line makes of an answer.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Whether the request comes back, at once, for it has no way to go.
    pub echo: bool,
    pub pieces: Vec<Piece>,
}

/// What is sent in one go, after a pause.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub pause: Duration,
    pub bytes: Vec<u8>,
}

impl Default for Faults {
    /// None are active.
    fn default() -> Faults {
        Faults::with(Vec::new(), 1)
    }
}

impl Faults {
    /// Schedules count from now on.
    ///
    /// # Errors
    /// The first specification that is wrong, what is wrong with it, and what would be right.
    pub fn new<S: AsRef<str>>(specs: &[S], seed: u64) -> Result<Faults, String> {
        Ok(Faults::with(parse(specs)?, seed))
    }

    fn with(active: Vec<Fault>, seed: u64) -> Faults {
        // Not the numbers of a living pack with the same seed.
        let mut seeds = Random(seed ^ u64::from_be_bytes(*b"bms fail"));
        let now = Instant::now();
        Faults(Arc::new(Mutex::new(State {
            active,
            began: now,
            asked: now,
            silence: Duration::ZERO,
            previous: Vec::new(),
            randoms: KINDS.map(|_| Random(seeds.next())),
            struck: [0; KINDS.len()],
        })))
    }

    /// From the next request on these are active, instead of those before. Start, seed and counts stay.
    ///
    /// # Errors
    /// As [`Faults::new`]; then nothing changes.
    pub fn set<S: AsRef<str>>(&self, specs: &[S]) -> Result<(), String> {
        let active = parse(specs)?;
        self.lock().active = active;
        Ok(())
    }

    /// From the next request on there are none.
    pub fn clear(&self) {
        self.lock().active.clear();
    }

    /// How many answers, or requests where the board loses them, this kind has struck since the start.
    pub fn struck(&self, kind: FaultKind) -> u64 {
        self.lock().struck[kind as usize]
    }

    /// Whether the board does not take up the request that has just come.
    pub(super) fn lose_request(&self) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        state.silence = now - std::mem::replace(&mut state.asked, now);
        state.strikes(FaultKind::Mute).is_some() || state.strikes(FaultKind::Sleepy).is_some()
    }

    /// What the line makes of this answer to a request of this register.
    pub(super) fn plan(&self, register: u8, answer: Vec<u8>) -> Plan {
        let mut state = self.lock();
        let mut bytes = answer;
        // A pack that keeps silent has given nothing that could go wrong.
        if bytes.is_empty() {
            return Plan { echo: false, pieces: vec![Piece { pause: Duration::ZERO, bytes }] };
        }
        let previous = std::mem::replace(&mut state.previous, bytes.clone());
        if state.strikes(FaultKind::Drop).is_some() {
            return Plan::default();
        }
        if state.strikes(FaultKind::Status).is_some() {
            bytes.clear();
            Answer { register, status: Status(0x81), data: &[] }.encode(&mut bytes);
            // The seed says with which it begins.
            let struck = state.struck[FaultKind::Status as usize];
            if (state.random(FaultKind::Status).0 ^ struck) & 1 == 0 {
                bytes[4..6].fill(0);
            }
        }
        if state.strikes(FaultKind::Corrupt).is_some() {
            let bit = state.random(FaultKind::Corrupt).below(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if state.strikes_if(bytes.len() > 1, FaultKind::Truncate).is_some() {
            let place = 1 + state.random(FaultKind::Truncate).below(bytes.len() - 1);
            bytes.truncate(place);
        }
        if state.strikes(FaultKind::Duplicate).is_some() {
            bytes.extend_from_within(..);
        }
        if state.strikes_if(!previous.is_empty(), FaultKind::Stale).is_some() {
            bytes.splice(..0, previous);
        }
        if state.strikes(FaultKind::Garbage).is_some() {
            let random = state.random(FaultKind::Garbage);
            let garbage: Vec<u8> = (0..=random.below(8)).map(|_| random.byte()).collect();
            let place = [0, random.below(bytes.len()), bytes.len()][random.below(3)];
            bytes.splice(place..place, garbage);
        }
        let pause = state.strikes(FaultKind::Late).unwrap_or_default();
        let mut pieces = vec![Piece { pause, bytes }];
        if let Some(longest) = state.strikes_if(pieces[0].bytes.len() > 1, FaultKind::Split) {
            split(&mut pieces, longest, state.random(FaultKind::Split));
        }
        Plan { echo: state.strikes(FaultKind::Echo).is_some(), pieces }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn strikes(&mut self, kind: FaultKind) -> Option<Duration> {
        self.strikes_if(true, kind)
    }

    /// The time of the fault of this kind that strikes now, if one does and can: two of a kind strike once.
    fn strikes_if(&mut self, possible: bool, kind: FaultKind) -> Option<Duration> {
        let since = self.asked - self.began;
        let mut time = None;
        for fault in self.active.iter_mut().filter(|fault| fault.kind == kind) {
            if !fault.schedule.holds(since) {
                continue;
            }
            fault.seen += 1;
            let asleep = kind == FaultKind::Sleepy && self.silence >= fault.time;
            let its_turn = fault.every.is_some_and(|every| fault.seen % every == 0);
            if possible && (asleep || its_turn) {
                time = Some(fault.time);
            }
        }
        if time.is_some() {
            debug!("fault: {}", kind.name());
            self.struck[kind as usize] += 1;
        }
        time
    }

    fn random(&mut self, kind: FaultKind) -> &mut Random {
        &mut self.randoms[kind as usize]
    }
}

fn parse<S: AsRef<str>>(specs: &[S]) -> Result<Vec<Fault>, String> {
    let fault = |spec: &S| {
        let spec = spec.as_ref();
        spec.parse().map_err(|error| format!("{spec}: {error}"))
    };
    specs.iter().map(fault).collect()
}

/// Cuts the last piece into two to five.
fn split(pieces: &mut Vec<Piece>, longest: Duration, random: &mut Random) {
    let Some(Piece { pause, mut bytes }) = pieces.pop() else {
        return;
    };
    let cuts: BTreeSet<usize> = (0..=random.below(4)).map(|_| 1 + random.below(bytes.len() - 1)).collect();
    for &cut in cuts.iter().rev() {
        let range = (longest - SHORTEST_PAUSE).as_millis() as usize;
        let pause = SHORTEST_PAUSE + Duration::from_millis(random.below(range + 1) as u64);
        pieces.insert(0, Piece { pause, bytes: bytes.split_off(cut) });
    }
    pieces.insert(0, Piece { pause, bytes });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{sleep, timeout};

    use super::super::super::frame::{Frame, Request, frames};
    use super::super::{Pace, Pack, Reply, serve_with};
    use super::*;
    use crate::board::Direct;
    use crate::hex::Hex;
    use crate::link::Timing;

    /// Its data is the number of the request that it has taken up.
    #[derive(Default)]
    struct Counting(u8);

    impl Pack for Counting {
        fn answer(&mut self, _: u8) -> Reply {
            self.0 += 1;
            Reply::Data(vec![self.0; 4])
        }
    }

    fn request(register: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        Request::read(register).encode(&mut bytes);
        bytes
    }

    fn answer(register: u8, number: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        Answer { register, status: Status::OK, data: &[number; 4] }.encode(&mut bytes);
        bytes
    }

    /// What came in one lump, and how many ms after the request.
    type Lump = (u64, Vec<u8>);

    /// For each of the requests what comes, asked again when nothing has come for five seconds.
    async fn heard(specs: &[&str], seed: u64, registers: &[u8]) -> Vec<Vec<Lump>> {
        let faults = Faults::new(specs, seed).unwrap();
        let (mut host, line) = duplex(4096);
        let asking = async {
            let mut heard = Vec::new();
            for &register in registers {
                host.write_all(&request(register)).await.unwrap();
                let asked = Instant::now();
                let mut lumps: Vec<Lump> = Vec::new();
                let mut chunk = [0; 512];
                while let Ok(count) = timeout(Duration::from_secs(5), host.read(&mut chunk)).await {
                    let (after, bytes) = (asked.elapsed().as_millis() as u64, &chunk[..count.unwrap()]);
                    match lumps.last_mut().filter(|(at, _)| *at == after) {
                        Some((_, lump)) => lump.extend(bytes),
                        None => lumps.push((after, bytes.to_vec())),
                    }
                }
                heard.push(lumps);
            }
            drop(host);
            heard
        };
        let mut pack = Counting::default();
        let (heard, served) = tokio::join!(asking, serve_with(line, &mut pack, Pace::Unpaced, &faults));
        served.unwrap();
        heard
    }

    fn at_once(bytes: &[u8]) -> Vec<Lump> {
        vec![(0, bytes.to_vec())]
    }

    /// Every third of six, and the others as they should be.
    async fn thirds(spec: &str) -> [Vec<Lump>; 2] {
        let mut heard = heard(&[spec], 1, &[3, 4, 3, 4, 3, 4]).await;
        let last = heard.remove(5);
        let third = heard.remove(2);
        for (lumps, (register, number)) in heard.iter().zip([(3, 1), (4, 2), (4, 4), (3, 5)]) {
            // What the board has not taken up, it has not counted.
            let lost = u8::from(number > 3 && (spec.starts_with("mute") || spec.starts_with("sleepy")));
            assert_eq!(*lumps, at_once(&answer(register, number - lost)), "{spec}");
        }
        [third, last]
    }

    #[tokio::test(start_paused = true)]
    async fn without_faults_the_answers_come_as_they_are() {
        let heard = heard(&[], 1, &[3, 4, 0x42]).await;
        assert_eq!(heard, [(3, 1), (4, 2), (0x42, 3)].map(|(r, n)| at_once(&answer(r, n))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_is_silence() {
        for spec in ["mute=3", "sleepy=3", "drop=3"] {
            assert_eq!(thirds(spec).await, [vec![], vec![]], "{spec}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_is_a_refusal_with_either_checksum_in_turn() {
        let [third, last] = thirds("status=3").await;
        let bare = |register| at_once(&[0xDD, register, 0x81, 0, 0, 0, 0x77]);
        let right = |register| at_once(&[0xDD, register, 0x81, 0, 0xFF, 0x7F, 0x77]);
        assert!([[bare(3), right(4)], [right(3), bare(4)]].contains(&[third, last]));
    }

    #[tokio::test(start_paused = true)]
    async fn corrupt_flips_one_bit() {
        for (lumps, right) in thirds("corrupt=3").await.iter().zip([answer(3, 3), answer(4, 6)]) {
            let [(0, bytes)] = &lumps[..] else { panic!("{lumps:?}") };
            assert_eq!(bytes.len(), right.len());
            let flipped: u32 = bytes.iter().zip(&right).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(flipped, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn truncate_leaves_a_beginning() {
        for (lumps, right) in thirds("truncate=3").await.iter().zip([answer(3, 3), answer(4, 6)]) {
            let [(0, bytes)] = &lumps[..] else { panic!("{lumps:?}") };
            assert!(right.starts_with(bytes) && bytes.len() < right.len(), "{}", Hex(bytes));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn duplicate_stale_and_echo_send_more_than_the_answer() {
        let wanted = [answer(3, 3), answer(4, 6)].map(|right| at_once(&right.repeat(2)));
        assert_eq!(thirds("duplicate=3").await, wanted);
        let wanted = [[answer(4, 2), answer(3, 3)], [answer(3, 5), answer(4, 6)]];
        assert_eq!(thirds("stale=3").await, wanted.map(|both| at_once(&both.concat())));
        let wanted = [[request(3), answer(3, 3)], [request(4), answer(4, 6)]];
        assert_eq!(thirds("echo=3").await, wanted.map(|both| at_once(&both.concat())));
        // There is nothing stale before the first answer.
        assert_eq!(heard(&["stale=1"], 1, &[3]).await, [at_once(&answer(3, 1))]);
    }

    #[tokio::test(start_paused = true)]
    async fn garbage_comes_before_inside_or_behind_and_has_start_bytes_in_it() {
        let (mut before, mut inside, mut behind, mut starts) = (0, 0, 0, 0);
        for (lumps, number) in heard(&["garbage=1"], 1, &[3; 60]).await.iter().zip(1..) {
            let [(0, bytes)] = &lumps[..] else { panic!("{lumps:?}") };
            let right = answer(3, number);
            let more = bytes.len() - right.len();
            assert!((1..=8).contains(&more), "{}", Hex(bytes));
            let cut = |place: usize| [&bytes[..place], &bytes[place + more..]].concat() == right;
            let place = (0..=right.len()).find(|&place| cut(place)).unwrap();
            starts += bytes[place..place + more].iter().filter(|&&byte| byte == 0xDD).count();
            match place {
                0 => before += 1,
                _ if place == right.len() => behind += 1,
                _ => inside += 1,
            }
        }
        assert!(before.min(inside).min(behind) > 10 && starts > 30, "{before} {inside} {behind} {starts}");
    }

    #[tokio::test(start_paused = true)]
    async fn late_comes_after_its_time_to_the_millisecond() {
        let wanted = |after| [(3, 3), (4, 6)].map(|(r, n)| vec![(after, answer(r, n))]);
        assert_eq!(thirds("late=3").await, wanted(700));
        assert_eq!(thirds("late=3:2s 500ms").await, wanted(2500));

        // The board is not deaf meanwhile: each answer is as late as the others, and none overtakes another.
        let faults = Faults::new(&["late=1"], 1).unwrap();
        let (mut host, line) = duplex(4096);
        let asking = async {
            let began = Instant::now();
            let mut heard = Vec::new();
            for number in 1..=4 {
                if number == 4 {
                    faults.clear();
                }
                host.write_all(&request(3)).await.unwrap();
                sleep(Duration::from_millis(100)).await;
            }
            for number in 1..=4 {
                let mut bytes = answer(3, 0);
                host.read_exact(&mut bytes).await.unwrap();
                assert_eq!(bytes, answer(3, number));
                heard.push(began.elapsed().as_millis());
            }
            drop(host);
            heard
        };
        let mut pack = Counting::default();
        let (heard, _) = tokio::join!(asking, serve_with(line, &mut pack, Pace::Unpaced, &faults));
        assert_eq!(heard, [700, 800, 900, 900]);
    }

    #[tokio::test(start_paused = true)]
    async fn split_comes_in_pieces_with_pauses_between() {
        let mut most = 0;
        for (spec, longest) in [("split=1", 100), ("split=1:20ms", 20), ("split=1:5ms", 5)] {
            for (lumps, number) in heard(&[spec], 1, &[4; 40]).await.iter().zip(1..) {
                assert!((2..=5).contains(&lumps.len()), "{lumps:?}");
                assert_eq!(lumps[0].0, 0);
                for two in lumps.windows(2) {
                    assert!((5..=longest).contains(&(two[1].0 - two[0].0)), "{lumps:?}");
                    most = most.max(two[1].0 - two[0].0);
                }
                let bytes: Vec<u8> = lumps.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
                assert_eq!(bytes, answer(4, number));
            }
        }
        assert!(most > 90, "{most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_board_falls_asleep_and_wakes() {
        let faults = Faults::new(&["sleepy"], 1).unwrap();
        let lost = async |after| {
            sleep(Duration::from_secs(after)).await;
            faults.lose_request()
        };
        for (after, wanted) in [(29, false), (29, false), (30, true), (0, false), (0, false), (31, true)] {
            assert_eq!(lost(after).await, wanted, "{after}");
        }
        faults.set(&["sleepy=2:10s"]).unwrap();
        for (after, wanted) in [(9, false), (1, true), (1, false), (1, true), (10, true), (1, true)] {
            assert_eq!(lost(after).await, wanted, "{after}");
        }
        assert_eq!(faults.struck(FaultKind::Sleepy), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_combine_in_their_order() {
        // The refusal is doubled, behind the answer before it, and all of it is late but for the echo.
        let specs = ["echo=2", "late=2", "stale=2", "duplicate=2", "status=2"];
        let second = heard(&specs, 1, &[3, 4]).await.remove(1);
        let [(0, echo), (700, rest)] = &second[..] else { panic!("{second:?}") };
        assert_eq!(*echo, request(4));
        let rest = rest.strip_prefix(&answer(3, 1)[..]).unwrap();
        let statuses = frames(rest).map(|frame| match frame {
            Frame::Answer(answer) => (answer.register, answer.status),
            Frame::Request(_) => panic!("an echo"),
        });
        assert_eq!(statuses.collect::<Vec<_>>(), [(4, Status(0x81)); 2]);
        // What is lost, nothing else strikes: so the same N does not mean that one hides the other.
        let faults = Faults::new(&["corrupt=2", "drop=2", "mute=2"], 1).unwrap();
        let came = |_| !faults.lose_request() && !faults.plan(3, answer(3, 1)).pieces.is_empty();
        assert_eq!((0..8).map(came).collect::<Vec<_>>(), [1, 0, 0, 0, 1, 0, 0, 0].map(|came| came == 1));
        let kinds = [FaultKind::Mute, FaultKind::Drop, FaultKind::Corrupt];
        assert_eq!(kinds.map(|kind| faults.struck(kind)), [4, 2, 1]);
        // Two of a kind do not undo each other.
        let faults = Faults::new(&["corrupt=1", "corrupt=1"], 1).unwrap();
        assert_ne!(faults.plan(3, answer(3, 1)).pieces[0].bytes, answer(3, 1));
        assert_eq!(faults.struck(FaultKind::Corrupt), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_does_the_same_again() {
        let kinds = ["garbage=2", "corrupt=3", "split=2", "truncate=5", "status=7"];
        let once = heard(&kinds, 7, &[3; 30]).await;
        assert_eq!(once, heard(&kinds, 7, &[3; 30]).await);
        assert_ne!(once, heard(&kinds, 8, &[3; 30]).await);
        // A bit is flipped at the same place, whatever else there is.
        let corrupt = heard(&["corrupt=3"], 7, &[3; 30]).await;
        assert_ne!(corrupt, heard(&["corrupt=3"], 8, &[3; 30]).await);
        let mut beside = heard(&["corrupt=3", "echo=1"], 7, &[3; 30]).await;
        for (lumps, alone) in beside.iter_mut().zip(&corrupt) {
            lumps[0].1.drain(..7);
            assert_eq!(lumps, alone);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_schedule_counts_from_the_start_and_repeats() {
        for (schedule, active) in [
            ("2s-4s", &[2, 3][..]),
            ("0s-1s", &[0]),
            ("7s-", &[7, 8, 9, 10, 11]),
            ("0s-2s/5s", &[0, 1, 5, 6, 10, 11]),
            ("3s-5s/5s", &[3, 4, 8, 9]),
            ("1500ms-2s 500ms", &[2]),
        ] {
            let schedule: Schedule = schedule.parse().unwrap();
            let holds: Vec<u64> = (0..12).filter(|&at| schedule.holds(Duration::from_secs(at))).collect();
            assert_eq!(holds, active, "{schedule:?}");
        }
        // Only what comes while it is active is counted.
        let faults = Faults::new(&["mute@2s-4s", "drop=2@5s-"], 1).unwrap();
        let mut came = Vec::new();
        for _ in 0..10 {
            came.push(!faults.lose_request() && !faults.plan(3, answer(3, 1)).pieces.is_empty());
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(came, [1, 1, 0, 0, 1, 1, 0, 1, 0, 1].map(|came| came == 1));
    }

    #[test]
    fn every_kind_stands_at_its_place_and_has_its_default() {
        for (place, (kind, name, every, time)) in KINDS.into_iter().enumerate() {
            assert_eq!((kind as usize, kind.name()), (place, name));
            let fault: Fault = name.parse().unwrap();
            assert_eq!((fault.kind, fault.every), (kind, every));
            assert_eq!((fault.time, fault.schedule), (time.unwrap_or_default(), Schedule::default()));
            assert_eq!(format!("{name}=5").parse::<Fault>().unwrap().every, Some(5));
        }
        let all: Fault = "late=3:2s@30s-1m/2m".parse().unwrap();
        let schedule = Schedule {
            from: Duration::from_secs(30),
            to: Some(Duration::from_secs(60)),
            period: Some(Duration::from_secs(120)),
        };
        let time = Duration::from_secs(2);
        assert_eq!(all, Fault { kind: FaultKind::Late, every: Some(3), time, schedule, seen: 0 });
    }

    #[test]
    fn a_wrong_specification_says_what_would_be_right() {
        for (spec, says) in [
            ("", "\"\" is no fault; there are mute, sleepy, drop, status"),
            ("corupt=7", "corupt=7: \"corupt\" is no fault; there are mute"),
            ("corrupt=0", "\"0\" is not every how many; write 1 or more, such as corrupt=7"),
            ("corrupt=", "\"\" is not every how many"),
            ("drop=-1", "\"-1\" is not every how many"),
            ("drop:5s", "drop has no time; only sleepy, late and split have one"),
            ("late:fast", "\"fast\" is not a time ("),
            ("late:700", "write such as 5s, 500ms or 1m"),
            ("late:0s", "the time of late is 0s; it can be 1ms to 1day"),
            ("split:1ms", "the time of split is 1ms; it can be 5ms to 1day"),
            ("late:9y", "it can be 1ms to 1day"),
            ("mute@30s", "\"30s\" is no schedule; write FROM-TO, such as @30s-40s"),
            ("mute@-40s", "\"\" is not a time"),
            ("mute@40s-30s", "ends before it begins; write the earlier time first"),
            ("mute@30s-30s", "ends before it begins"),
            ("mute@0s-30s/20s", "does not end within its period; write such as @0s-5s/20s"),
            ("mute@30s-/60s", "does not end within its period"),
            ("mute@0s-5s/", "\"\" is not a time"),
            ("late@0s-5s:2s", "\"5s:2s\" is not a time"),
        ] {
            let error = Faults::new(&["drop", spec], 1).map(|_| ()).unwrap_err();
            assert!(error.contains(says), "{spec:?}: {error}");
            // What is wrong changes nothing.
            let faults = Faults::new(&["mute"], 1).unwrap();
            faults.set(&[spec]).unwrap_err();
            assert!(faults.lose_request());
            faults.clear();
            assert!(!faults.lose_request());
        }
    }

    /// A pack whose voltages are the number of the poll that is under way.
    struct Held(Arc<AtomicU16>);

    impl Pack for Held {
        fn answer(&mut self, register: u8) -> Reply {
            let poll = self.0.load(Ordering::Relaxed);
            match register {
                0x03 => {
                    let mut info = vec![0; 23];
                    info[..2].copy_from_slice(&(2000 + poll).to_be_bytes());
                    info[21] = 8;
                    Reply::Data(info)
                }
                0x04 => Reply::Data((3000 + poll).to_be_bytes().repeat(8)),
                _ => Reply::Refused(Status::NO_SUCH_REGISTER),
            }
        }
    }

    /// What polls over a line with faults bring.
    #[derive(Debug, Default)]
    struct Polled {
        complete: u32,
        failed: u32,
        /// By how many polls the oldest value was older than the poll that brought it.
        oldest: u16,
        /// From which poll without faults on all was well.
        recovered: u16,
    }

    /// 300 polls with faults, each this long after the one before, then 10 without.
    async fn polled(specs: &[&str], seed: u64, interval: Duration) -> (Polled, Faults) {
        let faults = Faults::new(specs, seed).unwrap();
        let held = Arc::new(AtomicU16::new(0));
        let (host, line) = duplex(4096);
        let polling = async {
            let mut board = Direct::new(host, Timing::SERIAL);
            let mut polled = Polled { recovered: 1, ..Polled::default() };
            for poll in 1..=310 {
                if poll == 301 {
                    faults.clear();
                }
                held.store(poll, Ordering::Relaxed);
                let reading = board.poll().await;
                let mut values = Vec::new();
                match &reading {
                    Ok(reading) => {
                        let number = |value: String| value.replace('.', "").parse::<u16>().unwrap();
                        values.extend(
                            reading.totals.iter().map(|totals| number(totals.voltage.to_string()) - 2000),
                        );
                        values.extend(reading.cells.iter().map(|cell| number(cell.to_string()) - 3000));
                    }
                    Err(error) if error.broke_the_link() => panic!("{specs:?}: {error}"),
                    Err(_) => {}
                }
                if poll <= 300 {
                    // Below zero: nobody has a value of the future.
                    let oldest = values.iter().map(|value| poll.checked_sub(*value).unwrap()).max();
                    polled.oldest = polled.oldest.max(oldest.unwrap_or_default());
                    polled.complete += u32::from(values.len() == 9);
                    polled.failed += u32::from(reading.is_err());
                } else if values != [poll; 9] {
                    polled.recovered = poll - 299;
                }
                sleep(interval).await;
            }
            drop(board);
            polled
        };
        let mut pack = Held(Arc::clone(&held));
        let (polled, served) = tokio::join!(polling, serve_with(line, &mut pack, Pace::Unpaced, &faults));
        // What is still late finds nobody.
        drop(served);
        (polled, faults)
    }

    #[tokio::test(start_paused = true)]
    async fn no_fault_alone_makes_a_reading_that_was_not_so() {
        for kind in FaultKind::all() {
            for (seed, interval) in [(1, 0), (2, 1), (3, 5)] {
                let spec = format!("{}=3", kind.name());
                let (polled, faults) = polled(&[&spec], seed, Duration::from_secs(interval)).await;
                assert_eq!((polled.failed, polled.oldest), (0, 0), "{spec}");
                assert!(polled.recovered <= 2, "{spec}: {polled:?}");
                // The counters add up: each third of the requests, and the asker asked once more for each that was
                // lost or wrong, but was content with some garbage.
                let (complete, struck) = match kind {
                    FaultKind::Status => (100, 200..=200),
                    FaultKind::Duplicate | FaultKind::Split | FaultKind::Echo => (300, 200..=200),
                    FaultKind::Stale => (300, 199..=200),
                    FaultKind::Garbage => (300, 200..=299),
                    _ => (300, 299..=299),
                };
                assert_eq!(polled.complete, complete, "{spec}");
                assert!(struck.contains(&faults.struck(kind)), "{spec}: {}", faults.struck(kind));
            }
        }
        // As long as the asker has not given up the whole poll, lateness does no harm either.
        for spec in ["late=1", "late=1:1s", "late=3:1400ms"] {
            let (polled, _) = polled(&[spec], 1, Duration::ZERO).await;
            assert_eq!((polled.complete, polled.oldest), (300, 0), "{spec}");
            assert!(polled.recovered <= 2, "{spec}: {polled:?}");
        }
    }

    /// The next poll begins with another question, whose answer comes behind all that is late.
    #[tokio::test(start_paused = true)]
    async fn after_a_poll_in_vain_its_answer_does_not_pass_for_the_next_ones() {
        for (specs, interval) in [
            (&["late=3:2s"][..], 0),
            (&["late=3:3s"], 0),
            (&["late=3:2s", "echo=1"], 0),
            (&["late=1", "echo=1"], 0),
            (&["late=1:5s"], 0),
            (&["stale=1", "drop=1@0s-4s/10s"], 5),
        ] {
            for seed in 1..4 {
                let (polled, _) = polled(specs, seed, Duration::from_secs(interval)).await;
                assert_eq!(polled.oldest, 0, "{specs:?}: {polled:?}");
                assert!(polled.recovered <= 2, "{specs:?}: {polled:?}");
            }
        }
    }
}
