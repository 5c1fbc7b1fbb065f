//! What the tunnels of one cluster have to do with each other: who is probed how often, who is better than
//! whom.

use std::time::Duration;

use podspan_wire::NodeId;

use super::health::{Health, IDLE, Rank, State, USE};
use super::io::Sink;
use super::probe::Probe;
use super::tunnel::Tunnel;
use super::{Core, Time};
use crate::counters::DropCause;
use crate::table::{ClusterIndex, Table};

/// Probes of idle tunnels that a worker is ready to answer, each second: with seal, open and system calls
/// some 5 ms of a processor's time.
const IDLE_PROBES: usize = 400;

/// Packets that wait to be sent through certain tunnels, at most.
const MOST_THROUGH: usize = 1024;

/// Peers that were found to be gone, or back, and that nobody has asked for yet, at most.
const MOST_TURNED: usize = 1024;

/// How much longer than the nearest's a round trip may be at least, to be as near.
const MARGIN: Duration = Duration::from_millis(1);

impl Core {
    /// Seconds between probes of an idle tunnel, with so many tunnels.
    fn pace(tunnels: usize) -> u16 {
        let stretched = Duration::from_secs((tunnels / IDLE_PROBES) as u64);
        u16::try_from(stretched.max(IDLE).as_secs()).unwrap_or(u16::MAX)
    }

    /// Takes over what a new table says of clusters.
    pub(super) fn adopt_clusters(&mut self, table: &Table) {
        let mut used = vec![None; table.clusters.len()];
        for (used, cluster) in used.iter_mut().zip(&table.clusters) {
            let before = self.table.clusters.binary_search_by(|before| before.id.cmp(&cluster.id));
            *used = before.ok().and_then(|before| self.used[before]);
        }
        self.used = used;
        self.shared.pace = Self::pace(self.by_key.len());
    }

    /// Notes that a packet is to go to the cluster through the tunnel in `slot`, if any is fit. The first one
    /// for some time has all of the cluster's gateways looked at.
    pub(super) fn note_use(&mut self, now: Time, cluster: Option<ClusterIndex>, slot: Option<u32>) {
        if let Some(slot) = slot
            && let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize)
            && tunnel.health.used(now)
        {
            self.schedule(slot, Some(now));
        }
        let Some(cluster) = cluster else { return };
        if self.used[cluster as usize].replace(now).is_some_and(|at| now.since(at) < USE) {
            return;
        }
        let slots: Vec<u32> = self.gateway_slots(cluster).collect();
        for slot in slots {
            self.schedule(slot, Some(now));
        }
    }

    /// Notes that a packet would have taken the tunnel in `slot`, were that better.
    pub(super) fn note_missed(&mut self, now: Time, slot: u32) {
        let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { return };
        let due = match tunnel.is_up(now) {
            true => None,
            false => tunnel.start(now),
        };
        let first = tunnel.health.missed(now);
        self.schedule(slot, if first { Some(now) } else { due });
    }

    fn gateway_slots(&self, cluster: ClusterIndex) -> impl Iterator<Item = u32> {
        let gateways = &self.table.clusters[cluster as usize].gateways;
        gateways
            .iter()
            .filter_map(|&peer| self.by_peer.get(peer as usize))
            .flat_map(|peer| peer.slots.iter().copied())
    }

    /// Takes a probe in that came through the tunnel in `slot`. Nothing of it reaches the TUN: 0 bytes.
    pub(super) fn probed(
        &mut self,
        now: Time,
        slot: u32,
        probe: &Probe,
        sink: &mut impl Sink,
    ) -> Result<usize, DropCause> {
        let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else {
            return Err(DropCause::UnknownSession);
        };
        let due = tunnel.probed(now, probe, &self.shared, sink)?;
        self.schedule(slot, due);
        self.note_turn(slot);
        Ok(0)
    }

    /// Notes it if the peer behind the tunnel in `slot` was found to be gone, or back.
    pub(super) fn note_turn(&mut self, slot: u32) {
        let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { return };
        // Who is left out here is looked at by the other lanes when they next would have.
        if tunnel.has_turned() && self.turned.len() < MOST_TURNED {
            self.turned.push(tunnel.profile.id.clone());
        }
    }

    /// A peer that a tunnel of this core found to be gone, or back: the cores of the node's other lanes had better
    /// [look](Self::look_at) for themselves. Each is given once.
    pub fn poll_turned(&mut self) -> Option<NodeId> {
        self.turned.pop()
    }

    /// Has the tunnels to `peer` probed at once: another lane to it found that it is gone, or back. Without it a
    /// lane that hardly carries anything would know of a death only when packets have died of it.
    pub fn look_at(&mut self, now: Time, peer: &NodeId) {
        let Ok(peer) = self.table.peers.binary_search_by(|known| known.spec.id.cmp(peer)) else { return };
        let slots = self.by_peer.get(peer).map(|peer| peer.slots.clone()).unwrap_or_default();
        for slot in slots {
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { continue };
            tunnel.hasten(now);
            self.schedule(slot, Some(now));
        }
    }

    /// Sends an inner packet through the tunnel to `gateway` at the next [`Core::handle_timeout`]; dropped if
    /// there is no session with it, or too many wait already.
    pub fn send_through(&mut self, _now: Time, gateway: &NodeId, packet: Box<[u8]>) {
        let peer = self.table.peers.binary_search_by(|peer| peer.spec.id.cmp(gateway)).ok();
        let slot = peer.and_then(|peer| self.by_peer.get(peer)?.slots.first().copied());
        match slot {
            Some(slot) if self.through.len() < MOST_THROUGH => self.through.push((slot, packet)),
            _ => self.shared.counters.drops.count(DropCause::NoGateway),
        }
    }

    pub(super) fn flush_through(&mut self, now: Time, sink: &mut impl Sink) {
        for (slot, packet) in std::mem::take(&mut self.through) {
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { continue };
            tunnel.send_at_once(now, &packet, &mut self.shared, sink);
        }
    }

    /// Where the nearest gateways are asked for: whether the tunnel in `slot` leads to one of them. Who is so
    /// stays so until it is clearly not, so that flows do not go back and forth between two at the limit.
    fn measure(&mut self, now: Time, slot: u32, cluster: ClusterIndex) {
        let rtt = |slot: u32| {
            let tunnel = self.tunnels[slot as usize].as_ref()?;
            let counts = matches!(tunnel.rank(now), Rank::Good | Rank::Far);
            tunnel.health.rtt().filter(|_| counts).map(|(rtt, _)| rtt)
        };
        let best = self.gateway_slots(cluster).filter_map(rtt).min();
        let own = rtt(slot);
        let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { return };
        let far = match (own, best) {
            (Some(own), Some(best)) => {
                let margin = MARGIN.max(best / 5) * if tunnel.health.is_far() { 1 } else { 2 };
                own > best + margin
            }
            _ => false,
        };
        if far != tunnel.health.is_far() {
            tunnel.health.set_far(far);
            tunnel.note_health(now);
        }
    }

    /// Has a tunnel that loses much avoided, if there is a better one, and its siblings asked as soon as it loses
    /// some. Where all lose, it is not theirs to blame, and flows had better stay where they are.
    pub(super) fn compare(&mut self, now: Time, slot: u32) {
        let Some(Some(tunnel)) = self.tunnels.get(slot as usize) else { return };
        let (own, health) = (tunnel.profile.peer, &tunnel.health);
        let (much, some) = (health.loses_much(now), health.is_in_use(now) && health.loses_some(now));
        let is_lossy = health.state() == State::Lossy;
        let Some(cluster) = self.table.cluster_of(own) else { return };
        if self.table.clusters[cluster as usize].nearest || tunnel.health.is_far() {
            self.measure(now, slot, cluster);
        }
        if much.is_none() && !some && !is_lossy {
            return;
        }
        let is_sibling = |sibling: &Tunnel| sibling.profile.peer != own && sibling.is_up(now);
        let siblings: Vec<u32> = self
            .gateway_slots(cluster)
            .filter(|&sibling| self.tunnels[sibling as usize].as_ref().is_some_and(is_sibling))
            .collect();
        let health = |slot: u32| self.tunnels[slot as usize].as_ref().map(|tunnel| &tunnel.health);
        // One of many is easily better for a while by luck: half of them are to be, or one that is known to be.
        let is_left = |loss| {
            let better = siblings.iter().filter_map(|&s| health(s)).filter(|s| s.is_better_than(now, loss));
            let (sure, all) =
                better.fold((false, 0), |(sure, n), s| (sure || s.is_known_to_be_fine(), n + 1));
            sure || (all > 0 && all >= siblings.len().div_ceil(2))
        };
        if much.is_some_and(is_left) {
            self.with_health(now, slot, |health| health.set_lossy(now));
        } else if is_lossy {
            let mut used = siblings.iter().filter_map(|&s| health(s)).filter(|s| s.is_in_use(now));
            if used.any(|sibling| health(slot).is_some_and(|own| own.is_as_good_as(now, sibling))) {
                self.with_health(now, slot, |health| health.forgive_loss(now));
            }
        } else {
            for sibling in siblings.into_iter().chain([slot]) {
                let Some(Some(tunnel)) = self.tunnels.get_mut(sibling as usize) else { continue };
                if tunnel.health.compare(now) {
                    self.schedule(sibling, Some(now));
                }
            }
        }
    }

    fn with_health(&mut self, now: Time, slot: u32, change: impl FnOnce(&mut Health)) {
        if let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) {
            change(&mut tunnel.health);
            tunnel.note_health(now);
        }
    }

    /// Takes over what probes through a gateway showed: whether it forwards to other nodes. Tells whether there
    /// is such a peer.
    pub fn set_forwarding(&mut self, now: Time, gateway: &NodeId, forwards: bool) -> bool {
        let Ok(peer) = self.table.peers.binary_search_by(|peer| peer.spec.id.cmp(gateway)) else {
            return false;
        };
        let slots = self.by_peer.get(peer).map(|peer| peer.slots.clone()).unwrap_or_default();
        for slot in slots {
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { continue };
            tunnel.set_not_forwarding(now, !forwards);
            self.schedule(slot, Some(now));
        }
        true
    }

    /// Tells all peers whether this node is about to go, so that they take other ways where there are any.
    /// What still comes is forwarded as ever.
    pub fn set_draining(&mut self, now: Time, draining: bool) {
        if std::mem::replace(&mut self.shared.draining, draining) == draining {
            return;
        }
        for slot in 0..self.tunnels.len() as u32 {
            let Some(tunnel) = &mut self.tunnels[slot as usize] else { continue };
            if tunnel.has_session() {
                tunnel.announce();
                self.schedule(slot, Some(now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_idle_peers_send_no_more_probes_than_two_thousand() {
        for (tunnels, seconds) in
            [(0, 5), (100, 5), (2000, 5), (4000, 10), (10_000, 25), (usize::MAX, u16::MAX)]
        {
            assert_eq!(Core::pace(tunnels), seconds, "{tunnels}");
            assert!(tunnels == usize::MAX || tunnels / usize::from(seconds) <= IDLE_PROBES);
        }
    }
}
