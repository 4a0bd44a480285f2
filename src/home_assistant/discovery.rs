//! The discovery config of one entity, as Home Assistant's MQTT integration reads it.

use serde::Serialize;

use super::catalogue::{Component, Entity};
use super::language::Language;

/// What all configs of one bridge share.
pub struct Bridge<'a> {
    /// The bridge's own device identifier.
    pub identifier: &'a str,
    pub availability_topic: &'a str,
    /// Of the entities' names.
    pub language: Language,
}

/// What all configs of one pack share.
pub struct Pack<'a> {
    pub id: &'a str,
    pub name: &'a str,
    /// The board's own name.
    pub model: Option<&'a str>,
    pub software_version: Option<String>,
    /// Below it lies the topic of each value.
    pub topic: &'a str,
    pub availability_topic: &'a str,
}

#[derive(Serialize)]
struct Config<'a> {
    name: &'a str,
    unique_id: &'a str,
    /// Sets only the first entity id; what the user makes of it later stays.
    default_entity_id: &'a str,
    state_topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_on: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_off: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability: Option<&'a [Availability<'a>]>,
    /// With `latest`, Home Assistant's default, the bridge's `online` would hide a pack's `offline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    availability_mode: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a [&'a str]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit_of_measurement: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_category: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggested_display_precision: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled_by_default: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icon: Option<&'a str>,
    device: Device<'a>,
    origin: Origin,
}

#[derive(Serialize)]
struct Availability<'a> {
    topic: &'a str,
}

#[derive(Serialize)]
struct Device<'a> {
    identifiers: [&'a str; 1],
    name: &'a str,
    manufacturer: &'a str,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sw_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    via_device: Option<&'a str>,
}

#[derive(Serialize)]
struct Origin {
    name: &'static str,
    sw_version: &'static str,
    support_url: &'static str,
}

const ORIGIN: Origin = Origin {
    name: env!("CARGO_PKG_NAME"),
    sw_version: env!("CARGO_PKG_VERSION"),
    support_url: env!("CARGO_PKG_REPOSITORY"),
};

/// What stands before a pack's id in node ids, unique ids and device identifiers.
pub const ID_PREFIX: &str = "bms2mqtt_";

/// The config of one entity of a pack. `number` is that of a cell or temperature sensor, from 1.
pub fn entity_config(bridge: &Bridge<'_>, pack: &Pack<'_>, entity: &Entity, number: Option<usize>) -> String {
    let key = Entity::numbered(entity.key, number);
    let component = entity.component.as_str();
    let device = device_id(pack.id);
    let both = [bridge.availability_topic, pack.availability_topic].map(|topic| Availability { topic });
    let availability = if entity.without_board { &both[..1] } else { &both };
    let config = Config {
        name: &Entity::numbered(bridge.language.name(entity), number),
        unique_id: &format!("{device}_{key}"),
        default_entity_id: &format!("{component}.{}_{key}", pack.id),
        state_topic: &format!("{}/{key}", pack.topic),
        payload_on: None,
        payload_off: None,
        availability: Some(availability),
        availability_mode: Some("all"),
        device_class: entity.device_class,
        options: entity.options,
        unit_of_measurement: entity.unit,
        state_class: entity.state_class,
        entity_category: entity.diagnostic.then_some("diagnostic"),
        suggested_display_precision: entity.precision,
        enabled_by_default: (!entity.enabled).then_some(false),
        icon: entity.icon,
        device: Device {
            identifiers: [&device],
            name: pack.name,
            manufacturer: "JBD",
            model: pack.model.unwrap_or("Smart BMS"),
            sw_version: pack.software_version.as_deref(),
            via_device: Some(bridge.identifier),
        },
        origin: ORIGIN,
    };
    to_json(&config)
}

/// The bridge as a device of its own, with one entity: is the bridge there?
///
/// The packs hang on it, so it goes before them: Home Assistant makes a nameless device of a `via_device` that
/// it does not know yet.
pub fn bridge_config(bridge: &Bridge<'_>) -> String {
    let component = Component::BinarySensor.as_str();
    let config = Config {
        name: bridge.language.name_of("connection").unwrap_or("Connection"),
        unique_id: &format!("{}_connection", bridge.identifier),
        default_entity_id: &format!("{component}.{}_connection", bridge.identifier),
        state_topic: bridge.availability_topic,
        payload_on: Some("online"),
        payload_off: Some("offline"),
        availability: None,
        availability_mode: None,
        device_class: Some("connectivity"),
        options: None,
        unit_of_measurement: None,
        state_class: None,
        entity_category: Some("diagnostic"),
        suggested_display_precision: None,
        enabled_by_default: None,
        icon: None,
        device: Device {
            identifiers: [bridge.identifier],
            name: "bms2mqtt",
            manufacturer: "bms2mqtt",
            model: "Bridge",
            sw_version: Some(ORIGIN.sw_version),
            via_device: None,
        },
        origin: ORIGIN,
    };
    to_json(&config)
}

/// Where the config of an entity stands, below the discovery prefix.
pub fn entity_config_topic(pack_id: &str, entity: &Entity, number: Option<usize>) -> String {
    let key = Entity::numbered(entity.key, number);
    config_topic(entity.component.as_str(), &device_id(pack_id), &key)
}

/// Where the bridge's own config stands, below the discovery prefix.
pub fn bridge_config_topic(identifier: &str) -> String {
    config_topic(Component::BinarySensor.as_str(), identifier, "connection")
}

fn device_id(pack_id: &str) -> String {
    format!("{ID_PREFIX}{pack_id}")
}

fn config_topic(component: &str, node: &str, key: &str) -> String {
    format!("{component}/{node}/{key}/config")
}

fn to_json(config: &Config<'_>) -> String {
    // Strings, numbers and flags cannot fail to serialize.
    serde_json::to_string(config).unwrap_or_default()
}
