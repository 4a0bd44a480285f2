//! Every captured frame of a register that is read decodes to the values that were noted beside it; what is noted
//! as no frame gives no reading, and the next good frame is found behind it.

use bms2mqtt::jbd::frame::{Answer, Frame, Status, frames};
use bms2mqtt::jbd::message::{BasicInfo, CellVoltages, ErrorCounters, Name, register};
use bms2mqtt::jbd::reading::{self, reading};
use bms2mqtt::pack::reading::{Counters, Reading};
use serde_json::{Value, json};

/// A good answer to 0x04, to be found behind whatever came before.
const GOOD: &str = "dd0400100d040d050d040d040d060d080d030d06ff6077";

fn captures() -> Vec<Value> {
    serde_json::from_str(include_str!("data/jbd-frames.json")).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn answers(bytes: &[u8]) -> Vec<Answer<'_>> {
    frames(bytes)
        .filter_map(|frame| match frame {
            Frame::Answer(answer) => Some(answer),
            Frame::Request(_) => None,
        })
        .collect()
}

fn decimal(value: impl ToString) -> Value {
    value.to_string().parse::<f64>().unwrap().into()
}

/// What the program makes of an answer, in the words of the captures.
fn decoded(answer: &Answer<'_>) -> Option<Value> {
    let data = answer.data;
    Some(match answer.register {
        register::BASIC_INFO => basic_info(&BasicInfo::decode(data).ok()?),
        register::CELL_VOLTAGES => cells(&reading(None, Some(&CellVoltages::decode(data).ok()?))),
        register::NAME => json!({ "device_name": Name::decode(data).0 }),
        register::COUNTERS => counters(&reading::counters(&ErrorCounters::decode(data).ok()?)),
        _ => return None,
    })
}

fn basic_info(info: &BasicInfo) -> Value {
    let totals = reading(Some(info), None).totals.unwrap();
    let date = totals.production_date.unwrap();
    let version = totals.software_version;
    let mut value = json!({
        "voltage_v": decimal(totals.voltage),
        "current_a": decimal(totals.current),
        "remaining_ah": decimal(totals.remaining_capacity),
        "nominal_ah": decimal(totals.nominal_capacity),
        "cycles": totals.cycles,
        "production_date_raw": info.production_date,
        "production_date": format!("{:04}-{:02}-{:02}", date.year, date.month, date.day),
        "balance_low_raw": info.balancing & 0xFFFF,
        "balance_high_raw": info.balancing >> 16,
        "balancing_cells": (0..32).filter(|&cell| totals.balances(cell)).map(|cell| cell + 1).collect::<Vec<_>>(),
        "protection_raw": info.protections,
        "protections": totals.protections.keys().map(as_captured).collect::<Vec<_>>(),
        "software_version_raw": info.software_version,
        "software_version": format!("{}.{}", version.major, version.minor),
        "rsoc_pct": totals.state_of_charge,
        "fet_raw": totals.mosfet_status,
        "charge_fet": totals.charge_mosfet,
        "discharge_fet": totals.discharge_mosfet,
        "current_limiter": info.mosfets & 4 != 0,
        "heater": info.mosfets & 8 != 0,
        "unit_100ma": info.mosfets & BasicInfo::COARSE_UNIT != 0,
        "cell_count": totals.cell_count,
        "ntc_count": totals.temperatures.len(),
        "temperatures_c": totals.temperatures.iter().map(decimal).collect::<Vec<_>>(),
        "tail_len": info.tail.map_or(0, |_| 9),
    });
    if let Some(tail) = info.tail {
        value["tail"] = json!({
            "humidity_pct": tail.humidity,
            "alarm_raw": tail.alarms,
            "full_charge_ah": decimal(totals.full_charge_capacity.unwrap()),
            "remaining_ah": f64::from(tail.remaining_capacity) / 100.0,
            "balance_current_ma": tail.balance_current,
        });
    }
    value
}

/// Two protections are called otherwise in the captures.
fn as_captured(key: &'static str) -> &'static str {
    match key {
        "front_end_error" => "afe_ic_error",
        "mosfet_software_lock" => "mos_software_lock",
        key => key,
    }
}

fn cells(reading: &Reading) -> Value {
    let (min_cell, min) = reading.lowest_cell().unwrap();
    let (max_cell, max) = reading.highest_cell().unwrap();
    json!({
        "cells_mv": reading.cells.iter().map(|cell| cell.digits()).collect::<Vec<_>>(),
        "cell_count": reading.cell_count(),
        "min_mv": min.digits(),
        "max_mv": max.digits(),
        "min_cell": min_cell,
        "max_cell": max_cell,
        "delta_mv": reading.cell_voltage_delta().unwrap().digits(),
        "sum_mv": reading.cells.iter().map(|cell| cell.digits()).sum::<i64>(),
    })
}

fn counters(counters: &Counters) -> Value {
    json!({
        "short_circuit": counters.short_circuit,
        "charge_overcurrent": counters.charge_overcurrent,
        "discharge_overcurrent": counters.discharge_overcurrent,
        "cell_overvoltage": counters.cell_overvoltage,
        "cell_undervoltage": counters.cell_undervoltage,
        "charge_overtemperature": counters.charge_overtemperature,
        "charge_undertemperature": counters.charge_undertemperature,
        "discharge_overtemperature": counters.discharge_overtemperature,
        "discharge_undertemperature": counters.discharge_undertemperature,
        "pack_overvoltage": counters.pack_overvoltage,
        "pack_undervoltage": counters.pack_undervoltage,
        "system_restarts": counters.system_restarts,
    })
}

#[test]
fn every_captured_frame_decodes_to_its_values() {
    let mut count = 0;
    for capture in captures() {
        let read = matches!(capture["register"].as_str(), Some("0x03" | "0x04" | "0x05" | "0xAA"));
        if !read || capture["checksum_ok"] != true {
            continue;
        }
        let id = &capture["id"];
        let bytes = bytes(capture["response_hex"].as_str().unwrap());
        let answers = answers(&bytes);
        assert_eq!(answers.len(), 1, "{id}");
        assert_eq!(answers[0].status, Status::OK, "{id}");
        assert_eq!(decoded(&answers[0]).as_ref(), Some(&capture["expected"]), "{id}");
        count += 1;
    }
    assert_eq!(count, 62);
}

#[test]
fn encoding_a_decoded_frame_gives_the_captured_bytes() {
    for capture in captures() {
        let Some(hex) = capture["response_hex"].as_str().filter(|_| capture["checksum_ok"] == true) else {
            continue;
        };
        let bytes = bytes(hex);
        for answer in answers(&bytes) {
            let data = match answer.register {
                _ if answer.status != Status::OK => continue,
                register::BASIC_INFO => BasicInfo::decode(answer.data).unwrap().encode(),
                register::CELL_VOLTAGES => CellVoltages::decode(answer.data).unwrap().encode(),
                register::NAME => Name::decode(answer.data).encode(),
                register::COUNTERS => ErrorCounters::decode(answer.data).unwrap().encode(),
                _ => continue,
            };
            let mut encoded = Vec::new();
            Answer { data: &data, ..answer }.encode(&mut encoded);
            assert_eq!(encoded, bytes, "{}", capture["id"]);
        }
    }
}

#[test]
fn what_is_no_frame_gives_no_reading_and_the_next_frame_is_found() {
    let mut count = 0;
    for capture in captures() {
        let Some(hex) = capture["response_hex"].as_str() else { continue };
        if capture["checksum_ok"] == true && capture["protocol"] == "jbd" {
            continue;
        }
        let (id, bytes) = (capture["id"].as_str().unwrap(), bytes(hex));
        let readings: Vec<Value> =
            answers(&bytes).iter().filter(|answer| answer.status == Status::OK).filter_map(decoded).collect();
        // Three hold a whole good frame with stray bytes around it; their notes say what it holds.
        match id {
            "syssi-debug-04-leading-junk" => {
                assert_eq!(readings[0]["cells_mv"], json!([3910, 3902, 3895, 3901]));
            }
            "syssi-debug-05-leading-junk" => {
                assert_eq!(readings[0]["device_name"], "JBD-SP04S034-L4S-200A-B-U");
            }
            "aiobmsble-03-oversized" => assert_eq!(readings[0]["voltage_v"], 15.6),
            _ => assert_eq!(readings, [] as [Value; 0], "{id}"),
        }
        let with_good = [bytes, self::bytes(GOOD)].concat();
        let last = answers(&with_good).last().and_then(decoded);
        assert_eq!(last.map(|cells| cells["sum_mv"].clone()), Some(json!(26664)), "{id}");
        count += 1;
    }
    assert_eq!(count, 42);
}
