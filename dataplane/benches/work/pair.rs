//! Two cores with a session between them, and no network.

use std::cell::RefCell;
use std::hint::black_box;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use podspan_dataplane::core::{Arrival, Batch, Config, Core, Departure, Sink, Time, TunnelTag};
use podspan_dataplane::offload::{Ecn, VnetHeader};
use podspan_dataplane::table::Table;
use podspan_dataplane::{DropCause, LaneSecret, PeerSpec, RouteSpec, TableSpec};
use podspan_wire::Lane;

use super::{BATCH, SEGMENTS, big, small};

/// Where cores send to.
struct Out {
    datagram: Vec<u8>,
    packet: Vec<u8>,
    /// Datagrams one after the other, and where each ends.
    sent: Vec<u8>,
    ends: Vec<usize>,
    delivered: usize,
}

impl Default for Out {
    fn default() -> Self {
        let (datagram, packet) = (vec![0; 65_568], vec![0; 65_568]);
        Self {
            datagram,
            packet,
            sent: Vec::with_capacity(1 << 20),
            ends: Vec::with_capacity(256),
            delivered: 0,
        }
    }
}

impl Sink for Out {
    fn datagram(&mut self, _: usize) -> &mut [u8] {
        &mut self.datagram
    }

    fn send(&mut self, length: usize, _: Departure) -> Result<(), DropCause> {
        self.sent.extend_from_slice(&self.datagram[..length]);
        self.ends.push(self.sent.len());
        Ok(())
    }

    fn packet(&mut self, _: usize) -> &mut [u8] {
        &mut self.packet
    }

    fn deliver(&mut self, length: usize, _: TunnelTag) -> Result<(), DropCause> {
        black_box(&self.packet[..length]);
        self.delivered += 1;
        Ok(())
    }
}

struct End {
    core: Core,
    out: Out,
}

impl End {
    fn clear(&mut self) {
        self.out.sent.clear();
        self.out.ends.clear();
        self.out.delivered = 0;
    }

    /// The datagrams that it sent, as they arrive.
    fn take(&mut self, from: SocketAddr) -> Batch<Arrival> {
        let mut batch = Batch::default();
        let arrival = Arrival { from, ecn: Ecn::NotEct };
        let mut start = 0;
        for &end in &self.out.ends {
            let datagram = &self.out.sent[start..end];
            let Some(room) = batch.room() else { panic!("more datagrams than a batch holds") };
            room[..datagram.len()].copy_from_slice(datagram);
            batch.push(arrival, datagram.len());
            start = end;
        }
        self.clear();
        batch
    }
}

/// Both ends. The first sends to the second.
pub(crate) struct Pair {
    ends: [Rc<RefCell<End>>; 2],
    now: Time,
}

const PORT: u16 = 51840;

fn address(n: usize) -> SocketAddr {
    ([192, 0, 2, n as u8 + 1], PORT).into()
}

impl Pair {
    /// Cores that have shaken hands.
    pub(crate) fn established() -> Self {
        let secrets = [1, 2].map(|n| LaneSecret::from_bytes([n * 16; 32]));
        let end = |n: usize| {
            let (own, other) = (&secrets[n], &secrets[1 - n]);
            let id: podspan_wire::NodeId = format!("cloud{}/node", 2 - n).parse().unwrap();
            let peer = PeerSpec {
                id: id.clone(),
                lanes: vec![Lane { key: other.public(), port: PORT }],
                endpoints: vec![address(1 - n).ip()],
                learned: vec![],
                persistent_keepalive: None,
                dial: n == 0,
                weight: 10,
                relays: false,
            };
            let cidr = format!("10.{}.0.0/16", 2 - n).parse().unwrap();
            let routes = vec![RouteSpec { cidr, owner: Some(id), gateways: vec![] }];
            let spec = TableSpec { peers: vec![peer], routes, clusters: vec![] };
            let (table, rejected) = Table::new(spec, &[own.public()], &Table::default());
            assert_eq!(rejected, []);
            let mut core =
                Core::new(Config { lane: 0, secret: own.clone(), handshake_limit: 1000, seed: 7 + n as u64 });
            core.set_table(Time::default(), Arc::new(table));
            Rc::new(RefCell::new(End { core, out: Out::default() }))
        };
        let mut pair = Self { ends: [end(0), end(1)], now: Time::default() };
        for _ in 0..8 {
            pair.now = pair.now + Duration::from_millis(1);
            for n in [0, 1] {
                let (mut from, mut to) = (pair.ends[n].borrow_mut(), pair.ends[1 - n].borrow_mut());
                let End { core, out } = &mut *from;
                core.handle_timeout(pair.now, out);
                let batch = from.take(address(n));
                let End { core, out } = &mut *to;
                core.handle_udp(pair.now, &batch, out);
            }
        }
        // What went to and fro is not to be seen in the first round.
        pair.ends.iter().for_each(|end| end.borrow_mut().clear());
        pair
    }

    fn tun(big_packet: bool) -> Batch<VnetHeader> {
        let mut batch = Batch::default();
        let mut push = |header, packet: &[u8]| {
            let room = batch.room().unwrap();
            room[..packet.len()].copy_from_slice(packet);
            batch.push(header, packet.len());
        };
        if big_packet {
            let (header, packet) = big();
            push(header, &packet);
        } else {
            (0..BATCH).for_each(|_| push(VnetHeader::default(), &small()));
        }
        batch
    }

    /// A round of sealing.
    pub(crate) fn sealing(&mut self, big: bool) -> impl FnMut() + use<> {
        let (end, now) = (Rc::clone(&self.ends[0]), self.now);
        end.borrow_mut().clear();
        let mut batch = Self::tun(big);
        move || {
            let End { core, out } = &mut *end.borrow_mut();
            core.handle_tun(now, &mut batch, out);
            assert_eq!(out.ends.len(), if big { SEGMENTS } else { BATCH });
        }
    }

    /// A round of opening what was just sealed.
    pub(crate) fn opening(&mut self, big: bool) -> impl FnMut() + use<> {
        self.sealing(big)();
        let batch = self.ends[0].borrow_mut().take(address(0));
        let (end, now) = (Rc::clone(&self.ends[1]), self.now);
        end.borrow_mut().clear();
        move || {
            let End { core, out } = &mut *end.borrow_mut();
            core.handle_udp(now, &batch, out);
            assert_eq!(out.delivered, if big { SEGMENTS } else { BATCH });
        }
    }
}
