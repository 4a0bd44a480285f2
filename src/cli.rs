//! The command line as it is typed. What the texts mean is decided in `config`, which knows the file too.
//!
//! Texts are set for a terminal of 80 columns.

use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Battery packs with JBD smart BMS boards, cell by cell, in Home Assistant by MQTT.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Poll every pack once and print one line of JSON
    /// for each; exit 0 if all answered, else 1
    #[arg(short = '1', long, verbatim_doc_comment, global = true)]
    pub once: bool,

    #[command(flatten)]
    pub options: Options,
}

/// Which options each command has besides its own. They stand before the command or behind it.
const SHARED: [(&str, &[&str]); 6] = [
    ("check", CONFIGURATION),
    ("health", CONFIGURATION),
    ("dashboard", &["config", "port", "id", "name", "language", "log", "log_format"]),
    ("scan", &["port", "baud", "debug", "log", "log_format"]),
    ("simulate", &["baud", "debug", "log", "log_format"]),
    ("demo", &["debug", "log", "log_format"]),
];
/// All but `--once`.
const CONFIGURATION: &[&str] = &[
    "config",
    "port",
    "debug",
    "log",
    "log_format",
    "state_dir",
    "language",
    "id",
    "name",
    "baud",
    "interval",
    "url",
    "username",
    "password",
    "password_file",
    "ca_file",
    "cert_file",
    "key_file",
    "base_topic",
    "client_id",
    "keep_alive",
];

/// Does this option mean something to this command? To `run`, all do.
pub fn has(command: &str, option: &Arg) -> bool {
    let options = SHARED.iter().find(|(name, _)| *name == command).map_or(&[][..], |(_, options)| options);
    command == "run" || options.contains(&option.get_id().as_str())
}

/// # Errors
/// What is wrong, for standard error; or what was asked for by `--help` and `--version`.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    // What a command does not have is parsed all the same, and refused in the same words wherever
    // it stands.
    let command = with_options(Cli::command(), |name, option| match name {
        _ if !has(name, option) => Some(option.clone().hide(true)),
        // They ask neither file nor environment, of which the heading speaks.
        "scan" | "simulate" => Some(option.clone().help_heading(None)),
        // It is there already.
        _ => None,
    });
    let options: Vec<Arg> = command.get_arguments().cloned().collect();
    let mut matches = command.try_get_matches_from(arguments)?;
    if let Some((name, given)) = matches.subcommand() {
        let is_given = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
        let mut given = options.iter().filter(|option| is_given(option.get_id().as_str()));
        if let Some(option) = given.find(|option| !has(name, option)) {
            let option = option.get_long().unwrap_or_default();
            let wrong = format!("--{option} means nothing to {name}; see `bms2mqtt {name} --help`\n");
            return Err(clap::Error::raw(ErrorKind::UnknownArgument, wrong));
        }
    }
    Cli::from_arg_matches_mut(&mut matches)
}

/// For the shells' completions: every command with the options that it has.
pub fn completions() -> clap::Command {
    let command = Cli::command().mut_args(|option| option.global(false));
    with_options(command, |name, option| has(name, option).then(|| option.clone()))
}

/// Gives each command what `choose` makes of the options that stand before it.
fn with_options(command: clap::Command, choose: impl Fn(&str, &Arg) -> Option<Arg>) -> clap::Command {
    let options: Vec<Arg> = command.get_arguments().cloned().collect();
    command.mut_subcommands(|command| {
        let chosen: Vec<Arg> =
            options.iter().filter_map(|option| choose(command.get_name(), option)).collect();
        command.args(chosen)
    })
}

/// Is this program called by the name of its forerunner? Then it does what that did: see
/// `commands::smart_bms`.
pub fn is_smart_bms() -> bool {
    let name = env::args_os().next();
    name.as_deref().map(Path::new).and_then(Path::file_name).is_some_and(|name| name == "smart_bms")
}

#[derive(Subcommand)]
pub enum Command {
    /// Poll every pack and publish, until SIGINT or SIGTERM (the default)
    Run,
    /// Validate the configuration, print what is polled and published
    Check,
    /// Ask the running bridge of this configuration: exit 0 if every pack
    /// was read and the broker reached lately
    #[command(verbatim_doc_comment)]
    Health(HealthArgs),
    /// Try every serial port and print which one answers as a BMS
    Scan(ScanArgs),
    /// Print a dashboard of the configured packs for Home Assistant
    Dashboard(DashboardArgs),
    /// Write the config.yaml that does what an older bms.conf did
    Import(ImportArgs),
    /// Decode frames given as hex, in arguments or on standard input
    Decode(DecodeArgs),
    /// Serve a virtual BMS on a pseudo-terminal or a TCP port
    Simulate(SimulateArgs),
    /// Show the whole thing with no hardware and no broker
    Demo(DemoArgs),
}

/// Options that several commands have. Those about packs and broker win over environment and file.
#[derive(Args, Default)]
pub struct Options {
    /// Configuration file [default: $BMS2MQTT_CONFIG,
    /// ./config.yaml, /etc/bms2mqtt/config.yaml,
    /// ./bms.conf, /etc/BMS/bms.conf]
    #[arg(short, long, value_name = "FILE", verbatim_doc_comment, global = true)]
    pub config: Option<PathBuf>,

    /// One pack on this port, with no configuration file
    #[arg(short, long, global = true)]
    pub port: Option<String>,

    /// Show the configuration, requests and answers in
    /// hex, and each checksum's verdict
    #[arg(short, long, verbatim_doc_comment, global = true)]
    pub debug: bool,

    /// Levels by module, as in info,bms2mqtt::bus=debug
    /// [environment: BMS2MQTT_LOG]
    #[arg(long, value_name = "LEVELS", verbatim_doc_comment, global = true)]
    pub log: Option<String>,

    /// Of the log: text or json [default: text]
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        hide_default_value = true,
        hide_possible_values = true,
        global = true
    )]
    pub log_format: LogFormat,

    /// Where energy totals are kept
    /// [environment: BMS2MQTT_STATE_DIR]
    #[arg(long, value_name = "DIRECTORY", verbatim_doc_comment, global = true)]
    pub state_dir: Option<String>,

    /// Of the entities' names: en, de or ru
    /// [default: en; environment: BMS2MQTT_LANGUAGE]
    #[arg(long, value_name = "CODE", verbatim_doc_comment, global = true)]
    pub language: Option<String>,

    #[command(flatten)]
    pub pack: PackOptions,

    #[command(flatten)]
    pub mqtt: MqttOptions,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Args, Default)]
#[command(next_help_heading = "A single pack [environment: BMS2MQTT_PORT, BMS2MQTT_ID, …]")]
pub struct PackOptions {
    /// Stands in topics and unique ids
    #[arg(long, global = true)]
    pub id: Option<String>,

    /// Shown to people
    #[arg(long, global = true)]
    pub name: Option<String>,

    /// Baud rate of a serial port [default: 9600]
    #[arg(long, global = true)]
    pub baud: Option<String>,

    /// Time between polls [default: 5s]
    #[arg(long, global = true)]
    pub interval: Option<String>,
}

#[derive(Args, Default)]
#[command(next_help_heading = "Broker [environment: BMS2MQTT_MQTT_URL, BMS2MQTT_MQTT_USERNAME, …]")]
pub struct MqttOptions {
    // Not a doc comment, in which the brackets would be a link.
    #[arg(
        long = "mqtt-url",
        value_name = "URL",
        global = true,
        help = "mqtt://HOST[:PORT], or mqtts:// for TLS\n[default: mqtt://localhost:1883]"
    )]
    pub url: Option<String>,

    /// User at the broker
    #[arg(long = "mqtt-username", value_name = "NAME", global = true)]
    pub username: Option<String>,

    /// Other users of this machine can see it here:
    /// prefer a password file
    #[arg(long = "mqtt-password", value_name = "PASSWORD", verbatim_doc_comment, global = true)]
    pub password: Option<String>,

    /// File that holds the password, read at every
    /// connection
    #[arg(long = "mqtt-password-file", value_name = "FILE", verbatim_doc_comment, global = true)]
    pub password_file: Option<String>,

    /// Certificate of the broker's authority, or of
    /// the broker itself, PEM
    #[arg(long = "mqtt-ca-file", value_name = "FILE", verbatim_doc_comment, global = true)]
    pub ca_file: Option<String>,

    /// Client certificate, PEM
    #[arg(long = "mqtt-cert-file", value_name = "FILE", global = true)]
    pub cert_file: Option<String>,

    /// Client key, PEM
    #[arg(long = "mqtt-key-file", value_name = "FILE", global = true)]
    pub key_file: Option<String>,

    /// First part of the topics of values
    /// [default: bms2mqtt]
    #[arg(long = "mqtt-base-topic", value_name = "TOPIC", verbatim_doc_comment, global = true)]
    pub base_topic: Option<String>,

    /// How the broker knows this bridge
    /// [default: made anew at every start]
    #[arg(long = "mqtt-client-id", value_name = "ID", verbatim_doc_comment, global = true)]
    pub client_id: Option<String>,

    /// A broker calls a bridge dead after one and a
    /// half of it [default: 10s]
    #[arg(long = "mqtt-keep-alive", value_name = "TIME", verbatim_doc_comment, global = true)]
    pub keep_alive: Option<String>,
}

#[derive(Args)]
pub struct HealthArgs {
    /// Ask only whether it is at work: for what starts
    /// it again if it is not
    #[arg(long, verbatim_doc_comment)]
    pub alive: bool,
}

#[derive(Args)]
pub struct ScanArgs {
    /// Only these ports, which may be tcp://HOST:PORT
    pub ports: Vec<String>,
}

#[derive(Args)]
pub struct DashboardArgs {
    /// For Home Assistant before 2025.10, which makes
    /// entity ids from the names of packs
    #[arg(long, verbatim_doc_comment)]
    pub ids_from_names: bool,
}

#[derive(Args)]
pub struct ImportArgs {
    /// The file of `smart_bms`
    #[arg(default_value = "bms.conf")]
    pub file: PathBuf,

    /// To write, if it is not there yet
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct DecodeArgs {
    /// Frames, such as DD0400080F450F3D0F370F3DFEC677;
    /// spaces and line ends are ignored
    #[arg(verbatim_doc_comment)]
    pub hex: Vec<String>,

    /// One line of JSON for each frame
    #[arg(long)]
    pub json: bool,
}

/// What goes wrong and when, by kind. The order is the one in which the kinds are applied.
const FAULTS: &str = "\
Faults: KIND[=N][:TIME][@FROM-TO[/PERIOD]]
  A fault strikes every Nth answer while it is active: always, or from FROM to
  TO since the start, again in every PERIOD. TO may be left out. Examples:
  corrupt=7, late:2s, sleepy=5:10s, mute@30s-40s, drop=1@0s-5s/20s

  mute       the board is silent to everything; N is 1
  sleepy     it loses the first request after a silence of TIME, which is 30s;
             and every Nth, if given
  drop       no answer; N is 7, as for all that follow
  status     a refusal, 81, with checksum 0000 and right in turn
  corrupt    one bit flipped
  truncate   the answer breaks off
  duplicate  the answer twice
  stale      the answer to the previous request first
  garbage    up to eight random bytes before, inside or behind
  late       the answer comes TIME later, which is 700ms
  split      the answer in up to five pieces, with pauses from 5ms to TIME,
             which is 100ms
  echo       the request's own bytes first, as from a half-duplex adapter";

#[derive(Args)]
#[command(after_help = FAULTS)]
pub struct SimulateArgs {
    /// Make a pseudo-terminal and a symbolic link to it
    /// at this path
    #[arg(long, value_name = "PATH", conflicts_with = "listen", verbatim_doc_comment)]
    pub link: Option<PathBuf>,

    /// Listen on this TCP address instead, such as
    /// 127.0.0.1:2000
    #[arg(long, value_name = "ADDR", verbatim_doc_comment)]
    pub listen: Option<SocketAddr>,

    /// Cells of a living pack
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub cells: Option<u8>,

    /// Captured frames (hex text, or JSON/YAML with
    /// `response_hex`), or a living pack's settings
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    pub profile: Option<PathBuf>,

    /// How many times faster than real time a living
    /// pack lives
    #[arg(long, verbatim_doc_comment)]
    pub speed: Option<f64>,

    /// Something goes wrong: see below. Can be given
    /// several times
    #[arg(long, value_name = "SPEC", verbatim_doc_comment)]
    pub fault: Vec<String>,

    /// Another seed, another pack, and other places
    /// where faults strike
    #[arg(long, verbatim_doc_comment)]
    pub seed: Option<u64>,

    /// Answer at once instead of at the pace of the wire
    #[arg(long)]
    pub unpaced: bool,
}

#[derive(Args)]
pub struct DemoArgs {
    /// Cells of the simulated pack
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub cells: u8,

    /// How many times faster than real time the pack
    /// lives
    #[arg(long, default_value = "120", verbatim_doc_comment)]
    pub speed: f64,

    /// Address of the small broker [default:
    /// 127.0.0.1:1883, or a free port if that is taken]
    #[arg(long, value_name = "ADDR", verbatim_doc_comment)]
    pub listen: Option<SocketAddr>,

    /// End after this time, such as 10s
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_share_is_there() {
        completions().debug_assert();
        let command = Cli::command();
        for (name, options) in SHARED {
            assert!(command.find_subcommand(name).is_some(), "{name}");
            for id in options {
                assert!(command.get_arguments().any(|option| option.get_id() == id), "{name}: {id}");
            }
        }
    }
}
