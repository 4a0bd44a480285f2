//! Polls JBD / Xiaoxiang / Overkill "smart BMS" boards and shows every cell in Home Assistant by MQTT.
//!
//! Data flows one way, from the wire to the broker:
//!
//! ```text
//! serial port ┐            ┌ jbd::frame ─ jbd::message ─ jbd::reading ┐
//! TCP socket  ┴ link ─ jbd::board ── bytes in, answers matched to ────┴─ pack::reading
//!                          questions                                         │
//!                                                                         poller, memory
//!                                                                            │ pack::state
//! broker ─ mqtt::session ─ mqtt::topics ── wanted minus sent ── home_assistant ┘
//! ```
//!
//! The modules in the order of the flow:
//!
//! * [`link`]: an address → an open byte stream
//! * [`jbd`]: the protocol: frames, messages, asking a board, and a board that answers (the simulator)
//! * [`pack`]: what a battery is, whatever its protocol: numbers, readings, protections, energy, forecasts
//! * [`poller`], [`memory`], [`state_file`]: one pack for life, and what it remembers on the disk
//! * [`home_assistant`]: the catalogue of entities and their discovery configs
//! * [`mqtt`]: what should stand at the broker, sessions with it, and a small broker of our own
//! * [`bridge`]: starts pollers and publisher, and ends them in order; [`health`]: whether they are
//!   at work; [`control`]: the socket on which a running bridge is asked
//! * [`blocking`]: what blocks, on a thread of its own, for all who need it
//! * [`config`], [`cli`], [`commands`], [`logging`], [`json_line`]: what a person meets

#![forbid(unsafe_code)]
// A panic ends the bridge: what comes from outside gets an error instead.
#![cfg_attr(not(test), warn(clippy::expect_used, clippy::panic, clippy::unwrap_used))]

pub mod blocking;
pub mod board;
pub mod bridge;
pub mod bus;
pub mod catalogue;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod health;
pub mod hex;
pub mod home_assistant;
pub mod hub;
pub mod jbd;
pub mod json_line;
pub mod link;
pub mod logging;
pub mod memory;
pub mod mqtt;
pub mod pack;
pub mod poller;
pub mod state_file;
pub mod stop;
pub mod systemd;
pub mod trace;
