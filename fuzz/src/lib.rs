//! What must hold of any bytes. The fuzz targets ask it of what libFuzzer makes up, `tests/properties.rs` of captured
//! and of random bytes. Each function panics where it does not hold.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use bms2mqtt::catalogue::{CATALOGUE, Entity, Value};
use bms2mqtt::hex::Hex;
use bms2mqtt::home_assistant::discovery::{Device, entity_config};
use bms2mqtt::home_assistant::language::Language;
use bms2mqtt::jbd::frame::{self, Fault, Frame, LONGEST, Parsed, Status, parse};
use bms2mqtt::jbd::message::{BasicInfo, CellVoltages, ErrorCounters, Name};
use bms2mqtt::jbd::reading::{self, reading};
use bms2mqtt::json_line::json_line;
use bms2mqtt::pack::forecast::Forecaster;
use bms2mqtt::pack::reading::Reading;
use bms2mqtt::pack::record::Record;
use bms2mqtt::pack::state::{Identity, PackState, Remembered};

const START: u8 = 0xDD;
/// The contract's answer to 0x04: eight cells.
const ANSWER: [u8; 23] = [
    0xDD, 0x04, 0x00, 0x10, 0x0D, 0x04, 0x0D, 0x05, 0x0D, 0x04, 0x0D, 0x04, 0x0D, 0x06, 0x0D, 0x08, 0x0D,
    0x03, 0x0D, 0x06, 0xFF, 0x60, 0x77,
];

/// Parsing always advances and never over a start byte. What is accepted survives the round trip. In which pieces the
/// bytes come has no influence. A frame behind them is found.
///
/// The first byte says how long the pieces are, in which the others come.
pub fn frames(input: &[u8]) {
    let Some((&piece, bytes)) = input.split_first() else {
        return;
    };
    let found = walk(bytes);
    assert!(frame::frames(bytes).eq(found.iter().map(|(frame, _)| *frame)));
    for (frame, place) in &found {
        survives(*frame, &bytes[place.clone()]);
    }
    let places: Vec<_> = found.into_iter().map(|(_, place)| place).collect();
    assert_eq!(walk_as_they_come(bytes, 1 + usize::from(piece)), places);

    let with_answer = [bytes, &ANSWER].concat();
    // The one thing that can hide a frame is another right frame that reaches into it.
    let is_found = walk(&with_answer).iter().any(|(_, place)| {
        place.start == bytes.len() || (place.start < bytes.len() && place.end > bytes.len())
    });
    assert!(is_found, "{}", Hex(&with_answer));
}

/// Every frame and where it stands, in bytes that are all there is.
fn walk(bytes: &[u8]) -> Vec<(Frame<'_>, Range<usize>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        at += match parse(rest) {
            Parsed::Incomplete => {
                assert!(rest[0] == START && rest.len() < LONGEST);
                1
            }
            Parsed::Noise(count, fault) => {
                assert!((1..=rest.len()).contains(&count) && !rest[1..count].contains(&START));
                assert_eq!(rest[0] == START, fault != Fault::NoStart);
                assert!(!fault.to_string().is_empty());
                count
            }
            Parsed::Frame(frame, length) => {
                found.push((frame, at..at + length));
                length
            }
        };
    }
    found
}

/// Where frames stand, for a reader who sees `piece` more bytes each time.
fn walk_as_they_come(bytes: &[u8], piece: usize) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut come = 0;
    while at < bytes.len() {
        let all_there = come == bytes.len();
        come = bytes.len().min(come + piece);
        while at < come {
            match parse(&bytes[at..come]) {
                Parsed::Incomplete if all_there => at += 1,
                Parsed::Incomplete => break,
                Parsed::Noise(count, _) => at += count,
                Parsed::Frame(_, length) => {
                    found.push(at..at + length);
                    at += length;
                }
            }
        }
    }
    found
}

/// A frame that was accepted encodes to the same bytes, and those parse to the same frame.
fn survives(frame: Frame<'_>, bytes: &[u8]) {
    let mut encoded = Vec::new();
    match frame {
        Frame::Request(request) => request.encode(&mut encoded),
        Frame::Answer(answer) => {
            assert!(!answer.status.to_string().is_empty());
            answer.encode(&mut encoded);
        }
    }
    assert_eq!(parse(&encoded), Parsed::Frame(frame, encoded.len()));
    for end in 0..encoded.len() {
        assert_eq!(parse(&encoded[..end]), Parsed::Incomplete);
    }
    if let Frame::Answer(answer) = frame {
        if answer.status != Status::OK && answer.data.is_empty() && bytes[4..6] == [0, 0] {
            // The refusal without a checksum, which is given one.
            encoded[4..6].fill(0);
        }
    }
    assert_eq!(encoded, bytes);
}

/// Register 0x03. What lies behind the message is taken for cells, if it can be.
pub fn basic_info(data: &[u8]) {
    let info = match BasicInfo::decode(data) {
        Ok(info) => info,
        Err(malformed) => {
            let needed = 23 + 2 * data.get(22).copied().map_or(0, usize::from);
            assert!(data.len() < needed && malformed.found == data.len());
            assert!(!malformed.to_string().is_empty());
            return;
        }
    };
    let encoded = info.encode();
    assert_eq!(encoded, data[..encoded.len()]);
    assert_eq!(info.tail.is_some(), data.len() >= 23 + 2 * info.temperatures.len() + 9);
    assert_eq!(BasicInfo::decode(&encoded).as_ref(), Ok(&info));
    let cells = CellVoltages::decode(&data[encoded.len()..]).ok();
    show(reading(Some(&info), cells.as_ref()));
}

/// Register 0x04.
pub fn cell_voltages(data: &[u8]) {
    let fits = data.len() % 2 == 0 && (2..=64).contains(&data.len());
    let decoded = CellVoltages::decode(data);
    assert_eq!(decoded.is_ok(), fits);
    match decoded {
        Err(malformed) => assert!(malformed.found == data.len() && !malformed.to_string().is_empty()),
        Ok(cells) => {
            assert_eq!(cells.encode(), data);
            show(reading(None, Some(&cells)));
            show(reading(Some(&BasicInfo::default()), Some(&cells)));
        }
    }
}

/// Register 0x05: something to read, which survives the round trip and is at home in a discovery config.
pub fn name(data: &[u8]) {
    let name = Name::decode(data);
    let readable = |byte: &u8| *byte == b' ' || byte.is_ascii_graphic();
    assert!(name.0.as_bytes().iter().all(readable));
    assert_eq!(name.0, name.0.trim());
    if data.iter().all(readable) && data.trim_ascii() == data {
        assert_eq!(name.encode(), data);
    }
    assert_eq!(Name::decode(&name.encode()), name);
    // What was left out is all that can be missing.
    let mut sent = data.iter();
    assert!(name.0.bytes().all(|byte| sent.any(|&other| other == byte)));

    let device = Device {
        id: "bms2mqtt_pack",
        slug: "pack",
        name: "Pack",
        maker: "JBD",
        model: &name.0,
        version: None,
        via: Some("bridge"),
        availability_topics: &["bridge/status", "pack/status"],
    };
    let config = entity_config(&device, &CATALOGUE[0], None, "pack/key", Language::Russian);
    let config: serde_json::Value = serde_json::from_str(&config).expect("a config is JSON");
    assert_eq!(config["device"]["model"], name.0);
    publish(&PackState {
        identity: Some(Identity { model: Some(name.0), ..Identity::default() }),
        ..PackState::default()
    });
}

/// Register 0xAA.
pub fn counters(data: &[u8]) {
    let decoded = ErrorCounters::decode(data);
    assert_eq!(decoded.is_ok(), matches!(data.len(), 22 | 24));
    match decoded {
        Err(malformed) => assert!(malformed.found == data.len() && !malformed.to_string().is_empty()),
        Ok(counters) => {
            assert_eq!(counters.encode(), data);
            let counters = Some(reading::counters(&counters));
            publish(&PackState { counters, ..PackState::default() });
        }
    }
}

/// Everything that follows from a reading and is shown of it.
fn show(reading: Reading) {
    assert_eq!(reading.doubts().is_empty(), reading.doubts().to_string().is_empty());
    let voltages = (reading.lowest_cell(), reading.average_cell_voltage(), reading.highest_cell());
    if let (Some((_, lowest)), Some(average), Some((_, highest))) = voltages {
        assert!((lowest.digits()..=highest.digits()).contains(&average.digits()));
        let delta = reading.cell_voltage_delta().map(|delta| delta.digits());
        assert_eq!(delta, Some(highest.digits() - lowest.digits()));
        assert_eq!(reading.cell_count(), reading.cells.len());
    } else {
        assert!(voltages == (None, None, None) && reading.cells.is_empty());
    }
    let mut record = Record::default();
    let forecast = reading.totals.as_ref().map(|totals| {
        let hour = Duration::from_secs(3600);
        record.energy.add(totals.power(), totals.power(), hour);
        record.alarms.see(totals.protections, u32::MAX);
        let mut forecaster = Forecaster::default();
        let first = forecaster.add(totals, None);
        assert_eq!(first, forecaster.add(totals, Some(hour)));
        first
    });
    assert_eq!(Record::from_json(&record.to_json()).ok(), Some(record));
    let line = json_line(Some(&reading));
    let line: serde_json::Value = serde_json::from_str(&line).expect("the line is JSON");
    assert_eq!(line["BMS_status"], u8::from(reading.totals.is_some()));
    let remembered = Remembered { energy: record.energy.energy(), last_alarm: record.alarms.last() };
    publish(&PackState {
        reading: Some(reading),
        forecast,
        remembered: Some(remembered),
        ..PackState::default()
    });
}

/// Every value of the catalogue, as the payload of its topic.
fn publish(state: &PackState) {
    let mut keys = BTreeSet::new();
    for entity in CATALOGUE {
        entity.visit(state, |number, value| {
            let payload = value.to_string();
            // An empty retained message would remove its topic.
            assert!(
                !payload.is_empty() && !payload.contains(char::is_control),
                "{}: {payload:?}",
                entity.key
            );
            if let Value::Number(_) = value {
                assert!(payload.parse::<f64>().is_ok(), "{}: {payload}", entity.key);
            }
            assert!(keys.insert(Entity::numbered(entity.key, number)), "{} twice", entity.key);
        });
    }
}
