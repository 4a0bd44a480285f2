//! What a board's messages mean in physical units. Pure; the one place between wire integers and numbers.

use super::message::{BasicInfo, CellVoltages, ErrorCounters};
use crate::pack::decimal::Decimal;
use crate::pack::protection::{Protection, Protections};
use crate::pack::reading::{Counters, Date, Reading, SoftwareVersion, Totals};

/// 0 °C in steps of 0.1 K, as JBD counts it.
const ZERO_CELSIUS: i64 = 2731;

/// One poll's answers as a reading; a register that the board refuses is `None`.
pub fn reading(info: Option<&BasicInfo>, cells: Option<&CellVoltages>) -> Reading {
    let millivolts = cells.map(|cells| cells.0.as_slice()).unwrap_or_default();
    Reading {
        totals: info.map(totals),
        cells: millivolts.iter().map(|&mv| Decimal::new(mv.into(), 3)).collect(),
    }
}

fn totals(info: &BasicInfo) -> Totals {
    // 10 mA and 10 mAh, or with the unit flag 100 mA and 100 mAh, as amperes with two decimals.
    let coarse = info.mosfets & BasicInfo::COARSE_UNIT != 0;
    let amperes = |raw: i64| Decimal::new(if coarse { raw * 10 } else { raw }, 2);
    Totals {
        voltage: Decimal::new(info.voltage.into(), 2),
        current: amperes(info.current.into()),
        remaining_capacity: amperes(info.remaining_capacity.into()),
        nominal_capacity: amperes(info.nominal_capacity.into()),
        full_charge_capacity: info.tail.map(|tail| amperes(tail.full_charge_capacity.into())),
        state_of_charge: info.state_of_charge,
        cycles: info.cycles,
        temperatures: info
            .temperatures
            .iter()
            .map(|&raw| Decimal::new(i64::from(raw) - ZERO_CELSIUS, 1))
            .collect(),
        charge_mosfet: info.mosfets & 1 != 0,
        discharge_mosfet: info.mosfets & 2 != 0,
        mosfet_status: info.mosfets,
        protections: protections(info.protections),
        balancing: info.balancing,
        cell_count: info.cell_count,
        software_version: SoftwareVersion {
            major: info.software_version >> 4,
            minor: info.software_version & 0x0F,
        },
        production_date: production_date(info.production_date),
    }
}

/// By the bits of the protection word (register 0x03, offset 16), bit 0 first; bit 15 is reserved and ignored.
const PROTECTIONS: [Protection; 15] = [
    Protection::CellOvervoltage,
    Protection::CellUndervoltage,
    Protection::PackOvervoltage,
    Protection::PackUndervoltage,
    Protection::ChargeOvertemperature,
    Protection::ChargeUndertemperature,
    Protection::DischargeOvertemperature,
    Protection::DischargeUndertemperature,
    Protection::ChargeOvercurrent,
    Protection::DischargeOvercurrent,
    Protection::ShortCircuit,
    Protection::FrontEndError,
    Protection::MosfetSoftwareLock,
    Protection::ChargeMosfetBreakdown,
    Protection::DischargeMosfetBreakdown,
];

fn protections(word: u16) -> Protections {
    let active = PROTECTIONS.into_iter().enumerate().filter(|(bit, _)| word & (1 << bit) != 0);
    active.map(|(_, protection)| protection).collect()
}

/// Register 0xAA's words by what they count ("common protocol V11").
pub fn counters(counted: &ErrorCounters) -> Counters {
    let [
        short_circuit,
        charge_overcurrent,
        discharge_overcurrent,
        cell_overvoltage,
        cell_undervoltage,
        charge_overtemperature,
        charge_undertemperature,
        discharge_overtemperature,
        discharge_undertemperature,
        pack_overvoltage,
        pack_undervoltage,
    ] = counted.trips;
    Counters {
        short_circuit,
        charge_overcurrent,
        discharge_overcurrent,
        cell_overvoltage,
        cell_undervoltage,
        charge_overtemperature,
        charge_undertemperature,
        discharge_overtemperature,
        discharge_undertemperature,
        pack_overvoltage,
        pack_undervoltage,
        system_restarts: counted.system_restarts,
    }
}

/// Boards that were never given a date send zeros or nonsense: no date then.
fn production_date(raw: u16) -> Option<Date> {
    let date = Date { year: 2000 + (raw >> 9), month: (raw >> 5 & 0x0F) as u8, day: (raw & 0x1F) as u8 };
    let days = match date.month {
        2 if date.year % 4 == 0 => 29, // 2000 to 2127: only 2100 is an exception, and no board is from then
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    (1..=days).contains(&date.day).then_some(date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_flag_makes_current_and_capacities_ten_times_coarser() {
        let fine = BasicInfo {
            current: -1234,
            remaining_capacity: 5000,
            nominal_capacity: 6000,
            ..BasicInfo::default()
        };
        let coarse = BasicInfo { mosfets: BasicInfo::COARSE_UNIT, ..fine.clone() };
        let (fine, coarse) = (totals(&fine), totals(&coarse));
        assert_eq!(fine.current.to_string(), "-12.34");
        assert_eq!(coarse.current.to_string(), "-123.40");
        assert_eq!(fine.nominal_capacity.to_string(), "60.00");
        assert_eq!(coarse.nominal_capacity.to_string(), "600.00");
        assert_eq!(coarse.remaining_capacity.to_string(), "500.00");
    }

    #[test]
    fn each_bit_of_the_protection_word_is_one_protection_and_bit_15_none() {
        let keys = |word: u16| protections(word).to_string();
        assert_eq!(keys(1 << 0), "cell_overvoltage");
        assert_eq!(keys(1 << 11), "front_end_error");
        assert_eq!(keys(1 << 12), "mosfet_software_lock");
        assert_eq!(keys(1 << 14), "discharge_mosfet_breakdown");
        assert_eq!(keys(1 << 15), "");
        assert_eq!(keys(0xFFFF).split(',').count(), 15);
    }

    #[test]
    fn dates_that_no_calendar_has_are_no_dates() {
        let raw = |year: u16, month: u16, day: u16| (year - 2000) << 9 | month << 5 | day;
        assert!(production_date(raw(2024, 2, 29)).is_some());
        for (year, month, day) in [(2023, 2, 29), (2023, 13, 1), (2023, 0, 1), (2000, 0, 0), (2023, 4, 31)] {
            assert_eq!(production_date(raw(year, month, day)), None, "{year}-{month}-{day}");
        }
    }
}
