//! A board of any protocol, asked over a bus that it is lent. The one place that knows which protocols there are.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::bus::{Bus, Tally};
use crate::jbd;
use crate::link::Timing;
use crate::pack::reading::{Counters, Reading};
use crate::pack::state::Identity;
use crate::pack::tracker::{FailureKind, Parts};
use crate::stop::Stop;

pub enum Board {
    Jbd(jbd::board::Board),
}

/// Why a board did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    Jbd(jbd::board::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Jbd(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<jbd::board::Error> for Error {
    fn from(error: jbd::board::Error) -> Error {
        Error::Jbd(error)
    }
}

impl Error {
    /// What it means for the pack; `None` when the exchange was not to begin any more, because all is to end.
    pub const fn kind(&self) -> Option<FailureKind> {
        match self {
            Error::Jbd(error) => error.kind(),
        }
    }

    /// Is the link to be opened again before the next request?
    pub const fn broke_the_link(&self) -> bool {
        matches!(self.kind(), Some(FailureKind::Broken))
    }
}

impl Default for Board {
    fn default() -> Board {
        Board::Jbd(jbd::board::Board::default())
    }
}

impl Board {
    /// Who makes boards of this protocol.
    pub const fn maker(&self) -> &'static str {
        match self {
            Board::Jbd(_) => jbd::MAKER,
        }
    }

    /// One poll.
    ///
    /// # Errors
    /// When the board does not answer, refuses everything, or the link breaks.
    pub async fn poll<L>(&mut self, bus: &mut Bus<L>, parts: Parts) -> Result<Reading, Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        bus.poll_begins();
        match self {
            Board::Jbd(board) => Ok(match parts {
                Parts::All => board.poll(bus).await?,
                Parts::Totals => board.poll_totals(bus).await?,
            }),
        }
    }

    /// What the board says of itself.
    ///
    /// # Errors
    /// When the link breaks.
    pub async fn identity<L>(&mut self, bus: &mut Bus<L>) -> Result<Identity, Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        match self {
            Board::Jbd(board) => Ok(Identity { maker: jbd::MAKER, model: board.name(bus).await? }),
        }
    }

    /// How often each protection has tripped; `None` when the board does not tell it.
    ///
    /// # Errors
    /// When the link breaks.
    pub async fn counters<L>(&mut self, bus: &mut Bus<L>) -> Result<Option<Counters>, Error>
    where
        L: AsyncRead + AsyncWrite + Unpin,
    {
        match self {
            Board::Jbd(board) => Ok(board.counters(bus).await?),
        }
    }

    /// What went wrong since this was last asked.
    pub fn take_tally(&mut self) -> Tally {
        match self {
            Board::Jbd(board) => board.take_tally(),
        }
    }

    /// Nothing that was asked on another link is answered on this one.
    pub fn link_opened(&mut self) {
        match self {
            Board::Jbd(board) => board.link_opened(),
        }
    }
}

/// A board that has a bus to itself, for who asks it without a bridge.
pub struct Direct<L> {
    board: Board,
    bus: Bus<L>,
}

impl<L: AsyncRead + AsyncWrite + Unpin> Direct<L> {
    pub fn new(link: L, timing: Timing) -> Direct<L> {
        Direct { board: Board::default(), bus: Bus::new(link, timing, Stop::never()) }
    }

    /// # Errors
    /// As [`Board::poll`].
    pub async fn poll(&mut self) -> Result<Reading, Error> {
        self.board.poll(&mut self.bus, Parts::All).await
    }

    /// # Errors
    /// As [`Board::poll`].
    pub async fn poll_totals(&mut self) -> Result<Reading, Error> {
        self.board.poll(&mut self.bus, Parts::Totals).await
    }

    /// # Errors
    /// As [`Board::identity`].
    pub async fn identity(&mut self) -> Result<Identity, Error> {
        self.board.identity(&mut self.bus).await
    }

    /// # Errors
    /// As [`Board::counters`].
    pub async fn counters(&mut self) -> Result<Option<Counters>, Error> {
        self.board.counters(&mut self.bus).await
    }

    /// As [`Board::take_tally`].
    pub fn take_tally(&mut self) -> Tally {
        self.board.take_tally()
    }
}
