//! What stands in the data of an answer: decode and encode side by side, integers as on the wire. Pure.
//!
//! All numbers are big-endian. Offsets are those of JBD's "General Protocol V4" and "common protocol V11".

use std::fmt;

use smallvec::SmallVec;

/// Registers that every board lets anybody read.
pub mod register {
    pub const BASIC_INFO: u8 = 0x03;
    pub const CELL_VOLTAGES: u8 = 0x04;
    pub const NAME: u8 = 0x05;
    pub const COUNTERS: u8 = 0xAA;
}

/// As many as a board may have cells, in place: see [`pack::reading::Cells`](crate::pack::reading::Cells).
pub type Millivolts = SmallVec<[u16; CellVoltages::MOST]>;
/// 0.1 K each, up to 8 in place.
pub type Temperatures = SmallVec<[u16; 8]>;

/// Data that cannot be what its register holds, though length byte and checksum are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub register: u8,
    pub expected: &'static str,
    pub found: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Malformed { register, expected, found } = self;
        write!(f, "register {register:02X} has {found} bytes instead of {expected}")
    }
}

impl std::error::Error for Malformed {}

/// Register 0x03: the pack as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BasicInfo {
    /// Offset 0, 10 mV.
    pub voltage: u16,
    /// Offset 2, 10 mA (100 mA with [`BasicInfo::COARSE_UNIT`]); + is charging.
    pub current: i16,
    /// Offset 4, 10 mAh (100).
    pub remaining_capacity: u16,
    /// Offset 6, 10 mAh (100).
    pub nominal_capacity: u16,
    /// Offset 8.
    pub cycles: u16,
    /// Offset 10: day in bits 0 to 4, month in 5 to 8, years since 2000 in 9 to 15.
    pub production_date: u16,
    /// Offsets 12 (cells 1 to 16) and 14 (17 to 32): two words, each with its lowest cell in bit 0.
    pub balancing: u32,
    /// Offset 16.
    pub protections: u16,
    /// Offset 18: major version in the high nibble, minor in the low one (0xA1 is 10.1).
    pub software_version: u8,
    /// Offset 19, %.
    pub state_of_charge: u8,
    /// Offset 20: bit 0 charge MOSFET on, bit 1 discharge MOSFET on, bit 2 current limiter, bit 3 heater,
    /// bit 7 [`BasicInfo::COARSE_UNIT`].
    pub mosfets: u8,
    /// Offset 21.
    pub cell_count: u8,
    /// Offset 23, count at 22: 0.1 K, where 2731 is 0 °C.
    pub temperatures: Temperatures,
    /// Behind the temperatures, on newer boards only.
    pub tail: Option<Tail>,
}

/// The nine bytes that newer boards append to register 0x03: all of them or none in every captured frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// %.
    pub humidity: u8,
    pub alarms: u16,
    /// The capacity that the board has learned, 10 mAh (100).
    pub full_charge_capacity: u16,
    /// The same as at offset 4.
    pub remaining_capacity: u16,
    /// mA.
    pub balance_current: u16,
}

impl BasicInfo {
    /// Bit 7 of `mosfets`: current and capacities count 0.1 A and 0.1 Ah (packs above 655 Ah).
    pub const COARSE_UNIT: u8 = 1 << 7;

    /// # Errors
    /// When the data is shorter than its own number of temperatures says.
    pub fn decode(data: &[u8]) -> Result<BasicInfo, Malformed> {
        let malformed = |expected| Malformed { register: register::BASIC_INFO, expected, found: data.len() };
        let (head, rest) = data.split_first_chunk::<23>().ok_or_else(|| malformed("at least 23"))?;
        let (temperatures, tail) = rest
            .split_at_checked(2 * usize::from(head[22]))
            .ok_or_else(|| malformed("23 and two for each temperature"))?;
        Ok(BasicInfo {
            voltage: word(head, 0),
            current: i16::from_be_bytes([head[2], head[3]]),
            remaining_capacity: word(head, 4),
            nominal_capacity: word(head, 6),
            cycles: word(head, 8),
            production_date: word(head, 10),
            balancing: u32::from(word(head, 14)) << 16 | u32::from(word(head, 12)),
            protections: word(head, 16),
            software_version: head[18],
            state_of_charge: head[19],
            mosfets: head[20],
            cell_count: head[21],
            temperatures: words(temperatures).collect(),
            tail: tail.first_chunk::<9>().map(|tail| Tail {
                humidity: tail[0],
                alarms: word(tail, 1),
                full_charge_capacity: word(tail, 3),
                remaining_capacity: word(tail, 5),
                balance_current: word(tail, 7),
            }),
        })
    }

    /// The number of temperatures is one byte: more than 255 are cut.
    pub fn encode(&self) -> Vec<u8> {
        let count = u8::try_from(self.temperatures.len()).unwrap_or(u8::MAX);
        let mut data = Vec::with_capacity(64);
        for word in [
            self.voltage,
            u16::from_be_bytes(self.current.to_be_bytes()),
            self.remaining_capacity,
            self.nominal_capacity,
            self.cycles,
            self.production_date,
            (self.balancing & 0xFFFF) as u16,
            (self.balancing >> 16) as u16,
            self.protections,
        ] {
            data.extend(word.to_be_bytes());
        }
        data.extend([self.software_version, self.state_of_charge, self.mosfets, self.cell_count]);
        data.push(count);
        for temperature in &self.temperatures[..count.into()] {
            data.extend(temperature.to_be_bytes());
        }
        if let Some(tail) = self.tail {
            data.push(tail.humidity);
            for word in
                [tail.alarms, tail.full_charge_capacity, tail.remaining_capacity, tail.balance_current]
            {
                data.extend(word.to_be_bytes());
            }
        }
        data
    }
}

/// Register 0x04: mV of each cell, cell 1 first.
///
/// The number of cells is what the length says; register 0x03's count may differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CellVoltages(pub Millivolts);

impl CellVoltages {
    /// The balance words of register 0x03 have a bit for each of 32 cells.
    pub const MOST: usize = 32;

    /// # Errors
    /// When the data is not one word for each of 1 to 32 cells.
    pub fn decode(data: &[u8]) -> Result<CellVoltages, Malformed> {
        if data.is_empty() || data.len() % 2 != 0 || data.len() > 2 * Self::MOST {
            return Err(Malformed {
                register: register::CELL_VOLTAGES,
                expected: "two for each of 1 to 32 cells",
                found: data.len(),
            });
        }
        Ok(CellVoltages(words(data).collect()))
    }

    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(|cell| cell.to_be_bytes()).collect()
    }
}

/// Register 0x05: the board's name, up to 31 ASCII characters, at times padded with NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name(pub String);

impl Name {
    /// What is not a printable character is left out: a name is for people to read.
    pub fn decode(data: &[u8]) -> Name {
        let text = data.iter().take_while(|&&byte| byte != 0);
        let printable = text.filter(|byte| byte.is_ascii_graphic() || **byte == b' ');
        let name: String = printable.map(|&byte| char::from(byte)).collect();
        Name(name.trim().to_owned())
    }

    pub fn encode(&self) -> Vec<u8> {
        self.0.bytes().collect()
    }
}

/// Register 0xAA: how often each protection has tripped since the counters were cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorCounters {
    /// Offsets 0 to 20, in the order of the wire.
    pub trips: [u16; 11],
    /// Offset 22; newer boards only.
    pub system_restarts: Option<u16>,
}

impl ErrorCounters {
    /// # Errors
    /// When the data is not 11 or 12 words.
    pub fn decode(data: &[u8]) -> Result<ErrorCounters, Malformed> {
        if !matches!(data.len(), 22 | 24) {
            return Err(Malformed { register: register::COUNTERS, expected: "22 or 24", found: data.len() });
        }
        let trips = std::array::from_fn(|index| word(data, 2 * index));
        Ok(ErrorCounters { trips, system_restarts: (data.len() == 24).then(|| word(data, 22)) })
    }

    pub fn encode(&self) -> Vec<u8> {
        self.trips.into_iter().chain(self.system_restarts).flat_map(u16::to_be_bytes).collect()
    }
}

/// The callers have checked the length.
fn word(data: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([data[offset], data[offset + 1]])
}

fn words(data: &[u8]) -> impl Iterator<Item = u16> {
    data.chunks_exact(2).map(|pair| word(pair, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 14S pack while charging, with the tail of newer boards (captured).
    const WITH_TAIL: [u8; 36] = [
        0x15, 0x17, // 53.99 V
        0x00, 0xCB, // +2.03 A
        0x03, 0xE2, 0x06, 0xD6, // 9.94 of 17.50 Ah
        0x00, 0x01, // 1 cycle
        0x34, 0xEA, // 2026-07-10
        0x00, 0x00, 0x00, 0x00, // nothing balances
        0x00, 0x00, // no protection
        0x32, 0x39, 0x03, 0x0E, // version 3.2, 57 %, both MOSFETs on, 14 cells
        0x02, 0x0C, 0x39, 0x0B, 0x8E, // 2 temperatures: 39.8 and 22.7 °C
        0x00, // humidity
        0x00, 0x00, // alarms
        0x06, 0xD6, 0x03, 0xE2, // learned and remaining capacity
        0x00, 0x00, // balance current
    ];

    #[test]
    fn basic_info_survives_the_round_trip() {
        let info = BasicInfo::decode(&WITH_TAIL).unwrap();
        assert_eq!(info.current, 203);
        assert_eq!(info.temperatures[..], [3129, 2958]);
        assert_eq!(info.tail.map(|tail| tail.full_charge_capacity), Some(1750));
        assert_eq!(info.encode(), WITH_TAIL);
    }

    #[test]
    fn balance_words_put_cell_1_into_bit_0_and_cell_17_into_bit_16() {
        let mut data = WITH_TAIL;
        data[12..16].copy_from_slice(&[0x02, 0x82, 0x00, 0x01]); // cells 2, 8 and 10; cell 17
        let info = BasicInfo::decode(&data).unwrap();
        assert_eq!(info.balancing, 1 << 16 | 0b10_1000_0010);
        assert_eq!(info.encode(), data);
    }

    #[test]
    fn temperatures_that_the_length_does_not_hold_are_refused() {
        for length in (0..23).chain(23..27) {
            assert!(BasicInfo::decode(&WITH_TAIL[..length]).is_err(), "{length} bytes");
        }
        // A tail is all nine bytes or none.
        assert_eq!(BasicInfo::decode(&WITH_TAIL[..27]).unwrap().tail, None);
        assert_eq!(BasicInfo::decode(&WITH_TAIL[..35]).unwrap().tail, None);
    }

    #[test]
    fn cells_are_as_many_as_the_length_says() {
        for cells in 1..=32 {
            let voltages = CellVoltages((0..cells).map(|cell| 3000 + cell).collect());
            assert_eq!(CellVoltages::decode(&voltages.encode()), Ok(voltages));
        }
        for length in [0, 1, 7, 66] {
            let error = CellVoltages::decode(&vec![0; length]).unwrap_err();
            assert_eq!(error.found, length);
        }
    }

    #[test]
    fn counters_have_eleven_words_or_twelve() {
        let words: Vec<u8> = (1..=12_u16).flat_map(u16::to_be_bytes).collect();
        let new = ErrorCounters::decode(&words).unwrap();
        assert_eq!((new.trips[0], new.system_restarts), (1, Some(12)));
        assert_eq!(new.encode(), words);
        let old = ErrorCounters::decode(&words[..22]).unwrap();
        assert_eq!((old.trips[10], old.system_restarts), (11, None));
        assert_eq!(old.encode(), words[..22]);
        assert!(ErrorCounters::decode(&words[..23]).is_err());
    }

    #[test]
    fn a_name_is_what_people_can_read() {
        assert_eq!(Name::decode(b"JBD-SP04S034\0\0\0").0, "JBD-SP04S034");
        assert_eq!(Name::decode(b" \x07JBD\xFF ").0, "JBD");
        assert_eq!(Name::decode(b"").0, "");
    }
}
