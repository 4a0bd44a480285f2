//! What entities are called, in the user's language. Names only: keys, topics and ids are the same in all of them.

use std::fmt;

use crate::catalogue::{CATALOGUE, Entity};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    #[default]
    English,
    German,
    Russian,
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Language {
    /// Each with its code (ISO 639-1).
    pub const ALL: [(&'static str, Language); 3] =
        [("en", Language::English), ("de", Language::German), ("ru", Language::Russian)];

    /// What the entity is called; `{n}` stands for a number.
    pub fn name(self, entity: &Entity) -> &'static str {
        self.translated(entity.key).unwrap_or(entity.name)
    }

    /// The same by the entity's key; `None` if there is no such entity.
    pub fn name_of(self, key: &str) -> Option<&'static str> {
        CATALOGUE.iter().find(|entity| entity.key == key).map(|entity| self.name(entity))
    }

    /// What stands on a dashboard besides the names of entities.
    pub fn heading(self, key: &str) -> Option<&'static str> {
        let [english, german, russian] = match key {
            "battery" => ["Battery", "Batterie", "Батарея"],
            "cells" => ["Cells", "Zellen", "Ячейки"],
            "lowest" => ["Lowest", "Niedrigste", "Минимум"],
            "highest" => ["Highest", "Höchste", "Максимум"],
            "charge" => ["Charge FET", "Lade-FET", "Ключ заряда"],
            "discharge" => ["Discharge FET", "Entlade-FET", "Ключ разряда"],
            "remaining" => ["Remaining", "Rest", "Остаток"],
            "charged" => ["Charged", "Geladen", "Заряжено"],
            "discharged" => ["Discharged", "Entladen", "Разряжено"],
            "temperatures" => ["Temperatures", "Temperaturen", "Температуры"],
            "no_cells" => {
                ["No cell voltages now", "Zurzeit keine Zellspannungen", "Напряжений ячеек сейчас нет"]
            }
            _ => return None,
        };
        Some(match self {
            Language::English => english,
            Language::German => german,
            Language::Russian => russian,
        })
    }

    fn translated(self, key: &str) -> Option<&'static str> {
        let names = match self {
            Language::English => return None,
            Language::German => GERMAN,
            Language::Russian => RUSSIAN,
        };
        names.iter().find(|(of, _)| *of == key).map(|(_, name)| *name)
    }
}

const GERMAN: &[(&str, &str)] = &[
    ("voltage", "Spannung"),
    ("current", "Strom"),
    ("power", "Leistung"),
    ("state_of_charge", "Ladezustand"),
    ("remaining_capacity", "Restkapazität"),
    ("nominal_capacity", "Nennkapazität"),
    ("full_charge_capacity", "Volle Kapazität"),
    ("cycles", "Ladezyklen"),
    ("cell_{n}_voltage", "Zelle {n} Spannung"),
    ("minimum_cell_voltage", "Niedrigste Zellspannung"),
    ("maximum_cell_voltage", "Höchste Zellspannung"),
    ("average_cell_voltage", "Mittlere Zellspannung"),
    ("cell_voltage_delta", "Zellspannungsdifferenz"),
    ("lowest_cell", "Niedrigste Zelle"),
    ("highest_cell", "Höchste Zelle"),
    ("temperature_{n}", "Temperatur {n}"),
    ("energy_charged", "Geladene Energie"),
    ("energy_discharged", "Entladene Energie"),
    ("stored_energy", "Gespeicherte Energie"),
    ("time_to_full", "Zeit bis voll"),
    ("time_to_empty", "Zeit bis leer"),
    ("state_of_health", "Gesundheitszustand"),
    ("mode", "Betriebsart"),
    ("cell_{n}_balancing", "Zelle {n} Balancierung"),
    ("balancing", "Balancierung"),
    ("charge_mosfet", "Lade-MOSFET"),
    ("discharge_mosfet", "Entlade-MOSFET"),
    ("charging", "Wird geladen"),
    ("problem", "Problem"),
    ("cell_overvoltage", "Zellüberspannung"),
    ("cell_undervoltage", "Zellunterspannung"),
    ("pack_overvoltage", "Gesamtüberspannung"),
    ("pack_undervoltage", "Gesamtunterspannung"),
    ("charge_overtemperature", "Übertemperatur beim Laden"),
    ("charge_undertemperature", "Untertemperatur beim Laden"),
    ("discharge_overtemperature", "Übertemperatur beim Entladen"),
    ("discharge_undertemperature", "Untertemperatur beim Entladen"),
    ("charge_overcurrent", "Überstrom beim Laden"),
    ("discharge_overcurrent", "Überstrom beim Entladen"),
    ("short_circuit", "Kurzschluss"),
    ("front_end_error", "Fehler der Messelektronik"),
    ("mosfet_software_lock", "MOSFET-Softwaresperre"),
    ("charge_mosfet_breakdown", "Lade-MOSFET durchgebrannt"),
    ("discharge_mosfet_breakdown", "Entlade-MOSFET durchgebrannt"),
    ("protections", "Schutzabschaltungen"),
    ("last_protection", "Letzte Schutzabschaltung"),
    ("last_protection_time", "Zeit der letzten Schutzabschaltung"),
    ("connection", "Verbindung"),
    ("implausible_values", "Unplausible Werte"),
    ("production_date", "Herstellungsdatum"),
    ("short_circuit_count", "Anzahl Kurzschlüsse"),
    ("charge_overcurrent_count", "Anzahl Überströme beim Laden"),
    ("discharge_overcurrent_count", "Anzahl Überströme beim Entladen"),
    ("cell_overvoltage_count", "Anzahl Zellüberspannungen"),
    ("cell_undervoltage_count", "Anzahl Zellunterspannungen"),
    ("charge_overtemperature_count", "Anzahl Übertemperaturen beim Laden"),
    ("charge_undertemperature_count", "Anzahl Untertemperaturen beim Laden"),
    ("discharge_overtemperature_count", "Anzahl Übertemperaturen beim Entladen"),
    ("discharge_undertemperature_count", "Anzahl Untertemperaturen beim Entladen"),
    ("pack_overvoltage_count", "Anzahl Gesamtüberspannungen"),
    ("pack_undervoltage_count", "Anzahl Gesamtunterspannungen"),
    ("system_restart_count", "Anzahl Neustarts"),
    ("polls", "Abfragen"),
    ("retries", "Wiederholte Fragen"),
    ("timeouts", "Zeitüberschreitungen"),
    ("checksum_errors", "Prüfsummenfehler"),
    ("reopened_links", "Neu geöffnete Verbindungen"),
    ("response_time", "Antwortzeit"),
    ("last_success", "Letzter Erfolg"),
];

const RUSSIAN: &[(&str, &str)] = &[
    ("voltage", "Напряжение"),
    ("current", "Ток"),
    ("power", "Мощность"),
    ("state_of_charge", "Уровень заряда"),
    ("remaining_capacity", "Остаточная ёмкость"),
    ("nominal_capacity", "Номинальная ёмкость"),
    ("full_charge_capacity", "Полная ёмкость"),
    ("cycles", "Циклы"),
    ("cell_{n}_voltage", "Ячейка {n} напряжение"),
    ("minimum_cell_voltage", "Минимальное напряжение ячейки"),
    ("maximum_cell_voltage", "Максимальное напряжение ячейки"),
    ("average_cell_voltage", "Среднее напряжение ячейки"),
    ("cell_voltage_delta", "Разброс напряжений ячеек"),
    ("lowest_cell", "Ячейка с минимальным напряжением"),
    ("highest_cell", "Ячейка с максимальным напряжением"),
    ("temperature_{n}", "Температура {n}"),
    ("energy_charged", "Энергия заряда"),
    ("energy_discharged", "Энергия разряда"),
    ("stored_energy", "Запас энергии"),
    ("time_to_full", "До полного заряда"),
    ("time_to_empty", "До полного разряда"),
    ("state_of_health", "Здоровье батареи"),
    ("mode", "Режим"),
    ("cell_{n}_balancing", "Ячейка {n} балансировка"),
    ("balancing", "Балансировка"),
    ("charge_mosfet", "MOSFET заряда"),
    ("discharge_mosfet", "MOSFET разряда"),
    ("charging", "Заряжается"),
    ("problem", "Проблема"),
    ("cell_overvoltage", "Перенапряжение ячейки"),
    ("cell_undervoltage", "Низкое напряжение ячейки"),
    ("pack_overvoltage", "Перенапряжение батареи"),
    ("pack_undervoltage", "Низкое напряжение батареи"),
    ("charge_overtemperature", "Перегрев при заряде"),
    ("charge_undertemperature", "Переохлаждение при заряде"),
    ("discharge_overtemperature", "Перегрев при разряде"),
    ("discharge_undertemperature", "Переохлаждение при разряде"),
    ("charge_overcurrent", "Превышение тока заряда"),
    ("discharge_overcurrent", "Превышение тока разряда"),
    ("short_circuit", "Короткое замыкание"),
    ("front_end_error", "Ошибка измерительной микросхемы"),
    ("mosfet_software_lock", "Программная блокировка MOSFET"),
    ("charge_mosfet_breakdown", "Пробой MOSFET заряда"),
    ("discharge_mosfet_breakdown", "Пробой MOSFET разряда"),
    ("protections", "Защиты"),
    ("last_protection", "Последняя защита"),
    ("last_protection_time", "Время последней защиты"),
    ("connection", "Связь"),
    ("implausible_values", "Недостоверные значения"),
    ("production_date", "Дата производства"),
    ("short_circuit_count", "Число коротких замыканий"),
    ("charge_overcurrent_count", "Число превышений тока заряда"),
    ("discharge_overcurrent_count", "Число превышений тока разряда"),
    ("cell_overvoltage_count", "Число перенапряжений ячейки"),
    ("cell_undervoltage_count", "Число низких напряжений ячейки"),
    ("charge_overtemperature_count", "Число перегревов при заряде"),
    ("charge_undertemperature_count", "Число переохлаждений при заряде"),
    ("discharge_overtemperature_count", "Число перегревов при разряде"),
    ("discharge_undertemperature_count", "Число переохлаждений при разряде"),
    ("pack_overvoltage_count", "Число перенапряжений батареи"),
    ("pack_undervoltage_count", "Число низких напряжений батареи"),
    ("system_restart_count", "Число перезапусков"),
    ("polls", "Опросы"),
    ("retries", "Повторные запросы"),
    ("timeouts", "Тайм-ауты"),
    ("checksum_errors", "Ошибки контрольной суммы"),
    ("reopened_links", "Переоткрытия порта"),
    ("response_time", "Время ответа"),
    ("last_success", "Время последнего опроса"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_language_names_every_entity_once_and_differently() {
        for names in [GERMAN, RUSSIAN] {
            let keys: Vec<_> = names.iter().map(|(key, _)| *key).collect();
            assert_eq!(keys, CATALOGUE.iter().map(|entity| entity.key).collect::<Vec<_>>());
            let distinct: BTreeSet<_> = names.iter().map(|(_, name)| *name).collect();
            assert_eq!(distinct.len(), names.len());
            for (key, name) in names {
                assert_eq!(key.contains("{n}"), name.contains("{n}"), "{key}: {name}");
            }
        }
    }
}
