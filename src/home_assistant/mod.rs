//! What Home Assistant is told: the catalogue of entities, what they are called, the discovery config of each, and a
//! dashboard.

pub mod dashboard;
pub mod discovery;
pub mod language;
