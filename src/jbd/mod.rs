//! The protocol of JBD / Xiaoxiang / Overkill boards: strict question and answer on a serial line.

pub mod board;
pub mod frame;
pub mod message;
pub mod reading;
pub mod simulator;

/// Who makes boards that speak it.
pub const MAKER: &str = "JBD";
