//! Everything that should stand at the broker now, in order, and the difference to what is known to stand there.
//! Pure: change-only publishing, announcing again after a reconnection or Home Assistant's start, cleaning up after a
//! renamed pack and the last `offline` are all "wanted minus retained".

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::names::{Names, OFFLINE, ONLINE, PackName};
use crate::catalogue::{CATALOGUE, Entity, Value};
use crate::home_assistant::discovery::{
    Device, bridge_config, bridge_config_topic, entity_config, entity_config_topic,
};
use crate::pack::reading::SoftwareVersion;
use crate::pack::state::PackState;

/// A retained message. An empty payload takes a topic away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: String,
    /// QoS 1: configs and availability. A value that gets lost with a connection is sent again on the next.
    pub confirmed: bool,
}

/// What is to be said, not yet put into words: an announcement is a thousand bytes for each of hundreds of entities, so
/// the text of each is made when its turn comes.
#[derive(Debug)]
pub enum Change {
    Publish(Slot, Payload),
    Remove(String),
}

/// A retained topic of ours: cheap to make and to compare for every value at every change. Ordered as things are said:
/// configs, then availability, then values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    BridgeConfig,
    Config(EntityIndex),
    BridgeAvailability,
    /// Of the pack with this index.
    Availability(u16),
    Value(EntityIndex),
}

/// One entity of one pack, by its index in the catalogue. As small as it can be: each value of each pack has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntityIndex {
    pack: u16,
    entity: u8,
    /// A board tells at most 255 of anything.
    number: Option<u8>,
}

const _: () = assert!(CATALOGUE.len() <= u8::MAX as usize);

impl EntityIndex {
    fn new(pack: usize, entity: usize, number: Option<usize>) -> EntityIndex {
        EntityIndex { pack: pack as u16, entity: entity as u8, number: number.map(|number| number as u8) }
    }

    fn pack(self) -> usize {
        self.pack.into()
    }

    fn entity(self) -> &'static Entity {
        &CATALOGUE[usize::from(self.entity)]
    }

    fn number(self) -> Option<usize> {
        self.number.map(usize::from)
    }
}

/// What stands in a slot, not yet put into words. Equal payloads print the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Of all that a config says only this can change during a session: a fingerprint of what the board says of itself.
    Config(u64),
    Online(bool),
    Value(Value),
}

/// What should stand at the broker when this is known of the packs, in the order of slots. `stopping` makes everything
/// `offline`.
fn wanted(names: &Names, states: &[PackState], stopping: bool) -> Vec<(Slot, Payload)> {
    // Many cells have more, and no pack has much less: two for each entry of the catalogue, and a config for each of those.
    let usual = 2 * CATALOGUE.len() * states.len();
    let (mut wanted, mut values) = (Vec::with_capacity(2 * usual), Vec::with_capacity(usual));
    if names.discovery {
        wanted.push((Slot::BridgeConfig, Payload::Config(0)));
    }
    for (pack, state) in states.iter().enumerate() {
        // Configs wait until the board has told its name, so that each is sent once.
        let announced = state.identity.as_ref().filter(|_| names.discovery);
        let config = announced.map(|identity| {
            let mut hasher = DefaultHasher::new();
            (identity, software_version(state)).hash(&mut hasher);
            Payload::Config(hasher.finish())
        });
        for (entity, taken) in CATALOGUE.iter().enumerate() {
            taken.visit(state, |number, value| {
                let index = EntityIndex::new(pack, entity, number);
                wanted.extend(config.map(|config| (Slot::Config(index), config)));
                values.push((Slot::Value(index), Payload::Value(value)));
            });
        }
    }
    wanted.push((Slot::BridgeAvailability, Payload::Online(!stopping)));
    for (pack, state) in states.iter().enumerate() {
        if let Some(answering) = state.answering {
            wanted.push((Slot::Availability(pack as u16), Payload::Online(answering && !stopping)));
        }
    }
    wanted.append(&mut values);
    debug_assert!(wanted.is_sorted_by_key(|(slot, _)| *slot));
    wanted
}

fn software_version(state: &PackState) -> Option<SoftwareVersion> {
    Some(state.reading.as_ref()?.totals.as_ref()?.software_version)
}

/// What this session knows to stand at the broker.
#[derive(Debug)]
pub struct Mirror {
    names: Names,
    /// In the order of the states.
    packs: Vec<PackName>,
    /// In the order of slots; `None` where something stands that is to be said again.
    retained: Vec<(Slot, Option<Payload>)>,
    /// Topics of ours where nothing of this version and configuration can stand.
    obsolete: Vec<String>,
}

impl Mirror {
    pub fn new(names: Names, packs: Vec<PackName>) -> Mirror {
        Mirror { names, packs, retained: Vec::new(), obsolete: Vec::new() }
    }

    /// Another program may have lost or changed everything: all is to be sent again.
    pub fn forget_payloads(&mut self) {
        self.retained.iter_mut().for_each(|(_, payload)| *payload = None);
    }

    /// A retained message of ours was read back from the broker.
    pub fn found(&mut self, topic: String) {
        match self.slot_of(&topic) {
            Some(slot) => {
                if let Err(free) = self.retained.binary_search_by_key(&slot, |(stands, _)| *stands) {
                    self.retained.insert(free, (slot, None));
                }
            }
            None if self.obsolete.contains(&topic) => {}
            None => self.obsolete.push(topic),
        }
    }

    /// What is to be sent so that what is wanted stands at the broker; from then on counted as sent.
    pub fn difference(&mut self, states: &[PackState], stopping: bool) -> Vec<Change> {
        let wanted = wanted(&self.names, states, stopping);
        let mut retained =
            std::mem::replace(&mut self.retained, Vec::with_capacity(wanted.len())).into_iter().peekable();
        let (mut gone, mut said, mut returns) = (self.take_obsolete(states), Vec::new(), Vec::new());
        let mut leave = |mirror: &mut Mirror, slot, payload| {
            if may_go(slot, states) {
                gone.push(mirror.topic(slot));
            } else {
                mirror.retained.push((slot, payload));
            }
        };
        // Both are in the order of slots, so one walk along both finds what is new, what is gone and what differs.
        for (slot, payload) in wanted {
            while let Some((slot, payload)) = retained.next_if(|(stands, _)| *stands < slot) {
                leave(self, slot, payload);
            }
            let before = retained.next_if(|(stands, _)| *stands == slot).and_then(|(_, payload)| payload);
            self.retained.push((slot, Some(payload)));
            if before == Some(payload) {
                continue;
            }
            // A pack that comes back has its values in place before it is available: else what it had when it
            // went would count for a moment as its state now.
            if (before, payload) == (Some(Payload::Online(false)), Payload::Online(true)) {
                returns.push(Change::Publish(slot, payload));
            } else {
                said.push(Change::Publish(slot, payload));
            }
        }
        retained.for_each(|(slot, payload)| leave(self, slot, payload));
        // An entity goes before its value does: else Home Assistant complains of a time or a mode that is empty.
        gone.sort_by_key(|topic| !topic.ends_with("/config"));
        gone.into_iter().map(Change::Remove).chain(said).chain(returns).collect()
    }

    fn take_obsolete(&mut self, states: &[PackState]) -> Vec<String> {
        let (gone, kept) = std::mem::take(&mut self.obsolete).into_iter().partition(|topic| {
            let owner = self.names.pack_of(topic);
            let pack = self.packs.iter().position(|pack| Some(pack.id.as_str()) == owner);
            pack.is_none_or(|pack| is_decided(&states[pack]))
        });
        self.obsolete = kept;
        gone
    }

    /// Puts a change into words. A config says of the board what is known now.
    pub fn message(&self, change: Change, states: &[PackState]) -> Message {
        let (slot, payload) = match change {
            Change::Publish(slot, payload) => (slot, payload),
            Change::Remove(topic) => return Message { topic, payload: String::new(), confirmed: true },
        };
        let payload = match (slot, payload) {
            (_, Payload::Value(value)) => value.to_string(),
            (_, Payload::Online(online)) => if online { ONLINE } else { OFFLINE }.to_owned(),
            (Slot::Config(index), Payload::Config(_)) => self.entity_config(index, &states[index.pack()]),
            (_, Payload::Config(_)) => self.bridge_config(),
        };
        Message { topic: self.topic(slot), payload, confirmed: !matches!(slot, Slot::Value(_)) }
    }

    /// Where something of ours can stand that is called so.
    fn slot_of(&self, topic: &str) -> Option<Slot> {
        let owner = self.names.pack_of(topic)?;
        let pack = self.packs.iter().position(|pack| pack.id == owner);
        let mut segments = topic.rsplit('/');
        let (last, before_last) = (segments.next()?, segments.next()?);
        let index = |key: &str| {
            let pack = pack?;
            let mut entities = CATALOGUE.iter().enumerate();
            entities.find_map(|(entity, of)| Some(EntityIndex::new(pack, entity, of.number_in(key)?)))
        };
        let candidates = [
            Some(Slot::BridgeConfig),
            index(before_last).map(Slot::Config),
            pack.map(|pack| Slot::Availability(pack as u16)),
            index(last).map(Slot::Value),
        ];
        candidates.into_iter().flatten().find(|&slot| self.topic(slot) == topic)
    }

    fn topic(&self, slot: Slot) -> String {
        let Names { base_topic, discovery_prefix, .. } = &self.names;
        match slot {
            Slot::BridgeConfig => {
                format!("{discovery_prefix}/{}", bridge_config_topic(&self.names.bridge_identifier()))
            }
            Slot::Config(index) => {
                let below = entity_config_topic(
                    &self.names.device_id(&self.pack(index).id),
                    index.entity(),
                    index.number(),
                );
                format!("{discovery_prefix}/{below}")
            }
            Slot::BridgeAvailability => self.names.bridge_availability(),
            Slot::Availability(pack) => self.names.availability(&self.packs[usize::from(pack)].id),
            Slot::Value(index) => {
                let key = Entity::numbered(index.entity().key, index.number());
                format!("{base_topic}/{}/{key}", self.pack(index).id)
            }
        }
    }

    fn pack(&self, index: EntityIndex) -> &PackName {
        &self.packs[index.pack()]
    }

    fn entity_config(&self, index: EntityIndex, state: &PackState) -> String {
        let PackName { id, name } = self.pack(index);
        let Names { language, .. } = self.names;
        let identity = state.identity.clone().unwrap_or_default();
        let version = software_version(state).map(|version| version.to_string());
        let (bridge, own) = (self.names.bridge_availability(), self.names.availability(id));
        let via = self.names.bridge_identifier();
        let device = Device {
            id: &self.names.device_id(id),
            slug: id,
            name,
            maker: identity.maker,
            model: identity.model.as_deref().unwrap_or("Smart BMS"),
            version: version.as_deref(),
            via: Some(&via),
            availability_topics: &[&bridge, &own],
        };
        let topic = self.topic(Slot::Value(index));
        entity_config(&device, index.entity(), index.number(), &topic, language)
    }

    fn bridge_config(&self) -> String {
        let id = &self.names.bridge_identifier();
        let device = Device {
            id,
            slug: id,
            name: env!("CARGO_PKG_NAME"),
            maker: env!("CARGO_PKG_NAME"),
            model: "Bridge",
            version: Some(env!("CARGO_PKG_VERSION")),
            via: None,
            availability_topics: &[],
        };
        bridge_config(&device, &self.names.bridge_availability(), self.names.language)
    }
}

/// As long as it is not known what a pack has, nothing of it is taken away; nor what may be loaded or asked for yet.
fn may_go(slot: Slot, states: &[PackState]) -> bool {
    match slot {
        Slot::BridgeConfig | Slot::BridgeAvailability => true,
        Slot::Availability(pack) => is_decided(&states[usize::from(pack)]),
        Slot::Config(index) | Slot::Value(index) => {
            let state = &states[index.pack()];
            is_decided(state) && !index.entity().is_awaited(state)
        }
    }
}

fn is_decided(state: &PackState) -> bool {
    state.reading.is_some() && state.identity.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home_assistant::language::Language;
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

    fn empty_mirror() -> Mirror {
        Mirror::new(names(), vec![house()])
    }

    fn changes(mirror: &mut Mirror, state: &PackState) -> Vec<(String, String)> {
        said(mirror, state, false)
    }

    fn said(mirror: &mut Mirror, state: &PackState, stopping: bool) -> Vec<(String, String)> {
        let states = std::slice::from_ref(state);
        let changes = mirror.difference(states, stopping);
        let messages = changes.into_iter().map(|change| mirror.message(change, states));
        messages.map(|message| (message.topic, message.payload)).collect()
    }

    fn topics(changes: &[(String, String)]) -> Vec<&str> {
        changes.iter().map(|(topic, _)| topic.as_str()).collect()
    }

    #[test]
    fn everything_is_said_once_configs_then_availability_then_values() {
        let mut mirror = empty_mirror();
        let said = changes(&mut mirror, &cells(&[3300, 3310]));
        let kind = |topic: &str| match topic {
            topic if topic.ends_with("/config") => 0,
            topic if topic.ends_with("/availability") => 1,
            _ => 2,
        };
        assert!(topics(&said).is_sorted_by_key(|topic| kind(topic)));
        assert_eq!(said[0].0, "homeassistant/binary_sensor/bms2mqtt_bridge/connection/config");
        assert!(said.contains(&("bms2mqtt/house/cell_2_voltage".to_owned(), "3.310".to_owned())));
        assert!(said.contains(&("bms2mqtt/bridge/availability".to_owned(), "online".to_owned())));
        assert_eq!(changes(&mut mirror, &cells(&[3300, 3310])), []);
    }

    #[test]
    fn a_changed_cell_changes_itself_and_what_follows_from_it() {
        let mut mirror = empty_mirror();
        changes(&mut mirror, &cells(&[3300, 3310]));
        assert_eq!(
            topics(&changes(&mut mirror, &cells(&[3300, 3312]))),
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
        let mut mirror = empty_mirror();
        let first = changes(&mut mirror, &cells(&[3300]));
        mirror.forget_payloads();
        assert_eq!(changes(&mut mirror, &cells(&[3300])), first);
    }

    #[test]
    fn a_pack_that_comes_back_has_its_values_before_it_is_online() {
        let mut mirror = empty_mirror();
        changes(&mut mirror, &cells(&[3300]));
        let gone = PackState { answering: Some(false), ..cells(&[3300]) };
        assert_eq!(
            changes(&mut mirror, &gone),
            [
                ("bms2mqtt/house/availability".to_owned(), "offline".to_owned()),
                ("bms2mqtt/house/connection".to_owned(), "OFF".to_owned()),
            ]
        );
        let back = changes(&mut mirror, &cells(&[3200]));
        assert_eq!(back.last(), Some(&("bms2mqtt/house/availability".to_owned(), "online".to_owned())));
        assert!(back.contains(&("bms2mqtt/house/cell_1_voltage".to_owned(), "3.200".to_owned())));
    }

    #[test]
    fn stopping_says_offline_and_nothing_else() {
        let mut mirror = empty_mirror();
        changes(&mut mirror, &cells(&[3300]));
        let last = said(&mut mirror, &cells(&[3300]), true);
        let last: Vec<_> = last.iter().map(|(topic, payload)| (topic.as_str(), payload.as_str())).collect();
        assert_eq!(
            last,
            [("bms2mqtt/bridge/availability", "offline"), ("bms2mqtt/house/availability", "offline")]
        );
    }

    #[test]
    fn a_cell_that_is_gone_takes_its_topics_with_it() {
        let mut mirror = empty_mirror();
        changes(&mut mirror, &cells(&[3300, 3310]));
        let said = changes(&mut mirror, &cells(&[3300]));
        let slot = |topic: &str| said.iter().position(|change| *change == (topic.to_owned(), String::new()));
        let config = slot("homeassistant/sensor/bms2mqtt_house/cell_2_voltage/config");
        let value = slot("bms2mqtt/house/cell_2_voltage");
        assert!(config.is_some() && config < value, "the entity goes before its value: {said:?}");
    }

    #[test]
    fn leftovers_wait_until_it_is_known_what_the_pack_has() {
        let leftover = "homeassistant/sensor/bms2mqtt_house/cell_2_voltage/config";
        let mut mirror = empty_mirror();
        mirror.found(leftover.to_owned());
        assert!(!topics(&changes(&mut mirror, &PackState::default())).contains(&leftover));
        assert!(topics(&changes(&mut mirror, &cells(&[3300]))).contains(&leftover));
    }

    #[test]
    fn what_is_loaded_or_asked_for_later_is_not_taken_away_before() {
        let mut mirror = empty_mirror();
        for topic in [
            "bms2mqtt/house/energy_charged",
            "homeassistant/sensor/bms2mqtt_house/energy_charged/config",
            "homeassistant/sensor/bms2mqtt_house/short_circuit_count/config",
        ] {
            mirror.found(topic.to_owned());
            let said = changes(&mut mirror, &cells(&[3300]));
            assert!(!topics(&said).contains(&topic), "{topic}");
        }
    }

    #[test]
    fn leftovers_of_a_pack_that_is_configured_no_more_go_at_once() {
        let mut mirror = empty_mirror();
        for topic in [
            "bms2mqtt/van/voltage",
            "bms2mqtt/van/availability",
            "homeassistant/sensor/bms2mqtt_van/voltage/config",
        ] {
            mirror.found(topic.to_owned());
            assert!(changes(&mut mirror, &PackState::default()).contains(&(topic.to_owned(), String::new())));
        }
    }

    #[test]
    fn what_an_older_version_called_otherwise_goes_and_what_stands_stays() {
        let mut mirror = empty_mirror();
        let stands = [
            "bms2mqtt/house/cell_1_voltage",
            "bms2mqtt/house/availability",
            "homeassistant/sensor/bms2mqtt_house/cell_1_voltage/config",
            "homeassistant/binary_sensor/bms2mqtt_bridge/connection/config",
        ];
        let obsolete = [
            "homeassistant/binary_sensor/bms2mqtt_house/cell_1_voltage/config",
            "homeassistant/sensor/bms2mqtt_bridge/connection/config",
            "bms2mqtt/house/cell_01_voltage",
            "bms2mqtt/house/soc",
        ];
        for topic in stands.into_iter().chain(obsolete).chain(obsolete) {
            mirror.found(topic.to_owned());
        }
        let said = changes(&mut mirror, &cells(&[3300]));
        let gone: Vec<&str> =
            said.iter().filter(|(_, payload)| payload.is_empty()).map(|(t, _)| t.as_str()).collect();
        assert_eq!(gone, obsolete);
        assert!(
            stands.iter().all(|topic| topics(&said).contains(topic)),
            "what was read back is made current"
        );
        assert_eq!(changes(&mut mirror, &cells(&[3300])), []);
    }

    #[test]
    fn another_board_is_described_anew_and_nothing_else_is_said() {
        let mut mirror = empty_mirror();
        changes(&mut mirror, &cells(&[3300, 3310]));
        let model = Some("JBD-SP10S009".to_owned());
        let renamed =
            PackState { identity: Some(Identity { model, ..Identity::default() }), ..cells(&[3300, 3310]) };
        let said = changes(&mut mirror, &renamed);
        assert!(said.iter().all(|(topic, payload)| {
            topic.starts_with("homeassistant/")
                && topic.contains("_house/")
                && payload.contains("JBD-SP10S009")
        }));
        assert!(topics(&said).contains(&"homeassistant/sensor/bms2mqtt_house/cell_2_voltage/config"));
    }

    #[test]
    fn without_discovery_configs_are_taken_away_and_values_stay() {
        let mut mirror = empty_mirror();
        changes(&mut mirror, &cells(&[3300]));
        mirror.names.discovery = false;
        let said = changes(&mut mirror, &cells(&[3300]));
        assert!(!said.is_empty());
        assert!(said.iter().all(|(topic, payload)| topic.ends_with("/config") && payload.is_empty()));
    }
}
