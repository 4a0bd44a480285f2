//! What a pack keeps over restarts, and the text it is kept as.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::alarms::Alarms;
use super::energy::Totals;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub energy: Totals,
    pub alarms: Alarms,
}

/// As it is written. What is unknown was written by a newer version, and is not to be lost by writing without it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Of the program that wrote it last; files of the first versions have none.
    #[serde(default)]
    version: String,
    #[serde(rename = "charged_100nj")]
    charged: u64,
    #[serde(rename = "discharged_100nj")]
    discharged: u64,
    #[serde(default)]
    alarms: Alarms,
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a text is no record.
#[derive(Debug)]
pub enum Unreadable {
    /// With the newer version's number, if the text has one.
    Newer(String),
    Damaged(serde_json::Error),
}

/// What is wrong, and what to do about it, to follow the file's name.
impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Newer(version) => {
                let comma = if version.is_empty() { "" } else { ", " };
                write!(
                    f,
                    "was written by a newer version{comma}{version}, and this is {VERSION}; install that one again, \
                     or move the file away to begin at zero"
                )
            }
            Unreadable::Damaged(error) => write!(f, "is damaged ({error}); delete it to begin at zero"),
        }
    }
}

/// `1.2.3` in the order of versions; nothing comes before every version.
fn order(version: &str) -> Vec<u32> {
    version.split('.').map_while(|number| number.parse().ok()).collect()
}

impl Record {
    /// What was kept, and the energy that was counted since.
    #[must_use]
    pub const fn and(&self, since: &Record) -> Record {
        Record { energy: self.energy.plus(since.energy), alarms: self.alarms }
    }

    pub fn to_json(&self) -> String {
        let Record { energy: Totals { charged, discharged }, alarms } = *self;
        // Integers cannot fail to serialize.
        let version = VERSION.to_owned();
        serde_json::to_string(&File { version, charged, discharged, alarms }).unwrap_or_default()
    }

    /// # Errors
    /// When the text is not what [`Record::to_json`] writes.
    pub fn from_json(text: &str) -> Result<Record, Unreadable> {
        let File { charged, discharged, alarms, .. } = serde_json::from_str(text).map_err(|error| {
            let all: Value = serde_json::from_str(text).unwrap_or_default();
            let version = all["version"].as_str().unwrap_or_default();
            let unknown = error.is_data() && error.to_string().starts_with("unknown field");
            if order(version) > order(VERSION) || (unknown && version.is_empty()) {
                Unreadable::Newer(version.to_owned())
            } else {
                Unreadable::Damaged(error)
            }
        })?;
        Ok(Record { energy: Totals { charged, discharged }, alarms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::protection::Protections;

    #[test]
    fn a_record_survives_saving_and_wrong_text_is_none() {
        let mut record = Record { energy: Totals { charged: 1, discharged: u64::MAX }, ..Record::default() };
        record.alarms.see(Protections::from_bits(0b101), 1_764_000_000);
        assert_eq!(Record::from_json(&record.to_json()).unwrap(), record);
        assert!(order("0.1.10") > order("0.1.9") && order("1.0.0-rc1") > order("0.9.9"));
        assert!(order(VERSION) > order("") && order("x") == order(""));
        for text in ["", "{}", "0", r#"{"charged_100nj":1}"#, r#"{"charged_100nj":-1,"discharged_100nj":0}"#]
        {
            assert!(Record::from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_of_version_0_1_is_read_as_it_was_meant() {
        let text = r#"{"charged_100nj":720000000000,"discharged_100nj":360000000000,"alarms":{"active":2,"last":{"protections":2050,"time":1764000000}}}"#;
        let record = Record::from_json(text).unwrap();
        assert_eq!(record.energy.energy().charged.to_string(), "0.02");
        let last = record.alarms.last().unwrap();
        assert_eq!(last.protections.to_string(), "cell_undervoltage,front_end_error");
        assert_eq!(last.time, 1_764_000_000);
        assert!(record.to_json().ends_with(&text[1..]), "{}", record.to_json());
    }

    #[test]
    fn a_file_from_before_alarms_were_kept_has_none() {
        let record = Record::from_json(r#"{"charged_100nj":1,"discharged_100nj":2}"#).unwrap();
        assert_eq!(record.energy, Totals { charged: 1, discharged: 2 });
        assert_eq!(record.alarms, Alarms::default());
    }
}
