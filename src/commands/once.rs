//! `--once`: one poll of every pack, one line of JSON each, in the order of the configuration. A
//! bridge of this configuration that runs has the ports: then it is asked to poll.

use std::io;

use tracing::{debug, error, warn};

use super::{Failure, print, smart_bms};
use crate::board::Direct;
use crate::bridge::{control_address, ports};
use crate::config::{Config, Pack};
use crate::control::{self, Request};
use crate::json_line::json_line;
use crate::link::{self, Link};
use crate::pack::reading::Reading;

pub async fn run(config: Config) -> Result<(), Failure> {
    debug!("{}", super::check::describe(&config).trim_end().replace('\n', "; "));
    smart_bms::show(&config);
    if let Some(lines) = ask_bridge(&config) {
        let all_answered = !lines.contains(&json_line(None));
        for line in lines {
            print_text(line)?;
        }
        // The bridge itself publishes.
        smart_bms::end_once(&config.access, &[], all_answered).await?;
        return if all_answered { Ok(()) } else { Err(Failure::Silent) };
    }
    let console = config.console;
    // All at the same time: a silent pack does not hold up the others.
    let mut polls = Vec::new();
    for pack in config.packs {
        let topic = pack.json_topic.clone().filter(|_| !console);
        polls.push((topic, tokio::spawn(async move { Poll::new(&pack).reading().await })));
    }
    let mut all_answered = true;
    let mut lines = Vec::new();
    for (topic, poll) in polls {
        let reading = poll.await.map_err(|error| Failure::Running(error.to_string()))?;
        let answered = reading.as_ref().is_some_and(|reading| reading.totals.is_some());
        all_answered &= answered;
        print_line(reading.as_ref())?;
        lines.extend(topic.filter(|_| answered).map(|topic| (topic, json_line(reading.as_ref()))));
    }
    smart_bms::end_once(&config.access, &lines, all_answered).await?;
    if all_answered { Ok(()) } else { Err(Failure::Silent) }
}

/// The packs' lines, if a bridge of this configuration runs and tells them.
fn ask_bridge(config: &Config) -> Option<Vec<String>> {
    let asked = control_address(config).and_then(|address| control::ask(&address, Request::Once));
    let why = match asked {
        Ok((true, response)) => {
            let lines = control::lines_of(&response, &ports(config))?;
            debug!("the running bridge of this configuration has the ports, and was asked");
            return Some(lines.into_iter().map(str::to_owned).collect());
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
        Err(error) => format!("does not answer: {error}"),
        Ok((false, response)) if response.starts_with("refused") => {
            "tells what it reads to its own user and root only".to_owned()
        }
        Ok((false, _)) => "is of an older version and cannot tell what it reads: start it again".to_owned(),
    };
    warn!("the running bridge of this configuration {why}");
    None
}

/// Prints the line of this reading. Does somebody still read?
///
/// # Errors
/// As [`super::print`].
pub fn print_line(reading: Option<&Reading>) -> Result<bool, Failure> {
    print_text(json_line(reading))
}

fn print_text(line: String) -> Result<bool, Failure> {
    let is_read = print(line + "\n")?;
    smart_bms::end_line();
    Ok(is_read)
}

/// Polls one pack outside the bridge; what goes wrong goes to the log.
pub struct Poll<'a> {
    pack: &'a Pack,
    board: Option<Direct<Link>>,
}

impl<'a> Poll<'a> {
    pub fn new(pack: &'a Pack) -> Poll<'a> {
        Poll { pack, board: None }
    }

    pub async fn reading(&mut self) -> Option<Reading> {
        let board = match self.board.as_mut() {
            Some(board) => board,
            None => match link::open(&self.pack.address).await {
                Ok(link) => self.board.insert(Direct::new(link, self.pack.address.timing())),
                Err(error) => {
                    let advice = match error.port_is_taken() {
                        true => {
                            "; a running bms2mqtt is asked by `--once` with its configuration (--config FILE)"
                        }
                        false => "",
                    };
                    error!(pack = self.pack.name.id, "{error}{advice}");
                    return None;
                }
            },
        };
        match board.poll().await {
            Ok(reading) => Some(reading),
            Err(error) => {
                error!(pack = self.pack.name.id, "{}: {error}", self.pack.address);
                if error.broke_the_link() {
                    self.board = None;
                }
                None
            }
        }
    }
}
