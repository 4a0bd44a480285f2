//! One broker: its address, login and TLS; and what to say when it does not let us in.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, EventLoop, LastWill, MqttOptions, NetworkOptions,
    StateError, TlsConfiguration, TlsError, Transport,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// Requests that wait for the event loop; more are held back until it has sent some.
const QUEUE: usize = 16;
/// So many configs may wait for their acknowledgement, each with its text in memory. A hundred are no faster to announce,
/// and sixteen take more than twice as long, in which values wait behind them: the broker's system holds a small
/// acknowledgement back for up to 40 ms.
const IN_FLIGHT: u16 = 32;
/// The largest packet either way: a config is about 1 KB, a foreign retained message may be anything.
const LARGEST_PACKET: usize = 256 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub tls: Option<Tls>,
    pub login: Option<Login>,
}

/// Files are read at every connection, so that renewed certificates and passwords are taken up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM, of authorities or of the broker itself; without it the system's certificate authorities
    /// are trusted.
    pub ca_file: Option<PathBuf>,
    pub client: Option<ClientFiles>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: Password,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    None,
    Text(String),
    File(PathBuf),
}

/// Never shows the password.
impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Password::None => f.write_str("no password"),
            Password::Text(_) => f.write_str("a password"),
            Password::File(path) => write!(f, "the password in {}", path.display()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl Endpoint {
    /// A client and an event loop that will connect when it is polled.
    ///
    /// # Errors
    /// When a password or certificate file cannot be used: which, and why.
    pub(super) fn client(
        &self,
        client_id: &str,
        keep_alive: Duration,
        will: Option<LastWill>,
    ) -> Result<(AsyncClient, EventLoop), String> {
        let mut options = MqttOptions::new(client_id, &self.host, self.port);
        options.set_keep_alive(keep_alive);
        options.set_inflight(IN_FLIGHT);
        options.set_max_packet_size(LARGEST_PACKET, LARGEST_PACKET);
        if let Some(will) = will {
            options.set_last_will(will);
        }
        if let Some(Login { username, password }) = &self.login {
            options.set_credentials(username, password.read()?);
        }
        if let Some(tls) = &self.tls {
            let tls = TlsConfiguration::Rustls(Arc::new(tls.client_config()?));
            options.set_transport(Transport::Tls(tls));
        }
        let (client, mut event_loop) = AsyncClient::new(options, QUEUE);
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        // Values are many small packets: waiting to fill larger ones would hold each back for 40 ms.
        network.set_tcp_nodelay(true);
        event_loop.set_network_options(network);
        Ok((client, event_loop))
    }

    /// What happened, and what to do about it, for the log.
    pub(super) fn explain(&self, error: &ConnectionError) -> String {
        // Wherever it happened: a broker that dislikes our certificate says so after the handshake only.
        if let Some(error) = cause::<rustls::Error>(error) {
            return format!("TLS: {}", self.explain_tls(error));
        }
        match error {
            ConnectionError::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "connection refused; is the broker running, and is this its port?".to_owned()
            }
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
            ) => match &self.login {
                Some(login) => format!(
                    "the broker refuses user \"{}\" with {:?}; check mqtt.username and mqtt.password",
                    login.username, login.password
                ),
                None => "the broker wants a user; give mqtt.username and mqtt.password".to_owned(),
            },
            ConnectionError::ConnectionRefused(code) => {
                format!("the broker refuses the connection: {code:?}")
            }
            ConnectionError::NetworkTimeout => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            ConnectionError::MqttState(StateError::AwaitPingResp) => {
                "the broker does not answer any more".to_owned()
            }
            ConnectionError::Tls(TlsError::Io(error)) => {
                format!("TLS: {error}; check that mqtt.url has the broker's port for TLS")
            }
            ConnectionError::Tls(TlsError::DNSName(_)) => {
                format!("TLS: {} is no name for a certificate; write another in mqtt.url", self.host)
            }
            other => cause::<io::Error>(other).map_or_else(|| other.to_string(), ToString::to_string),
        }
    }

    fn explain_tls(&self, error: &rustls::Error) -> String {
        use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
        let client = self.tls.as_ref().and_then(|tls| tls.client.as_ref());
        let what = match (error, client) {
            (InvalidCertificate(error), _) => return self.explain_certificate(error),
            (AlertReceived(AlertDescription::CertificateRequired), None) => {
                "the broker wants a client certificate; give mqtt.cert_file and mqtt.key_file"
            }
            // TLS 1.2 has no alert of its own for it.
            (AlertReceived(AlertDescription::HandshakeFailure), None) => {
                "the broker breaks off; if it wants a client certificate, give mqtt.cert_file and mqtt.key_file"
            }
            (AlertReceived(AlertDescription::UnknownCA), Some(_)) => {
                "the broker does not know the authority of our certificate; check mqtt.cert_file"
            }
            (AlertReceived(AlertDescription::CertificateExpired), Some(_)) => {
                "our certificate has expired; renew mqtt.cert_file"
            }
            (InvalidMessage(_), _) => "no TLS there; check that mqtt.url has the broker's port for TLS",
            (other, _) => return other.to_string(),
        };
        what.to_owned()
    }

    fn explain_certificate(&self, error: &CertificateError) -> String {
        let host = &self.host;
        let what = match error {
            // An authority made anew with the same name is known, but did not sign.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                return match self.tls.as_ref().and_then(|tls| tls.ca_file.as_ref()) {
                    Some(path) => format!(
                        "the broker's certificate is from an authority that is not in {}; check mqtt.ca_file",
                        path.display()
                    ),
                    None => "the broker's certificate is from an authority that this system does not know; \
                             give mqtt.ca_file"
                        .to_owned(),
                };
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the broker's certificate has expired; renew it, or correct this machine's clock"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the broker's certificate is not valid yet; check this machine's clock"
            }
            CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
                return format!("the broker's certificate is for no host; give it the subjectAltName {host}");
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                // Written as `DnsName("localhost")` and `IpAddress(127.0.0.1)`.
                let bare = |name: &String| {
                    let name = name.split_once('(').map_or(name.as_str(), |(_, name)| name);
                    name.trim_matches(['"', ')']).to_owned()
                };
                let names: Vec<String> = presented.iter().map(bare).collect();
                let names = names.join(", ");
                return format!(
                    "the broker's certificate is not for {host} but for {names}; write one of these in mqtt.url"
                );
            }
            // An error of webpki's, of which there is only the name.
            CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
                "the broker's certificate is that of an authority; give it as mqtt.ca_file, or let it issue one for \
                 the broker"
            }
            other => return format!("the broker's certificate: {other}"),
        };
        what.to_owned()
    }
}

/// The first of the errors behind this one that is of this kind.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error is made of is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

impl Password {
    fn read(&self) -> Result<String, String> {
        match self {
            Password::None => Ok(String::new()),
            Password::Text(text) => Ok(text.clone()),
            Password::File(path) => {
                let text = fs::read_to_string(path);
                let text = text.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }
}

impl Tls {
    /// # Errors
    /// When a file cannot be read, or holds no certificate or key: which, and why.
    pub fn client_config(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        let mut given = Vec::new();
        match &self.ca_file {
            Some(path) => {
                given = certificates(path)?;
                for certificate in &given {
                    let added = roots.add(certificate.clone());
                    added.map_err(|error| {
                        format!("{}: not a certificate authority: {error}", path.display())
                    })?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    return Err("this system has no certificate authorities; give mqtt.ca_file".to_owned());
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous() // as the library calls every verifier but its own; what is added is below
            .with_custom_certificate_verifier(Arc::new(Verifier { roots, given, algorithms }));
        let Some(ClientFiles { cert_file, key_file }) = &self.client else {
            return Ok(config.with_no_client_auth());
        };
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|error| format!("{}: no private key: {error}", key_file.display()))?;
        config
            .with_client_auth_cert(certificates(cert_file)?, key)
            .map_err(|error| format!("{} and {}: {error}", cert_file.display(), key_file.display()))
    }
}

/// Trusts what the authorities in `ca_file` have issued, and the certificates in it themselves. A
/// broker at home often has one that signs itself, which its owner copies here. The standard's rules
/// refuse it where it is marked as an authority's or has no name of a host in it; but nothing says
/// better whom the owner means than the broker's very certificate. Bytes are compared, so no other
/// is accepted for it.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    given: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.algorithms.all;
        let checked =
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)
                .and_then(|()| verify_server_name(&parsed, name));
        match checked {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(rustls::Error::InvalidCertificate(error)) if self.given.contains(certificate) => {
                match error {
                    // Dates are checked first, so whatever else is wrong, these are right.
                    Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
                        Err(error.into())
                    }
                    _ => Ok(ServerCertVerified::assertion()),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// That the broker holds the certificate's key is always checked.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: no certificate: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("{}: no certificate in it", path.display()));
    }
    Ok(certificates)
}
