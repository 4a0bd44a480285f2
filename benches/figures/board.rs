//! Boards on pseudo-terminals that answer as wanted, and note when.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bms2mqtt::jbd::frame::{Answer, Frame, Status, frames};
use bms2mqtt::jbd::message::{BasicInfo, CellVoltages, register};
use bms2mqtt::jbd::simulator::{Pace, Pack, Reply, serve, terminal};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::machine::{Result, Worker, wait_for};
use crate::support::{BANK, COUNTERS, NAME, bytes};

/// What boards speak.
pub const BAUD: u32 = 9600;
/// The cell that changes where one does: between the lowest and the highest, so that only it and the average move.
pub const CHANGING_CELL: usize = 3;

/// How one poll's answer differs from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Nothing,
    /// One cell goes up and down by 1 mV.
    OneCell,
    /// Every cell does, all of them at once.
    EveryCell,
}

/// The captured 16-cell pack with as many cells as wanted, and at rest: energy, which grows by itself, stands still.
pub struct Battery {
    info: BasicInfo,
    cells: CellVoltages,
}

impl Battery {
    pub fn of(cells: usize) -> Result<Battery> {
        let [info, voltages] = BANK.map(bytes);
        let data = |bytes| match frames(bytes).next() {
            Some(Frame::Answer(answer)) => Ok(answer.data),
            _ => Err("the captured answers are none"),
        };
        let info = BasicInfo::decode(data(&info)?)?;
        let voltages = CellVoltages::decode(data(&voltages)?)?.0;
        let voltages = voltages.iter().cycle().take(cells).copied().collect();
        let info = BasicInfo { current: 0, cell_count: cells.try_into()?, ..info };
        Ok(Battery { info, cells: CellVoltages(voltages) })
    }

    /// Both answers of a poll, after this change.
    pub fn answers(&self, change: Change) -> [Vec<u8>; 2] {
        let mut cells = self.cells.clone();
        match change {
            Change::Nothing => {}
            Change::OneCell => cells.0[CHANGING_CELL - 1] += 1,
            Change::EveryCell => cells.0.iter_mut().for_each(|cell| *cell += 1),
        }
        [(register::BASIC_INFO, self.info.encode()), (register::CELL_VOLTAGES, cells.encode())].map(
            |(register, data)| {
                let mut bytes = Vec::new();
                Answer { register, status: Status::OK, data: &data }.encode(&mut bytes);
                bytes
            },
        )
    }

    /// What a poll cannot be faster than: two requests of 7 bytes and both answers, 10 bits a byte.
    pub fn wire_time(&self, baud: u32) -> Duration {
        let answers: usize = self.answers(Change::Nothing).iter().map(Vec::len).sum();
        Duration::from_secs(10 * (2 * 7 + answers) as u64) / baud
    }
}

/// One question and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    pub register: u8,
    /// Was the answer the changed one?
    pub changed: bool,
    /// When the question's last byte was read.
    pub asked: Instant,
    /// When the answer's last byte had been written.
    pub answered: Instant,
}

/// Called as a poll begins.
type Observer = Box<dyn FnMut() + Send>;

struct State {
    answers: BTreeMap<u8, Vec<u8>>,
    /// The cells, changed.
    other_cells: Vec<u8>,
    /// From this poll on every answer differs from the one before.
    change_from: u64,
    changed: bool,
    polls: u64,
    /// From here on silent.
    last_poll: u64,
    exchanges: Vec<Exchange>,
    last_read: Instant,
    observer: Option<Observer>,
}

/// Ends with its owner.
pub struct Board {
    pub port: String,
    state: Shared,
    _worker: Arc<Worker>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Board {
    /// As many as wanted, on one thread, which answer without changes until told.
    pub fn start_many(count: usize, battery: &Battery, change: Change, pace: Pace) -> Result<Vec<Board>> {
        let [info, cells] = battery.answers(Change::Nothing);
        let [_, other_cells] = battery.answers(change);
        let answers = BTreeMap::from([
            (register::BASIC_INFO, info),
            (register::CELL_VOLTAGES, cells),
            (register::NAME, bytes(NAME)),
            (register::COUNTERS, bytes(COUNTERS)),
        ]);
        let states: Vec<Shared> = (0..count)
            .map(|_| {
                Shared(Arc::new(Mutex::new(State {
                    answers: answers.clone(),
                    other_cells: other_cells.clone(),
                    change_from: u64::MAX,
                    changed: false,
                    polls: 0,
                    last_poll: u64::MAX,
                    exchanges: Vec::new(),
                    last_read: Instant::now(),
                    observer: None,
                })))
            })
            .collect();
        let serving = states.clone();
        let (ports, worker) = Worker::start(async move || {
            let mut ports = Vec::new();
            for mut state in serving {
                let (terminal, line) = terminal(None)?;
                ports.push(terminal.path().display().to_string());
                let line = Noted { line, state: state.clone() };
                // Ends with the runtime, which is the worker's.
                tokio::spawn(async move {
                    let _keep = terminal;
                    let _ = serve(line, &mut state, pace).await;
                });
            }
            Ok((ports, std::future::pending::<()>()))
        })?;
        let worker = Arc::new(worker);
        let board = |(port, state)| Board { port, state, _worker: Arc::clone(&worker) };
        Ok(ports.into_iter().zip(states).map(board).collect())
    }

    /// How many polls have begun.
    pub fn polls(&self) -> u64 {
        self.state.with(|state| state.polls)
    }

    /// From now on every poll differs from the one before.
    pub fn change(&self) {
        self.state.with(|state| state.change_from = 0);
    }

    /// What has been asked and answered since this was last called.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.state.with(|state| std::mem::take(&mut state.exchanges))
    }

    /// Calls `observer` at the beginning of so many polls, when the one before is over and done with, and returns what
    /// it said.
    pub fn observe<T: Send + 'static>(
        &self,
        polls: usize,
        mut observer: impl FnMut() -> T + Send + 'static,
    ) -> Result<Vec<T>> {
        let seen = Arc::new(Mutex::new(Vec::with_capacity(polls)));
        let note = Arc::clone(&seen);
        let observer = move || {
            let mut seen = note.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.len() < polls {
                seen.push(observer());
            }
        };
        self.state.with(|state| state.observer = Some(Box::new(observer)));
        wait_for("polls", || {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            (seen.len() == polls).then(|| std::mem::take(&mut *seen))
        })
    }

    /// Lets the board change for so many polls, from this one on, and be silent to the next question. The program waits
    /// for it then, and has done exactly so much.
    pub fn change_and_hold(&self, from: u64, polls: u64) -> Result<()> {
        let next = from + polls;
        let in_time = self.state.with(|state| {
            (state.change_from, state.last_poll) = (from, next - 1);
            state.polls < from
        });
        if !in_time {
            return Err(format!("poll {from} has begun").into());
        }
        wait_for("polls", || (self.polls() >= next).then_some(()))
    }
}

impl Pack for Shared {
    fn answer(&mut self, register: u8) -> Reply {
        self.with(|state| {
            if register == register::BASIC_INFO {
                state.polls += 1;
                if let Some(observer) = &mut state.observer {
                    observer();
                }
            }
            if state.polls > state.last_poll {
                return Reply::Silent;
            }
            state.changed ^= register == register::CELL_VOLTAGES && state.polls >= state.change_from;
            let (changed, asked) = (state.changed, state.last_read);
            state.exchanges.push(Exchange { register, changed, asked, answered: asked });
            match state.answers.get(&register) {
                Some(_) if register == register::CELL_VOLTAGES && changed => {
                    Reply::Verbatim(state.other_cells.clone())
                }
                Some(answer) => Reply::Verbatim(answer.clone()),
                None => Reply::Refused(Status::NO_SUCH_REGISTER),
            }
        })
    }
}

/// Notes when bytes came and went.
struct Noted<S> {
    line: S,
    state: Shared,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.line).poll_read(context, buffer);
        if outcome.is_ready() {
            self.state.with(|state| state.last_read = Instant::now());
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.line).poll_write(context, bytes);
        let now = Instant::now();
        self.state.with(|state| {
            if let Some(exchange) = state.exchanges.last_mut() {
                exchange.answered = now;
            }
        });
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_shutdown(context)
    }
}
