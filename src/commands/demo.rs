//! `demo`: the whole thing with no hardware and no broker: a living pack on a pseudo-terminal, a small broker on
//! loopback, the bridge between them, and a table of what the broker has.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::termios::tcgetwinsize;
use tokio::time::{Instant, interval_at, sleep};

use super::{Failure, print, stop_signal};
use crate::bridge;
use crate::cli::DemoArgs;
use crate::config::{Config, DEFAULT_BAUD, DEFAULT_OFFLINE_AFTER, Pack};
use crate::jbd::simulator::{LivingPack, Pace, Settings, serve, terminal};
use crate::link::Address;
use crate::mqtt::broker::{Broker, Retained};
use crate::mqtt::names::PackName;

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
    let intro = [
        format!(
            "A simulated pack of {} cells at {}, {} times faster than life.",
            args.cells,
            terminal.path().display(),
            args.speed,
        ),
        format!("The broker is at mqtt://{address} (MQTT 5 and 3.1.1). To look into it:"),
        String::new(),
        format!("    mosquitto_sub -h {} -p {} -v -t '#'", address.ip(), address.port()),
        String::new(),
        format!(
            "In Home Assistant on this machine, add the MQTT integration with this address; from another \
             machine, start `demo --listen 0.0.0.0:{MQTT_PORT}`. Ctrl-C ends it."
        ),
        String::new(),
    ];
    let mut screen = Screen::new(intro, screen_size());
    print(screen.intro())?;
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
            () = show(&mut screen, &retained) => {}
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
async fn show(screen: &mut Screen, retained: &Retained) {
    let period = Duration::from_millis(if screen.size.is_some() { 500 } else { 3000 });
    let mut ticks = interval_at(Instant::now() + period.min(Duration::from_secs(2)), period);
    loop {
        ticks.tick().await;
        let out = screen.next(&Table(retained.snapshot()), screen_size());
        // Whoever has closed the output does not want to see it.
        if io::stdout().write_all(out.as_bytes()).and_then(|()| io::stdout().flush()).is_err() {
            return;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    columns: usize,
    rows: usize,
}

impl Size {
    /// Where nobody says another.
    const USUAL: Size = Size { columns: 80, rows: 24 };
}

/// `None` if the output is no terminal.
fn screen_size() -> Option<Size> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let told = tcgetwinsize(&stdout).ok();
    // Consoles on a serial line say 0.
    let known = told.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    Some(known.map_or(Size::USUAL, |size| Size { columns: size.ws_col.into(), rows: size.ws_row.into() }))
}

/// What has been written to the output, so that the next table comes in the last one's place.
struct Screen {
    intro: [String; 7],
    /// `None` if it is no terminal.
    size: Option<Size>,
    /// Lines of the table that is shown.
    height: usize,
}

impl Screen {
    fn new(intro: [String; 7], size: Option<Size>) -> Screen {
        Screen { intro, size, height: 0 }
    }

    /// No line is longer than the terminal is wide: what wraps cannot be drawn over.
    fn columns(&self) -> usize {
        // In the last column a terminal may or may not begin a new line.
        self.size.unwrap_or(Size::USUAL).columns.clamp(2, 80) - 1
    }

    fn intro(&self) -> String {
        let mut out = String::new();
        for paragraph in &self.intro {
            // Only texts are broken: a command is not.
            if paragraph.starts_with(' ') {
                out += paragraph;
                out.push('\n');
                continue;
            }
            for line in flow(self.columns(), 1, &paragraph.split(' ').collect::<Vec<_>>()) {
                out += &line;
                out.push('\n');
            }
        }
        out
    }

    /// What is to be written to show this table on a terminal that has this size now.
    fn next(&mut self, table: &Table, size: Option<Size>) -> String {
        let mut out = String::new();
        if self.size != size {
            // How the lines stand now, only the terminal knows.
            self.size = size;
            out += "\x1b[H\x1b[2J";
            out += &self.intro();
        } else if self.height > 0 && size.is_some() {
            // Up to where the last one began.
            let _ = write!(out, "\x1b[{}A\r", self.height);
        }
        let lines = match size {
            // The cursor needs a line too.
            Some(size) => table.lines(self.columns(), size.rows.saturating_sub(1)),
            None => table.lines(self.columns(), usize::MAX),
        };
        self.height = lines.len();
        // What is left of the last one is cleared line by line: where the table fills the screen,
        // some terminals would keep the whole screen that is cleared among what was scrolled away.
        let (clear_line, end) = if size.is_some() { ("\x1b[K\n", "\x1b[J") } else { ("\n", "\n") };
        for line in lines {
            out += &line;
            out += clear_line;
        }
        out += end;
        out
    }
}

/// The pieces in a line, or in as many lines as they need, with so many spaces between two.
fn flow(columns: usize, gap: usize, pieces: &[&str]) -> Vec<String> {
    let mut lines = vec![String::new()];
    for piece in pieces {
        let line = lines.last().map_or(0, |line| line.chars().count());
        let width = piece.chars().count();
        match lines.last_mut() {
            Some(last) if line == 0 || line + gap + width <= columns => {
                *last += &" ".repeat(if line == 0 { 0 } else { gap });
                *last += &cut(piece, columns);
            }
            _ => lines.push(cut(piece, columns)),
        }
    }
    lines
}

/// A piece that has no line long enough loses its end.
fn cut(piece: &str, columns: usize) -> String {
    if piece.chars().count() <= columns {
        return piece.to_owned();
    }
    let end = piece.char_indices().nth(columns.saturating_sub(1)).map_or(0, |(end, _)| end);
    piece[..end].to_owned() + "…"
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

    /// The table in lines of at most so many columns, and so many lines at most: where it is
    /// narrow, bars are shorter and lines more; where it is low, the cells go without bars and what
    /// matters least is left out.
    fn lines(&self, columns: usize, rows: usize) -> Vec<String> {
        let rest = self.rest(columns);
        let mut table = Vec::new();
        'fits: for kept in (0..=rest.len()).rev() {
            for bar in [6, 4, 2, 0] {
                table = self.summary(columns);
                table.extend(self.cells(columns, bar));
                table.extend(rest.iter().take(kept).flatten().cloned());
                if table.len() <= rows {
                    break 'fits;
                }
            }
        }
        table.truncate(rows);
        table
    }

    /// The pack as a whole.
    fn summary(&self, columns: usize) -> Vec<String> {
        let name = format!("Demo battery ({})", self.get("availability"));
        let [voltage, current, power] = [("voltage", "V"), ("current", "A"), ("power", "W")]
            .map(|(key, unit)| format!("{} {unit}", self.get(key)));
        let mut lines = flow(columns, 3, &[&name, &voltage, &current, &power, self.get("mode")]);
        let charge = format!("State of charge {:>3} %", self.get("state_of_charge"));
        let bar = bar(self.number("state_of_charge") / 100.0, (columns / 4).min(20));
        let capacity = format!("{} of {} Ah,", self.get("remaining_capacity"), self.get("nominal_capacity"));
        let cycles = format!("{} cycles", self.get("cycles"));
        // The last two belong together.
        lines.extend(flow(columns, 2, &[&charge, &bar, &format!("{capacity} {cycles}")]));
        let cells = format!(
            "Cells from {} V (cell {}) to {} V (cell {}), {} mV apart",
            self.get("minimum_cell_voltage"),
            self.get("lowest_cell"),
            self.get("maximum_cell_voltage"),
            self.get("highest_cell"),
            self.get("cell_voltage_delta"),
        );
        lines.extend(flow(columns, 1, &cells.split(' ').collect::<Vec<_>>()));
        lines
    }

    /// Cell by cell, each with a bar of this width.
    fn cells(&self, columns: usize, width: usize) -> Vec<String> {
        const GAP: &str = "  ";
        let (lowest, highest) = (self.number("minimum_cell_voltage"), self.number("maximum_cell_voltage"));
        let cells: Vec<String> = self
            .numbered("cell_", "_voltage")
            .map(|(cell, voltage)| {
                let share = (voltage.parse().unwrap_or(lowest) - lowest) / (highest - lowest).max(0.005);
                let balancing = if self.is_on(&format!("cell_{cell}_balancing")) { '*' } else { ' ' };
                let bar = if width > 0 { format!(" {}", bar(share, width)) } else { String::new() };
                format!("{cell:>2}{balancing}{voltage}{bar}")
            })
            .collect();
        let longest = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(1);
        // Four, eight … in a line are easy to count.
        let in_a_line = match (columns + GAP.len()) / (longest + GAP.len()) {
            number @ 4.. => number / 4 * 4,
            number => number.max(1),
        };
        let line = |cells: &[String]| cut(&cells.join(GAP), columns);
        cells.chunks(in_a_line).map(line).collect()
    }

    /// What is left out first comes last.
    fn rest(&self, columns: usize) -> [Vec<String>; 3] {
        let [charge, discharge] = ["charge", "discharge"]
            .map(|direction| format!("{direction} MOSFET {},", self.get(&format!("{direction}_mosfet"))));
        let charge = charge.replacen('c', "C", 1);
        let protections = format!("protections: {}", self.get("protections"));
        let temperatures: Vec<&str> = self.numbered("temperature_", "").map(|(_, value)| value).collect();
        let temperatures = format!("Temperatures {} °C", temperatures.join(", "));
        let [charged, discharged] = ["energy_charged", "energy_discharged"].map(|key| self.get(key));
        let charged = format!("Energy charged {charged} kWh, discharged {discharged} kWh");
        let messages = format!("{} retained messages", self.0.len());
        [
            flow(columns, 1, &[&charge, &discharge, &protections]),
            flow(columns, 3, &[&temperatures, "* is balancing"]),
            flow(columns, 3, &[&charged, &messages]),
        ]
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

    /// As wide as its values get.
    fn table(cells: usize) -> Table {
        let mut topics: BTreeMap<String, Vec<u8>> = [
            ("availability", "offline"),
            ("voltage", "106.48"),
            ("current", "-120.00"),
            ("power", "-12777.6"),
            ("mode", "discharging"),
            ("state_of_charge", "100"),
            ("remaining_capacity", "100.00"),
            ("nominal_capacity", "100.00"),
            ("cycles", "1234"),
            ("minimum_cell_voltage", "3.327"),
            ("lowest_cell", "12"),
            ("maximum_cell_voltage", "3.328"),
            ("highest_cell", "32"),
            ("cell_voltage_delta", "123"),
            ("temperature_1", "-12.3"),
            ("temperature_2", "-12.3"),
            ("charge_mosfet", "OFF"),
            ("discharge_mosfet", "OFF"),
            ("protections", "none"),
            ("energy_charged", "12.34"),
            ("energy_discharged", "12.34"),
        ]
        .into_iter()
        .map(|(key, value)| (format!("bms2mqtt/demo/{key}"), value.into()))
        .collect();
        for cell in 1..=cells {
            topics.insert(format!("bms2mqtt/demo/cell_{cell}_voltage"), "3.328".into());
            topics.insert(format!("bms2mqtt/demo/cell_{cell}_balancing"), "ON".into());
        }
        Table(topics)
    }

    fn screen(size: Option<Size>) -> Screen {
        let intro = [
            "A simulated pack of 32 cells at /dev/pts/123, 120 times faster than life.",
            "The broker is at mqtt://127.0.0.1:12345 (MQTT 5 and 3.1.1). To look into it:",
            "",
            "    mosquitto_sub -h 127.0.0.1 -p 12345 -v -t '#'",
            "",
            "In Home Assistant on this machine, add the MQTT integration with this address; from another machine, \
             start `demo --listen 0.0.0.0:1883`. Ctrl-C ends it.",
            "",
        ];
        Screen::new(intro.map(str::to_owned), size)
    }

    fn widest(text: &str) -> usize {
        let text = text.replace("\x1b[K", "").replace("\x1b[J", "");
        text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
    }

    #[test]
    fn the_table_shows_what_is_there_and_a_dash_for_what_is_not() {
        let topics = [("voltage", "13.20"), ("cell_1_voltage", "3.300"), ("cell_1_balancing", "ON")];
        let topics = topics.map(|(key, value)| (format!("bms2mqtt/demo/{key}"), value.as_bytes().to_vec()));
        let table = Table(topics.into()).lines(79, 23).join("\n");
        assert!(table.contains("13.20 V   – A"), "{table}");
        assert!(table.contains(" 1*3.300 "), "{table}");
        assert!(!table.contains("NaN"), "{table}");
    }

    #[test]
    fn a_usual_terminal_has_room_for_intro_and_table_of_any_pack() {
        for cells in 1..=32 {
            let mut screen = screen(Some(Size::USUAL));
            let intro = screen.intro();
            let shown = screen.next(&table(cells), Some(Size::USUAL));
            // The cursor stands below.
            let height = intro.lines().count() + shown.matches('\n').count() + 1;
            assert!(height <= 24, "{cells} cells: {height} lines\n{intro}{shown}");
            assert!(widest(&intro).max(widest(&shown)) < 80, "{cells} cells\n{intro}{shown}");
            for words in ["░░░", "Energy charged", "1234 cycles", "* is balancing"] {
                assert!(shown.contains(words), "{cells} cells: {words}\n{shown}");
            }
        }
        // A pack in trouble may have all its protections.
        let mut troubled = table(32);
        troubled.0.insert("bms2mqtt/demo/protections".to_owned(), "cell_overvoltage,".repeat(14).into());
        let lines = troubled.lines(79, 23);
        assert!(lines.len() <= 23 && widest(&lines.join("\n")) < 80, "{lines:?}");
    }

    #[test]
    fn any_terminal_has_room_for_what_it_is_given() {
        for (columns, rows) in [(40, 12), (20, 5), (132, 43), (80, 10), (1, 1), (500, 200), (60, 8)] {
            let size = Some(Size { columns, rows });
            for cells in [1, 4, 16, 32] {
                let mut screen = screen(size);
                let shown = screen.next(&table(cells), size);
                assert!(shown.matches('\n').count() < rows, "{columns}×{rows}\n{shown}");
                assert!(widest(&shown) <= columns, "{columns}×{rows}\n{shown}");
            }
        }
        // Sixteen cells on the smallest screens that people have: the voltages are all there.
        let lines = table(16).lines(39, 11);
        assert_eq!(lines.iter().map(|line| line.matches("*3.328").count()).sum::<usize>(), 16, "{lines:?}");
    }

    #[test]
    fn a_table_comes_in_the_place_of_the_last_one() {
        let size = Some(Size::USUAL);
        let mut screen = screen(size);
        let first = screen.next(&table(16), size);
        let (height, again) = (first.matches('\n').count(), screen.next(&table(16), size));
        assert!(again.starts_with(&format!("\x1b[{height}A\rDemo battery")), "{again:?}");
        // Another size: everything anew, since the old lines may stand anywhere.
        let other = Some(Size { columns: 40, rows: 12 });
        let anew = screen.next(&table(16), other);
        assert!(anew.starts_with("\x1b[H\x1b[2JA simulated pack"), "{anew:?}");
        // Not a terminal: one below the other.
        let mut file = self::screen(None);
        file.next(&table(16), None);
        let below = file.next(&table(16), None);
        assert!(below.starts_with("Demo battery") && below.ends_with("messages\n\n"), "{below:?}");
    }
}
