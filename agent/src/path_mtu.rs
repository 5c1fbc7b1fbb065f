//! From what tunnels' paths take to the MTU of the routes to a cluster. Pure.
//!
//! The kernel has one route for a whole cluster, and any of its gateways may carry a packet: so the least counts
//! of all tunnels that work. It falls at once and rises late, so that a search does not shake the routes; until
//! it has fallen, and where one path takes less than the others, the data plane looks after each packet itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podspan_dataplane::{Liveness, PeerStatus};
use podspan_wire::{Cidr, ClusterId};

use crate::desired::LEAST_MTU;

/// How long all paths take more before the routes do.
const RISE: Duration = Duration::from_secs(4);

/// How long what an earlier agent had found holds without being measured: the tunnels that carry packets have
/// measured their paths long before, and of others nobody knows what it is worth.
const STANDING: Duration = Duration::from_secs(10);

/// What the paths to each cluster take.
#[derive(Clone, Debug, Default)]
pub struct PathMtus {
    measured: BTreeMap<ClusterId, Path>,
    standing: BTreeMap<Cidr, u32>,
}

#[derive(Clone, Debug)]
struct Path {
    mtu: u32,
    /// Since when all take more, and the least of that.
    more: Option<(Duration, u32)>,
}

impl PathMtus {
    /// Begins with what an earlier agent's routes said, by destination.
    #[must_use]
    pub fn after(standing: BTreeMap<Cidr, u32>) -> Self {
        Self { measured: BTreeMap::new(), standing }
    }

    /// The largest packet that all working tunnels to a cluster of these CIDRs take, bytes, and no less than 1280;
    /// none where nothing is known.
    #[must_use]
    pub fn get(&self, cluster: &ClusterId, cidrs: &BTreeSet<Cidr>) -> Option<u32> {
        let standing = || cidrs.iter().filter_map(|cidr| self.standing.get(cidr)).min().copied();
        self.measured.get(cluster).map(|path| path.mtu).or_else(standing)
    }

    /// Takes in how the tunnels are at `now`, a time since some fixed moment. Returns whether anything changed.
    pub fn observe(&mut self, now: Duration, peers: &[PeerStatus]) -> bool {
        let mut least: BTreeMap<&ClusterId, u32> = BTreeMap::new();
        for peer in peers {
            let working =
                peer.lanes.iter().filter(|lane| lane.established && lane.liveness != Liveness::Dead);
            if let Some(mtu) = working.filter_map(|lane| lane.path.mtu).min() {
                // Beneath that, the data plane sends pieces.
                let mtu = u32::from(mtu).max(LEAST_MTU);
                least.entry(&peer.id.cluster).and_modify(|least| *least = mtu.min(*least)).or_insert(mtu);
            }
        }
        let mut changed = false;
        if now >= STANDING && !self.standing.is_empty() {
            self.standing.clear();
            changed = true;
        }
        for (cluster, &mtu) in &least {
            match self.measured.get_mut(cluster) {
                None => {
                    self.measured.insert((*cluster).clone(), Path { mtu, more: None });
                    changed = true;
                }
                Some(path) => changed |= path.observe(now, mtu),
            }
        }
        let count = self.measured.len();
        // Without a tunnel that works, what was known is as good as anything; without a peer it is not.
        self.measured.retain(|cluster, _| peers.iter().any(|peer| peer.id.cluster == *cluster));
        changed || self.measured.len() != count
    }
}

impl Path {
    fn observe(&mut self, now: Duration, mtu: u32) -> bool {
        if mtu <= self.mtu {
            self.more = None;
            return std::mem::replace(&mut self.mtu, mtu) != mtu;
        }
        let (since, least) = self.more.map_or((now, mtu), |(since, least)| (since, least.min(mtu)));
        self.more = Some((since, least));
        if now.saturating_sub(since) < RISE {
            return false;
        }
        (self.mtu, self.more) = (least, None);
        true
    }
}

#[cfg(test)]
mod tests {
    use podspan_dataplane::{DropCounts, LaneStatus, PathStatus};

    use super::*;

    fn lane(mtu: Option<u16>, established: bool, liveness: Liveness) -> LaneStatus {
        LaneStatus {
            local: 0,
            remote: 0,
            endpoint: None,
            established,
            handshake_age: None,
            rtt: None,
            liveness,
            changes: 0,
            jitter: None,
            loss: None,
            last_reply_age: None,
            probes_sent: 0,
            probes_answered: 0,
            replies_sent: 0,
            path: PathStatus { mtu, ..PathStatus::default() },
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
            drops: DropCounts::default(),
        }
    }

    fn peers(mtus: &[(&str, Option<u16>)]) -> Vec<PeerStatus> {
        mtus.iter()
            .map(|(id, mtu)| PeerStatus {
                id: id.parse().unwrap(),
                lanes: vec![lane(*mtu, true, Liveness::Healthy)],
            })
            .collect()
    }

    fn get(paths: &PathMtus, cluster: &str) -> Option<u32> {
        paths.get(&cluster.parse().unwrap(), &BTreeSet::new())
    }

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_least_of_the_tunnels_that_work_counts() {
        let mut paths = PathMtus::default();
        let mut all = peers(&[("beta/a", Some(1440)), ("beta/b", Some(1340)), ("gamma/a", None)]);
        assert!(paths.observe(second(1), &all));
        assert_eq!((get(&paths, "beta"), get(&paths, "gamma")), (Some(1340), None));
        assert!(!paths.observe(second(2), &all));
        // One that does not work is not asked.
        all[1].lanes[0].liveness = Liveness::Dead;
        all[2].lanes.push(lane(Some(1300), false, Liveness::Healthy));
        assert!(!paths.observe(second(3), &all));
        assert!(paths.observe(second(7), &all));
        assert_eq!((get(&paths, "beta"), get(&paths, "gamma")), (Some(1440), None));
        // What was known stays while nothing works.
        all[0].lanes.clear();
        assert!(!paths.observe(second(100), &all));
        assert_eq!(get(&paths, "beta"), Some(1440));
        assert!(paths.observe(second(101), &all[2..]));
        assert_eq!(get(&paths, "beta"), None);
    }

    #[test]
    fn what_an_earlier_agent_had_found_holds_until_it_is_measured_and_not_for_long() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let (beta, gamma) = ("beta".parse().unwrap(), "gamma".parse().unwrap());
        let standing = [("10.2.0.0/16", 1440), ("10.102.0.0/16", 1300), ("10.3.0.0/16", 1380)];
        let mut paths = PathMtus::after(standing.map(|(text, mtu)| (cidr(text), mtu)).into());
        let seen = |paths: &PathMtus| {
            let betas = ["10.2.0.0/16", "10.102.0.0/16", "10.122.0.0/16"].map(cidr).into();
            (paths.get(&beta, &betas), paths.get(&gamma, &[cidr("10.3.0.0/16")].into()))
        };
        assert_eq!(seen(&paths), (Some(1300), Some(1380)), "the least of a cluster");
        assert!(paths.observe(second(1), &peers(&[("beta/a", Some(1440)), ("gamma/a", None)])));
        assert_eq!(seen(&paths), (Some(1440), Some(1380)));
        // A cluster that leaves and comes again is not what it was.
        assert!(paths.observe(second(10), &peers(&[("gamma/a", None)])));
        assert_eq!(seen(&paths), (None, None));
        assert!(!paths.observe(second(11), &peers(&[("gamma/a", None)])));
    }

    #[test]
    fn it_falls_at_once_and_rises_when_it_stays() {
        let mut paths = PathMtus::default();
        let mut at = |now: u64, mtu: u16| {
            paths.observe(second(now), &peers(&[("beta/a", Some(mtu))]));
            get(&paths, "beta").unwrap()
        };
        assert_eq!([at(0, 1440), at(1, 1280), at(2, 1340), at(3, 1440)], [1440, 1280, 1280, 1280]);
        assert_eq!([at(5, 1390), at(6, 1440)], [1280, 1340], "the least of the time");
        assert_eq!(
            [at(7, 1440), at(9, 1300), at(10, 1440), at(13, 1440), at(14, 1440)],
            [1340, 1300, 1300, 1300, 1440]
        );
        assert_eq!(at(15, 1220), 1280, "IPv6 needs as much");
    }
}
