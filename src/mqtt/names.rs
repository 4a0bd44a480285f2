//! Names of topics: where everything is published, and whose a topic is. Pure.

use crate::home_assistant::discovery::ID_PREFIX;
use crate::home_assistant::language::Language;

/// Where everything is published, and what it is called there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// What stands before the topics of values: `<base>/<pack>/<key>`.
    pub base_topic: String,
    pub discovery_prefix: String,
    /// Without discovery only values and availability are published, and configs of an earlier run are removed.
    pub discovery: bool,
    /// Of the entities' names.
    pub language: Language,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackName {
    pub id: String,
    /// Shown to people.
    pub name: String,
}

/// The bridge's own segment below the base topic, which no pack can have as its id.
pub const BRIDGE: &str = "bridge";
pub const ONLINE: &str = "online";
pub const OFFLINE: &str = "offline";

impl Names {
    pub fn bridge_availability(&self) -> String {
        self.availability(BRIDGE)
    }

    pub fn availability(&self, pack: &str) -> String {
        format!("{}/{pack}/availability", self.base_topic)
    }

    /// A pack's device identifier.
    pub fn device_id(&self, pack: &str) -> String {
        format!("{ID_PREFIX}{pack}")
    }

    /// The bridge's device identifier: bridges with different base topics are different devices.
    pub fn bridge_identifier(&self) -> String {
        self.device_id(&self.bridge_id())
    }

    /// What no pack can have as its id, besides [`BRIDGE`]: it would be the same device as the bridge.
    pub fn bridge_id(&self) -> String {
        let base = self.base_topic.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        match base.as_str() {
            "bms2mqtt" => BRIDGE.to_owned(),
            base => format!("{base}_{BRIDGE}"),
        }
    }

    /// The filters under which all that a pack may have left behind is found: configs first, as they are taken away.
    pub fn leftover_filters(&self, pack: &str) -> [String; 2] {
        [
            format!("{}/+/{ID_PREFIX}{pack}/+/config", self.discovery_prefix),
            format!("{}/{pack}/+", self.base_topic),
        ]
    }

    /// The filters under which the packs are found that this base topic has or had, and the bridge's own config.
    pub fn own_filters(&self) -> [String; 2] {
        [self.availability("+"), format!("{}/+/{}/+/config", self.discovery_prefix, self.bridge_identifier())]
    }

    /// Whose topic is this, of those that the filters find? The bridge's config is a pack's too; its availability,
    /// which is always wanted, is nobody's.
    pub fn pack_of<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let below = |prefix: &str| topic.strip_prefix(prefix)?.strip_prefix('/');
        if let Some((pack, key)) = below(&self.base_topic).and_then(|rest| rest.split_once('/')) {
            return (!key.contains('/') && pack != BRIDGE).then_some(pack);
        }
        let mut parts = below(&self.discovery_prefix)?.split('/');
        let (_component, node) = (parts.next()?, parts.next()?);
        let (_key, config) = (parts.next()?, parts.next()?);
        let ours = config == "config" && parts.next().is_none();
        node.strip_prefix(ID_PREFIX).filter(|_| ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_tells_whose_it_is() {
        let names = Names {
            base_topic: "bms2mqtt".to_owned(),
            discovery_prefix: "homeassistant".to_owned(),
            discovery: true,
            language: Language::English,
        };
        for (topic, pack) in [
            ("bms2mqtt/house/voltage", Some("house")),
            ("homeassistant/sensor/bms2mqtt_house/voltage/config", Some("house")),
            ("homeassistant/binary_sensor/bms2mqtt_bridge/connection/config", Some("bridge")),
            ("bms2mqtt/bridge/availability", None),
            ("bms2mqtt/house/voltage/set", None),
            ("homeassistant/sensor/zigbee_house/voltage/config", None),
            ("homeassistant/sensor/bms2mqtt_house/voltage/config/more", None),
            ("bms2mqttx/house/voltage", None),
            ("homeassistant/status", None),
        ] {
            assert_eq!(names.pack_of(topic), pack, "{topic}");
        }
    }
}
