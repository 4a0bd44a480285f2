//! `demo`: the whole thing with no hardware and no broker: a living pack on a pseudo-terminal, a small broker on
//! loopback, the bridge between them, and a table of what the broker has.

use std::collections::BTreeMap;
use std::env;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, IsTerminal, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, interval_at, sleep};

use super::{Failure, print, stop_signal};
use crate::bridge;
use crate::cli::DemoArgs;
use crate::config::{Config, DEFAULT_BAUD, DEFAULT_OFFLINE_AFTER, Pack};
use crate::jbd::simulator::{LivingPack, Pace, Settings, serve, terminal};
use crate::link::Address;
use crate::mqtt::broker::{Broker, Retained};
use crate::mqtt::topics::PackName;

const ID: &str = "demo";
const MQTT_PORT: u16 = 1883;

pub async fn run(args: &DemoArgs) -> Result<(), Failure> {
    let stop = stop_signal()?;
    let broker = bind(args.listen).await?;
    let address = broker.address()?;
    let retained = broker.retained();
    let settings = Settings { cells: args.cells, speed: args.speed, ..Settings::default() };
    let mut pack = LivingPack::new(settings).map_err(Failure::Usage)?;
    let (terminal, line) = terminal(None)?;
    let state_dir = env::temp_dir().join(format!("bms2mqtt-demo-{}", std::process::id()));
    let config = Config {
        packs: vec![Pack {
            name: PackName { id: ID.to_owned(), name: "Demo battery".to_owned() },
            address: Address::Serial { path: terminal.path().display().to_string(), baud: DEFAULT_BAUD },
            interval: Duration::from_secs(1),
            offline_after: DEFAULT_OFFLINE_AFTER,
            json_topic: None,
        }],
        state_dir: state_dir.clone(),
        ..Config::to_broker(address.ip().to_string(), address.port())
    };
    print(format_args!(
        "A simulated pack of {} cells at {}, {} times faster than life, 9600 baud.\n\
         The broker is at mqtt://{address}. To look into it:\n\
         \n    mosquitto_sub -h {} -p {} -v -t '#'\n\n\
         In Home Assistant on this machine, add the MQTT integration with this address; from another\n\
         machine it is reached with `demo --listen 0.0.0.0:{MQTT_PORT}`. Ctrl-C ends it.\n\n",
        args.cells,
        terminal.path().display(),
        args.speed,
        address.ip(),
        address.port(),
    ))?;
    let serving = tokio::spawn(broker.serve());
    let boarding =
        tokio::spawn(async move { serve(line, &mut pack, Pace::Wire { baud: DEFAULT_BAUD }).await });
    let over = async {
        match args.duration {
            Some(duration) => sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let end = async {
        tokio::select! {
            () = stop => {}
            () = over => {}
            () = show(&retained) => {}
        }
    };
    bridge::run(config, end).await;
    serving.abort();
    boarding.abort();
    // A demonstration leaves nothing behind; what cannot be removed is in the temporary directory.
    let _ = fs::remove_dir_all(state_dir);
    Ok(())
}

async fn bind(wanted: Option<SocketAddr>) -> Result<Broker, Failure> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match wanted {
        Some(address) => Broker::bind(address).await.map_err(|error| {
            Failure::Running(format!("cannot listen on {address}: {error}; choose another port"))
        }),
        None => match Broker::bind(loopback(MQTT_PORT)).await {
            Ok(broker) => Ok(broker),
            Err(_) => Ok(Broker::bind(loopback(0)).await?),
        },
    }
}

/// Shows what the broker has, on a terminal in place, else every few seconds.
async fn show(retained: &Retained) {
    let in_place = io::stdout().is_terminal();
    let period = Duration::from_millis(if in_place { 500 } else { 3000 });
    let mut ticks = interval_at(Instant::now() + period.min(Duration::from_secs(2)), period);
    let mut height = 0;
    loop {
        ticks.tick().await;
        let table = Table(retained.snapshot()).to_string();
        let mut out = String::new();
        if in_place && height > 0 {
            // Up to where the last one began, and clear from there.
            let _ = write!(out, "\x1b[{height}A\x1b[J");
        }
        out += &table;
        height = table.lines().count();
        // Whoever has closed the output does not want to see it.
        if io::stdout().write_all(out.as_bytes()).and_then(|()| io::stdout().flush()).is_err() {
            return;
        }
    }
}

/// The demo pack's topics, as people read them.
struct Table(BTreeMap<String, Vec<u8>>);

impl Table {
    fn get(&self, key: &str) -> &str {
        let payload = self.0.get(&format!("bms2mqtt/{ID}/{key}"));
        payload.and_then(|payload| std::str::from_utf8(payload).ok()).unwrap_or("–")
    }

    fn number(&self, key: &str) -> f64 {
        self.get(key).parse().unwrap_or(f64::NAN)
    }

    fn is_on(&self, key: &str) -> bool {
        self.get(key) == "ON"
    }

    fn numbered<'a>(&'a self, before: &'a str, after: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        let keys = (1..).map(move |number| (number, self.get(&format!("{before}{number}{after}"))));
        keys.take_while(|(_, value)| *value != "–")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let charge = self.number("state_of_charge");
        writeln!(
            f,
            "Demo battery ({})   {} V   {} A   {} W   {}",
            self.get("availability"),
            self.get("voltage"),
            self.get("current"),
            self.get("power"),
            self.get("mode"),
        )?;
        writeln!(
            f,
            "State of charge {:>3} %  {}  {} of {} Ah, {} cycles",
            self.get("state_of_charge"),
            bar(charge / 100.0, 30),
            self.get("remaining_capacity"),
            self.get("nominal_capacity"),
            self.get("cycles"),
        )?;
        writeln!(
            f,
            "Cells from {} V (cell {}) to {} V (cell {}), {} mV apart",
            self.get("minimum_cell_voltage"),
            self.get("lowest_cell"),
            self.get("maximum_cell_voltage"),
            self.get("highest_cell"),
            self.get("cell_voltage_delta"),
        )?;
        let (lowest, highest) = (self.number("minimum_cell_voltage"), self.number("maximum_cell_voltage"));
        for (cell, voltage) in self.numbered("cell_", "_voltage") {
            let share = (voltage.parse().unwrap_or(lowest) - lowest) / (highest - lowest).max(0.005);
            let balancing = if self.is_on(&format!("cell_{cell}_balancing")) { '*' } else { ' ' };
            let end = if cell % 4 == 0 { "\n" } else { "  " };
            write!(f, "  {cell:>2}{balancing}{voltage} {}{end}", bar(share, 6))?;
        }
        if self.numbered("cell_", "_voltage").count() % 4 != 0 {
            writeln!(f)?;
        }
        let temperatures: Vec<&str> = self.numbered("temperature_", "").map(|(_, value)| value).collect();
        writeln!(f, "Temperatures {} °C   * is balancing", temperatures.join(", "))?;
        writeln!(
            f,
            "Charge MOSFET {}, discharge MOSFET {}, protections: {}",
            self.get("charge_mosfet"),
            self.get("discharge_mosfet"),
            self.get("protections"),
        )?;
        writeln!(
            f,
            "Energy charged {} kWh, discharged {} kWh   {} retained messages\n",
            self.get("energy_charged"),
            self.get("energy_discharged"),
            self.0.len(),
        )
    }
}

/// A bar of this width, filled to this share.
fn bar(share: f64, width: usize) -> String {
    // A share that is not known fills nothing.
    let filled = ((share.clamp(0.0, 1.0) * width as f64).round() as usize).min(width);
    "█".repeat(filled) + &"░".repeat(width - filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_is_there_and_a_dash_for_what_is_not() {
        let topics = [("voltage", "13.20"), ("cell_1_voltage", "3.300"), ("cell_1_balancing", "ON")];
        let topics = topics.map(|(key, value)| (format!("bms2mqtt/demo/{key}"), value.as_bytes().to_vec()));
        let table = Table(topics.into()).to_string();
        assert!(table.contains("13.20 V   – A"), "{table}");
        assert!(table.contains(" 1*3.300 "), "{table}");
        assert!(!table.contains("NaN"), "{table}");
    }
}
