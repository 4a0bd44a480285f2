//! When will the pack be full, or empty, if it goes on like this? From the current of the last minutes, and unknown
//! where nobody can know.

use std::time::Duration;

use super::reading::{Mode, Totals};

/// How long the current is smoothed over, as battery monitors do by default: a kettle moves the forecast, a fridge
/// that starts does not upset it.
const SMOOTHING: Duration = Duration::from_secs(180);
/// Further ahead, a small error in a small current is days: unknown.
const FURTHEST_MINUTES: f64 = 10.0 * 24.0 * 60.0;

/// Minutes until the pack is full and until it is empty; `None` where that is not to be expected, or not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    pub time_to_full: Option<u64>,
    pub time_to_empty: Option<u64>,
}

/// The smoothed current.
#[derive(Default)]
pub struct Forecaster {
    /// A, + is charging; `None` while nothing flows.
    average: Option<f64>,
}

impl Forecaster {
    /// Takes in a reading that came so long after the one before. `None` is a gap of which nothing is known.
    pub fn add(&mut self, totals: &Totals, since_last: Option<Duration>) -> Forecast {
        let current = totals.current.to_f64();
        let average = match (self.average, since_last) {
            // What flows the other way now says nothing of what flowed before, nor does rest.
            (Some(average), Some(passed)) if average * current > 0.0 => {
                // A low-pass filter in steps. The exponential function would be no better here, and brings a library of
                // 0.9 MB into memory.
                let passed = passed.as_secs_f64();
                let weight = passed / (passed + SMOOTHING.as_secs_f64());
                average + (current - average) * weight
            }
            _ => current,
        };
        self.average = Some(average).filter(|average| *average != 0.0);
        let nominal = totals.nominal_capacity.to_f64();
        let full = totals.learned_capacity().map_or(nominal, |learned| learned.to_f64());
        let remaining = totals.remaining_capacity.to_f64();
        match totals.mode() {
            // A board that knows no capacity cannot tell when it is reached.
            Mode::Charging if full > 0.0 => {
                Forecast { time_to_full: minutes(full - remaining, average), time_to_empty: None }
            }
            Mode::Discharging => Forecast { time_to_full: None, time_to_empty: minutes(remaining, -average) },
            _ => Forecast::default(),
        }
    }
}

/// How long `capacity` (Ah) lasts at `current` (A), no finer than a forecast can be: each step is a row in somebody's
/// database.
fn minutes(capacity: f64, current: f64) -> Option<u64> {
    let minutes = capacity.max(0.0) / current * 60.0;
    // Not so for what is no number either.
    let known = (0.0..=FURTHEST_MINUTES).contains(&minutes);
    let step = match minutes {
        ..120.0 => 1.0,
        120.0..600.0 => 5.0,
        _ => 30.0,
    };
    known.then_some(((minutes / step).round() * step) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::decimal::Decimal;

    const SECOND: Option<Duration> = Some(Duration::from_secs(1));

    fn totals(current: i64, remaining: i64) -> Totals {
        Totals {
            current: Decimal::new(current, 2),
            remaining_capacity: Decimal::new(remaining, 2),
            nominal_capacity: Decimal::new(10_000, 2),
            ..Totals::default()
        }
    }

    fn full(minutes: u64) -> Forecast {
        Forecast { time_to_full: Some(minutes), time_to_empty: None }
    }

    fn empty(minutes: u64) -> Forecast {
        Forecast { time_to_full: None, time_to_empty: Some(minutes) }
    }

    #[test]
    fn half_of_100_ah() {
        let first = |current, remaining| Forecaster::default().add(&totals(current, remaining), None);
        assert_eq!(first(5000, 5000), full(60));
        assert_eq!(first(-2500, 5000), empty(120));
        assert_eq!(first(0, 5000), Forecast::default());
        assert_eq!(first(5000, 10_100), full(0)); // boards count past full
        assert_eq!(first(-2500, 0), empty(0));
        assert_eq!(first(-1, 5000), Forecast::default()); // 5000 h
    }

    #[test]
    fn a_learned_capacity_is_what_full_means() {
        let learned = |digits| {
            let learned =
                Totals { full_charge_capacity: Some(Decimal::new(digits, 2)), ..totals(5000, 5000) };
            Forecaster::default().add(&learned, None)
        };
        assert_eq!(learned(7500), full(30));
        assert_eq!(learned(0), full(60)); // nothing learned yet
        let unknown = Totals { nominal_capacity: Decimal::new(0, 2), ..totals(5000, 0) };
        assert_eq!(Forecaster::default().add(&unknown, None), Forecast::default());
    }

    #[test]
    fn a_kettle_moves_it_in_minutes_and_the_sun_at_once() {
        let mut forecaster = Forecaster::default();
        assert_eq!(forecaster.add(&totals(-1000, 5000), None), empty(300));
        assert_eq!(forecaster.add(&totals(-10_000, 5000), SECOND), empty(285));
        for _ in 0..180 {
            forecaster.add(&totals(-10_000, 5000), SECOND);
        }
        // Two thirds of the way from 10 A to 100 A.
        assert_eq!(forecaster.add(&totals(-10_000, 5000), SECOND), empty(45));
        assert_eq!(forecaster.add(&totals(1000, 5000), SECOND), full(300));
        // Idle is unknown at once, and what comes after it is no mean of rest and work.
        for _ in 0..600 {
            assert_eq!(forecaster.add(&totals(0, 5000), SECOND), Forecast::default());
        }
        assert_eq!(forecaster.add(&totals(5000, 5000), SECOND), full(60));
        // After a gap nothing is known of what was before.
        assert_eq!(forecaster.add(&totals(1000, 5000), None), full(300));
    }
}
