//! Configuration files → settings by key: `config.yaml`, and the older `bms.conf`.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::value::{self, Problem};
use super::{Error, Place, Setting, Settings, reason};

/// No configuration is so long, and what the YAML library does with one that is takes time.
const LONGEST: u64 = 128 * 1024;

pub(super) fn read(path: &Path) -> Result<Settings, Error> {
    let error = |line: Option<usize>, problem| {
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        Error { place: format!("{}{line}", path.display()), key: String::new(), problem }
    };
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.map_err(|failure| {
        error(None, Problem::new(reason(&failure), "name a text file that this user can read"))
    })?;
    if bytes.len() as u64 > LONGEST {
        let wrong = format!("is longer than {} kB", LONGEST / 1024);
        return Err(error(None, Problem::new(wrong, "name a configuration file")));
    }
    if bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF") {
        return Err(error(None, Problem::new("is UTF-16", "save it as UTF-8")));
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let text = String::from_utf8_lossy(bytes);
    let mut settings = if is_bms_conf(path, &text) {
        read_bms_conf(path, &text)?
    } else {
        let text = std::str::from_utf8(bytes).map_err(|wrong| {
            let before = &bytes[..wrong.valid_up_to()];
            let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
            error(Some(line), Problem::new("has a letter that is not UTF-8", "save the file as UTF-8"))
        })?;
        Settings { text: text.to_owned(), ..read_yaml(path, text)? }
    };
    settings.file = Some(path.to_owned());
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
    let mut wrong_server = None;
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
            return Err(error("", Problem::new(format!("\"{line:.100}\" is not a setting"), right)));
        };
        let (key, text) = (key.trim(), text.trim());
        let Some(&(name, ours)) = BMS_CONF_KEYS.iter().find(|(name, _)| *name == key) else {
            let names: Vec<&str> = BMS_CONF_KEYS.iter().map(|(name, _)| *name).collect();
            return Err(error(
                &format!("{key:.100}"),
                Problem::new("is no key of this file", format!("use {}", names.join(", "))),
            ));
        };
        let values = match name {
            "MQTTserver" => server(text).unwrap_or_else(|problem| {
                wrong_server = Some(error(key, problem));
                Vec::new()
            }),
            "run_interval" => {
                let seconds = text.split([' ', '\t', '#', '/']).next().unwrap_or_default();
                if seconds.parse::<f64>().is_err() {
                    let wrong = format!("\"{text:.100}\" is not a number");
                    return Err(error(key, Problem::new(wrong, "write seconds, such as 5")));
                }
                vec![(ours, format!("{seconds}s"))]
            }
            "out_to" => match text {
                "mqtt" => vec![(ours, "false".to_owned())],
                "consol" => vec![(ours, "true".to_owned())],
                _ => {
                    let wrong = format!("\"{text:.100}\" is not a way out");
                    return Err(error(key, Problem::new(wrong, "write mqtt or consol")));
                }
            },
            _ => vec![(ours, text.to_owned())],
        };
        for (ours, text) in values {
            let place = Place::BmsConf(number, name);
            if settings.by_key.insert(ours.to_owned(), Setting { text, place }).is_some() {
                return Err(error(key, Problem::new("stands here a second time", "keep one of the two")));
            }
        }
    }
    // On the console nothing goes to a broker: whatever stands there does no harm.
    if settings.by_key.get("console").is_some_and(|setting| setting.text == "true") {
        let useless = |key, wanted: fn(&str) -> bool| {
            settings.by_key.get(key).is_some_and(|setting| !wanted(&setting.text))
        };
        let topic = useless("packs[0].json_topic", |text| value::any_topic(text).is_ok() && is_utf8(text));
        let url = useless("mqtt.url", |text| value::broker_url(text).is_ok() && is_utf8(text));
        for (key, useless) in [
            ("packs[0].json_topic", topic),
            ("mqtt.url", url),
            ("mqtt.username", url),
            ("mqtt.password", url),
        ] {
            if useless {
                settings.by_key.remove(key);
            }
        }
    } else if let Some(error) = wrong_server {
        return Err(error);
    }
    // Where a file is in another encoding, its comments may be anything, and its values are ASCII.
    for Setting { text, place } in settings.by_key.values() {
        if let (false, Place::BmsConf(line, name)) = (is_utf8(text), place) {
            return Err(Error {
                place: format!("{}:{line}", path.display()),
                key: (*name).to_owned(),
                problem: Problem::new("has a letter that is not UTF-8", "save the file as UTF-8"),
            });
        }
    }
    Ok(settings)
}

/// Was it before what is not UTF-8 was replaced?
fn is_utf8(text: &str) -> bool {
    !text.contains(char::REPLACEMENT_CHARACTER)
}

/// `smart_bms` pasted this into a command line, `mosquitto_pub -h …`, so a port and a login could
/// stand behind the host. What is wrong with it is told without its words: one may be a password.
fn server(text: &str) -> Result<Vec<(&'static str, String)>, Problem> {
    let mut words = text.split_whitespace().map(|word| word.trim_matches(['\'', '"']));
    let mut url = words.next().unwrap_or_default().to_owned();
    if !url.contains("://") {
        url.insert_str(0, "mqtt://");
    }
    let mut values = Vec::new();
    while let Some(option) = words.next() {
        let value = words.next();
        match (option, value) {
            ("-p" | "--port", Some(port)) => url = format!("{url}:{port}"),
            ("-u" | "--username", Some(user)) => values.push(("mqtt.username", user.to_owned())),
            ("-P" | "--pw", Some(password)) => values.push(("mqtt.password", password.to_owned())),
            _ => {
                let right = "write the broker's host, and behind it no more than -p PORT -u USER -P PASSWORD";
                return Err(Problem::new("has something behind the host that means nothing here", right));
            }
        }
    }
    values.push(("mqtt.url", url));
    Ok(values)
}

/// `#` and `//` begin a comment at the line's beginning and behind a space. Elsewhere they belong
/// to the value, as in `mqtt://` and `bus#1`.
fn without_comment(line: &str) -> &str {
    let begins = |&place: &usize| line[..place].chars().next_back().is_none_or(char::is_whitespace);
    let marks = line.match_indices('#').chain(line.match_indices("//")).map(|(place, _)| place);
    let end = marks.filter(begins).min().unwrap_or(line.len());
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
    if let Some(line) = line_that_is_too_much(text) {
        let place = format!("{}:{line}", path.display());
        return Err(Error { place, key: String::new(), problem: nested_too_deeply() });
    }
    let yaml = walk(text, None).and_then(|()| serde_yaml::from_str(text));
    let yaml: Yaml = yaml.map_err(|error| yaml_error(path, &error))?;
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
    let is_key =
        |key: &str| key.len() < 200 && key.chars().all(|c| c.is_ascii_alphanumeric() || "_.[]".contains(c));
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
        of_key(&format!("{:.100}", name.split(':').next().unwrap_or_default()));
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
    } else if let Some((_, tag)) = message.split_once(TAGGED) {
        let right = if key.ends_with("password") {
            "write the password itself, or in its place password_file: and the file that holds it"
        } else {
            "write the value itself; tags are Home Assistant's and others', and mean nothing here"
        };
        Problem::new(format!("{TAGGED}{tag:.100}"), right)
    } else if [TOO_MUCH, "recursion limit exceeded", "repetition limit exceeded"].contains(&message) {
        // The way down is as long as it is deep.
        key.clear();
        nested_too_deeply()
    } else {
        Problem::new(
            format!("this is not YAML: {message:.300}"),
            "check the indentation (spaces, no tabs), colons and quotes; quote values with special characters",
        )
    };
    Error { place, key, problem }
}

fn nested_too_deeply() -> Problem {
    let right =
        "a configuration has lists and groups of keys on no more than one level each, and few aliases";
    Problem::new("is nested too deeply", right)
}

/// The library takes a time that grows with the square of the open brackets, and of the directives.
fn line_that_is_too_much(text: &str) -> Option<usize> {
    let (mut open, mut directives) = (0_u32, 0);
    let too_much = |line: &str| {
        directives += line.matches("%TAG").count();
        line.bytes().any(|byte| {
            match byte {
                b'[' | b'{' => open += 1,
                b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            open > 64
        }) || directives > 8
    };
    text.lines().position(too_much).map(|line| line + 1)
}

const TAGGED: &str = "has the tag !";
const TOO_MUCH: &str = "is too much";
/// The line on which this key stands, or else the nearest thing that holds it.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let steps: Vec<&str> = key.split(['.', '[', ']']).filter(|step| !step.is_empty()).collect();
    (1..=steps.len()).rev().find_map(|count| {
        // The walker fails on purpose at the place it looks for, and the library says where that is.
        let error = walk(text, Some(&steps[..count])).err()?;
        error.to_string().contains(FOUND).then(|| error.location())?.map(|location| location.line())
    })
}

const FOUND: &str = "found what was looked for";
/// Bytes of values, and some for each thing. A few lines of aliases can stand for millions of
/// values.
const BUDGET: usize = 1024 * 1024;

/// Looks at everything before anything is taken: a tag would be dropped, and its value taken for
/// the one that is meant. Or, given a path, walks down its keys and places, and fails where it ends.
fn walk(text: &str, path: Option<&[&str]>) -> Result<(), serde_yaml::Error> {
    let walker = Walker { path, budget: &Cell::new(BUDGET) };
    walker.deserialize(serde_yaml::Deserializer::from_str(text))
}

#[derive(Clone, Copy)]
struct Walker<'a> {
    path: Option<&'a [&'a str]>,
    budget: &'a Cell<usize>,
}

impl<'a> Walker<'a> {
    fn arrive<E: de::Error>(self, bytes: usize) -> Result<(), E> {
        if self.path.is_some_and(<[_]>::is_empty) {
            return Err(E::custom(FOUND));
        }
        let left = self.budget.get().checked_sub(16 + bytes);
        self.budget.set(left.ok_or_else(|| E::custom(TOO_MUCH))?);
        Ok(())
    }

    /// Who goes on below this step, if it is worth it.
    fn below(self, is_step: impl Fn(&str) -> bool) -> Option<Walker<'a>> {
        match self.path {
            None => Some(self),
            Some([step, rest @ ..]) if is_step(step) => Some(Walker { path: Some(rest), ..self }),
            Some(_) => None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walker<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walker<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.arrive(0)?;
        while let Some(key) = map.next_key::<String>()? {
            match self.below(|step| step == key) {
                Some(walker) => map.next_value_seed(walker)?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        self.arrive(0)?;
        for place in 0_usize.. {
            let more = match self.below(|step| step.parse() == Ok(place)) {
                Some(walker) => sequence.next_element_seed(walker)?.is_some(),
                None => sequence.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<(), A::Error> {
        let (tag, _) = data.variant::<String>()?;
        Err(de::Error::custom(format_args!("{TAGGED}{tag}")))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.arrive(text.len())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.arrive(0)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.arrive(0)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.arrive(0)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.arrive(0)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.arrive(0)
    }

    /// A file with nothing in it.
    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.arrive(0)
    }
}
