//! From a table to tunnels.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podspan_wire::LaneKey;
use tracing::info;

use super::tunnel::{Profile, Tunnel};
use super::{Core, PeerSlots, Time, lanes};
use crate::table::{Peer, Recent, Table};

/// Tunnels that start at once are started so far apart, microseconds: about what a handshake costs.
const SPREAD: Duration = Duration::from_micros(200);

/// Indices are 24 bits wide, one of which tells apart two cores on one socket; so many tunnels a worker can
/// have.
const MAX_TUNNELS: usize = super::takeover::HALF as usize;

/// Where the peers of removed tunnels were last, so many at most.
const PARTED: usize = 1024;

/// Where the peers of removed tunnels were last. A key may be announced again: when a gateway is none for a
/// while, or when of two nodes of one name the second leaves. A peer that dials us keeps its session all the
/// while, has no reason to doubt it, and loses what it sends until its timers ask; so we dial it.
#[derive(Debug, Default)]
pub(super) struct Parted {
    endpoints: HashMap<LaneKey, SocketAddr>,
    order: VecDeque<LaneKey>,
}

impl Parted {
    fn remember(&mut self, key: LaneKey, endpoint: SocketAddr) {
        if self.endpoints.insert(key, endpoint).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > PARTED
            && let Some(oldest) = self.order.pop_front()
        {
            self.endpoints.remove(&oldest);
        }
    }

    fn take(&mut self, key: &LaneKey) -> Option<SocketAddr> {
        let endpoint = self.endpoints.remove(key)?;
        self.order.retain(|other| other != key);
        Some(endpoint)
    }
}

impl Core {
    /// Puts a table in force. Tunnels whose key stays keep their session, whatever else changes.
    pub fn set_table(&mut self, now: Time, table: Arc<Table>) {
        self.by_peer.clear();
        self.by_peer.resize_with(table.peers.len(), PeerSlots::default);
        let mut kept = HashSet::new();
        let mut start = now;
        for (index, peer) in table.peers.iter().enumerate() {
            let through = lanes::through(self.lane, peer.spec.lanes.len());
            for (remote, mut profile, mut learned) in profiles(self.lane, index, peer) {
                let key = peer.spec.lanes[remote].key;
                let known = self.by_key.get(&key).copied();
                if known.is_none()
                    && let Some(last) = self.parted.take(&key)
                {
                    profile.candidates.retain(|&candidate| candidate != last);
                    profile.candidates.insert(0, last);
                    learned = true;
                }
                let Some(slot) = known.or_else(|| self.free_slot()) else { continue };
                kept.insert(slot);
                let slots = &mut self.by_peer[index].slots;
                if remote == through {
                    slots.insert(0, slot)
                } else {
                    slots.push(slot)
                }

                let index = slot ^ self.mask;
                let entry = &mut self.tunnels[slot as usize];
                let due = match entry {
                    Some(tunnel) => tunnel.update(now, profile),
                    None => {
                        let tunnel = entry.insert(Tunnel::new(key, index, profile));
                        if learned && let Some(&first) = tunnel.profile.candidates.first() {
                            tunnel.profile.counters.set_endpoint(Some(first));
                            tunnel.hint(now);
                        }
                        let wanted = tunnel.begin(now);
                        self.by_key.insert(key, slot);
                        (wanted || learned).then_some(now)
                    }
                };
                if due.is_some() {
                    self.schedule(slot, Some(start));
                    start = start + SPREAD;
                }
            }
        }
        self.drop_all_but(&kept);
        self.index_endpoints();
        self.adopt_clusters(&table);
        self.table = table;
        self.recent = Recent::default();
    }

    fn free_slot(&mut self) -> Option<u32> {
        // Let a slot rest while there are fresh ones to be had cheaply.
        if self.free.len() > 64
            && let Some(slot) = self.free.pop_front()
        {
            return Some(slot);
        }
        if self.tunnels.len() >= MAX_TUNNELS {
            return self.free.pop_front();
        }
        self.tunnels.push(None);
        Some(self.tunnels.len() as u32 - 1)
    }

    fn drop_all_but(&mut self, kept: &HashSet<u32>) {
        for slot in 0..self.tunnels.len() as u32 {
            if kept.contains(&slot) {
                continue;
            }
            let Some(mut tunnel) = self.tunnels[slot as usize].take() else { continue };
            tunnel.give_up(&mut self.shared);
            info!(peer = %tunnel.profile.id, remote = tunnel.profile.remote, "tunnel removed: its key is no longer announced");
            self.by_key.remove(&tunnel.key);
            if let Some(endpoint) = tunnel.endpoint {
                self.parted.remember(tunnel.key, endpoint);
            }
            self.free.push_back(slot);
        }
    }

    fn index_endpoints(&mut self) {
        self.by_endpoint.clear();
        for (slot, tunnel) in self.tunnels.iter().enumerate() {
            let Some(tunnel) = tunnel else { continue };
            for &candidate in &tunnel.profile.candidates {
                self.by_endpoint.insert(candidate, slot as u32);
            }
        }
        // Where a peer really is counts for more than where another is said to be.
        for (slot, tunnel) in self.tunnels.iter().enumerate() {
            if let Some(endpoint) = tunnel.as_ref().and_then(|tunnel| tunnel.endpoint) {
                self.by_endpoint.insert(endpoint, slot as u32);
            }
        }
    }

    /// Follows a tunnel whose peer may have moved from `before`.
    pub(super) fn follow_endpoint(&mut self, slot: u32, before: Option<SocketAddr>) {
        let Some(Some(tunnel)) = self.tunnels.get(slot as usize) else { return };
        if tunnel.endpoint == before {
            return;
        }
        if let Some(before) = before
            && self.by_endpoint.get(&before) == Some(&slot)
            && !tunnel.profile.candidates.contains(&before)
        {
            self.by_endpoint.remove(&before);
        }
        if let Some(endpoint) = tunnel.endpoint {
            self.by_endpoint.insert(endpoint, slot);
        }
    }
}

/// The tunnels of `peer` on local lane `lane`: remote lane, what the table says of it, and whether an
/// endpoint was learned in an earlier life.
fn profiles(lane: usize, index: usize, peer: &Peer) -> impl Iterator<Item = (usize, Profile, bool)> {
    peer.tunnels.iter().filter(move |tunnel| tunnel.local == lane).map(move |tunnel| {
        let spec = &peer.spec;
        let learned = spec
            .learned
            .iter()
            .filter(|&&(local, remote, _)| (local, remote) == (lane, tunnel.remote))
            .map(|&(_, _, endpoint)| canonical(endpoint));
        let mut candidates: Vec<SocketAddr> = learned.collect();
        let is_learned = !candidates.is_empty();
        let port = spec.lanes[tunnel.remote].port;
        candidates
            .extend(spec.endpoints.iter().map(|&address| SocketAddr::new(address.to_canonical(), port)));
        let mut seen = HashSet::new();
        candidates.retain(|&candidate| seen.insert(candidate));
        let profile = Profile {
            peer: index as u32,
            id: spec.id.clone(),
            remote: tunnel.remote,
            candidates,
            dial: spec.dial,
            keepalive: spec.persistent_keepalive.filter(|&s| s > 0).map(|s| Duration::from_secs(s.into())),
            counters: Arc::clone(&tunnel.counters),
        };
        (tunnel.remote, profile, is_learned)
    })
}

/// One way of writing an address: IPv4 as IPv4, and no flow label.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => std::net::SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_parted_peers_are_remembered_and_the_oldest_forgotten() {
        let mut parted = Parted::default();
        let key = |n: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&n.to_le_bytes());
            LaneKey::from_bytes(bytes)
        };
        let at = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(n).into(), 1);
        for n in 0..PARTED as u32 + 2 {
            parted.remember(key(n), at(n));
            parted.remember(key(n), at(n));
        }
        assert_eq!((parted.take(&key(0)), parted.take(&key(1))), (None, None));
        assert_eq!((parted.take(&key(2)), parted.take(&key(2))), (Some(at(2)), None));
        assert_eq!((parted.endpoints.len(), parted.order.len()), (PARTED - 1, PARTED - 1));
    }
}
