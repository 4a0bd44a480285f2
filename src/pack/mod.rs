//! What a battery is, whatever its protocol.

pub mod alarms;
pub mod dead_band;
pub mod decimal;
pub mod energy;
pub mod forecast;
pub mod protection;
pub mod reading;
pub mod record;
pub mod state;
pub mod tracker;
