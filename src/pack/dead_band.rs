//! Changes that a user does not want to have sent, because they are small or come too often: for slow brokers, and for
//! disks that every change wears. What was read stays what was read; this is what is shown of it.
//!
//! Measured values are held, and what follows from them (power, minimum, delta …) follows from what is shown, so that
//! all of it fits together. Flags, protections, the state of charge and counters are never held, and neither is
//! anything while there is more to tell than noise.

use std::time::Duration;

use super::decimal::Decimal;
use super::reading::Reading;

/// What can be held back: all values of a kind together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    Voltage,
    Current,
    RemainingCapacity,
    CellVoltage,
    Temperature,
}

impl Quantity {
    /// Each with its name, unit and decimals.
    pub const ALL: [(Quantity, &'static str, &'static str, u8); 5] = [
        (Quantity::Voltage, "voltage", "V", 2),
        (Quantity::Current, "current", "A", 2),
        (Quantity::RemainingCapacity, "remaining_capacity", "Ah", 2),
        (Quantity::CellVoltage, "cell_voltage", "V", 3),
        (Quantity::Temperature, "temperature", "°C", 1),
    ];
}

/// What is held back of a quantity; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// A value that differs by less than this from the one shown is held back; with the decimals of its quantity.
    pub dead_band: Decimal,
    /// After a value was shown, the next of its kind is held back for so long.
    pub minimum_interval: Duration,
}

/// In the order of [`Quantity::ALL`].
pub type Rules = [Rule; Quantity::ALL.len()];

/// What is shown of one pack, and since when.
#[derive(Debug)]
pub struct DeadBand {
    rules: Rules,
    shown: Option<Reading>,
    /// When a quantity was last shown anew.
    renewed: [Duration; Quantity::ALL.len()],
    /// When a value that is held back now may be shown.
    due: Option<Duration>,
}

impl DeadBand {
    pub fn new(rules: Rules) -> DeadBand {
        DeadBand { rules, shown: None, renewed: Default::default(), due: None }
    }

    /// What is to be shown of this reading. `now` is of any clock that does not go back; the same reading again shows
    /// what may be shown by then.
    pub fn show(&mut self, mut reading: Reading, now: Duration) -> &Reading {
        self.due = None;
        match self.shown.take().filter(|shown| differs_by_numbers_only(shown, &reading)) {
            Some(shown) => self.hold(&shown, &mut reading, now),
            None => self.renewed = [now; Quantity::ALL.len()],
        }
        self.shown.insert(reading)
    }

    /// When the last reading is to be looked at again, because more of it may be shown then.
    pub const fn due(&self) -> Option<Duration> {
        self.due
    }

    fn hold(&mut self, shown: &Reading, reading: &mut Reading, now: Duration) {
        self.hold_values(Quantity::CellVoltage, &shown.cells, &mut reading.cells, now);
        if let (Some(shown), Some(totals)) = (&shown.totals, &mut reading.totals) {
            self.hold_values(Quantity::Temperature, &shown.temperatures, &mut totals.temperatures, now);
            for (quantity, shown, value) in [
                (Quantity::Voltage, shown.voltage, &mut totals.voltage),
                (Quantity::Current, shown.current, &mut totals.current),
                (Quantity::RemainingCapacity, shown.remaining_capacity, &mut totals.remaining_capacity),
            ] {
                self.hold_values(quantity, &[shown], std::slice::from_mut(value), now);
            }
        }
    }

    fn hold_values(&mut self, quantity: Quantity, shown: &[Decimal], values: &mut [Decimal], now: Duration) {
        let Rule { dead_band, minimum_interval } = self.rules[quantity as usize];
        let free = self.renewed[quantity as usize] + minimum_interval;
        for (value, shown) in values.iter_mut().zip(shown) {
            let change = (value.digits() - shown.digits()).abs();
            if change == 0 {
                continue;
            }
            let is_noise = change < dead_band.digits();
            if is_noise || now < free {
                *value = *shown;
                if !is_noise {
                    self.due = Some(self.due.map_or(free, |due| due.min(free)));
                }
            } else {
                self.renewed[quantity as usize] = now;
            }
        }
    }
}

/// While a protection is active or one ends, when the current turns, and when a value begins or ceases to be doubtful,
/// everything is shown as it was read.
fn differs_by_numbers_only(shown: &Reading, reading: &Reading) -> bool {
    let kind = |reading: &Reading| {
        let totals = reading.totals.as_ref();
        let totals = totals.map(|totals| (totals.protections, totals.mode(), totals.temperatures.len()));
        (totals, reading.cells.len(), reading.doubts())
    };
    let protected = reading.totals.as_ref().is_some_and(|totals| !totals.protections.is_empty());
    !protected && kind(shown) == kind(reading)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::protection::Protections;
    use crate::pack::reading::Totals;

    const SECOND: Duration = Duration::from_secs(1);

    fn held(quantity: Quantity, dead_band: i64, minimum_interval: Duration) -> DeadBand {
        let places = Quantity::ALL[quantity as usize].3;
        let mut rules = Rules::default();
        rules[quantity as usize] = Rule { dead_band: Decimal::new(dead_band, places), minimum_interval };
        DeadBand::new(rules)
    }

    fn reading(current: i64, millivolts: &[i64]) -> Reading {
        let totals = Totals {
            current: Decimal::new(current, 2),
            cell_count: millivolts.len() as u8,
            ..Totals::default()
        };
        let cells = millivolts.iter().map(|&mv| Decimal::new(mv, 3)).collect();
        Reading { totals: Some(totals), cells }
    }

    fn cells(reading: &Reading) -> Vec<i64> {
        reading.cells.iter().map(|voltage| voltage.digits()).collect()
    }

    #[test]
    fn quantities_stand_in_their_own_order() {
        for (place, (quantity, ..)) in Quantity::ALL.into_iter().enumerate() {
            assert_eq!(quantity as usize, place);
        }
    }

    #[test]
    fn noise_stays_within_the_band_and_a_drift_does_not() {
        let mut shown = held(Quantity::CellVoltage, 3, Duration::ZERO);
        for (read, expected) in [
            ([3300, 3310], [3300, 3310]),
            ([3302, 3308], [3300, 3310]), // noise
            ([3303, 3309], [3303, 3310]), // 3 mV is no noise
            ([3301, 3313], [3303, 3313]),
            ([3300, 3313], [3300, 3313]),
        ] {
            assert_eq!(cells(shown.show(reading(0, &read), SECOND)), expected, "{read:?}");
        }
    }

    #[test]
    fn after_the_interval_the_newest_value_is_shown() {
        let mut shown = held(Quantity::CellVoltage, 0, 10 * SECOND);
        for (second, read, expected) in [
            (100, [3300, 3310], [3300, 3310]),
            (105, [3200, 3310], [3300, 3310]),
            (109, [3100, 3310], [3300, 3310]),
            (110, [3000, 3310], [3000, 3310]),
            (115, [3000, 3311], [3000, 3310]),
            (120, [3000, 3311], [3000, 3311]),
            (140, [3000, 3311], [3000, 3311]),
            (141, [3000, 3312], [3000, 3312]),
        ] {
            assert_eq!(cells(shown.show(reading(0, &read), second * SECOND)), expected, "second {second}");
        }
    }

    #[test]
    fn what_time_holds_back_is_due_when_the_time_is_over_and_noise_never() {
        let mut shown = held(Quantity::CellVoltage, 3, 10 * SECOND);
        assert_eq!(cells(shown.show(reading(0, &[3300]), 100 * SECOND)), [3300]);
        shown.show(reading(0, &[3302]), 101 * SECOND);
        assert_eq!(shown.due(), None, "noise");
        assert_eq!(cells(shown.show(reading(0, &[3310]), 102 * SECOND)), [3300]);
        assert_eq!(shown.due(), Some(110 * SECOND));
        // The same reading again, when it is due.
        assert_eq!(cells(shown.show(reading(0, &[3310]), 110 * SECOND)), [3310]);
        assert_eq!(shown.due(), None);
    }

    #[test]
    fn with_a_protection_or_a_turn_of_the_current_everything_is_as_it_was_read() {
        let mut shown = held(Quantity::CellVoltage, 100, 1000 * SECOND);
        let protected = |millivolts| {
            let mut reading = reading(0, &[millivolts]);
            reading.totals.as_mut().unwrap().protections = Protections::from_bits(1);
            reading
        };
        for (read, expected) in [
            (reading(0, &[3600]), 3600),
            (reading(0, &[3650]), 3600),
            (protected(3651), 3651),
            (protected(3652), 3652),
            (reading(0, &[3649]), 3649), // it has ended
            (reading(0, &[3640]), 3649),
            (reading(-5, &[3641]), 3641),
            (reading(-6, &[3640]), 3641),
        ] {
            assert_eq!(cells(shown.show(read.clone(), SECOND)), [expected], "{read:?}");
        }
    }

    #[test]
    fn what_is_doubtful_or_not_there_any_more_shows_at_once() {
        let mut shown = held(Quantity::Temperature, 0, 1000 * SECOND);
        let warm = |tenths: i64| {
            let totals =
                Totals { temperatures: [Decimal::new(tenths, 1)].into_iter().collect(), ..Totals::default() };
            Reading { totals: Some(totals), ..Reading::default() }
        };
        for (read, expected) in [(warm(200), warm(200)), (warm(210), warm(200)), (warm(-2731), warm(-2731))] {
            assert_eq!(shown.show(read, SECOND), &expected);
        }
        assert_eq!(shown.show(Reading::default(), SECOND), &Reading::default());
    }

    #[test]
    fn what_is_not_held_back_passes() {
        let mut shown = held(Quantity::CellVoltage, 100, 1000 * SECOND);
        shown.show(reading(100, &[3300]), SECOND);
        let next = shown.show(reading(101, &[3301]), SECOND);
        assert_eq!(
            (next.totals.as_ref().unwrap().current, next.cells[0]),
            (Decimal::new(101, 2), Decimal::new(3300, 3))
        );
    }
}
