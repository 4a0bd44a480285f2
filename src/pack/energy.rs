//! Power over time → energy charged and discharged, which never fall.
//!
//! Home Assistant's `total_increasing` takes a fall for a reset and adds false energy, so only totals that
//! have been saved are shown: whatever is lost with the power, the next start shows no less than the last did.

use std::time::Duration;

use super::decimal::Decimal;

/// What is shown: kWh with two decimals, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Energy {
    pub charged: Decimal,
    pub discharged: Decimal,
}

/// What is counted and saved, in steps of 100 nJ: a power in steps of 0.1 mW times milliseconds. 64 bits
/// of them are 512 MWh: seventy years of a full cycle a day of 20 kWh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub(super) charged: u64,
    pub(super) discharged: u64,
}

impl Totals {
    /// Counts an interval between two readings as the mean of their powers; what flows in and what flows out
    /// are averaged apart, so that a change of sign in between adds to both and takes from neither.
    ///
    /// `before` and `now` are W with four decimals, + is charging.
    pub fn add(&mut self, before: Decimal, now: Decimal, interval: Duration) {
        let count = |total: &mut u64, before: i64, now: i64| {
            let power = before.max(0).unsigned_abs() + now.max(0).unsigned_abs();
            // Twice the mean power, and microseconds: 2000 of their products are one step.
            let steps = u128::from(power) * interval.as_micros() / 2000;
            *total = total.saturating_add(u64::try_from(steps).unwrap_or(u64::MAX));
        };
        let (before, now) = (before.round_to(4).digits(), now.round_to(4).digits());
        count(&mut self.charged, before, now);
        count(&mut self.discharged, -before, -now);
    }

    #[must_use]
    pub const fn plus(self, other: Totals) -> Totals {
        Totals {
            charged: self.charged.saturating_add(other.charged),
            discharged: self.discharged.saturating_add(other.discharged),
        }
    }

    pub fn energy(&self) -> Energy {
        /// 10 Wh.
        const STEP: u64 = 360_000_000_000;
        // A u64 over the step always fits.
        let shown = |total: u64| Decimal::new((total / STEP) as i64, 2);
        Energy { charged: shown(self.charged), discharged: shown(self.discharged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn watts(watts: i64) -> Decimal {
        Decimal::new(watts, 0)
    }

    fn shown(totals: Totals) -> (String, String) {
        let Energy { charged, discharged } = totals.energy();
        (charged.to_string(), discharged.to_string())
    }

    #[test]
    fn an_hour_at_a_kilowatt_is_a_kilowatt_hour() {
        let mut totals = Totals::default();
        totals.add(watts(1000), watts(1000), HOUR);
        assert_eq!(shown(totals), ("1.00".into(), "0.00".into()));
        totals.add(watts(-500), watts(-500), HOUR);
        assert_eq!(shown(totals), ("1.00".into(), "0.50".into()));
    }

    #[test]
    fn many_short_intervals_are_one_long_one() {
        let mut totals = Totals::default();
        for _ in 0..36_000 {
            totals.add(Decimal::new(999_9999, 4), Decimal::new(1000_0001, 4), HOUR / 36_000);
        }
        assert_eq!(totals.charged, 36_000_000_000_000);
    }

    #[test]
    fn a_change_of_sign_adds_to_both() {
        let mut totals = Totals::default();
        totals.add(watts(100), watts(-200), HOUR);
        assert_eq!(shown(totals), ("0.05".into(), "0.10".into()));
    }

    #[test]
    fn the_end_of_the_scale_is_an_end() {
        let mut totals = Totals { charged: u64::MAX - 1, discharged: 0 };
        totals.add(watts(i64::MAX), watts(i64::MAX), HOUR);
        assert_eq!(totals.charged, u64::MAX);
    }
}
