//! A gateway that all its peers dial at once, as after its restart. Its core's own time is measured and counts: while
//! it works, virtual time passes and datagrams wait in a socket's buffer of bounded size, or are lost.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mock_instant::MockClock;
use podspan_dataplane::core::{Arrival, Batch, Config, Core, Departure, Sink, Time, TunnelTag};
use podspan_dataplane::offload::{Ecn, VnetHeader};
use podspan_dataplane::table::Table;
use podspan_dataplane::{DEFAULT_HANDSHAKE_LIMIT, DropCause, LaneSecret, PeerSpec, RouteSpec, TableSpec};
use podspan_wire::{Lane, LaneKey};

use crate::net::{MS, PORT, S, cpu, udp};

const PEERS: usize = 10_000;
const LATENCY: Duration = Duration::from_millis(10);
/// Datagrams that a socket's buffer of 4 MB holds, small ones too: the kernel counts some 2 KB for each.
const BUFFER: usize = 2000;
/// Between two packets of the flow that was there before.
const GAP: Duration = Duration::from_micros(200);

#[derive(Default)]
struct Out {
    datagram: Vec<u8>,
    packet: Vec<u8>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    delivered: u64,
}

impl Out {
    fn new() -> Self {
        Self { datagram: vec![0; 65_568], packet: vec![0; 65_568], ..Self::default() }
    }
}

impl Sink for Out {
    fn datagram(&mut self, _: usize) -> &mut [u8] {
        &mut self.datagram
    }

    fn send(&mut self, length: usize, how: Departure) -> Result<(), DropCause> {
        self.sent.push((how.to, self.datagram[..length].to_vec()));
        Ok(())
    }

    fn packet(&mut self, _: usize) -> &mut [u8] {
        &mut self.packet
    }

    fn deliver(&mut self, _: usize, _: TunnelTag) -> Result<(), DropCause> {
        self.delivered += 1;
        Ok(())
    }
}

fn secret(n: usize) -> LaneSecret {
    let mut bytes = [1; 32];
    bytes[8..16].copy_from_slice(&(n as u64 + 1).to_le_bytes());
    LaneSecret::from_bytes(bytes)
}

/// The gateway is number 0.
fn address(n: usize) -> SocketAddr {
    ([10, (n >> 16) as u8, (n >> 8) as u8, n as u8], PORT).into()
}

fn table(own: LaneKey, peers: impl Iterator<Item = (usize, LaneKey)>, dial: bool) -> Arc<Table> {
    let id = |n: usize| format!("cloud/n{n}").parse().unwrap();
    let peers: Vec<_> = peers
        .map(|(n, key)| PeerSpec {
            id: id(n),
            lanes: vec![Lane { key, port: PORT }],
            endpoints: vec![address(n).ip()],
            learned: vec![],
            persistent_keepalive: None,
            dial,
            weight: 10,
            relays: false,
        })
        .collect();
    let route = |peer: &PeerSpec, cidr: &str| RouteSpec {
        cidr: cidr.parse().unwrap(),
        owner: Some(peer.id.clone()),
        gateways: vec![],
    };
    let prefixes = ["172.16.0.0/16", "172.17.0.0/16"];
    let routes = peers.iter().take(1).map(|peer| route(peer, prefixes[usize::from(dial)])).collect();
    let (table, rejected) =
        Table::new(TableSpec { peers, routes, clusters: vec![] }, &[own], &Table::default());
    assert_eq!(rejected, []);
    Arc::new(table)
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Something reaches node `to`.
    Arrive {
        to: usize,
        from: usize,
        bytes: Vec<u8>,
    },
    Wake {
        node: usize,
    },
    /// The established flow sends its next packet.
    Flow,
}

struct Storm {
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    gateway: Core,
    inbox: VecDeque<(usize, Vec<u8>)>,
    busy_until: Time,
    spent: Duration,
    overflowed: u64,
    nodes: Vec<Core>,
    wakes: Vec<Option<Time>>,
    out: Out,
    delivered: u64,
}

impl Storm {
    fn push(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    /// Lets node `n`, not the gateway, do something.
    fn node(&mut self, n: usize, work: impl FnOnce(&mut Core, Time, &mut Out)) {
        work(&mut self.nodes[n - 1], self.now, &mut self.out);
        for (_, bytes) in std::mem::take(&mut self.out.sent) {
            self.push(self.now + LATENCY, Event::Arrive { to: 0, from: n, bytes });
        }
        if let Some(at) = self.nodes[n - 1].poll_timeout() {
            let at = at.max(self.now);
            if self.wakes[n - 1].is_none_or(|earlier| at < earlier || earlier < self.now) {
                self.wakes[n - 1] = Some(at);
                self.push(at, Event::Wake { node: n });
            }
        }
    }

    /// One turn of the gateway's worker.
    fn turn(&mut self) {
        let mut batch = Batch::default();
        while let Some(room) = batch.room() {
            let Some((from, bytes)) = self.inbox.pop_front() else { break };
            room[..bytes.len()].copy_from_slice(&bytes);
            batch.push(Arrival { from: address(from), ecn: Ecn::NotEct }, bytes.len());
        }
        let start = cpu();
        self.gateway.handle_udp(self.now, &batch, &mut self.out);
        if self.gateway.poll_timeout().is_some_and(|at| at <= self.now) {
            self.gateway.handle_timeout(self.now, &mut self.out);
        }
        let took = cpu() - start;
        self.spent += took;
        self.busy_until = self.now + took.max(Duration::from_micros(1));
        for (to, bytes) in std::mem::take(&mut self.out.sent) {
            let SocketAddr::V4(v4) = to else { panic!("to {to}") };
            let [_, a, b, c] = v4.ip().octets();
            let to = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            self.push(self.busy_until + LATENCY, Event::Arrive { to, from: 0, bytes });
        }
        self.delivered += std::mem::take(&mut self.out.delivered);
    }

    /// Goes on until `end`.
    fn run(&mut self, end: Time) {
        loop {
            let wants = if self.inbox.is_empty() { self.gateway.poll_timeout() } else { Some(self.now) };
            let turn = wants.map(|at| at.max(self.busy_until).max(self.now));
            let next = self.events.peek().map(|Reverse((at, ..))| *at);
            let at = turn.into_iter().chain(next).min().unwrap_or(end);
            if at >= end {
                self.now = end;
                return;
            }
            self.now = at.max(self.now);
            MockClock::set_time(Duration::from_micros(self.now.as_micros()));
            if turn.is_some_and(|turn| next.is_none_or(|next| turn < next)) {
                self.turn();
                continue;
            }
            let Some(Reverse((_, _, event))) = self.events.pop() else { continue };
            match event {
                Event::Arrive { to: 0, .. } if self.inbox.len() >= BUFFER => self.overflowed += 1,
                Event::Arrive { to: 0, from, bytes } => self.inbox.push_back((from, bytes)),
                Event::Arrive { to, bytes, .. } => {
                    let mut batch = Batch::default();
                    batch.room().unwrap()[..bytes.len()].copy_from_slice(&bytes);
                    batch.push(Arrival { from: address(0), ecn: Ecn::NotEct }, bytes.len());
                    self.node(to, |core, now, out| core.handle_udp(now, &batch, out));
                    self.node(to, |core, now, out| core.handle_timeout(now, out));
                }
                Event::Wake { node } => {
                    self.wakes[node - 1] = None;
                    self.node(node, |core, now, out| core.handle_timeout(now, out));
                }
                Event::Flow => {
                    let packet = udp("172.16.0.1", "172.17.0.1", 1, 1, 1100);
                    let mut batch = Batch::default();
                    batch.room().unwrap()[..packet.len()].copy_from_slice(&packet);
                    batch.push(VnetHeader::default(), packet.len());
                    self.node(1, |core, now, out| core.handle_tun(now, &mut batch, out));
                    self.push(self.now + GAP, Event::Flow);
                }
            }
        }
    }

    fn up(&self) -> u64 {
        self.gateway.status(PORT).handshakes
    }
}

#[test]
fn ten_thousand_peers_at_once_take_less_than_ten_seconds_of_a_core_and_the_flow_goes_on() {
    let keys: Vec<LaneKey> = (0..=PEERS).map(|n| secret(n).public()).collect();
    let core = |n: usize| {
        let secret = secret(n);
        Core::new(Config { lane: 0, secret, handshake_limit: DEFAULT_HANDSHAKE_LIMIT, seed: n as u64 })
    };
    let mut storm = Storm {
        now: Time::default(),
        events: BinaryHeap::new(),
        sequence: 0,
        gateway: core(0),
        inbox: VecDeque::new(),
        busy_until: Time::default(),
        spent: Duration::ZERO,
        overflowed: 0,
        nodes: (1..=PEERS).map(core).collect(),
        wakes: vec![None; PEERS],
        out: Out::new(),
        delivered: 0,
    };
    let peers = (1..=PEERS).map(|n| (n, keys[n]));
    storm.gateway.set_table(storm.now, table(keys[0], peers, false));
    let join = |storm: &mut Storm, n: usize| {
        let table = table(keys[n], std::iter::once((0, keys[0])), true);
        storm.node(n, |core, now, _| core.set_table(now, table));
    };
    join(&mut storm, 1);
    storm.run(storm.now + 100 * MS);
    assert_eq!(storm.up(), 1);
    storm.push(storm.now, Event::Flow);
    storm.run(storm.now + 100 * MS);

    // All others at once.
    let (begin, before, spent) = (storm.now, storm.delivered, storm.spent);
    (2..=PEERS).for_each(|n| join(&mut storm, n));
    while storm.up() < PEERS as u64 {
        assert!(
            storm.now.since(begin) < 20 * S,
            "{} of {PEERS} are up after 20 s, of which the gateway worked {:?}; {} datagrams did not fit its socket; {:?}",
            storm.up(),
            storm.spent - spent,
            storm.overflowed,
            storm.gateway.status(PORT).drops
        );
        storm.run(storm.now + 100 * MS);
    }
    let took = storm.now.since(begin);
    let sent = took.as_micros() / GAP.as_micros();
    let got = storm.delivered - before;
    assert!(storm.spent - spent < 10 * S, "{:?} of the core's time", storm.spent - spent);
    println!(
        "{PEERS} peers up in {took:?}, {:?} of the core's time; {got} of {sent} packets of the flow arrived",
        storm.spent - spent
    );
    // Those under way at either end are a hundred.
    assert!(u128::from(got) + 100 >= sent * 95 / 100, "{got} of {sent} packets of the flow arrived");
}
