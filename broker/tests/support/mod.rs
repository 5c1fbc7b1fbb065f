//! What the tests share: a cluster set, clusters, records, brokers in this process, raw TLS.

#![allow(dead_code, reason = "every test binary uses another part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail, whoever calls it")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use podspan_broker::client::{Client, ClientConfig, Event, Timing, Watch};
use podspan_broker::server::{Broker, Config, Limits};
use podspan_wire::api::{Entry, GRANT_HEADER, Token, WatchEvent};
use podspan_wire::{
    CidrSet, ClusterKey, ClusterSetId, Envelope, Grant, Lane, LaneKey, NodeId, Record, RecordState, RootKey,
    SignedRecord, UnixTime, Version,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn now() -> UnixTime {
    SystemTime::now().into()
}

pub(crate) fn root() -> RootKey {
    RootKey::from_seed(&[1; 32])
}

pub(crate) fn cluster_set() -> ClusterSetId {
    ClusterSetId::new(root().public())
}

/// A cluster with its key and grant.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) key: ClusterKey,
    pub(crate) grant: Envelope,
    pub(crate) pods: CidrSet,
}

/// The grant of a cluster, signed by `root`.
pub(crate) fn grant_by(
    root: &RootKey,
    name: &str,
    key: &ClusterKey,
    pods: &str,
    serial: u64,
    not_after: UnixTime,
) -> Envelope {
    Grant {
        cluster_set: cluster_set(),
        cluster: name.parse().unwrap(),
        cluster_key: key.public(),
        pod_cidrs: [pods.parse().unwrap()].into_iter().collect(),
        service_cidrs: CidrSet::default(),
        serial,
        not_after,
        extensions: Default::default(),
    }
    .sign(root)
}

/// The cluster number `number`, with the pods 10.NUMBER.0.0/16.
pub(crate) fn cluster(name: &'static str, number: u8) -> Cluster {
    cluster_with(name, number, &format!("10.{number}.0.0/16"), 1)
}

pub(crate) fn cluster_with(name: &'static str, number: u8, pods: &str, serial: u64) -> Cluster {
    let key = ClusterKey::from_seed(&[number; 32]);
    let grant = grant_by(&root(), name, &key, pods, serial, now().after(DAY));
    Cluster { name, key, grant, pods: [pods.parse().unwrap()].into_iter().collect() }
}

pub(crate) fn version(sequence: u64) -> Version {
    Version { epoch: 1, sequence }
}

impl Cluster {
    pub(crate) fn id(&self, node: &str) -> NodeId {
        format!("{}/{node}", self.name).parse().unwrap()
    }

    pub(crate) fn record(&self, node: &str, sequence: u64) -> Record {
        Record {
            cluster_set: cluster_set(),
            cluster: self.name.parse().unwrap(),
            node: node.parse().unwrap(),
            state: RecordState::Active,
            lanes: vec![Lane { key: LaneKey::from_bytes([7; 32]), port: 51840 }],
            endpoints: vec!["192.0.2.1".parse().unwrap()],
            pod_cidrs: self.pods.clone(),
            service_cidrs: CidrSet::default(),
            gateway: true,
            version: version(sequence),
            not_after: now().after(DAY),
            extensions: Default::default(),
        }
    }

    pub(crate) fn sign(&self, record: &Record) -> SignedRecord {
        record.sign(&self.key, self.grant.clone())
    }

    pub(crate) fn active(&self, node: &str, sequence: u64) -> SignedRecord {
        self.sign(&self.record(node, sequence))
    }

    pub(crate) fn withdrawn(&self, node: &str, sequence: u64) -> SignedRecord {
        self.sign(&Record { state: RecordState::Withdrawn, ..self.record(node, sequence) })
    }

    /// An active record of some 6 KiB.
    pub(crate) fn large(&self, node: &str, sequence: u64) -> SignedRecord {
        let lanes = (0..64).map(|i| Lane { key: LaneKey::from_bytes([i; 32]), port: 51840 + u16::from(i) });
        self.sign(&Record { lanes: lanes.collect(), ..self.record(node, sequence) })
    }

    pub(crate) fn grant_header(&self) -> String {
        grant_header(&self.grant)
    }
}

pub(crate) fn grant_header(grant: &Envelope) -> String {
    base64::engine::general_purpose::STANDARD.encode(serde_json::to_vec(grant).unwrap())
}

/// The files of a broker in a directory of their own, with an authority of its own.
pub(crate) struct Site {
    pub(crate) directory: TempDir,
    pub(crate) authority: String,
    /// A loopback address that no other test uses, so that its ports are this site's alone.
    pub(crate) address: Ipv4Addr,
}

impl Site {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut random = [0; 3];
        getrandom::fill(&mut random).unwrap();
        let address = Ipv4Addr::new(127, random[0].max(1), random[1], random[2].clamp(1, 254));
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let names = vec!["localhost".to_owned(), address.to_string()];
        let server_key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(names).unwrap().signed_by(&server_key, &issuer).unwrap();
        std::fs::write(directory.path().join("broker.crt"), certificate.pem()).unwrap();
        let key_file = directory.path().join("broker.key");
        std::fs::write(&key_file, server_key.serialize_pem()).unwrap();
        set_mode(&key_file, 0o600);
        Self { directory, authority, address }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            listen: vec![SocketAddr::from((self.address, 0))],
            cluster_set: cluster_set(),
            certificate: self.path("broker.crt"),
            private_key: self.path("broker.key"),
            data: self.path("data"),
            lease: Duration::from_secs(30),
            health_listen: None,
            limits: Limits::default(),
        }
    }

    pub(crate) fn client_config(&self, cluster: &Cluster, brokers: &[SocketAddr]) -> ClientConfig {
        ClientConfig {
            brokers: brokers.iter().map(|address| format!("https://{address}")).collect(),
            broker_ca: self.authority.clone(),
            cluster_key: cluster.key.clone(),
            grant: cluster.grant.clone(),
            timing: Timing::default(),
        }
    }

    pub(crate) fn client(&self, cluster: &Cluster, broker: SocketAddr) -> Client {
        Client::new(self.client_config(cluster, &[broker])).unwrap()
    }

    /// A TLS configuration that trusts the site, with this client certificate.
    pub(crate) fn tls(&self, identity: Option<&rcgen::KeyPair>) -> Arc<rustls::ClientConfig> {
        use rustls::pki_types::pem::PemObject as _;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match identity {
            None => builder.with_no_client_auth(),
            Some(key) => {
                let certificate = rcgen::CertificateParams::default().self_signed(key).unwrap();
                let der = PrivatePkcs8KeyDer::from(key.serialize_der());
                builder.with_client_auth_cert(vec![certificate.der().clone()], der.into()).unwrap()
            }
        })
    }

    /// A TLS connection as this cluster.
    pub(crate) async fn connect(&self, cluster: &Cluster, broker: SocketAddr) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(broker).await.unwrap();
        self.handshake(cluster, stream).await
    }

    pub(crate) async fn handshake(&self, cluster: &Cluster, stream: TcpStream) -> TlsStream<TcpStream> {
        let pkcs8 = cluster.key.to_pkcs8();
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(pkcs8.as_slice()),
            &rcgen::PKCS_ED25519,
        )
        .unwrap();
        let name = ServerName::from(std::net::IpAddr::from(self.address));
        tokio_rustls::TlsConnector::from(self.tls(Some(&key))).connect(name, stream).await.unwrap()
    }

    /// Sends a request as it stands, over a connection of its own, and reads the answer to its end.
    pub(crate) async fn raw(&self, cluster: &Cluster, broker: SocketAddr, request: &[u8]) -> Answer {
        let mut stream = self.connect(cluster, broker).await;
        // A broker that has heard enough closes while the rest is still being sent.
        let _ = stream.write_all(request).await;
        let _ = stream.flush().await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes));
        let _ = read.await.expect("the broker neither answered nor closed");
        Answer::parse(&bytes)
    }

    /// A request with this grant header and body; the connection is closed after the answer.
    pub(crate) async fn request(
        &self,
        cluster: &Cluster,
        broker: SocketAddr,
        line: &str,
        grant: Option<&str>,
        body: &[u8],
    ) -> Answer {
        let grant = grant.map(|grant| format!("{GRANT_HEADER}: {grant}\r\n")).unwrap_or_default();
        let mut request = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{grant}content-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.raw(cluster, broker, &request).await
    }
}

/// An answer read by hand.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn error(&self) -> podspan_wire::api::ApiError {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }
}

pub(crate) fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A broker in this process, on its site.
pub(crate) struct Running {
    pub(crate) site: Site,
    pub(crate) broker: Broker,
    pub(crate) config: Config,
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let site = Site::new();
        let mut config = site.config();
        change(&mut config);
        let broker = Broker::start(&config).await.unwrap();
        config.listen = broker.addresses().to_vec();
        Self { site, broker, config }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.broker.addresses()[0]
    }

    pub(crate) fn client(&self, cluster: &Cluster) -> Client {
        self.site.client(cluster, self.address())
    }

    /// Stops and starts again, on the same address.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    pub(crate) async fn restart_after(self, between: impl FnOnce(&Config)) -> Self {
        let Self { site, broker, config } = self;
        assert!(broker.stop(Duration::from_secs(10)).await, "did not stop in time");
        between(&config);
        let broker = Broker::start(&config).await.unwrap();
        Self { site, broker, config }
    }

    /// The value of a metric, labels included in the name; 0 if it is not there.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        metric(&self.broker.metrics.encode(), name)
    }
}

pub(crate) fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// Waits until something holds, at most 15 s.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 15 s: {what}");
}

/// The next event, at most 30 s away.
pub(crate) async fn next(watch: &mut Watch) -> Event {
    tokio::time::timeout(Duration::from_secs(30), watch.next())
        .await
        .expect("no event")
        .expect("the watch ended")
}

/// The broker's events up to the next bookmark, without those of the connection.
pub(crate) async fn to_bookmark(watch: &mut Watch) -> (bool, Vec<Entry>, Token) {
    let (mut reset, mut entries) = (false, Vec::new());
    loop {
        match next(watch).await {
            Event::Event(WatchEvent::Reset) => {
                reset = true;
                entries.clear();
            }
            Event::Event(WatchEvent::Entry(entry)) => entries.push(entry),
            Event::Event(WatchEvent::Bookmark { token }) => return (reset, entries, token),
            Event::Event(WatchEvent::Resync) | Event::Connected { .. } | Event::Disconnected { .. } => {}
        }
    }
}

/// The next entry, whatever comes before it.
pub(crate) async fn next_entry(watch: &mut Watch) -> Entry {
    loop {
        if let Event::Event(WatchEvent::Entry(entry)) = next(watch).await {
            return entry;
        }
    }
}

/// Node and version of an entry.
pub(crate) fn claim(entry: &Entry) -> (String, u64) {
    let (id, version) = entry.signed.claim().unwrap();
    (id.to_string(), version.sequence)
}

/// GET over plain HTTP: status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
