//! Which protection became active last, and when: what a person wants to know after the fact, and after a restart.

use serde::{Deserialize, Serialize};

use super::protection::Protections;

/// Protections that became active at the same poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alarm {
    pub protections: Protections,
    /// Seconds since 1970, UTC: until 2106.
    pub time: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alarms {
    /// Kept too, so that what is still active after a restart is no new alarm.
    active: Protections,
    last: Option<Alarm>,
}

impl Alarms {
    /// Takes in what is active at `time`, in seconds since 1970. Has anything changed?
    ///
    /// Switching a MOSFET off by command sets the software lock, which is no alarm.
    pub fn see(&mut self, active: Protections, time: u32) -> bool {
        let active = active.without_software_lock();
        let before = std::mem::replace(&mut self.active, active);
        let risen = active.without(before);
        if !risen.is_empty() {
            self.last = Some(Alarm { protections: risen, time });
        }
        active != before
    }

    /// `None` if there never was one.
    pub const fn last(&self) -> Option<Alarm> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERVOLTAGE: u64 = 0b01;
    const UNDERVOLTAGE: u64 = 0b10;
    const SOFTWARE_LOCK: u64 = 1 << 12;

    fn see(alarms: &mut Alarms, bits: u64, time: u32) -> Option<(String, u32)> {
        alarms.see(Protections::from_bits(bits), time);
        alarms.last().map(|alarm| (alarm.protections.to_string(), alarm.time))
    }

    #[test]
    fn the_last_to_become_active_stays_until_another_does() {
        let mut alarms = Alarms::default();
        assert_eq!(see(&mut alarms, 0, 1), None);
        let first = Some(("cell_overvoltage".to_owned(), 2));
        assert_eq!(see(&mut alarms, OVERVOLTAGE, 2), first);
        assert_eq!(see(&mut alarms, OVERVOLTAGE, 3), first);
        let second = Some(("cell_undervoltage".to_owned(), 4));
        assert_eq!(see(&mut alarms, OVERVOLTAGE | UNDERVOLTAGE, 4), second);
        assert_eq!(see(&mut alarms, UNDERVOLTAGE, 5), second);
        assert_eq!(see(&mut alarms, 0, 6), second);
        assert_eq!(see(&mut alarms, OVERVOLTAGE, 7), Some(("cell_overvoltage".to_owned(), 7)));
    }

    #[test]
    fn a_command_is_no_alarm() {
        let mut alarms = Alarms::default();
        assert!(!alarms.see(Protections::from_bits(SOFTWARE_LOCK), 1));
        assert_eq!(alarms.last(), None);
    }

    #[test]
    fn what_is_still_active_after_a_restart_is_no_new_alarm() {
        let mut alarms = Alarms::default();
        see(&mut alarms, OVERVOLTAGE, 1);
        let text = serde_json::to_string(&alarms).unwrap();
        let mut alarms: Alarms = serde_json::from_str(&text).unwrap();
        assert_eq!(see(&mut alarms, OVERVOLTAGE, 2), Some(("cell_overvoltage".to_owned(), 1)));
    }
}
