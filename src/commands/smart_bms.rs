//! What a program that is called `smart_bms` does as that did, so that scripts need no change:
//! `bms.conf` comes first, `-d` speaks on standard output, and `-1` publishes where `out_to` is
//! `mqtt`.

use std::io::{self, Write};

use super::Failure;
use crate::cli::{Options, is_smart_bms};
use crate::config::Config;
use crate::link::Address;
use crate::mqtt::access::{Access, Whereabouts};
use crate::mqtt::session;
use crate::trace;

/// Begins with `-d`, if it is given. Does it go to standard output?
pub fn begin_debug(options: &Options) -> bool {
    let begins = options.debug && is_smart_bms();
    if begins {
        trace::speak_as_smart_bms();
        say("BMS: Debug set\n\n");
    }
    begins
}

/// What is configured, in the words of `bms.conf`. Never a password.
pub fn show(config: &Config) {
    if !trace::speaks_as_smart_bms() {
        return;
    }
    for pack in &config.packs {
        let device = match &pack.address {
            Address::Serial { path, .. } => path.clone(),
            other @ Address::Tcp { .. } => other.to_string(),
        };
        let topic = pack.json_topic.as_deref().unwrap_or_default();
        let (server, interval) = (server(&config.access), pack.interval.as_secs_f64());
        let out_to = if config.console { "consol" } else { "mqtt" };
        say(&format!(
            "device: <{device}>\nMQTTserver: <{server}>\nMQTTtopik: <{topic}>\nrun_interval: {interval}\n\
             out_to: <{out_to}>\n"
        ));
    }
}

fn server(access: &Access) -> String {
    match &access.whereabouts {
        Whereabouts::Given(endpoint) if endpoint.tls.is_none() && endpoint.port == 1883 => {
            endpoint.host.clone()
        }
        _ => access.to_string(),
    }
}

/// Behind each line of JSON.
pub fn end_line() {
    if trace::speaks_as_smart_bms() {
        say("\n");
    }
}

/// Behind the last one of `-1`: publishes these lines, each at its topic.
///
/// # Errors
/// When the broker does not take them.
pub async fn end_once(
    access: &Access,
    lines: &[(String, String)],
    all_answered: bool,
) -> Result<(), Failure> {
    if is_smart_bms() && !lines.is_empty() {
        session::publish(access, lines).await.map_err(Failure::Running)?;
    }
    if all_answered && trace::speaks_as_smart_bms() {
        say("BMS: queries complete, exiting loop.\n\n");
    }
    Ok(())
}

/// A reader that has gone away is found out by the next line of JSON.
fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}
