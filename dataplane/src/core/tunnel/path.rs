//! How packets of different sizes cross a tunnel, and the probes that tell.

use std::time::Duration;

use tracing::{debug, info, warn};

use super::Tunnel;
use crate::core::health::{Demand, State};
use crate::core::io::{Departure, OVERHEAD, Sink, TunnelTag};
use crate::core::noise::MAX_HANDSHAKE;
use crate::core::pieces::Cut;
use crate::core::pmtu::{News, Way};
use crate::core::probe::{Kind, Probe};
use crate::core::{Shared, Time};
use crate::offload::Ecn;

/// In the stamp of a probe that asks for the path's MTU; those that ask for liveness have a time there.
const OF_PATH: u64 = 1 << 63;

/// Between looks at what nobody waits for.
const LEISURE: Duration = Duration::from_millis(500);

impl Tunnel {
    /// The size to tell the sender of a packet of `length` bytes that may not be fragmented, if it is too
    /// large for the path.
    pub(crate) fn refuses(&mut self, length: usize) -> Option<u16> {
        match self.path.way(length, || true) {
            Way::TooBig(size) => Some(size),
            Way::Loose | Way::Whole | Way::Pieces(_) => None,
        }
    }

    /// Sends a packet, in pieces if need be.
    pub(super) fn cross(&mut self, now: Time, packet: &[u8], shared: &Shared, sink: &mut impl Sink) {
        let ecn = Ecn::of(packet);
        let Way::Pieces(size) = self.path.way(packet.len(), || false) else {
            if self.seal(now, packet, ecn, shared, sink) {
                self.count_sent(packet);
            }
            return;
        };
        self.cut = self.cut.wrapping_add(1);
        let (mut pieces, mut piece, mut left) = (Cut::new(packet, self.cut, size), Vec::new(), true);
        while pieces.next(&mut piece) {
            left &= self.seal(now, &piece, ecn, shared, sink);
        }
        if left {
            self.count_sent(packet);
        }
    }

    /// Sends the probe that is due, if one is, and draws conclusions from earlier ones. Returns when to do so
    /// again.
    pub(super) fn tick_path(
        &mut self,
        now: Time,
        demand: Demand,
        shared: &Shared,
        sink: &mut impl Sink,
    ) -> Option<Time> {
        if !self.health.proven() {
            self.path.forget();
            return None;
        }
        let to = self.endpoint?;
        self.path.set_path(now, to, shared.limits);
        let link = self.health.link(now);
        if let Some(news) = self.path.judge(now, &link) {
            self.note_path(now, news);
        }
        // The routes to a whole cluster follow its narrowest path, so a black hole is looked after although
        // nothing uses the tunnel. A path that was narrow ever since is not: there may be thousands of these.
        let wanted = demand == Demand::InUse
            || (self.path.is_searching() && demand != Demand::Nobody)
            || self.path.may_heal(now);
        if matches!(self.health.state(), State::Unproven | State::Dead) {
            return None;
        }
        if !wanted {
            return self.path.heal_at();
        }
        let hurry = demand == Demand::InUse || self.path.is_searching();
        if let Some((number, size)) = self.path.probe(now) {
            let probe = Probe {
                kind: Kind::Request,
                draining: shared.draining,
                sequence: number,
                size,
                pace: shared.pace,
                stamp: OF_PATH | u64::from(number),
            };
            self.send_path_probe(now, &probe.padded(), shared, sink);
        }
        self.path.due(now, &link).map(|due| if hurry { due } else { due.max(now + LEISURE) })
    }

    fn send_path_probe(&mut self, now: Time, probe: &[u8], shared: &Shared, sink: &mut impl Sink) {
        let (Some(to), Some(noise)) = (self.endpoint, &mut self.noise) else { return };
        let out = sink.datagram((probe.len() + OVERHEAD).max(MAX_HANDSHAKE));
        let Some(length) = noise.seal(probe, out) else { return };
        self.note_sent(now);
        self.profile.counters.path_probes.add(1);
        let how = Departure { whole: true, tunnel: TunnelTag::TRIAL, ..self.departure(to) };
        // What the interface itself does not take is lost, like what a router does not.
        if sink.send(length, how).is_ok() {
            shared.counters.tx_outer_packets.add(1);
            shared.counters.tx_outer_bytes.add(length as u64);
        }
    }

    /// Whether a reply is to a probe that asked for the path's MTU.
    pub(super) fn is_of_path(reply: &Probe) -> bool {
        reply.stamp & OF_PATH != 0
    }

    /// Takes such a reply in.
    pub(super) fn path_replied(&mut self, now: Time, reply: &Probe) {
        if let Some(news) = self.path.reply(now, reply.sequence, reply.size) {
            self.note_path(now, news);
        }
    }

    /// Tells the world what was found.
    fn note_path(&mut self, now: Time, news: News) {
        let (peer, remote, endpoint) = (&self.profile.id, self.profile.remote, self.endpoint);
        let black_hole = self.path.black_hole();
        match news {
            News::BlackHole(size) if black_hole == Some((now, size)) => warn!(
                %peer, remote, ?endpoint, size,
                "a black hole: packets of this size do not arrive any more though small ones do; they cross in \
                 pieces until it is known what the path takes"
            ),
            News::BlackHole(size) => debug!(%peer, remote, ?endpoint, size, "the black hole is larger"),
            News::Found(size) if black_hole.is_some() => {
                info!(%peer, remote, ?endpoint, size, "what the path takes beside the black hole");
            }
            News::Found(size) => debug!(%peer, remote, ?endpoint, size, "what the path takes"),
        }
        self.profile.counters.set_path(&self.path);
    }
}
