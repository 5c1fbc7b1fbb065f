//! Whatever happens to the network and to nodes, in whatever order: what must never be, never is, and when it is
//! quiet again all is well again. The lab's chaos asks the same of the programs.
//!
//! A failing run is shrunk and written to `proptest-regressions`; `PROPTEST_CASES=1000` runs others, and more of them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use podspan_dataplane::DropCause;
use podspan_wire::NodeId;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::net::{MS, S, Sim, number, udp};

/// Clusters alpha (0: a node, 1 and 2: gateways) and beta (3 and 4: gateways, 5: a node). Node N has the pods
/// 10.C.N.0/24 and fd00:C:N::/48.
const NODES: usize = 6;
const GATEWAYS: [usize; 4] = [1, 2, 3, 4];

/// Who sends to whom.
const FLOWS: [(usize, usize); 8] = [(0, 5), (5, 0), (0, 3), (3, 0), (5, 1), (2, 4), (4, 2), (1, 5)];

/// How long the way takes: always the same, so that nothing overtakes unless it is to.
const LATENCY: Duration = Duration::from_millis(5);

/// By when all is to be well after all is quiet.
const CONVERGED: Duration = Duration::from_secs(5);

fn cluster(node: usize) -> usize {
    if node < 3 { 1 } else { 2 }
}

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    /// Datagrams are lost and doubled, in parts of a thousand, and late by up to so many milliseconds.
    Weather {
        loss: u64,
        duplicates: u64,
        jitter: u64,
    },
    Unplug(usize),
    Plug(usize),
    /// Nothing gets from one node to another.
    Block(usize, usize),
    Unblock,
    Kill(usize),
    Return(usize),
    Drain(usize, bool),
    /// What probes through a gateway showed to a node of the other cluster.
    Forwards(usize, bool),
    /// Nobody runs for so many seconds: the machines stood still, or their clocks went ahead.
    Jump(u64),
    /// A node sends what it has no right to: from another node's address.
    Forge(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let gateway = || prop::sample::select(&GATEWAYS[..]);
    let node = || 0..NODES;
    let step = prop_oneof![
        3 => (0_u64..400, 0_u64..300, prop_oneof![Just(0_u64), 0_u64..40])
            .prop_map(|(loss, duplicates, jitter)| Step::Weather { loss, duplicates, jitter }),
        3 => node().prop_map(Step::Unplug),
        3 => node().prop_map(Step::Plug),
        2 => (node(), node()).prop_map(|(a, b)| Step::Block(a, b)),
        1 => Just(Step::Unblock),
        2 => node().prop_map(Step::Kill),
        2 => node().prop_map(Step::Return),
        2 => (gateway(), any::<bool>()).prop_map(|(g, on)| Step::Drain(g, on)),
        1 => (gateway(), any::<bool>()).prop_map(|(g, on)| Step::Forwards(g, on)),
        1 => (1_u64..400).prop_map(Step::Jump),
        2 => (node(), node()).prop_map(|(a, b)| Step::Forge(a, b)),
    ];
    prop::collection::vec((step, 50_u64..2500), 1..14)
}

/// A packet that was sent.
struct Sent {
    flow: (usize, usize, u16),
    bytes: Vec<u8>,
    honest: bool,
}

struct World {
    sim: Sim,
    sent: HashMap<u32, Sent>,
    next: u32,
    /// How often each packet was delivered.
    delivered: HashMap<u32, u32>,
    /// The last packet of a flow that came out of a node, since when nothing can have been overtaken on the way.
    last: BTreeMap<((usize, usize, u16), usize), u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut sim = Sim::new(seed);
        sim.weather.latency = LATENCY;
        for node in 0..NODES {
            let name = ["alpha/a", "alpha/g1", "alpha/g2", "beta/g1", "beta/g2", "beta/b"][node];
            sim.add(name, &format!("192.0.2.{}", node + 1), 2);
        }
        for node in 0..NODES {
            let others = (0..NODES).filter(|&other| cluster(other) != cluster(node));
            let (gateways, all): (Vec<_>, Vec<_>) =
                (others.clone().filter(|other| GATEWAYS.contains(other)).collect(), others.collect());
            for &other in &all {
                let (dials, is_dialled) = (GATEWAYS.contains(&other), GATEWAYS.contains(&node));
                if dials || is_dialled {
                    sim.link(node, other, &[]).dial = dials;
                }
                let owner: NodeId = sim.nodes[other].id.clone();
                for cidr in [
                    format!("10.{}.{other}.0/24", cluster(other)),
                    format!("fd00:{}:{other}::/48", cluster(other)),
                ] {
                    sim.route(node, &cidr, Some(owner.clone()), &gateways);
                }
            }
        }
        let mut sim = sim.start();
        sim.run(2 * S);
        Self { sim, sent: HashMap::new(), next: 0, delivered: HashMap::new(), last: BTreeMap::new() }
    }

    fn send(&mut self, by: usize, from: usize, to: usize, port: u16) {
        let pod = |node: usize| match port % 2 {
            0 => format!("10.{}.{node}.9", cluster(node)),
            _ => format!("fd00:{}:{node}::9", cluster(node)),
        };
        let bytes = udp(&pod(from), &pod(to), port, self.next, 0);
        self.sim.send(by, usize::from(port / 2 % 2), std::slice::from_ref(&bytes));
        self.sent.insert(self.next, Sent { flow: (from, to, port), bytes, honest: by == from });
        self.next += 1;
    }

    /// Traffic for so long, one packet of each flow each 20 ms.
    fn traffic(&mut self, time: Duration) {
        let end = self.sim.now + time;
        while self.sim.now < end {
            for (from, to) in FLOWS {
                for port in [1000, 1001, 1002, 1003] {
                    self.send(from, from, to, port);
                }
            }
            self.sim.run(20 * MS);
            self.check();
        }
    }

    /// Looks at all that came out.
    fn check(&mut self) {
        for node in 0..NODES {
            for (_, _, packet) in std::mem::take(&mut self.sim.nodes[node].inbox) {
                // A message to a sender that what he sends cannot be passed on.
                let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
                if protocol != 17 {
                    assert!(matches!(protocol, 1 | 58), "{packet:?} came out of node {node}");
                    continue;
                }
                let number = number(&packet);
                let sent = self.sent.get(&number).expect("what came out was never sent");
                assert_eq!(packet, sent.bytes, "changed on the way");
                let (from, to, _) = sent.flow;
                assert!(sent.honest, "a forged packet came out of node {node}: {from} to {to}");
                let right = node == to || (cluster(node) == cluster(to) && GATEWAYS.contains(&node));
                assert!(right, "a packet from {from} to {to} came out of node {node}");
                let times = self.delivered.entry(number).or_default();
                *times += 1;
                assert_eq!(*times, 1, "packet {number} from {from} to {to} came twice");
                let last = self.last.insert((sent.flow, node), number);
                assert!(
                    self.sim.weather.jitter > Duration::ZERO || last.is_none_or(|last| last < number),
                    "flow {:?} at node {node}: {number} after {last:?}",
                    sent.flow
                );
            }
        }
    }

    fn happen(&mut self, step: &Step) {
        let sim = &mut self.sim;
        match *step {
            Step::Weather { loss, duplicates, jitter } => {
                let calmer = sim.weather.jitter > Duration::from_millis(jitter);
                (sim.weather.loss, sim.weather.duplicates) = (loss, duplicates);
                if calmer {
                    // What is still under way may be overtaken.
                    sim.run(100 * MS);
                }
                sim.weather.jitter = Duration::from_millis(jitter);
                self.last.clear();
            }
            Step::Unplug(node) => drop(sim.unplugged.insert(node)),
            Step::Plug(node) => drop(sim.unplugged.remove(&node)),
            Step::Block(a, b) => {
                let way = (sim.nodes[a].address, sim.nodes[b].address);
                sim.loss.insert(way, 1000);
            }
            Step::Unblock => sim.loss.clear(),
            Step::Kill(node) => sim.nodes[node].alive = false,
            Step::Return(node) if !sim.nodes[node].alive => sim.restart(node),
            Step::Return(_) => {}
            Step::Drain(node, on) => self.drain(node, on),
            Step::Forwards(gateway, forwards) => self.forwards(gateway, forwards),
            Step::Jump(seconds) => sim.jump(Duration::from_secs(seconds)),
            Step::Forge(by, from) if by != from => {
                for (_, to) in FLOWS {
                    if cluster(to) != cluster(by) {
                        (1000..1004).for_each(|port| self.send(by, from, to, port));
                    }
                }
            }
            Step::Forge(..) => {}
        }
    }

    fn drain(&mut self, node: usize, on: bool) {
        let now = self.sim.now;
        for lane in [0, 1] {
            self.sim.call_core(node, lane, |core| core.set_draining(now, on));
        }
    }

    fn forwards(&mut self, gateway: usize, forwards: bool) {
        let (now, id) = (self.sim.now, self.sim.nodes[gateway].id.clone());
        for node in (0..NODES).filter(|&node| cluster(node) != cluster(gateway)) {
            for lane in [0, 1] {
                self.sim.call_core(node, lane, |core| {
                    core.set_forwarding(now, &id, forwards);
                });
            }
        }
    }

    /// All is quiet: then all must be well.
    fn quiet(&mut self) {
        self.happen(&Step::Weather { loss: 0, duplicates: 0, jitter: 0 });
        self.sim.unplugged.clear();
        self.sim.loss.clear();
        for node in 0..NODES {
            self.happen(&Step::Return(node));
            self.drain(node, false);
            self.forwards(node, true);
        }
        self.traffic(CONVERGED);
        let first = self.next;
        self.traffic(S);
        let last = self.next;
        self.sim.run(100 * MS);
        self.check();
        let missing: Vec<_> =
            (first..last).filter(|n| !self.delivered.contains_key(n)).map(|n| self.sent[&n].flow).collect();
        // One of the flows alone is 3 % of it. Of the eight sessions that boringtun remembers, one that is made after
        // many attempts may take the place of the one in use, which costs what is under way and no more.
        assert!(
            missing.len() <= (last - first) as usize / 100,
            "{} of {} packets are lost: {:?}",
            missing.len(),
            last - first,
            &missing[..8.min(missing.len())]
        );
    }
}

/// The same runs each time, unless more of them are asked for.
fn config() -> ProptestConfig {
    let usual = ProptestConfig { max_shrink_iters: 60, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => usual,
        None => ProptestConfig { cases: 16, rng_seed: RngSeed::Fixed(5), ..usual },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_must_never_be_never_is_and_all_ends_well(seed in 0_u64..1000, steps in steps()) {
        let mut world = World::new(seed);
        world.traffic(S);
        for (step, pause) in &steps {
            world.happen(step);
            world.traffic(Duration::from_millis(*pause));
        }
        world.quiet();
    }
}

/// That the check above is one: in calm weather all that is forged arrives, is dropped, and is counted.
#[test]
fn what_is_forged_is_counted() {
    let mut world = World::new(1);
    world.traffic(2 * S);
    let count = |world: &World| -> u64 {
        (0..NODES).map(|node| world.sim.drops(node, DropCause::SourceMismatch)).sum()
    };
    for (by, from) in [(0, 1), (0, 4), (1, 0), (3, 5), (5, 4), (4, 2)] {
        let before = (count(&world), world.next);
        world.happen(&Step::Forge(by, from));
        world.traffic(100 * MS);
        let forged = (before.1..world.next).filter(|n| !world.sent[n].honest).count() as u64;
        assert_eq!((count(&world) - before.0, forged), (forged, 4 * 4), "{by} in the name of {from}");
    }
    world.quiet();
}
