//! Bytes ↔ frames of the JBD protocol, and finding a frame in noise. Pure: no clock, no I/O.
//!
//! ```text
//! request   DD  A5|5A  register  length  data…  checksum  77      A5 reads, 5A writes
//! answer    DD  register  status  length  data…  checksum  77
//! ```
//!
//! The checksum is the two's complement of the 16-bit sum of bytes 2 to 3 + length, high byte first: of
//! register, length and data in a request; of status, length and data in an answer (whose register it
//! does not cover). `DD` and `77` occur freely inside data and checksum, so a frame is what its length
//! byte and its checksum say, never what lies between two markers.

use std::fmt;

const START: u8 = 0xDD;
const END: u8 = 0x77;
const READ: u8 = 0xA5;
const WRITE: u8 = 0x5A;
/// Start, two head bytes, length, checksum and end: a frame without data.
const OVERHEAD: usize = 7;
/// The longest frame there can be: the length is one byte.
pub const LONGEST: usize = OVERHEAD + 255;

/// What a host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub register: u8,
    pub write: bool,
    pub data: &'a [u8],
}

impl<'a> Request<'a> {
    pub const fn read(register: u8) -> Request<'a> {
        Request { register, write: false, data: &[] }
    }

    /// Appends the request's bytes. Data over 255 bytes, which no request has, is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let direction = if self.write { WRITE } else { READ };
        encode(direction, self.register, self.data, out);
    }
}

/// What a board sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub register: u8,
    pub status: Status,
    pub data: &'a [u8],
}

impl Answer<'_> {
    /// Appends the answer's bytes. Data over 255 bytes, which no register has, is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode(self.register, self.status.0, self.data, out);
    }
}

/// The status byte of an answer ("common protocol V11"): anything but 0 is the board saying no.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    pub const OK: Status = Status(0x00);
    pub const NO_SUCH_REGISTER: Status = Status(0x80);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.0 {
            0x00 => "ok",
            0x80 => "no such register",
            0x81 => "refused: needs factory mode or a password",
            0x82 => "checksum error",
            0x83 => "wrong password",
            _ => "unknown status",
        };
        write!(f, "{:02X} ({meaning})", self.0)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Request(Request<'a>),
    Answer(Answer<'a>),
}

/// What the beginning of a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// It may become a frame with more bytes. "Not yet" is an answer, not an error.
    Incomplete,
    /// This many bytes belong to no frame and can be dropped.
    Noise(usize, Fault),
    /// A whole frame, and the number of bytes it takes.
    Frame(Frame<'a>, usize),
}

/// Why bytes are noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They come before any start byte.
    NoStart,
    /// Where the length byte says that the frame ends stands `found` instead of 77.
    NoEnd { found: u8 },
    /// The frame carries `found` where its bytes give `computed`.
    Checksum { found: u16, computed: u16 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NoStart => f.write_str("no start byte DD"),
            Fault::NoEnd { found } => write!(f, "ends with {found:02X} instead of 77"),
            Fault::Checksum { found, computed } => {
                write!(f, "checksum is {found:04X}, should be {computed:04X}")
            }
        }
    }
}

/// Looks at the beginning of `bytes`.
///
/// After a fault only the start byte is given up, because the true frame may begin inside the false one.
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    match bytes.iter().position(|&byte| byte == START) {
        None if bytes.is_empty() => return Parsed::Incomplete,
        None => return Parsed::Noise(bytes.len(), Fault::NoStart),
        Some(0) => {}
        Some(before) => return Parsed::Noise(before, Fault::NoStart),
    }
    let Some(&length) = bytes.get(3) else {
        return Parsed::Incomplete;
    };
    let total = OVERHEAD + usize::from(length);
    let Some(frame) = bytes.get(..total) else {
        return Parsed::Incomplete;
    };
    let data = &frame[4..total - 3];
    if frame[total - 1] != END {
        let found = frame[total - 1];
        return Parsed::Noise(1, Fault::NoEnd { found });
    }
    let found = u16::from_be_bytes([frame[total - 3], frame[total - 2]]);
    let computed = checksum(&frame[2..total - 3]);
    let is_request = matches!(frame[1], READ | WRITE);
    // Some boards say no with a checksum of 0000, whatever it should be (captured: `DD 00 81 00 00 00 77`).
    // A refusal carries no data, so nothing false can come in by accepting it.
    let bare_refusal = !is_request && frame[2] != Status::OK.0 && data.is_empty() && found == 0;
    if found != computed && !bare_refusal {
        return Parsed::Noise(1, Fault::Checksum { found, computed });
    }
    let frame = if is_request {
        Frame::Request(Request { register: frame[2], write: frame[1] == WRITE, data })
    } else {
        Frame::Answer(Answer { register: frame[1], status: Status(frame[2]), data })
    };
    Parsed::Frame(frame, total)
}

/// Every frame in bytes that are all there is: what stays incomplete at the end is noise too.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (frame, used) = match parse(rest) {
                Parsed::Frame(frame, used) => (Some(frame), used),
                Parsed::Noise(used, _) => (None, used),
                Parsed::Incomplete => (None, 1),
            };
            rest = &rest[used..];
            if frame.is_some() {
                return frame;
            }
        }
        None
    })
}

fn encode(second: u8, third: u8, data: &[u8], out: &mut Vec<u8>) {
    let length = u8::try_from(data.len()).unwrap_or(u8::MAX);
    let data = &data[..usize::from(length)];
    out.extend([START, second, third, length]);
    out.extend(data);
    let summed = out.len() - data.len() - 2;
    out.extend(checksum(&out[summed..]).to_be_bytes());
    out.push(END);
}

/// Masked to 16 bits: the sum of a plain acknowledgement is 0 and so is its checksum.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum: u16, &byte| sum.wrapping_add(byte.into())).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::Hex;

    /// The contract's answer to 0x04: eight cells.
    const CELLS: [u8; 23] = [
        0xDD, 0x04, 0x00, 0x10, // start, register, status, 16 bytes of data
        0x0D, 0x04, 0x0D, 0x05, 0x0D, 0x04, 0x0D, 0x04, // 3332 3333 3332 3332 mV
        0x0D, 0x06, 0x0D, 0x08, 0x0D, 0x03, 0x0D, 0x06, // 3334 3336 3331 3334 mV
        0xFF, 0x60, 0x77, // checksum, end
    ];

    fn answer(bytes: &[u8]) -> Option<Answer<'_>> {
        frames(bytes).find_map(|frame| match frame {
            Frame::Answer(answer) => Some(answer),
            Frame::Request(_) => None,
        })
    }

    #[test]
    fn requests_carry_the_checksums_of_the_document() {
        for (register, bytes) in [
            (0x03, [0xDD, 0xA5, 0x03, 0x00, 0xFF, 0xFD, 0x77]),
            (0x04, [0xDD, 0xA5, 0x04, 0x00, 0xFF, 0xFC, 0x77]),
            (0x05, [0xDD, 0xA5, 0x05, 0x00, 0xFF, 0xFB, 0x77]),
            (0xAA, [0xDD, 0xA5, 0xAA, 0x00, 0xFF, 0x56, 0x77]),
        ] {
            let mut out = Vec::new();
            Request::read(register).encode(&mut out);
            assert_eq!(out, bytes);
            let frame = Frame::Request(Request::read(register));
            assert_eq!(parse(&out), Parsed::Frame(frame, 7));
        }
    }

    #[test]
    fn every_beginning_of_a_frame_is_incomplete() {
        for end in 0..CELLS.len() {
            assert_eq!(parse(&CELLS[..end]), Parsed::Incomplete, "{end} bytes");
        }
        assert_eq!(answer(&CELLS).map(|a| (a.register, a.data.len())), Some((4, 16)));
    }

    #[test]
    fn encoding_what_was_parsed_gives_the_same_bytes() {
        let mut out = Vec::new();
        answer(&CELLS).unwrap().encode(&mut out);
        assert_eq!(out, CELLS);
    }

    #[test]
    fn a_frame_is_found_behind_noise_and_in_front_of_it() {
        for noise in [
            &b"\x00\x00"[..],
            b"\xDD",
            b"\xDD\xDD\xDD",
            b"\xDD\x04\x00\x10\x0D\x04",         // a frame that broke off
            b"\xDD\xA5\x04\x00\xFF\xFC\x77",     // an echo of the request
            b"\x02\x51\x00\x00\xFF\xFF\x00\x36", // another protocol on the same line
            b"\x77\xDD\x05\x00\xFF",             // claims 255 bytes that never come
        ] {
            let before = [noise, &CELLS].concat();
            assert_eq!(answer(&before).map(|a| a.register), Some(4), "{}", Hex(noise));
            let after = [&CELLS, noise].concat();
            assert_eq!(answer(&after).map(|a| a.register), Some(4), "{}", Hex(noise));
        }
    }

    #[test]
    fn a_fault_says_what_was_found_and_what_was_due() {
        let mut bytes = CELLS;
        bytes[20] = 0xFE;
        let Parsed::Noise(1, fault) = parse(&bytes) else {
            panic!("accepted a wrong checksum");
        };
        assert_eq!(fault.to_string(), "checksum is FE60, should be FF60");
        let mut bytes = CELLS;
        bytes[22] = 0xDD;
        let Parsed::Noise(1, fault) = parse(&bytes) else {
            panic!("accepted a wrong end");
        };
        assert_eq!(fault.to_string(), "ends with DD instead of 77");
    }

    #[test]
    fn a_refusal_is_taken_without_its_checksum_but_data_never_is() {
        let refusal = [0xDD, 0x00, 0x81, 0x00, 0x00, 0x00, 0x77];
        assert_eq!(answer(&refusal).map(|a| a.status), Some(Status(0x81)));
        let data = [0xDD, 0x03, 0x81, 0x01, 0x05, 0x00, 0x00, 0x77];
        assert_eq!(answer(&data), None);
    }

    #[test]
    fn no_single_flipped_bit_passes_but_in_the_register() {
        for bit in 0..CELLS.len() * 8 {
            let mut bytes = CELLS;
            bytes[bit / 8] ^= 1 << (bit % 8);
            // The checksum does not cover the register (byte 1); the board's question-and-answer check does.
            assert_eq!(answer(&bytes).is_some(), bit / 8 == 1, "bit {bit}");
        }
    }
}
