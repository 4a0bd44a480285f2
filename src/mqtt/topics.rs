//! Everything that should stand at the broker now, in order, and the difference to what is known to stand there.
//! Pure: change-only publishing, announcing again after a reconnection or Home Assistant's start, cleaning up after a
//! renamed pack and the last `offline` are all "wanted minus sent".

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use crate::home_assistant::catalogue::{CATALOGUE, Entity, Value};
use crate::home_assistant::discovery::{
    self, ID_PREFIX, bridge_config, bridge_config_topic, entity_config, entity_config_topic,
};
use crate::home_assistant::language::Language;
use crate::pack::reading::SoftwareVersion;
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

/// What is to be said, not yet put into words: an announcement is a thousand bytes for each of hundreds of entities, so
/// the text of each is made when its turn comes.
#[derive(Debug)]
pub enum Change {
    Say(Place, Content),
    TakeAway(String),
}

/// A place at the broker: cheap to make and to compare for every value at every change. Ordered as things are said:
/// configs, then availability, then values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    BridgeConfig,
    Config(Spot),
    BridgeAvailability,
    /// Of the pack at this place in the configuration.
    Availability(u16),
    Value(Spot),
}

/// One entity of one pack, by its place in the catalogue. As small as it can be: each value of each pack has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    pack: u16,
    entity: u8,
    /// A board tells at most 255 of anything.
    number: Option<u8>,
}

const _: () = assert!(CATALOGUE.len() <= u8::MAX as usize);

impl Spot {
    fn new(pack: usize, entity: usize, number: Option<usize>) -> Spot {
        Spot { pack: pack as u16, entity: entity as u8, number: number.map(|number| number as u8) }
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

/// What stands at a place. Equal contents print the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Of all that a config says only this can change during a session: a fingerprint of what the board says of itself.
    Config(u64),
    Online(bool),
    Value(Value),
}

/// What should stand at the broker when this is known of the packs, in the order of places. `stopping` makes everything
/// `offline`.
fn wanted(names: &Names, states: &[PackState], stopping: bool) -> Vec<(Place, Content)> {
    // Many cells have more, and no pack has much less: two for each entry of the catalogue, and a config for each of those.
    let usual = 2 * CATALOGUE.len() * states.len();
    let (mut wanted, mut values) = (Vec::with_capacity(2 * usual), Vec::with_capacity(usual));
    if names.discovery {
        wanted.push((Place::BridgeConfig, Content::Config(0)));
    }
    for (pack, state) in states.iter().enumerate() {
        // Configs wait until the board has told its name, so that each is sent once.
        let announced = state.identity.as_ref().filter(|_| names.discovery);
        let config = announced.map(|identity| {
            let mut hasher = DefaultHasher::new();
            (&identity.model, software_version(state)).hash(&mut hasher);
            Content::Config(hasher.finish())
        });
        for (entity, taken) in CATALOGUE.iter().enumerate() {
            taken.visit(state, |number, value| {
                let spot = Spot::new(pack, entity, number);
                wanted.extend(config.map(|config| (Place::Config(spot), config)));
                values.push((Place::Value(spot), Content::Value(value)));
            });
        }
    }
    wanted.push((Place::BridgeAvailability, Content::Online(!stopping)));
    for (pack, state) in states.iter().enumerate() {
        if let Some(answering) = state.answering {
            wanted.push((Place::Availability(pack as u16), Content::Online(answering && !stopping)));
        }
    }
    wanted.append(&mut values);
    debug_assert!(wanted.is_sorted_by_key(|(place, _)| *place));
    wanted
}

fn software_version(state: &PackState) -> Option<SoftwareVersion> {
    Some(state.reading.as_ref()?.totals.as_ref()?.software_version)
}

/// What this session knows to stand at the broker.
#[derive(Debug)]
pub struct Sent {
    names: Names,
    /// In the order of the states.
    packs: Vec<PackName>,
    /// In the order of places; `None` where something stands that is to be said again.
    standing: Vec<(Place, Option<Content>)>,
    /// Topics of ours where nothing of this version and configuration can stand.
    strangers: Vec<String>,
}

impl Sent {
    pub fn new(names: Names, packs: Vec<PackName>) -> Sent {
        Sent { names, packs, standing: Vec::new(), strangers: Vec::new() }
    }

    /// Another program may have lost or changed everything: all is to be sent again.
    pub fn forget_payloads(&mut self) {
        self.standing.iter_mut().for_each(|(_, content)| *content = None);
    }

    /// A retained message of ours was read back from the broker.
    pub fn found(&mut self, topic: String) {
        match self.place_of(&topic) {
            Some(place) => {
                if let Err(free) = self.standing.binary_search_by_key(&place, |(stands, _)| *stands) {
                    self.standing.insert(free, (place, None));
                }
            }
            None if self.strangers.contains(&topic) => {}
            None => self.strangers.push(topic),
        }
    }

    /// What is to be sent so that what is wanted stands at the broker; from then on counted as sent.
    pub fn difference(&mut self, states: &[PackState], stopping: bool) -> Vec<Change> {
        let wanted = wanted(&self.names, states, stopping);
        let mut standing =
            std::mem::replace(&mut self.standing, Vec::with_capacity(wanted.len())).into_iter().peekable();
        let (mut gone, mut said, mut returns) = (self.take_strangers(states), Vec::new(), Vec::new());
        let mut leave = |sent: &mut Sent, place, content| {
            if may_go(place, states) {
                gone.push(sent.topic(place));
            } else {
                sent.standing.push((place, content));
            }
        };
        // Both are in the order of places, so one walk along both finds what is new, what is gone and what differs.
        for (place, content) in wanted {
            while let Some((place, content)) = standing.next_if(|(stands, _)| *stands < place) {
                leave(self, place, content);
            }
            let before = standing.next_if(|(stands, _)| *stands == place).and_then(|(_, content)| content);
            self.standing.push((place, Some(content)));
            if before == Some(content) {
                continue;
            }
            // A pack that comes back has its values in place before it is available: else what it had when it
            // went would count for a moment as its state now.
            if (before, content) == (Some(Content::Online(false)), Content::Online(true)) {
                returns.push(Change::Say(place, content));
            } else {
                said.push(Change::Say(place, content));
            }
        }
        standing.for_each(|(place, content)| leave(self, place, content));
        // An entity goes before its value does: else Home Assistant complains of a time or a mode that is empty.
        gone.sort_by_key(|topic| !topic.ends_with("/config"));
        gone.into_iter().map(Change::TakeAway).chain(said).chain(returns).collect()
    }

    fn take_strangers(&mut self, states: &[PackState]) -> Vec<String> {
        let (gone, kept) = std::mem::take(&mut self.strangers).into_iter().partition(|topic| {
            let owner = self.names.pack_of(topic);
            let pack = self.packs.iter().position(|pack| Some(pack.id.as_str()) == owner);
            pack.is_none_or(|pack| is_decided(&states[pack]))
        });
        self.strangers = kept;
        gone
    }

    /// Puts a change into words. A config says of the board what is known now.
    pub fn message(&self, change: Change, states: &[PackState]) -> Message {
        let (place, content) = match change {
            Change::Say(place, content) => (place, content),
            Change::TakeAway(topic) => return Message { topic, payload: String::new(), confirmed: true },
        };
        let payload = match (place, content) {
            (_, Content::Value(value)) => value.to_string(),
            (_, Content::Online(online)) => if online { ONLINE } else { OFFLINE }.to_owned(),
            (Place::Config(spot), Content::Config(_)) => self.entity_config(spot, &states[spot.pack()]),
            (_, Content::Config(_)) => self.with_bridge(bridge_config),
        };
        Message { topic: self.topic(place), payload, confirmed: !matches!(place, Place::Value(_)) }
    }

    /// Where something of ours can stand that is called so.
    fn place_of(&self, topic: &str) -> Option<Place> {
        let owner = self.names.pack_of(topic)?;
        let pack = self.packs.iter().position(|pack| pack.id == owner);
        let mut segments = topic.rsplit('/');
        let (last, before_last) = (segments.next()?, segments.next()?);
        let spot = |key: &str| {
            let pack = pack?;
            let mut entities = CATALOGUE.iter().enumerate();
            entities.find_map(|(entity, of)| Some(Spot::new(pack, entity, of.number_in(key)?)))
        };
        let candidates = [
            Some(Place::BridgeConfig),
            spot(before_last).map(Place::Config),
            pack.map(|pack| Place::Availability(pack as u16)),
            spot(last).map(Place::Value),
        ];
        candidates.into_iter().flatten().find(|&place| self.topic(place) == topic)
    }

    fn topic(&self, place: Place) -> String {
        let Names { base_topic, discovery_prefix, .. } = &self.names;
        match place {
            Place::BridgeConfig => {
                format!("{discovery_prefix}/{}", bridge_config_topic(&self.names.bridge_identifier()))
            }
            Place::Config(spot) => {
                let below = entity_config_topic(&self.pack(spot).id, spot.entity(), spot.number());
                format!("{discovery_prefix}/{below}")
            }
            Place::BridgeAvailability => self.names.bridge_availability(),
            Place::Availability(pack) => self.names.availability(&self.packs[usize::from(pack)].id),
            Place::Value(spot) => {
                let key = Entity::numbered(spot.entity().key, spot.number());
                format!("{base_topic}/{}/{key}", self.pack(spot).id)
            }
        }
    }

    fn pack(&self, spot: Spot) -> &PackName {
        &self.packs[spot.pack()]
    }

    fn entity_config(&self, spot: Spot, state: &PackState) -> String {
        let PackName { id, name } = self.pack(spot);
        let described = discovery::Pack {
            id,
            name,
            model: state.identity.as_ref().and_then(|identity| identity.model.as_deref()),
            software_version: software_version(state).map(|version| version.to_string()),
            topic: &format!("{}/{id}", self.names.base_topic),
            availability_topic: &self.names.availability(id),
        };
        self.with_bridge(|bridge| entity_config(bridge, &described, spot.entity(), spot.number()))
    }

    fn with_bridge(&self, config: impl FnOnce(&discovery::Bridge<'_>) -> String) -> String {
        config(&discovery::Bridge {
            identifier: &self.names.bridge_identifier(),
            availability_topic: &self.names.bridge_availability(),
            language: self.names.language,
        })
    }
}

/// As long as it is not known what a pack has, nothing of it is taken away; nor what may be loaded or asked for yet.
fn may_go(place: Place, states: &[PackState]) -> bool {
    match place {
        Place::BridgeConfig | Place::BridgeAvailability => true,
        Place::Availability(pack) => is_decided(&states[usize::from(pack)]),
        Place::Config(spot) | Place::Value(spot) => {
            let state = &states[spot.pack()];
            is_decided(state) && !spot.entity().is_awaited(state)
        }
    }
}

fn is_decided(state: &PackState) -> bool {
    state.reading.is_some() && state.identity.is_some()
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

    fn nothing_sent() -> Sent {
        Sent::new(names(), vec![house()])
    }

    fn changes(sent: &mut Sent, state: &PackState) -> Vec<(String, String)> {
        said(sent, state, false)
    }

    fn said(sent: &mut Sent, state: &PackState, stopping: bool) -> Vec<(String, String)> {
        let states = std::slice::from_ref(state);
        let changes = sent.difference(states, stopping);
        let messages = changes.into_iter().map(|change| sent.message(change, states));
        messages.map(|message| (message.topic, message.payload)).collect()
    }

    fn topics(changes: &[(String, String)]) -> Vec<&str> {
        changes.iter().map(|(topic, _)| topic.as_str()).collect()
    }

    #[test]
    fn everything_is_said_once_configs_then_availability_then_values() {
        let mut sent = nothing_sent();
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
        let mut sent = nothing_sent();
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
        let mut sent = nothing_sent();
        let first = changes(&mut sent, &cells(&[3300]));
        sent.forget_payloads();
        assert_eq!(changes(&mut sent, &cells(&[3300])), first);
    }

    #[test]
    fn a_pack_that_comes_back_has_its_values_before_it_is_online() {
        let mut sent = nothing_sent();
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
        let mut sent = nothing_sent();
        changes(&mut sent, &cells(&[3300]));
        let last = said(&mut sent, &cells(&[3300]), true);
        let last: Vec<_> = last.iter().map(|(topic, payload)| (topic.as_str(), payload.as_str())).collect();
        assert_eq!(
            last,
            [("bms2mqtt/bridge/availability", "offline"), ("bms2mqtt/house/availability", "offline")]
        );
    }

    #[test]
    fn a_cell_that_is_gone_takes_its_topics_with_it() {
        let mut sent = nothing_sent();
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
        let mut sent = nothing_sent();
        sent.found(leftover.to_owned());
        assert!(!topics(&changes(&mut sent, &PackState::default())).contains(&leftover));
        assert!(topics(&changes(&mut sent, &cells(&[3300]))).contains(&leftover));
    }

    #[test]
    fn what_is_loaded_or_asked_for_later_is_not_taken_away_before() {
        let mut sent = nothing_sent();
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
        let mut sent = nothing_sent();
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
    fn what_an_older_version_called_otherwise_goes_and_what_stands_stays() {
        let mut sent = nothing_sent();
        let stands = [
            "bms2mqtt/house/cell_1_voltage",
            "bms2mqtt/house/availability",
            "homeassistant/sensor/bms2mqtt_house/cell_1_voltage/config",
            "homeassistant/binary_sensor/bms2mqtt_bridge/connection/config",
        ];
        let strangers = [
            "homeassistant/binary_sensor/bms2mqtt_house/cell_1_voltage/config",
            "homeassistant/sensor/bms2mqtt_bridge/connection/config",
            "bms2mqtt/house/cell_01_voltage",
            "bms2mqtt/house/soc",
        ];
        for topic in stands.into_iter().chain(strangers).chain(strangers) {
            sent.found(topic.to_owned());
        }
        let said = changes(&mut sent, &cells(&[3300]));
        let gone: Vec<&str> =
            said.iter().filter(|(_, payload)| payload.is_empty()).map(|(t, _)| t.as_str()).collect();
        assert_eq!(gone, strangers);
        assert!(
            stands.iter().all(|topic| topics(&said).contains(topic)),
            "what was read back is made current"
        );
        assert_eq!(changes(&mut sent, &cells(&[3300])), []);
    }

    #[test]
    fn another_board_is_described_anew_and_nothing_else_is_said() {
        let mut sent = nothing_sent();
        changes(&mut sent, &cells(&[3300, 3310]));
        let model = Some("JBD-SP10S009".to_owned());
        let renamed = PackState { identity: Some(Identity { model }), ..cells(&[3300, 3310]) };
        let said = changes(&mut sent, &renamed);
        assert!(said.iter().all(|(topic, payload)| {
            topic.starts_with("homeassistant/")
                && topic.contains("_house/")
                && payload.contains("JBD-SP10S009")
        }));
        assert!(topics(&said).contains(&"homeassistant/sensor/bms2mqtt_house/cell_2_voltage/config"));
    }

    #[test]
    fn without_discovery_configs_are_taken_away_and_values_stay() {
        let mut sent = nothing_sent();
        changes(&mut sent, &cells(&[3300]));
        sent.names.discovery = false;
        let said = changes(&mut sent, &cells(&[3300]));
        assert!(!said.is_empty());
        assert!(said.iter().all(|(topic, payload)| topic.ends_with("/config") && payload.is_empty()));
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
