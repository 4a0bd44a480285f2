//! What a battery is, whatever its protocol.

pub mod decimal;
pub mod energy;
pub mod protection;
pub mod reading;
pub mod state;
