//! From the TUN to the network.

use super::io::{Batch, Sink};
use super::packet::{Header, is_forwardable};
use super::{Core, Time, rendezvous};
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
        let choice = self.choose(now, route, header).ok_or(DropCause::NoGateway)?;
        if let Some(slot) = choice.also_start
            && let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize)
        {
            let due = tunnel.start(now);
            self.schedule(slot, due);
        }
        let Some(Some(tunnel)) = self.tunnels.get_mut(choice.slot as usize) else {
            return Err(DropCause::NoGateway);
        };
        let due = tunnel.send(now, segments, &mut self.shared, sink);
        self.schedule(choice.slot, due);
        Ok(())
    }

    /// Which tunnel a packet takes. The owner's own is best; gateways step in when it is not up, and
    /// meanwhile it is tried in the background, so that nothing waits for a node that may be dead.
    fn choose(&self, now: Time, route: &Route, header: &Header) -> Option<Choice> {
        let mut also_start = None;
        if let Some(owner) = route.owner {
            if let Some(slot) = self.up(now, owner) {
                return Some(Choice { slot, also_start });
            }
            also_start = self.dialable(owner);
        }
        let weighed = |&gateway: &PeerIndex| self.table.peers[gateway as usize].seed;
        let gateways = &route.gateways;
        // The hash is worth its time only where there is something to choose.
        let flow = if gateways.len() > 1 { header.flow() } else { 0 };
        let up = gateways.iter().filter_map(|g| Some((self.up(now, *g)?, weighed(g))));
        if let Some(slot) = rendezvous::choose(flow, up) {
            return Some(Choice { slot, also_start });
        }
        if let Some(slot) = also_start {
            return Some(Choice { slot, also_start: None });
        }
        let dialable = gateways.iter().filter_map(|g| Some((self.dialable(*g)?, weighed(g))));
        let any = || gateways.iter().chain(route.owner.iter()).find_map(|&peer| self.first(peer));
        let slot = rendezvous::choose(flow, dialable).or_else(any)?;
        Some(Choice { slot, also_start: None })
    }

    /// The tunnel to send to `peer` through, if one is up: the paired lane's, else any.
    fn up(&self, now: Time, peer: PeerIndex) -> Option<u32> {
        self.find(peer, |tunnel| tunnel.is_up(now))
    }

    fn dialable(&self, peer: PeerIndex) -> Option<u32> {
        self.find(peer, super::Tunnel::is_dialable)
    }

    fn first(&self, peer: PeerIndex) -> Option<u32> {
        self.find(peer, |_| true)
    }

    fn find(&self, peer: PeerIndex, fits: impl Fn(&super::Tunnel) -> bool) -> Option<u32> {
        let slots = &self.by_peer.get(peer as usize)?.slots;
        slots.iter().copied().find(|&slot| self.tunnels[slot as usize].as_ref().is_some_and(&fits))
    }
}

struct Choice {
    slot: u32,
    /// A tunnel that would be better, were it up.
    also_start: Option<u32>,
}
