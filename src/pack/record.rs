//! What a pack keeps over restarts, and the text it is kept as.

use serde::{Deserialize, Serialize};

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
    #[serde(rename = "charged_100nj")]
    charged: u64,
    #[serde(rename = "discharged_100nj")]
    discharged: u64,
    #[serde(default)]
    alarms: Alarms,
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
        serde_json::to_string(&File { charged, discharged, alarms }).unwrap_or_default()
    }

    /// # Errors
    /// When the text is not what [`Record::to_json`] writes.
    pub fn from_json(text: &str) -> Result<Record, serde_json::Error> {
        let File { charged, discharged, alarms } = serde_json::from_str(text)?;
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
        for text in ["", "{}", "0", r#"{"charged_100nj":1}"#, r#"{"charged_100nj":-1,"discharged_100nj":0}"#]
        {
            assert!(Record::from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_from_before_alarms_were_kept_has_none() {
        let record = Record::from_json(r#"{"charged_100nj":1,"discharged_100nj":2}"#).unwrap();
        assert_eq!(record.energy, Totals { charged: 1, discharged: 2 });
        assert_eq!(record.alarms, Alarms::default());
    }
}
