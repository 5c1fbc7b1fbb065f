//! More than a worker can open.

use podspan_dataplane::DropCause;

use crate::net::{S, Sim, udp};

/// What `node` seals while nothing arrives.
fn sealed(sim: &mut Sim, node: usize, packets: usize) -> Vec<(std::net::SocketAddr, Vec<u8>)> {
    (sim.weather.loss, sim.tap) = (1000, Some(Vec::new()));
    let source = format!("10.{node}.0.1");
    let packets: Vec<_> = (0..packets as u32).map(|n| udp(&source, "10.0.0.1", 1, n, 0)).collect();
    sim.send(node, 0, &packets);
    sim.weather.loss = 0;
    let sent = sim.tap.take().unwrap_or_default();
    sent.into_iter().map(|(from, _, bytes)| (from, bytes)).collect()
}

#[test]
fn a_flood_costs_neither_others_nor_handshakes_anything() {
    let mut sim = Sim::new(5);
    sim.add("alpha/g", "192.0.2.1", 1);
    for (n, id) in [(1, "beta/flood"), (2, "beta/trickle"), (3, "beta/late")] {
        sim.add(id, &format!("198.51.100.{n}"), 1);
        sim.link(0, n, &[&format!("10.{n}.0.0/16")]);
        sim.link(n, 0, &["10.0.0.0/16"]);
    }
    let mut sim = sim.start();
    for n in [1, 2] {
        sim.send(n, 0, &[udp(&format!("10.{n}.0.1"), "10.0.0.1", 1, 0, 0)]);
    }
    sim.run(S);
    assert!(sim.is_up(0, 1) && sim.is_up(0, 2));
    sim.nodes[0].inbox.clear();

    // One batch: 57 packets of the flood, 6 others among them, and somebody's first handshake.
    let mut batch = sealed(&mut sim, 1, 57);
    for (at, packet) in sealed(&mut sim, 2, 6).into_iter().enumerate() {
        batch.insert(at * 9, packet);
    }
    let handshake = sealed(&mut sim, 3, 1);
    let handshake = if handshake.is_empty() {
        // It is sent when the tunnel is looked at.
        (sim.weather.loss, sim.tap) = (1000, Some(Vec::new()));
        sim.run(S / 10);
        sim.weather.loss = 0;
        sim.tap.take().unwrap().into_iter().map(|(from, _, bytes)| (from, bytes)).collect()
    } else {
        handshake
    };
    batch.push(handshake[0].clone());
    assert_eq!(batch.len(), 64);

    let now = sim.now;
    sim.nodes[0].cores[0].note_overflow(now, 1000);
    let before = sim.worker(0, 0).handshakes;
    sim.inject(0, 0, &batch);
    sim.run(S / 10);
    let from = |sim: &Sim, n: u8| sim.nodes[0].inbox.iter().filter(|(_, _, packet)| packet[13] == n).count();
    assert_eq!(from(&sim, 2), 6, "who sends little loses nothing");
    assert_eq!(from(&sim, 1), 63 / 2 - 6, "the flood gets what is left of half of the batch");
    assert_eq!(sim.drops(0, DropCause::Overload), 1000 + 57 - 25);
    assert_eq!(sim.worker(0, 0).handshakes, before + 1);

    // Without overflow all of it is opened again.
    sim.run(S);
    sim.nodes[0].inbox.clear();
    let batch = sealed(&mut sim, 1, 60);
    sim.inject(0, 0, &batch);
    assert_eq!(from(&sim, 1), 60);
}
