//! Asks one JBD board on a bus: which registers, how often again, and which response answers which request.
//!
//! A board swallows up to four bytes that follow a request and echoes them behind its response ("callback id", V11);
//! a bus sends the next request only after the response to the one before.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::frame::{Answer, Frame, Parsed, Request, Status, parse};
use super::message::{BasicInfo, CellVoltages, ErrorCounters, Malformed, Name, register};
use super::reading::{counters, reading};
use crate::bus::{self, Bus, Found, Tally};
use crate::pack::reading::{Counters, Reading};
use crate::pack::tracker::FailureKind;

/// Why there is no response, sorted by what the caller does about it.
#[derive(Debug)]
pub enum Error {
    /// The link is broken: open it again.
    Broken(io::Error),
    /// No right response in all tries: ask again later.
    NoResponse { register: u8, tries: u32, came: Came },
    /// The board says no: go on without this register.
    Refused { register: u8, status: Status },
    /// All is to end: the request was not sent.
    Stopped,
}

impl Error {
    /// What it means for the pack; `None` when all is to end.
    pub const fn kind(&self) -> Option<FailureKind> {
        match self {
            Error::Broken(_) => Some(FailureKind::Broken),
            Error::NoResponse { register: register::CELL_VOLTAGES, .. } => {
                Some(FailureKind::SilentAboutCells)
            }
            Error::NoResponse { .. } | Error::Refused { .. } => Some(FailureKind::Silent),
            Error::Stopped => None,
        }
    }
}

/// What came instead of a response.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    Nothing,
    /// Bytes, but no frame that answers the request.
    OtherBytes(usize),
    Malformed(Malformed),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the line hung up; was the adapter pulled?")
            }
            Error::Broken(error) if error.kind() == io::ErrorKind::WriteZero => {
                f.write_str("the line takes no more bytes; does anything read at its other end?")
            }
            Error::Broken(error) => write!(f, "the line broke: {error}"),
            Error::NoResponse { register, tries, came } => {
                write!(f, "no answer to register {register:02X} in {tries} tries: ")?;
                match came {
                    Came::Nothing => {
                        f.write_str("the board is silent; check wiring (RX to TX), power and baud")
                    }
                    Came::OtherBytes(count) => {
                        write!(
                            f,
                            "{count} bytes of something else; check baud and for another program on the line"
                        )
                    }
                    Came::Malformed(malformed) => malformed.fmt(f),
                }
            }
            Error::Refused { register, status } => {
                write!(f, "the board refuses register {register:02X}: status {status}")
            }
            Error::Stopped => f.write_str("not asked any more"),
        }
    }
}

impl std::error::Error for Error {}

/// What is known of a board besides its readings.
#[derive(Debug, Default)]
pub struct Board {
    request: Vec<u8>,
    /// Registers of which a response to an older request may still come on this link.
    overdue: Vec<u8>,
    tally: Tally,
}

impl Board {
    /// What went wrong since this was last asked.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// Nothing that was asked on another link is answered on this one.
    pub fn link_opened(&mut self) {
        self.overdue.clear();
    }

    /// One poll: registers 0x03 and 0x04.
    ///
    /// # Errors
    /// [`Error::Broken`] and [`Error::NoResponse`] of either register; [`Error::Refused`] when the board refuses both.
    pub async fn poll<L>(&mut self, bus: &mut Bus<L>) -> Result<Reading, Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        let totals_overdue = self.overdue.contains(&register::BASIC_INFO);
        if totals_overdue && self.overdue.contains(&register::CELL_VOLTAGES) {
            self.settle(bus).await?;
        }
        let (info, cells);
        if totals_overdue {
            // What answers this comes behind all older responses about the totals.
            cells = unless_refused(self.ask(bus, register::CELL_VOLTAGES, CellVoltages::decode).await)?;
            info = unless_refused(self.ask(bus, register::BASIC_INFO, BasicInfo::decode).await)?;
        } else {
            info = unless_refused(self.ask(bus, register::BASIC_INFO, BasicInfo::decode).await)?;
            cells = unless_refused(self.ask(bus, register::CELL_VOLTAGES, CellVoltages::decode).await)?;
        }
        self.give_up_settling();
        match (info, cells) {
            ((None, Some(refusal)), (None, _)) => Err(refusal),
            ((info, _), (cells, _)) => Ok(reading(info.as_ref(), cells.as_ref())),
        }
    }

    /// One poll of a board that keeps silent about its cells: register 0x03 alone.
    ///
    /// # Errors
    /// Every [`Error`] of the register.
    pub async fn poll_totals<L>(&mut self, bus: &mut Bus<L>) -> Result<Reading, Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        if self.overdue.contains(&register::BASIC_INFO) {
            self.settle(bus).await?;
        }
        let info = self.ask(bus, register::BASIC_INFO, BasicInfo::decode).await?;
        self.give_up_settling();
        Ok(reading(Some(&info), None))
    }

    /// Register 0x05; `None` when the board has no name or does not tell it.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub async fn name<L>(&mut self, bus: &mut Bus<L>) -> Result<Option<String>, Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.ask(bus, register::NAME, |data| Ok(Name::decode(data))).await;
        let name = unless_absent(name)?.map(|Name(name)| name);
        Ok(name.filter(|name| !name.is_empty()))
    }

    /// Register 0xAA; `None` when the board does not tell it.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub async fn counters<L>(&mut self, bus: &mut Bus<L>) -> Result<Option<Counters>, Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        let told = unless_absent(self.ask(bus, register::COUNTERS, ErrorCounters::decode).await)?;
        Ok(told.as_ref().map(counters))
    }

    async fn ask<L, M>(
        &mut self,
        bus: &mut Bus<L>,
        register: u8,
        decode: impl Fn(&[u8]) -> Result<M, Malformed>,
    ) -> Result<M, Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        self.request.clear();
        Request::read(register).encode(&mut self.request);
        let tries = bus.timing().tries;
        let mut came = Came::Nothing;
        let was_overdue = self.overdue.contains(&register);
        for attempt in 0..tries {
            self.tally.retries += u64::from(attempt > 0);
            let response = bus
                .exchange(&self.request, |bytes| {
                    find(bytes, register, |answer| match answer.status {
                        Status::OK => decode(answer.data).map_err(Wrong::Malformed),
                        status => Err(Wrong::Refused(status)),
                    })
                })
                .await;
            bus.judged(matches!(response, Ok(Ok(_))));
            match response {
                Ok(Ok(_) | Err(Wrong::Refused(_))) => {
                    // A line keeps the order: what was asked before is answered before, or never.
                    if !was_overdue {
                        self.overdue.clear();
                        // But for the tries of this request itself.
                        self.overdue.extend((attempt > 0).then_some(register));
                    }
                }
                Ok(Err(Wrong::Malformed(_))) | Err(bus::Error::NoResponse { .. }) => {
                    if !self.overdue.contains(&register) {
                        self.overdue.push(register);
                    }
                }
                Err(bus::Error::Broken(_) | bus::Error::Stopped) => {}
            }
            match response {
                Ok(Ok(message)) => return Ok(message),
                Ok(Err(Wrong::Refused(status))) => return Err(Error::Refused { register, status }),
                Ok(Err(Wrong::Malformed(malformed))) => came = Came::Malformed(malformed),
                Err(bus::Error::Broken(error)) => return Err(Error::Broken(error)),
                Err(bus::Error::Stopped) => return Err(Error::Stopped),
                Err(bus::Error::NoResponse { bytes: 0 }) => {
                    self.tally.timeouts += 1;
                    continue;
                }
                Err(bus::Error::NoResponse { bytes }) => came = Came::OtherBytes(bytes),
            }
            self.tally.checksum_errors += 1;
        }
        Err(Error::NoResponse { register, tries, came })
    }

    /// Gets older responses out of the way: a response does not tell which of two equal requests it answers, but it comes
    /// behind the responses to all that was asked before. So it asks what is not itself overdue.
    async fn settle<L>(&mut self, bus: &mut Bus<L>) -> Result<(), Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        if self.overdue.contains(&register::NAME) {
            self.counters(bus).await.map(drop)
        } else {
            self.name(bus).await.map(drop)
        }
    }

    /// After a poll that brought its responses though nothing came to `settle`: the board tells neither, and is not to
    /// be asked in vain at every poll from now on.
    fn give_up_settling(&mut self) {
        if [register::NAME, register::COUNTERS].iter().all(|register| self.overdue.contains(register)) {
            self.overdue.clear();
        }
    }
}

/// What is wrong with a response.
enum Wrong {
    Malformed(Malformed),
    Refused(Status),
}

/// Is the response to this register's request at the beginning of these bytes?
fn find<M>(
    bytes: &[u8],
    register: u8,
    judge: impl FnOnce(Answer<'_>) -> Result<M, Wrong>,
) -> Found<Result<M, Wrong>> {
    match parse(bytes) {
        Parsed::Incomplete => Found::NotYet,
        Parsed::Noise(count, fault) => Found::Drop(count, fault.to_string().into()),
        Parsed::Frame(Frame::Answer(answer), length) if answer.register == register => {
            Found::This(judge(answer), length)
        }
        Parsed::Frame(Frame::Answer(_), length) => {
            Found::Drop(length, "an answer to another question".into())
        }
        Parsed::Frame(Frame::Request(_), length) => Found::Drop(length, "an echo".into()),
    }
}

fn unless_refused<M>(outcome: Result<M, Error>) -> Result<(Option<M>, Option<Error>), Error> {
    match outcome {
        Ok(message) => Ok((Some(message), None)),
        Err(refusal @ Error::Refused { .. }) => Ok((None, Some(refusal))),
        Err(error) => Err(error),
    }
}

/// For registers that a board need not have: some refuse them, some keep silent.
fn unless_absent<M>(outcome: Result<M, Error>) -> Result<Option<M>, Error> {
    match outcome {
        Ok(message) => Ok(Some(message)),
        Err(error @ (Error::Broken(_) | Error::Stopped)) => Err(error),
        Err(absent) => {
            debug!("{absent}");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::jbd::frame::{Frame, frames};
    use crate::link::Timing;
    use crate::stop::Stop;

    /// A board that has its bus to itself.
    struct Asked {
        board: Board,
        bus: Bus<DuplexStream>,
    }

    impl Asked {
        fn new(here: DuplexStream) -> Asked {
            Asked { board: Board::default(), bus: Bus::new(here, Timing::SERIAL, Stop::never()) }
        }

        async fn poll(&mut self) -> Result<Reading, Error> {
            self.board.poll(&mut self.bus).await
        }
    }

    /// The contract's pack: 26.66 V, eight cells.
    const INFO: [u8; 34] = [
        0xDD, 0x03, 0x00, 0x1B, 0x0A, 0x6A, 0x00, 0x00, 0x1E, 0xE7, 0x1F, 0x40, 0x00, 0x00, 0x27, 0x72, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x15, 0x63, 0x03, 0x08, 0x02, 0x0B, 0x89, 0x0B, 0x8B, 0xFB, 0xC5, 0x77,
    ];
    const CELLS: [u8; 23] = [
        0xDD, 0x04, 0x00, 0x10, 0x0D, 0x04, 0x0D, 0x05, 0x0D, 0x04, 0x0D, 0x04, 0x0D, 0x06, 0x0D, 0x08, 0x0D,
        0x03, 0x0D, 0x06, 0xFF, 0x60, 0x77,
    ];
    const SILENCE: &[u8] = &[];

    /// A line whose other end says what the script says, a line of it for each request, and then hangs up.
    fn scripted(script: Vec<Vec<u8>>) -> (Asked, tokio::task::JoinHandle<Vec<u8>>) {
        let (here, mut there) = duplex(1024);
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for says in script {
                let mut request = [0; 7];
                if there.read_exact(&mut request).await.is_err() {
                    break;
                }
                if let Some(Frame::Request(request)) = frames(&request).next() {
                    asked.push(request.register);
                }
                there.write_all(&says).await.unwrap();
            }
            // Reads on, as a line does that nobody answers at.
            let mut rest = Vec::new();
            let _ = there.read_to_end(&mut rest).await;
            asked
        });
        (Asked::new(here), asked)
    }

    async fn poll(script: &[&[u8]]) -> (Result<Reading, Error>, Vec<u8>) {
        let (mut board, asked) = scripted(script.iter().map(|says| says.to_vec()).collect());
        let reading = board.poll().await;
        drop(board);
        (reading, asked.await.unwrap())
    }

    fn voltage(reading: &Result<Reading, Error>) -> Option<String> {
        Some(reading.as_ref().ok()?.totals.as_ref()?.voltage.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn one_poll_is_two_questions() {
        let (reading, asked) = poll(&[&INFO, &CELLS]).await;
        assert_eq!(voltage(&reading).as_deref(), Some("26.66"));
        assert_eq!(reading.unwrap().cells.len(), 8);
        assert_eq!(asked, [0x03, 0x04]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleeping_board_is_asked_again_at_once() {
        let began = Instant::now();
        let (reading, asked) = poll(&[SILENCE, &INFO, &CELLS]).await;
        assert_eq!(voltage(&reading).as_deref(), Some("26.66"));
        assert_eq!(asked, [0x03, 0x03, 0x04]);
        assert_eq!(began.elapsed(), Timing::SERIAL.first_byte);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_board_is_given_up_after_three_questions() {
        let began = Instant::now();
        let (reading, asked) = poll(&[SILENCE; 4]).await;
        assert!(matches!(reading, Err(Error::NoResponse { register: 3, came: Came::Nothing, .. })));
        assert_eq!(asked, [0x03; 3]);
        assert_eq!(began.elapsed(), Timing::SERIAL.first_byte * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn echoes_noise_and_stray_bytes_around_an_answer_do_no_harm() {
        let echo = [0xDD, 0xA5, 0x03, 0x00, 0xFF, 0xFD, 0x77];
        let other_protocol = [0x02, 0x51, 0x00, 0xDD, 0x00, 0xFF, 0xFF];
        let first = [&echo[..], &other_protocol, &INFO, &[0xDD, 0xA5, 0x05, 0x00]].concat();
        let (reading, asked) = poll(&[&first, &[&[0x00, 0x00], &CELLS[..]].concat()]).await;
        assert_eq!(voltage(&reading).as_deref(), Some("26.66"));
        assert_eq!(asked, [0x03, 0x04]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_checksum_is_asked_about_again() {
        let mut broken = INFO;
        broken[4] ^= 1;
        let (reading, asked) = poll(&[&broken, &INFO, &CELLS]).await;
        assert_eq!(voltage(&reading).as_deref(), Some("26.66"));
        assert_eq!(asked, [0x03, 0x03, 0x04]);
    }

    #[tokio::test(start_paused = true)]
    async fn every_question_that_fails_is_counted_once() {
        let mut broken = INFO;
        broken[4] ^= 1;
        let script: [&[u8]; 4] = [SILENCE, &broken, &INFO, SILENCE];
        let (mut board, _asked) = scripted(script.map(<[u8]>::to_vec).to_vec());
        assert!(board.poll().await.is_err());
        // 0x03: nothing, something wrong, right; 0x04: nothing three times.
        assert_eq!(board.board.take_tally(), Tally { retries: 4, timeouts: 4, checksum_errors: 1 });
        assert_eq!(board.board.take_tally(), Tally::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_another_question_is_not_taken() {
        // The answer to 0x03 comes twice: the second time in place of that to 0x04, which follows.
        let (reading, asked) = poll(&[&INFO, &[&INFO[..], &CELLS].concat()]).await;
        assert_eq!(reading.unwrap().cells.len(), 8);
        assert_eq!(asked, [0x03, 0x04]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_the_question_is_not_its_answer() {
        let (here, mut there) = duplex(1024);
        let mut board = Asked::new(here);
        let mut old = INFO.to_vec();
        old[4..6].copy_from_slice(&[0x0B, 0x69]); // 29.21 V, and the same sum
        there.write_all(&old).await.unwrap();
        let answering = async {
            for answer in [&INFO[..], &CELLS] {
                there.read_exact(&mut [0; 7]).await.unwrap();
                there.write_all(answer).await.unwrap();
            }
        };
        let (reading, ()) = tokio::join!(board.poll(), answering);
        assert_eq!(voltage(&reading).as_deref(), Some("26.66"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_after_the_question_was_given_up_is_not_the_next_polls() {
        let (here, mut there) = duplex(1024);
        let mut board = Asked::new(here);
        let mut old = INFO.to_vec();
        old[4..6].copy_from_slice(&[0x0B, 0x69]); // 29.21 V, and the same sum
        let answering = async {
            for _ in 0..Timing::SERIAL.tries {
                there.read_exact(&mut [0; 7]).await.unwrap();
            }
            // It comes when the next poll has begun, and that has begun with the other question.
            for answers in [[&old[..], &CELLS].concat(), INFO.to_vec()] {
                there.read_exact(&mut [0; 7]).await.unwrap();
                there.write_all(&answers).await.unwrap();
            }
        };
        let polling = async {
            assert!(board.poll().await.is_err());
            board.poll().await
        };
        let (reading, ()) = tokio::join!(polling, answering);
        assert_eq!(voltage(&reading).as_deref(), Some("26.66"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_register_is_gone_on_without() {
        let refusal = [0xDD, 0x04, 0x80, 0x00, 0xFF, 0x80, 0x77];
        let (reading, _) = poll(&[&INFO, &refusal]).await;
        let reading = reading.unwrap();
        assert!(reading.cells.is_empty());
        assert_eq!(reading.cell_count(), 8);
        let other = [0xDD, 0x03, 0x81, 0x00, 0x00, 0x00, 0x77];
        let (reading, _) = poll(&[&other, &refusal]).await;
        assert!(matches!(reading, Err(Error::Refused { register: 3, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_babbles_for_ever_is_left_in_the_end() {
        let (here, mut there) = duplex(64);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if there.write_all(&[0xDD, 0x03, 0x00]).await.is_err() {
                    break;
                }
            }
        });
        let began = Instant::now();
        let reading = Asked::new(here).poll().await;
        assert!(matches!(reading, Err(Error::NoResponse { came: Came::OtherBytes(_), .. })));
        assert!(began.elapsed() <= Timing::SERIAL.whole_response * 3 + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_hangs_up_is_broken() {
        let (here, there) = duplex(64);
        drop(there);
        assert!(matches!(Asked::new(here).poll().await, Err(Error::Broken(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_takes_no_more_bytes_is_broken() {
        let (here, _nobody_reads) = duplex(4);
        assert!(matches!(Asked::new(here).poll().await, Err(Error::Broken(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn name_and_counters_may_be_missing() {
        let name = [0xDD, 0x05, 0x00, 0x03, b'J', b'B', b'D', 0xFF, 0x2D, 0x77];
        let (mut board, _asked) = scripted(vec![name.to_vec()]);
        let Asked { board, bus } = &mut board;
        assert_eq!(board.name(bus).await.unwrap().as_deref(), Some("JBD"));
        assert_eq!(board.counters(bus).await.unwrap(), None);
    }
}
