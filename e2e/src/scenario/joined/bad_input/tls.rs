//! A TLS client of the broker's that has a cluster's key and says what it likes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use podspan_wire::Bundle;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::world;

/// How long a broker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Who speaks.
pub(super) struct Client {
    config: Arc<ClientConfig>,
    address: SocketAddr,
    /// The header that shows the cluster's grant.
    pub(super) grant: String,
}

impl Client {
    /// A client with alpha's key.
    pub(super) fn new(address: SocketAddr) -> Result<Self> {
        let text = std::fs::read_to_string(world::bundle("alpha")).context("alpha's bundle")?;
        let (bundle, _) = Bundle::parse(&text)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.broker_ca.as_bytes()) {
            roots.add(certificate.context("the brokers' authority")?)?;
        }
        let pkcs8 = bundle.cluster_key.to_pkcs8();
        let key = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519)?;
        let certificate = rcgen::CertificateParams::default().self_signed(&pair)?;
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], key.clone_key().into())?;
        let grant = STANDARD.encode(serde_json::to_vec(&bundle.grant)?);
        Ok(Self { config: Arc::new(config), address, grant })
    }

    /// Says these bytes and gives the status of the answer, or none if there was no answer.
    pub(super) fn say(&self, bytes: &[u8]) -> Result<Option<u16>> {
        let tcp = TcpStream::connect_timeout(&self.address, TIMEOUT).context("connect")?;
        tcp.set_read_timeout(Some(TIMEOUT))?;
        tcp.set_write_timeout(Some(TIMEOUT))?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let mut tls = StreamOwned::new(ClientConnection::new(self.config.clone(), name)?, tcp);
        // The broker may refuse before all is said; what it answered counts then.
        tls.write_all(bytes).and_then(|()| tls.flush()).ok();
        Ok(status(&mut tls))
    }
}

/// The status code of an HTTP/1.1 answer.
pub(super) fn status(stream: &mut impl Read) -> Option<u16> {
    let mut head = Vec::new();
    stream.take(12).read_to_end(&mut head).ok();
    let text = std::str::from_utf8(&head).ok()?;
    text.strip_prefix("HTTP/1.1 ")?.parse().ok()
}
