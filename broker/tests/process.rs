//! The binary itself: killed, stopped, misconfigured.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use podspan_broker::client::{Client, ClientConfig, Error, Event, Timing};
use podspan_broker::server::Config;
use podspan_wire::api::{Token, WatchEvent};
use podspan_wire::{NodeId, Version};
use support::*;

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podspan-broker"));
    command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command
}

/// The binary on its site; killed when dropped.
struct Process {
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A site with a configuration file, and the address that it names.
fn configured() -> (Site, SocketAddr) {
    let site = Site::new();
    // The address is this test's alone, so a port that is free now stays free.
    let address = std::net::TcpListener::bind((site.address, 0)).unwrap().local_addr().unwrap();
    let text = format!(
        "listen = [\"{address}\"]\ncluster-set = \"{}\"\ncertificate = \"broker.crt\"\n\
         private-key = \"broker.key\"\ndata = \"data\"\n",
        cluster_set()
    );
    std::fs::write(site.path("broker.toml"), text).unwrap();
    (site, address)
}

fn start(site: &Site) -> Process {
    let log = std::fs::OpenOptions::new().append(true).create(true).open(site.path("log")).unwrap();
    let child = binary()
        .args(["--config", site.path("broker.toml").to_str().unwrap(), "--log", "json"])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    Process { child }
}

fn hasty() -> Timing {
    Timing {
        connect: Duration::from_millis(500),
        request: Duration::from_secs(5),
        longest_pause: Duration::from_millis(500),
        ..Timing::default()
    }
}

fn hasty_client(site: &Site, cluster: &Cluster, address: SocketAddr) -> Client {
    let config = site.client_config(cluster, &[address]);
    Client::new(ClientConfig { timing: hasty(), ..config }).unwrap()
}

async fn until_it_answers(client: &Client) {
    let begun = Instant::now();
    while let Err(error) = client.list().await {
        assert!(begun.elapsed() < Duration::from_secs(15), "the broker does not answer: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a watch was told, over all its connections.
#[derive(Default)]
struct Watched {
    nodes: BTreeMap<NodeId, Version>,
    resets: usize,
    connections: usize,
    last: Option<Token>,
}

/// The broker is killed in the middle of concurrent writes, again and again: every acknowledged record is
/// there afterwards, and a watch that was begun once sees the last state of everything without beginning
/// anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_in_the_middle_of_writes_loses_nothing_that_was_acknowledged() {
    const ROUNDS: u64 = 24;
    const WRITERS: usize = 6;
    let (site, address) = configured();
    let alpha = cluster("alpha", 1);
    let reader = hasty_client(&site, &alpha, address);
    let mut process = start(&site);
    until_it_answers(&reader).await;

    let watched = Arc::new(Mutex::new(Watched::default()));
    let mut watch = reader.watch(None);
    let into = watched.clone();
    let watcher = tokio::spawn(async move {
        while let Some(event) = watch.next().await {
            let mut watched = into.lock().unwrap();
            match event {
                Event::Connected { .. } => watched.connections += 1,
                Event::Event(WatchEvent::Reset) => watched.resets += 1,
                Event::Event(WatchEvent::Entry(entry)) => {
                    let (id, version) = entry.signed.claim().unwrap();
                    watched.nodes.insert(id, version);
                }
                Event::Event(WatchEvent::Bookmark { token }) => {
                    if let Some(last) = &watched.last {
                        assert_eq!(last.store, token.store);
                        assert!(last.revision <= token.revision, "a revision went back");
                    }
                    watched.last = Some(token);
                }
                Event::Event(WatchEvent::Resync) | Event::Disconnected { .. } => {}
            }
        }
    });

    // Each writer counts its node's versions up; what was acknowledged is noted.
    let acknowledged = Arc::new(Mutex::new(BTreeMap::<NodeId, (Version, u64)>::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = hasty_client(&site, &alpha, address);
        let (alpha, acknowledged, stop) = (alpha.clone(), acknowledged.clone(), stop.clone());
        writers.spawn(async move {
            let node = format!("n{writer}");
            let mut sequence = 0;
            while !stop.load(Ordering::SeqCst) {
                sequence += 1;
                let signed = alpha.active(&node, sequence);
                // Until it is acknowledged, the very same record again: it may have got there.
                while !stop.load(Ordering::SeqCst) {
                    match client.put(&signed).await {
                        Ok(answer) => {
                            let mut noted = acknowledged.lock().unwrap();
                            noted.insert(alpha.id(&node), (version(sequence), answer.revision));
                            break;
                        }
                        Err(Error::Conflict { stored, .. }) => panic!("{node}: {stored} against {sequence}"),
                        Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                    }
                }
            }
        });
    }
    for round in 0..ROUNDS {
        tokio::time::sleep(Duration::from_millis(120 + 13 * (round % 7))).await;
        let connections = watched.lock().unwrap().connections;
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        // Noted before the broker is there again: all of this was acknowledged by the one that is dead.
        let noted = acknowledged.lock().unwrap().clone();
        process = start(&site);
        until_it_answers(&reader).await;
        let list = reader.list().await.unwrap();
        let stored: BTreeMap<NodeId, (Version, u64)> = list
            .entries
            .iter()
            .map(|entry| {
                let (id, version) = entry.signed.claim().unwrap();
                (id, (version, entry.revision))
            })
            .collect();
        for (id, (version, revision)) in &noted {
            let (stored_version, stored_revision) = stored.get(id).expect("an acknowledged record is gone");
            assert!(
                stored_version >= version,
                "round {round}: {id} fell back to {stored_version} from {version}"
            );
            assert!(stored_revision >= revision, "round {round}: {id}: a revision was given out twice");
        }
        until("the watch is back by itself", || watched.lock().unwrap().connections > connections).await;
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    let last = reader.list().await.unwrap();
    until("the watch knows the last state", || {
        let watched = watched.lock().unwrap();
        last.entries.iter().all(|entry| {
            let (id, version) = entry.signed.claim().unwrap();
            watched.nodes.get(&id) == Some(&version)
        })
    })
    .await;
    watcher.abort();
    let watched = watched.lock().unwrap();
    assert_eq!(watched.resets, 1, "it resumed and never began anew");
    let writes: u64 = acknowledged.lock().unwrap().values().map(|(version, _)| version.sequence).sum();
    assert!(writes > ROUNDS * 10, "{writes} writes are too few to show anything");
    println!(
        "{ROUNDS} kills, {writes} writes acknowledged, {} connections of the watch",
        watched.connections
    );
    // What it logged all that time holds no key and is JSON.
    let log = std::fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("\"message\":\"store is open\""), "{log}");
    assert!(!log.contains(alpha.key.to_secret_text().as_str()) && !log.contains("PRIVATE"));
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|why| panic!("{why}: {line}"));
    }
}

#[tokio::test]
async fn sigterm_ends_watches_cleanly_finishes_requests_and_exits_0() {
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
        let (site, address) = configured();
        let alpha = cluster("alpha", 1);
        let mut process = start(&site);
        let client = hasty_client(&site, &alpha, address);
        until_it_answers(&client).await;
        let mut watch = client.watch(None);
        to_bookmark(&mut watch).await;
        client.put(&alpha.active("n1", 1)).await.unwrap();
        // A request whose second half comes after the signal.
        let body = serde_json::to_vec(&alpha.active("n2", 1)).unwrap();
        let (first, second) = body.split_at(body.len() / 2);
        let head = format!(
            "PUT /v1/records/alpha/n2 HTTP/1.1\r\nhost: x\r\npodspan-grant: {}\r\ncontent-length: {}\r\n\r\n",
            alpha.grant_header(),
            body.len()
        );
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut half = site.connect(&alpha, address).await;
        half.write_all(&[head.as_bytes(), first].concat()).await.unwrap();
        half.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;

        let begun = Instant::now();
        let pid = nix::unistd::Pid::from_raw(process.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
        let why = loop {
            if let Event::Disconnected { why, .. } = next(&mut watch).await {
                break why;
            }
        };
        assert!(why.to_string().contains("the broker ended it"), "{why}");
        half.write_all(second).await.unwrap();
        let mut answer = Vec::new();
        let _ = half.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("200 OK") && answer.contains("\"revision\":2"), "{answer}");
        let status = tokio::task::spawn_blocking(move || process.child.wait().unwrap()).await.unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert!(client.list().await.is_err());
    }
}

#[tokio::test]
async fn a_client_that_never_finishes_does_not_hold_up_the_end() {
    let broker = Running::with(|config| config.health_listen = Some((config.listen[0].ip(), 0).into())).await;
    let health = broker.broker.health_address().unwrap();
    assert_eq!(get(health, "/readyz").await, (200, "ready\n".to_owned()));
    let alpha = cluster("alpha", 1);
    let mut stuck = broker.site.connect(&alpha, broker.address()).await;
    use tokio::io::AsyncWriteExt as _;
    let grant = alpha.grant_header();
    let head = format!(
        "PUT /v1/records/alpha/n1 HTTP/1.1\r\nhost: x\r\npodspan-grant: {grant}\r\ncontent-length: 100\r\n\r\n"
    );
    stuck.write_all(head.as_bytes()).await.unwrap();
    stuck.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    let stopping = tokio::spawn(broker.broker.stop(Duration::from_secs(1)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (status, why) = get(health, "/readyz").await;
    assert_eq!(status, 503);
    assert!(why.contains("draining"), "{why}");
    assert_eq!(get(health, "/healthz").await.0, 200);
    assert!(!stopping.await.unwrap(), "it was broken off");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

fn run(arguments: &[&str]) -> Output {
    binary().args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn check_says_whether_all_is_well() {
    let (site, _) = configured();
    let file = site.path("broker.toml");
    let file = file.to_str().unwrap();
    let output = run(&["--config", file, "--check"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{file}: ok\n"));
    assert!(!site.path("data").exists(), "a check makes nothing");

    let key = site.path("broker.key");
    set_mode(&key, 0o644);
    let output = run(&["--config", file, "--check"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "podspan-broker: private-key {0}: others than its owner may use it (mode 0644): run `chmod 600 {0}`\n",
        key.display()
    );
    assert_eq!(stderr(&output), expected);
    set_mode(&key, 0o600);
    std::fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let output = run(&["--config", file, "--check"]);
    assert!(
        stderr(&output).contains("cannot be used"),
        "another key than the certificate's: {}",
        stderr(&output)
    );
    std::fs::write(&key, "secret nonsense").unwrap();
    let output = run(&["--config", file, "--check"]);
    assert!(!stderr(&output).contains("nonsense") && !output.status.success(), "{}", stderr(&output));
    std::fs::remove_file(&key).unwrap();
    assert!(stderr(&run(&["--config", file, "--check"])).contains("No such file"));
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    let (site, address) = configured();
    let file = site.path("broker.toml");
    let file = file.to_str().unwrap();
    let taken = std::net::TcpListener::bind(address).unwrap();
    let output = run(&["--config", file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("cannot listen on {address} (listen)")), "{}", stderr(&output));
    drop(taken);
    std::fs::create_dir(site.path("data")).unwrap();
    std::fs::write(site.path("data/records.redb"), "this is no store").unwrap();
    let output = run(&["--config", file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("put a backup in its place"), "{}", stderr(&output));
    let output = run(&["--config", "/nowhere/broker.toml"]);
    assert!(
        stderr(&output).contains("/nowhere/broker.toml: 1 error\n  cannot read it"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn every_error_of_a_configuration_is_told_at_once() {
    let text = r#"
listen = ["192.0.2.1", "[::1]:7443", 7443, "[::1]:7443"]
cluster-set = "c2hvcnQ="
certficate = "a.crt"
private-key = ""
data = 7
lease-seconds = 4
health-listen = "localhost:9000"
colour = "blue"

[limits]
records = "many"
requests-per-seconds = 5
watchers = 0
"#;
    let error = Config::parse(text, Path::new("/etc/podspan/broker.toml")).unwrap_err();
    let expected = r#"/etc/podspan/broker.toml: 13 errors
  line 2: listen: "192.0.2.1" is not ADDRESS:PORT, such as "0.0.0.0:7443" or "[::1]:7443"
  line 2: listen: expected a value in quotes, found a number
  line 3: cluster-set: "c2hvcnQ=" cannot be used: not a public key: expected 32 bytes in base64
  line 4: certficate: is not a setting: did you mean "certificate"?
  line 5: private-key: a path is needed here
  line 6: data: expected a value in quotes, found a number
  line 7: lease-seconds: 4 is out of bounds: use 5 to 3600
  line 8: health-listen: "localhost:9000" is not ADDRESS:PORT, such as "0.0.0.0:7443" or "[::1]:7443"
  line 9: colour: is not a setting; there are certificate, cluster-set, data, health-listen, lease-seconds, limits, listen, private-key
  line 12: limits.records: expected a whole number from 1 to 10000000, found a string
  line 13: limits.requests-per-seconds: is not a setting: did you mean "requests-per-second"?
  line 14: limits.watchers: 0 is out of bounds: use 1 to 10000000
  certificate: is missing: the PEM file of the TLS certificate"#;
    assert_eq!(error.to_string(), expected);

    let error = Config::parse("listen = [\ncluster-set = \n\x00", Path::new("x.toml")).unwrap_err();
    assert!(!error.faults.is_empty() && error.faults.iter().all(|fault| fault.line > 0), "{error}");
    let error = Config::parse("", Path::new("x.toml")).unwrap_err();
    assert_eq!(error.faults.len(), 5, "{error}");
    assert!(error.faults.iter().all(|fault| fault.message.starts_with("is missing: ")), "{error}");
}

#[test]
fn a_configuration_is_read_whole() {
    let text = format!(
        "listen = [\"0.0.0.0:7443\", \"[::]:7443\"]\ncluster-set = \"{}\"\ncertificate = \"tls/broker.crt\"\n\
         private-key = \"/etc/keys/broker.key\"\ndata = \"data\"\nlease-seconds = 45\n\
         health-listen = \"127.0.0.1:9443\"\n[limits]\nrecords = 1_000\nrequests-burst = 0x10\n",
        cluster_set()
    );
    let config = Config::parse(&text, Path::new("/etc/podspan/broker.toml")).unwrap();
    assert_eq!(config.certificate, Path::new("/etc/podspan/tls/broker.crt"));
    assert_eq!(config.private_key, Path::new("/etc/keys/broker.key"));
    assert_eq!(config.data, Path::new("/etc/podspan/data"));
    assert_eq!(config.lease, Duration::from_secs(45));
    assert_eq!(config.health_listen, Some(([127, 0, 0, 1], 9443).into()));
    assert_eq!((config.limits.records, config.limits.requests_burst), (1000, 16));
    assert_eq!(config.limits.watchers, podspan_broker::server::Limits::default().watchers);
}

#[test]
fn random_configurations_never_panic() {
    for seed in 0..2000 {
        let mut bytes = vec![0; 1 + seed % 97];
        getrandom::fill(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(Config::parse(&text, Path::new("x.toml")).is_err());
        let ascii: String =
            bytes.iter().map(|byte| char::from(b"[]=\"'#\n ,.a1{}"[usize::from(*byte) % 14])).collect();
        assert!(Config::parse(&ascii, Path::new("x.toml")).is_err());
    }
    let mut usage = String::new();
    binary()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut usage)
        .unwrap();
    assert!(usage.contains("--config"), "{usage}");
}
