//! Everything that should stand at the broker now, in order, and the difference to what is known to stand there.
//! Pure: change-only publishing, announcing again after a reconnection or Home Assistant's start, cleaning up after a
//! renamed pack and the last `offline` are all "wanted minus sent".

use std::collections::{BTreeMap, HashSet};

use crate::home_assistant::catalogue::{CATALOGUE, Entity};
use crate::home_assistant::discovery::{self, ID_PREFIX, bridge_config, entity_config, entity_config_topic};
use crate::home_assistant::language::Language;
use crate::pack::state::PackState;

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

/// A retained message. An empty payload takes a topic away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: String,
    /// QoS 1: configs and availability. A value that gets lost with a connection is sent again on the next.
    pub confirmed: bool,
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

    /// The bridge's device identifier: bridges with different base topics are different devices.
    fn bridge_identifier(&self) -> String {
        format!("{ID_PREFIX}{}", self.bridge_id())
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

/// What should stand at the broker.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Configs, then availability, then values.
    pub messages: Vec<Message>,
    /// Packs of which it is not known yet what they have: nothing of theirs is removed.
    pub undecided: HashSet<String>,
    /// What may be wanted soon, and is not removed until then.
    pub awaited: HashSet<String>,
}

/// What should stand at the broker when this is known of the packs. `stopping` makes everything `offline`.
pub fn wanted(names: &Names, packs: &[(&PackName, &PackState)], stopping: bool) -> Wanted {
    let bridge_availability = names.bridge_availability();
    let bridge_identifier = names.bridge_identifier();
    let bridge = discovery::Bridge {
        identifier: &bridge_identifier,
        availability_topic: &bridge_availability,
        language: names.language,
    };
    let mut messages = Vec::new();
    let mut availability = vec![Message::confirmed(&bridge_availability, on_or_off_line(!stopping))];
    let mut values = Vec::new();
    let mut awaited = HashSet::new();
    if names.discovery {
        messages.push(names.config(bridge_config(&bridge)));
    }
    for (pack, state) in packs {
        let topic = format!("{}/{}", names.base_topic, pack.id);
        let availability_topic = names.availability(&pack.id);
        if let Some(answering) = state.answering {
            availability
                .push(Message::confirmed(&availability_topic, on_or_off_line(answering && !stopping)));
        }
        // Configs wait until the board has told its name, so that each is sent once.
        let announced = names.discovery.then_some(state.identity.as_ref()).flatten();
        let described = announced.map(|identity| discovery::Pack {
            id: &pack.id,
            name: &pack.name,
            model: identity.model.as_deref(),
            software_version: software_version(state),
            topic: &topic,
            availability_topic: &availability_topic,
        });
        for entity in CATALOGUE {
            if entity.is_awaited(state) {
                awaited.insert(format!("{topic}/{}", entity.key));
                awaited.insert(names.below_prefix(&entity_config_topic(&pack.id, entity)));
            }
            entity.visit(state, |number, value| {
                if let Some(described) = &described {
                    messages.push(names.config(entity_config(&bridge, described, entity, number)));
                }
                values.push(Message {
                    topic: format!("{topic}/{}", Entity::numbered(entity.key, number)),
                    payload: value.to_string(),
                    confirmed: false,
                });
            });
        }
    }
    messages.extend(availability);
    messages.extend(values);
    let undecided = packs.iter().filter(|(_, state)| state.reading.is_none() || state.identity.is_none());
    Wanted { messages, undecided: undecided.map(|(pack, _)| pack.id.clone()).collect(), awaited }
}

fn on_or_off_line(online: bool) -> &'static str {
    if online { ONLINE } else { OFFLINE }
}

fn software_version(state: &PackState) -> Option<String> {
    Some(state.reading.as_ref()?.totals.as_ref()?.software_version.to_string())
}

impl Names {
    fn config(&self, (topic, payload): (String, String)) -> Message {
        Message::confirmed(&self.below_prefix(&topic), &payload)
    }

    fn below_prefix(&self, topic: &str) -> String {
        format!("{}/{topic}", self.discovery_prefix)
    }
}

impl Message {
    fn confirmed(topic: &str, payload: &str) -> Message {
        Message { topic: topic.to_owned(), payload: payload.to_owned(), confirmed: true }
    }
}

/// What this session knows to stand at the broker: topic → payload, `None` where only the topic is known.
#[derive(Debug, Default)]
pub struct Sent(BTreeMap<String, Option<String>>);

impl Sent {
    /// Another program may have lost or changed everything: all is to be sent again.
    pub fn forget_payloads(&mut self) {
        self.0.values_mut().for_each(|payload| *payload = None);
    }

    /// A retained message of ours was read back from the broker.
    pub fn found(&mut self, topic: String) {
        self.0.entry(topic).or_insert(None);
    }

    /// What is to be sent so that `wanted` stands at the broker; from then on counted as sent.
    pub fn difference(&mut self, names: &Names, wanted: Wanted) -> Vec<Message> {
        let topics: HashSet<&str> = wanted.messages.iter().map(|message| message.topic.as_str()).collect();
        let gone = |topic: &str| {
            let undecided = names.pack_of(topic).is_none_or(|pack| wanted.undecided.contains(pack));
            !topics.contains(topic) && !undecided && !wanted.awaited.contains(topic)
        };
        let mut gone: Vec<String> = self.0.keys().filter(|topic| gone(topic)).cloned().collect();
        // An entity goes before its value does: else Home Assistant complains of a time or a mode that is empty.
        gone.sort_by_key(|topic| !topic.ends_with("/config"));
        let mut changes: Vec<Message> = gone.iter().map(|topic| Message::confirmed(topic, "")).collect();
        for topic in &gone {
            self.0.remove(topic);
        }
        let mut returns = Vec::new();
        for message in wanted.messages {
            let before = self.0.insert(message.topic.clone(), Some(message.payload.clone())).flatten();
            if before.as_deref() == Some(message.payload.as_str()) {
                continue;
            }
            // A pack that comes back has its values in place before it is available: else what it had when it
            // went would count for a moment as its state now.
            if before.as_deref() == Some(OFFLINE) && message.payload == ONLINE {
                returns.push(message);
            } else {
                changes.push(message);
            }
        }
        changes.extend(returns);
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::decimal::Decimal;
    use crate::pack::reading::Reading;
    use crate::pack::state::Identity;

    fn names() -> Names {
        Names {
            base_topic: "bms2mqtt".to_owned(),
            discovery_prefix: "homeassistant".to_owned(),
            discovery: true,
            language: Language::English,
        }
    }

    fn house() -> PackName {
        PackName { id: "house".to_owned(), name: "House battery".to_owned() }
    }

    fn cells(millivolts: &[i64]) -> PackState {
        let cells = millivolts.iter().map(|&mv| Decimal::new(mv, 3)).collect();
        PackState {
            answering: Some(true),
            identity: Some(Identity::default()),
            reading: Some(Reading { totals: None, cells }),
            ..PackState::default()
        }
    }

    fn changes(sent: &mut Sent, state: &PackState) -> Vec<(String, String)> {
        let messages = sent.difference(&names(), wanted(&names(), &[(&house(), state)], false));
        messages.into_iter().map(|message| (message.topic, message.payload)).collect()
    }

    fn topics(changes: &[(String, String)]) -> Vec<&str> {
        changes.iter().map(|(topic, _)| topic.as_str()).collect()
    }

    #[test]
    fn everything_is_said_once_configs_then_availability_then_values() {
        let mut sent = Sent::default();
        let said = changes(&mut sent, &cells(&[3300, 3310]));
        let kind = |topic: &str| match topic {
            topic if topic.ends_with("/config") => 0,
            topic if topic.ends_with("/availability") => 1,
            _ => 2,
        };
        assert!(topics(&said).is_sorted_by_key(|topic| kind(topic)));
        assert_eq!(said[0].0, "homeassistant/binary_sensor/bms2mqtt_bridge/connection/config");
        assert!(said.contains(&("bms2mqtt/house/cell_2_voltage".to_owned(), "3.310".to_owned())));
        assert!(said.contains(&("bms2mqtt/bridge/availability".to_owned(), "online".to_owned())));
        assert_eq!(changes(&mut sent, &cells(&[3300, 3310])), []);
    }

    #[test]
    fn a_changed_cell_changes_itself_and_what_follows_from_it() {
        let mut sent = Sent::default();
        changes(&mut sent, &cells(&[3300, 3310]));
        assert_eq!(
            topics(&changes(&mut sent, &cells(&[3300, 3312]))),
            [
                "bms2mqtt/house/cell_2_voltage",
                "bms2mqtt/house/maximum_cell_voltage",
                "bms2mqtt/house/average_cell_voltage",
                "bms2mqtt/house/cell_voltage_delta",
            ]
        );
    }

    #[test]
    fn after_home_assistants_birth_everything_is_said_again() {
        let mut sent = Sent::default();
        let first = changes(&mut sent, &cells(&[3300]));
        sent.forget_payloads();
        assert_eq!(changes(&mut sent, &cells(&[3300])), first);
    }

    #[test]
    fn a_pack_that_comes_back_has_its_values_before_it_is_online() {
        let mut sent = Sent::default();
        changes(&mut sent, &cells(&[3300]));
        let gone = PackState { answering: Some(false), ..cells(&[3300]) };
        assert_eq!(
            changes(&mut sent, &gone),
            [
                ("bms2mqtt/house/availability".to_owned(), "offline".to_owned()),
                ("bms2mqtt/house/connection".to_owned(), "OFF".to_owned()),
            ]
        );
        let back = changes(&mut sent, &cells(&[3200]));
        assert_eq!(back.last(), Some(&("bms2mqtt/house/availability".to_owned(), "online".to_owned())));
        assert!(back.contains(&("bms2mqtt/house/cell_1_voltage".to_owned(), "3.200".to_owned())));
    }

    #[test]
    fn stopping_says_offline_and_nothing_else() {
        let mut sent = Sent::default();
        changes(&mut sent, &cells(&[3300]));
        let last = sent.difference(&names(), wanted(&names(), &[(&house(), &cells(&[3300]))], true));
        let said: Vec<_> = last.iter().map(|m| (m.topic.as_str(), m.payload.as_str())).collect();
        assert_eq!(
            said,
            [("bms2mqtt/bridge/availability", "offline"), ("bms2mqtt/house/availability", "offline")]
        );
    }

    #[test]
    fn a_cell_that_is_gone_takes_its_topics_with_it() {
        let mut sent = Sent::default();
        changes(&mut sent, &cells(&[3300, 3310]));
        let said = changes(&mut sent, &cells(&[3300]));
        let place = |topic: &str| said.iter().position(|change| *change == (topic.to_owned(), String::new()));
        let config = place("homeassistant/sensor/bms2mqtt_house/cell_2_voltage/config");
        let value = place("bms2mqtt/house/cell_2_voltage");
        assert!(config.is_some() && config < value, "the entity goes before its value: {said:?}");
    }

    #[test]
    fn leftovers_wait_until_it_is_known_what_the_pack_has() {
        let leftover = "homeassistant/sensor/bms2mqtt_house/cell_2_voltage/config";
        let mut sent = Sent::default();
        sent.found(leftover.to_owned());
        assert!(!topics(&changes(&mut sent, &PackState::default())).contains(&leftover));
        assert!(topics(&changes(&mut sent, &cells(&[3300]))).contains(&leftover));
    }

    #[test]
    fn what_is_loaded_or_asked_for_later_is_not_taken_away_before() {
        let mut sent = Sent::default();
        for topic in [
            "bms2mqtt/house/energy_charged",
            "homeassistant/sensor/bms2mqtt_house/energy_charged/config",
            "homeassistant/sensor/bms2mqtt_house/short_circuit_count/config",
        ] {
            sent.found(topic.to_owned());
            let said = changes(&mut sent, &cells(&[3300]));
            assert!(!topics(&said).contains(&topic), "{topic}");
        }
    }

    #[test]
    fn leftovers_of_a_pack_that_is_configured_no_more_go_at_once() {
        let mut sent = Sent::default();
        for topic in [
            "bms2mqtt/van/voltage",
            "bms2mqtt/van/availability",
            "homeassistant/sensor/bms2mqtt_van/voltage/config",
        ] {
            sent.found(topic.to_owned());
            assert!(changes(&mut sent, &PackState::default()).contains(&(topic.to_owned(), String::new())));
        }
    }

    #[test]
    fn without_discovery_configs_are_taken_away_and_values_stay() {
        let names = Names { discovery: false, ..names() };
        let mut sent = Sent::default();
        changes(&mut sent, &cells(&[3300]));
        let said = sent.difference(&names, wanted(&names, &[(&house(), &cells(&[3300]))], false));
        assert!(!said.is_empty());
        assert!(said.iter().all(|message| message.topic.ends_with("/config") && message.payload.is_empty()));
    }

    #[test]
    fn a_topic_tells_whose_it_is() {
        let names = names();
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
