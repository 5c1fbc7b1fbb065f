//! What is known of the other clusters: records in, the nodes that may be believed out.
//!
//! Pure: events and the time come in, nothing is read or written. A record that is refused is counted and
//! named, and never keeps another from being taken in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use podspan_wire::api::{Entry, Lease, WatchEvent};
use podspan_wire::status::RefusedRecord;
use podspan_wire::{
    CidrSet, ClusterId, Grant, HighWater, NodeId, RecordState, Refusal, RefusalKind, SignedRecord, Trust,
    UnixTime, VerifiedRecord, Version,
};

use crate::state::Known;

/// How many refusals are remembered with their reasons.
const MAX_REFUSED: usize = 32;

/// How long after the end of its record a node without a living tunnel is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// A node of another cluster whose record was verified.
#[derive(Clone, Debug)]
pub struct RemoteNode {
    /// Its record and grant.
    pub verified: VerifiedRecord,
    /// What the broker says of its lease.
    pub lease: Lease,
    /// Whether the broker in use has it at all.
    pub listed: bool,
}

impl RemoteNode {
    /// Whether nobody confirms the node any more: its lease lapsed, its record ended, or the broker does
    /// not list it. It is used all the same, for as long as its tunnels work.
    #[must_use]
    pub fn stale(&self, now: UnixTime) -> bool {
        self.lease == Lease::Lapsed || !self.listed || now > self.verified.record().not_after
    }
}

/// The other clusters, as far as they are known.
pub struct Membership {
    trust: Trust,
    own: NodeId,
    /// What no other cluster may overlap: this cluster's CIDRs and this node's underlay addresses.
    own_cidrs: CidrSet,
    high_water: HighWater,
    nodes: BTreeMap<NodeId, RemoteNode>,
    /// Clusters in the order in which they were first seen: of two that overlap the earlier stays.
    order: Vec<ClusterId>,
    /// Nodes not yet seen since the last reset.
    unseen: BTreeSet<NodeId>,
    resetting: bool,
    refusals: BTreeMap<RefusalKind, u64>,
    refused: VecDeque<RefusedRecord>,
    /// The latest record that the broker has of this very node.
    own_stored: Option<SignedRecord>,
}

/// What an event changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The nodes or their records: to be kept on disk, then applied.
    pub nodes: bool,
    /// Only leases and the like: to be shown.
    pub status: bool,
}

impl std::ops::BitOrAssign for Changes {
    fn bitor_assign(&mut self, other: Self) {
        self.nodes |= other.nodes;
        self.status |= other.status;
    }
}

impl Membership {
    /// Takes up what was known at the end of the last life. Records that do not verify are refused like
    /// any other; the time is not looked at.
    #[must_use]
    pub fn new(trust: Trust, own: NodeId, own_grant: &Grant, known: Known, now: UnixTime) -> Self {
        let mut membership = Self {
            trust,
            own,
            own_cidrs: own_grant.cidrs(),
            high_water: known.high_water,
            nodes: BTreeMap::new(),
            order: Vec::new(),
            unseen: BTreeSet::new(),
            resetting: false,
            refusals: BTreeMap::new(),
            refused: VecDeque::new(),
            own_stored: None,
        };
        for signed in known.records {
            let verified = membership.trust.verify_kept(&signed);
            let taken = verified.and_then(|verified| membership.admit(verified, Lease::Lapsed));
            if let Err(refusal) = taken {
                membership.refuse(&signed, &refusal, now);
            }
        }
        for node in membership.nodes.values_mut() {
            node.listed = false;
        }
        membership
    }

    /// The nodes of the other clusters.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, RemoteNode> {
        &self.nodes
    }

    /// How many records were refused, by kind.
    #[must_use]
    pub fn refusals(&self) -> &BTreeMap<RefusalKind, u64> {
        &self.refusals
    }

    /// The latest refusals, newest first.
    pub fn refused(&self) -> impl Iterator<Item = &RefusedRecord> {
        self.refused.iter()
    }

    /// The latest record of this very node that the broker has.
    #[must_use]
    pub fn own_stored(&self) -> Option<&SignedRecord> {
        self.own_stored.as_ref()
    }

    /// The highest version ever seen of this very node.
    #[must_use]
    pub fn own_high_water(&self) -> Option<Version> {
        self.high_water.of(&self.own)
    }

    /// What is to be kept on disk.
    #[must_use]
    pub fn known(&self) -> Known {
        let records = self
            .order
            .iter()
            .flat_map(|cluster| {
                self.nodes.values().filter(move |node| &node.verified.grant().cluster == cluster)
            })
            .map(|node| node.verified.signed().clone())
            .collect();
        Known { high_water: self.high_water.clone(), records }
    }

    /// Takes in one event of the broker's watch.
    pub fn handle(&mut self, event: WatchEvent, now: UnixTime) -> Changes {
        match event {
            WatchEvent::Reset => {
                self.resetting = true;
                self.unseen = self.nodes.keys().cloned().collect();
                Changes::default()
            }
            WatchEvent::Entry(entry) => self.take(&entry, now),
            WatchEvent::Bookmark { .. } => self.settle(),
            WatchEvent::Resync => Changes::default(),
        }
    }

    /// After a reset and everything that followed it: what was not among it is no longer listed. A
    /// broker can leave out what it likes, so that this marks a node and removes none.
    fn settle(&mut self) -> Changes {
        if !std::mem::take(&mut self.resetting) {
            return Changes::default();
        }
        let mut status = false;
        for id in std::mem::take(&mut self.unseen) {
            if let Some(node) = self.nodes.get_mut(&id) {
                status |= std::mem::replace(&mut node.listed, false);
            }
        }
        Changes { nodes: false, status }
    }

    fn take(&mut self, entry: &Entry, now: UnixTime) -> Changes {
        // A broker sends the same record again after every reconnect; signatures need no second look.
        if let Some((id, _)) = entry.signed.claim() {
            self.unseen.remove(&id);
            if let Some(node) = self.nodes.get_mut(&id)
                && node.verified.signed() == &entry.signed
            {
                let status = node.lease != entry.lease || !node.listed;
                (node.lease, node.listed) = (entry.lease, true);
                return Changes { nodes: false, status };
            }
        }
        match self.trust.verify(&entry.signed, now).and_then(|verified| self.admit(verified, entry.lease)) {
            Ok(changes) => changes,
            Err(refusal) => {
                self.refuse(&entry.signed, &refusal, now);
                Changes { nodes: false, status: true }
            }
        }
    }

    fn admit(&mut self, verified: VerifiedRecord, lease: Lease) -> Result<Changes, Refusal> {
        let id = verified.record().id();
        let cluster = verified.grant().cluster.clone();
        let own_cluster = cluster == self.own.cluster;
        if !own_cluster {
            self.check_overlap(&verified)?;
        }
        self.check_key(&verified)?;
        self.high_water.admit(&verified)?;
        if own_cluster {
            // Nodes of one's own cluster are reached without podspan.
            if id == self.own {
                self.own_stored = Some(verified.signed().clone());
            }
            return Ok(Changes { nodes: false, status: true });
        }
        if verified.record().state == RecordState::Withdrawn {
            let nodes = self.nodes.remove(&id).is_some();
            self.forget_cluster(&cluster);
            return Ok(Changes { nodes: true, status: nodes });
        }
        if !self.order.contains(&cluster) {
            self.order.push(cluster.clone());
        }
        // A newer grant with another key replaces the cluster as a whole: what the former key signed is
        // not the cluster's word any more.
        let key = verified.grant().cluster_key;
        self.nodes.retain(|_, node| {
            node.verified.grant().cluster != cluster || node.verified.grant().cluster_key == key
        });
        self.nodes.insert(id, RemoteNode { verified, lease, listed: true });
        Ok(Changes { nodes: true, status: true })
    }

    fn check_overlap(&self, verified: &VerifiedRecord) -> Result<(), Refusal> {
        let grant = verified.grant();
        let cidrs = grant.cidrs();
        if let Some((theirs, ours)) = cidrs.overlap(&self.own_cidrs) {
            return Err(Refusal::new(
                RefusalKind::Overlap,
                format!(
                    "cluster {} announces {theirs}, which overlaps {ours} of this node or its cluster: one of the \
                     two needs other CIDRs",
                    grant.cluster
                ),
            ));
        }
        for node in self.nodes.values() {
            let other = node.verified.grant();
            if other.cluster != grant.cluster
                && let Some((theirs, known)) = cidrs.overlap(&other.cidrs())
            {
                return Err(Refusal::new(
                    RefusalKind::Overlap,
                    format!(
                        "cluster {} announces {theirs}, which overlaps {known} of cluster {}, known before it: one \
                         of the two needs other CIDRs",
                        grant.cluster, other.cluster
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Two grants of one serial with two keys: two clusters were given one name. The earlier stays.
    fn check_key(&self, verified: &VerifiedRecord) -> Result<(), Refusal> {
        let grant = verified.grant();
        let clash = self.nodes.values().map(|node| node.verified.grant()).find(|known| {
            known.cluster == grant.cluster
                && known.serial == grant.serial
                && known.cluster_key != grant.cluster_key
        });
        match clash {
            Some(known) => Err(Refusal::new(
                RefusalKind::GrantSuperseded,
                format!(
                    "there are two grants with serial {} for cluster {}, one for the key {} and one for {}: give one \
                     of the two clusters another name",
                    grant.serial, grant.cluster, known.cluster_key, grant.cluster_key
                ),
            )),
            None => Ok(()),
        }
    }

    fn forget_cluster(&mut self, cluster: &ClusterId) {
        if !self.nodes.keys().any(|id| &id.cluster == cluster) {
            self.order.retain(|known| known != cluster);
        }
    }

    fn refuse(&mut self, signed: &SignedRecord, refusal: &Refusal, now: UnixTime) {
        *self.refusals.entry(refusal.kind).or_default() += 1;
        let claimed = signed.claim().map(|(id, _)| id);
        let same = |known: &RefusedRecord| known.claimed == claimed && known.kind == refusal.kind;
        let times = match self.refused.iter().position(same) {
            Some(index) => self.refused.remove(index).map_or(0, |known| known.times),
            None => 0,
        };
        self.refused.push_front(RefusedRecord {
            claimed,
            kind: refusal.kind,
            detail: refusal.detail.clone(),
            at: now,
            times: times + 1,
        });
        self.refused.truncate(MAX_REFUSED);
    }

    /// Sets what no other cluster may overlap besides this cluster's grant: the part of the underlay that
    /// this node needs. Clusters that do are refused from then on.
    pub fn set_underlay(&mut self, own_grant: &Grant, needed: &CidrSet, now: UnixTime) -> Changes {
        self.own_cidrs = own_grant.cidrs().iter().chain(needed.iter()).copied().collect();
        let overlapping: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.verified.grant().cidrs().overlap(&self.own_cidrs).is_some())
            .map(|(id, _)| id.clone())
            .collect();
        let mut changes = Changes::default();
        for id in overlapping {
            if let Some(node) = self.nodes.remove(&id) {
                if let Err(refusal) = self.check_overlap(&node.verified) {
                    self.refuse(node.verified.signed(), &refusal, now);
                }
                self.forget_cluster(&id.cluster);
                changes = Changes { nodes: true, status: true };
            }
        }
        changes
    }

    /// Forgets nodes whose record ended long ago, except those that `alive` says are still heard.
    pub fn forget(&mut self, now: UnixTime, alive: impl Fn(&NodeId) -> bool) -> Changes {
        let before = self.nodes.len();
        self.nodes
            .retain(|id, node| now.since(node.verified.record().not_after) <= FORGET_AFTER || alive(id));
        let nodes = self.nodes.len() != before;
        let present: BTreeSet<&ClusterId> = self.nodes.keys().map(|id| &id.cluster).collect();
        self.order.retain(|cluster| present.contains(cluster));
        Changes { nodes, status: nodes }
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
pub(crate) mod tests;
