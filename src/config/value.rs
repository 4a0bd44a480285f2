//! The text of one setting → its value, or what is wrong with it and what would be right.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::home_assistant::language::Language;
use crate::link::Address;
use crate::pack::decimal::Decimal;

#[derive(Debug)]
pub struct Problem {
    pub wrong: String,
    pub right: String,
}

impl Problem {
    pub fn new(wrong: impl Into<String>, right: impl Into<String>) -> Problem {
        Problem { wrong: wrong.into(), right: right.into() }
    }
}

pub fn text(text: &str) -> Result<String, Problem> {
    if text.is_empty() {
        return Err(Problem::new("is empty", "write something, or leave the key out"));
    }
    // MQTT carries names of up to 64 KB; nobody means one that long.
    if text.len() > 1000 {
        return Err(Problem::new("is very long", "write up to 1000 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(Problem::new("has control characters", "write plain text in one line"));
    }
    Ok(text.to_owned())
}

pub fn path(given: &str) -> Result<PathBuf, Problem> {
    text(given).map(PathBuf::from)
}

/// As YAML 1.1 has it, which is how people know it from Home Assistant.
pub fn flag(text: &str) -> Result<bool, Problem> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Ok(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Ok(false),
        _ => Err(Problem::new(format!("\"{text}\" is neither true nor false"), "write true or false")),
    }
}

pub fn language(text: &str) -> Result<Language, Problem> {
    let found = Language::ALL.into_iter().find(|(code, _)| *code == text);
    found.map(|(_, language)| language).ok_or_else(|| {
        let codes = Language::ALL.map(|(code, _)| code).join(", ");
        Problem::new(
            format!("\"{text}\" is no language that there are names in"),
            format!("write one of {codes}"),
        )
    })
}

/// A pack's id: it stands in topics, unique ids and file names.
pub fn id(text: &str) -> Result<String, Problem> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
        return Err(Problem::new(
            format!("\"{text}\" is not an id"),
            "use small letters, digits and _, such as house or van_2",
        ));
    }
    Ok(text.to_owned())
}

/// A topic that somebody else has chosen: all that can be published to, so also `/test_1`.
pub fn any_topic(text: &str) -> Result<String, Problem> {
    let wrong = if text.is_empty() {
        "is empty".to_owned()
    } else if text.contains(['+', '#']) {
        format!("\"{text}\" has a wildcard")
    } else if text.starts_with('$') || text.chars().any(char::is_control) || text.len() > 200 {
        format!("\"{text:.200}\" is not for publishing")
    } else {
        return Ok(text.to_owned());
    };
    Err(Problem::new(wrong, "write a topic without +, # and a $ at its beginning, such as test_1"))
}

/// A topic of ours, or the beginning of many.
pub fn topic(text: &str) -> Result<String, Problem> {
    let right = "write a topic without +, # and outer slashes, such as bms2mqtt";
    let topic = any_topic(text).map_err(|problem| Problem::new(problem.wrong, right))?;
    if topic.starts_with('/') || topic.ends_with('/') || topic.contains("//") {
        return Err(Problem::new(format!("\"{topic}\" has an empty level"), right));
    }
    Ok(topic)
}

pub fn baud(text: &str) -> Result<u32, Problem> {
    let baud = text.parse().ok().filter(|baud| (300..=4_000_000).contains(baud));
    baud.ok_or_else(|| Problem::new(format!("\"{text}\" is not a baud rate"), "JBD boards speak 9600"))
}

pub fn count(text: &str) -> Result<u32, Problem> {
    let count = text.parse().ok().filter(|count| (1..=1000).contains(count));
    count
        .ok_or_else(|| Problem::new(format!("\"{text}\" is no such number"), "write a number from 1 to 1000"))
}

pub fn duration(text: &str, [least, most]: [Duration; 2]) -> Result<Duration, Problem> {
    let example = "write a time such as 5s, 500ms or 1m";
    if text.parse::<f64>().is_ok() {
        return Err(Problem::new(format!("\"{text}\" has no unit"), example));
    }
    let duration = humantime::parse_duration(text)
        .map_err(|error| Problem::new(format!("\"{text}\" is not a time ({error})"), example))?;
    if !(least..=most).contains(&duration) {
        let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
        let right = format!("write a time from {least} to {most}");
        return Err(Problem::new(format!("\"{text}\" is out of range"), right));
    }
    Ok(duration)
}

/// What is to be taken for noise, in the unit and to the decimals of the quantity.
pub fn dead_band(text: &str, unit: &str, places: u8) -> Result<Decimal, Problem> {
    let step = Decimal::new(1, places);
    let digits = text.parse::<f64>().ok().map(|band| band / step.to_f64());
    // Whatever the binary fraction of 0.003 is, it is no more than this away.
    let whole =
        digits.filter(|digits| (1.0..=1e6).contains(digits) && (digits - digits.round()).abs() < 1e-6);
    whole.map(|digits| Decimal::new(digits.round() as i64, places)).ok_or_else(|| {
        let right = format!("write a number of {unit} in steps of {step}, or leave the key out");
        Problem::new(format!("\"{text}\" is no dead band"), right)
    })
}

/// A serial port's path, or `tcp://host:port`.
pub fn address(given: &str, baud: u32) -> Result<Address, Problem> {
    let given = text(given)?;
    match given.split_once("://") {
        Some(("tcp", peer)) => match host_and_port(peer)? {
            (host, Some(port)) => Ok(Address::Tcp { peer: format!("{host}:{port}") }),
            (host, None) => {
                let right = format!("give the port of the serial server, such as tcp://{host}:2000");
                Err(Problem::new(format!("\"{given}\" has no port"), right))
            }
        },
        Some((scheme, _)) => Err(Problem::new(
            format!("{scheme}:// is not a way to a board"),
            "write a serial port such as /dev/ttyUSB0, or tcp://host:port",
        )),
        None => match serial_server(&given) {
            Some(right) => Err(Problem::new(format!("\"{given}\" is no serial port"), right)),
            None => Ok(Address::Serial { path: given, baud }),
        },
    }
}

/// What looks like a serial server's address and lacks `tcp://`: the question whether it is one.
fn serial_server(given: &str) -> Option<String> {
    if let Ok(address) = given.trim_matches(['[', ']']).parse::<IpAddr>() {
        let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        return Some(format!("did you mean tcp://{host}:2000, with the port of your serial server?"));
    }
    match host_and_port(given) {
        Ok((_, Some(_))) => Some(format!("did you mean tcp://{given}?")),
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

impl Default for BrokerUrl {
    fn default() -> BrokerUrl {
        BrokerUrl { tls: false, host: "localhost".to_owned(), port: 1883 }
    }
}

/// `mqtt://host[:port]` or `mqtts://host[:port]`.
pub fn broker_url(text: &str) -> Result<BrokerUrl, Problem> {
    let example = "write mqtt://localhost:1883, or mqtts:// for TLS";
    // Before anything else, so that no message repeats a password.
    if text.contains('@') {
        return Err(Problem::new("has a user in it", "give mqtt.username and mqtt.password instead"));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let right = format!("write mqtt://{}", if text.is_empty() { "localhost:1883" } else { text });
        return Err(Problem::new(format!("\"{text}\" has no scheme"), right));
    };
    let tls = match scheme {
        "mqtt" => false,
        "mqtts" => true,
        _ => return Err(Problem::new(format!("{scheme}:// is not MQTT over TCP"), example)),
    };
    let (host, port) = host_and_port(rest.strip_suffix('/').unwrap_or(rest))?;
    if tls && host.starts_with('[') {
        let right = "write the broker's name, or its IPv4 address";
        return Err(Problem::new(format!("\"{host}\" cannot be compared with a certificate"), right));
    }
    Ok(BrokerUrl { tls, host, port: port.unwrap_or(if tls { 8883 } else { 1883 }) })
}

/// `host[:port]`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), Problem> {
    let after_bracket = text.rfind(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match text[after_bracket..].rfind(':') {
        Some(colon) => (&text[..after_bracket + colon], Some(&text[after_bracket + colon + 1..])),
        None => (text, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let bracketed = bare.len() != host.len();
    if bare.is_empty() || bare.contains(['/', '?', ' ', '[', ']']) || (bare.contains(':') && !bracketed) {
        let right = "write a name or an address, an IPv6 address in brackets";
        return Err(Problem::new(format!("\"{host}\" is not a host"), right));
    }
    let port = port.map(|port| {
        let number = port.parse::<u16>().ok().filter(|&port| port > 0);
        number.ok_or_else(|| {
            Problem::new(format!("\"{port}\" is not a port"), "write a number from 1 to 65535")
        })
    });
    Ok((host.to_owned(), port.transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, tls, host, port) in [
            ("mqtt://localhost", false, "localhost", 1883),
            ("mqtt://10.0.0.2:1884/", false, "10.0.0.2", 1884),
            ("mqtts://broker.lan", true, "broker.lan", 8883),
            ("mqtt://[::1]:1883", false, "[::1]", 1883),
            ("mqtt://[fe80::1]", false, "[fe80::1]", 1883),
        ] {
            let expected = BrokerUrl { tls, host: host.to_owned(), port };
            assert_eq!(broker_url(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "localhost",
            "http://x",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://x:0",
            "mqtt://x:y",
            "mqtt://::1",
            "mqtts://[::1]",
        ] {
            assert!(broker_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_url_with_a_password_is_not_repeated() {
        let problem = broker_url("mqtt://bms:secret@host").unwrap_err();
        assert!(!format!("{problem:?}").contains("secret"));
    }

    #[test]
    fn addresses() {
        let tcp = |peer: &str| Address::Tcp { peer: peer.to_owned() };
        assert_eq!(address("tcp://[::1]:2000", 9600).unwrap(), tcp("[::1]:2000"));
        let serial = Address::Serial { path: "/dev/ttyUSB0".to_owned(), baud: 9600 };
        assert_eq!(address("/dev/ttyUSB0", 9600).unwrap(), serial);
        for text in ["", "tcp://host", "tcp://:2000", "udp://host:2000"] {
            assert!(address(text, 9600).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bare_number_is_not_a_time() {
        let range = [Duration::from_millis(10), Duration::from_secs(60)];
        assert_eq!(duration("1500ms", range).unwrap(), Duration::from_millis(1500));
        for text in ["5", "0.5", "", "0s", "2m", "fast", "-5s"] {
            assert!(duration(text, range).is_err(), "{text}");
        }
    }
}
