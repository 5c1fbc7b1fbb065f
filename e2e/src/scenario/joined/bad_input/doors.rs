//! Garbage, slow clients and unreasonable requests at the agents' health port and at the broker.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::calm::{Calm, WAYS};
use super::tls::{Client, status};
use crate::random::Random;
use crate::scenario::Findings;
use crate::topology::BROKER_PORT;
use crate::world::World;

/// Connections that say nothing, or half of something.
const IDLE: usize = 400;

/// How long a question of the kubelet's or Prometheus' may wait.
const PROMPT: Duration = Duration::from_secs(1);

pub(super) fn noise(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let calm = Calm::watch(world, &WAYS, Duration::from_secs(22))?;
    let node = world.node("beta-2")?.clone();
    let health: SocketAddr = ([127, 0, 0, 1], 9840).into();
    node.netns().enter(|| health_port(health, &mut findings))?;
    // The agent itself is as well as before.
    let begin = Instant::now();
    world.agent_status(&node)?;
    findings.require(begin.elapsed() < PROMPT, || format!("status took {:?}", begin.elapsed()));

    let broker = SocketAddr::new(world.topology.broker.address.v4, BROKER_PORT);
    // Requests of a cluster's from a node; noise from a stranger, who may be turned away after a while.
    let member = world.node("alpha-3")?.netns();
    member.enter(|| requests(broker, &mut findings))?;
    let stranger = world.topology.internet.netns();
    let kept = stranger.enter(|| broker_noise(broker, &mut findings))?;
    member.enter(|| listed(broker, "with idle strangers", &mut findings))?;
    drop(kept);
    // Every agent goes on to be heard there.
    let now = podspan_wire::UnixTime::from(std::time::SystemTime::now());
    for node in world.topology.nodes() {
        let mut last = None;
        let published = super::wait_for(Duration::from_secs(14), || {
            let broker = world.agent_status(node)?.broker;
            last = broker.last_published;
            Ok(broker.connected.is_some() && last.is_some_and(|last| last > now))
        })?;
        findings.require(published, || format!("{}: its lease was last renewed at {last:?}", node.name));
    }
    calm.check(world, &[], &mut findings)?;
    findings.conclude(10 + 12 + 7 + 24)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))
        .with_context(|| format!("nothing listens at {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Says these bytes and gives the status of the answer, or none if there was no answer.
fn say(address: SocketAddr, bytes: &[u8]) -> Result<Option<u16>> {
    let mut stream = connect(address)?;
    stream.write_all(bytes).ok();
    stream.shutdown(std::net::Shutdown::Write).ok();
    Ok(status(&mut stream))
}

/// The three pages, each without delay.
fn pages(address: SocketAddr, when: &str, findings: &mut Findings) {
    for page in ["/healthz", "/readyz", "/metrics"] {
        let begin = Instant::now();
        let request = format!("GET {page} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        let answer = connect(address).and_then(|mut stream| {
            stream.write_all(request.as_bytes())?;
            Ok(status(&mut stream))
        });
        let good = matches!(answer, Ok(Some(200))) && begin.elapsed() < PROMPT;
        findings.require(good, || format!("{when}: {page} after {:?}: {answer:?}", begin.elapsed()));
    }
}

fn health_port(address: SocketAddr, findings: &mut Findings) -> Result<()> {
    let mut random = Random::new(11);
    pages(address, "before", findings);
    let huge = format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2_000_000));
    let many = format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(2000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1_000_000));
    for (what, bytes, expected) in [
        ("nothing", Vec::new(), None),
        ("random bytes", random.bytes(4000), None),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), None),
        ("another path", b"GET /etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Some(404)),
        ("another method", b"DELETE /healthz HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Some(405)),
        ("a huge header", huge.into_bytes(), Some(431)),
        ("many headers", many.into_bytes(), Some(431)),
        ("a long path", long.into_bytes(), Some(414)),
    ] {
        let answer = say(address, &bytes)?;
        // Where HTTP itself is broken the server may answer 400, or break off while it is still spoken to.
        let good = answer == expected
            || (answer.is_none_or(|code| (400..500).contains(&code)) && expected != Some(404));
        findings.require(good, || format!("health port: {what}: {expected:?} expected, saw {answer:?}"));
    }
    let idle = idle(address, b"GET /healthz HTTP/1.1\r\nHost: a")?;
    pages(address, "with idle clients", findings);
    drop(idle);
    pages(address, "after all", findings);
    Ok(())
}

/// Takes places and holds them; every other one with the beginning of something.
fn idle(address: SocketAddr, beginning: &[u8]) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for number in 0..IDLE {
        let mut stream = connect(address)?;
        if number % 2 == 0 {
            // One that is let go at once is as good.
            stream.write_all(beginning).ok();
        }
        streams.push(stream);
    }
    Ok(streams)
}

/// A member's list of all records.
fn listed(address: SocketAddr, when: &str, findings: &mut Findings) -> Result<()> {
    let begin = Instant::now();
    let client = Client::new(address)?;
    let request = format!(
        "GET /v1/records HTTP/1.1\r\nHost: broker\r\npodspan-grant: {}\r\nConnection: close\r\n\r\n",
        client.grant
    );
    let answer = client.say(request.as_bytes());
    let good = matches!(answer, Ok(Some(200))) && begin.elapsed() < PROMPT;
    findings.require(good, || format!("{when}: the list after {:?}: {answer:?}", begin.elapsed()));
    Ok(())
}

/// Requests by a cluster with a good key that ask for what there is not.
fn requests(address: SocketAddr, findings: &mut Findings) -> Result<()> {
    listed(address, "before", findings)?;
    let client = Client::new(address)?;
    let grant = &client.grant;
    let head = |line: &str, more: &str| format!("{line} HTTP/1.1\r\nHost: broker\r\n{more}\r\n");
    let granted = |line: &str, more: &str| head(line, &format!("podspan-grant: {grant}\r\n{more}"));
    let put = "PUT /v1/records/alpha/alpha-1";
    let body = |body: &str| granted(put, &format!("Content-Length: {}\r\n", body.len())) + body;
    // Only the beginning is sent: who sends on when all is decided already may miss the answer.
    let oversize = granted(put, "Content-Length: 200000\r\n") + "{";
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("no grant", head("GET /v1/records", ""), &[401]),
        (
            "half a grant",
            head("GET /v1/records", &format!("podspan-grant: {}\r\n", &grant[..grant.len() / 2])),
            &[400, 401, 403],
        ),
        ("another path", granted("GET /v2/records", ""), &[404]),
        ("another method", granted("PATCH /v1/records", "Content-Length: 0\r\n"), &[405]),
        (
            "another cluster's node",
            granted("PUT /v1/records/beta/beta-1", "Content-Length: 2\r\n") + "{}",
            &[400, 403],
        ),
        (
            "a name that is none",
            granted("PUT /v1/records/alpha/Alpha%201", "Content-Length: 2\r\n") + "{}",
            &[400, 404],
        ),
        ("no JSON", body("record"), &[400]),
        ("no record", body("{}"), &[400]),
        ("an oversize body", oversize, &[413]),
        ("a body without end", granted(put, "Content-Length: 50\r\n") + "{", &[400, 408]),
        ("a token that is none", granted("GET /v1/watch?from=yesterday", ""), &[400]),
        ("a huge header", head("GET /v1/records", &format!("X: {}\r\n", "x".repeat(300_000))), &[431]),
        ("many headers", head("GET /v1/records", &"A: b\r\n".repeat(500)), &[431]),
        ("no HTTP", "\0\u{1}\u{2} broker, please\r\n\r\n".to_owned(), &[400]),
    ];
    for (what, request, expected) in cases {
        // What never ends is broken off, late; nobody waits for it here.
        let answer = client.say(request.as_bytes())?;
        let unfinished = what == "a body without end" || what == "a huge header";
        let good = answer.is_some_and(|code| expected.contains(&code)) || (unfinished && answer.is_none());
        findings.require(good, || format!("broker: {what}: {expected:?} expected, saw {answer:?}"));
    }
    listed(address, "after bad requests", findings)
}

/// What is no TLS, or not all of it, and clients that hold their places.
fn broker_noise(address: SocketAddr, findings: &mut Findings) -> Result<Vec<TcpStream>> {
    const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x5a\x5a";
    let mut random = Random::new(13);
    let kept = idle(address, HELLO)?;
    for round in 0..60 {
        let bytes = match round % 4 {
            0 => random.bytes(1 + round * 40),
            1 => HELLO.to_vec(),
            2 => b"GET /v1/records HTTP/1.1\r\nHost: broker\r\n\r\n".to_vec(),
            _ => [&b"\x16\x03\x01\xff\xff"[..], &random.bytes(3000)].concat(),
        };
        // After so many failures a broker may not even take the connection.
        if let Ok(answer) = say(address, &bytes) {
            findings.require(answer.is_none(), || format!("broker: noise was answered with {answer:?}"));
        }
    }
    Ok(kept)
}
