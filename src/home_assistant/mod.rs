//! What Home Assistant is told: the catalogue of entities, and the discovery config of each.

pub mod catalogue;
pub mod discovery;
