//! The smallest program that asks a board as often as the bridge does: the floor.
//!
//! It sleeps until the next poll, writes a request and reads until the answer is complete, for both registers; it
//! looks at nothing but the length, and tells nobody. It blocks in everything and allocates nothing. Where answers
//! come in pieces it sleeps until the whole can be there, which it knows from the poll before.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::termios::{BaudRate, SetArg, cfmakeraw, cfsetspeed, tcgetattr, tcsetattr};

use crate::machine::Result;

/// `figures --bare PORT BAUD MILLISECONDS`
pub const ARGUMENT: &str = "--bare";

/// Reads of registers 0x03 and 0x04.
const REQUESTS: [[u8; 7]; 2] =
    [[0xDD, 0xA5, 0x03, 0x00, 0xFF, 0xFD, 0x77], [0xDD, 0xA5, 0x04, 0x00, 0xFF, 0xFC, 0x77]];
/// Bytes before the data and behind it.
const HEAD: usize = 4;
const REST: usize = 3;

pub fn run(port: &str, baud: &str, interval: &str) -> Result<bool> {
    let speed = match baud {
        "9600" => BaudRate::B9600,
        "115200" => BaudRate::B115200,
        _ => return Err(format!("{baud} is not a speed of this program's").into()),
    };
    let interval = Duration::from_millis(interval.parse()?);
    let mut options = OpenOptions::new();
    let port = options.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(port)?;
    let mut settings = tcgetattr(&port)?;
    cfmakeraw(&mut settings);
    cfsetspeed(&mut settings, speed)?;
    tcsetattr(&port, SetArg::TCSANOW, &settings)?;

    let mut line = Line { port, byte_time: Duration::from_secs(10) / baud.parse()?, in_pieces: false };
    let mut lengths = [0; 2];
    let mut next = Instant::now();
    loop {
        for (request, length) in REQUESTS.iter().zip(&mut lengths) {
            *length = line.ask(request, *length)?;
        }
        // As the bridge: a poll that took longer than the interval skips what it missed.
        let now = Instant::now();
        while next <= now {
            next += interval;
        }
        sleep(next - now);
    }
}

struct Line {
    port: File,
    /// Of ten bits.
    byte_time: Duration,
    /// Has an answer come in pieces?
    in_pieces: bool,
}

impl Line {
    /// The answer's length, given that of the one before.
    fn ask(&mut self, request: &[u8], before: usize) -> Result<usize> {
        self.port.write_all(request)?;
        if self.in_pieces {
            sleep(self.byte_time * (request.len() + before) as u32);
        }
        let mut answer = [0; HEAD + 255 + REST];
        let (mut length, mut reads) = (0, 0);
        while length < HEAD || length < HEAD + usize::from(answer[HEAD - 1]) + REST {
            match self.port.read(&mut answer[length..])? {
                0 => return Err("the line hung up".into()),
                count => length += count,
            }
            reads += 1;
        }
        self.in_pieces |= reads > 1;
        Ok(length)
    }
}
