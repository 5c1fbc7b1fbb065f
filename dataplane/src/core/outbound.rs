//! From the TUN to the network.

use super::health::Rank;
use super::io::{Batch, Sink, TunnelTag};
use super::packet::{Header, is_forwardable};
use super::unreachable::Why;
use super::{Core, Time, rendezvous, unreachable};
use crate::counters::DropCause;
use crate::offload::{Segments, VnetHeader};
use crate::table::{PeerIndex, Route};

impl Core {
    /// Sends packets that came from the TUN, big ones cut into those that they stand for. What is in the
    /// batch is changed thereby.
    pub fn handle_tun(&mut self, now: Time, batch: &mut Batch<VnetHeader>, sink: &mut impl Sink) {
        self.busy |= !batch.is_empty();
        for (&offload, packet) in batch.iter_mut() {
            if let Err((cause, packets)) = self.send_packet(now, offload, packet, sink) {
                self.shared.counters.drops.add(cause, packets);
            }
        }
    }

    /// On an error all packets that `packet` stands for are lost: the cause, and how many.
    fn send_packet(
        &mut self,
        now: Time,
        offload: VnetHeader,
        packet: &mut [u8],
        sink: &mut impl Sink,
    ) -> Result<(), (DropCause, u64)> {
        let counters = &self.shared.counters;
        let malformed = |length: usize| {
            counters.tx_inner_packets.add(1);
            counters.tx_inner_bytes.add(length as u64);
            (DropCause::Malformed, 1)
        };
        let header = Header::parse(packet).ok_or_else(|| malformed(packet.len()))?;
        // What is to be cut is no longer than it says; only a packet that goes as it is may have padding.
        if offload != VnetHeader::default() && header.length != packet.len() {
            return Err(malformed(packet.len()));
        }
        let mut segments =
            Segments::new(offload, &mut packet[..header.length]).ok_or_else(|| malformed(header.length))?;
        let packets = segments.count() as u64;
        counters.tx_inner_packets.add(packets);
        counters.tx_inner_bytes.add(segments.bytes() as u64);
        self.send_segments(now, &header, &mut segments, sink).map_err(|cause| (cause, packets))
    }

    fn send_segments(
        &mut self,
        now: Time,
        header: &Header,
        segments: &mut Segments<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), DropCause> {
        if !is_forwardable(header.destination) {
            return Err(DropCause::NotUnicast);
        }
        let route = self.table.route_by(&mut self.recent, header.destination).ok_or(DropCause::NoRoute)?;
        let cluster = route.cluster;
        let choice = self.choose(now, route, header);
        self.note_use(now, cluster, choice.slot);
        if let Some(slot) = choice.better {
            self.note_missed(now, slot);
        }
        if choice.dead {
            let silent = cluster.is_some_and(|cluster| self.table.clusters[cluster as usize].silent);
            if !silent {
                self.tell_sender(now, Why::Unreachable, header, segments, sink);
            }
            return Err(DropCause::Unreachable);
        }
        let slot = choice.slot.ok_or(DropCause::NoGateway)?;
        let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else {
            return Err(DropCause::NoGateway);
        };
        if header.firm
            && let Some(size) = tunnel.refuses(segments.largest())
        {
            tunnel.profile.counters.drops.add(DropCause::TooBig, segments.count() as u64);
            self.tell_sender(now, Why::TooBig(size), header, segments, sink);
            return Ok(());
        }
        let due = tunnel.send(now, segments, &mut self.shared, sink);
        self.schedule(slot, due);
        Ok(())
    }

    /// Tells who sends a packet that it cannot be passed on, so that nobody waits for what cannot come.
    fn tell_sender(
        &mut self,
        now: Time,
        why: Why,
        header: &Header,
        segments: &mut Segments<'_>,
        sink: &mut impl Sink,
    ) {
        let Some(packet) = segments.advance() else { return };
        if !self.shared.unreachable.take(now) {
            return;
        }
        let room = sink.packet(unreachable::MOST);
        if let Some(length) = unreachable::write(why, header, packet, room)
            && sink.deliver(length, TunnelTag::default()).is_ok()
        {
            match why {
                Why::Unreachable => self.shared.counters.unreachables.add(1),
                Why::TooBig(_) => self.shared.counters.too_bigs.add(1),
            }
        }
    }

    /// Which tunnel a packet takes. The owner's own is best; gateways step in when it does not do well, and
    /// meanwhile it is tried in the background, so that nothing waits for a node that may be dead. Of the
    /// gateways only those of the best [`Rank`] count, so that a flow stays with its own for as long as that
    /// one is among them.
    fn choose(&self, now: Time, route: &Route, header: &Header) -> Choice {
        let owner = route.owner.and_then(|owner| self.best(now, owner));
        let gateways = &route.gateways;
        let rank_of = |&gateway: &PeerIndex| self.best(now, gateway).map(|(rank, _)| rank);
        let best = match owner {
            // That another gateway is nearer says nothing of the way to the node itself.
            Some((Rank::Good | Rank::Far, _)) => None,
            _ => gateways.iter().filter_map(rank_of).min(),
        };
        let (rank, slot, better) = match (owner, best) {
            (Some((rank, slot)), best) if best.is_none_or(|best| rank <= best) => (rank, Some(slot), None),
            (owner, Some(best)) => {
                // The hash is worth its time only where there is something to choose.
                let flow = if gateways.len() > 1 { header.flow() } else { 0 };
                let among = gateways.iter().filter_map(|&gateway| {
                    let (_, slot) = self.best(now, gateway).filter(|&(rank, _)| rank == best)?;
                    let peer = &self.table.peers[gateway as usize];
                    Some((slot, peer.seed, peer.spec.weight))
                });
                let slot = match route.weighted {
                    true => rendezvous::choose_weighted(flow, among),
                    false => rendezvous::choose(flow, among.map(|(slot, seed, _)| (slot, seed))),
                };
                let better = owner.filter(|&(rank, _)| rank != Rank::Absent).map(|(_, slot)| slot);
                (best, slot, better)
            }
            (_, None) => (Rank::Absent, None, None),
        };
        Choice { slot, dead: rank == Rank::Dead, better }
    }

    /// The best tunnel of `peer`; of equal ones that of the paired lanes.
    fn best(&self, now: Time, peer: PeerIndex) -> Option<(Rank, u32)> {
        let slots = &self.by_peer.get(peer as usize)?.slots;
        let rank = |&slot: &u32| Some((self.tunnels[slot as usize].as_ref()?.rank(now), slot));
        match slots.as_slice() {
            [slot] => rank(slot),
            slots => slots.iter().filter_map(rank).min_by_key(|&(rank, _)| rank),
        }
    }
}

struct Choice {
    slot: Option<u32>,
    /// Whether it is dead, and so are all others.
    dead: bool,
    /// A tunnel that would be better, did it work.
    better: Option<u32>,
}
