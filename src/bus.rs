//! An open link with the boards on it: one exchange at a time. Knows no protocol.
//!
//! Boards never talk unasked and respond in tens of milliseconds, so the next request goes out when the last byte of a
//! response has come. Two requests are never under way.

use std::borrow::Cow;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};

use crate::link::Timing;
use crate::stop::Stop;
use crate::trace::Trace;

/// A response of any protocol so far is shorter.
const USUAL_RESPONSE: usize = 512;

/// What the beginning of the bytes that have come is, to whoever waits for a response.
#[derive(Debug)]
pub enum Found<T> {
    /// It may become the response with more bytes.
    NotYet,
    /// This many bytes are not the response, and why.
    Drop(usize, Cow<'static, str>),
    /// The response, and the number of bytes it takes.
    This(T, usize),
}

/// Why an exchange brought no response, sorted by what the caller does about it.
#[derive(Debug)]
pub enum Error {
    /// The link is broken: open it again.
    Broken(io::Error),
    /// It did not come in time. So many bytes of something else did.
    NoResponse { bytes: usize },
    /// All is to end: the request was not sent.
    Stopped,
}

impl Error {
    fn because(kind: io::ErrorKind) -> Error {
        Error::Broken(kind.into())
    }
}

/// What went wrong on the way to a board, whether or not asking again made it good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests sent again.
    pub retries: u64,
    /// Requests, first or again, after which nothing came.
    pub timeouts: u64,
    /// Requests, first or again, after which something came and no right response among it.
    pub checksum_errors: u64,
}

/// One open link.
pub struct Bus<L> {
    link: L,
    timing: Timing,
    /// Looked at before each exchange: one that has begun is ended in order.
    stop: Stop,
    /// What has come and is not yet part of a response.
    buffer: Vec<u8>,
    trace: Trace,
}

impl<L: AsyncRead + AsyncWrite + Unpin> Bus<L> {
    pub fn new(link: L, timing: Timing, stop: Stop) -> Bus<L> {
        Bus { link, timing, stop, buffer: Vec::with_capacity(USUAL_RESPONSE), trace: Trace::default() }
    }

    pub const fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Sends the request once, and waits for what `find` takes for its response.
    ///
    /// What lies on the line before the request cannot be its response, and is dropped; so is whatever else comes
    /// (echoes, noise, responses to older requests, frames of other protocols).
    ///
    /// # Errors
    /// Every [`Error`].
    pub async fn exchange<T>(
        &mut self,
        request: &[u8],
        find: impl FnMut(&[u8]) -> Found<T>,
    ) -> Result<T, Error> {
        if self.stop.is_wanted() {
            return Err(Error::Stopped);
        }
        self.drop_what_came_before().await?;
        self.trace.request(request);
        // A line whose other end reads nothing takes a while to fill up, and then no more for ever.
        match timeout(self.timing.first_byte, self.link.write_all(request)).await {
            Ok(written) => written.map_err(Error::Broken)?,
            Err(_) => return Err(Error::because(io::ErrorKind::WriteZero)),
        }
        self.wait_for_response(find).await
    }

    /// For who watches the line: a poll begins.
    pub fn poll_begins(&self) {
        self.trace.poll();
    }

    /// For who watches the line: has the exchange brought what was asked for?
    pub fn judged(&self, good: bool) {
        self.trace.outcome(good);
    }

    async fn wait_for_response<T>(&mut self, mut find: impl FnMut(&[u8]) -> Found<T>) -> Result<T, Error> {
        let asked = Instant::now();
        let mut pause = asked;
        let mut bytes = 0;
        loop {
            // Echoes and noise that are done with are no beginning of a response.
            let deadline = match self.buffer.is_empty() {
                true => asked + self.timing.first_byte,
                false => pause.min(asked + self.timing.whole_response),
            };
            match timeout_at(deadline, self.link.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(Error::because(io::ErrorKind::UnexpectedEof)),
                Ok(Ok(count)) => {
                    bytes += count;
                    pause = Instant::now() + self.timing.pause;
                }
                Ok(Err(error)) => return Err(Error::Broken(error)),
                Err(_) if self.buffer.is_empty() => return Err(Error::NoResponse { bytes }),
                // The true response may lie behind a false start that claims more bytes than will ever come.
                Err(_) => drop_front(&mut self.trace, &mut self.buffer, 1, "incomplete"),
            }
            if let Some(response) = self.take_response(&mut find) {
                return Ok(response);
            }
        }
    }

    /// The response, if the buffer holds it; drops all that lies before it.
    fn take_response<T>(&mut self, find: &mut impl FnMut(&[u8]) -> Found<T>) -> Option<T> {
        while !self.buffer.is_empty() {
            match find(&self.buffer) {
                Found::NotYet => return None,
                Found::Drop(count, why) => drop_front(&mut self.trace, &mut self.buffer, count, why),
                Found::This(response, length) => {
                    self.trace.response(&self.buffer[..length]);
                    self.buffer.drain(..length);
                    return Some(response);
                }
            }
        }
        None
    }

    async fn drop_what_came_before(&mut self) -> Result<(), Error> {
        // A line that babbles faster than it is read would keep this going: some is enough, the rest is noise.
        const MOST: usize = 4096;
        let mut came = std::mem::take(&mut self.buffer);
        let link = &mut self.link;
        let drained = poll_fn(|context| {
            while came.len() < MOST {
                let mut chunk = [0; 256];
                let mut chunk = ReadBuf::new(&mut chunk);
                match Pin::new(&mut *link).poll_read(context, &mut chunk) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) if chunk.filled().is_empty() => {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Poll::Ready(Ok(())) => came.extend(chunk.filled()),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                }
            }
            Poll::Ready(Ok(()))
        });
        drained.await.map_err(Error::Broken)?;
        let count = came.len();
        if count > 0 {
            drop_front(&mut self.trace, &mut came, count, "came before the request");
        }
        // The same memory again: a poll allocates nothing for the line.
        self.buffer = came;
        Ok(())
    }
}

fn drop_front(trace: &mut Trace, buffer: &mut Vec<u8>, count: usize, why: impl fmt::Display) {
    trace.dropped(&buffer[..count], why);
    buffer.drain(..count);
}
