//! The protections of a pack: what a board switches off for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// In the order of the bits 0 to 14 of a JBD board's protection word (register 0x03, offset 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Protection {
    CellOvervoltage,
    CellUndervoltage,
    PackOvervoltage,
    PackUndervoltage,
    ChargeOvertemperature,
    ChargeUndertemperature,
    DischargeOvertemperature,
    DischargeUndertemperature,
    ChargeOvercurrent,
    DischargeOvercurrent,
    ShortCircuit,
    FrontEndError,
    /// Set while a MOSFET is switched off by command: no fault by itself.
    MosfetSoftwareLock,
    ChargeMosfetBreakdown,
    DischargeMosfetBreakdown,
}

impl Protection {
    pub const ALL: [(Protection, &'static str); 15] = [
        (Protection::CellOvervoltage, "cell_overvoltage"),
        (Protection::CellUndervoltage, "cell_undervoltage"),
        (Protection::PackOvervoltage, "pack_overvoltage"),
        (Protection::PackUndervoltage, "pack_undervoltage"),
        (Protection::ChargeOvertemperature, "charge_overtemperature"),
        (Protection::ChargeUndertemperature, "charge_undertemperature"),
        (Protection::DischargeOvertemperature, "discharge_overtemperature"),
        (Protection::DischargeUndertemperature, "discharge_undertemperature"),
        (Protection::ChargeOvercurrent, "charge_overcurrent"),
        (Protection::DischargeOvercurrent, "discharge_overcurrent"),
        (Protection::ShortCircuit, "short_circuit"),
        (Protection::FrontEndError, "front_end_error"),
        (Protection::MosfetSoftwareLock, "mosfet_software_lock"),
        (Protection::ChargeMosfetBreakdown, "charge_mosfet_breakdown"),
        (Protection::DischargeMosfetBreakdown, "discharge_mosfet_breakdown"),
    ];
}

/// A set of protections. Prints the active ones' keys, comma separated; nothing when there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Protections(u16);

impl Protections {
    /// From a word whose bits stand in the order of [`Protection`]; bit 15 is reserved and ignored.
    pub const fn from_bits(bits: u16) -> Protections {
        Protections(bits & 0x7FFF)
    }

    pub const fn contains(self, protection: Protection) -> bool {
        self.0 & (1 << protection as u8) != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The software lock only says that a MOSFET was switched off by command.
    pub const fn without_software_lock(self) -> Protections {
        Protections(self.0 & !(1 << Protection::MosfetSoftwareLock as u8))
    }

    pub const fn without(self, others: Protections) -> Protections {
        Protections(self.0 & !others.0)
    }

    /// Is there any besides the software lock?
    pub const fn is_problem(self) -> bool {
        !self.without_software_lock().is_empty()
    }

    /// The keys of the active ones, in the order of their bits.
    pub fn keys(self) -> impl Iterator<Item = &'static str> {
        Protection::ALL
            .into_iter()
            .filter(move |&(protection, _)| self.contains(protection))
            .map(|(_, key)| key)
    }
}

impl fmt::Display for Protections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, key) in self.keys().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            f.write_str(key)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_is_the_protection_at_its_place() {
        for (bit, (protection, key)) in Protection::ALL.into_iter().enumerate() {
            assert_eq!(protection as usize, bit);
            let set = Protections::from_bits(1 << bit);
            assert!(set.contains(protection));
            assert_eq!(set.to_string(), key);
            assert_eq!(set.is_problem(), protection != Protection::MosfetSoftwareLock);
        }
        assert!(Protections::from_bits(0x8000).is_empty());
    }

    #[test]
    fn several_are_comma_separated() {
        let set = Protections::from_bits(0x1001);
        assert_eq!(set.to_string(), "cell_overvoltage,mosfet_software_lock");
        assert!(set.is_problem());
    }
}
