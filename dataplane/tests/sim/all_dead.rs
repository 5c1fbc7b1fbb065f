//! All gateways of a cluster dead: whoever sends is told, whichever lane he takes and however long it lasts.

use podspan_dataplane::Liveness;

use crate::liveness::{cluster_of, flow};
use crate::net::{MS, S, Sim};

/// Sends a packet on a lane of node 0; whether its sender was told at once that it cannot be reached.
fn is_told(sim: &mut Sim, lane: usize) -> bool {
    sim.nodes[0].inbox.clear();
    sim.send(0, lane, &[flow(1, 1)]);
    match sim.nodes[0].inbox.as_slice() {
        [] => false,
        [(_, _, message)] => {
            assert_eq!((message[9], message[20], message[21]), (1, 3, 1), "ICMP, host unreachable");
            true
        }
        more => panic!("{} messages about one packet", more.len()),
    }
}

/// Lets traffic flow on one lane for a while.
fn use_lane(sim: &mut Sim, lane: usize, time: std::time::Duration) {
    let end = sim.now + time;
    while sim.now < end {
        sim.send(0, lane, &[flow(9, 9)]);
        sim.run(20 * MS);
    }
}

#[test]
fn what_one_lane_finds_out_has_the_others_look_at_once() {
    for (seed, used, other) in [(31, 0, 1), (32, 1, 0)] {
        let mut sim = cluster_of(seed, 2, 2);
        // The other lane has never carried anything.
        use_lane(&mut sim, used, 3 * S);
        sim.unplugged.extend([1, 2]);
        use_lane(&mut sim, used, 2600 * MS);
        for lane in [used, other] {
            assert!(is_told(&mut sim, lane), "lane {lane} does not know yet");
        }
        sim.run(20 * S);
        use_lane(&mut sim, used, S);
        sim.unplugged.remove(&2);
        use_lane(&mut sim, used, S);
        assert!(!is_told(&mut sim, used));
        assert!(!is_told(&mut sim, other), "that one is back, too");
    }
}

#[test]
fn the_dead_stay_dead_for_senders_while_handshakes_come_and_go() {
    let mut sim = cluster_of(33, 2, 2);
    use_lane(&mut sim, 0, 3 * S);
    sim.unplugged.extend([1, 2]);
    use_lane(&mut sim, 0, 2600 * MS);
    // For longer than a session lasts, and than a handshake is tried by WireGuard's own timers.
    for second in 0..600 {
        for lane in [0, 1] {
            assert!(is_told(&mut sim, lane), "lane {lane} after {second} s");
        }
        sim.run(S);
    }
    // Now handshakes come to an end, and no probe is answered: who knows whether packets would be?
    for gateway in [1, 2] {
        sim.nodes[gateway].mute = true;
    }
    sim.unplugged.clear();
    let is_dead = |sim: &Sim, lane: usize| {
        let mut of_lane = (1..=2).flat_map(|peer| sim.tunnels(0, peer)).filter(|t| t.local == lane);
        of_lane.all(|t| t.liveness == Liveness::Dead)
    };
    let (start, handshakes) = (sim.now, sim.worker(0, 0).handshakes);
    while is_dead(&sim, 0) {
        assert!(is_told(&mut sim, 0), "{:?} after the plug was put back", sim.now.since(start));
        assert!(sim.now.since(start) < 10 * S);
        sim.run(10 * MS);
    }
    assert!(sim.worker(0, 0).handshakes >= handshakes + 3, "they were to come to an end");
    // With none of them answered it may be a plain WireGuard peer, which answers no probe.
    assert!(!is_told(&mut sim, 0));
    // They go again, and come back as they were.
    for gateway in [1, 2] {
        sim.nodes[gateway].mute = false;
    }
    use_lane(&mut sim, 0, 3 * S);
    sim.unplugged.extend([1, 2]);
    use_lane(&mut sim, 0, 3 * S);
    assert!(is_told(&mut sim, 0) && is_told(&mut sim, 1));
    sim.unplugged.remove(&1);
    let start = sim.now;
    while is_told(&mut sim, 0) || is_told(&mut sim, 1) {
        assert!(sim.now.since(start) <= S, "not back within a second");
        sim.run(10 * MS);
    }
}
