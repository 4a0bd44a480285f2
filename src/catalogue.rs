//! Every value that is published, in one table: key, name, class, unit, precision, and how to take it.
//!
//! A value that a pack does not have is `None` here and has no topic and no entity. The key is Home Assistant's
//! own slug of the name, so that both give the same entity id; keys never change, names may.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::pack::decimal::Decimal;
use crate::pack::protection::{Protection, Protections};
use crate::pack::reading::{Counters, Date, Doubts, Mode, Reading, Totals, is_plausible_temperature};
use crate::pack::state::{LineStatistics, PackState, Remembered};

pub struct Entity {
    /// `{n}` stands for a number from 1, as in `cell_{n}_voltage`.
    pub key: &'static str,
    pub name: &'static str,
    pub component: Component,
    pub device_class: Option<&'static str>,
    /// The words that an `enum` can be.
    pub options: Option<&'static [&'static str]>,
    pub unit: Option<&'static str>,
    pub state_class: Option<&'static str>,
    pub diagnostic: bool,
    /// Suggested decimals; newer versions of Home Assistant show 3.312 V as "3 V" without.
    pub precision: Option<u8>,
    pub enabled: bool,
    /// Only where no device class gives one.
    pub icon: Option<&'static str>,
    /// Shown as available as long as the bridge is, whatever the board does.
    pub without_board: bool,
    pub source: Source,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Component {
    Sensor,
    BinarySensor,
}

impl Component {
    pub const fn as_str(self) -> &'static str {
        match self {
            Component::Sensor => "sensor",
            Component::BinarySensor => "binary_sensor",
        }
    }
}

/// How a value is taken from what is known of a pack.
pub enum Source {
    One(fn(&PackState) -> Option<Value>),
    /// One for each place from 0 to a count, numbered from 1 in key and name.
    Each {
        count: fn(&PackState) -> usize,
        value: fn(&PackState, usize) -> Option<Value>,
    },
    /// `ON` while the protection is active.
    Protection(Protection),
    /// A counter of trips.
    Counter(fn(&Counters) -> Option<u16>),
    /// What is kept over restarts.
    Remembered(fn(&Remembered) -> Value),
    /// How the line does.
    Line(fn(&LineStatistics) -> Option<Value>),
}

/// A value, which prints as the bare payload of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Number(Decimal),
    Count(u64),
    Flag(bool),
    Protections(Protections),
    Date(Date),
    /// In whole seconds since 1970, as it is printed.
    Time(u64),
    Doubts(Doubts),
    Mode(Mode),
    /// There is such a value, and nobody knows it now: Home Assistant's "unknown".
    Unknown,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => number.fmt(f),
            Value::Count(count) => count.fmt(f),
            Value::Flag(true) => f.write_str("ON"),
            Value::Flag(false) => f.write_str("OFF"),
            Value::Protections(none) if none.is_empty() => f.write_str("none"),
            Value::Protections(active) => active.fmt(f),
            Value::Date(Date { year, month, day }) => write!(f, "{year:04}-{month:02}-{day:02}"),
            Value::Doubts(none) if none.is_empty() => f.write_str("none"),
            Value::Doubts(doubts) => doubts.fmt(f),
            Value::Mode(mode) => mode.fmt(f),
            Value::Unknown => f.write_str("None"),
            Value::Time(seconds) => {
                // A clock that is set beyond the year 9999 has no such text.
                let last = 253_402_300_799;
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs((*seconds).min(last));
                humantime::format_rfc3339_seconds(time).fmt(f)
            }
        }
    }
}

impl Entity {
    /// Calls `visit` with every value of this entity that the pack has, and its number where there are several.
    pub fn visit(&self, state: &PackState, mut visit: impl FnMut(Option<usize>, Value)) {
        let one = match &self.source {
            Source::One(take) => take(state),
            Source::Protection(protection) => {
                totals(state).map(|totals| Value::Flag(totals.protections.contains(*protection)))
            }
            Source::Counter(take) => {
                state.counters.as_ref().and_then(take).map(|count| Value::Count(count.into()))
            }
            Source::Remembered(take) => state.remembered.as_ref().map(take),
            Source::Line(take) => state.line.as_ref().and_then(take),
            Source::Each { count, value } => {
                for place in 0..count(state) {
                    if let Some(value) = value(state, place) {
                        visit(Some(place + 1), value);
                    }
                }
                return;
            }
        };
        if let Some(value) = one {
            visit(None, value);
        }
    }

    /// Has the pack no such value only because it has not been loaded or asked for yet?
    pub fn is_awaited(&self, state: &PackState) -> bool {
        match self.source {
            Source::Counter(_) => state.counters.is_none(),
            Source::Remembered(_) => state.remembered.is_none(),
            _ => false,
        }
    }

    /// The number in such a key, `None` inside if it has none; `None` if the key is another entity's.
    pub fn number_in(&self, key: &str) -> Option<Option<usize>> {
        match self.key.split_once("{n}") {
            Some((before, behind)) => key.strip_prefix(before)?.strip_suffix(behind)?.parse().ok().map(Some),
            None => (self.key == key).then_some(None),
        }
    }

    /// Key or name with its number filled in.
    pub fn numbered(template: &str, number: Option<usize>) -> String {
        match number {
            Some(number) => template.replace("{n}", &number.to_string()),
            None => template.to_owned(),
        }
    }

    const fn new(component: Component, key: &'static str, name: &'static str, source: Source) -> Entity {
        Entity {
            key,
            name,
            component,
            device_class: None,
            options: None,
            unit: None,
            state_class: None,
            diagnostic: false,
            precision: None,
            enabled: true,
            icon: None,
            without_board: false,
            source,
        }
    }

    const fn class(self, class: &'static str) -> Entity {
        Entity { device_class: Some(class), ..self }
    }

    const fn diagnostic(self) -> Entity {
        Entity { diagnostic: true, ..self }
    }

    const fn disabled(self) -> Entity {
        Entity { enabled: false, ..self }
    }

    const fn icon(self, icon: &'static str) -> Entity {
        Entity { icon: Some(icon), ..self }
    }

    /// A number that goes up and down.
    const fn measurement(self, unit: &'static str, precision: u8) -> Entity {
        Entity { unit: Some(unit), state_class: Some("measurement"), precision: Some(precision), ..self }
    }

    /// A word of these.
    const fn options(self, options: &'static [&'static str]) -> Entity {
        Entity { options: Some(options), ..self.class("enum") }
    }

    /// A number that only grows, or begins again.
    const fn total(self, precision: u8) -> Entity {
        Entity { state_class: Some("total_increasing"), precision: Some(precision), ..self }
    }
}

const fn sensor(key: &'static str, name: &'static str, take: fn(&PackState) -> Option<Value>) -> Entity {
    Entity::new(Component::Sensor, key, name, Source::One(take))
}

const fn flag(key: &'static str, name: &'static str, take: fn(&PackState) -> Option<Value>) -> Entity {
    Entity::new(Component::BinarySensor, key, name, Source::One(take))
}

const fn each(
    component: Component,
    key: &'static str,
    name: &'static str,
    count: fn(&PackState) -> usize,
    value: fn(&PackState, usize) -> Option<Value>,
) -> Entity {
    Entity::new(component, key, name, Source::Each { count, value })
}

const fn protection(key: &'static str, name: &'static str, protection: Protection) -> Entity {
    Entity::new(Component::BinarySensor, key, name, Source::Protection(protection)).diagnostic()
}

const fn counter(key: &'static str, name: &'static str, take: fn(&Counters) -> Option<u16>) -> Entity {
    Entity::new(Component::Sensor, key, name, Source::Counter(take))
        .total(0)
        .diagnostic()
        .disabled()
        .icon("mdi:counter")
}

const fn remembered(key: &'static str, name: &'static str, take: fn(&Remembered) -> Value) -> Entity {
    Entity::new(Component::Sensor, key, name, Source::Remembered(take))
}

const fn line(key: &'static str, name: &'static str, take: fn(&LineStatistics) -> Option<Value>) -> Entity {
    Entity {
        // What went wrong with the board is to be seen above all while it does not answer.
        without_board: true,
        ..Entity::new(Component::Sensor, key, name, Source::Line(take)).diagnostic().disabled()
    }
}

fn totals(state: &PackState) -> Option<&Totals> {
    state.reading.as_ref()?.totals.as_ref()
}

fn number(state: &PackState, take: fn(&Totals) -> Decimal) -> Option<Value> {
    totals(state).map(|totals| Value::Number(take(totals)))
}

fn known_or_not(count: Option<u64>) -> Value {
    count.map_or(Value::Unknown, Value::Count)
}

fn on(state: &PackState, take: fn(&Totals) -> bool) -> Option<Value> {
    totals(state).map(|totals| Value::Flag(take(totals)))
}

fn of_cells(state: &PackState, take: fn(&Reading) -> Option<Decimal>) -> Option<Value> {
    take(state.reading.as_ref()?).map(Value::Number)
}

fn cell_number(state: &PackState, take: fn(&Reading) -> Option<(usize, Decimal)>) -> Option<Value> {
    take(state.reading.as_ref()?).map(|(cell, _)| Value::Count(cell as u64))
}

fn cell_count(state: &PackState) -> usize {
    state.reading.as_ref().map_or(0, Reading::cell_count)
}

/// In the order in which they are published: what people look at first comes first.
pub const CATALOGUE: &[Entity] = &[
    sensor("voltage", "Voltage", |s| number(s, |t| t.voltage)).class("voltage").measurement("V", 2),
    sensor("current", "Current", |s| number(s, |t| t.current)).class("current").measurement("A", 2),
    sensor("power", "Power", |s| number(s, |t| t.power().round_to(2))).class("power").measurement("W", 0),
    sensor("state_of_charge", "State of charge", |s| {
        totals(s).map(|t| Value::Count(t.state_of_charge.into()))
    })
    .class("battery")
    .measurement("%", 0),
    sensor("remaining_capacity", "Remaining capacity", |s| number(s, |t| t.remaining_capacity))
        .measurement("Ah", 1)
        .icon("mdi:battery-medium"),
    sensor("nominal_capacity", "Nominal capacity", |s| number(s, |t| t.nominal_capacity))
        .measurement("Ah", 1)
        .diagnostic()
        .icon("mdi:battery"),
    sensor("full_charge_capacity", "Full charge capacity", |s| {
        totals(s)?.full_charge_capacity.map(Value::Number)
    })
    .measurement("Ah", 1)
    .diagnostic()
    .icon("mdi:battery-check"),
    sensor("cycles", "Cycles", |s| totals(s).map(|t| Value::Count(t.cycles.into())))
        .total(0)
        .diagnostic()
        .icon("mdi:battery-sync"),
    each(Component::Sensor, "cell_{n}_voltage", "Cell {n} voltage", cell_count, |s, cell| {
        s.reading.as_ref()?.cells.get(cell).copied().map(Value::Number)
    })
    .class("voltage")
    .measurement("V", 3)
    .diagnostic(),
    sensor("minimum_cell_voltage", "Minimum cell voltage", |s| of_cells(s, |r| Some(r.lowest_cell()?.1)))
        .class("voltage")
        .measurement("V", 3),
    sensor("maximum_cell_voltage", "Maximum cell voltage", |s| of_cells(s, |r| Some(r.highest_cell()?.1)))
        .class("voltage")
        .measurement("V", 3),
    sensor("average_cell_voltage", "Average cell voltage", |s| of_cells(s, Reading::average_cell_voltage))
        .class("voltage")
        .measurement("V", 3)
        .diagnostic()
        .disabled(),
    sensor("cell_voltage_delta", "Cell voltage delta", |s| of_cells(s, Reading::cell_voltage_delta))
        .class("voltage")
        .measurement("mV", 0),
    sensor("lowest_cell", "Lowest cell", |s| cell_number(s, Reading::lowest_cell))
        .diagnostic()
        .disabled()
        .icon("mdi:arrow-collapse-down"),
    sensor("highest_cell", "Highest cell", |s| cell_number(s, Reading::highest_cell))
        .diagnostic()
        .disabled()
        .icon("mdi:arrow-collapse-up"),
    each(
        Component::Sensor,
        "temperature_{n}",
        "Temperature {n}",
        |s| totals(s).map_or(0, |t| t.temperatures.len()),
        |s, place| {
            let temperature = *totals(s)?.temperatures.get(place)?;
            Some(if is_plausible_temperature(temperature) {
                Value::Number(temperature)
            } else {
                Value::Unknown
            })
        },
    )
    .class("temperature")
    .measurement("°C", 1),
    Entity {
        unit: Some("kWh"),
        ..remembered("energy_charged", "Energy charged", |r| Value::Number(r.energy.charged))
            .class("energy")
            .total(2)
    },
    Entity {
        unit: Some("kWh"),
        ..remembered("energy_discharged", "Energy discharged", |r| Value::Number(r.energy.discharged))
            .class("energy")
            .total(2)
    },
    sensor("stored_energy", "Stored energy", |s| number(s, Totals::stored_energy))
        .class("energy_storage")
        .measurement("kWh", 2),
    sensor("time_to_full", "Time to full", |s| s.forecast.map(|f| known_or_not(f.time_to_full)))
        .class("duration")
        .measurement("min", 0),
    sensor("time_to_empty", "Time to empty", |s| s.forecast.map(|f| known_or_not(f.time_to_empty)))
        .class("duration")
        .measurement("min", 0),
    sensor("state_of_health", "State of health", |s| totals(s)?.state_of_health().map(Value::Number))
        .measurement("%", 1)
        .diagnostic()
        .icon("mdi:battery-heart-variant"),
    sensor("mode", "Mode", |s| totals(s).map(|t| Value::Mode(t.mode()))).options(&Mode::NAMES),
    each(Component::BinarySensor, "cell_{n}_balancing", "Cell {n} balancing", cell_count, |s, cell| {
        totals(s).map(|t| Value::Flag(t.balances(cell)))
    })
    .diagnostic(),
    flag("balancing", "Balancing", |s| on(s, |t| t.balancing != 0)).class("running").diagnostic(),
    flag("charge_mosfet", "Charge MOSFET", |s| on(s, |t| t.charge_mosfet)).diagnostic(),
    flag("discharge_mosfet", "Discharge MOSFET", |s| on(s, |t| t.discharge_mosfet)).diagnostic(),
    flag("charging", "Charging", |s| on(s, |t| t.mode() == Mode::Charging)).class("battery_charging"),
    flag("problem", "Problem", |s| on(s, |t| t.protections.is_problem())).class("problem"),
    protection("cell_overvoltage", "Cell overvoltage", Protection::CellOvervoltage).class("problem"),
    protection("cell_undervoltage", "Cell undervoltage", Protection::CellUndervoltage).class("problem"),
    protection("pack_overvoltage", "Pack overvoltage", Protection::PackOvervoltage).class("problem"),
    protection("pack_undervoltage", "Pack undervoltage", Protection::PackUndervoltage).class("problem"),
    protection("charge_overtemperature", "Charge overtemperature", Protection::ChargeOvertemperature)
        .class("problem"),
    protection("charge_undertemperature", "Charge undertemperature", Protection::ChargeUndertemperature)
        .class("problem"),
    protection(
        "discharge_overtemperature",
        "Discharge overtemperature",
        Protection::DischargeOvertemperature,
    )
    .class("problem"),
    protection(
        "discharge_undertemperature",
        "Discharge undertemperature",
        Protection::DischargeUndertemperature,
    )
    .class("problem"),
    protection("charge_overcurrent", "Charge overcurrent", Protection::ChargeOvercurrent).class("problem"),
    protection("discharge_overcurrent", "Discharge overcurrent", Protection::DischargeOvercurrent)
        .class("problem"),
    protection("short_circuit", "Short circuit", Protection::ShortCircuit).class("problem"),
    protection("front_end_error", "Front-end error", Protection::FrontEndError).class("problem"),
    // Switching a MOSFET off by command is no problem, so it has no such class.
    protection("mosfet_software_lock", "MOSFET software lock", Protection::MosfetSoftwareLock),
    protection("charge_mosfet_breakdown", "Charge MOSFET breakdown", Protection::ChargeMosfetBreakdown)
        .class("problem"),
    protection(
        "discharge_mosfet_breakdown",
        "Discharge MOSFET breakdown",
        Protection::DischargeMosfetBreakdown,
    )
    .class("problem"),
    sensor("protections", "Protections", |s| totals(s).map(|t| Value::Protections(t.protections)))
        .diagnostic()
        .icon("mdi:shield-alert"),
    remembered("last_protection", "Last protection", |r| {
        Value::Protections(r.last_alarm.map(|alarm| alarm.protections).unwrap_or_default())
    })
    .diagnostic()
    .icon("mdi:shield-half-full"),
    remembered("last_protection_time", "Last protection time", |r| match r.last_alarm {
        Some(alarm) => Value::Time(alarm.time.into()),
        None => Value::Unknown,
    })
    .class("timestamp")
    .diagnostic(),
    Entity {
        without_board: true,
        ..flag("connection", "Connection", |s| s.answering.map(Value::Flag))
            .class("connectivity")
            .diagnostic()
    },
    sensor("implausible_values", "Implausible values", |s| {
        s.reading.as_ref().map(|reading| Value::Doubts(reading.doubts()))
    })
    .diagnostic()
    .icon("mdi:alert-circle-outline"),
    sensor("production_date", "Production date", |s| totals(s)?.production_date.map(Value::Date))
        .class("date")
        .diagnostic()
        .disabled(),
    counter("short_circuit_count", "Short circuit count", |c| Some(c.short_circuit)),
    counter("charge_overcurrent_count", "Charge overcurrent count", |c| Some(c.charge_overcurrent)),
    counter("discharge_overcurrent_count", "Discharge overcurrent count", |c| Some(c.discharge_overcurrent)),
    counter("cell_overvoltage_count", "Cell overvoltage count", |c| Some(c.cell_overvoltage)),
    counter("cell_undervoltage_count", "Cell undervoltage count", |c| Some(c.cell_undervoltage)),
    counter("charge_overtemperature_count", "Charge overtemperature count", |c| {
        Some(c.charge_overtemperature)
    }),
    counter("charge_undertemperature_count", "Charge undertemperature count", |c| {
        Some(c.charge_undertemperature)
    }),
    counter("discharge_overtemperature_count", "Discharge overtemperature count", |c| {
        Some(c.discharge_overtemperature)
    }),
    counter("discharge_undertemperature_count", "Discharge undertemperature count", |c| {
        Some(c.discharge_undertemperature)
    }),
    counter("pack_overvoltage_count", "Pack overvoltage count", |c| Some(c.pack_overvoltage)),
    counter("pack_undervoltage_count", "Pack undervoltage count", |c| Some(c.pack_undervoltage)),
    counter("system_restart_count", "System restart count", |c| c.system_restarts),
    line("polls", "Polls", |l| Some(Value::Count(l.polls))).total(0).icon("mdi:counter"),
    line("retries", "Retries", |l| Some(Value::Count(l.retries))).total(0).icon("mdi:counter"),
    line("timeouts", "Timeouts", |l| Some(Value::Count(l.timeouts))).total(0).icon("mdi:counter"),
    line("checksum_errors", "Checksum errors", |l| Some(Value::Count(l.checksum_errors)))
        .total(0)
        .icon("mdi:counter"),
    line("reopened_links", "Reopened links", |l| Some(Value::Count(l.reopened_links)))
        .total(0)
        .icon("mdi:counter"),
    line("response_time", "Response time", |l| {
        Some(Value::Count(l.response_time?.as_millis().try_into().unwrap_or(u64::MAX)))
    })
    .class("duration")
    .measurement("ms", 0),
    line("last_success", "Last success", |l| {
        // A clock before 1970 has not been set yet.
        let time = l.last_success?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Some(Value::Time(time.as_secs()))
    })
    .class("timestamp"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// As Home Assistant makes an id from a name.
    fn slug(name: &str) -> String {
        name.to_lowercase().replace([' ', '-'], "_")
    }

    #[test]
    fn keys_are_the_slugs_of_the_names_and_stand_alone() {
        let mut keys: Vec<_> = CATALOGUE.iter().map(|entity| entity.key).collect();
        for entity in CATALOGUE {
            assert_eq!(entity.key, slug(entity.name));
        }
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), CATALOGUE.len());
    }

    #[test]
    fn a_key_tells_its_entity_and_number() {
        let entity = |key: &str| CATALOGUE.iter().find_map(|of| Some((of.key, of.number_in(key)?)));
        for of in CATALOGUE {
            let number = of.key.contains("{n}").then_some(7);
            assert_eq!(entity(&Entity::numbered(of.key, number)), Some((of.key, number)));
        }
        assert_eq!(entity("cell_x_voltage"), None);
        assert_eq!(entity("cell__voltage"), None);
    }

    #[test]
    fn every_protection_has_its_entity() {
        for (protection, key) in Protection::ALL {
            let entity = CATALOGUE.iter().find(|entity| entity.key == key);
            assert!(
                matches!(entity, Some(Entity { source: Source::Protection(p), .. }) if *p == protection),
                "{key}"
            );
        }
    }

    /// What Home Assistant drops without a word, or with one in its log.
    #[test]
    fn classes_units_and_categories_fit() {
        for entity in CATALOGUE {
            let key = entity.key;
            let units: &[Option<&str>] = match entity.device_class {
                Some("voltage") => &[Some("V"), Some("mV")],
                Some("current") => &[Some("A")],
                Some("power") => &[Some("W")],
                Some("battery") => &[Some("%")],
                Some("energy" | "energy_storage") => &[Some("kWh")],
                Some("temperature") => &[Some("°C")],
                Some("duration") => &[Some("min"), Some("ms")],
                Some(_) => &[None],
                None => &[None, Some("Ah"), Some("%")],
            };
            assert!(units.contains(&entity.unit), "{key}: unit {:?}", entity.unit);
            if entity.device_class == Some("energy") {
                assert_eq!(entity.state_class, Some("total_increasing"), "{key}");
            }
            assert!(entity.icon.is_none() || entity.device_class.is_none(), "{key}: icon beside a class");
            assert_eq!(
                entity.precision.is_some(),
                entity.state_class.is_some(),
                "{key}: precision of a number"
            );
            assert_eq!(entity.options.is_some(), entity.device_class == Some("enum"), "{key}: options");
            if entity.component == Component::BinarySensor {
                assert!(
                    entity.unit.is_none() && entity.state_class.is_none(),
                    "{key}: not of a binary sensor"
                );
            }
        }
    }

    #[test]
    fn an_unknown_pack_has_no_values() {
        for entity in CATALOGUE {
            entity.visit(&PackState::default(), |_, value| panic!("{}: {value}", entity.key));
        }
    }
}
