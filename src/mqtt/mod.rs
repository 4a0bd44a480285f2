//! Towards the broker: what should stand there, one session with it, and a small broker of our own.

pub mod access;
pub mod broker;
pub mod endpoint;
pub mod mirror;
pub mod names;
pub mod session;
pub mod supervisor;
