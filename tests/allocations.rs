//! A poll asks for no memory: from the bytes of 32 cells and 8 temperatures to the reading, nothing is allocated.

#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bms2mqtt::board::Direct;
use bms2mqtt::jbd::frame::{Answer, Status};
use bms2mqtt::jbd::message::{BasicInfo, CellVoltages, register};
use bms2mqtt::link::Timing;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The system's, which counts what this thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: it all is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A line with a board at its other end, that answers in two pieces and keeps the reader waiting for each.
struct Scripted {
    info: Vec<u8>,
    cells: Vec<u8>,
    asked: u8,
    said: usize,
    ready: bool,
}

impl AsyncRead for Scripted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        let answer = match line.asked {
            register::BASIC_INFO => &line.info,
            register::CELL_VOLTAGES => &line.cells,
            _ => return Poll::Pending,
        };
        if line.said == answer.len() {
            return Poll::Pending;
        }
        line.ready = !line.ready;
        if line.ready {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let end = if line.said == 0 { answer.len() / 2 } else { answer.len() };
        buffer.put_slice(&answer[line.said..end]);
        line.said = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, request: &[u8]) -> Poll<io::Result<usize>> {
        self.asked = request[2];
        self.said = 0;
        Poll::Ready(Ok(request.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn answer(register: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Answer { register, status: Status::OK, data }.encode(&mut bytes);
    bytes
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_poll_allocates_nothing() {
    let info = BasicInfo { temperatures: [2981; 8].into(), cell_count: 32, ..BasicInfo::default() };
    let line = Scripted {
        info: answer(register::BASIC_INFO, &info.encode()),
        cells: answer(register::CELL_VOLTAGES, &CellVoltages([3333; 32].into()).encode()),
        asked: 0,
        said: 0,
        ready: false,
    };
    let mut board = Direct::new(line, Timing::SERIAL);
    let warm = board.poll().await.unwrap();
    assert_eq!((warm.cells.len(), warm.totals.as_ref().unwrap().temperatures.len()), (32, 8));

    let before = ALLOCATIONS.get();
    for _ in 0..100 {
        let reading = board.poll().await.unwrap();
        // What the poller does with it to find out that nothing has changed.
        assert!(reading == warm);
        black_box(reading);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    drop(black_box(vec![0; 8]));
    assert_eq!(ALLOCATIONS.get() - before, 1, "it does not count");
}
