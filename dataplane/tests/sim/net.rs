//! A network in virtual time: nodes made of cores, joined by something that delays, loses, reorders and
//! doubles datagrams as a seed says. Nothing here sleeps, and a run is the same each time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mock_instant::MockClock;
use podspan_dataplane::core::{Arrival, Batch, Config, Core, Departure, Sink, Time, TunnelTag};
use podspan_dataplane::offload::{Ecn, VnetHeader};
use podspan_dataplane::table::Table;
use podspan_dataplane::{DropCause, LaneSecret, LaneStatus, PeerSpec, RouteSpec, TableSpec, WorkerStatus};
use podspan_wire::{Cidr, Lane, NodeId};

pub(crate) const PORT: u16 = 51840;
/// Length of a sealed probe: IPv6 header, probe, padding to 16, WireGuard.
const PROBE: usize = 64 + 32;
pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const S: Duration = Duration::from_secs(1);

/// CPU time of this thread.
pub(crate) fn cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// What the network does to datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) latency: Duration,
    /// Added at random, up to this much: more than the distance of two packets reorders them.
    pub(crate) jitter: Duration,
    /// In parts of a thousand.
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    pub(crate) mtu: usize,
    /// Whether routers mark congestion on what can carry the mark.
    pub(crate) congested: bool,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            latency: 10 * MS,
            jitter: Duration::ZERO,
            loss: 0,
            duplicates: 0,
            mtu: 65_507,
            congested: false,
        }
    }
}

/// A NAT router before a node: one outer address, ports by lane, mappings that are forgotten.
#[derive(Clone, Debug)]
pub(crate) struct Nat {
    pub(crate) outer: IpAddr,
    pub(crate) first_port: u16,
    pub(crate) forgets_after: Duration,
    /// When each mapping (lane, remote) was last used from within.
    used: BTreeMap<(usize, SocketAddr), Time>,
}

impl Nat {
    pub(crate) fn new(outer: &str, first_port: u16, forgets_after: Duration) -> Self {
        Self { outer: outer.parse().unwrap(), first_port, forgets_after, used: BTreeMap::new() }
    }
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) address: IpAddr,
    pub(crate) secrets: Vec<LaneSecret>,
    pub(crate) cores: Vec<Core>,
    pub(crate) nat: Option<Nat>,
    pub(crate) spec: TableSpec,
    pub(crate) table: Arc<Table>,
    /// Inner packets that came out: when, at which lane, what.
    pub(crate) inbox: Vec<(Time, usize, Vec<u8>)>,
    pub(crate) alive: bool,
    /// Knows nothing of probes, like a plain WireGuard peer.
    pub(crate) mute: bool,
    wakes: Vec<Option<Time>>,
}

impl Node {
    pub(crate) fn lanes(&self) -> Vec<Lane> {
        let lane = |(i, secret): (usize, &LaneSecret)| Lane { key: secret.public(), port: PORT + i as u16 };
        self.secrets.iter().enumerate().map(lane).collect()
    }
}

enum Event {
    Wake { node: usize, lane: usize },
    Arrive { from: SocketAddr, to: SocketAddr, ecn: Ecn, bytes: Vec<u8> },
}

pub(crate) struct Sim {
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    pub(crate) weather: Weather,
    /// Every datagram that was sent, if it is to be kept: from, to, what.
    pub(crate) tap: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
    /// What is lost on the way from one address to another, in parts of a thousand.
    pub(crate) loss: BTreeMap<(IpAddr, IpAddr), u64>,
    /// The MTU of the path from one address to another, where it is narrow: what is larger and may not be
    /// fragmented is dropped, and nobody is told.
    pub(crate) path_mtu: BTreeMap<(IpAddr, IpAddr), usize>,
    /// When that happened, and how large the packets were.
    pub(crate) vanished: Vec<(Time, usize)>,
    /// The largest packet of each direction that went as it was.
    pub(crate) largest: BTreeMap<(IpAddr, IpAddr), usize>,
    /// How much longer than by the weather the way from an address takes.
    pub(crate) delay: BTreeMap<IpAddr, Duration>,
    /// The CPU time that the cores of node 0 took.
    pub(crate) took: Duration,
    /// Nodes whose links are down: the network neither takes from them nor gives to them.
    pub(crate) unplugged: BTreeSet<usize>,
    pub(crate) handshake_limit: u64,
    rng: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    events: BTreeMap<u64, Event>,
}

/// What a core gives out during one call.
struct Out {
    datagram: Vec<u8>,
    packet: Vec<u8>,
    mtu: usize,
    sent: Vec<(Departure, Vec<u8>)>,
    delivered: Vec<Vec<u8>>,
}

impl Sink for Out {
    fn datagram(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= self.datagram.len());
        &mut self.datagram[..length]
    }
    fn send(&mut self, length: usize, how: Departure) -> Result<(), DropCause> {
        if length > self.mtu {
            return Err(DropCause::TooBig);
        }
        self.sent.push((how, self.datagram[..length].to_vec()));
        Ok(())
    }
    fn packet(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= self.packet.len());
        &mut self.packet[..length]
    }
    fn deliver(&mut self, length: usize, _: TunnelTag) -> Result<(), DropCause> {
        self.delivered.push(self.packet[..length].to_vec());
        Ok(())
    }
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        let now = Time::from_micros(1_000_000);
        MockClock::set_time(Duration::from_micros(now.as_micros()));
        Self {
            now,
            nodes: Vec::new(),
            weather: Weather::default(),
            tap: None,
            loss: BTreeMap::new(),
            path_mtu: BTreeMap::new(),
            vanished: Vec::new(),
            largest: BTreeMap::new(),
            delay: BTreeMap::new(),
            took: Duration::ZERO,
            unplugged: BTreeSet::new(),
            handshake_limit: 1000,
            rng: seed,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
        }
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.rng ^ (self.rng >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11
    }

    fn config(&mut self, node: usize, lane: usize) -> Config {
        Config {
            lane,
            secret: self.nodes[node].secrets[lane].clone(),
            handshake_limit: self.handshake_limit,
            seed: self.random(),
        }
    }

    /// Adds a node; its number is the return value.
    pub(crate) fn add(&mut self, id: &str, address: &str, lanes: usize) -> usize {
        let node = self.nodes.len();
        let secret = |lane: usize| {
            let mut bytes = [lane as u8 + 1; 32];
            // Not the first byte: X25519 ignores its lowest bits.
            bytes[8..16].copy_from_slice(&(node as u64 + 1).to_le_bytes());
            LaneSecret::from_bytes(bytes)
        };
        self.nodes.push(Node {
            id: id.parse().unwrap(),
            address: address.parse().unwrap(),
            secrets: (0..lanes).map(secret).collect(),
            cores: Vec::new(),
            nat: None,
            spec: TableSpec::default(),
            table: Arc::default(),
            inbox: Vec::new(),
            alive: true,
            mute: false,
            wakes: vec![None; lanes],
        });
        self.boot(node);
        node
    }

    fn boot(&mut self, node: usize) {
        let cores =
            (0..self.nodes[node].secrets.len()).map(|lane| Core::new(self.config(node, lane))).collect();
        self.nodes[node].cores = cores;
        self.nodes[node].wakes.fill(None);
        self.nodes[node].table = Arc::default();
        self.nodes[node].alive = true;
    }

    /// The node starts anew with the keys and the table it had, and nothing else.
    pub(crate) fn restart(&mut self, node: usize) {
        // boringtun takes the time that makes handshakes unrepeatable from the real clock when a tunnel is
        // made, and goes on in virtual time from there: let as much real time pass as matters.
        std::thread::sleep(20 * MS);
        self.boot(node);
        self.apply(node);
    }

    /// How `node` appears to others at lane `lane`.
    pub(crate) fn outside(&self, node: usize, lane: usize) -> SocketAddr {
        let n = &self.nodes[node];
        match &n.nat {
            Some(nat) => SocketAddr::new(nat.outer, nat.first_port + lane as u16),
            None => SocketAddr::new(n.address, PORT + lane as u16),
        }
    }

    /// A description of `node` for others, with its address unless it is behind a NAT.
    pub(crate) fn describe(&self, node: usize) -> PeerSpec {
        let n = &self.nodes[node];
        PeerSpec {
            id: n.id.clone(),
            lanes: n.lanes(),
            endpoints: if n.nat.is_none() { vec![n.address] } else { vec![] },
            learned: vec![],
            persistent_keepalive: None,
            dial: false,
            weight: 10,
            relays: false,
        }
    }

    /// Makes `peer` a peer in the table of `node`, reached by `cidrs`; in force after [`Self::apply`].
    pub(crate) fn link(&mut self, node: usize, peer: usize, cidrs: &[&str]) -> &mut PeerSpec {
        let description = self.describe(peer);
        let owner = Some(description.id.clone());
        for cidr in cidrs {
            self.route(node, cidr, owner.clone(), &[]);
        }
        let peers = &mut self.nodes[node].spec.peers;
        peers.push(description);
        peers.last_mut().unwrap()
    }

    pub(crate) fn route(&mut self, node: usize, cidr: &str, owner: Option<NodeId>, gateways: &[usize]) {
        let gateways = gateways.iter().map(|&g| self.nodes[g].id.clone()).collect();
        let cidr: Cidr = cidr.parse().unwrap();
        self.nodes[node].spec.routes.push(RouteSpec { cidr, owner, gateways });
    }

    /// Puts the table of `node` in force; whatever is wrong with it fails the test.
    pub(crate) fn apply(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        let own: Vec<_> = n.secrets.iter().map(LaneSecret::public).collect();
        let (table, rejected) = Table::new(n.spec.clone(), &own, &n.table);
        assert_eq!(rejected, []);
        n.table = Arc::new(table);
        for lane in 0..n.cores.len() {
            let table = Arc::clone(&self.nodes[node].table);
            let now = self.now;
            self.nodes[node].cores[lane].set_table(now, table);
            self.rearm(node, lane);
        }
    }

    /// Two nodes that know each other, with pods 10.N.0.0/16 and fd00:N::/48 for node number N.
    pub(crate) fn pair(seed: u64, lanes: (usize, usize)) -> Self {
        let mut sim = Self::new(seed);
        sim.add("alpha/a", "192.0.2.1", lanes.0);
        sim.add("beta/b", "198.51.100.1", lanes.1);
        sim.link(0, 1, &["10.1.0.0/16", "fd00:1::/48"]);
        sim.link(1, 0, &["10.0.0.0/16", "fd00:0::/48"]);
        sim
    }

    pub(crate) fn start(mut self) -> Self {
        for node in 0..self.nodes.len() {
            self.apply(node);
        }
        self
    }

    fn push(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert(self.sequence, event);
        self.queue.push(Reverse((at, self.sequence)));
    }

    /// Takes note of when a core wants to be called.
    fn rearm(&mut self, node: usize, lane: usize) {
        let Some(at) = self.nodes[node].cores[lane].poll_timeout() else { return };
        let at = at.max(self.now);
        let wake = &mut self.nodes[node].wakes[lane];
        if wake.is_none_or(|earlier| at < earlier) {
            *wake = Some(at);
            self.push(at, Event::Wake { node, lane });
        }
    }

    fn call(&mut self, node: usize, lane: usize, work: impl FnOnce(&mut Core, Time, &mut Out)) {
        if !self.nodes[node].alive {
            return;
        }
        let mut out = Out {
            datagram: vec![0; 65_568],
            packet: vec![0; 65_568],
            mtu: self.weather.mtu,
            sent: Vec::new(),
            delivered: Vec::new(),
        };
        let begin = cpu();
        work(&mut self.nodes[node].cores[lane], self.now, &mut out);
        if node == 0 {
            self.took += cpu() - begin;
        }
        let now = self.now;
        self.nodes[node].inbox.extend(out.delivered.into_iter().map(|packet| (now, lane, packet)));
        for (Departure { to, ecn, whole, .. }, bytes) in out.sent {
            if let Some(nat) = &mut self.nodes[node].nat {
                nat.used.insert((lane, to), now);
            }
            let from = self.outside(node, lane);
            self.carry(from, to, ecn, whole, bytes);
        }
        while let Some(peer) = self.nodes[node].cores[lane].poll_turned() {
            for other in (0..self.nodes[node].cores.len()).filter(|&other| other != lane) {
                self.nodes[node].cores[other].look_at(now, &peer);
                self.rearm(node, other);
            }
        }
        self.rearm(node, lane);
    }

    /// Lets a datagram travel from `from` to `to`, with these ECN bits in its header.
    fn carry(&mut self, from: SocketAddr, to: SocketAddr, mut ecn: Ecn, whole: bool, bytes: Vec<u8>) {
        if let Some(tap) = &mut self.tap {
            tap.push((from, to, bytes.clone()));
        }
        let way = (from.ip(), to.ip());
        let outer = bytes.len() + if from.is_ipv4() { 28 } else { 48 };
        if self.path_mtu.get(&way).is_some_and(|&mtu| outer > mtu) && (whole || from.is_ipv6()) {
            self.vanished.push((self.now, outer));
            return;
        }
        if whole {
            let largest = self.largest.entry(way).or_default();
            *largest = outer.max(*largest);
        }
        let weather = self.weather;
        if weather.congested && ecn != Ecn::NotEct {
            ecn = Ecn::Ce;
        }
        let here = |address: IpAddr| {
            let at = |n: &Node| n.nat.as_ref().map_or(n.address, |nat| nat.outer) == address;
            self.nodes.iter().position(at)
        };
        let down =
            [from, to].into_iter().filter_map(|end| here(end.ip())).any(|n| self.unplugged.contains(&n));
        let loss = self.loss.get(&(from.ip(), to.ip())).copied().unwrap_or_default().max(weather.loss);
        if down || self.random() % 1000 < loss {
            return;
        }
        let delay = self.delay.get(&from.ip()).copied().unwrap_or_default();
        let copies = if self.random() % 1000 < weather.duplicates { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = Duration::from_micros(self.random() % (weather.jitter.as_micros() as u64 + 1));
            self.push(
                self.now + weather.latency + delay + jitter,
                Event::Arrive { from, to, ecn, bytes: bytes.clone() },
            );
        }
    }

    fn receiver(&self, from: SocketAddr, to: SocketAddr) -> Option<(usize, usize)> {
        self.nodes.iter().enumerate().find_map(|(i, node)| {
            let lane = (0..node.cores.len()).find(|&lane| self.outside(i, lane) == to)?;
            if let Some(nat) = &node.nat {
                let used = nat.used.get(&(lane, from))?;
                if self.now.since(*used) > nat.forgets_after {
                    return None;
                }
            }
            Some((i, lane))
        })
    }

    /// Tells a core something.
    pub(crate) fn call_core(&mut self, node: usize, lane: usize, work: impl FnOnce(&mut Core)) {
        self.call(node, lane, |core, _, _| work(core));
    }

    /// Sends inner packets from `node` through the TUN queue of `lane`.
    pub(crate) fn send(&mut self, node: usize, lane: usize, packets: &[Vec<u8>]) {
        for some in packets.chunks(64) {
            let mut batch = Batch::default();
            for packet in some {
                batch.room().unwrap()[..packet.len()].copy_from_slice(packet);
                batch.push(VnetHeader::default(), packet.len());
            }
            self.call(node, lane, |core, now, out| core.handle_tun(now, &mut batch, out));
        }
    }

    /// Sends one packet that stands for many.
    pub(crate) fn send_big(&mut self, node: usize, lane: usize, header: VnetHeader, packet: &[u8]) {
        let mut batch = Batch::default();
        batch.room().unwrap()[..packet.len()].copy_from_slice(packet);
        batch.push(header, packet.len());
        self.call(node, lane, |core, now, out| core.handle_tun(now, &mut batch, out));
    }

    /// Gives datagrams to a core at once, past the network.
    pub(crate) fn inject(&mut self, node: usize, lane: usize, datagrams: &[(SocketAddr, Vec<u8>)]) {
        self.inject_marked(node, lane, Ecn::NotEct, datagrams);
    }

    /// The same, with these ECN bits in their headers.
    pub(crate) fn inject_marked(
        &mut self,
        node: usize,
        lane: usize,
        ecn: Ecn,
        datagrams: &[(SocketAddr, Vec<u8>)],
    ) {
        for some in datagrams.chunks(64) {
            let mut batch = Batch::default();
            for (from, datagram) in some {
                batch.room().unwrap()[..datagram.len()].copy_from_slice(datagram);
                batch.push(Arrival { from: *from, ecn }, datagram.len());
            }
            self.call(node, lane, |core, now, out| core.handle_udp(now, &batch, out));
        }
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(&Reverse((at, sequence))) = self.queue.peek() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.set_now(at.max(self.now));
            match self.events.remove(&sequence) {
                Some(Event::Wake { node, lane }) => {
                    if self.nodes[node].wakes[lane] == Some(at) {
                        self.nodes[node].wakes[lane] = None;
                        self.call(node, lane, |core, now, out| core.handle_timeout(now, out));
                    }
                }
                Some(Event::Arrive { from, to, ecn, bytes }) => {
                    // A probe is the only packet that is so long.
                    if let Some((node, lane)) = self.receiver(from, to)
                        && !(self.nodes[node].mute && bytes.len() == PROBE)
                    {
                        self.inject_marked(node, lane, ecn, &[(from, bytes)]);
                    }
                }
                None => unreachable!("an event is taken once"),
            }
        }
        self.set_now(end);
    }

    /// Time passes, and nobody gets to do anything meanwhile: what was due is late.
    pub(crate) fn jump(&mut self, time: Duration) {
        self.set_now(self.now + time);
    }

    fn set_now(&mut self, now: Time) {
        self.now = now;
        MockClock::set_time(Duration::from_micros(now.as_micros()));
    }

    /// Runs until `done`, at most for `most`; returns how long it took, or fails the test.
    pub(crate) fn until(&mut self, most: Duration, what: &str, done: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(self.now.since(start) < most, "not within {most:?}: {what}");
            self.run(MS);
        }
        self.now.since(start)
    }

    pub(crate) fn worker(&self, node: usize, lane: usize) -> WorkerStatus {
        self.nodes[node].cores[lane].status(PORT + lane as u16)
    }

    /// The tunnels of `node` with `peer`.
    pub(crate) fn tunnels(&self, node: usize, peer: usize) -> Vec<LaneStatus> {
        let id = &self.nodes[peer].id;
        let peers = self.nodes[node].table.status(self.now);
        peers.into_iter().find(|p| p.id == *id).map(|p| p.lanes).unwrap_or_default()
    }

    pub(crate) fn is_up(&self, node: usize, peer: usize) -> bool {
        let tunnels = self.tunnels(node, peer);
        !tunnels.is_empty() && tunnels.iter().all(|tunnel| tunnel.established)
    }

    /// Drops of a cause, of all lanes and peers of a node.
    pub(crate) fn drops(&self, node: usize, cause: DropCause) -> u64 {
        let n = &self.nodes[node];
        let workers = (0..n.cores.len()).map(|lane| self.worker(node, lane).drops.get(cause));
        let peers = n.table.status(self.now).into_iter().flat_map(|p| p.lanes).map(|l| l.drops.get(cause));
        workers.chain(peers).sum()
    }

    /// The payload numbers of what arrived at a node, in order of arrival.
    pub(crate) fn numbers(&self, node: usize) -> Vec<u32> {
        self.nodes[node].inbox.iter().map(|(_, _, packet)| number(packet)).collect()
    }
}

/// A UDP packet (with a checksum nobody looks at) that carries `number` and `padding` zeros.
pub(crate) fn udp(source: &str, destination: &str, port: u16, number: u32, padding: usize) -> Vec<u8> {
    let mut payload = port.to_be_bytes().to_vec();
    payload.extend_from_slice(&7u16.to_be_bytes());
    payload.extend_from_slice(&((12 + padding) as u16).to_be_bytes());
    payload.extend_from_slice(&[0, 0]);
    payload.extend_from_slice(&number.to_be_bytes());
    payload.resize(12 + padding, 0);
    let mut packet = Vec::new();
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
            packet.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
            packet.extend_from_slice(&s.octets());
            packet.extend_from_slice(&d.octets());
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            packet.extend_from_slice(&[17, 64]);
            packet.extend_from_slice(&s.octets());
            packet.extend_from_slice(&d.octets());
        }
        _ => panic!("mixed families"),
    }
    packet.extend_from_slice(&payload);
    packet
}

/// The number in a packet that [`udp`] made.
pub(crate) fn number(packet: &[u8]) -> u32 {
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    u32::from_be_bytes(packet[header + 8..header + 12].try_into().unwrap())
}
