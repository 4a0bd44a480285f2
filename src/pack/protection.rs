//! The protections of a pack: what a board switches off for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whatever a protocol calls them. The order is that of the bits on the disk (`pack::record`): it never changes, and
/// new ones come behind.
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
///
/// On the disk it is a number whose bits stand in the order of [`Protection`]. Bits that this version does not know
/// were saved by a newer one: they are kept, and print as `protection_N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Protections(u64);

impl Protections {
    /// From bits in the order of [`Protection`].
    pub const fn from_bits(bits: u64) -> Protections {
        Protections(bits)
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

    /// The keys of the active ones that this version knows, in the order of their bits.
    pub fn keys(self) -> impl Iterator<Item = &'static str> {
        Protection::ALL
            .into_iter()
            .filter(move |&(protection, _)| self.contains(protection))
            .map(|(_, key)| key)
    }

    fn unknown(self) -> impl Iterator<Item = u32> {
        (Protection::ALL.len() as u32..u64::BITS).filter(move |bit| self.0 & (1 << bit) != 0)
    }
}

impl FromIterator<Protection> for Protections {
    fn from_iter<I: IntoIterator<Item = Protection>>(active: I) -> Protections {
        Protections(active.into_iter().fold(0, |bits, protection| bits | 1 << protection as u8))
    }
}

impl fmt::Display for Protections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for key in self.keys() {
            write!(f, "{comma}{key}")?;
            comma = ",";
        }
        for bit in self.unknown() {
            write!(f, "{comma}protection_{bit}")?;
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_on_the_disk_is_the_protection_with_that_index() {
        for (bit, (protection, key)) in Protection::ALL.into_iter().enumerate() {
            assert_eq!(protection as usize, bit);
            let set = Protections::from_bits(1 << bit);
            assert_eq!(Protections::from_iter([protection]), set);
            assert!(set.contains(protection));
            assert_eq!(set.to_string(), key);
            assert_eq!(set.is_problem(), protection != Protection::MosfetSoftwareLock);
        }
    }

    #[test]
    fn what_a_newer_version_saved_is_kept() {
        let saved = "2147516417"; // bits 0, 15 and 31
        let set: Protections = serde_json::from_str(saved).unwrap();
        assert_eq!(set.to_string(), "cell_overvoltage,protection_15,protection_31");
        assert_eq!(serde_json::to_string(&set).unwrap(), saved);
        assert!(set.without(Protections::from_bits(1)).is_problem());
    }

    #[test]
    fn several_are_comma_separated() {
        let set = Protections::from_bits(0x1001);
        assert_eq!(set.to_string(), "cell_overvoltage,mosfet_software_lock");
        assert!(set.is_problem());
    }
}
