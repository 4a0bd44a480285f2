//! What was typed (file, environment, flags) → a checked [`Config`] that cannot be wrong. The older `bms.conf` comes
//! in here too.
//!
//! Every source becomes the same thing first: settings by key, each with its text and where it stands. Flags win over
//! the environment, the environment over the file.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use crate::cli::{Options, is_smart_bms};
use crate::home_assistant::language::Language;
use crate::link::Address;
use crate::logging;
use crate::mqtt::access::{Access, Whereabouts};
use crate::mqtt::endpoint::{ClientFiles, Endpoint, Login, Password, Tls};
use crate::mqtt::names::{BRIDGE, Names, PackName};
use crate::mqtt::supervisor::Supervisor;
use crate::pack::dead_band::{Quantity, Rules};

mod file;
mod value;

use value::Problem;

const CONFIG_VARIABLE: &str = "BMS2MQTT_CONFIG";
/// Set by the Supervisor for its apps.
const TOKEN_VARIABLE: &str = "SUPERVISOR_TOKEN";
/// Where the Supervisor is, if not where it always is.
const SUPERVISOR_VARIABLE: &str = "BMS2MQTT_SUPERVISOR_URL";
/// Where a configuration is looked for when none is named, in this order.
const DEFAULT_FILES: [&str; 4] =
    ["./config.yaml", "/etc/bms2mqtt/config.yaml", "./bms.conf", "/etc/BMS/bms.conf"];

pub struct Config {
    /// `None` when flags and environment say everything.
    pub file: Option<PathBuf>,
    pub access: Access,
    pub names: Names,
    /// At least one.
    pub packs: Vec<Pack>,
    /// Where energy totals are kept.
    pub state_dir: PathBuf,
    /// Of all packs.
    pub dead_bands: Rules,
    /// `out_to=consol` of `bms.conf`: print the one-line JSON every interval instead of publishing.
    pub console: bool,
}

pub struct Pack {
    pub name: PackName,
    pub address: Address,
    pub interval: Duration,
    /// So many polls in a row without a reading make the pack `offline`; one may be noise.
    pub offline_after: u32,
    /// Where its one-line JSON goes at every poll.
    pub json_topic: Option<String>,
}

/// One message: where, which key, what is wrong, and what would be right.
#[derive(Debug)]
pub struct Error {
    place: String,
    key: String,
    problem: Problem,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error { place, key, problem: Problem { wrong, right } } = self;
        write!(f, "{place}: ")?;
        if !key.is_empty() && key != place {
            write!(f, "{key}: ")?;
        }
        write!(f, "{wrong}; {right}")
    }
}

impl std::error::Error for Error {}

/// A setting as it was written.
#[derive(Clone, Debug)]
struct Setting {
    text: String,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// In the YAML file, under the setting's own key.
    Yaml,
    /// In `bms.conf`: the line, and the older name of the key.
    BmsConf(usize, &'static str),
    Variable(&'static str),
    Flag(&'static str),
}

/// All settings by key, such as `mqtt.url` and `packs[0].port`, before they are checked.
#[derive(Default)]
struct Settings {
    file: Option<PathBuf>,
    /// The file's text, to find lines in.
    text: String,
    by_key: BTreeMap<String, Setting>,
    pack_count: usize,
    /// Address and token, where this is an app of Home Assistant.
    supervisor: Option<(String, String)>,
}

/// Key, environment variable and flag of what can be given without a file. A key that begins with a dot is a single
/// pack's.
type Override = (&'static str, &'static str, &'static str, fn(&Options) -> Option<&String>);
const OVERRIDES: [Override; 17] = [
    ("mqtt.url", "BMS2MQTT_MQTT_URL", "--mqtt-url", |o| o.mqtt.url.as_ref()),
    ("mqtt.username", "BMS2MQTT_MQTT_USERNAME", "--mqtt-username", |o| o.mqtt.username.as_ref()),
    ("mqtt.password", "BMS2MQTT_MQTT_PASSWORD", "--mqtt-password", |o| o.mqtt.password.as_ref()),
    ("mqtt.password_file", "BMS2MQTT_MQTT_PASSWORD_FILE", "--mqtt-password-file", |o| {
        o.mqtt.password_file.as_ref()
    }),
    ("mqtt.ca_file", "BMS2MQTT_MQTT_CA_FILE", "--mqtt-ca-file", |o| o.mqtt.ca_file.as_ref()),
    ("mqtt.cert_file", "BMS2MQTT_MQTT_CERT_FILE", "--mqtt-cert-file", |o| o.mqtt.cert_file.as_ref()),
    ("mqtt.key_file", "BMS2MQTT_MQTT_KEY_FILE", "--mqtt-key-file", |o| o.mqtt.key_file.as_ref()),
    ("mqtt.base_topic", "BMS2MQTT_MQTT_BASE_TOPIC", "--mqtt-base-topic", |o| o.mqtt.base_topic.as_ref()),
    ("mqtt.client_id", "BMS2MQTT_MQTT_CLIENT_ID", "--mqtt-client-id", |o| o.mqtt.client_id.as_ref()),
    ("mqtt.keep_alive", "BMS2MQTT_MQTT_KEEP_ALIVE", "--mqtt-keep-alive", |o| o.mqtt.keep_alive.as_ref()),
    ("home_assistant.language", "BMS2MQTT_LANGUAGE", "--language", |o| o.language.as_ref()),
    ("state_dir", "BMS2MQTT_STATE_DIR", "--state-dir", |o| o.state_dir.as_ref()),
    (".port", "BMS2MQTT_PORT", "--port", |o| o.port.as_ref()),
    (".id", "BMS2MQTT_ID", "--id", |o| o.pack.id.as_ref()),
    (".name", "BMS2MQTT_NAME", "--name", |o| o.pack.name.as_ref()),
    (".baud", "BMS2MQTT_BAUD", "--baud", |o| o.pack.baud.as_ref()),
    (".interval", "BMS2MQTT_INTERVAL", "--interval", |o| o.pack.interval.as_ref()),
];

impl Config {
    /// Reads the file, the environment and the flags.
    ///
    /// # Errors
    /// One message on the first thing that is wrong.
    pub fn load(options: &Options) -> Result<Config, Error> {
        let variable = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
        let mut settings = match find_file(options, variable)? {
            Some(path) => file::read(&path)?,
            None => Settings::default(),
        };
        settings.override_with(options, variable)?;
        settings.supervisor = variable(TOKEN_VARIABLE).map(|token| {
            (variable(SUPERVISOR_VARIABLE).unwrap_or_else(|| "http://supervisor".to_owned()), token)
        });
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            let known = [CONFIG_VARIABLE, SUPERVISOR_VARIABLE, logging::VARIABLE].contains(&name.as_ref())
                || OVERRIDES.iter().any(|(_, known, ..)| *known == name);
            if name.starts_with("BMS2MQTT_") && !known {
                // Not an error: in a cluster, what is called like a service has such variables from elsewhere.
                warn!("the environment variable {name} means nothing here");
            }
        }
        settings.check()
    }
}

/// What a `bms.conf` sets, checked; what it leaves out is `None`.
pub struct BmsConf {
    pub url: Option<String>,
    pub username: Option<String>,
    pub password: Option<String>,
    pub port: Option<String>,
    pub interval: Option<String>,
    pub json_topic: Option<String>,
    pub config: Config,
}

/// Reads a `bms.conf` alone, without environment and flags.
///
/// # Errors
/// As [`Config::load`], and when the file is of another kind.
pub fn bms_conf(path: &Path) -> Result<BmsConf, Error> {
    let settings = file::read(path)?;
    let mut by_key = settings.by_key.clone();
    if by_key.values().any(|setting| matches!(setting.place, Place::Yaml)) {
        let problem = Problem::new("this is no bms.conf", "name the file that smart_bms was used with");
        return Err(Error { place: path.display().to_string(), key: String::new(), problem });
    }
    let mut text = |key: &str| by_key.remove(key).map(|setting| setting.text);
    Ok(BmsConf {
        url: text("mqtt.url"),
        username: text("mqtt.username"),
        password: text("mqtt.password"),
        port: text("packs[0].port"),
        interval: text("packs[0].interval"),
        json_topic: text("packs[0].json_topic"),
        config: settings.check()?,
    })
}

/// One port outside a configuration, such as an argument of `scan`.
///
/// # Errors
/// What is wrong with the address or the baud rate.
pub fn address(port: &str, baud: Option<&str>) -> Result<Address, Error> {
    let error = |problem| Error { place: "--port".to_owned(), key: String::new(), problem };
    value::address(port, self::baud(baud)?).map_err(error)
}

/// The baud rate outside a configuration.
///
/// # Errors
/// What is wrong with it.
pub fn baud(flag: Option<&str>) -> Result<u32, Error> {
    let error = |problem| Error { place: "--baud".to_owned(), key: String::new(), problem };
    flag.map_or(Ok(DEFAULT_BAUD), value::baud).map_err(error)
}

impl Config {
    /// All defaults, with this broker and no pack yet.
    pub fn to_broker(host: String, port: u16) -> Config {
        let text = |text: &str| text.to_owned();
        Config {
            file: None,
            access: Access {
                whereabouts: Whereabouts::Given(Endpoint { host, port, tls: None, login: None }),
                client_id: new_client_id(),
                keep_alive: DEFAULT_KEEP_ALIVE,
                birth_topic: text(DEFAULT_BIRTH_TOPIC),
            },
            names: Names {
                base_topic: text(DEFAULT_BASE_TOPIC),
                discovery_prefix: text(DEFAULT_PREFIX),
                discovery: true,
                language: Language::default(),
            },
            packs: Vec::new(),
            state_dir: default_state_dir(),
            dead_bands: Rules::default(),
            console: false,
        }
    }
}

/// Two bridges with one id would throw each other out for ever.
fn new_client_id() -> String {
    format!("bms2mqtt-{:08x}", RandomState::new().hash_one(0) as u32)
}

fn find_file(options: &Options, variable: impl Fn(&str) -> Option<String>) -> Result<Option<PathBuf>, Error> {
    if let Some(path) = &options.config {
        return Ok(Some(path.clone()));
    }
    // `--port` is for trying a cable: what lies about in this directory must not change what it does.
    if options.port.is_some() {
        return Ok(None);
    }
    if let Some(path) = variable(CONFIG_VARIABLE) {
        return Ok(Some(path.into()));
    }
    let mut files = DEFAULT_FILES;
    if is_smart_bms() {
        // A script's folder may have a config.yaml of anything, and the package has brought one.
        files.rotate_right(2);
    }
    if let Some(path) = files.iter().map(Path::new).find(|path| path.exists()) {
        return Ok(Some(path.to_owned()));
    }
    if variable("BMS2MQTT_PORT").is_some() {
        return Ok(None);
    }
    Err(Error {
        place: "no configuration".to_owned(),
        key: String::new(),
        problem: Problem::new(
            format!("there is none of {}", DEFAULT_FILES.join(", ")),
            "name a file with --config FILE, or one pack with --port /dev/ttyUSB0 or BMS2MQTT_PORT",
        ),
    })
}

impl Settings {
    fn override_with(
        &mut self,
        options: &Options,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(), Error> {
        for (key, variable_name, flag_name, flag) in OVERRIDES {
            let (text, place) = match (flag(options), variable(variable_name)) {
                (Some(text), _) => (text.clone(), Place::Flag(flag_name)),
                (None, Some(text)) => (text, Place::Variable(variable_name)),
                (None, None) => continue,
            };
            let setting = Setting { text, place };
            let Some(pack_key) = key.strip_prefix('.') else {
                self.by_key.insert(key.to_owned(), setting);
                continue;
            };
            if self.pack_count > 1 {
                let wrong =
                    format!("the configuration has {} packs, and this is for a single one", self.pack_count);
                return Err(self.error_at(
                    &setting.place,
                    "",
                    Problem::new(wrong, "change the pack in the file"),
                ));
            }
            self.pack_count = 1;
            self.by_key.insert(format!("packs[0].{pack_key}"), setting);
        }
        // A password given later replaces the file's way of giving one.
        for (one, other) in [("mqtt.password", "mqtt.password_file"), ("mqtt.password_file", "mqtt.password")]
        {
            let place = |key| self.by_key.get(key).map(|setting| &setting.place);
            let in_file = |key| matches!(place(key), Some(Place::Yaml | Place::BmsConf(..)));
            if self.by_key.contains_key(one) && !in_file(one) && in_file(other) {
                self.by_key.remove(other);
            }
        }
        Ok(())
    }

    /// The checked value under a key, `None` where nothing is set.
    fn get<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Problem>) -> Result<Option<T>, Error> {
        let Some(setting) = self.by_key.get(key) else {
            return Ok(None);
        };
        parse(setting.text.trim()).map(Some).map_err(|problem| self.error(key, problem))
    }

    /// An error about the setting under this key, or about the place where it is missing.
    fn error(&self, key: &str, problem: Problem) -> Error {
        let place = self.by_key.get(key).map_or(&Place::Yaml, |setting| &setting.place);
        self.error_at(place, key, problem)
    }

    fn error_at(&self, place: &Place, key: &str, problem: Problem) -> Error {
        let file = self.file.as_deref().map_or("the configuration".into(), Path::to_string_lossy);
        let (place, key) = match place {
            Place::Yaml => match file::line_of(&self.text, key) {
                Some(line) => (format!("{file}:{line}"), key),
                None => (file.into_owned(), key),
            },
            Place::BmsConf(line, name) => (format!("{file}:{line}"), *name),
            Place::Variable(name) | Place::Flag(name) => ((*name).to_owned(), ""),
        };
        Error { place, key: key.to_owned(), problem }
    }

    fn check(self) -> Result<Config, Error> {
        let base_topic = self.get("mqtt.base_topic", value::topic)?;
        let discovery_prefix = self.get("home_assistant.discovery_prefix", value::topic)?;
        let names = Names {
            base_topic: base_topic.unwrap_or_else(|| DEFAULT_BASE_TOPIC.to_owned()),
            discovery_prefix: discovery_prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
            discovery: self.get("home_assistant.discovery", value::flag)?.unwrap_or(true),
            language: self.get("home_assistant.language", value::language)?.unwrap_or_default(),
        };
        if names.base_topic == names.discovery_prefix {
            let problem =
                Problem::new("is the discovery prefix too", "give values a base_topic of their own");
            return Err(self.error("mqtt.base_topic", problem));
        }
        let dead_bands = self.dead_bands()?;
        let access = self.access()?;
        let packs = self.packs(&names)?;
        let state_dir = self.get("state_dir", value::path)?.unwrap_or_else(default_state_dir);
        let console = self.get("console", value::flag)?.unwrap_or(false);
        Ok(Config { file: self.file, access, names, packs, state_dir, dead_bands, console })
    }

    fn dead_bands(&self) -> Result<Rules, Error> {
        let mut rules = Rules::default();
        for (rule, (_, name, unit, places)) in rules.iter_mut().zip(Quantity::ALL) {
            let dead_band =
                self.get(&format!("dead_band.{name}"), |text| value::dead_band(text, unit, places))?;
            rule.dead_band = dead_band.unwrap_or_default();
            let minimum_interval = self
                .get(&format!("minimum_interval.{name}"), |text| value::duration(text, MINIMUM_INTERVAL))?;
            rule.minimum_interval = minimum_interval.unwrap_or_default();
        }
        Ok(rules)
    }

    fn access(&self) -> Result<Access, Error> {
        let whereabouts = match &self.supervisor {
            Some((url, token)) if !self.by_key.contains_key("mqtt.url") => {
                let of_a_broker =
                    ["username", "password", "password_file", "ca_file", "cert_file", "key_file"];
                let stray = of_a_broker.map(|key| format!("mqtt.{key}"));
                if let Some(key) = stray.iter().find(|key| self.by_key.contains_key(*key)) {
                    let wrong = "is for a broker of your own, and none is named";
                    return Err(
                        self.error(key, Problem::new(wrong, "give mqtt.url with it, or leave it empty"))
                    );
                }
                Whereabouts::Supervisor(Supervisor { url: url.clone(), token: token.clone() })
            }
            _ => Whereabouts::Given(self.endpoint()?),
        };
        let client_id = self.get("mqtt.client_id", value::text)?;
        let keep_alive = self.get("mqtt.keep_alive", |text| value::duration(text, KEEP_ALIVE))?;
        let birth_topic = self.get("home_assistant.birth_topic", value::topic)?;
        Ok(Access {
            whereabouts,
            client_id: client_id.unwrap_or_else(new_client_id),
            keep_alive: keep_alive.unwrap_or(DEFAULT_KEEP_ALIVE),
            birth_topic: birth_topic.unwrap_or_else(|| DEFAULT_BIRTH_TOPIC.to_owned()),
        })
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let url = self.get("mqtt.url", value::broker_url)?.unwrap_or_default();
        let files = [
            ("mqtt.ca_file", self.readable_file("mqtt.ca_file")?),
            ("mqtt.cert_file", self.readable_file("mqtt.cert_file")?),
            ("mqtt.key_file", self.readable_file("mqtt.key_file")?),
        ];
        if !url.tls {
            if let Some((key, _)) = files.iter().find(|(_, file)| file.is_some()) {
                let problem =
                    Problem::new("is for TLS, and mqtt.url has none", "write mqtt.url with mqtts://");
                return Err(self.error(key, problem));
            }
        }
        let [(_, ca_file), (_, cert_file), (_, key_file)] = files;
        let client = match (cert_file, key_file) {
            (Some(cert_file), Some(key_file)) => Some(ClientFiles { cert_file, key_file }),
            (None, None) => None,
            (Some(_), None) => {
                let problem = Problem::new("has no key", "give mqtt.key_file with it");
                return Err(self.error("mqtt.cert_file", problem));
            }
            (None, Some(_)) => {
                let problem = Problem::new("has no certificate", "give mqtt.cert_file with it");
                return Err(self.error("mqtt.key_file", problem));
            }
        };
        let tls = url.tls.then_some(Tls { ca_file, client });
        if let Some(tls) = &tls {
            tls.client_config().map_err(|wrong| {
                let key = if tls.ca_file.is_none() && tls.client.is_some() {
                    "mqtt.cert_file"
                } else {
                    "mqtt.ca_file"
                };
                self.error(key, Problem::new(wrong, "give PEM files, as openssl writes them"))
            })?;
        }
        Ok(Endpoint { host: url.host, port: url.port, tls, login: self.login()? })
    }

    fn login(&self) -> Result<Option<Login>, Error> {
        let text = self.by_key.get("mqtt.password").map(|setting| setting.text.clone());
        let file = self.readable_file("mqtt.password_file")?;
        let password = match (text, file) {
            (Some(_), Some(_)) => {
                let problem = Problem::new("stands beside mqtt.password", "give one of the two");
                return Err(self.error("mqtt.password_file", problem));
            }
            (Some(text), None) => Password::Text(text),
            (None, Some(path)) => Password::File(path),
            (None, None) => Password::None,
        };
        let username = self.get("mqtt.username", value::text)?;
        if username.is_none() && password != Password::None {
            let keys = ["mqtt.password", "mqtt.password_file"];
            let key = keys.into_iter().find(|key| self.by_key.contains_key(*key)).unwrap_or_default();
            return Err(self.error(key, Problem::new("has no user", "give mqtt.username with it")));
        }
        Ok(username.map(|username| Login { username, password }))
    }

    /// A path in the file is relative to the file, one in a flag or variable to the working directory.
    fn readable_file(&self, key: &str) -> Result<Option<PathBuf>, Error> {
        let Some(path) = self.get(key, value::path)? else {
            return Ok(None);
        };
        let place = self.by_key.get(key).map(|setting| &setting.place);
        let path = match (place, self.file.as_deref().and_then(Path::parent)) {
            (Some(Place::Yaml), Some(directory)) => directory.join(path),
            _ => path,
        };
        match fs::File::open(&path) {
            Ok(_) => Ok(Some(path)),
            Err(error) => {
                let wrong = format!("cannot read {}: {}", path.display(), reason(&error));
                Err(self.error(key, Problem::new(wrong, "give a file that this user can read")))
            }
        }
    }

    fn packs(&self, names: &Names) -> Result<Vec<Pack>, Error> {
        if self.pack_count == 0 {
            let problem = Problem::new("there is no pack", "write packs:, and below it - port: /dev/ttyUSB0");
            return Err(self.error("packs", problem));
        }
        let mut packs: Vec<Pack> = Vec::with_capacity(self.pack_count);
        for place in 0..self.pack_count {
            let key = |name: &str| format!("packs[{place}].{name}");
            let pack = self.pack(place, names)?;
            let taken = |name: &str, by: &Pack| {
                let wrong = format!("is also that of pack {}", by.name.id);
                Err(self
                    .error(&key(name), Problem::new(wrong, format!("give each pack a {name} of its own"))))
            };
            for other in &packs {
                if other.name.id == pack.name.id {
                    return taken("id", other);
                }
                if other.address == pack.address {
                    return taken("port", other);
                }
                if pack.json_topic.is_some() && other.json_topic == pack.json_topic {
                    return taken("json_topic", other);
                }
            }
            packs.push(pack);
        }
        Ok(packs)
    }

    fn pack(&self, place: usize, names: &Names) -> Result<Pack, Error> {
        let key = |name: &str| format!("packs[{place}].{name}");
        let baud = self.get(&key("baud"), value::baud)?.unwrap_or(DEFAULT_BAUD);
        let Some(address) = self.get(&key("port"), |text| value::address(text, baud))? else {
            let problem = Problem::new("is missing", "give port: /dev/ttyUSB0, or tcp://192.168.1.20:2000");
            return Err(self.error(&key("port"), problem));
        };
        // The first keeps its id when others are added behind it.
        let (id, name) = match place {
            0 => ("battery".to_owned(), "Battery".to_owned()),
            _ => (format!("battery_{}", place + 1), format!("Battery {}", place + 1)),
        };
        let id = self.get(&key("id"), value::id)?.unwrap_or(id);
        if id == BRIDGE || id == names.bridge_id() {
            let problem = Problem::new(format!("\"{id}\" is the bridge itself"), "give the pack another id");
            return Err(self.error(&key("id"), problem));
        }
        let interval = self.get(&key("interval"), |text| value::duration(text, INTERVAL))?;
        Ok(Pack {
            name: PackName { id, name: self.get(&key("name"), value::text)?.unwrap_or(name) },
            address,
            interval: interval.unwrap_or(Duration::from_secs(5)),
            offline_after: self.get(&key("offline_after"), value::count)?.unwrap_or(DEFAULT_OFFLINE_AFTER),
            json_topic: self.get(&key("json_topic"), value::any_topic)?,
        })
    }
}

/// Below, timers are too coarse, and polls follow each other without a pause on any wire long before; above, nobody would
/// call it polling.
const INTERVAL: [Duration; 2] = [Duration::from_millis(1), Duration::from_secs(24 * 3600)];
const DEFAULT_BASE_TOPIC: &str = "bms2mqtt";
const DEFAULT_PREFIX: &str = "homeassistant";
const DEFAULT_BIRTH_TOPIC: &str = "homeassistant/status";
/// A broker calls a client dead after one and a half of it.
const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(10);
pub const DEFAULT_OFFLINE_AFTER: u32 = 3;
/// What JBD boards speak, on every kind of line.
pub const DEFAULT_BAUD: u32 = 9600;
const KEEP_ALIVE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];
const MINIMUM_INTERVAL: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];

/// systemd's `StateDirectory`, else where the system or the user keeps such things.
fn default_state_dir() -> PathBuf {
    let variable = |name| env::var_os(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    if let Some(directory) = variable("STATE_DIRECTORY") {
        return directory;
    }
    // Root is a service, whose state has its place in the system; everybody else can write only at home.
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let home = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    home.filter(|_| !is_root).unwrap_or_else(|| PathBuf::from("/var/lib")).join("bms2mqtt")
}

/// An I/O error as people say it, without the operating system's number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
