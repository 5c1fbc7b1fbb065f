//! Whatever comes to the port, and whatever a broker says to a client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podspan_broker::client::{Client, ClientConfig, Error, Event, Timing};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Reads to the end; how it ends does not matter, only that it does.
async fn read_out(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("the broker keeps the connection");
    bytes
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

fn many_failures(config: &mut podspan_broker::server::Config) {
    config.limits.failures_burst = 10_000;
}

#[tokio::test]
async fn random_and_truncated_bytes_are_counted_and_harm_nobody() {
    let broker = Running::with(many_failures).await;
    let alpha = cluster("alpha", 1);
    let client = broker.client(&alpha);
    let mut watch = client.watch(None);
    to_bookmark(&mut watch).await;
    // A real ClientHello, to be cut short and bent.
    let hello = {
        let name = ServerName::from(std::net::IpAddr::from(broker.site.address));
        let mut tls = rustls::ClientConnection::new(broker.site.tls(None), name).unwrap();
        let mut bytes = Vec::new();
        tls.write_tls(&mut bytes).unwrap();
        bytes
    };
    let mut sent = 0;
    for round in 0..60 {
        let bytes = match round % 3 {
            0 => random(1 + round * 40),
            1 => hello[..hello.len() * round / 60].to_vec(),
            _ => {
                let mut bent = hello.clone();
                for byte in random(8) {
                    let at = usize::from(byte) * bent.len() / 256;
                    bent[at] ^= byte | 1;
                }
                bent
            }
        };
        let mut stream = TcpStream::connect(broker.address()).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        read_out(&mut stream).await;
        sent += 1;
    }
    until("every one is counted", || {
        broker.metric("podspan_broker_connections_refused_total{kind=\"handshake\"}") == f64::from(sent)
    })
    .await;
    client.put(&alpha.active("n1", 1)).await.expect("it still serves");
    assert_eq!(claim(&next_entry(&mut watch).await).1, 1, "the watch was not disturbed");
}

#[tokio::test]
async fn random_bytes_within_tls_are_counted() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let site = &broker.site;
    for bytes in [
        random(300),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"\r\n\r\n\r\nPUT".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ] {
        let mut stream = site.connect(&alpha, broker.address()).await;
        stream.write_all(&bytes).await.unwrap();
        let _ = stream.shutdown().await;
        read_out(&mut stream).await;
    }
    // A request whose body never comes to its end.
    let mut stream = site.connect(&alpha, broker.address()).await;
    let grant = alpha.grant_header();
    let head = format!(
        "PUT /v1/records/alpha/n1 HTTP/1.1\r\nhost: x\r\npodspan-grant: {grant}\r\ncontent-length: 5000\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let answer = String::from_utf8(read_out(&mut stream).await).unwrap();
    assert!(answer.contains(" 408 "), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert!(broker.metric("podspan_broker_connections_refused_total{kind=\"malformed-http\"}") >= 3.0);
    broker.client(&alpha).list().await.expect("it still serves");
}

#[tokio::test]
async fn clients_without_a_cluster_key_are_refused() {
    let broker = Running::start().await;
    let ecdsa = rcgen::KeyPair::generate().unwrap();
    for (identity, what) in [(None, "no certificate"), (Some(&ecdsa), "a key that is not Ed25519")] {
        let stream = TcpStream::connect(broker.address()).await.unwrap();
        let name = ServerName::from(std::net::IpAddr::from(broker.site.address));
        let connector = tokio_rustls::TlsConnector::from(broker.site.tls(identity));
        // In TLS 1.3 the client has done before the server refuses: the refusal shows on reading.
        let refused = match connector.connect(name, stream).await {
            Err(_) => true,
            Ok(mut stream) => {
                let _ = stream.write_all(b"GET /v1/records HTTP/1.1\r\nhost: x\r\n\r\n").await;
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.is_err() && bytes.is_empty()
            }
        };
        assert!(refused, "{what} was let in");
    }
    until("both are counted", || {
        broker.metric("podspan_broker_connections_refused_total{kind=\"handshake\"}") == 2.0
    })
    .await;
}

#[tokio::test]
async fn an_address_that_keeps_failing_is_turned_away_for_a_while() {
    let broker = Running::with(|config| {
        config.limits.failures_per_second = 2;
        config.limits.failures_burst = 5;
    })
    .await;
    let alpha = cluster("alpha", 1);
    for _ in 0..12 {
        let mut stream = TcpStream::connect(broker.address()).await.unwrap();
        let _ = stream.write_all(&random(100)).await;
        let _ = stream.shutdown().await;
        read_out(&mut stream).await;
    }
    assert!(broker.metric("podspan_broker_connections_refused_total{kind=\"turned-away\"}") >= 3.0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.client(&alpha).list().await.expect("after a pause it may come again");
}

#[tokio::test]
async fn connections_are_limited_by_address() {
    let broker = Running::with(|config| config.limits.connections_per_address = 2).await;
    let alpha = cluster("alpha", 1);
    let first = broker.site.connect(&alpha, broker.address()).await;
    let second = broker.site.connect(&alpha, broker.address()).await;
    let mut third = TcpStream::connect(broker.address()).await.unwrap();
    assert!(read_out(&mut third).await.is_empty());
    assert_eq!(
        broker.metric("podspan_broker_connections_refused_total{kind=\"too-many-from-address\"}"),
        1.0
    );
    drop((first, second));
    until("the places are free again", || broker.metric("podspan_broker_connections") == 0.0).await;
    broker.client(&alpha).list().await.unwrap();
}

#[tokio::test]
async fn a_client_trusts_no_other_authority_and_no_other_name() {
    let (broker, other) = (Running::start().await, Site::new());
    let alpha = cluster("alpha", 1);
    let config = ClientConfig {
        broker_ca: other.authority.clone(),
        ..broker.site.client_config(&alpha, &[broker.address()])
    };
    let error = Client::new(config).unwrap().list().await.unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { why, .. } if why.contains("UnknownIssuer") || why.contains("certificate")),
        "{error:?}"
    );
    // The certificate holds for localhost and the site's address; the same broker by another address.
    let mut config = broker.site.config();
    config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    config.data = broker.site.path("data-2");
    let elsewhere = podspan_broker::server::Broker::start(&config).await.unwrap();
    let address = elsewhere.addresses()[0];
    let error = broker.site.client(&alpha, address).list().await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { .. }), "{error:?}");
    // By name it is good.
    let by_name = ClientConfig {
        brokers: vec![format!("https://localhost:{}", address.port())],
        ..broker.site.client_config(&alpha, &[])
    };
    Client::new(by_name).unwrap().list().await.unwrap();
    assert!(elsewhere.stop(Duration::from_secs(10)).await);
}

/// A server with the site's certificate that answers every connection's first request with what `answer`
/// says, then holds the connection open for as long as the client does.
async fn liar(site: &Site, answer: impl Fn() -> Vec<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let chain = vec![CertificateDer::from_pem_file(site.path("broker.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(site.path("broker.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind((site.address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 16 * 1024];
                let _ = stream.read(&mut request).await;
                for part in answer() {
                    if stream.write_all(&part).await.is_err() {
                        return;
                    }
                }
                let _ = stream.flush().await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    address
}

fn impatient() -> Timing {
    Timing {
        request: Duration::from_millis(1500),
        list: Duration::from_millis(2500),
        silence: Duration::from_millis(700),
        ..Timing::default()
    }
}

fn client_of(site: &Site, liar: SocketAddr) -> Client {
    let config = site.client_config(&cluster("alpha", 1), &[liar]);
    Client::new(ClientConfig { timing: impatient(), ..config }).unwrap()
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_lying_broker_gets_a_clear_error_from_requests() {
    let site = Site::new();
    type Parts = fn() -> Vec<Vec<u8>>;
    let cases: [(&str, Parts); 7] = [
        ("garbage", || vec![random(3000)]),
        ("no JSON", || vec![ok("<html>hello</html>")]),
        ("other JSON", || vec![ok("{\"token\":\"zz\",\"entries\":[]}")]),
        ("endless head", || {
            vec![b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: yyyyyyyyyyyyyyyy\r\n".repeat(100_000)]
        }),
        ("a huge announced length", || {
            vec![b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_vec()]
        }),
        ("silence", Vec::new),
        ("a torn body", || vec![b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{".to_vec()]),
    ];
    for (what, parts) in cases {
        let address = liar(&site, parts).await;
        let begun = Instant::now();
        let error = client_of(&site, address).list().await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. } | Error::Unreachable { .. }), "{what}: {error:?}");
        assert!(error.to_string().contains(&address.to_string()), "{what}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
    }
    // An error page that is not the API's, and a wait of a thousand years.
    let address = liar(&site, || vec![b"HTTP/1.1 418 No\r\ncontent-length: 6\r\n\r\nteapot".to_vec()]).await;
    let error = client_of(&site, address).list().await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { status: 418, error } if error.message == "teapot"),
        "{error:?}"
    );
    let address = liar(&site, || {
        vec![b"HTTP/1.1 429 No\r\nretry-after: 31536000000\r\ncontent-length: 0\r\n\r\n".to_vec()]
    })
    .await;
    let error = client_of(&site, address).list().await.unwrap_err();
    assert_eq!(error, Error::RateLimited { after: Duration::from_secs(3600) });
}

#[tokio::test]
async fn an_endless_list_is_bounded() {
    let site = Site::new();
    let address = liar(&site, || {
        let mut parts = vec![b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec()];
        let chunk = [b"100000\r\n".as_slice(), &[b' '; 0x10_0000], b"\r\n"].concat();
        parts.extend(std::iter::repeat_n(chunk, 80));
        parts
    })
    .await;
    let config = site.client_config(&cluster("alpha", 1), &[address]);
    let error = Client::new(config).unwrap().list().await.unwrap_err();
    assert!(error.to_string().contains("larger than 67108864 bytes"), "{error}");
}

const WATCH_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

#[tokio::test]
async fn a_lying_broker_is_left_by_watches_and_a_good_one_is_found() {
    type Parts = fn() -> Vec<Vec<u8>>;
    let cases: [(&str, Parts); 6] = [
        ("no event", || vec![WATCH_HEAD.to_vec(), chunk(&random(500)), chunk(b"\n")]),
        ("more than", || vec![WATCH_HEAD.to_vec(), chunk(&[b'x'; 400_000])]),
        ("begin with a reset", || {
            vec![WATCH_HEAD.to_vec(), chunk(b"{\"event\":\"bookmark\",\"token\":\"ab:1\"}\n")]
        }),
        ("no event", || {
            vec![
                WATCH_HEAD.to_vec(),
                chunk(b"{\"event\":\"reset\"}\n{\"event\":\"bookmark\",\"token\":\"AB\"}\n"),
            ]
        }),
        ("nothing was heard", || vec![WATCH_HEAD.to_vec(), chunk(b"{\"event\":\"reset\"}\n")]),
        ("the broker ended it", || {
            vec![WATCH_HEAD.to_vec(), chunk(b"{\"event\":\"reset\"}\n"), b"0\r\n\r\n".to_vec()]
        }),
    ];
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    broker.client(&alpha).put(&alpha.active("n1", 1)).await.unwrap();
    for (says, parts) in cases {
        let address = liar(&broker.site, parts).await;
        let mut watch = client_of(&broker.site, address).watch(None);
        let why = loop {
            if let Event::Disconnected { why, .. } = next(&mut watch).await {
                break why.to_string();
            }
        };
        assert!(why.contains(says), "{says}: {why}");
        // With a good one beside it the watch comes to its entries all the same.
        let config = broker.site.client_config(&alpha, &[address, broker.address()]);
        let client = Client::new(ClientConfig { timing: impatient(), ..config }).unwrap();
        assert_eq!(claim(&next_entry(&mut client.watch(None)).await).1, 1, "{says}");
    }
}

#[tokio::test]
async fn a_flood_of_entries_without_a_bookmark_is_cut_off() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let signed = serde_json::to_string(&alpha.active("n1", 1)).unwrap();
    let line = format!("{{\"event\":\"entry\",\"revision\":1,\"lease\":\"fresh\",\"signed\":{signed}}}\n");
    let many = chunk(line.repeat(1000).as_bytes());
    let address = liar(&broker.site, move || {
        let mut parts = vec![WATCH_HEAD.to_vec(), chunk(b"{\"event\":\"reset\"}\n")];
        parts.extend(std::iter::repeat_n(many.clone(), 101));
        parts
    })
    .await;
    let mut watch = client_of(&broker.site, address).watch(None);
    let mut entries = 0;
    let why = loop {
        match next(&mut watch).await {
            Event::Disconnected { why, .. } => break why,
            Event::Event(_) => entries += 1,
            Event::Connected { .. } => {}
        }
    };
    assert!(why.to_string().contains("more than 100000 entries"), "{why}");
    assert_eq!(entries, 100_001, "the reset, and what was still taken");
}

#[tokio::test]
async fn tls_is_1_3_with_a_hybrid_key_exchange() {
    let broker = Running::start().await;
    let stream = broker.site.connect(&cluster("alpha", 1), broker.address()).await;
    let tls = stream.get_ref().1;
    assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = tls.negotiated_key_exchange_group().map(|group| group.name());
    assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
    // A client that knows only TLS 1.2.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let stream = TcpStream::connect(broker.address()).await.unwrap();
    let name = ServerName::from(std::net::IpAddr::from(broker.site.address));
    let error = tokio_rustls::TlsConnector::from(Arc::new(old)).connect(name, stream).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("version"), "{error}");
}

/// Shows one key's certificate and signs with another: what a thief of a certificate could do.
#[derive(Debug)]
struct Thief(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Thief {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_proves_nothing() {
    let broker = Running::start().await;
    let alpha = cluster("alpha", 1);
    let pair = |cluster: &Cluster| {
        let pkcs8 = cluster.key.to_pkcs8();
        let der = rustls::pki_types::PrivatePkcs8KeyDer::from(pkcs8.as_slice()).clone_key();
        (rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).unwrap(), der)
    };
    let (shown, shown_der) = pair(&alpha);
    let (_, signing) = pair(&cluster("mallory", 66));
    let certificate = rcgen::CertificateParams::default().self_signed(&shown).unwrap();
    for (der, good) in [(shown_der, true), (signing, false)] {
        let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&der).unwrap();
        let certified = rustls::sign::CertifiedKey::new(vec![certificate.der().clone()], key);
        let mut tls = Arc::unwrap_or_clone(broker.site.tls(None));
        tls.client_auth_cert_resolver = Arc::new(Thief(Arc::new(certified)));
        let stream = TcpStream::connect(broker.address()).await.unwrap();
        let name = ServerName::from(std::net::IpAddr::from(broker.site.address));
        let mut answer = Vec::new();
        if let Ok(mut stream) = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await {
            let request = format!(
                "GET /v1/records HTTP/1.1\r\nhost: x\r\nconnection: close\r\npodspan-grant: {}\r\n\r\n",
                alpha.grant_header()
            );
            let _ = stream.write_all(request.as_bytes()).await;
            let _ = stream.read_to_end(&mut answer).await;
        }
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.contains("200 OK"), good, "{answer}");
        assert_eq!(answer.is_empty(), !good, "{answer}");
    }
}
