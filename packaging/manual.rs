//! Writes the manual page and the shells' completions into a folder, from the same definitions as `--help`:
//!
//! `cargo run --example manual -- target/manual`
//!
//! An example, so that the program itself does not carry what only its packages need.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use bms2mqtt::cli::{self, Cli};
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("to which folder?")?);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("bms2mqtt.1"), page()?)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut cli::completions(), "bms2mqtt", &folder)?;
    }
    Ok(())
}

fn page() -> Result<Vec<u8>, Box<dyn Error>> {
    let command = Cli::command();
    let man = Man::new(command.clone()).date("").manual("User Commands");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis().to_writer(&mut page)?;
    description().to_writer(&mut page)?;
    commands(&command, &mut page)?;
    page.extend(options(&man)?);
    let mut end = Roff::new();
    files(&mut end);
    environment(&command, &mut end)?;
    exit_status(&mut end);
    examples(&mut end);
    see_also(&mut end);
    end.to_writer(&mut page)?;
    Ok(page)
}

fn synopsis() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([
        bold("bms2mqtt"),
        roman(" ["),
        italic("OPTIONS"),
        roman("] ["),
        italic("COMMAND"),
        roman("]"),
    ]);
    roff
}

fn description() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        bold("bms2mqtt"),
        roman(
            " polls JBD / Xiaoxiang / Overkill battery boards over serial ports or TCP serial servers and publishes \
             every value to an MQTT broker, where Home Assistant finds it by itself. It only reads; it never writes \
             to a board. Results go to standard output, the log to standard error.",
        ),
    ]);
    roff.control("PP", []);
    roff.text([roman(
        "Whatever is missing (the port, the board, the broker, a writable state directory) is said in one line and tried \
         again until it is there.",
    )]);
    roff.control("PP", []);
    roff.text([
        roman("The Debian package runs it as the service "),
        bold("bms2mqtt.service"),
        roman(", once its configuration names a port: what it says is in "),
        bold("journalctl -u bms2mqtt"),
        roman(", and how it is in "),
        bold("sudo bms2mqtt health"),
        roman("."),
    ]);
    roff
}

/// Each command with its own options, and the names of those that others have too, which follow
/// once.
fn commands(command: &Command, page: &mut Vec<u8>) -> Result<(), Box<dyn Error>> {
    writeln!(page, ".SH COMMANDS")?;
    for sub in command.get_subcommands() {
        let mut roff = Roff::new();
        roff.control("SS", [sub.get_name()]);
        roff.text([roman(sub.get_about().map(ToString::to_string).unwrap_or_default() + ".")]);
        roff.to_writer(page)?;
        if sub.get_arguments().next().is_some() {
            let mut options = Vec::new();
            // Its help option is that of all.
            Man::new(sub.clone().disable_help_flag(true)).render_options_section(&mut options)?;
            write!(page, "{}", without_heading(&options)?)?;
        }
        shared(command, sub).to_writer(page)?;
        if let Some(after) = sub.get_after_help() {
            let mut roff = Roff::new();
            roff.control("PP", []);
            // As it is set for a terminal: it has columns.
            roff.control("nf", []);
            for line in after.to_string().lines() {
                roff.text([roman(line)]);
            }
            roff.control("fi", []);
            roff.to_writer(page)?;
        }
    }
    Ok(())
}

/// Which of the options that several commands have this one has; shorter, which it has not.
fn shared(command: &Command, sub: &Command) -> Roff {
    let options: Vec<&Arg> = command.get_arguments().collect();
    let (has, lacks): (Vec<&Arg>, Vec<&Arg>) =
        options.into_iter().partition(|option| cli::has(sub.get_name(), option));
    let mut roff = Roff::new();
    if has.is_empty() || lacks.is_empty() {
        return roff;
    }
    let (words, names) = if has.len() < lacks.len() {
        ("Of the options below: ", has)
    } else {
        ("The options below without ", lacks)
    };
    let mut text = vec![roman(words)];
    for (place, name) in names.iter().filter_map(|option| option.get_long()).enumerate() {
        text.push(roman(if place == 0 { "" } else { ", " }));
        text.push(bold(format!("--{name}")));
    }
    text.push(roman("."));
    roff.control("PP", []);
    roff.text(text);
    roff
}

/// What clap_mangen says below its heading.
fn without_heading(options: &[u8]) -> Result<&str, Box<dyn Error>> {
    let (_, items) =
        std::str::from_utf8(options)?.split_once(".SH OPTIONS\n").ok_or("clap_mangen has another heading")?;
    Ok(items)
}

/// The options that several commands have.
fn options(man: &Man) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut roff = Roff::new();
    roff.control("SH", ["OPTIONS"]);
    roff.text([
        roman("Of "),
        bold("run"),
        roman(", and of the other commands as far as they name them. They stand before the command or behind it."),
    ]);
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    let mut items = Vec::new();
    man.render_options_section(&mut items)?;
    page.extend(without_heading(&items)?.as_bytes());
    Ok(page)
}

fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    let files = [
        (
            "./config.yaml, /etc/bms2mqtt/config.yaml, ./bms.conf, /etc/BMS/bms.conf",
            "The configuration: the first that exists, unless --config or BMS2MQTT_CONFIG names one. It may hold a \
             password: the package's can be read by root and the service only. Every key with its default is in \
             /etc/bms2mqtt/config.yaml, or /usr/share/doc/bms2mqtt/examples where that has been changed.",
        ),
        (
            "/var/lib/bms2mqtt, ~/.local/state/bms2mqtt",
            "Energy totals and the last protection, of the service and root, and of users. Keep them: Home Assistant's energy \
             statistics go by them. Purging the package removes those of the service.",
        ),
        (
            "/dev/serial/by-id/",
            "Serial ports by names that stay. They belong to the group dialout, in which the service is.",
        ),
    ];
    for (names, what) in files {
        roff.control("TP", []);
        roff.text([italic(names)]);
        roff.text([roman(what)]);
    }
}

/// Every option of all commands that takes a value has a variable, but for the log's format.
fn environment(command: &Command, roff: &mut Roff) -> Result<(), Box<dyn Error>> {
    // The log's is not the configuration's.
    let read = [include_str!("../src/config.rs"), include_str!("../src/logging.rs")].concat();
    roff.control("SH", ["ENVIRONMENT"]);
    roff.text([roman("Each has the meaning of an option, which wins over it; both win over the file.")]);
    let takes_value = |arg: &&Arg| arg.get_action().takes_values() && arg.is_global_set();
    let options = command.get_arguments().filter(takes_value).filter_map(Arg::get_long);
    for option in options.filter(|option| *option != "log-format") {
        let variable = format!("BMS2MQTT_{}", option.to_uppercase().replace('-', "_"));
        if !read.contains(&format!("\"{variable}\"")) {
            return Err(format!(
                "{variable}, for --{option}, is neither in src/config.rs nor in src/logging.rs"
            )
            .into());
        }
        roff.control("TP", ["32"]);
        roff.text([bold(variable)]);
        roff.text([bold(format!("--{option}"))]);
        // No empty line between them: it is a table.
        roff.control("PD", ["0"]);
    }
    roff.control("TP", ["32"]);
    roff.text([bold("STATE_DIRECTORY")]);
    roff.text([roman("from systemd: the state directory where nothing else names one")]);
    roff.control("PD", []);
    Ok(())
}

fn exit_status(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    let codes = [
        ("0", "Done; of run: it was asked to end, and has said offline to the broker."),
        (
            "1",
            "It failed while running: with --once a board did not answer, with health something is not well, \
             with health --alive it makes no progress.",
        ),
        (
            "2",
            "Wrong usage or configuration. One message names the file, the line, the key, and what would be right.",
        ),
    ];
    for (code, what) in codes {
        roff.control("TP", []);
        roff.text([bold(code)]);
        roff.text([roman(what)]);
    }
}

fn examples(roff: &mut Roff) {
    roff.control("SH", ["EXAMPLES"]);
    let examples = [
        ("bms2mqtt scan", "Which port answers?"),
        ("bms2mqtt --once --port /dev/ttyUSB0", "One line of JSON."),
        ("sudo bms2mqtt check", "Is the service's configuration right?"),
        ("bms2mqtt demo", "The whole thing with no hardware and no broker."),
    ];
    for (line, what) in examples {
        roff.control("TP", []);
        roff.text([bold(line)]);
        roff.text([roman(what)]);
    }
}

fn see_also(roff: &mut Roff) {
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("mosquitto"),
        roman("(8), "),
        bold("systemctl"),
        roman("(1), "),
        bold("journalctl"),
        roman("(1)"),
    ]);
    roff.control("PP", []);
    roff.text([roman(env!("CARGO_PKG_REPOSITORY"))]);
}
