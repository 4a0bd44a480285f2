//! `check`: validates the configuration, and prints what would be polled and published.

use std::fmt::Write as _;

use super::{Failure, print};
use crate::catalogue::CATALOGUE;
use crate::config::{Config, Pack};
use crate::home_assistant::discovery::ID_PREFIX;
use crate::link::Address;
use crate::mqtt::access::{Access, Whereabouts};
use crate::mqtt::endpoint::{Endpoint, Login};
use crate::pack::dead_band::Quantity;

pub fn run(config: &Config) -> Result<(), Failure> {
    let mut text = match &config.file {
        Some(file) => format!("{}: good\n", file.display()),
        None => "flags and environment: good\n".to_owned(),
    };
    text += &describe(config);
    if !config.console {
        let keys: Vec<String> = CATALOGUE.iter().map(|entity| entity.key.replace("{n}", "N")).collect();
        text += &format!("keys, as far as the board has them: {}\n", keys.join(", "));
    }
    print(text)?;
    Ok(())
}

/// What is configured, a line for each thing. Never a password.
pub fn describe(config: &Config) -> String {
    let Config { access, names, packs, state_dir, dead_bands, console, .. } = config;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |what: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{what}");
    };
    if *console {
        line(format_args!("one-line JSON on standard output, no broker"));
    } else {
        line(format_args!("broker {access}{}", login(access)));
        if names.discovery {
            let prefix = &names.discovery_prefix;
            line(format_args!("discovery under {prefix}/, again when {} says online", access.birth_topic));
            line(format_args!("names of entities in {}", names.language));
        } else {
            line(format_args!("no discovery"));
        }
        line(format_args!("energy totals and last protections in {}", state_dir.display()));
        for (rule, (_, name, unit, _)) in dead_bands.iter().zip(Quantity::ALL) {
            if rule.dead_band.digits() > 0 {
                line(format_args!(
                    "{name} is not sent when it changes by less than {} {unit}",
                    rule.dead_band
                ));
            }
            if !rule.minimum_interval.is_zero() {
                let interval = humantime::format_duration(rule.minimum_interval);
                line(format_args!("{name} is sent every {interval} at most"));
            }
        }
    }
    for Pack { name, address, interval, json_topic, .. } in packs {
        let every = humantime::format_duration(*interval);
        let baud = match address {
            Address::Serial { baud, .. } => format!(" at {baud} baud"),
            Address::Tcp { .. } => String::new(),
        };
        line(format_args!("pack {} \"{}\": {address}{baud}, every {every}", name.id, name.name));
        if !*console {
            line(format_args!("  values at {}/{}/<key>", names.base_topic, name.id));
            if names.discovery {
                let prefix = &names.discovery_prefix;
                line(format_args!("  entities at {prefix}/<component>/{ID_PREFIX}{}/<key>/config", name.id));
            }
            if let Some(topic) = json_topic {
                line(format_args!("  one-line JSON at {topic}"));
            }
        }
    }
    text
}

fn login(access: &Access) -> String {
    match &access.whereabouts {
        Whereabouts::Given(Endpoint { login: Some(Login { username, password }), .. }) => {
            format!(" as user {username} with {password:?}")
        }
        _ => String::new(),
    }
}
