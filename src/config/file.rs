//! Configuration files → settings by key: `config.yaml`, and the older `bms.conf`.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::value::Problem;
use super::{Error, Place, Setting, Settings, reason};

pub(super) fn read(path: &Path) -> Result<Settings, Error> {
    let text = fs::read_to_string(path).map_err(|error| Error {
        place: path.display().to_string(),
        key: String::new(),
        problem: Problem::new(reason(&error), "name a text file that this user can read"),
    })?;
    let mut settings =
        if is_bms_conf(path, &text) { read_bms_conf(path, &text)? } else { read_yaml(path, &text)? };
    settings.file = Some(path.to_owned());
    settings.text = text;
    Ok(settings)
}

/// By its name, or where that tells nothing by its first setting.
fn is_bms_conf(path: &Path, text: &str) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("conf") => true,
        Some("yaml" | "yml" | "json") => false,
        _ => {
            let first = text.lines().map(without_comment).find(|line| !line.is_empty());
            let key = first.and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
            key.is_some_and(|key| BMS_CONF_KEYS.iter().any(|(name, _)| *name == key))
        }
    }
}

/// The keys of `bms.conf` as its users know them, and ours.
const BMS_CONF_KEYS: [(&str, &str); 5] = [
    ("device", "packs[0].port"),
    ("MQTTserver", "mqtt.url"),
    ("MQTTtopik", "packs[0].json_topic"),
    ("run_interval", "packs[0].interval"),
    ("out_to", "console"),
];

fn read_bms_conf(path: &Path, text: &str) -> Result<Settings, Error> {
    let mut settings = Settings { pack_count: 1, ..Settings::default() };
    for (number, line) in (1..).zip(text.lines()) {
        let line = without_comment(line);
        if line.is_empty() {
            continue;
        }
        let error = |key: &str, problem| Error {
            place: format!("{}:{number}", path.display()),
            key: key.to_owned(),
            problem,
        };
        let Some((key, text)) = line.split_once('=') else {
            let right = "write key=value, or // before a comment";
            return Err(error("", Problem::new(format!("\"{line}\" is not a setting"), right)));
        };
        let (key, text) = (key.trim(), text.trim());
        let Some(&(name, ours)) = BMS_CONF_KEYS.iter().find(|(name, _)| *name == key) else {
            let names: Vec<&str> = BMS_CONF_KEYS.iter().map(|(name, _)| *name).collect();
            return Err(error(
                key,
                Problem::new("is no key of this file", format!("use {}", names.join(", "))),
            ));
        };
        let text = match name {
            "MQTTserver" if !text.contains("://") => format!("mqtt://{text}"),
            "run_interval" if text.parse::<f64>().is_ok() => format!("{text}s"),
            "run_interval" => {
                let problem = Problem::new(format!("\"{text}\" is not a number"), "write seconds, such as 5");
                return Err(error(key, problem));
            }
            "out_to" => match text {
                "mqtt" => "false".to_owned(),
                "consol" => "true".to_owned(),
                _ => {
                    let wrong = format!("\"{text}\" is not a way out");
                    return Err(error(key, Problem::new(wrong, "write mqtt or consol")));
                }
            },
            _ => text.to_owned(),
        };
        let place = Place::BmsConf(number, name);
        if settings.by_key.insert(ours.to_owned(), Setting { text, place }).is_some() {
            return Err(error(key, Problem::new("stands here a second time", "keep one of the two")));
        }
    }
    Ok(settings)
}

/// `#` begins a comment, and so does `//` except in `mqtt://`.
fn without_comment(line: &str) -> &str {
    let slashes = line.match_indices("//").map(|(place, _)| place);
    let slashes = slashes.filter(|&place| !line[..place].ends_with(':'));
    let end = slashes.chain(line.find('#')).min().unwrap_or(line.len());
    line[..end].trim()
}

/// The file as it is typed: every scalar as its text, whatever YAML would make of it.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Yaml {
    mqtt: YamlMqtt,
    home_assistant: YamlHomeAssistant,
    packs: Vec<YamlPack>,
    state_dir: Option<String>,
    dead_band: YamlQuantities,
    minimum_interval: YamlQuantities,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct YamlMqtt {
    url: Option<String>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<String>,
    ca_file: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    base_topic: Option<String>,
    client_id: Option<String>,
    keep_alive: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct YamlHomeAssistant {
    discovery: Option<String>,
    discovery_prefix: Option<String>,
    birth_topic: Option<String>,
    language: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct YamlPack {
    id: Option<String>,
    name: Option<String>,
    port: Option<String>,
    /// What the picker of Home Assistant's apps gives; a port that is given too wins.
    device: Option<String>,
    baud: Option<String>,
    interval: Option<String>,
    offline_after: Option<String>,
    json_topic: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct YamlQuantities {
    voltage: Option<String>,
    current: Option<String>,
    remaining_capacity: Option<String>,
    cell_voltage: Option<String>,
    temperature: Option<String>,
}

fn read_yaml(path: &Path, text: &str) -> Result<Settings, Error> {
    let yaml: Yaml = serde_yaml::from_str(text).map_err(|error| yaml_error(path, &error))?;
    let mut settings = Settings { pack_count: yaml.packs.len(), ..Settings::default() };
    // A form leaves empty what is not filled in.
    let from_form = path.extension().is_some_and(|extension| extension == "json");
    let filled = |text: &String| !from_form || !text.is_empty();
    let mut add = |key: String, text: Option<String>| {
        if let Some(text) = text.filter(filled) {
            settings.by_key.insert(key, Setting { text, place: Place::Yaml });
        }
    };
    let mqtt = yaml.mqtt;
    for (key, text) in [
        ("url", mqtt.url),
        ("username", mqtt.username),
        ("password", mqtt.password),
        ("password_file", mqtt.password_file),
        ("ca_file", mqtt.ca_file),
        ("cert_file", mqtt.cert_file),
        ("key_file", mqtt.key_file),
        ("base_topic", mqtt.base_topic),
        ("client_id", mqtt.client_id),
        ("keep_alive", mqtt.keep_alive),
    ] {
        add(format!("mqtt.{key}"), text);
    }
    let home_assistant = yaml.home_assistant;
    for (key, text) in [
        ("discovery", home_assistant.discovery),
        ("discovery_prefix", home_assistant.discovery_prefix),
        ("birth_topic", home_assistant.birth_topic),
        ("language", home_assistant.language),
    ] {
        add(format!("home_assistant.{key}"), text);
    }
    for (place, pack) in yaml.packs.into_iter().enumerate() {
        for (key, text) in [
            ("id", pack.id),
            ("name", pack.name),
            ("port", pack.port.filter(filled).or(pack.device)),
            ("baud", pack.baud),
            ("interval", pack.interval),
            ("offline_after", pack.offline_after),
            ("json_topic", pack.json_topic),
        ] {
            add(format!("packs[{place}].{key}"), text);
        }
    }
    add("state_dir".to_owned(), yaml.state_dir);
    for (kind, quantities) in [("dead_band", yaml.dead_band), ("minimum_interval", yaml.minimum_interval)] {
        for (key, text) in [
            ("voltage", quantities.voltage),
            ("current", quantities.current),
            ("remaining_capacity", quantities.remaining_capacity),
            ("cell_voltage", quantities.cell_voltage),
            ("temperature", quantities.temperature),
        ] {
            add(format!("{kind}.{key}"), text);
        }
    }
    Ok(settings)
}

/// What the YAML library says, taken apart: `packs[0]: unknown field …, expected … at line 5 column 5`.
fn yaml_error(path: &Path, error: &serde_yaml::Error) -> Error {
    let mut place = path.display().to_string();
    let said = error.to_string();
    let mut message = said.as_str();
    if let Some(location) = error.location() {
        place = format!("{place}:{}", location.line());
        let at = format!(" at line {} column {}", location.line(), location.column());
        message = message.split(at.as_str()).next().unwrap_or(message);
    }
    let is_key = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || "_.[]".contains(c));
    let (mut key, message) = match message.split_once(": ") {
        Some((key, message)) if is_key(key) => (key.to_owned(), message),
        _ => (String::new(), message),
    };
    let mut of_key = |name: &str| {
        let dot = if key.is_empty() { "" } else { "." };
        key = format!("{key}{dot}{name}");
    };
    let problem = if let Some(rest) = message.strip_prefix("unknown field `") {
        let (name, known) = rest.split_once("`, expected ").unwrap_or((rest, ""));
        let known = known.strip_prefix("one of ").unwrap_or(known).replace('`', "");
        // `password:secret` without a space is one long key.
        of_key(name.split(':').next().unwrap_or_default());
        let wrong = if name.contains(':') { "has no space after its colon" } else { "is no key here" };
        Problem::new(wrong, format!("use one of {known}"))
    } else if let Some(rest) = message.strip_prefix("duplicate field `") {
        of_key(rest.trim_end_matches('`'));
        Problem::new("stands here a second time", "keep one of the two")
    } else if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.rsplit_once(", expected "))
    {
        // The library repeats a value that it found, which may be a password.
        let found = match found {
            "sequence" => "a list",
            "map" => "a group of keys",
            _ => "one value",
        };
        let right = if expected == "a sequence" {
            "write a list, each item with a dash: - port: /dev/ttyUSB0"
        } else if expected.starts_with("struct") {
            "write key: value lines, indented below it"
        } else {
            "write one value behind the colon"
        };
        Problem::new(format!("is {found}"), right)
    } else {
        Problem::new(
            format!("this is not YAML: {message}"),
            "check the indentation (spaces, no tabs), colons and quotes; quote values with special characters",
        )
    };
    Error { place, key, problem }
}

/// The line on which this key stands, or else the nearest thing that holds it.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let steps: Vec<&str> = key.split(['.', '[', ']']).filter(|step| !step.is_empty()).collect();
    (1..=steps.len()).rev().find_map(|count| {
        let found = Finder(&steps[..count]).deserialize(serde_yaml::Deserializer::from_str(text));
        // The finder fails on purpose at the place it looks for, and the library says where that is.
        let error = found.err()?;
        error.to_string().contains(FOUND).then(|| error.location())?.map(|location| location.line())
    })
}

const FOUND: &str = "found what was looked for";

/// Walks down a path of keys and places, and fails where it ends.
struct Finder<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Finder<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Finder<'_> {
    fn found<E: de::Error>(&self) -> Result<(), E> {
        if self.0.is_empty() { Err(E::custom(FOUND)) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Finder<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.found()?;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0[0] {
                map.next_value_seed(Finder(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        self.found()?;
        for place in 0_usize.. {
            let here = self.0[0].parse() == Ok(place);
            let more = if here {
                sequence.next_element_seed(Finder(&self.0[1..]))?.is_some()
            } else {
                sequence.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.found()
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.found()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.found()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.found()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.found()
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.found()
    }
}
