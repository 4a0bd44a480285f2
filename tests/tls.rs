//! TLS to the broker: real program, Mosquitto, and certificates that the `openssl` command makes for each test.

mod support;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use bms2mqtt::jbd::simulator::Pace;
use support::{
    Answers, Board, Broker, HOUSE, Listener, OwnPort, Program, eventually, mosquitto, scratch, tell,
};

/// Is there what the tests need and the program does not? Says so where it is missing.
fn tools() -> bool {
    let openssl = Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok();
    let required = std::env::var("BMS2MQTT_TEST_MOSQUITTO").as_deref() == Ok("required");
    assert!(openssl || !required, "openssl is required and not installed");
    let tools = mosquitto().is_some() && openssl;
    if !tools {
        tell("mosquitto or openssl is not installed: TLS is not tried");
    }
    tools
}

/// For `openssl ca`, which sets both dates, by any version.
const OPENSSL: &str = "
[req]
distinguished_name = nobody
[nobody]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[ca]
default_ca = here
[here]
database = index
serial = serial
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
unique_subject = no
policy = any
[any]
commonName = supplied
";
const THIS_MACHINE: &str = "DNS:localhost, IP:127.0.0.1";
/// Dates as certificates have them.
const ALWAYS: &str = "20991231235959Z";
const LONG_AGO: &str = "20200201000000Z";

/// A certificate authority in a directory of its own.
struct Authority(PathBuf);

/// PEM files.
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Authority {
        let authority = Authority(directory.join(name));
        fs::create_dir(&authority.0).unwrap();
        for (file, text) in [("openssl.cnf", OPENSSL), ("index", ""), ("serial", "01\n")] {
            fs::write(authority.0.join(file), text).unwrap();
        }
        let own = "req -x509 -extensions authority -days 3650 -keyout ca.key -out ca.pem";
        authority.openssl(&format!("{own} {NEW_KEY} -subj /CN={name}"));
        authority
    }

    fn certificate(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// With these `subjectAltName`s, or with none.
    fn issue(&self, name: &str, alternative_names: &str, until: &str) -> Identity {
        self.openssl(&format!("req {NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        let mut extensions = "basicConstraints = CA:FALSE\n".to_owned();
        if !alternative_names.is_empty() {
            extensions += &format!("subjectAltName = {alternative_names}\n");
        }
        fs::write(self.0.join("extensions"), extensions).unwrap();
        let dates = format!("-startdate 20200101000000Z -enddate {until}");
        let files = format!("-in {name}.csr -out {name}.pem -extfile extensions");
        self.openssl(&format!("ca -batch -notext {files} {dates}"));
        let file = |ending| self.0.join(format!("{name}.{ending}"));
        Identity { certificate: file("pem"), key: file("key") }
    }

    /// A certificate that another has signed which is no authority.
    fn signed_by(&self, signer: &Identity, name: &str, alternative_names: &str) -> Identity {
        self.openssl(&format!("req {NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        fs::write(self.0.join("extensions"), format!("subjectAltName = {alternative_names}\n")).unwrap();
        let by = format!("-cert {} -keyfile {}", signer.certificate.display(), signer.key.display());
        let files = format!("-in {name}.csr -out {name}.pem -extfile extensions");
        self.openssl(&format!("ca -batch -notext {by} {files} -startdate 20200101000000Z -enddate {ALWAYS}"));
        let file = |ending| self.0.join(format!("{name}.{ending}"));
        Identity { certificate: file("pem"), key: file("key") }
    }

    /// A certificate that signs itself, as the broker's only one, with these lines of extensions.
    fn self_signed(&self, name: &str, extensions: &str, until: &str) -> Identity {
        fs::write(self.0.join(format!("{name}.cnf")), format!("{OPENSSL}[own]\n{extensions}\n")).unwrap();
        self.openssl(&format!("req {NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        let dates = format!("-startdate 20200101000000Z -enddate {until}");
        let signed = format!("-selfsign -keyfile {name}.key -in {name}.csr -out {name}.pem -extensions own");
        self.openssl_with(&format!("{name}.cnf"), &format!("ca -batch -notext {signed} {dates}"));
        let file = |ending| self.0.join(format!("{name}.{ending}"));
        Identity { certificate: file("pem"), key: file("key") }
    }

    fn openssl(&self, arguments: &str) {
        self.openssl_with("openssl.cnf", arguments);
    }

    fn openssl_with(&self, config: &str, arguments: &str) {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).args(["-config", config]).current_dir(&self.0);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// A broker that has TLS at one port, and none at another, for looking at what is published.
struct TlsBroker {
    plain: Broker,
    port: u16,
    _own: OwnPort,
}

impl TlsBroker {
    async fn start(authority: &Authority, server: &Identity, more: &str) -> TlsBroker {
        let own = OwnPort::new();
        let address = own.address;
        let settings = format!(
            "allow_anonymous true\nlistener {} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n{more}",
            address.port(),
            authority.certificate().display(),
            server.certificate.display(),
            server.key.display(),
        );
        let plain = Broker::start_with(&settings).await;
        eventually("the broker listens for TLS", || TcpStream::connect(address).ok()).await;
        TlsBroker { plain, port: address.port(), _own: own }
    }

    fn url(&self, host: &str) -> String {
        format!("mqtts://{host}:{}", self.port)
    }
}

/// A board, and the bridge that publishes it by TLS.
struct Bridge {
    directory: PathBuf,
    answers: Answers,
    board: Board,
}

impl Bridge {
    fn new(directory: &Path) -> Bridge {
        let answers = Answers::new(&HOUSE);
        let board = Board::start(answers.clone(), None, Pace::Unpaced);
        Bridge { directory: directory.to_owned(), answers, board }
    }

    fn start(&self, url: &str, ca_file: &Path, client: Option<&Identity>) -> Program {
        let client = client.map_or_else(String::new, |Identity { certificate, key }| {
            format!(", cert_file: '{}', key_file: '{}'", certificate.display(), key.display())
        });
        let mqtt = format!("{{url: '{url}', ca_file: '{}'{client}}}", ca_file.display());
        let port = self.board.port.display();
        let yaml = format!("mqtt: {mqtt}\npacks: [{{id: house, port: {port}, interval: 300ms}}]\n");
        Program::start(&self.directory, &yaml)
    }
}

/// Waits until the broker has the pack, and stops the program as the system does.
async fn publishes(mut program: Program, broker: &TlsBroker, url: &str) {
    program.logged(&format!("connected to {url}\n")).await;
    let listener = Listener::start(broker.plain.address).await;
    listener.wait_for("bms2mqtt/bridge/availability", "online").await;
    listener.wait_for("bms2mqtt/house/availability", "online").await;
    listener.wait_for("bms2mqtt/house/voltage", "26.66").await;
    stops(&mut program).await;
    listener.wait_for("bms2mqtt/bridge/availability", "offline").await;
}

/// Waits until the log has this reason as a line of its own, and stops the program.
async fn fails(mut program: Program, url: &str, reason: &str) {
    program.logged(&format!(" WARN {url}: TLS: {reason}; trying again until it works\n")).await;
    assert!(!program.log().contains("connected"));
    stops(&mut program).await;
}

async fn stops(program: &mut Program) {
    program.signal("TERM");
    assert_eq!(program.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_broker_is_reached_by_the_name_and_by_the_address_in_its_certificate() {
    if !tools() {
        return;
    }
    let directory = scratch("tls");
    let authority = Authority::new(&directory, "home");
    let server = authority.issue("server", THIS_MACHINE, ALWAYS);
    let broker = TlsBroker::start(&authority, &server, "").await;
    let bridge = Bridge::new(&directory);
    for host in ["localhost", "127.0.0.1"] {
        let url = broker.url(host);
        publishes(bridge.start(&url, &authority.certificate(), None), &broker, &url).await;
    }
}

#[tokio::test]
async fn a_wrong_authority_is_told_once_and_the_right_one_is_taken_up_without_a_restart() {
    if !tools() {
        return;
    }
    let directory = scratch("tls-authority");
    let authority = Authority::new(&directory, "home");
    let server = authority.issue("server", THIS_MACHINE, ALWAYS);
    let broker = TlsBroker::start(&authority, &server, "").await;
    let bridge = Bridge::new(&directory);
    let url = broker.url("localhost");
    let ca_file = directory.join("ca.pem");
    let reason = format!(
        "the broker's certificate is from an authority that is not in {}; check mqtt.ca_file",
        ca_file.display()
    );
    fs::create_dir(directory.join("earlier")).unwrap();
    let namesake = Authority::new(&directory.join("earlier"), "home");
    for wrong in [Authority::new(&directory, "other"), namesake] {
        fs::copy(wrong.certificate(), &ca_file).unwrap();
        fails(bridge.start(&url, &ca_file, None), &url, &reason).await;
    }

    let program = bridge.start(&url, &ca_file, None);
    program.logged(&reason).await;
    // Some tries later.
    bridge.answers.wait_for_polls(12).await;
    let new = directory.join("new.pem");
    fs::copy(authority.certificate(), &new).unwrap();
    fs::rename(&new, &ca_file).unwrap();
    program.logged("connected to").await;
    assert_eq!(program.log().matches("TLS").count(), 1, "{}", program.log());
    publishes(program, &broker, &url).await;
}

#[tokio::test]
async fn what_is_wrong_with_the_certificate_of_the_broker_is_told() {
    if !tools() {
        return;
    }
    let directory = scratch("tls-server");
    let authority = Authority::new(&directory, "home");
    let bridge = Bridge::new(&directory);
    let other = Authority::new(&directory, "other");
    let own = Identity { certificate: other.certificate(), key: other.0.join("ca.key") };
    for (server, host, reason) in [
        (
            authority.issue("expired", THIS_MACHINE, LONG_AGO),
            "localhost",
            "the broker's certificate has expired; renew it, or correct this machine's clock",
        ),
        (
            authority.issue("elsewhere", "DNS:broker.example, IP:192.0.2.1", ALWAYS),
            "localhost",
            "the broker's certificate is not for localhost but for broker.example, 192.0.2.1; \
             write one of these in mqtt.url",
        ),
        (
            authority.issue("name", "DNS:localhost", ALWAYS),
            "127.0.0.1",
            "the broker's certificate is not for 127.0.0.1 but for localhost; write one of these in mqtt.url",
        ),
        (
            authority.issue("nameless", "", ALWAYS),
            "localhost",
            "the broker's certificate is for no host; give it the subjectAltName localhost",
        ),
        (
            own,
            "localhost",
            "the broker's certificate is that of an authority; give it as mqtt.ca_file, or let it issue one for \
             the broker",
        ),
    ] {
        let broker = TlsBroker::start(&authority, &server, "").await;
        let url = broker.url(host);
        fails(bridge.start(&url, &authority.certificate(), None), &url, reason).await;
    }
}

#[tokio::test]
async fn the_brokers_own_certificate_is_good_as_ca_file_and_no_other_like_it() {
    if !tools() {
        return;
    }
    let directory = scratch("tls-own");
    let authority = Authority::new(&directory, "home");
    let bridge = Bridge::new(&directory);
    let key_usage = "subjectKeyIdentifier = hash";
    let not_an_authority = format!("basicConstraints = CA:FALSE\nsubjectAltName = {THIS_MACHINE}");
    for (name, extensions) in [
        // What `openssl req -x509` makes, with no name in it that is looked at; the same with
        // names; and as guides have it.
        ("authority", "basicConstraints = critical, CA:TRUE"),
        ("named", &format!("basicConstraints = CA:TRUE\nsubjectAltName = {THIS_MACHINE}")),
        ("unnamed", "basicConstraints = CA:FALSE"),
        ("server", &not_an_authority),
        ("plain", key_usage),
        ("elsewhere", "subjectAltName = DNS:broker.example"),
    ] {
        let own = authority.self_signed(name, extensions, ALWAYS);
        let broker = TlsBroker::start(&authority, &own, "").await;
        let url = broker.url("localhost");
        publishes(bridge.start(&url, &own.certificate, None), &broker, &url).await;

        // Beside others in one file.
        let bundle = directory.join("bundle.pem");
        let pem = [authority.certificate(), own.certificate.clone()].map(|file| fs::read(file).unwrap());
        fs::write(&bundle, pem.concat()).unwrap();
        publishes(bridge.start(&url, &bundle, None), &broker, &url).await;
    }

    // Made anew, with the same name and everything but the key: a stranger's.
    let server = authority.self_signed("server2", &not_an_authority, ALWAYS);
    let broker = TlsBroker::start(&authority, &server, "").await;
    let url = broker.url("localhost");
    let earlier = Authority::new(&directory, "earlier").self_signed("server2", &not_an_authority, ALWAYS);
    let reason = format!(
        "the broker's certificate is from an authority that is not in {}; check mqtt.ca_file",
        earlier.certificate.display()
    );
    fails(bridge.start(&url, &earlier.certificate, None), &url, &reason).await;

    // One that it has signed is another, whoever may sign in the eyes of its file.
    let own = authority.self_signed("server3", &not_an_authority, ALWAYS);
    let signed = authority.signed_by(&own, "signed", "DNS:broker.example");
    let broker = TlsBroker::start(&authority, &signed, "").await;
    let url = broker.url("localhost");
    let reason = "the broker's certificate is not for localhost but for broker.example; \
                  write one of these in mqtt.url";
    fails(bridge.start(&url, &own.certificate, None), &url, reason).await;

    // Its dates count.
    let reason = "the broker's certificate has expired; renew it, or correct this machine's clock";
    for extensions in ["basicConstraints = critical, CA:TRUE", not_an_authority.as_str()] {
        let name = format!("expired{}", extensions.len());
        let expired = authority.self_signed(&name, extensions, LONG_AGO);
        let broker = TlsBroker::start(&authority, &expired, "").await;
        let url = broker.url("localhost");
        fails(bridge.start(&url, &expired.certificate, None), &url, reason).await;
    }
}

#[tokio::test]
async fn a_certificate_that_expires_during_a_session_ends_none_and_lets_none_begin() {
    if !tools() {
        return;
    }
    let directory = scratch("tls-expiry");
    let authority = Authority::new(&directory, "home");
    let bridge = Bridge::new(&directory);
    let mut life = Duration::from_secs(4);
    let (expiry, server, mut broker, mut program) = loop {
        let expiry = SystemTime::now() + life;
        let date = humantime::format_rfc3339_seconds(expiry).to_string().replace(['-', 'T', ':'], "");
        let server = authority.issue("server", THIS_MACHINE, &date);
        let broker = TlsBroker::start(&authority, &server, "").await;
        let url = broker.url("localhost");
        let program = bridge.start(&url, &authority.certificate(), None);
        eventually("a first session", || program.log().contains(&url).then_some(())).await;
        if program.log().contains(&format!("connected to {url}\n")) {
            break (expiry, server, broker, program);
        }
        // It has expired before: this machine is busy.
        life *= 2;
        assert!(life < support::PATIENCE, "{}", program.log());
    };

    eventually("the certificate expires", || (SystemTime::now() > expiry).then_some(())).await;
    let listener = Listener::start(broker.plain.address).await;
    bridge.answers.change(4, |data| data[1] += 1);
    listener.wait_for("bms2mqtt/house/cell_1_voltage", "3.333").await;

    broker.plain.kill().await;
    broker.plain.resume().await;
    program.logged("the broker's certificate has expired; renew it").await;
    bridge.answers.wait_for_polls(5).await;
    bridge.answers.change(4, |data| data[1] += 1);
    bridge.answers.wait_for_polls(5).await;

    broker.plain.kill().await;
    let renewed = authority.issue("renewed", THIS_MACHINE, ALWAYS);
    fs::copy(renewed.certificate, server.certificate).unwrap();
    fs::copy(renewed.key, server.key).unwrap();
    broker.plain.resume().await;
    let listener = Listener::start(broker.plain.address).await;
    // The last of all values.
    let last = "bms2mqtt/house/last_success";
    eventually(last, || listener.messages().into_iter().find(|heard| heard.topic == last)).await;
    // The newest state, once: what was read while the broker was away is not caught up with.
    let heard = listener.messages().into_iter().filter(|heard| heard.topic.ends_with("/cell_1_voltage"));
    assert_eq!(heard.map(|heard| heard.payload).collect::<Vec<_>>(), ["3.334"]);
    stops(&mut program).await;
}

#[tokio::test]
async fn a_broker_that_wants_a_client_certificate_gets_it() {
    if !tools() {
        return;
    }
    let directory = scratch("tls-client");
    let authority = Authority::new(&directory, "home");
    let server = authority.issue("server", THIS_MACHINE, ALWAYS);
    let broker = TlsBroker::start(&authority, &server, "require_certificate true\n").await;
    let bridge = Bridge::new(&directory);
    let url = broker.url("localhost");
    let ca_file = authority.certificate();
    let name = "DNS:bridge.example";
    for (client, reason) in [
        (None, "the broker wants a client certificate; give mqtt.cert_file and mqtt.key_file"),
        (
            Some(Authority::new(&directory, "other").issue("stranger", name, ALWAYS)),
            "the broker does not know the authority of our certificate; check mqtt.cert_file",
        ),
        (
            Some(authority.issue("expired", name, LONG_AGO)),
            "our certificate has expired; renew mqtt.cert_file",
        ),
    ] {
        fails(bridge.start(&url, &ca_file, client.as_ref()), &url, reason).await;
    }
    let client = authority.issue("client", name, ALWAYS);
    publishes(bridge.start(&url, &ca_file, Some(&client)), &broker, &url).await;
}

#[tokio::test]
async fn a_port_without_tls_is_told() {
    if !tools() {
        return;
    }
    let directory = scratch("tls-none");
    let authority = Authority::new(&directory, "home");
    let broker = Broker::start().await;
    let url = broker.url().replace("mqtt:", "mqtts:");
    let program = Bridge::new(&directory).start(&url, &authority.certificate(), None);
    program.logged("; check that mqtt.url has the broker's port for TLS; trying again").await;
    assert!(program.log().contains(&format!(" WARN {url}: TLS: ")), "{}", program.log());
}
