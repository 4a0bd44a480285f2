//! A board that answers: the protocol's two files read backwards, behind a pseudo-terminal, a socket or any stream.
//!
//! What stands behind the line is a [`Pack`]: frames captured from real boards, replayed byte by byte, or a
//! [`LivingPack`] whose cells charge and discharge. It takes no writes yet. [`Faults`] spoil what it answers.

mod fault;
mod living;
mod random;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_yaml::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_serial::{SerialPort, SerialStream};

use self::fault::Piece;
pub use self::fault::{FaultKind, Faults};
pub use self::living::{LivingPack, Settings};
use super::frame::{Answer, Frame, LONGEST, Parsed, Request, Status, parse};

/// What answers behind the line.
pub trait Pack: Send {
    /// The answer to a read of `register` at this moment.
    fn answer(&mut self, register: u8) -> Reply;
}

/// What a board does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It answers with this data, of up to 255 bytes.
    Data(Vec<u8>),
    Refused(Status),
    /// It sends just these bytes, be they a frame or not.
    Verbatim(Vec<u8>),
    Silent,
}

impl Reply {
    fn into_bytes(self, register: u8) -> Vec<u8> {
        let (status, data) = match self {
            Reply::Verbatim(bytes) => return bytes,
            Reply::Silent => return Vec::new(),
            Reply::Refused(status) => (status, Vec::new()),
            Reply::Data(data) => (Status::OK, data),
        };
        let mut bytes = Vec::new();
        Answer { register, status, data: &data }.encode(&mut bytes);
        bytes
    }
}

/// The clock runs from one question to the next: a pack that nobody asks costs nothing.
impl Pack for LivingPack {
    fn answer(&mut self, register: u8) -> Reply {
        let now = Instant::now();
        if let Some(before) = self.asked.replace(now) {
            self.advance(now - before);
        }
        self.data(register).map_or(Reply::Refused(Status::NO_SUCH_REGISTER), Reply::Data)
    }
}

/// Answers of real boards, sent verbatim: each request of a register gets its next one, and after the last the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapturedPack {
    /// For each register its answers, and how many have been sent.
    answers: BTreeMap<u8, (Vec<Vec<u8>>, usize)>,
}

impl CapturedPack {
    /// Puts an answer behind those that the register has. No bytes are a board that keeps silent this time.
    pub fn add(&mut self, register: u8, answer: Vec<u8>) {
        self.answers.entry(register).or_default().0.push(answer);
    }
}

impl Pack for CapturedPack {
    fn answer(&mut self, register: u8) -> Reply {
        let Some((answers, sent)) = self.answers.get_mut(&register) else {
            return Reply::Refused(Status::NO_SUCH_REGISTER);
        };
        let next = answers.get(*sent % answers.len().max(1));
        *sent += 1;
        next.map_or(Reply::Silent, |answer| Reply::Verbatim(answer.clone()))
    }
}

/// How fast bytes come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Every byte takes ten bit times (8N1), in the request and in the answer, as on copper.
    Wire {
        baud: u32,
    },
    Unpaced,
}

impl Pace {
    fn time(self, bytes: usize) -> Duration {
        match self {
            Pace::Unpaced => Duration::ZERO,
            Pace::Wire { baud } => Duration::from_secs(10 * bytes as u64) / baud.max(1),
        }
    }
}

/// Status of a write: refused, as without factory mode.
const NO_WRITES: Status = Status(0x81);
/// A frame that pauses this long inside never ends: its start was false.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers what comes on the stream until it ends. A request that comes while an answer is being sent waits.
///
/// # Errors
/// When the stream breaks; its end is none.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    pack: &mut dyn Pack,
    pace: Pace,
) -> io::Result<()> {
    serve_with(stream, pack, pace, &Faults::default()).await
}

/// As [`serve`], with faults, which can be changed meanwhile.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    pack: &mut dyn Pack,
    pace: Pace,
    faults: &Faults,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(2 * LONGEST);
    // When the last byte in the buffer would have come on copper: a pseudo-terminal and a socket hand a request
    // over all at once.
    let mut heard = Instant::now();
    // What faults hold back, in its order, and when each is to start. The board is not deaf meanwhile.
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    loop {
        let read = async {
            if buffer.is_empty() {
                return stream.read_buf(&mut buffer).await.map(Some);
            }
            timeout(PAUSE, stream.read_buf(&mut buffer)).await.ok().transpose()
        };
        let next = waiting.front().map(|(start, _)| *start);
        let count = select! {
            biased;
            () = sleep_until(next.unwrap_or(heard)), if next.is_some() => {
                if let Some((start, bytes)) = waiting.pop_front() {
                    send(&mut stream, &bytes, pace, start).await?;
                }
                continue;
            }
            count = read => count?,
        };
        match count {
            Some(0) => return Ok(()),
            Some(count) => heard = heard.max(Instant::now()) + pace.time(count),
            None => drop(buffer.drain(..1)),
        }
        loop {
            let (length, request) = match parse(&buffer) {
                Parsed::Incomplete => break,
                Parsed::Frame(Frame::Request(Request { register, write, .. }), length) => {
                    (length, Some((register, write)))
                }
                Parsed::Frame(Frame::Answer(_), length) | Parsed::Noise(length, _) => (length, None),
            };
            let frame: Vec<u8> = buffer.drain(..length).collect();
            if let Some((register, write)) = request {
                if faults.lose_request() {
                    continue;
                }
                let reply = if write { Reply::Refused(NO_WRITES) } else { pack.answer(register) };
                let asked = heard - pace.time(buffer.len());
                let plan = faults.plan(register, reply.into_bytes(register));
                if plan.echo {
                    send(&mut stream, &frame, pace, asked).await?;
                }
                let mut start = asked;
                for Piece { pause, bytes } in plan.pieces {
                    let free = waiting.back().map(|(start, bytes)| *start + pace.time(bytes.len()));
                    start = free.map_or(start + pause, |free| free.max(start + pause));
                    let end = start + pace.time(bytes.len());
                    if waiting.is_empty() && pause.is_zero() {
                        send(&mut stream, &bytes, pace, start).await?;
                    } else {
                        waiting.push_back((start, bytes));
                    }
                    start = end;
                }
            }
        }
    }
}

/// Sends each byte when it would have come over a wire that is free from `start` on, never earlier.
async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    bytes: &[u8],
    pace: Pace,
    start: Instant,
) -> io::Result<()> {
    /// A timer of tokio ends on the next whole millisecond, and the kernel's wait may add another. So timers are only
    /// trusted up to here before the last byte, and the rest, which decides when the reader has its answer, is waited
    /// for turn by turn.
    const COARSE: Duration = Duration::from_millis(2);

    let start = start.max(Instant::now());
    let end = start + pace.time(bytes.len());
    let mut sent = 0;
    loop {
        let now = Instant::now();
        if now + COARSE >= end {
            break;
        }
        let due = (sent..bytes.len()).take_while(|&place| start + pace.time(place + 1) <= now).count();
        stream.write_all(&bytes[sent..sent + due]).await?;
        sent += due;
        sleep_until((start + pace.time(sent + 1)).min(end - COARSE)).await;
    }
    // By the machine's own clock: tokio's may be paused, and a paused clock stands still while anyone takes turns.
    let rest = end - Instant::now();
    let turns = std::time::Instant::now();
    while turns.elapsed() < rest {
        tokio::task::yield_now().await;
    }
    stream.write_all(&bytes[sent..]).await
}

/// A pseudo-terminal's end for others to open, one after the other; its link lasts until this is dropped.
pub struct Terminal {
    path: PathBuf,
    /// What the link points to, if there is one.
    linked: Option<PathBuf>,
    /// Kept open, for a terminal that nobody has open reads as broken at the other end.
    _slave: SerialStream,
}

impl Terminal {
    /// What to open: the link if there is one, else the device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Another simulator may have taken the link over.
        if self.linked.is_some() && fs::read_link(&self.path).ok() == self.linked {
            // Nothing is left to do about a link that cannot be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a pseudo-terminal, with a symbolic link to it if wanted, and gives the board's end of it. Needs a tokio runtime
/// with I/O.
///
/// A symbolic link that stands there is replaced, whatever it points to; nothing else is.
///
/// # Errors
/// When there is no pseudo-terminal to be had, or the link cannot be made.
pub fn terminal(
    link: Option<&Path>,
) -> io::Result<(Terminal, impl AsyncRead + AsyncWrite + Unpin + Send + use<>)> {
    let (master, slave) = SerialStream::pair()?;
    let name = slave.name().ok_or_else(|| io::Error::other("the pseudo-terminal has no name"))?;
    let device = PathBuf::from(name);
    let Some(link) = link else {
        let terminal = Terminal { path: device, linked: None, _slave: slave };
        return Ok((terminal, master));
    };
    if link.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
        fs::remove_file(link)?;
    }
    symlink(&device, link).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(
            error.kind(),
            format!("{} exists and is no symbolic link; it is not replaced", link.display()),
        ),
        _ => io::Error::new(error.kind(), format!("cannot make the link {}: {error}", link.display())),
    })?;
    let terminal = Terminal { path: link.to_owned(), linked: Some(device), _slave: slave };
    Ok((terminal, master))
}

/// What a profile file describes.
#[derive(Clone, Debug, PartialEq)]
pub enum Profile {
    Captured(CapturedPack),
    Living(Settings),
}

/// Reads a profile file, which is one of
/// * hex of answers, as text (`#` begins a comment), from which the right frames are taken;
/// * a YAML or JSON list of such hex texts, or of maps with `response_hex` and perhaps `request_hex`. The request
///   says which register is answered so, which allows for answers that are broken; else the first right frame does.
///   Other keys, items of another `protocol`, without a response, or answering a write are passed over;
/// * a YAML map with [`Settings`] of a living pack.
///
/// # Errors
/// What is wrong, where, and what would be right.
pub fn profile(text: &str) -> Result<Profile, String> {
    // YAML would read some hex as numbers, and a few words of hex as keys: what can only be hex is not shown to it.
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let bare: String = lines.flat_map(str::chars).filter(|char| !char.is_whitespace()).collect();
    if !bare.is_empty() && bare.chars().all(|char| char.is_ascii_hexdigit()) {
        return captured_text(&bare);
    }
    match serde_yaml::from_str(text).map_err(|error| error.to_string())? {
        Value::String(text) => captured_text(&text),
        Value::Sequence(items) => captured_list(&items),
        Value::Mapping(_) => {
            // From the text once more: so an error knows its line.
            let settings: Settings = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
            settings.check()?;
            Ok(Profile::Living(settings))
        }
        _ => Err("a profile is hex of answers, a list of them, or a map such as `cells: 8`".to_owned()),
    }
}

fn captured_text(hex: &str) -> Result<Profile, String> {
    let mut pack = CapturedPack::default();
    for (register, answer) in answers(&unhex(hex)?) {
        pack.add(register, answer);
    }
    some_answers(pack)
}

fn captured_list(items: &[Value]) -> Result<Profile, String> {
    let mut pack = CapturedPack::default();
    for (place, item) in items.iter().enumerate() {
        let exchange = exchange(item).map_err(|error| format!("item {}: {error}", place + 1))?;
        for (register, answer) in exchange {
            pack.add(register, answer);
        }
    }
    some_answers(pack)
}

fn some_answers(pack: CapturedPack) -> Result<Profile, String> {
    if pack.answers.is_empty() {
        return Err(
            "no answer in it: a frame `DD register status length data checksum 77` is needed".to_owned()
        );
    }
    Ok(Profile::Captured(pack))
}

/// Registers and answers of one item of a list; none when it is to be passed over.
fn exchange(item: &Value) -> Result<Vec<(u8, Vec<u8>)>, String> {
    let hex = |key: &str, value: &Value| match value {
        Value::String(text) => unhex(text).map_err(|error| format!("{key}: {error}")),
        _ => Err(format!("{key} is not a text; put the hex in quotes")),
    };
    let Value::Mapping(map) = item else {
        let found = answers(&hex("this", item)?);
        return if found.is_empty() { Err(no_register("")) } else { Ok(found) };
    };
    let of_another = |protocol: &Value| protocol.as_str() != Some("jbd");
    let Some(response) = map.get("response_hex").filter(|response| !response.is_null()) else {
        return Ok(Vec::new());
    };
    if map.get("protocol").is_some_and(of_another) {
        return Ok(Vec::new());
    }
    let response = hex("response_hex", response)?;
    let asked = map.get("request_hex");
    if let Some(request) = asked.filter(|request| !request.is_null()) {
        return match parse(&hex("request_hex", request)?) {
            Parsed::Frame(Frame::Request(Request { write: true, .. }), _) => Ok(Vec::new()),
            Parsed::Frame(Frame::Request(Request { register, .. }), _) => Ok(vec![(register, response)]),
            _ => Err("request_hex is no request; one is `DD A5 03 00 FF FD 77`".to_owned()),
        };
    }
    match answers(&response).first() {
        Some(&(register, _)) => Ok(vec![(register, response)]),
        // A request that is there as null says that nobody asked: a broadcast of other devices.
        None if asked.is_some() => Ok(Vec::new()),
        None => Err(no_register("response_hex: ")),
    }
}

fn no_register(key: &str) -> String {
    format!("{key}no right frame in it, so its register is unknown; give `request_hex` as well")
}

/// The right answers in the bytes, as they stand there: a refusal may have a checksum that encoding would mend.
fn answers(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = match parse(bytes) {
            Parsed::Frame(Frame::Answer(answer), length) => {
                found.push((answer.register, bytes[..length].to_vec()));
                length
            }
            Parsed::Frame(Frame::Request(_), length) | Parsed::Noise(length, _) => length,
            Parsed::Incomplete => 1,
        };
        bytes = &bytes[length..];
    }
    found
}

/// Bytes from hex, with or without spaces.
fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.chars().filter(|char| !char.is_whitespace());
    let digits: Vec<u8> = digits
        .map(|char| {
            let digit = char.to_digit(16).map(|digit| digit as u8);
            digit.ok_or_else(|| format!("{char:?} is no hex digit; hex is such as `DD 03 00 1B`"))
        })
        .collect::<Result<_, _>>()?;
    if digits.len() % 2 != 0 {
        return Err(format!("{} hex digits; a byte has two", digits.len()));
    }
    Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::super::message::{BasicInfo, CellVoltages};
    use super::super::reading::reading;
    use super::*;
    use crate::board::Direct;
    use crate::link::Timing;

    /// The contract's pack.
    const CONTRACT: &str = "\
        DD 03 00 1B 0A 6A 00 00 1E E7 1F 40 00 00 27 72 00 00 00 00 00 00 15 63 03 08 02 0B 89 0B 8B FB C5 77\n\
        # and its cells\n\
        DD 04 00 10 0D 04 0D 05 0D 04 0D 04 0D 06 0D 08 0D 03 0D 06 FF 60 77";
    const ASK_INFO: [u8; 7] = [0xDD, 0xA5, 0x03, 0x00, 0xFF, 0xFD, 0x77];
    const ASK_CELLS: [u8; 7] = [0xDD, 0xA5, 0x04, 0x00, 0xFF, 0xFC, 0x77];

    fn captured(text: &str) -> CapturedPack {
        match profile(text) {
            Ok(Profile::Captured(pack)) => pack,
            other => panic!("{other:?}"),
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        unhex(hex).unwrap()
    }

    /// What comes back when `sent` is written and the line is then closed.
    async fn heard_back(pack: &mut dyn Pack, sent: &[u8]) -> Vec<u8> {
        let (mut host, line) = duplex(4096);
        host.write_all(sent).await.unwrap();
        host.shutdown().await.unwrap();
        serve(line, pack, Pace::Unpaced).await.unwrap();
        let mut heard = Vec::new();
        host.read_to_end(&mut heard).await.unwrap();
        heard
    }

    #[tokio::test(start_paused = true)]
    async fn a_captured_pack_is_read_as_what_was_captured() {
        let mut pack = captured(CONTRACT);
        let (host, line) = duplex(64);
        let mut board = Direct::new(host, Timing::SERIAL);
        let polled = async {
            let first = board.poll().await;
            // A single answer is repeated.
            assert_eq!(board.poll().await.unwrap(), *first.as_ref().unwrap());
            assert_eq!(board.identity().await.unwrap().model, None);
            drop(board);
            first
        };
        let (polled, served) = tokio::join!(polled, serve(line, &mut pack, Pace::Unpaced));
        served.unwrap();
        let found = answers(&bytes(&CONTRACT.replace("# and its cells", "")));
        let data = |place: usize| &found[place].1[4..found[place].1.len() - 3];
        let info = BasicInfo::decode(data(0)).unwrap();
        let cells = CellVoltages::decode(data(1)).unwrap();
        assert_eq!(polled.unwrap(), reading(Some(&info), Some(&cells)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_living_pack_lives_while_it_is_asked() {
        let mut pack = LivingPack::new(Settings {
            cells: 16,
            state_of_charge: 30.0,
            speed: 60.0,
            ..Settings::default()
        })
        .unwrap();
        let (host, line) = duplex(64);
        let polled = async {
            let mut board = Direct::new(host, Timing::SERIAL);
            let before = board.poll().await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            let after = board.poll().await.unwrap();
            assert_eq!((before.cells.len(), after.cells.len()), (16, 16));
            let charge = |reading: crate::pack::reading::Reading| reading.totals.unwrap().state_of_charge;
            assert!(charge(after) > charge(before) + 20, "an hour at 0.3 C");
            assert_eq!(board.identity().await.unwrap().model.unwrap(), "JBD-SP16S001-VIRTUAL");
            assert_eq!(board.counters().await.unwrap().unwrap().charge_overcurrent, 1);
        };
        let (_, served) = tokio::join!(polled, serve(line, &mut pack, Pace::Unpaced));
        served.unwrap();
    }

    #[tokio::test]
    async fn writes_and_unknown_registers_are_refused_with_right_checksums() {
        let mut pack = captured(CONTRACT);
        let unknown = bytes("DD A5 42 00 FF BE 77");
        assert_eq!(heard_back(&mut pack, &unknown).await, bytes("DD 42 80 00 FF 80 77"));
        let mosfets_off = bytes("DD 5A E1 02 00 03 FF 1A 77");
        assert_eq!(heard_back(&mut pack, &mosfets_off).await, bytes("DD E1 81 00 FF 7F 77"));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_found_in_noise_and_answered_one_after_the_other() {
        let mut pack = captured(CONTRACT);
        let (info, cells) = (answers_of(&pack, 0x03), answers_of(&pack, 0x04));
        // Noise, a foreign answer, two requests back to back, and a false start that claims 255 bytes.
        let line = [&b"\x00\x77"[..], &cells[0], &ASK_INFO, &ASK_CELLS, b"\xDD\xA5\x03\xFF"].concat();
        assert_eq!(heard_back(&mut pack, &line).await, [&info[0][..], &cells[0]].concat());

        // Behind a false start a request is found when the line has paused.
        let (mut host, line) = duplex(4096);
        let asked = async move {
            host.write_all(b"\xDD\x03\x00\xFF").await.unwrap();
            host.write_all(&ASK_CELLS).await.unwrap();
            let mut heard = vec![0; cells[0].len()];
            host.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, cells[0]);
        };
        let (_, served) = tokio::join!(asked, serve(line, &mut pack, Pace::Unpaced));
        served.unwrap();
    }

    fn answers_of(pack: &CapturedPack, register: u8) -> Vec<Vec<u8>> {
        pack.answers[&register].0.clone()
    }

    #[test]
    fn several_answers_of_a_register_take_turns() {
        let mut pack = CapturedPack::default();
        pack.add(3, vec![1]);
        pack.add(3, vec![]);
        for _ in 0..2 {
            assert_eq!(pack.answer(3), Reply::Verbatim(vec![1]));
            assert_eq!(pack.answer(3), Reply::Verbatim(vec![]));
        }
        assert_eq!(pack.answer(4), Reply::Refused(Status::NO_SUCH_REGISTER));
    }

    #[tokio::test]
    async fn on_the_wire_no_byte_comes_before_its_time() {
        let mut pack = captured(CONTRACT);
        let (mut host, line) = duplex(4096);
        let asked = async move {
            for (request, length) in [(ASK_CELLS, 23), (ASK_INFO, 34)] {
                let start = std::time::Instant::now();
                host.write_all(&request).await.unwrap();
                for byte in 1..=length {
                    host.read_u8().await.unwrap();
                    let due = Duration::from_secs(7 + byte) * 10 / 9600;
                    assert!(start.elapsed() >= due, "byte {byte} after {:?}", start.elapsed());
                }
            }
        };
        let (_, served) = tokio::join!(asked, serve(line, &mut pack, Pace::Wire { baud: 9600 }));
        served.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_does_not_hang_the_wire() {
        let mut pack = captured(CONTRACT);
        let (host, line) = duplex(4096);
        let asked = async {
            let start = Instant::now();
            Direct::new(host, Timing::SERIAL).poll().await.unwrap();
            start.elapsed()
        };
        let (elapsed, _) = tokio::join!(asked, serve(line, &mut pack, Pace::Wire { baud: 9600 }));
        // 71 bytes, less the two last milliseconds of each answer, which a paused clock does not see.
        assert!(elapsed >= Duration::from_millis(69), "{elapsed:?}");
        assert!(elapsed < Duration::from_millis(100), "{elapsed:?}");
    }

    /// A path of this test's own.
    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("bms2mqtt-simulator-{name}-{}", std::process::id()))
    }

    #[tokio::test]
    async fn a_terminal_can_be_opened_by_its_link_again_and_again() {
        let link = scratch("link");
        let _ = fs::remove_file(&link);
        symlink("/nowhere/at/all", &link).unwrap();
        let (terminal, line) = terminal(Some(&link)).unwrap();
        assert_eq!(terminal.path(), link);
        let asked = async {
            for _ in 0..3 {
                let port = tokio_serial::new(link.to_str().unwrap(), 9600);
                // Exclusively, which is how programs open ports.
                let mut board = Direct::new(SerialStream::open(&port).unwrap(), Timing::SERIAL);
                assert_eq!(board.poll().await.unwrap().cells.len(), 8);
                assert!(SerialStream::open(&port).is_err(), "a port has one user");
            }
        };
        let mut pack = captured(CONTRACT);
        tokio::select! {
            () = asked => {}
            served = serve(line, &mut pack, Pace::Unpaced) => panic!("{served:?}"),
        }
        drop(terminal);
        assert!(link.symlink_metadata().is_err(), "the link is left behind");
    }

    #[tokio::test]
    async fn a_terminal_that_goes_hangs_up() {
        let (terminal, line) = terminal(None).unwrap();
        let port = tokio_serial::new(terminal.path().to_str().unwrap(), 9600);
        let mut board = Direct::new(SerialStream::open(&port).unwrap(), Timing::SERIAL);
        drop((terminal, line));
        assert!(board.poll().await.unwrap_err().broke_the_link());
    }

    #[tokio::test]
    async fn a_link_replaces_links_only_and_takes_only_itself_away() {
        let path = scratch("file");
        fs::write(&path, "precious").unwrap();
        let error = terminal(Some(&path)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("is not replaced"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();

        let (first, _line) = terminal(Some(&path)).unwrap();
        let (second, _line) = terminal(Some(&path)).unwrap();
        drop(first);
        assert_eq!(fs::read_link(&path).ok(), second.linked);
    }

    #[test]
    fn a_profile_of_hex_needs_no_yaml() {
        let spaced = captured(CONTRACT);
        let tight: String = CONTRACT.replace("# and its cells", "").split_whitespace().collect();
        for text in
            [&tight, &format!("# captured\n{tight}\n"), &format!("\"{tight}\""), &format!("- {tight}")]
        {
            assert_eq!(captured(text), spaced, "{text}");
        }
        assert_eq!(spaced.answers.keys().copied().collect::<Vec<_>>(), [0x03, 0x04]);
        // A real refusal whose checksum is wrong stays as it is.
        let refusal = "DD 00 81 00 00 00 77";
        assert_eq!(answers_of(&captured(refusal), 0x00), [bytes(refusal)]);
    }

    #[test]
    fn a_list_takes_the_register_from_the_request_or_the_frame() {
        let pack = captured(
            r#"[
            {"request_hex": "dda50300fffd77", "response_hex": "DD 03 00 1B"},
            {"request_hex": "dda50500fffb77", "response_hex": ""},
            {"response_hex": "dd040002 0d04 ffed 77", "note": "other keys are passed over"},
            {"response_hex": "0251", "request_hex": null},
            {"response_hex": null, "request_hex": "dda50400fffc77"},
            {"response_hex": "not hex", "protocol": "jbd_up"},
            {"request_hex": "dd5ae1020001ff1c77", "response_hex": "dde10000000077"}
            ]"#,
        );
        let cells = bytes("DD 04 00 02 0D 04 FF ED 77");
        let wanted = [(0x03, bytes("DD03001B")), (0x04, cells), (0x05, vec![])];
        assert_eq!(pack.answers, wanted.map(|(register, answer)| (register, (vec![answer], 0))).into());
    }

    #[test]
    fn a_map_is_the_settings_of_a_living_pack() {
        let text = "cells: 4 # of a boat\nspeed: 60\nname: Boat\n";
        let Ok(Profile::Living(settings)) = profile(text) else {
            panic!("no living pack");
        };
        let wanted = Settings { cells: 4, speed: 60.0, name: Some("Boat".to_owned()), ..Settings::default() };
        assert_eq!(settings, wanted);
    }

    #[test]
    fn a_wrong_profile_says_what_would_be_right() {
        for (text, says) in [
            ("", "a list of them, or a map"),
            ("# nothing", "a list of them, or a map"),
            ("3.5", "a list of them, or a map"),
            ("DD 03 0", "5 hex digits; a byte has two"),
            ("DD 03 00 00 00 01 77", "no answer in it"),
            ("DD 03 0O", "'O' is no hex digit"),
            ("[]", "no answer in it"),
            ("- DD 03", "item 1: no right frame in it, so its register is unknown; give `request_hex`"),
            ("- 7700", "item 1: this is not a text; put the hex in quotes"),
            ("- response_hex: DD 03", "item 1: response_hex: no right frame"),
            ("- response_hex: DD\n  request_hex: DD A5", "item 1: request_hex is no request; one is `DD A5"),
            ("- response_hex: [1]", "item 1: response_hex is not a text"),
            ("cells: 40", "cells is 40; it can be 1 to 32"),
            ("cells: 4\ncolour: red", "unknown field `colour`, expected one of `cells`"),
            ("cells: many", "line 1"),
            ("cells: [", "line 2"),
        ] {
            let error = profile(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
