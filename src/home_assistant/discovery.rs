//! The discovery config of one entity, as Home Assistant's MQTT integration reads it.

use serde::Serialize;
use smallvec::SmallVec;

use super::language::Language;
use crate::catalogue::{Component, Entity};

/// What is announced: the bridge, a pack.
pub struct Device<'a> {
    /// Its identifier, the node of its config topics, and the beginning of its unique ids.
    pub id: &'a str,
    /// The beginning of its entity ids.
    pub slug: &'a str,
    pub name: &'a str,
    pub maker: &'a str,
    pub model: &'a str,
    pub version: Option<&'a str>,
    /// The device that it hangs on, which goes before it: of one that is not known yet Home Assistant makes a nameless
    /// device.
    pub via: Option<&'a str>,
    /// While all of these say `online`, its entities are available.
    pub availability_topics: &'a [&'a str],
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
    #[serde(skip_serializing_if = "<[Availability<'_>]>::is_empty")]
    availability: &'a [Availability<'a>],
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
    device: DeviceInfo<'a>,
    origin: Origin,
}

#[derive(Serialize)]
struct Availability<'a> {
    topic: &'a str,
}

#[derive(Serialize)]
struct DeviceInfo<'a> {
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

/// What is the bridge's own entity: is the bridge there?
const BRIDGE_KEY: &str = "connection";

/// The config of one entity of a pack, whose value stands at `state_topic`. `number` is that of a cell or temperature
/// sensor, from 1.
pub fn entity_config(
    device: &Device<'_>,
    entity: &Entity,
    number: Option<usize>,
    state_topic: &str,
    language: Language,
) -> String {
    let name = Entity::numbered(language.name(entity), number);
    let key = Entity::numbered(entity.key, number);
    let shown = Shown { key: &key, name: &name, component: entity.component, state_topic };
    // The bridge's, which is the first, is that of all it has.
    let topics = device.availability_topics;
    let topics = if entity.without_board { topics.get(..1).unwrap_or(topics) } else { topics };
    let availability: SmallVec<[Availability<'_>; 2]> =
        topics.iter().map(|topic| Availability { topic }).collect();
    to_json(&Config {
        availability: &availability,
        availability_mode: Some("all"),
        device_class: entity.device_class,
        options: entity.options,
        unit_of_measurement: entity.unit,
        state_class: entity.state_class,
        entity_category: entity.diagnostic.then_some("diagnostic"),
        suggested_display_precision: entity.precision,
        enabled_by_default: (!entity.enabled).then_some(false),
        icon: entity.icon,
        ..shown.config(device, &shown.unique_id(device), &shown.entity_id(device))
    })
}

/// The config of the bridge's one entity, which shows its availability.
pub fn bridge_config(device: &Device<'_>, availability_topic: &str, language: Language) -> String {
    let shown = Shown {
        key: BRIDGE_KEY,
        name: language.name_of(BRIDGE_KEY).unwrap_or("Connection"),
        component: Component::BinarySensor,
        state_topic: availability_topic,
    };
    to_json(&Config {
        payload_on: Some("online"),
        payload_off: Some("offline"),
        device_class: Some("connectivity"),
        entity_category: Some("diagnostic"),
        ..shown.config(device, &shown.unique_id(device), &shown.entity_id(device))
    })
}

/// What every config says.
struct Shown<'a> {
    key: &'a str,
    name: &'a str,
    component: Component,
    state_topic: &'a str,
}

impl Shown<'_> {
    fn unique_id(&self, device: &Device<'_>) -> String {
        format!("{}_{}", device.id, self.key)
    }

    fn entity_id(&self, device: &Device<'_>) -> String {
        format!("{}.{}_{}", self.component.as_str(), device.slug, self.key)
    }

    fn config<'a>(&'a self, device: &Device<'a>, unique_id: &'a str, entity_id: &'a str) -> Config<'a> {
        Config {
            name: self.name,
            unique_id,
            default_entity_id: entity_id,
            state_topic: self.state_topic,
            payload_on: None,
            payload_off: None,
            availability: &[],
            availability_mode: None,
            device_class: None,
            options: None,
            unit_of_measurement: None,
            state_class: None,
            entity_category: None,
            suggested_display_precision: None,
            enabled_by_default: None,
            icon: None,
            device: DeviceInfo {
                identifiers: [device.id],
                name: device.name,
                manufacturer: device.maker,
                model: device.model,
                sw_version: device.version,
                via_device: device.via,
            },
            origin: ORIGIN,
        }
    }
}

/// Where the config of a device's entity stands, below the discovery prefix.
pub fn entity_config_topic(device_id: &str, entity: &Entity, number: Option<usize>) -> String {
    config_topic(entity.component, device_id, &Entity::numbered(entity.key, number))
}

/// Where the bridge's own config stands, below the discovery prefix.
pub fn bridge_config_topic(device_id: &str) -> String {
    config_topic(Component::BinarySensor, device_id, BRIDGE_KEY)
}

fn config_topic(component: Component, node: &str, key: &str) -> String {
    format!("{}/{node}/{key}/config", component.as_str())
}

fn to_json(config: &Config<'_>) -> String {
    // Strings, numbers and flags cannot fail to serialize.
    serde_json::to_string(config).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::catalogue::CATALOGUE;

    const HOUSE: Device<'_> = Device {
        id: "bms2mqtt_house",
        slug: "house",
        name: "House battery",
        maker: "JBD",
        model: "JBD-SP10S009",
        version: Some("3.2"),
        via: Some("bms2mqtt_bridge"),
        availability_topics: &["bms2mqtt/bridge/availability", "bms2mqtt/house/availability"],
    };

    fn entity(key: &str) -> &'static Entity {
        CATALOGUE.iter().find(|entity| entity.key == key).unwrap()
    }

    fn config(key: &str, number: Option<usize>) -> Value {
        let text = entity_config(&HOUSE, entity(key), number, "bms2mqtt/house/x", Language::English);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_entity_says_all_that_home_assistant_wants() {
        assert_eq!(
            config("cell_{n}_voltage", Some(3)),
            json!({
                "name": "Cell 3 voltage",
                "unique_id": "bms2mqtt_house_cell_3_voltage",
                "default_entity_id": "sensor.house_cell_3_voltage",
                "state_topic": "bms2mqtt/house/x",
                "availability": [
                    {"topic": "bms2mqtt/bridge/availability"},
                    {"topic": "bms2mqtt/house/availability"}
                ],
                "availability_mode": "all",
                "device_class": "voltage",
                "entity_category": "diagnostic",
                "unit_of_measurement": "V",
                "state_class": "measurement",
                "suggested_display_precision": 3,
                "device": {
                    "identifiers": ["bms2mqtt_house"],
                    "name": "House battery",
                    "manufacturer": "JBD",
                    "model": "JBD-SP10S009",
                    "sw_version": "3.2",
                    "via_device": "bms2mqtt_bridge"
                },
                "origin": {
                    "name": "bms2mqtt",
                    "sw_version": env!("CARGO_PKG_VERSION"),
                    "support_url": env!("CARGO_PKG_REPOSITORY")
                }
            })
        );
    }

    #[test]
    fn the_connection_is_available_while_the_bridge_is() {
        let availability = json!([{"topic": "bms2mqtt/bridge/availability"}]);
        assert_eq!(config("connection", None)["availability"], availability);
    }

    #[test]
    fn every_entity_has_its_own_id_and_topic() {
        let ids = CATALOGUE.iter().map(|entity| config(entity.key, Some(1))["unique_id"].clone());
        let mut ids: Vec<String> = ids.map(|id| id.to_string()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), CATALOGUE.len());
        let topic = entity_config_topic(HOUSE.id, entity("cell_{n}_balancing"), Some(2));
        assert_eq!(topic, "binary_sensor/bms2mqtt_house/cell_2_balancing/config");
    }

    #[test]
    fn the_bridge_shows_its_own_availability_and_hangs_on_nothing() {
        let bridge = Device { id: "bms2mqtt_bridge", slug: "bms2mqtt_bridge", via: None, ..HOUSE };
        let text = bridge_config(&bridge, "bms2mqtt/bridge/availability", Language::English);
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["unique_id"], "bms2mqtt_bridge_connection");
        assert_eq!(config["default_entity_id"], "binary_sensor.bms2mqtt_bridge_connection");
        assert_eq!(config["state_topic"], "bms2mqtt/bridge/availability");
        assert!(config.get("availability").is_none() && config["device"].get("via_device").is_none());
        assert_eq!(bridge_config_topic(bridge.id), "binary_sensor/bms2mqtt_bridge/connection/config");
    }
}
