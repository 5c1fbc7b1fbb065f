//! What is tried one after the other, with a tunnel made anew each time.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

use super::flood::{Flood, STRANGER};
use super::meter::{Message, Meter, Way};
use super::place::{Interop, Pair, ours, theirs};
use crate::command::Cmd;
use crate::netns::Netns;
use crate::probe::{self, Job, Task};
use crate::scenario::Findings;
use crate::signals;
use crate::topology::POD_PORT;
use crate::tunnel::{Kind, Options, PORT, inner, inner_v6, outer, public, secret};

/// Each way; enough for the kernel to hand over large packets.
const BYTES: u64 = 20 << 20;

fn pair(place: &mut Interop, kind: Kind, podspan: &Options, peer: &Options) -> Result<Pair> {
    place.start(kind, [&ours(), &theirs()], podspan, peer)
}

fn waits() -> Options {
    Options { dials: false, ..Options::default() }
}

pub(super) fn handshake(place: &mut Interop, kind: Kind) -> Result<()> {
    let mut findings = Findings::default();
    for podspan_begins in [true, false] {
        let begin = if podspan_begins { "podspan begins" } else { "the peer begins" };
        let meter = Meter::start(&ours(), &outer(1).to_string())?;
        let (podspan, peer) =
            if podspan_begins { (Options::default(), waits()) } else { (waits(), Options::default()) };
        let mut pair = pair(place, kind, &podspan, &peer)?;
        pair.up(podspan_begins).with_context(|| pair.told())?;
        let (out, into) =
            (meter.count(Way::Out, Message::Initiation)?, meter.count(Way::In, Message::Initiation)?);
        let (begun, other) = if podspan_begins { (out, into) } else { (into, out) };
        findings.require(begun >= 1 && other == 0, || {
            format!("{begin}: {out} handshakes were begun by podspan and {into} by the peer")
        });
        findings.expect(
            &format!("{begin}: handshakes that podspan counts"),
            1,
            pair.podspan.counter("handshakes")?,
        );
        transfer(&mut findings, begin)?;
        findings.require(pair.podspan.counter("rx-packets")? > 1000, || {
            format!("{begin}: podspan counts few packets")
        });
        pair.stop()?;
    }
    findings.conclude(2 * 15)
}

/// Data both ways by TCP and UDP, checked byte by byte.
fn transfer(findings: &mut Findings, begin: &str) -> Result<()> {
    for target in [IpAddr::V4(inner(2)), IpAddr::V6(inner_v6(2))] {
        let target = SocketAddr::new(target, POD_PORT);
        let patience = Duration::from_secs(20);
        let jobs = [
            Job::new("to the peer", target, Task::Upload { bytes: BYTES }).timeout(patience),
            Job::new("from the peer", target, Task::Download { bytes: BYTES }).timeout(patience),
            // More than one packet of the tunnel, and a single byte.
            Job::new("large datagrams", target, Task::Udp { bytes: 8000 }),
            Job::new("small datagrams", target, Task::Udp { bytes: 1 }),
        ];
        for (number, outcome) in probe::ask(&ours(), &jobs)?.into_iter().enumerate() {
            let what = format!("{begin}: {} {}", outcome.id, target.ip());
            findings.expect(&what, None, outcome.error);
            if number < 2 {
                findings.expect(&format!("{what}: bytes"), BYTES, outcome.bytes);
            }
        }
    }
    Ok(())
}

pub(super) fn roaming(place: &mut Interop, kind: Kind) -> Result<()> {
    const NEW_PORT: u16 = 51_999;
    let mut findings = Findings::default();
    // It has a socket of its own for each peer otherwise, which keeps the address that it had when it was opened.
    let words = if kind == Kind::Boringtun { vec!["--disable-connected-udp".to_owned()] } else { Vec::new() };
    let peer = Options { words, ..Options::default() };
    let mut pair = pair(place, kind, &Options::default(), &peer)?;
    pair.up(true)?;
    let moved = |findings: &mut Findings, pair: &mut Pair, what: &str, endpoint: &str| -> Result<()> {
        // The side that has moved sends; the other learns from it where it is.
        pair.up(false).with_context(|| format!("{what}: from the peer\n{}", pair.told()))?;
        pair.up(true).with_context(|| format!("{what}: from podspan\n{}", pair.told()))?;
        findings.expect(what, endpoint.to_owned(), pair.podspan.counter_text("endpoint")?);
        Ok(())
    };
    moved(&mut findings, &mut pair, "at first", &format!("{}:{PORT}", outer(2)))?;
    pair.peer.set_port(NEW_PORT)?;
    moved(&mut findings, &mut pair, "the peer has another port", &format!("{}:{NEW_PORT}", outer(2)))?;
    let swap = |netns: &Netns, old: &str, new: &str| {
        // In this order: a second address of a network goes with the first.
        let lines = format!("address del {old}/24 dev eth0\naddress add {new}/24 dev eth0\n");
        Cmd::new("ip").args(["-batch", "-"]).stdin(lines).within(netns).run_ok()
    };
    let (old, new) = (outer(2).to_string(), outer(102).to_string());
    swap(&theirs(), &old, &new)?;
    let result =
        moved(&mut findings, &mut pair, "the peer has another address", &format!("{new}:{NEW_PORT}"));
    if result.is_ok() {
        let (old, new) = (outer(1).to_string(), outer(101).to_string());
        swap(&ours(), &old, &new)?;
        let result = pair.up(true).with_context(|| format!("podspan has another address\n{}", pair.told()));
        let endpoint = pair.peer.peer()?.endpoint.map(|endpoint| endpoint.ip().to_string());
        swap(&ours(), &new, &old)?;
        result?;
        findings.expect("podspan has another address", Some(new), endpoint);
    }
    swap(&theirs(), &new, &old)?;
    result?;
    pair.stop()?;
    findings.conclude(4)
}

pub(super) fn cookie(place: &mut Interop, kind: Kind) -> Result<()> {
    let mut findings = Findings::default();
    // podspan is under load from the first handshake on.
    let meter = Meter::start(&ours(), &outer(1).to_string())?;
    let busy = Options { words: vec!["handshake-limit=0".into()], ..waits() };
    let mut strict = pair(place, kind, &busy, &Options::default())?;
    strict.up(false).with_context(|| strict.told())?;
    let sent = meter.count(Way::Out, Message::Cookie)?;
    findings.require(sent >= 1, || "podspan sent no cookie".into());
    findings.require(strict.podspan.counter("cookies")? >= 1, || "podspan counts no cookie".into());
    let again = meter.count(Way::In, Message::Initiation)?;
    findings.require(again >= 2, || {
        format!("the peer began {again} handshakes: the first should have been refused")
    });
    strict.stop()?;
    // The peer is under load of a stranger.
    let meter = Meter::start(&ours(), &outer(1).to_string())?;
    let address = |verb: &str| {
        Cmd::new("ip")
            .args(["address", verb, &format!("{STRANGER}/24"), "dev", "eth0"])
            .within(&ours())
            .run_ok()
    };
    address("add")?;
    let key = public(secret(2, 0));
    // podspan dials as soon as it starts: the load must be there before.
    let peer = place.end(kind, &theirs(), 2, &waits())?;
    let flood = Flood::start(&ours(), std::net::SocketAddrV4::new(outer(2), PORT), &key)?;
    signals::sleep(Duration::from_secs(1))?;
    let podspan = place.end(Kind::Podspan, &ours(), 1, &Options::default())?;
    let flooded = Pair { podspan, peer };
    let result = flooded.up(true).with_context(|| flooded.told());
    let sent = flood.stop();
    address("del")?;
    result.with_context(|| format!("under a load of {sent} handshakes"))?;
    findings.require(sent > 1000, || format!("the load was {sent} handshakes only"));
    let received = meter.count(Way::In, Message::Cookie)?;
    findings.require(received >= 1, || format!("podspan got no cookie under a load of {sent} handshakes"));
    flooded.stop()?;
    findings.conclude(5)
}

pub(super) fn keepalive(place: &mut Interop, kind: Kind) -> Result<()> {
    const EVERY: u16 = 2;
    const WATCH: Duration = Duration::from_secs(7);
    // Who hears nothing for so long after data begins a handshake (WireGuard paper, section 6.5); a keepalive after
    // 10 s, or podspan's own probes, keep it from that.
    const PASSIVE: Duration = Duration::from_secs(17);
    let mut findings = Findings::default();
    let persistent = Options { keepalive: Some(EVERY), ..Options::default() };
    for (who, way, podspan, peer) in
        [("podspan", Way::Out, &persistent, &waits()), ("the peer", Way::In, &waits(), &persistent)]
    {
        let pair = pair(place, kind, podspan, peer)?;
        pair.up(way == Way::Out)?;
        let meter = Meter::start(&ours(), &outer(1).to_string())?;
        signals::sleep(WATCH)?;
        let seen = meter.count(way, Message::Keepalive)?;
        findings.require((2..=4).contains(&seen), || {
            format!(
                "{who} sent {seen} keepalives in {} s, one each {EVERY} s should have been",
                WATCH.as_secs()
            )
        });
        pair.stop()?;
    }
    // Nobody sends keepalives by itself; one packet that nothing answers goes from the peer to podspan.
    let pair = pair(place, kind, &waits(), &Options::default())?;
    pair.up(false)?;
    let sink =
        ours().enter(|| UdpSocket::bind((inner(1), 0)).context("a socket that hears and says nothing"))?;
    // What belongs to the handshake is over then.
    signals::sleep(Duration::from_secs(1))?;
    let meter = Meter::start(&ours(), &outer(1).to_string())?;
    let sender = theirs().enter(|| UdpSocket::bind((inner(2), 0)).context("a socket"))?;
    sender.send_to(b"no answer", sink.local_addr()?)?;
    signals::sleep(PASSIVE)?;
    let (heard, handshakes) =
        (meter.count(Way::Out, Message::Data)?, meter.count(Way::In, Message::Initiation)?);
    findings.require(heard >= 1 && handshakes == 0, || {
        format!(
            "after data that nothing answered podspan sent {heard} messages in {} s, and the peer began {handshakes} \
             handshakes because of it",
            PASSIVE.as_secs()
        )
    });
    pair.stop()?;
    findings.conclude(3)
}
