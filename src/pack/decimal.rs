//! A fixed-point number: exact, compares, and prints its own decimals.
//!
//! A board sends integers in fixed steps (1 mV, 10 mA, 0.1 K). They stay integers until they are
//! printed, so that what stands in a topic is what stood on the wire.

use std::fmt;

/// `digits` × 10^-`places`; 26.66 is `Decimal::new(2666, 2)`.
///
/// Two numbers are equal when they print the same: 1.0 and 1.00 are different values of a topic.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Decimal {
    digits: i64,
    places: u8,
}

impl Decimal {
    /// The most decimals that can be asked for: every power of ten up to here fits an `i64`.
    pub const MOST_PLACES: u8 = 9;

    pub const fn new(digits: i64, places: u8) -> Decimal {
        assert!(places <= Decimal::MOST_PLACES);
        Decimal { digits, places }
    }

    /// The number without its point: 2666 of 26.66.
    pub const fn digits(self) -> i64 {
        self.digits
    }

    /// The same number with `places` decimals; halves are rounded away from zero.
    pub const fn round_to(self, places: u8) -> Decimal {
        if places >= self.places {
            let grown = power_of_ten(places - self.places);
            return Decimal::new(self.digits.saturating_mul(grown), places);
        }
        Decimal::new(divide_rounding(self.digits, power_of_ten(self.places - places)), places)
    }

    /// For what is reckoned and rounded anyway.
    pub fn to_f64(self) -> f64 {
        self.digits as f64 / power_of_ten(self.places) as f64
    }

    /// The product with all its decimals: 26.66 V × 1.50 A = 39.9900 W.
    pub const fn times(self, other: Decimal) -> Decimal {
        Decimal::new(self.digits.saturating_mul(other.digits), self.places + other.places)
    }
}

/// `a / b` to the nearest integer, halves away from zero. `b` is positive.
pub const fn divide_rounding(a: i64, b: i64) -> i64 {
    let (quotient, rest) = (a / b, a % b);
    if rest.unsigned_abs() * 2 >= b.unsigned_abs() { quotient + a.signum() } else { quotient }
}

const fn power_of_ten(exponent: u8) -> i64 {
    10_i64.pow(exponent as u32)
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = power_of_ten(self.places).unsigned_abs();
        let magnitude = self.digits.unsigned_abs();
        if self.digits < 0 {
            f.write_str("-")?;
        }
        write!(f, "{}", magnitude / unit)?;
        if self.places > 0 {
            let width = usize::from(self.places);
            write!(f, ".{:0width$}", magnitude % unit)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_its_own_decimals() {
        for (digits, places, text) in [
            (2666, 2, "26.66"),
            (0, 2, "0.00"),
            (-5, 2, "-0.05"),
            (-2012, 2, "-20.12"),
            (3332, 3, "3.332"),
            (99, 0, "99"),
            (i64::MIN, 0, "-9223372036854775808"),
        ] {
            assert_eq!(Decimal::new(digits, places).to_string(), text);
        }
    }

    #[test]
    fn rounds_halves_away_from_zero_and_never_shows_minus_zero() {
        for (digits, places, to, text) in [
            (7911, 2, 1, "79.1"),
            (7915, 2, 1, "79.2"),
            (-7915, 2, 1, "-79.2"),
            (-4, 2, 1, "0.0"),
            (222, 1, 2, "22.20"),
            (395_999_999, 4, 2, "39600.00"),
        ] {
            assert_eq!(Decimal::new(digits, places).round_to(to).to_string(), text);
        }
    }

    #[test]
    fn a_product_keeps_every_decimal() {
        let power = Decimal::new(6623, 2).times(Decimal::new(-2012, 2));
        assert_eq!(power.to_string(), "-1332.5476");
        assert_eq!(power.round_to(2).to_string(), "-1332.55");
    }
}
