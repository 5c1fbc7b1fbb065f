//! From the network to the TUN.

use std::net::SocketAddr;

use super::io::{Arrival, Batch, Departure, Sink, TunnelTag};
use super::noise::{Kind, MAX_HANDSHAKE, Opened, Refused};
use super::packet::{Header, is_forwardable};
use super::pieces::Piece;
use super::probe::{Probe, Read};
use super::tunnel::Tunnel;
use super::{Core, HANDSHAKE_QUEUE, Time};
use crate::counters::DropCause;
use crate::offload::Ecn;

/// A handshake message that waits its turn.
pub(super) struct Handshake {
    from: SocketAddr,
    kind: Kind,
    length: usize,
    bytes: [u8; MAX_HANDSHAKE],
}

impl Core {
    /// Takes datagrams in: data is passed on at once; handshakes are checked and wait for
    /// [`Core::handle_timeout`].
    pub fn handle_udp(&mut self, now: Time, batch: &Batch<Arrival>, sink: &mut impl Sink) {
        self.tick_door(now);
        let (mut packets, mut bytes) = (0, 0);
        let data = batch.iter().filter_map(|(_, datagram)| match Kind::of(datagram) {
            Some(Kind::Data(index)) => Some(index),
            _ => None,
        });
        let overloaded = self.overload.begin(now, batch.is_full(), data);
        for (&Arrival { from, ecn }, datagram) in batch.iter() {
            packets += 1;
            bytes += datagram.len() as u64;
            let from = super::peers::canonical(from);
            let result = match Kind::of(datagram) {
                None => Err(DropCause::Malformed),
                Some(Kind::Data(index)) if overloaded && !self.overload.admits(index) => {
                    Err(DropCause::Overload)
                }
                Some(Kind::Data(index)) => {
                    self.busy = true;
                    self.handle_data(now, Arrival { from, ecn }, index, datagram, sink)
                }
                Some(kind) => self.enqueue_handshake(now, from, kind, datagram, sink),
            };
            if let Err(cause) = result {
                self.shared.counters.drops.count(cause);
            }
        }
        self.shared.counters.rx_outer_packets.add(packets);
        self.shared.counters.rx_outer_bytes.add(bytes);
    }

    pub(super) fn slot_of(&self, index: u32) -> Option<u32> {
        let slot = index ^ self.mask;
        self.tunnels.get(slot as usize)?.as_ref().map(|_| slot)
    }

    /// An error is charged to the worker; what the tunnel is charged with it counts itself.
    fn handle_data(
        &mut self,
        now: Time,
        Arrival { from, ecn }: Arrival,
        index: u32,
        datagram: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), DropCause> {
        let Some(slot) = self.slot_of(index) else {
            if self.shared.lent && self.is_foreign_kind(Kind::Data(index)) {
                self.note_followed(from);
                return Ok(());
            }
            self.poke(now, from);
            return Err(DropCause::UnknownSession);
        };
        let Some(tunnel) = &mut self.tunnels[slot as usize] else { return Err(DropCause::UnknownSession) };
        let before = tunnel.endpoint;
        let (opened, confirmed) = match tunnel.open(now, from, datagram, sink) {
            Ok(opened) => opened,
            Err(cause) => {
                // Anybody may send with this index: the peer is charged only with what it really sent.
                let proven = cause == DropCause::Replay && before == Some(from);
                if cause == DropCause::UnknownSession || cause == DropCause::Unauthenticated {
                    self.poke(now, from);
                }
                if proven && let Some(Some(tunnel)) = self.tunnels.get(slot as usize) {
                    tunnel.profile.counters.drops.count(cause);
                    return Ok(());
                }
                return Err(cause);
            }
        };
        if before != Some(from) {
            self.follow_endpoint(slot, before);
        }
        let delivered = match opened {
            Opened::Keepalive => Ok(0),
            Opened::NotIp => Err(DropCause::Malformed),
            Opened::Packet(length) => match Probe::read(&sink.packet(length)[..length]) {
                Read::NoProbe => self.deliver(slot, length, ecn, sink),
                Read::Probe(probe) => self.probed(now, slot, &probe, sink),
                Read::Bad => self.add_piece(now, slot, length, ecn, sink),
            },
        };
        let Some(tunnel) = &mut self.tunnels[slot as usize] else { return Ok(()) };
        match delivered {
            Ok(0) => {}
            Ok(length) => {
                tunnel.profile.counters.rx_packets.add(1);
                tunnel.profile.counters.rx_bytes.add(length as u64);
            }
            Err(cause) => tunnel.profile.counters.drops.count(cause),
        }
        if confirmed {
            tunnel.after_open(now, &mut self.shared, sink);
            let due = tunnel.next_tick(now, true);
            self.schedule(slot, due);
        }
        Ok(())
    }

    /// Takes in the piece of a packet that lies in the sink's room, and passes the packet on if it was the last
    /// one. Returns the packet's length, or 0.
    fn add_piece(
        &mut self,
        now: Time,
        slot: u32,
        length: usize,
        outer: Ecn,
        sink: &mut impl Sink,
    ) -> Result<usize, DropCause> {
        let piece = Piece::read(&sink.packet(length)[..length]).ok_or(DropCause::BadProbe)?;
        let (whole, given_up) = self.pieces.add(now, slot, outer, piece);
        self.shared.counters.drops.add(DropCause::Incomplete, given_up);
        let Some((packet, outer)) = whole else { return Ok(0) };
        sink.packet(packet.len())[..packet.len()].copy_from_slice(&packet);
        self.deliver(slot, packet.len(), outer, sink)
    }

    /// Passes the opened packet in the sink's room on, if the peer may send it. Returns its length. `outer` is
    /// what its datagram came with.
    fn deliver(
        &mut self,
        slot: u32,
        length: usize,
        outer: Ecn,
        sink: &mut impl Sink,
    ) -> Result<usize, DropCause> {
        let Some(Some(tunnel)) = self.tunnels.get(slot as usize) else {
            return Err(DropCause::UnknownSession);
        };
        let packet = &mut sink.packet(length)[..length];
        let header = Header::parse(packet).ok_or(DropCause::Malformed)?;
        let route = self.table.route_by(&mut self.recent, header.source).ok_or(DropCause::SourceMismatch)?;
        if !self.table.may_send(tunnel.profile.peer, route) {
            return Err(DropCause::SourceMismatch);
        }
        if !is_forwardable(header.destination) {
            return Err(DropCause::NotUnicast);
        }
        let inner = Ecn::of(packet);
        let marked = inner.decapsulated(outer).ok_or(DropCause::CongestionMarked)?;
        if marked != inner {
            marked.write(packet);
        }
        sink.deliver(header.length, tunnel.tag())?;
        self.shared.counters.rx_inner_packets.add(1);
        self.shared.counters.rx_inner_bytes.add(header.length as u64);
        Ok(header.length)
    }

    /// Somebody uses a session that is not known here. If a peer lives at that address, this node may have
    /// lost the session in a restart: shake hands, so that the peer need not wait for its timers.
    fn poke(&mut self, now: Time, from: SocketAddr) {
        let Some(&slot) = self.by_endpoint.get(&from) else { return };
        let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { return };
        if tunnel.poke(now) {
            self.schedule(slot, Some(now));
        }
    }

    fn enqueue_handshake(
        &mut self,
        now: Time,
        from: SocketAddr,
        kind: Kind,
        message: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), DropCause> {
        if self.shared.lent && self.is_foreign_kind(kind) {
            return Ok(());
        }
        // Answers that nobody waits for must not fill the queue: a cookie reply has no MAC of its own.
        if let Kind::Response(index) | Kind::Cookie(index) = kind {
            let tunnel = self.slot_of(index).and_then(|slot| self.tunnels[slot as usize].as_ref());
            if !tunnel.is_some_and(Tunnel::expects_answer) {
                return Err(DropCause::UnknownSession);
            }
        }
        if !matches!(kind, Kind::Cookie(_)) {
            match self.shared.door.check(from.ip(), message, sink.datagram(MAX_HANDSHAKE)) {
                Ok(()) => {}
                Err(Refused::Drop(cause)) => return Err(cause),
                Err(Refused::Cookie(length)) => {
                    self.shared.counters.cookies.add(1);
                    let tunnel = TunnelTag::default();
                    sink.send(length, Departure { to: from, ecn: Ecn::NotEct, whole: false, tunnel })?;
                    self.shared.counters.tx_outer_packets.add(1);
                    self.shared.counters.tx_outer_bytes.add(length as u64);
                    return Err(DropCause::UnderLoad);
                }
            }
        }
        let mut bytes = [0; MAX_HANDSHAKE];
        bytes[..message.len()].copy_from_slice(message);
        let handshake = Handshake { from, kind, length: message.len(), bytes };
        // A cookie is one decryption: cheaper than a place in the queue.
        if matches!(kind, Kind::Cookie(_)) {
            return self.shake(now, &handshake, sink);
        }
        if self.handshakes.len() >= HANDSHAKE_QUEUE {
            return Err(DropCause::QueueFull);
        }
        self.handshakes.push_back(handshake);
        Ok(())
    }

    pub(super) fn work_on_handshakes(&mut self, now: Time, turn: usize, sink: &mut impl Sink) {
        for _ in 0..turn {
            let Some(handshake) = self.handshakes.pop_front() else { break };
            if let Err(cause) = self.shake(now, &handshake, sink) {
                self.shared.counters.drops.count(cause);
            }
        }
    }

    fn shake(&mut self, now: Time, handshake: &Handshake, sink: &mut impl Sink) -> Result<(), DropCause> {
        let message = &handshake.bytes[..handshake.length];
        let slot = match handshake.kind {
            Kind::Initiation => {
                let key = self.shared.door.initiator(message).ok_or(DropCause::Unauthenticated)?;
                *self.by_key.get(&key).ok_or(DropCause::UnknownPeer)?
            }
            Kind::Response(index) | Kind::Cookie(index) | Kind::Data(index) => {
                self.slot_of(index).ok_or(DropCause::UnknownSession)?
            }
        };
        let Some(tunnel) = &mut self.tunnels[slot as usize] else { return Err(DropCause::UnknownSession) };
        let before = tunnel.endpoint;
        tunnel.shake(now, handshake.from, handshake.kind, message, &mut self.shared, sink)?;
        let due = tunnel.next_tick(now, true);
        self.schedule(slot, due);
        self.note_turn(slot);
        self.follow_endpoint(slot, before);
        Ok(())
    }
}
