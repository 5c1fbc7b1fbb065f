//! What a person reads of gateways that fail and return: each change once, and one that flaps not more often than
//! it is worth reading.

use std::collections::HashMap;
use std::time::Duration;

use podspan_dataplane::{Liveness, PeerStatus};
use podspan_wire::{ClusterId, NodeId};
use tokio::time::Instant;
use tracing::{info, warn};

/// So many changes of one peer are told at once; then one in [`EVERY`].
const AT_ONCE: u32 = 4;
/// See [`AT_ONCE`]; after so long without a change all is as at first.
const EVERY: Duration = Duration::from_secs(60);

/// Remembers what was told.
#[derive(Debug, Default)]
pub struct LivenessLog {
    peers: HashMap<NodeId, Told>,
}

#[derive(Debug)]
struct Told {
    liveness: Liveness,
    at: Instant,
    times: u32,
    untold: u32,
}

/// A change to be told.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// The peer.
    pub peer: NodeId,
    /// What it was last told to be.
    pub before: Liveness,
    /// What it is.
    pub now: Liveness,
    /// Changes in between that were not told.
    pub untold: u32,
}

impl LivenessLog {
    /// Tells what has changed since the last look, to a node of cluster `own`.
    pub fn look(&mut self, own: &ClusterId, status: &[PeerStatus]) {
        for Change { peer, before, now, untold } in self.changes(Instant::now(), status) {
            let (before, label, meaning) = (before.label(), now.label(), now.meaning());
            if peer.cluster == *own {
                info!(%peer, before, now = label, untold, "{meaning} (the tunnel inside this cluster)");
            } else if now.is_avoided() {
                warn!(%peer, before, now = label, untold, "{meaning}: other gateways are used where there are any");
            } else {
                info!(%peer, before, now = label, untold, "{meaning}");
            }
        }
    }

    fn changes(&mut self, now: Instant, status: &[PeerStatus]) -> Vec<Change> {
        let mut changes = Vec::new();
        for peer in status {
            let proven = peer.lanes.iter().map(|lane| lane.liveness).filter(|l| *l != Liveness::Unproven);
            let liveness = proven.max().unwrap_or_default();
            let Some(told) = self.peers.get_mut(&peer.id) else {
                self.peers.insert(peer.id.clone(), Told { liveness, at: now, times: 0, untold: 0 });
                continue;
            };
            if told.liveness == liveness {
                continue;
            }
            if now - told.at >= EVERY {
                told.times = 0;
            } else if told.times >= AT_ONCE {
                told.untold += 1;
                continue;
            }
            told.times += 1;
            told.at = now;
            let before = std::mem::replace(&mut told.liveness, liveness);
            // That a peer is there for the first time, others say.
            if before != Liveness::Unproven {
                let untold = std::mem::take(&mut told.untold);
                changes.push(Change { peer: peer.id.clone(), before, now: liveness, untold });
            }
        }
        if self.peers.len() > status.len() {
            self.peers.retain(|id, _| status.iter().any(|peer| peer.id == *id));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(liveness: Liveness) -> Vec<PeerStatus> {
        let lane = podspan_dataplane::LaneStatus { liveness, ..Default::default() };
        vec![PeerStatus { id: "beta/g".parse().unwrap(), lanes: vec![lane] }]
    }

    #[test]
    fn each_change_once_and_flapping_seldom() {
        let (mut log, mut now) = (LivenessLog::default(), Instant::now());
        assert_eq!(log.changes(now, &status(Liveness::Unproven)), []);
        assert_eq!(log.changes(now, &status(Liveness::Healthy)), []);
        let change = log.changes(now, &status(Liveness::Dead));
        assert_eq!((change[0].before, change[0].now), (Liveness::Healthy, Liveness::Dead));
        assert_eq!(log.changes(now, &status(Liveness::Dead)), []);
        let mut told = 0;
        for n in 0..100 {
            now += Duration::from_secs(1);
            let liveness = if n % 2 == 0 { Liveness::HeldDown } else { Liveness::Suspect };
            told += log.changes(now, &status(liveness)).len();
        }
        assert!((2..=6).contains(&told), "{told}");
        now += EVERY;
        let change = log.changes(now, &status(Liveness::Healthy));
        assert!(change[0].untold > 10, "{change:?}");
    }
}
