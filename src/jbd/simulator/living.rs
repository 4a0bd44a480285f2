//! The model of a pack that lives: LiFePO4 cells that are charged and discharged in turn, and a board that watches.
//!
//! Time is passed in and cut into steps of one second, so the same seed gives the same values however the time
//! is sliced. Nothing here knows `pack`: a simulator must not share what it tests. Units are V, °C, s and Ah;
//! current is a rate, that is over capacity, so 0.5 empties the pack in two hours.

use std::time::Duration;

use serde::Deserialize;

use super::random::Random;
use crate::jbd::message::{BasicInfo, CellVoltages, Millivolts, Name, Tail, register};

/// Open-circuit voltage of a LiFePO4 cell over its state of charge: flat in the middle, steep at both ends.
const CHARGES: [f64; 19] =
    [-0.02, 0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0, 1.02];
const VOLTAGES: [f64; CHARGES.len()] = [
    2.0, 2.5, 2.8, 3.0, 3.12, 3.2, 3.25, 3.28, 3.295, 3.3, 3.305, 3.325, 3.335, 3.34, 3.35, 3.38, 3.42, 3.52,
    3.9,
];
const EMPTIEST: f64 = CHARGES[0];
const FULLEST: f64 = CHARGES[CHARGES.len() - 1];

/// V per unit of rate: what a cell's terminals lose at once, and what they lose with [`POLARISATION_TIME`].
const RESISTANCE: f64 = 0.08;
const POLARISATION: f64 = 0.10;
const POLARISATION_TIME: f64 = 120.0;

/// The step of the model. A cell at the steep end of its curve moves 5 mV in it at the heaviest load.
const STEP: f64 = 1.0;
const HOUR: f64 = 3600.0;
/// The most pack time that one call lets pass: a board that nobody asked for a year must still answer at once.
const MOST_AT_ONCE: f64 = 24.0 * HOUR;

/// The scenario: each phase lasts until the pack has been quiet for [`QUIET_TIME`].
const SCENARIO: [Phase; 4] = [Phase::Charge, Phase::Rest, Phase::Discharge, Phase::Rest];
const QUIET_RATE: f64 = 0.02;
const QUIET_TIME: f64 = 1200.0;
const CHARGE_RATE: f64 = 0.3;
/// The charger holds this mean cell voltage when it is reached, and its current tapers.
const CHARGE_VOLTAGE: f64 = 3.47;
/// An alternator's inrush at the beginning of a charge, which trips the board once.
const INRUSH_RATE: f64 = 0.8;
const INRUSH_TIME: f64 = 20.0;
/// The load changes within these rates, every minute to five.
const LOAD_RATES: (f64, f64) = (0.1, 0.5);

const BALANCE_START: f64 = 3.40;
const BALANCE_WINDOW: f64 = 0.010;
/// What a balancing resistor takes, as a rate: 0.2 A of 100 Ah.
const BLEED_RATE: f64 = 0.002;

/// Above this capacity the rates of the scenario do not fit an i16 of 10 mA: the board counts 100 mA then.
const LARGEST_FINE: f64 = 400.0;
/// A board counts a cycle for each 80 % of the capacity that was taken out (register 0x11 of real boards).
const CYCLE: f64 = 0.8;

const CHARGE_MOSFET: u8 = 1;
const DISCHARGE_MOSFET: u8 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Charge,
    Rest,
    Discharge,
}

/// What the board watches, in V, °C and rate. A protection's measure of it rises towards trouble.
struct Seen {
    highest_cell: f64,
    lowest_cell: f64,
    hottest: f64,
    rate: f64,
}

struct Protection {
    bit: u8,
    /// Its place among the words of register 0xAA.
    counter: usize,
    /// The MOSFET that it switches off.
    opens: u8,
    measure: fn(&Seen) -> f64,
    /// Trips when the measure has been at the first for a time, releases when below the second for a time.
    thresholds: (f64, f64),
    /// Both times.
    delays: (f64, f64),
}

const fn protection(
    bit: u8,
    counter: usize,
    opens: u8,
    measure: fn(&Seen) -> f64,
    thresholds: (f64, f64),
    delays: (f64, f64),
) -> Protection {
    Protection { bit, counter, opens, measure, thresholds, delays }
}

/// Cell overvoltage, cell undervoltage, charge and discharge overtemperature, charge overcurrent. The values are
/// those of a real 4S board, but for the charge temperature and the current. The MOSFET itself ends an overcurrent,
/// so that releases after a time.
const PROTECTIONS: [Protection; 5] = [
    protection(0, 3, CHARGE_MOSFET, |seen| seen.highest_cell, (3.65, 3.55), (2.0, 2.0)),
    protection(1, 4, DISCHARGE_MOSFET, |seen| -seen.lowest_cell, (-2.5, -2.7), (2.0, 2.0)),
    protection(4, 5, CHARGE_MOSFET, |seen| seen.hottest, (65.0, 55.0), (2.0, 2.0)),
    protection(6, 7, DISCHARGE_MOSFET, |seen| seen.hottest, (75.0, 55.0), (2.0, 2.0)),
    protection(8, 1, CHARGE_MOSFET, |seen| seen.rate, (0.6, 0.6), (10.0, 30.0)),
];
const UNDERVOLTAGE: usize = 1;

/// Thermometers: K above ambient at rate 1 (heat is I²R), and seconds to get two thirds of the way.
const THERMOMETERS: [(f64, f64); 3] = [(60.0, 300.0), (35.0, 2400.0), (30.0, 2700.0)];

/// What can be chosen about a living pack; the rest follows from the seed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// 1 to 32.
    pub cells: u8,
    /// Ah, 1 to 3000. Above 400 Ah the board uses its coarse unit of 0.1 A and 0.1 Ah.
    pub capacity_ah: f64,
    /// % at the beginning, 0 to 100.
    pub state_of_charge: f64,
    /// °C, -30 to 80.
    pub ambient: f64,
    /// Seconds of the pack's time in one second, 0 to 100000; with 0 it stands still.
    pub speed: f64,
    pub seed: u64,
    /// Up to 31 printable ASCII characters; `None` is a name of JBD's kind, with the number of cells.
    pub name: Option<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            cells: 8,
            capacity_ah: 100.0,
            state_of_charge: 80.0,
            ambient: 20.0,
            speed: 1.0,
            seed: 1,
            name: None,
        }
    }
}

impl Settings {
    /// # Errors
    /// The first setting that is out of its range, with the range.
    pub fn check(&self) -> Result<(), String> {
        for (key, value, least, most) in [
            ("cells", f64::from(self.cells), 1.0, 32.0),
            ("capacity_ah", self.capacity_ah, 1.0, 3000.0),
            ("state_of_charge", self.state_of_charge, 0.0, 100.0),
            ("ambient", self.ambient, -30.0, 80.0),
            ("speed", self.speed, 0.0, 100_000.0),
        ] {
            if !(least..=most).contains(&value) {
                return Err(format!("{key} is {value}; it can be {least} to {most}"));
            }
        }
        let printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        match &self.name {
            Some(name) if name.len() > 31 || !name.bytes().all(printable) => {
                Err(format!("name is {name:?}; it can have up to 31 printable ASCII characters"))
            }
            _ => Ok(()),
        }
    }
}

struct Cell {
    /// Ah.
    capacity: f64,
    /// Ah; may pass 0 and the capacity a little.
    charge: f64,
    /// Of [`RESISTANCE`] and [`POLARISATION`].
    resistance: f64,
    /// Self-discharge, as a rate.
    leak: f64,
    /// V.
    polarisation: f64,
    balancing: bool,
}

impl Cell {
    /// Without the drop of the terminals.
    fn inner_voltage(&self) -> f64 {
        open_circuit(self.charge / self.capacity) + self.polarisation
    }

    fn voltage(&self, rate: f64) -> f64 {
        self.inner_voltage() + rate * RESISTANCE * self.resistance
    }
}

#[derive(Clone, Copy, Default)]
struct Guard {
    tripped: bool,
    /// How long the measure has been on the other side of its threshold.
    seconds: f64,
}

/// A pack whose cells live, and the board that watches them.
pub struct LivingPack {
    settings: Settings,
    random: Random,
    cells: Vec<Cell>,
    /// As a rate; + is charging.
    rate: f64,
    temperatures: [f64; THERMOMETERS.len()],
    guards: [Guard; PROTECTIONS.len()],
    counters: [u16; 12],
    /// What the board has counted, Ah.
    remaining: f64,
    /// What the weakest cell holds, Ah.
    full: f64,
    cycles: u16,
    /// Ah since the last cycle was counted.
    taken_out: f64,
    /// Place in [`SCENARIO`], and seconds in it.
    phase: usize,
    in_phase: f64,
    quiet: f64,
    /// Rate of the load, and seconds until it changes.
    load: f64,
    load_for: f64,
    /// Pack time that is not yet a whole step.
    pending: f64,
    /// When the board was last asked, for who reads the clock.
    pub(super) asked: Option<tokio::time::Instant>,
}

impl LivingPack {
    /// # Errors
    /// What [`Settings::check`] says.
    pub fn new(settings: Settings) -> Result<LivingPack, String> {
        settings.check()?;
        let mut random = Random(settings.seed);
        let capacity_ah = settings.capacity_ah;
        let state_of_charge = settings.state_of_charge / 100.0;
        let cells: Vec<Cell> = (0..settings.cells)
            .map(|_| {
                let capacity = capacity_ah * random.between(1.0, 1.04);
                let charged = state_of_charge + random.between(-0.005, 0.005);
                Cell {
                    capacity,
                    charge: capacity * charged.clamp(0.0, 1.0),
                    resistance: random.between(0.8, 1.2),
                    leak: random.between(0.0, 0.000_05),
                    polarisation: 0.0,
                    balancing: false,
                }
            })
            .collect();
        let full = cells.iter().map(|cell| cell.capacity).fold(f64::MAX, f64::min);
        let mut pack = LivingPack {
            random,
            cells,
            rate: 0.0,
            temperatures: [settings.ambient; THERMOMETERS.len()],
            guards: Default::default(),
            counters: [0; 12],
            remaining: full * state_of_charge,
            full,
            cycles: (settings.seed % 100) as u16,
            taken_out: 0.0,
            phase: 0,
            in_phase: 0.0,
            quiet: 0.0,
            load: 0.0,
            load_for: 0.0,
            pending: 0.0,
            asked: None,
            settings,
        };
        // A board starts once, and is at work when it is first asked.
        pack.counters[11] = 1;
        pack.step();
        Ok(pack)
    }

    /// Lets time pass: `elapsed` by the wall clock, times the speed by the pack's; at most a day of the pack's.
    pub fn advance(&mut self, elapsed: Duration) {
        self.pending += (elapsed.as_secs_f64() * self.settings.speed).min(MOST_AT_ONCE);
        while self.pending >= STEP {
            self.pending -= STEP;
            self.step();
        }
    }

    /// The data of a register at this moment; `None` for registers that this board does not have.
    pub fn data(&self, register: u8) -> Option<Vec<u8>> {
        match register {
            register::BASIC_INFO => Some(self.basic_info().encode()),
            register::CELL_VOLTAGES => Some(CellVoltages(self.millivolts()).encode()),
            register::NAME => Some(Name(self.name()).encode()),
            register::COUNTERS => Some(self.counters.iter().copied().flat_map(u16::to_be_bytes).collect()),
            _ => None,
        }
    }

    fn step(&mut self) {
        self.follow_scenario();
        self.rate = self.through_mosfets(self.demand());
        for cell in &mut self.cells {
            let bleed = if cell.balancing { BLEED_RATE } else { 0.0 };
            let rate = self.rate - bleed - cell.leak;
            let charge = cell.charge + rate * self.settings.capacity_ah * STEP / HOUR;
            cell.charge = charge.clamp(EMPTIEST * cell.capacity, FULLEST * cell.capacity);
            let settled = self.rate * POLARISATION * cell.resistance;
            cell.polarisation += (settled - cell.polarisation) * STEP / POLARISATION_TIME;
        }
        for (temperature, (warming, time)) in self.temperatures.iter_mut().zip(THERMOMETERS) {
            let settled = self.settings.ambient + warming * self.rate * self.rate;
            *temperature += (settled - *temperature) * STEP / time;
        }
        self.count();
        self.protect();
        // What the protections have just switched off carries no current from now on.
        self.rate = self.through_mosfets(self.rate);
        self.balance();
    }

    /// Goes on to the next phase when nothing has happened in this one for a while, whoever ended it: the
    /// tapering charger, the board or nobody. So no state of the pack can hold the scenario up.
    fn follow_scenario(&mut self) {
        self.in_phase += STEP;
        self.quiet = if self.rate.abs() < QUIET_RATE { self.quiet + STEP } else { 0.0 };
        if self.quiet >= QUIET_TIME {
            self.phase = (self.phase + 1) % SCENARIO.len();
            self.in_phase = 0.0;
            self.quiet = 0.0;
        }
        self.load_for -= STEP;
        if self.load_for <= 0.0 {
            self.load = self.random.between(LOAD_RATES.0, LOAD_RATES.1);
            self.load_for = self.random.between(60.0, 300.0);
        }
    }

    /// What charger or load would have flow, as a rate.
    fn demand(&self) -> f64 {
        match SCENARIO[self.phase] {
            Phase::Rest => 0.0,
            Phase::Discharge => -self.load,
            Phase::Charge if self.in_phase <= INRUSH_TIME => INRUSH_RATE,
            Phase::Charge => {
                let room: f64 = self.cells.iter().map(|cell| CHARGE_VOLTAGE - cell.inner_voltage()).sum();
                let resistance: f64 = self.cells.iter().map(|cell| RESISTANCE * cell.resistance).sum();
                (room / resistance).clamp(0.0, CHARGE_RATE)
            }
        }
    }

    fn through_mosfets(&self, rate: f64) -> f64 {
        let needed = if rate > 0.0 { CHARGE_MOSFET } else { DISCHARGE_MOSFET };
        if self.mosfets() & needed != 0 { rate } else { 0.0 }
    }

    fn mosfets(&self) -> u8 {
        self.tripped().fold(CHARGE_MOSFET | DISCHARGE_MOSFET, |on, protection| on & !protection.opens)
    }

    fn tripped(&self) -> impl Iterator<Item = &'static Protection> {
        let guarded = PROTECTIONS.iter().zip(&self.guards);
        guarded.filter(|(_, guard)| guard.tripped).map(|(protection, _)| protection)
    }

    /// The board's own reckoning: it adds up current, and corrects itself when it meets an end.
    fn count(&mut self) {
        let flowed = self.rate * self.settings.capacity_ah * STEP / HOUR;
        self.remaining = (self.remaining + flowed).clamp(0.0, self.full);
        let tapered = self.rate > 0.0 && self.rate < QUIET_RATE;
        if tapered && SCENARIO[self.phase] == Phase::Charge {
            self.remaining = self.full;
        }
        self.taken_out -= flowed.min(0.0);
        if self.taken_out >= CYCLE * self.settings.capacity_ah {
            self.taken_out = 0.0;
            self.cycles = self.cycles.saturating_add(1);
        }
    }

    fn protect(&mut self) {
        let voltages = || self.cells.iter().map(|cell| cell.voltage(self.rate));
        let seen = Seen {
            highest_cell: voltages().fold(f64::MIN, f64::max),
            lowest_cell: voltages().fold(f64::MAX, f64::min),
            hottest: self.temperatures.iter().copied().fold(f64::MIN, f64::max),
            rate: self.rate,
        };
        for (protection, guard) in PROTECTIONS.iter().zip(&mut self.guards) {
            let measure = (protection.measure)(&seen);
            let (beyond, after) = if guard.tripped {
                (measure < protection.thresholds.1, protection.delays.1)
            } else {
                (measure >= protection.thresholds.0, protection.delays.0)
            };
            guard.seconds = if beyond { guard.seconds + STEP } else { 0.0 };
            if guard.seconds >= after {
                guard.seconds = 0.0;
                guard.tripped = !guard.tripped;
                if guard.tripped {
                    let counter = &mut self.counters[protection.counter];
                    *counter = counter.saturating_add(1);
                }
            }
        }
        if self.guards[UNDERVOLTAGE].tripped {
            self.remaining = 0.0;
        }
    }

    fn balance(&mut self) {
        let rate = self.rate;
        let lowest = self.cells.iter().map(|cell| cell.voltage(rate)).fold(f64::MAX, f64::min);
        for cell in &mut self.cells {
            let voltage = cell.voltage(rate);
            cell.balancing = rate > 0.0 && voltage > BALANCE_START && voltage > lowest + BALANCE_WINDOW;
        }
    }

    fn millivolts(&self) -> Millivolts {
        let cells = self.cells.iter();
        cells.map(|cell| word(cell.voltage(self.rate) * 1000.0)).collect()
    }

    fn basic_info(&self) -> BasicInfo {
        let capacity = self.settings.capacity_ah;
        let (unit, unit_flag) =
            if capacity > LARGEST_FINE { (0.1, BasicInfo::COARSE_UNIT) } else { (0.01, 0) };
        let millivolts: u32 = self.millivolts().into_iter().map(u32::from).sum();
        let bits = self.cells.iter().enumerate();
        let balancing = bits.fold(0, |bits, (place, cell)| bits | u32::from(cell.balancing) << place);
        let remaining_capacity = word(self.remaining / unit);
        BasicInfo {
            voltage: word(f64::from(millivolts) / 10.0),
            current: (self.rate * capacity / unit).round() as i16,
            remaining_capacity,
            nominal_capacity: word(capacity / unit),
            cycles: self.cycles,
            production_date: (24 << 9) | (3 << 5) | 14, // 2024-03-14
            balancing,
            protections: self.tripped().fold(0, |bits, protection| bits | 1 << protection.bit),
            software_version: 0x21,
            state_of_charge: (100.0 * self.remaining / self.full).round() as u8,
            mosfets: self.mosfets() | unit_flag,
            cell_count: self.settings.cells,
            temperatures: self
                .temperatures
                .map(|celsius| word(2731.0 + celsius * 10.0))
                .into_iter()
                .collect(),
            tail: Some(Tail {
                humidity: 45,
                alarms: 0, // "normally unused" (V11)
                full_charge_capacity: word(self.full / unit),
                remaining_capacity,
                balance_current: if balancing == 0 { 0 } else { word(BLEED_RATE * capacity * 1000.0) },
            }),
        }
    }

    fn name(&self) -> String {
        let cells = self.settings.cells;
        let chosen = self.settings.name.clone();
        chosen.unwrap_or_else(|| format!("JBD-SP{cells:02}S001-VIRTUAL"))
    }
}

fn open_circuit(charge: f64) -> f64 {
    let charge = charge.clamp(EMPTIEST, FULLEST);
    let above = CHARGES.partition_point(|&at| at < charge).max(1);
    let below = above - 1;
    let part = (charge - CHARGES[below]) / (CHARGES[above] - CHARGES[below]);
    VOLTAGES[below] + (VOLTAGES[above] - VOLTAGES[below]) * part
}

/// The nearest integer; a float cast stays within the integer's range.
fn word(value: f64) -> u16 {
    value.round() as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(cells: u8) -> LivingPack {
        let cells = Settings { cells, ..Settings::default() };
        LivingPack::new(cells).unwrap()
    }

    /// What a reader of registers 0x03 and 0x04 sees.
    fn read(pack: &LivingPack) -> (BasicInfo, Vec<u16>) {
        let info = BasicInfo::decode(&pack.data(register::BASIC_INFO).unwrap()).unwrap();
        let cells = CellVoltages::decode(&pack.data(register::CELL_VOLTAGES).unwrap()).unwrap();
        (info, cells.0.into_vec())
    }

    /// Half a minute at a time, for ten hours: more than a cycle of the scenario.
    fn ten_hours() -> impl Iterator<Item = Duration> {
        std::iter::repeat_n(Duration::from_secs(30), 10 * 120)
    }

    #[test]
    fn what_a_reader_sees_is_a_pack_at_every_moment() {
        for cells in [1, 4, 16, 32] {
            let mut pack = pack(cells);
            for elapsed in ten_hours() {
                pack.advance(elapsed);
                let (info, voltages) = read(&pack);
                assert_eq!(voltages.len(), usize::from(cells));
                assert_eq!(info.cell_count, cells);
                assert!(voltages.iter().all(|mv| (2000..4000).contains(mv)), "{voltages:?}");
                let sum: u32 = voltages.iter().copied().map(u32::from).sum();
                assert!(sum.abs_diff(u32::from(info.voltage) * 10) <= 5, "{sum} {info:?}");
                assert!(info.state_of_charge <= 100);
                assert!(info.remaining_capacity <= info.tail.unwrap().full_charge_capacity);
                assert!(info.temperatures.iter().all(|t| (2931..3131).contains(t)), "{info:?}");
                // A MOSFET that is off carries nothing its way.
                assert!(info.mosfets & CHARGE_MOSFET != 0 || info.current <= 0, "{info:?}");
                assert!(info.mosfets & DISCHARGE_MOSFET != 0 || info.current >= 0, "{info:?}");
                assert_eq!(info.mosfets & CHARGE_MOSFET == 0, info.protections & 0b1_0001_0001 != 0);
                assert_eq!(info.mosfets & DISCHARGE_MOSFET == 0, info.protections & 0b10_0100_0010 != 0);
                // Balancing only while charging, only cells that stand above another, and never all.
                assert!(info.balancing == 0 || info.current > 0, "{info:?}");
                let lowest = voltages.iter().min().unwrap();
                for (place, voltage) in voltages.iter().enumerate() {
                    if info.balancing & (1 << place) != 0 {
                        assert!(*voltage >= 3400 && *voltage >= lowest + 9, "{place} {voltages:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_cycle_of_the_scenario_shows_every_state() {
        for cells in [1, 4, 16, 32] {
            let mut pack = pack(cells);
            for cycle in 1..=2 {
                let (mut charging, mut discharging, mut idle, mut balancing) = (0, 0, 0, 0);
                let (mut tripped, mut released, mut before) = (0, 0, 0);
                let (mut fullest, mut emptiest, mut tapering) = (0, 100, 0);
                let mut seconds = 0;
                // From the beginning of a charge to the beginning of the next.
                let mut left_it = false;
                while !(left_it && SCENARIO[pack.phase] == Phase::Charge) {
                    left_it |= SCENARIO[pack.phase] != Phase::Charge;
                    pack.advance(Duration::from_secs(5));
                    seconds += 5;
                    assert!(seconds < 12 * 3600, "the scenario stands still");
                    let (info, _) = read(&pack);
                    charging += u32::from(info.current > 0);
                    discharging += u32::from(info.current < 0);
                    idle += u32::from(info.current == 0);
                    balancing += u32::from(info.balancing != 0);
                    tapering += u32::from((1..2500).contains(&info.current));
                    tripped |= info.protections;
                    released |= before & !info.protections;
                    before = info.protections;
                    fullest = fullest.max(info.state_of_charge);
                    emptiest = emptiest.min(info.state_of_charge);
                }
                let seen = [charging, discharging, idle, balancing];
                let context = format!(
                    "{cells} cells, cycle {cycle}: {seen:?} times in {seconds} s, tripped {tripped:b}"
                );
                assert!(charging > 360 && discharging > 360 && idle > 400, "{context}");
                assert_eq!(balancing > 12, cells > 1, "{context}");
                assert!(tapering > 60, "{context}");
                assert_eq!((emptiest, fullest), (0, 100), "{context}");
                // Overcurrent trips at the beginning of the charge; undervoltage at the end of the discharge, and
                // is released by the next charge.
                let both = 1 << 8 | 1 << 1;
                assert_eq!(tripped & both, both, "{context}");
                assert_eq!(released & both, if cycle == 1 { 1 << 8 } else { both }, "{context}");
                assert!(pack.counters[4] >= cycle, "{context}");
                assert!(pack.counters.iter().all(|&count| count < 10 * cycle), "{:?}", pack.counters);
            }
            assert!(pack.cycles >= 2, "{}", pack.cycles);
        }
    }

    #[test]
    fn a_cell_above_the_others_trips_overvoltage_which_releases_with_hysteresis() {
        let mut pack = pack(4);
        pack.cells[2].charge = pack.cells[2].capacity;
        let mut highest_before_release = 0;
        let mut was_tripped = false;
        for elapsed in ten_hours() {
            pack.advance(elapsed);
            let (info, voltages) = read(&pack);
            let tripped = info.protections & 1 != 0;
            if tripped {
                assert_eq!(info.mosfets, DISCHARGE_MOSFET);
            }
            if was_tripped && !tripped {
                highest_before_release = *voltages.iter().max().unwrap();
                break;
            }
            was_tripped = tripped;
        }
        assert!(was_tripped);
        assert!(highest_before_release < 3600, "{highest_before_release}");
        assert_eq!(pack.data(register::COUNTERS).unwrap()[6..8], pack.counters[3].to_be_bytes());
        assert!(pack.counters[3] >= 1);
    }

    #[test]
    fn the_same_seed_gives_the_same_values_however_time_is_cut() {
        let mut whole = pack(16);
        let mut sliced = pack(16);
        whole.advance(Duration::from_secs(5000));
        for _ in 0..40_000 {
            sliced.advance(Duration::from_millis(125));
        }
        assert_eq!(read(&whole), read(&sliced));
        let settings = Settings { cells: 16, seed: 2, ..Settings::default() };
        let mut other = LivingPack::new(settings).unwrap();
        other.advance(Duration::from_secs(5000));
        assert_ne!(read(&whole).1, read(&other).1);
    }

    #[test]
    fn speed_multiplies_time_and_no_time_is_too_long() {
        let settings = Settings { cells: 8, speed: 60.0, ..Settings::default() };
        let mut fast = LivingPack::new(settings).unwrap();
        let mut slow = pack(8);
        fast.advance(Duration::from_secs(30));
        slow.advance(Duration::from_secs(1800));
        assert_eq!(read(&fast), read(&slow));
        fast.advance(Duration::MAX);
        assert_eq!(read(&fast).1.len(), 8);
    }

    #[test]
    fn heat_stops_the_charge_and_nothing_breaks_at_the_ends_of_the_settings() {
        let settings = Settings { ambient: 70.0, ..Settings::default() };
        let mut hot = LivingPack::new(settings).unwrap();
        hot.advance(Duration::from_secs(60));
        let (info, _) = read(&hot);
        assert_eq!((info.protections & 1 << 4, info.mosfets, info.current), (1 << 4, DISCHARGE_MOSFET, 0));
        for (state_of_charge, ambient, capacity_ah) in
            [(0.0, -30.0, 1.0), (100.0, 80.0, 3000.0), (100.0, 20.0, 500.0), (0.0, 80.0, 100.0)]
        {
            let settings = Settings { state_of_charge, ambient, capacity_ah, ..Settings::default() };
            let mut pack = LivingPack::new(settings).unwrap();
            for elapsed in ten_hours() {
                pack.advance(elapsed);
                let (info, voltages) = read(&pack);
                assert!(voltages.iter().all(|mv| (2000..4000).contains(mv)), "{voltages:?}");
                assert_eq!(info.mosfets & BasicInfo::COARSE_UNIT != 0, capacity_ah > 400.0);
            }
        }
    }

    #[test]
    fn the_name_is_of_the_makers_kind_or_the_users() {
        assert_eq!(pack(4).data(register::NAME).unwrap(), b"JBD-SP04S001-VIRTUAL");
        let settings = Settings { name: Some("Boat".to_owned()), ..Settings::default() };
        let named = LivingPack::new(settings).unwrap();
        assert_eq!(named.data(register::NAME).unwrap(), b"Boat");
        assert_eq!(named.data(0x10), None);
    }

    #[test]
    fn settings_out_of_range_say_the_range() {
        let wrong = |settings: Settings| LivingPack::new(settings).map(|_| ()).unwrap_err();
        let base = Settings::default;
        assert_eq!(wrong(Settings { cells: 33, ..base() }), "cells is 33; it can be 1 to 32");
        assert_eq!(wrong(Settings { speed: f64::NAN, ..base() }), "speed is NaN; it can be 0 to 100000");
        assert!(wrong(Settings { name: Some("ü".to_owned()), ..base() }).contains("31 printable"));
    }

    #[test]
    fn the_voltage_curve_rises_everywhere_and_ends_at_its_ends() {
        assert!(CHARGES.is_sorted_by(|a, b| a < b) && VOLTAGES.is_sorted_by(|a, b| a < b));
        assert_eq!(open_circuit(0.5), 3.30);
        assert!((open_circuit(0.15) - 3.225).abs() < 1e-9);
        assert_eq!(open_circuit(-9.0), 2.00);
        assert_eq!(open_circuit(9.0), 3.90);
    }
}
