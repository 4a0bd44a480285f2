//! Bytes as people write them.

use std::fmt;

/// Bytes as people write them: `DD A5 03 00 FF FD 77`.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let space = if place == 0 { "" } else { " " };
            write!(f, "{space}{byte:02X}")?;
        }
        Ok(())
    }
}

/// Why a text is no hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHex {
    Digit(char),
    /// So many digits, of which a byte has two.
    HalfByte(usize),
}

impl fmt::Display for NotHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotHex::Digit(other) => write!(f, "{other:?} is no hex digit"),
            NotHex::HalfByte(digits) => write!(f, "{digits} hex digits; a byte has two"),
        }
    }
}

/// Bytes from hex, with or without white space.
///
/// # Errors
/// The first character that is no digit, or how many digits there are.
pub fn parse(text: &str) -> Result<Vec<u8>, NotHex> {
    let digits = text.chars().filter(|char| !char.is_whitespace());
    let digits = digits.map(|char| char.to_digit(16).map(|digit| digit as u8).ok_or(NotHex::Digit(char)));
    let digits: Vec<u8> = digits.collect::<Result<_, _>>()?;
    if digits.len() % 2 != 0 {
        return Err(NotHex::HalfByte(digits.len()));
    }
    Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_survives_the_round_trip_and_wrong_hex_says_why() {
        let bytes = [0xDD, 0xA5, 0x03, 0x00];
        assert_eq!(Hex(&bytes).to_string(), "DD A5 03 00");
        for text in ["DD A5 03 00", "dda50300", "\n D D\tA5 03 00 "] {
            assert_eq!(parse(text).as_deref(), Ok(&bytes[..]), "{text:?}");
        }
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse("DD 0O"), Err(NotHex::Digit('O')));
        assert_eq!(parse("DD 0"), Err(NotHex::HalfByte(3)));
    }
}
