//! One poll of a pack in physical units, and what follows from it.
//!
//! A board need not have everything: what it does not answer is absent here, never zero.

use std::fmt;

use smallvec::SmallVec;

use super::decimal::{Decimal, divide_rounding};
use super::protection::Protections;

/// In place up to 32, the most that any board has: a poll asks for no memory.
pub type Cells = SmallVec<[Decimal; 32]>;
/// In place up to 8; boards have been seen to have 6.
pub type Temperatures = SmallVec<[Decimal; 8]>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// What the board says of the pack as a whole; `None` where it does not answer that.
    pub totals: Option<Totals>,
    /// Cell voltages in V with three decimals, cell 1 first; empty where the board does not tell them.
    pub cells: Cells,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// V, two decimals.
    pub voltage: Decimal,
    /// A, two decimals; + is charging.
    pub current: Decimal,
    /// Ah, two decimals.
    pub remaining_capacity: Decimal,
    /// Ah, two decimals.
    pub nominal_capacity: Decimal,
    /// What the board has learned that the pack holds when full; Ah, two decimals.
    pub full_charge_capacity: Option<Decimal>,
    /// %, as the board reckons it.
    pub state_of_charge: u8,
    pub cycles: u16,
    /// °C, one decimal.
    pub temperatures: Temperatures,
    pub charge_mosfet: bool,
    pub discharge_mosfet: bool,
    /// The board's own byte that `charge_mosfet` and `discharge_mosfet` come from.
    pub mosfet_status: u8,
    pub protections: Protections,
    /// Bit 0 is cell 1.
    pub balancing: u32,
    /// How many cells the board says it has.
    pub cell_count: u8,
    pub software_version: SoftwareVersion,
    pub production_date: Option<Date>,
}

/// What a right frame says and what yet cannot be. It is shown, not dropped silently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// The board counts other cells than it gives voltages of; those that have a voltage are shown.
    pub cell_count: bool,
    /// Bit 0 is temperature 1: off the scale, so its value is unknown.
    pub temperatures: u32,
}

impl Doubts {
    pub const fn is_empty(self) -> bool {
        !self.cell_count && self.temperatures == 0
    }
}

/// The keys of what is doubted, comma separated.
impl fmt::Display for Doubts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        if self.cell_count {
            f.write_str("cell_count")?;
            comma = ",";
        }
        for place in (0..u32::BITS).filter(|place| self.temperatures & (1 << place) != 0) {
            write!(f, "{comma}temperature_{}", place + 1)?;
            comma = ",";
        }
        Ok(())
    }
}

/// No thermistor beside a battery reads below -40 or above 150 °C: a probe that is broken or not there does. A probe
/// that is not connected was also seen to read -30.0 °C, which cannot be told from a winter.
pub fn is_plausible_temperature(temperature: Decimal) -> bool {
    (-400..=1500).contains(&temperature.round_to(1).digits())
}

/// What a pack does, by the sign of its current. Boards show small currents as none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Idle,
    Charging,
    Discharging,
}

impl Mode {
    pub const NAMES: [&'static str; 3] = ["idle", "charging", "discharging"];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Mode::NAMES[*self as usize])
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SoftwareVersion {
    pub major: u8,
    pub minor: u8,
}

impl fmt::Display for SoftwareVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    pub year: u16,
    pub month: u8,
    pub day: u8,
}

/// Trips since the board's counters were last cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub short_circuit: u16,
    pub charge_overcurrent: u16,
    pub discharge_overcurrent: u16,
    pub cell_overvoltage: u16,
    pub cell_undervoltage: u16,
    pub charge_overtemperature: u16,
    pub charge_undertemperature: u16,
    pub discharge_overtemperature: u16,
    pub discharge_undertemperature: u16,
    pub pack_overvoltage: u16,
    pub pack_undervoltage: u16,
    /// Newer boards only.
    pub system_restarts: Option<u16>,
}

impl Totals {
    /// W with all its four decimals; + is charging.
    pub const fn power(&self) -> Decimal {
        self.voltage.times(self.current)
    }

    pub const fn mode(&self) -> Mode {
        match self.current.digits() {
            0 => Mode::Idle,
            1.. => Mode::Charging,
            _ => Mode::Discharging,
        }
    }

    /// What the board has learned that the pack holds when full, in Ah; boards that have not learned yet say 0.
    pub fn learned_capacity(&self) -> Option<Decimal> {
        self.full_charge_capacity.filter(|capacity| capacity.digits() > 0)
    }

    /// What the pack holds when full, in % of what it held when new, one decimal. A good pack has over 100.
    pub fn state_of_health(&self) -> Option<Decimal> {
        let nominal = Some(self.nominal_capacity.digits()).filter(|&nominal| nominal > 0)?;
        Some(Decimal::new(divide_rounding(self.learned_capacity()?.digits() * 1000, nominal), 1))
    }

    /// What is left in the pack at its voltage now, in kWh with two decimals.
    pub const fn stored_energy(&self) -> Decimal {
        // Two decimals each, and thousand Wh are one kWh.
        let watt_hours = self.remaining_capacity.times(self.voltage);
        Decimal::new(watt_hours.digits(), 7).round_to(2)
    }

    /// Is the cell at this place, counted from 0, being balanced?
    pub const fn balances(&self, cell: usize) -> bool {
        cell < u32::BITS as usize && self.balancing & (1 << cell) != 0
    }
}

impl Reading {
    /// As many cells as have a voltage; where none has, as many as the board says it has.
    pub fn cell_count(&self) -> usize {
        match &self.totals {
            Some(totals) if self.cells.is_empty() => totals.cell_count.into(),
            _ => self.cells.len(),
        }
    }

    pub fn doubts(&self) -> Doubts {
        let Some(totals) = &self.totals else {
            return Doubts::default();
        };
        let temperatures = totals.temperatures.iter().take(u32::BITS as usize).enumerate();
        let off_the_scale = temperatures.filter(|(_, temperature)| !is_plausible_temperature(**temperature));
        Doubts {
            cell_count: !self.cells.is_empty() && self.cells.len() != usize::from(totals.cell_count),
            temperatures: off_the_scale.fold(0, |bits, (place, _)| bits | 1 << place),
        }
    }

    /// Number (from 1) and voltage of the lowest cell; of equal ones the first.
    pub fn lowest_cell(&self) -> Option<(usize, Decimal)> {
        let lowest = self.cells.iter().enumerate().min_by_key(|(_, v)| v.digits());
        lowest.map(|(place, &voltage)| (place + 1, voltage))
    }

    /// Number (from 1) and voltage of the highest cell; of equal ones the first.
    pub fn highest_cell(&self) -> Option<(usize, Decimal)> {
        // max_by_key gives the last of equal ones, hence from the back.
        let highest = self.cells.iter().enumerate().rev().max_by_key(|(_, v)| v.digits());
        highest.map(|(place, &voltage)| (place + 1, voltage))
    }

    /// V, three decimals, rounded to the nearest mV.
    pub fn average_cell_voltage(&self) -> Option<Decimal> {
        let count = i64::try_from(self.cells.len()).ok().filter(|&count| count > 0)?;
        let sum: i64 = self.cells.iter().map(|voltage| voltage.digits()).sum();
        Some(Decimal::new(divide_rounding(sum, count), 3))
    }

    /// mV between the highest and the lowest cell.
    pub fn cell_voltage_delta(&self) -> Option<Decimal> {
        let (_, lowest) = self.lowest_cell()?;
        let (_, highest) = self.highest_cell()?;
        Some(Decimal::new(highest.digits() - lowest.digits(), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(millivolts: &[i64]) -> Reading {
        Reading { cells: millivolts.iter().map(|&mv| Decimal::new(mv, 3)).collect(), ..Reading::default() }
    }

    #[test]
    fn of_equal_cells_the_first_is_named() {
        let reading = cells(&[3942, 3895, 3895, 3942]);
        assert_eq!(reading.lowest_cell(), Some((2, Decimal::new(3895, 3))));
        assert_eq!(reading.highest_cell(), Some((1, Decimal::new(3942, 3))));
        assert_eq!(reading.cell_voltage_delta(), Some(Decimal::new(47, 0)));
        // 15674 / 4 = 3918.5
        assert_eq!(reading.average_cell_voltage(), Some(Decimal::new(3919, 3)));
    }

    #[test]
    fn health_is_what_was_learned_of_what_was_new() {
        let health = |learned: Option<i64>, nominal| {
            let full_charge_capacity = learned.map(|digits| Decimal::new(digits, 2));
            let nominal_capacity = Decimal::new(nominal, 2);
            let totals = Totals { full_charge_capacity, nominal_capacity, ..Totals::default() };
            totals.state_of_health().map(|health| health.to_string())
        };
        assert_eq!(health(Some(10_100), 10_000).as_deref(), Some("101.0"));
        assert_eq!(health(Some(26_455), 28_000).as_deref(), Some("94.5"));
        assert_eq!(health(Some(0), 28_000), None); // not learned yet
        assert_eq!(health(Some(1), 0), None);
        assert_eq!(health(None, 28_000), None);
    }

    #[test]
    fn stored_energy_is_capacity_at_the_voltage_now() {
        let remaining_capacity = Decimal::new(7911, 2);
        let totals = Totals { voltage: Decimal::new(2666, 2), remaining_capacity, ..Totals::default() };
        assert_eq!(totals.stored_energy().to_string(), "2.11"); // 2109.0726 Wh
    }

    #[test]
    fn a_cell_without_voltage_counts() {
        // A broken sense wire reads 0 mV: it must show, not vanish from the minimum.
        assert_eq!(cells(&[3300, 0]).lowest_cell(), Some((2, Decimal::new(0, 3))));
    }

    #[test]
    fn a_temperature_is_believed_on_the_scale_of_thermistors() {
        for (tenths, believed) in
            [(-2731, false), (-401, false), (-400, true), (-300, true), (1500, true), (1501, false)]
        {
            assert_eq!(is_plausible_temperature(Decimal::new(tenths, 1)), believed, "{tenths}");
        }
    }

    #[test]
    fn doubts_name_what_they_are_about() {
        assert!(Doubts::default().is_empty());
        let doubts = Doubts { cell_count: true, temperatures: 0b101 };
        assert_eq!(doubts.to_string(), "cell_count,temperature_1,temperature_3");
        assert_eq!(Doubts { cell_count: false, ..doubts }.to_string(), "temperature_1,temperature_3");
    }

    #[test]
    fn without_cells_nothing_follows() {
        let reading = cells(&[]);
        assert_eq!(reading.lowest_cell(), None);
        assert_eq!(reading.average_cell_voltage(), None);
        assert_eq!(reading.cell_voltage_delta(), None);
        assert_eq!(reading.cell_count(), 0);
    }
}
