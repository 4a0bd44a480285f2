//! The command line as it is typed. What the texts mean is decided in `config`, which knows the file too.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Battery packs with JBD smart BMS boards, cell by cell, in Home Assistant by MQTT.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Poll every pack once, print one line of JSON for each, and exit: 0 all answered, 1 not
    #[arg(short = '1', long, global = true)]
    pub once: bool,

    #[command(flatten)]
    pub options: Options,
}

#[derive(Subcommand)]
pub enum Command {
    /// Poll every pack and publish, until SIGINT or SIGTERM (the default)
    Run,
    /// Validate the configuration and print what would be polled and published
    Check,
    /// Ask the running bridge of this configuration: exit 0 if every pack was read and the broker reached lately
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

/// Options of every command. Those about packs and broker win over environment and file.
#[derive(Args, Default)]
pub struct Options {
    /// Configuration file [default: $BMS2MQTT_CONFIG, ./config.yaml, /etc/bms2mqtt/config.yaml, ./bms.conf,
    /// /etc/BMS/bms.conf]
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// One pack on this port, without a configuration file
    #[arg(short, long, global = true)]
    pub port: Option<String>,

    /// Show the configuration, every request and answer in hex, and each checksum's verdict
    #[arg(short, long, global = true)]
    pub debug: bool,

    /// How the log is written to standard error
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,

    /// Where energy totals are kept [environment: BMS2MQTT_STATE_DIR]
    #[arg(long, value_name = "DIRECTORY", global = true)]
    pub state_dir: Option<String>,

    /// Of the entities' names: en, de or ru [default: en; environment: BMS2MQTT_LANGUAGE]
    #[arg(long, value_name = "CODE", global = true)]
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
    /// mqtt://HOST[:PORT], or mqtts:// for TLS [default: mqtt://localhost:1883]
    #[arg(long = "mqtt-url", value_name = "URL", global = true)]
    pub url: Option<String>,

    /// User at the broker
    #[arg(long = "mqtt-username", value_name = "NAME", global = true)]
    pub username: Option<String>,

    /// Other users of this machine can see it here: prefer a password file
    #[arg(long = "mqtt-password", value_name = "PASSWORD", global = true)]
    pub password: Option<String>,

    /// File that holds the password, read at every connection
    #[arg(long = "mqtt-password-file", value_name = "FILE", global = true)]
    pub password_file: Option<String>,

    /// Certificate authority of the broker, PEM
    #[arg(long = "mqtt-ca-file", value_name = "FILE", global = true)]
    pub ca_file: Option<String>,

    /// Client certificate, PEM
    #[arg(long = "mqtt-cert-file", value_name = "FILE", global = true)]
    pub cert_file: Option<String>,

    /// Client key, PEM
    #[arg(long = "mqtt-key-file", value_name = "FILE", global = true)]
    pub key_file: Option<String>,

    /// First part of the topics of values [default: bms2mqtt]
    #[arg(long = "mqtt-base-topic", value_name = "TOPIC", global = true)]
    pub base_topic: Option<String>,

    /// How the broker knows this bridge [default: made anew at every start]
    #[arg(long = "mqtt-client-id", value_name = "ID", global = true)]
    pub client_id: Option<String>,

    /// A broker calls a bridge dead after one and a half of it [default: 10s]
    #[arg(long = "mqtt-keep-alive", value_name = "TIME", global = true)]
    pub keep_alive: Option<String>,
}

#[derive(Args)]
pub struct HealthArgs {
    /// Ask only whether it is at work: for what starts it again if it is not
    #[arg(long)]
    pub alive: bool,
}

#[derive(Args)]
pub struct ScanArgs {
    /// Only these ports, which may be tcp://HOST:PORT
    pub ports: Vec<String>,
}

#[derive(Args)]
pub struct DashboardArgs {
    /// For Home Assistant before 2025.10, which makes entity ids from the names of packs
    #[arg(long)]
    pub ids_from_names: bool,
}

#[derive(Args)]
pub struct ImportArgs {
    /// The file of `smart_bms`
    #[arg(default_value = "bms.conf")]
    pub file: PathBuf,

    /// Where to write; what is there is not replaced
    #[arg(short, long, value_name = "FILE", default_value = "config.yaml")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct DecodeArgs {
    /// Frames, such as DD0400080F450F3D0F370F3DFEC677; spaces and line ends are ignored
    pub hex: Vec<String>,

    /// One line of JSON for each frame
    #[arg(long)]
    pub json: bool,
}

/// What goes wrong and when, by kind. The order is the one in which the kinds are applied.
const FAULTS: &str = "\
Faults: KIND[=N][:TIME][@FROM-TO[/PERIOD]]
  A fault strikes every Nth answer while it is active: always, or from FROM to TO since the start, again in every
  PERIOD. TO may be left out. Examples: corrupt=7, late:2s, sleepy=5:10s, mute@30s-40s, drop=1@0s-5s/20s

  mute       the board is silent to everything; N is 1
  sleepy     it loses the first request after a silence of TIME, which is 30s; and every Nth, if given
  drop       no answer; N is 7, as for all that follow
  status     a refusal, 81, with checksum 0000 and right in turn
  corrupt    one bit flipped
  truncate   the answer breaks off
  duplicate  the answer twice
  stale      the answer to the previous request first
  garbage    up to eight random bytes before, inside or behind
  late       the answer comes TIME later, which is 700ms
  split      the answer in up to five pieces, with pauses from 5ms to TIME, which is 100ms
  echo       the request's own bytes first, as from a half-duplex adapter";

#[derive(Args)]
#[command(after_help = FAULTS)]
pub struct SimulateArgs {
    /// Make a pseudo-terminal and a symbolic link to it at this path
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pub link: Option<PathBuf>,

    /// Listen on this TCP address instead, such as 127.0.0.1:2000
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// Cells of a living pack
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub cells: Option<u8>,

    /// Captured frames (hex text, or JSON/YAML with `response_hex`), or a living pack's settings
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,

    /// How many times faster than real time a living pack lives
    #[arg(long)]
    pub speed: Option<f64>,

    /// Something goes wrong: see below. Can be given several times
    #[arg(long, value_name = "SPEC")]
    pub fault: Vec<String>,

    /// Another seed, another pack, and other places where faults strike
    #[arg(long)]
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

    /// How many times faster than real time the pack lives
    #[arg(long, default_value = "120")]
    pub speed: f64,

    /// Address of the small broker [default: 127.0.0.1:1883, or a free port where that is taken]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// End after this time, such as 10s
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
}
