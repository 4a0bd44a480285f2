//! What can be counted exactly, with a bound for each: a count above its bound fails.
//!
//! Nothing here looks at a clock, so it says the same on a machine that is busy. Allocations are those of a bridge on
//! a thread of this process; what goes to the broker and to the kernel is the real program's.

#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell as Local;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use bms2mqtt::bridge;
use bms2mqtt::cli::Cli;
use bms2mqtt::config::Config;
use clap::Parser;
use tokio::sync::oneshot;

use crate::Place;
use crate::board::Change;
use crate::machine::{Result, runtime, wait_for};
use crate::program::{CONFIG, Of, Rig, Setup, Surroundings, Under, settle};
use crate::syscalls::{cannot_trace, least_work};
use crate::table::{Aim, Cell, Table, median};
use crate::traffic;

pub const FIGURES: &str = "count of allocations, packets, bytes, system calls per unchanged poll, every cell";

// What they are today. A change that lowers one lowers its bound; one that must raise it says why.
/// Of each unchanged poll, answers at once.
const ALLOCATIONS: f64 = 0.0;
/// To read and to write, each twice for an answer: to find the line empty, too, and to tell the timer of a new deadline.
/// How often it waits for more depends on when the bytes meet it, and is not counted.
const SYSTEM_CALLS: f64 = 8.0;
/// 16 cells, minimum, maximum and average.
const PACKETS_OF_EVERY_CELL: f64 = 19.0;
const BYTES_OF_EVERY_CELL: f64 = 728.0;

const POLLS: usize = 100;

/// The system's allocator, which counts for the threads that want it.
pub struct Counting;

static ALLOCATED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_COUNTED: Local<bool> = const { Local::new(false) };
}

fn count() {
    if IS_COUNTED.get() {
        ALLOCATED.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is the system's allocator's; a thread-local without initializer or destructor allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    let subject = place.programs().this;
    let bridge = Bridge::start(&Setup::unpaced())?;
    let unchanged = Rig::start(&subject, &Setup::unpaced())?;
    let every_cell = Rig::start(&subject, &Setup { change: Change::EveryCell, ..Setup::unpaced() })?;
    let untraceable = cannot_trace();
    let traced = match untraceable {
        Some(_) => None,
        None => Some(Rig::start(&subject, &Setup { under: Under::Strace, ..Setup::unpaced() })?),
    };
    settle([&unchanged, &every_cell].into_iter().chain(&traced))?;

    let allocations = bridge.allocations_per_poll()?;
    table.row("count of allocations per unchanged poll", Of::only(allocations), Aim::Bound(ALLOCATIONS));
    let calls = match &traced {
        None => Cell::missing(untraceable.unwrap_or_default()),
        Some(rig) => Cell::count(least_work(rig)? as f64),
    };
    table.row(
        "count of system calls per unchanged poll, waiting apart",
        Of::only(calls),
        Aim::Bound(SYSTEM_CALLS),
    );
    let unchanged = traffic::per_poll(&unchanged)?;
    table.row("count of packets per unchanged poll", Of::only(unchanged.packets()), Aim::Bound(0.0));
    let every_cell = traffic::per_poll(&every_cell)?;
    table.row(
        "count of packets per poll, every cell ±1 mV",
        Of::only(every_cell.packets()),
        Aim::Bound(PACKETS_OF_EVERY_CELL),
    );
    table.row(
        "count of bytes per poll, every cell ±1 mV",
        Of::only(every_cell.bytes()),
        Aim::Bound(BYTES_OF_EVERY_CELL),
    );
    Ok(())
}

/// A bridge on a thread of this process.
struct Bridge {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    around: Surroundings,
}

impl Bridge {
    fn start(setup: &Setup) -> Result<Bridge> {
        let around = Surroundings::start(setup)?;
        let file = around.directory.path().join(CONFIG);
        let arguments =
            ["bms2mqtt", "run", "--config"].map(Into::into).into_iter().chain([file.into_os_string()]);
        let config = Config::load(&Cli::try_parse_from(arguments)?.options)?;
        let runtime = runtime()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            IS_COUNTED.set(true);
            runtime.block_on(bridge::run(config, async {
                let _ = stopped.await;
            }));
            IS_COUNTED.set(false);
        });
        Ok(Bridge { stop: Some(stop), thread: Some(thread), around })
    }

    /// Of the poll that has the middle number of them, and of that with the most.
    fn allocations_per_poll(&self) -> Result<Cell> {
        wait_for("the bridge in this process", || (self.around.board().polls() > 3).then_some(()))?;
        let marks = self.around.board().observe(POLLS + 1, || ALLOCATED.load(Ordering::Relaxed))?;
        let polls: Vec<u64> = marks.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let most = polls.iter().max().copied().unwrap_or_default();
        let typical = median(polls);
        let text = if most == typical { typical.to_string() } else { format!("{typical} (once {most})") };
        Ok(Cell::new(typical as f64, text))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
