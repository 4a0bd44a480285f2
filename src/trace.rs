//! What `-d` shows of the wire: every request, what came, and whether its checksum is right.
//!
//! It goes to the log. Of a program that is called `smart_bms` it goes to standard output, in the
//! words of that program: `ZAPROS` is a request, `OTVET` a response, `rashet` its evaluation.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::debug;

use crate::hex::Hex;

static AS_SMART_BMS: AtomicBool = AtomicBool::new(false);

/// From now on, in the words of `smart_bms` on standard output.
pub fn speak_as_smart_bms() {
    AS_SMART_BMS.store(true, Ordering::Relaxed);
}

pub fn speaks_as_smart_bms() -> bool {
    AS_SMART_BMS.load(Ordering::Relaxed)
}

/// One bus's.
#[derive(Default)]
pub struct Trace {
    /// What came since the request, as `smart_bms` shows it: in one piece.
    heard: Vec<u8>,
    /// Is there a frame with a right checksum at its end, and how long is it?
    frame: Option<usize>,
}

impl Trace {
    pub fn poll(&self) {
        if speaks_as_smart_bms() {
            say("\n\n");
        }
    }

    pub fn request(&mut self, bytes: &[u8]) {
        if !speaks_as_smart_bms() {
            debug!("→ {}", Hex(bytes));
            return;
        }
        self.heard.clear();
        self.frame = None;
        let number = match bytes.get(2) {
            Some(0x03) => 0,
            Some(0x04) => 1,
            Some(0x05) => 2,
            _ => 3,
        };
        say(&format!("ZAPROS {number}: {}\n", Digits(bytes)));
    }

    pub fn response(&mut self, bytes: &[u8]) {
        if speaks_as_smart_bms() {
            self.heard.extend(bytes);
            self.frame = Some(bytes.len());
        } else {
            debug!("← {} (checksum right)", Hex(bytes));
        }
    }

    pub fn dropped(&mut self, bytes: &[u8], why: impl fmt::Display) {
        if speaks_as_smart_bms() {
            self.heard.extend(bytes);
        } else {
            debug!("← {} (dropped: {why})", Hex(bytes));
        }
    }

    /// The end of one try: has it brought what was asked for?
    pub fn outcome(&self, good: bool) {
        if !speaks_as_smart_bms() {
            return;
        }
        let mut text = String::new();
        let frame = &self.heard[self.heard.len() - self.frame.unwrap_or(self.heard.len())..];
        if !self.heard.is_empty() {
            let verdict = if self.frame.is_some() { " => OK\n" } else { " => NOT ok !!!!" };
            let _ = write!(text, "OTVET: {}\nCRC: {:x}{verdict}", Digits(&self.heard), checksum(frame));
        }
        let _ = write!(text, "   n = {}", self.heard.len());
        match frame.get(1) {
            Some(register) if good => {
                let _ = write!(text, "  rashet: {register}  tRUE\n\n");
            }
            _ => text.push_str("  fALSE\n\n"),
        }
        say(&text);
    }
}

/// Of what claims to be a response, as far as it has come.
fn checksum(frame: &[u8]) -> u16 {
    let end = frame.get(3).map_or(0, |&length| 4 + usize::from(length));
    let summed = frame.get(2..end).or(frame.get(2..)).unwrap_or_default();
    summed.iter().fold(0_u16, |sum, &byte| sum.wrapping_sub(byte.into()))
}

/// A reader that has gone away is found out by the next line of JSON.
fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// As `%X ` shows each byte.
struct Digits<'a>(&'a [u8]);

impl fmt::Display for Digits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:X} "))
    }
}
