//! Asks one board: send, wait, retry, match the answer to the question.
//!
//! The board never talks unasked and answers in tens of milliseconds, so the next request goes out when the
//! last byte of an answer has come. Two requests are never under way: a board swallows up to four bytes that
//! follow a request and echoes them behind its answer ("callback id", V11).

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::frame::{Answer, Frame, LONGEST, Parsed, Request, Status, parse};
use super::message::{BasicInfo, CellVoltages, Malformed, Name, register};
use super::reading::reading;
use super::trace::Trace;
use crate::pack::reading::{Counters, Reading};

/// How long a board may take to begin its answer. Boards begin within 100 ms; a TCP bridge adds its own delays.
const FIRST_BYTE: Duration = Duration::from_millis(500);
/// How long the line may pause inside an answer: adapters and TCP bridges hand bytes on in lumps.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one answer may take in all, so that a line that babbles for ever is not listened to for ever.
const WHOLE_ANSWER: Duration = Duration::from_secs(2);
/// A sleeping board loses the request that wakes it (V11), a noisy line loses another.
const TRIES: u32 = 3;

/// Why there is no answer, sorted by what the caller does about it.
#[derive(Debug)]
pub enum Error {
    /// The line is broken: open it again.
    Line(io::Error),
    /// No right answer in all tries: ask again later.
    NoAnswer { register: u8, heard: Heard },
    /// The board says no: go on without this register.
    Refused { register: u8, status: Status },
}

/// What came instead of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Nothing,
    /// Bytes, but no frame that answers the question.
    OtherBytes(usize),
    Malformed(Malformed),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Line(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the line hung up; was the adapter pulled?")
            }
            Error::Line(error) if error.kind() == io::ErrorKind::WriteZero => {
                f.write_str("the line takes no more bytes; does anything read at its other end?")
            }
            Error::Line(error) => write!(f, "the line broke: {error}"),
            Error::NoAnswer { register, heard } => {
                write!(f, "no answer to register {register:02X} in {TRIES} tries: ")?;
                match heard {
                    Heard::Nothing => {
                        f.write_str("the board is silent; check wiring (RX to TX), power and baud")
                    }
                    Heard::OtherBytes(count) => {
                        write!(
                            f,
                            "{count} bytes of something else; check baud and for another program on the line"
                        )
                    }
                    Heard::Malformed(malformed) => malformed.fmt(f),
                }
            }
            Error::Refused { register, status } => {
                write!(f, "the board refuses register {register:02X}: status {status}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// What went wrong on a line, whether or not asking again made it good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Questions asked again.
    pub retries: u64,
    /// Questions, first or again, after which nothing came.
    pub timeouts: u64,
    /// Questions, first or again, after which something came and no right answer among it.
    pub checksum_errors: u64,
}

/// A board at the other end of a line.
pub struct Board<L> {
    line: L,
    /// What has come and is not yet part of a frame.
    buffer: Vec<u8>,
    request: Vec<u8>,
    /// Registers of which an answer to an older question may still come.
    doubtful: Vec<u8>,
    tally: Tally,
    trace: Trace,
}

impl<L: AsyncRead + AsyncWrite + Unpin> Board<L> {
    pub fn new(line: L) -> Board<L> {
        let buffer = Vec::with_capacity(2 * LONGEST);
        let (tally, trace) = (Tally::default(), Trace::default());
        Board { line, buffer, request: Vec::new(), doubtful: Vec::new(), tally, trace }
    }

    /// What went wrong since this was last asked.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// One poll: registers 0x03 and 0x04.
    ///
    /// # Errors
    /// [`Error::Line`] and [`Error::NoAnswer`] of either register; [`Error::Refused`] when the board refuses both.
    pub async fn poll(&mut self) -> Result<Reading, Error> {
        self.trace.poll();
        let totals_in_doubt = self.doubtful.contains(&register::BASIC_INFO);
        if totals_in_doubt && self.doubtful.contains(&register::CELL_VOLTAGES) {
            self.flush().await?;
        }
        let (info, cells);
        if totals_in_doubt {
            // What answers this comes behind all older answers about the totals.
            cells = unless_refused(self.ask(register::CELL_VOLTAGES, CellVoltages::decode).await)?;
            info = unless_refused(self.ask(register::BASIC_INFO, BasicInfo::decode).await)?;
        } else {
            info = unless_refused(self.ask(register::BASIC_INFO, BasicInfo::decode).await)?;
            cells = unless_refused(self.ask(register::CELL_VOLTAGES, CellVoltages::decode).await)?;
        }
        self.give_up_flushing();
        match (info, cells) {
            ((None, Some(refusal)), (None, _)) => Err(refusal),
            ((info, _), (cells, _)) => Ok(reading(info.as_ref(), cells.as_ref())),
        }
    }

    /// One poll of a board that keeps silent about its cells: register 0x03 alone.
    ///
    /// # Errors
    /// Every [`Error`] of the register.
    pub async fn poll_totals(&mut self) -> Result<Reading, Error> {
        self.trace.poll();
        if self.doubtful.contains(&register::BASIC_INFO) {
            self.flush().await?;
        }
        let info = self.ask(register::BASIC_INFO, BasicInfo::decode).await?;
        self.give_up_flushing();
        Ok(reading(Some(&info), None))
    }

    /// Register 0x05; `None` when the board has no name or does not tell it.
    ///
    /// # Errors
    /// [`Error::Line`].
    pub async fn name(&mut self) -> Result<Option<String>, Error> {
        let name = self.ask(register::NAME, |data| Ok(Name::decode(data))).await;
        let name = unless_absent(name)?.map(|Name(name)| name);
        Ok(name.filter(|name| !name.is_empty()))
    }

    /// Register 0xAA; `None` when the board does not tell it.
    ///
    /// # Errors
    /// [`Error::Line`].
    pub async fn counters(&mut self) -> Result<Option<Counters>, Error> {
        unless_absent(self.ask(register::COUNTERS, Counters::decode).await)
    }

    async fn ask<M>(
        &mut self,
        register: u8,
        decode: impl Fn(&[u8]) -> Result<M, Malformed>,
    ) -> Result<M, Error> {
        self.request.clear();
        Request::read(register).encode(&mut self.request);
        let mut heard = Heard::Nothing;
        let in_doubt = self.doubtful.contains(&register);
        for attempt in 0..TRIES {
            self.tally.retries += u64::from(attempt > 0);
            self.discard_what_came_late().await?;
            self.trace.request(&self.request);
            // A line whose other end reads nothing takes a while to fill up, and then no more for ever.
            let written = timeout(FIRST_BYTE, self.line.write_all(&self.request)).await;
            written.unwrap_or_else(|_| Err(io::ErrorKind::WriteZero.into())).map_err(Error::Line)?;
            let outcome = self.wait_for_answer(register, |answer| match answer.status {
                Status::OK => decode(answer.data).map_err(Wrong::Malformed),
                status => Err(Wrong::Refused(status)),
            });
            let outcome = outcome.await.map_err(Error::Line)?;
            self.trace.outcome(outcome.is_ok());
            if matches!(outcome, Ok(_) | Err(Wrong::Refused(_))) {
                // A line keeps the order: what was asked before is answered before, or never.
                if !in_doubt {
                    self.doubtful.clear();
                    // But for the tries of this question itself.
                    self.doubtful.extend((attempt > 0).then_some(register));
                }
            } else if !self.doubtful.contains(&register) {
                self.doubtful.push(register);
            }
            match outcome {
                Ok(message) => return Ok(message),
                Err(Wrong::Refused(status)) => return Err(Error::Refused { register, status }),
                Err(Wrong::Missing { bytes: 0 }) => {
                    self.tally.timeouts += 1;
                    continue;
                }
                Err(Wrong::Missing { bytes }) => heard = Heard::OtherBytes(bytes),
                Err(Wrong::Malformed(malformed)) => heard = Heard::Malformed(malformed),
            }
            self.tally.checksum_errors += 1;
        }
        Err(Error::NoAnswer { register, heard })
    }

    /// Gets older answers out of the way: an answer does not tell which of two equal questions it answers, but it comes
    /// behind the answers to all that was asked before. So it asks what is not itself in doubt.
    async fn flush(&mut self) -> Result<(), Error> {
        if self.doubtful.contains(&register::NAME) {
            self.counters().await.map(drop)
        } else {
            self.name().await.map(drop)
        }
    }

    /// After a poll that brought its answers though nothing came to `flush`: the board tells neither, and is not to be
    /// asked in vain at every poll from now on.
    fn give_up_flushing(&mut self) {
        if [register::NAME, register::COUNTERS].iter().all(|register| self.doubtful.contains(register)) {
            self.doubtful.clear();
        }
    }

    /// Reads until an answer of this register is there or time is up. Whatever else comes (echoes, noise, answers
    /// to older questions, frames of other protocols) is dropped.
    async fn wait_for_answer<M>(
        &mut self,
        register: u8,
        judge: impl Fn(Answer<'_>) -> Result<M, Wrong>,
    ) -> io::Result<Result<M, Wrong>> {
        let asked = Instant::now();
        let mut pause = asked;
        let mut bytes = 0;
        loop {
            // Echoes and noise that are done with are no beginning of an answer.
            let deadline = match self.buffer.is_empty() {
                true => asked + FIRST_BYTE,
                false => pause.min(asked + WHOLE_ANSWER),
            };
            match timeout_at(deadline, self.line.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(count)) => {
                    bytes += count;
                    pause = Instant::now() + PAUSE;
                }
                Ok(Err(error)) => return Err(error),
                // The true answer may lie behind a false start that claims more bytes than will ever come.
                Err(_) if self.buffer.is_empty() => return Ok(Err(Wrong::Missing { bytes })),
                Err(_) => drop_front(&mut self.trace, &mut self.buffer, 1, "incomplete"),
            }
            if let Some(answer) = self.take_answer(register, &judge) {
                return Ok(answer);
            }
        }
    }

    /// The answer to this register's question, if the buffer holds it; drops all that lies before it.
    fn take_answer<M>(
        &mut self,
        register: u8,
        judge: impl Fn(Answer<'_>) -> Result<M, Wrong>,
    ) -> Option<Result<M, Wrong>> {
        loop {
            match parse(&self.buffer) {
                Parsed::Incomplete => return None,
                Parsed::Noise(count, fault) => {
                    drop_front(&mut self.trace, &mut self.buffer, count, fault);
                }
                Parsed::Frame(Frame::Answer(answer), length) if answer.register == register => {
                    self.trace.response(&self.buffer[..length]);
                    let judged = judge(answer);
                    self.buffer.drain(..length);
                    return Some(judged);
                }
                Parsed::Frame(Frame::Answer(_), length) => {
                    drop_front(&mut self.trace, &mut self.buffer, length, "an answer to another question");
                }
                Parsed::Frame(Frame::Request(_), length) => {
                    drop_front(&mut self.trace, &mut self.buffer, length, "an echo");
                }
            }
        }
    }

    /// What lies on the line before a question is asked cannot be its answer.
    async fn discard_what_came_late(&mut self) -> Result<(), Error> {
        // A line that babbles faster than it is read would keep this going: some is enough, the rest is noise.
        const MOST: usize = 4096;
        let mut discarded = std::mem::take(&mut self.buffer);
        let line = &mut self.line;
        let drained = poll_fn(|context| {
            while discarded.len() < MOST {
                let mut chunk = [0; 256];
                let mut chunk = ReadBuf::new(&mut chunk);
                match Pin::new(&mut *line).poll_read(context, &mut chunk) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) if chunk.filled().is_empty() => {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Poll::Ready(Ok(())) => discarded.extend(chunk.filled()),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                }
            }
            Poll::Ready(Ok(()))
        });
        drained.await.map_err(Error::Line)?;
        let count = discarded.len();
        if count > 0 {
            drop_front(&mut self.trace, &mut discarded, count, "came before the question");
        }
        // The same memory again: a poll allocates nothing for the line.
        self.buffer = discarded;
        Ok(())
    }
}

/// What is wrong with one try.
enum Wrong {
    Missing { bytes: usize },
    Malformed(Malformed),
    Refused(Status),
}

fn drop_front(trace: &mut Trace, buffer: &mut Vec<u8>, count: usize, why: impl fmt::Display) {
    trace.dropped(&buffer[..count], why);
    buffer.drain(..count);
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
        Err(Error::Line(error)) => Err(Error::Line(error)),
        Err(absent) => {
            debug!("{absent}");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jbd::frame::{Frame, frames};
    use tokio::io::{DuplexStream, duplex};

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
    fn scripted(script: Vec<Vec<u8>>) -> (Board<DuplexStream>, tokio::task::JoinHandle<Vec<u8>>) {
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
        (Board::new(here), asked)
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
        assert_eq!(began.elapsed(), FIRST_BYTE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_board_is_given_up_after_three_questions() {
        let began = Instant::now();
        let (reading, asked) = poll(&[SILENCE; 4]).await;
        assert!(matches!(reading, Err(Error::NoAnswer { register: 3, heard: Heard::Nothing })));
        assert_eq!(asked, [0x03; 3]);
        assert_eq!(began.elapsed(), FIRST_BYTE * 3);
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
        assert_eq!(board.take_tally(), Tally { retries: 4, timeouts: 4, checksum_errors: 1 });
        assert_eq!(board.take_tally(), Tally::default());
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
        let mut board = Board::new(here);
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
        let mut board = Board::new(here);
        let mut old = INFO.to_vec();
        old[4..6].copy_from_slice(&[0x0B, 0x69]); // 29.21 V, and the same sum
        let answering = async {
            for _ in 0..TRIES {
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
        let reading = Board::new(here).poll().await;
        assert!(matches!(reading, Err(Error::NoAnswer { heard: Heard::OtherBytes(_), .. })));
        assert!(began.elapsed() <= WHOLE_ANSWER * 3 + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_hangs_up_is_broken() {
        let (here, there) = duplex(64);
        drop(there);
        assert!(matches!(Board::new(here).poll().await, Err(Error::Line(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_takes_no_more_bytes_is_broken() {
        let (here, _nobody_reads) = duplex(4);
        assert!(matches!(Board::new(here).poll().await, Err(Error::Line(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn name_and_counters_may_be_missing() {
        let name = [0xDD, 0x05, 0x00, 0x03, b'J', b'B', b'D', 0xFF, 0x2D, 0x77];
        let (mut board, _asked) = scripted(vec![name.to_vec()]);
        assert_eq!(board.name().await.unwrap().as_deref(), Some("JBD"));
        assert_eq!(board.counters().await.unwrap(), None);
    }
}
