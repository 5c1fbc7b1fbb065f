//! What the tunnels of one cluster have to do with each other: who is probed how often, who is better than
//! whom.

use std::time::Duration;

use podspan_wire::NodeId;

use super::health::{IDLE, USE};
use super::io::Sink;
use super::probe::Probe;
use super::{Core, Time};
use crate::counters::DropCause;
use crate::table::{ClusterIndex, Table};

/// Probes of idle tunnels that a worker is ready to answer, each second: with seal, open and system calls
/// some 5 ms of a processor's time.
const IDLE_PROBES: usize = 400;

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
        Ok(0)
    }

    /// Has a tunnel that loses much avoided, if there is a better one. Where all lose, it is not theirs to
    /// blame, and flows had better stay where they are.
    pub(super) fn compare(&mut self, now: Time, slot: u32) {
        let Some(Some(tunnel)) = self.tunnels.get(slot as usize) else { return };
        if !tunnel.health.loses_much(now) {
            return;
        }
        let own = tunnel.profile.peer;
        let Some(cluster) = self.table.cluster_of(own) else { return };
        let fine = self.gateway_slots(cluster).any(|sibling| {
            let sibling = self.tunnels[sibling as usize].as_ref();
            sibling.is_some_and(|s| s.profile.peer != own && s.is_up(now) && s.health.is_fine(now))
        });
        if fine && let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) {
            tunnel.set_lossy(now);
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
