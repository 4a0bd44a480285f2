//! `decode`: frames given as hex → readable text, or JSON with the keys of the topics.

use std::fmt::{self, Write as _};
use std::io::{self, Read};

use super::{Failure, print, say};
use crate::catalogue::{CATALOGUE, Entity, Value};
use crate::cli::DecodeArgs;
use crate::hex::Hex;
use crate::jbd::frame::{Answer, Frame, Parsed, Status, parse};
use crate::jbd::message::{BasicInfo, CellVoltages, ErrorCounters, Malformed, Name, register};
use crate::jbd::reading::{counters, reading};
use crate::pack::state::PackState;

pub fn run(args: &DecodeArgs) -> Result<(), Failure> {
    let bytes = match args.hex.as_slice() {
        [] => {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text);
            read.map_err(|error| Failure::Running(format!("cannot read standard input: {error}")))?;
            from_hex(&text)?
        }
        given => from_hex(&given.concat())?,
    };
    let mut found = false;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let used = match parse(rest) {
            Parsed::Frame(frame, used) => {
                found = true;
                let frame = Decoded::from(frame);
                let text = if args.json { frame.to_json() } else { frame.to_string() };
                print(text + "\n")?;
                used
            }
            Parsed::Noise(used, fault) => {
                say(format_args!("{}: {fault}", Hex(&rest[..used])));
                used
            }
            Parsed::Incomplete => {
                say(format_args!("{}: the frame breaks off", Hex(rest)));
                1
            }
        };
        rest = &rest[used..];
    }
    if found { Ok(()) } else { Err(Failure::Running("no frame in it".to_owned())) }
}

fn from_hex(text: &str) -> Result<Vec<u8>, Failure> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let usage = |wrong: String| Failure::Usage(format!("{wrong}; write hex digits such as DDA50300FFFD77"));
    let digit = |byte: &u8| {
        let value = char::from(*byte).to_digit(16);
        value.ok_or_else(|| usage(format!("\"{}\" is not a hex digit", char::from(*byte))))
    };
    if digits.len() % 2 != 0 {
        return Err(usage(format!("{} hex digits are not whole bytes", digits.len())));
    }
    digits.chunks_exact(2).map(|pair| Ok((digit(&pair[0])? << 4 | digit(&pair[1])?) as u8)).collect()
}

/// A frame and what it says.
struct Decoded {
    title: String,
    /// Key, name, value and unit.
    lines: Vec<(String, String, Shown, &'static str)>,
}

enum Shown {
    Value(Value),
    Text(String),
}

impl From<Frame<'_>> for Decoded {
    fn from(frame: Frame<'_>) -> Decoded {
        match frame {
            Frame::Request(request) => {
                let verb = if request.write { "write" } else { "read" };
                let mut decoded =
                    Decoded::new(format!("request to {verb} register {:02X}", request.register));
                if !request.data.is_empty() {
                    decoded.text("data", "Data", Hex(request.data));
                }
                decoded
            }
            Frame::Answer(Answer { register, status: Status::OK, data }) => {
                decode(register, data).unwrap_or_else(|malformed| Decoded::new(malformed.to_string()))
            }
            Frame::Answer(Answer { register, status, .. }) => {
                let mut decoded = Decoded::new(format!("refusal of register {register:02X}"));
                decoded.text("status", "Status", status);
                decoded
            }
        }
    }
}

fn decode(register: u8, data: &[u8]) -> Result<Decoded, Malformed> {
    let mut state = PackState::default();
    let mut decoded = Decoded::new(format!("answer of register {register:02X}"));
    match register {
        register::BASIC_INFO => {
            let reading = reading(Some(&BasicInfo::decode(data)?), None);
            if let Some(totals) = &reading.totals {
                decoded.text("software_version", "Software version", totals.software_version);
            }
            state.reading = Some(reading);
        }
        register::CELL_VOLTAGES => state.reading = Some(reading(None, Some(&CellVoltages::decode(data)?))),
        register::NAME => decoded.text("name", "Name", Name::decode(data).0),
        register::COUNTERS => state.counters = Some(counters(&ErrorCounters::decode(data)?)),
        _ => decoded.text("data", "Data", Hex(data)),
    }
    for entity in CATALOGUE {
        entity.visit(&state, |number, value| {
            let [key, name] = [entity.key, entity.name].map(|template| Entity::numbered(template, number));
            decoded.lines.push((key, name, Shown::Value(value), entity.unit.unwrap_or_default()));
        });
    }
    Ok(decoded)
}

impl Decoded {
    fn new(title: String) -> Decoded {
        Decoded { title, lines: Vec::new() }
    }

    fn text(&mut self, key: &str, name: &str, text: impl fmt::Display) {
        self.lines.push((key.to_owned(), name.to_owned(), Shown::Text(text.to_string()), ""));
    }

    /// One line; numbers keep their decimals, which a JSON number of serde_json would not.
    fn to_json(&self) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut json = format!("{{\"frame\":{}", quoted(&self.title));
        for (key, _, shown, _) in &self.lines {
            let value = match shown {
                Shown::Value(number @ (Value::Number(_) | Value::Count(_))) => number.to_string(),
                Shown::Value(Value::Flag(flag)) => flag.to_string(),
                Shown::Value(Value::Protections(active)) => {
                    serde_json::Value::from_iter(active.keys()).to_string()
                }
                Shown::Value(Value::Unknown) => "null".to_owned(),
                Shown::Value(
                    value @ (Value::Date(_) | Value::Time(_) | Value::Doubts(_) | Value::Mode(_)),
                ) => quoted(&value.to_string()),
                Shown::Text(text) => quoted(text),
            };
            // Writing to a String cannot fail.
            let _ = write!(json, ",{}:{value}", quoted(key));
        }
        json.push('}');
        json
    }
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        for (_, name, shown, unit) in &self.lines {
            let text = match shown {
                Shown::Value(value) => value.to_string(),
                Shown::Text(text) => text.clone(),
            };
            write!(f, "\n  {name:<28}{text} {unit}")?;
        }
        Ok(())
    }
}
