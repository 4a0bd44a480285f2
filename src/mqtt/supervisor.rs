//! Home Assistant's Supervisor knows the broker of the house: an app asks it, and its user need not say.
//!
//! Source: "Communication between apps", developers.home-assistant.io.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::blocking;

use super::endpoint::{Endpoint, Login, Password, Tls};

/// How long the Supervisor may take, which does no more than look.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Supervisor {
    /// Such as `http://supervisor`.
    pub url: String,
    pub token: String,
}

/// What it says, as far as it matters.
#[derive(Deserialize)]
struct Answer {
    data: Service,
}

#[derive(Deserialize)]
struct Service {
    host: String,
    /// A number, or one in quotes.
    port: Value,
    #[serde(default)]
    ssl: bool,
    username: Option<String>,
    password: Option<String>,
}

impl Supervisor {
    /// # Errors
    /// When it does not name a broker: why, and what to do.
    pub(super) async fn endpoint(&self) -> Result<Endpoint, String> {
        let request = minreq::get(format!("{}/services/mqtt", self.url))
            .with_header("Authorization", format!("Bearer {}", self.token))
            .with_timeout(PATIENCE.as_secs());
        // It starts a thread of its own, for its timeout.
        let answer = blocking::run(move || blocking::can_start().map(|()| request.send())).await??;
        let answer = answer.map_err(|error| {
            format!("Home Assistant's Supervisor does not answer at {}: {error}", self.url)
        })?;
        match answer.status_code {
            200 => endpoint(answer.as_bytes()).ok_or_else(|| {
                "Home Assistant's Supervisor names no broker that makes sense; give mqtt.url".to_owned()
            }),
            400 => Err(
                "Home Assistant has no MQTT broker yet; install the Mosquitto broker app, or give mqtt.url"
                    .to_owned(),
            ),
            401 | 403 => {
                Err("Home Assistant's Supervisor does not tell this app its broker; give mqtt.url".to_owned())
            }
            status => {
                Err(format!("Home Assistant's Supervisor has trouble (HTTP status {status}); see its log"))
            }
        }
    }
}

fn endpoint(answer: &[u8]) -> Option<Endpoint> {
    let Answer { data: Service { host, port, ssl, username, password } } =
        serde_json::from_slice(answer).ok()?;
    let port = match port {
        Value::String(port) => port.parse().ok()?,
        port => u16::try_from(port.as_u64()?).ok()?,
    };
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let password = given(password).map_or(Password::None, Password::Text);
    let login = given(username).map(|username| Login { username, password });
    let usable = !host.is_empty() && port > 0;
    usable.then(|| Endpoint { host, port, tls: ssl.then(Tls::default), login })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_supervisor_says() {
        let login = Login { username: "addons".to_owned(), password: Password::Text("secret".to_owned()) };
        let core = Endpoint { host: "core-mosquitto".to_owned(), port: 1883, tls: None, login: Some(login) };
        for port in ["1883", "\"1883\""] {
            let answer = format!(
                r#"{{"result":"ok","data":{{"addon":"core_mosquitto","host":"core-mosquitto","port":{port},"ssl":false,
                "username":"addons","password":"secret","protocol":"3.1.1"}}}}"#
            );
            assert_eq!(endpoint(answer.as_bytes()), Some(core.clone()));
        }
        let bare = r#"{"data":{"host":"broker","port":8883,"ssl":true,"username":"","password":null}}"#;
        let broker =
            Endpoint { host: "broker".to_owned(), port: 8883, tls: Some(Tls::default()), login: None };
        assert_eq!(endpoint(bare.as_bytes()), Some(broker));
        for wrong in [
            "",
            "{}",
            r#"{"data":{}}"#,
            r#"{"data":{"host":"","port":1}}"#,
            r#"{"data":{"host":"x","port":99999}}"#,
        ] {
            assert_eq!(endpoint(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
