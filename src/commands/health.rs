//! `health`: asks the running bridge of the same configuration whether every pack was read and the broker was reached
//! lately.

use super::{Failure, print};
use crate::bridge::health_address;
use crate::config::Config;
use crate::health;

pub fn run(config: &Config) -> Result<(), Failure> {
    let asked = health_address(config).and_then(|address| health::ask(&address));
    let (well, report) = asked.map_err(|error| {
        Failure::Running(format!("no bridge runs with this configuration, or it does not answer: {error}"))
    })?;
    print(report)?;
    if well { Ok(()) } else { Err(Failure::Silent) }
}
