//! The one-line JSON of `--once`, for scripts that read the line of `smart_bms`: keys, order and decimals are
//! fixed.

use std::fmt::Write;

use crate::pack::reading::Reading;

/// The line without its line end; `{"BMS_status":0}` where there is no reading of the pack as a whole.
pub fn json_line(reading: Option<&Reading>) -> String {
    let Some((reading, totals)) = reading.and_then(|reading| Some((reading, reading.totals.as_ref()?)))
    else {
        return r#"{"BMS_status":0}"#.to_owned();
    };
    let mut line = format!(
        r#"{{"BMS_status":1,"Vbat":{},"Abat":{},"AhBat":{},"AhTyp":{},"FET_stat":{},"RSOC":{}"#,
        totals.voltage,
        totals.current,
        totals.remaining_capacity.round_to(1),
        totals.nominal_capacity.round_to(1),
        totals.mosfet_status,
        totals.state_of_charge,
    );
    // Writing to a String cannot fail.
    for (place, voltage) in reading.cells.iter().enumerate() {
        let balancing = u8::from(totals.balances(place));
        let _ = write!(line, r#","Vbank{place}":{voltage},"Balans{place}":{balancing}"#);
    }
    for (place, temperature) in totals.temperatures.iter().enumerate() {
        let _ = write!(line, r#","Temp{place}":{}"#, temperature.round_to(2));
    }
    let protections = totals.protections;
    if protections.is_empty() {
        line.push_str(r#","Protect":"-no-"}"#);
    } else {
        let _ = write!(line, r#","Protect":"{protections}"}}"#);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jbd::message::{BasicInfo, CellVoltages};
    use crate::jbd::reading::reading;

    #[test]
    fn a_silent_board_is_status_0() {
        assert_eq!(json_line(None), r#"{"BMS_status":0}"#);
        assert_eq!(json_line(Some(&Reading::default())), r#"{"BMS_status":0}"#);
    }

    #[test]
    fn protections_balancing_and_negative_numbers() {
        let info = BasicInfo {
            voltage: 661,
            current: -5,
            balancing: 0b10,
            protections: 0x1001,
            temperatures: vec![2730].into(),
            ..BasicInfo::default()
        };
        let cells = CellVoltages(vec![3300, 3310].into());
        assert_eq!(
            json_line(Some(&reading(Some(&info), Some(&cells)))),
            r#"{"BMS_status":1,"Vbat":6.61,"Abat":-0.05,"AhBat":0.0,"AhTyp":0.0,"FET_stat":0,"RSOC":0,"Vbank0":3.300,"Balans0":0,"Vbank1":3.310,"Balans1":1,"Temp0":-0.10,"Protect":"cell_overvoltage,mosfet_software_lock"}"#
        );
    }
}
