//! How figures are shown: one table, a row at a time.

use std::fmt::Display;
use std::time::Duration;

use crate::program::Of;

/// What is shown of one program.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    /// What ratios and aims are reckoned with.
    number: Option<f64>,
}

impl Cell {
    pub fn new(number: f64, text: impl Display) -> Cell {
        Cell { text: text.to_string(), number: Some(number) }
    }

    /// Why there is no figure.
    pub fn missing(reason: impl Display) -> Cell {
        Cell { text: reason.to_string(), number: None }
    }

    pub fn micros(time: Duration) -> Cell {
        let micros = time.as_secs_f64() * 1e6;
        Cell::new(micros, format!("{micros:.0} µs"))
    }

    pub fn millis(time: Duration) -> Cell {
        let millis = time.as_secs_f64() * 1e3;
        Cell::new(millis, format!("{millis:.2} ms"))
    }

    /// With groups of three digits, as long numbers are read.
    pub fn count(number: f64) -> Cell {
        let whole = (number.round() as u64).to_string();
        let mut text = String::new();
        for (place, digit) in whole.chars().enumerate() {
            if place > 0 && (whole.len() - place) % 3 == 0 {
                text.push(' ');
            }
            text.push(digit);
        }
        let decimals = number < 100.0 && number.fract() != 0.0;
        Cell::new(number, if decimals { format!("{number:.2}") } else { text })
    }

    pub fn of(self, unit: &str) -> Cell {
        Cell { text: format!("{} {unit}", self.text), ..self }
    }
}

pub enum Aim {
    None,
    /// This program's number may be so much: and in words.
    Most(f64, String),
    /// So many times the floor.
    Ratio(f64),
    /// As `Most`; above it the report fails.
    Bound(f64),
}

pub struct Table {
    only: Option<String>,
    before: bool,
    group: &'static str,
    begun: bool,
    /// Counts above their bounds, for people to read.
    pub above: Vec<String>,
}

const FIGURE: usize = 62;
const CELL: usize = 24;

impl Table {
    pub fn new(only: Option<String>, before: bool) -> Table {
        Table { only, before, group: "", begun: false, above: Vec::new() }
    }

    pub fn group(&mut self, name: &'static str) {
        self.group = name;
    }

    pub fn row(&mut self, figure: impl Display, cells: Of<Cell>, aim: Aim) {
        let figure = figure.to_string();
        let wanted = |word: &String| self.group.contains(word) || figure.contains(word);
        if !self.only.as_ref().is_none_or(wanted) {
            return;
        }
        let number = cells.this.number;
        let floor = cells.floor.as_ref().and_then(|floor| floor.number).filter(|&floor| floor > 0.0);
        let ratio = number.zip(floor).map(|(number, floor)| number / floor);
        let verdict = |number: Option<f64>, most: f64, aim: &str| match number {
            Some(number) if number <= most => format!("{aim}: met"),
            Some(_) => format!("{aim}: MISSED"),
            None => aim.to_owned(),
        };
        let aim = match aim {
            Aim::None => String::new(),
            Aim::Most(most, words) => verdict(number, most, &words),
            Aim::Ratio(most) => verdict(ratio, most, &format!("{most} times or less")),
            Aim::Bound(most) => {
                if number.is_some_and(|number| number > most) {
                    self.above.push(format!("{figure}: {} where {most} is the bound", cells.this.text));
                }
                verdict(number, most, &format!("bound {most}"))
            }
        };
        let text = |cell: Option<Cell>| cell.map(|cell| cell.text).unwrap_or_default();
        let ratio = ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default();
        let (this, before, floor) = (cells.this.text, text(cells.before), text(cells.floor));
        if !std::mem::replace(&mut self.begun, true) {
            println!();
            self.line(["figure", "this program", "before", "floor", "ratio", "aim"].map(str::to_owned));
            self.line(["---"; 6].map(str::to_owned));
        }
        self.line([figure, this, before, floor, ratio, aim]);
    }

    fn line(&self, [figure, this, before, floor, ratio, aim]: [String; 6]) {
        let before = if self.before { format!(" | {before:CELL$}") } else { String::new() };
        println!("| {figure:FIGURE$} | {this:CELL$}{before} | {floor:CELL$} | {ratio:7} | {aim} |");
    }
}

/// Where most of the times lie.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: Duration,
    pub p99: Duration,
}

impl Spread {
    /// Of one time at least.
    pub fn of(mut times: Vec<Duration>) -> Spread {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        Spread { median: at(50), p99: at(99) }
    }
}

/// The middle one of one number at least.
pub fn median<T: Ord + Copy>(mut numbers: Vec<T>) -> T {
    numbers.sort();
    numbers[numbers.len() / 2]
}
