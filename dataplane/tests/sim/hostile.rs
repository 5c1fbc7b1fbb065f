//! Input that is wrong, forged or too much.

use std::net::SocketAddr;

use boringtun::noise::{Tunn, TunnResult};
use podspan_dataplane::DropCause;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::net::{MS, S, Sim, udp};

fn one(n: u32) -> [Vec<u8>; 1] {
    [udp("10.0.0.2", "10.1.0.3", 1000, n, 50)]
}

fn back(n: u32) -> [Vec<u8>; 1] {
    [udp("10.1.0.3", "10.0.0.2", 1000, n, 50)]
}

/// A pair with a session, its datagrams on record.
fn tapped(seed: u64) -> Sim {
    let mut sim = Sim::pair(seed, (1, 1));
    sim.tap = Some(vec![]);
    let mut sim = sim.start();
    sim.send(0, 0, &one(0));
    sim.run(S);
    assert_eq!(sim.numbers(1), [0]);
    sim
}

#[test]
fn a_source_of_somebody_else_is_dropped_and_charged_to_the_peer() {
    let mut sim = Sim::pair(1, (1, 1));
    sim.add("gamma/c", "203.0.113.1", 1);
    sim.link(1, 2, &["10.2.0.0/16"]);
    sim.route(1, "10.0.9.0/24", Some("alpha/other".parse().unwrap()), &[0]);
    sim.route(1, "10.8.0.0/16", None, &[0]);
    let mut sim = sim.start();
    let sources = ["10.2.0.1", "10.1.0.9", "10.99.0.1", "10.0.9.1", "127.0.0.1", "224.0.0.1", "0.0.0.0"];
    let forged: Vec<_> = sources.iter().map(|source| udp(source, "10.1.0.3", 1, 1, 0)).collect();
    sim.send(0, 0, &forged);
    // Its own prefix, and one that it is a gateway of.
    sim.send(0, 0, &[udp("10.0.0.2", "10.1.0.3", 1, 7, 0), udp("10.8.0.1", "10.1.0.3", 1, 8, 0)]);
    sim.run(S);
    assert_eq!(sim.numbers(1), [7, 8]);
    assert_eq!(sim.tunnels(1, 0)[0].drops.get(DropCause::SourceMismatch), sources.len() as u64);
    assert_eq!(sim.tunnels(1, 2)[0].drops.total(), 0);
}

/// Node 1 is an ordinary node of alpha; 0 is a gateway of its cluster, 2 another ordinary node, 3 a node of beta.
#[test]
fn a_gateway_of_the_own_cluster_passes_on_what_comes_from_others_and_nothing_else() {
    let mut sim = Sim::new(5);
    sim.add("alpha/gateway", "192.0.2.1", 1);
    sim.add("alpha/node", "192.0.2.2", 1);
    sim.add("alpha/third", "192.0.2.3", 1);
    sim.add("beta/node", "198.51.100.1", 1);
    sim.link(0, 1, &["10.1.1.0/24", "fd00:1:1::/64"]);
    sim.link(2, 1, &["10.1.1.0/24"]);
    sim.link(1, 0, &["10.1.0.0/24", "fd00:1:0::/64"]).relays = true;
    sim.link(1, 2, &["10.1.2.0/24"]);
    sim.link(1, 3, &["10.2.0.0/16", "fd00:2::/48"]);
    let mut sim = sim.start();
    let to = |source, n| udp(source, "10.1.1.5", 1, n, 0);
    // Its own, and those of a pod of beta, by both families.
    sim.send(0, 0, &[to("10.1.0.9", 1), to("10.2.7.7", 2), udp("fd00:2::7", "fd00:1:1::5", 1, 3, 0)]);
    // A third node's, this node's own, nobody's.
    sim.send(0, 0, &[to("10.1.2.2", 4), to("10.1.1.2", 5), to("10.99.0.1", 6)]);
    // Who is no gateway passes nothing on.
    sim.send(2, 0, &[to("10.1.2.2", 7), to("10.2.7.7", 8), to("10.1.0.9", 9)]);
    sim.run(S);
    let mut numbers = sim.numbers(1);
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 7]);
    let refused = |sim: &Sim, peer| sim.tunnels(1, peer)[0].drops.get(DropCause::SourceMismatch);
    assert_eq!((refused(&sim, 0), refused(&sim, 2), refused(&sim, 3)), (3, 2, 0));
}

/// A peer that keeps to WireGuard and to nothing else: it seals whatever it likes.
struct Raw {
    tunn: Tunn,
    address: SocketAddr,
}

impl Raw {
    /// Takes the place of node 0 and shakes hands with node 1.
    fn connect(sim: &mut Sim) -> Self {
        sim.nodes[0].alive = false;
        sim.tap = Some(vec![]);
        let secret = StaticSecret::from(*sim.nodes[0].secrets[0].to_bytes());
        let public = PublicKey::from(*sim.nodes[1].secrets[0].public().as_bytes());
        let address = sim.outside(0, 0);
        let mut raw = Self { tunn: Tunn::new(secret, public, None, None, 1, None), address };
        let mut buffer = [0; 2048];
        let TunnResult::WriteToNetwork(initiation) = raw.tunn.format_handshake_initiation(&mut buffer, false)
        else {
            panic!("no initiation")
        };
        let initiation = initiation.to_vec();
        sim.inject(1, 0, &[(address, initiation)]);
        sim.run(MS);
        let (_, _, response) =
            sim.tap.take().unwrap().into_iter().rfind(|(_, to, _)| *to == address).unwrap();
        let TunnResult::WriteToNetwork(confirmation) = raw.tunn.decapsulate(None, &response, &mut buffer)
        else {
            panic!("the response was refused")
        };
        let confirmation = confirmation.to_vec();
        sim.inject(1, 0, &[(address, confirmation)]);
        assert!(sim.is_up(1, 0));
        raw
    }

    fn send(&mut self, sim: &mut Sim, inner: &[u8]) {
        let mut buffer = vec![0; inner.len() + 200];
        let TunnResult::WriteToNetwork(sealed) = self.tunn.encapsulate(inner, &mut buffer) else {
            panic!("not sealed")
        };
        sim.inject(1, 0, &[(self.address, sealed.to_vec())]);
    }
}

#[test]
fn what_a_peer_seals_is_checked_however_well_it_is_sealed() {
    let mut sim = Sim::pair(2, (1, 1)).start();
    let mut raw = Raw::connect(&mut sim);
    let bad = ["224.0.0.5", "255.255.255.255", "169.254.169.254", "127.0.0.1", "0.0.0.1"];
    for destination in bad {
        raw.send(&mut sim, &udp("10.0.0.2", destination, 1, 0, 0));
    }
    for destination in ["ff02::1", "fe80::1", "::1"] {
        raw.send(&mut sim, &udp("fd00:0::2", destination, 1, 0, 0));
    }
    let drops = |sim: &Sim, cause| sim.tunnels(1, 0)[0].drops.get(cause);
    assert_eq!(drops(&sim, DropCause::NotUnicast), 8);
    let whole = udp("10.0.0.2", "10.1.0.3", 1, 0, 20);
    let not_ip: [&[u8]; 5] =
        [b"x", b"\x00hello, this is not IP at all", &whole[..19], &whole[..40], &[0x60; 39]];
    for inner in not_ip {
        raw.send(&mut sim, inner);
    }
    assert_eq!(drops(&sim, DropCause::Malformed), 5);
    assert!(sim.nodes[1].inbox.is_empty());
    // Padding (WireGuard paper, section 5.4.6) is cut off.
    let mut padded = udp("10.0.0.2", "10.1.0.3", 1, 5, 1);
    let length = padded.len();
    padded.resize(length.next_multiple_of(16), 0);
    raw.send(&mut sim, &padded);
    assert_eq!(sim.nodes[1].inbox.len(), 1);
    assert_eq!(sim.nodes[1].inbox[0].2.len(), length);
}

#[test]
fn data_goes_before_handshakes_that_came_first() {
    let mut sim = Sim::pair(2, (1, 1));
    for n in 2..42 {
        sim.add(&format!("gamma/n{n}"), &format!("203.0.113.{n}"), 1);
        sim.link(1, n, &[]);
        sim.link(n, 1, &["10.1.0.0/16"]);
    }
    let mut sim = sim.start();
    sim.send(0, 0, &one(0));
    sim.run(S);
    sim.tap = Some(vec![]);
    sim.weather.latency = S;
    for n in 2..42 {
        sim.send(n, 0, &[udp("10.9.0.1", "10.1.0.3", 1, 1, 0)]);
    }
    sim.run(MS);
    sim.send(0, 0, &one(1));
    let tap = sim.tap.take().unwrap();
    let batch: Vec<_> = tap.into_iter().map(|(from, _, bytes)| (from, bytes)).collect();
    assert_eq!(batch.len(), 41);
    let before = sim.worker(1, 0).handshakes;
    sim.inject(1, 0, &batch);
    assert_eq!(sim.numbers(1), [0, 1], "the data is through");
    assert_eq!(sim.worker(1, 0).handshakes, before, "no handshake was worked on before");
    sim.run(MS);
    assert_eq!(sim.worker(1, 0).handshakes, before + 40);
}

#[test]
fn garbage_is_counted_and_harms_nobody() {
    let mut sim = tapped(3);
    let from: SocketAddr = "203.0.113.66:666".parse().unwrap();
    let recorded: Vec<_> = sim.tap.take().unwrap().into_iter().map(|(_, _, bytes)| bytes).collect();
    let mut sent = 0;
    let mut datagrams = vec![];
    for original in &recorded {
        for cut in 0..original.len() {
            datagrams.push((from, original[..cut].to_vec()));
        }
        for _ in 0..200 {
            let mut bytes = original.clone();
            let at = sim.random() as usize % bytes.len();
            bytes[at] ^= 1 << (sim.random() % 8);
            datagrams.push((from, bytes));
        }
    }
    for length in 0..300 {
        let mut bytes: Vec<u8> = (0..length).map(|_| sim.random() as u8).collect();
        datagrams.push((from, bytes.clone()));
        if length >= 4 {
            bytes[..4].copy_from_slice(&[1 + (sim.random() % 4) as u8, 0, 0, 0]);
            datagrams.push((from, bytes));
        }
    }
    datagrams.push((from, vec![4; 65_507]));
    for node in 0..2 {
        let before = sim.worker(node, 0);
        sim.inject(node, 0, &datagrams);
        sim.run(S);
        sent += datagrams.len();
        let after = sim.worker(node, 0);
        assert_eq!(after.rx_inner_packets, before.rx_inner_packets);
        let dropped: u64 = after.drops.total() - before.drops.total();
        assert!(dropped >= datagrams.len() as u64, "node {node}: {dropped} of {} counted", datagrams.len());
    }
    assert!(sent > 1000);
    assert_eq!(sim.tunnels(0, 1)[0].endpoint, Some(sim.outside(1, 0)), "nobody was led astray");
    sim.send(0, 0, &one(77));
    sim.send(1, 0, &back(78));
    sim.run(100 * MS);
    assert!(sim.numbers(1).contains(&77) && sim.numbers(0).contains(&78));
}

#[test]
fn replayed_packets_and_handshakes_are_dropped() {
    let mut sim = tapped(4);
    for n in 1..50 {
        sim.send(0, 0, &one(n));
    }
    sim.run(S);
    let tap = sim.tap.take().unwrap();
    let to = sim.outside(1, 0);
    let elsewhere: SocketAddr = "203.0.113.66:666".parse().unwrap();
    let replay: Vec<_> =
        tap.iter().filter(|(_, t, _)| *t == to).map(|(_, _, b)| (elsewhere, b.clone())).collect();
    assert!(replay.len() > 50);
    let handshakes = sim.worker(1, 0).handshakes;
    sim.inject(1, 0, &replay);
    sim.run(S);
    assert_eq!(sim.numbers(1), (0..50).collect::<Vec<_>>());
    assert_eq!(sim.drops(1, DropCause::Replay), replay.len() as u64);
    assert_eq!(sim.worker(1, 0).handshakes, handshakes);
    assert_eq!(sim.tunnels(1, 0)[0].endpoint, Some(sim.outside(0, 0)), "a replay moves nobody");
}

#[test]
fn under_a_flood_of_handshakes_cookies_are_asked_for_and_data_goes_on() {
    let mut sim = Sim::new(5);
    sim.handshake_limit = 20;
    sim.tap = Some(vec![]);
    for (id, address) in [("alpha/a", "192.0.2.1"), ("beta/b", "198.51.100.1"), ("beta/late", "198.51.100.2")]
    {
        sim.add(id, address, 1);
    }
    sim.link(1, 0, &["10.0.0.0/16"]);
    sim.link(1, 2, &["10.2.0.0/16"]);
    sim.link(0, 1, &["10.1.0.0/16"]);
    sim.link(2, 1, &["10.1.0.0/16"]);
    let mut sim = sim.start();
    sim.send(0, 0, &one(0));
    sim.run(S);
    // A real initiation to node 1 carries a right first MAC whoever sends it: take one for the flood.
    let to = sim.outside(1, 0);
    let tap = sim.tap.take().unwrap();
    let initiation = tap.iter().find(|(_, t, b)| *t == to && b.len() == 148).unwrap().2.clone();
    let flood = |sim: &mut Sim, n: usize| {
        let some: Vec<_> = (0..n)
            .map(|_| {
                let port = 1024 + (sim.random() % 60_000) as u16;
                (SocketAddr::new("203.0.113.5".parse().unwrap(), port), initiation.clone())
            })
            .collect();
        sim.inject(1, 0, &some);
    };
    let start = sim.now;
    let mut n = 1;
    let mut late = 0;
    while sim.now.since(start) < 20 * S {
        flood(&mut sim, 128);
        sim.send(0, 0, &one(n));
        n += 1;
        if sim.now.since(start) > 2 * S && late == 0 {
            sim.send(2, 0, &[udp("10.2.0.1", "10.1.0.3", 5, 1_000_000, 0)]);
            late = 1;
        }
        sim.run(100 * MS);
    }
    sim.run(100 * MS);
    let established: Vec<_> = sim.numbers(1).into_iter().filter(|&x| x < 1_000_000).collect();
    assert_eq!(established, (0..n).collect::<Vec<_>>(), "the established flow lost nothing");
    assert!(sim.worker(1, 0).cookies > 10_000);
    assert!(sim.drops(1, DropCause::UnderLoad) > 10_000);
    // A newcomer gets in during the flood, by its cookie, at its second attempt.
    assert!(sim.is_up(2, 1));
    assert!(sim.worker(2, 0).tx_outer_packets >= 2);
}

#[test]
fn a_forged_address_makes_few_handshakes() {
    let mut sim = tapped(6);
    // Probes end with the traffic.
    sim.run(2 * S);
    let from = sim.outside(0, 0);
    let mut forged = vec![4, 0, 0, 0, 0xaa, 0xbb, 0xcc, 0xdd];
    forged.resize(64, 0);
    let before = sim.worker(1, 0).tx_outer_packets;
    for _ in 0..1000 {
        let some = vec![(from, forged.clone()); 10];
        sim.inject(1, 0, &some);
        sim.run(10 * MS);
    }
    let sent = sim.worker(1, 0).tx_outer_packets - before;
    // The session is fine, so there is hardly a reason: one initiation and one confirmation.
    assert!((1..=2).contains(&sent), "{sent} datagrams in 10 s");
    sim.send(0, 0, &one(5));
    sim.run(S);
    assert!(sim.numbers(1).contains(&5));

    // Without a session, and with a peer that never answers, it is one initiation a second.
    sim.nodes[0].alive = false;
    sim.restart(1);
    let before = sim.worker(1, 0).tx_outer_packets;
    for _ in 0..1000 {
        let some = vec![(from, forged.clone()); 10];
        sim.inject(1, 0, &some);
        sim.run(10 * MS);
    }
    let sent = sim.worker(1, 0).tx_outer_packets - before;
    assert!((8..=12).contains(&sent), "{sent} datagrams in 10 s");
}
