//! What is known of the other clusters: records in, the nodes that may be believed out.
//!
//! Pure: events and the time come in, nothing is read or written. A record that is refused is counted and
//! named, and never keeps another from being taken in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use podspan_wire::api::{Entry, Lease, WatchEvent};
use podspan_wire::{
    Cidr, CidrSet, ClusterId, Grant, HighWater, NodeId, PublicKey, Record, RecordState, Refusal, RefusalKind,
    SignedRecord, Trust, UnixTime, VerifiedRecord, Version,
};

use crate::brokers::BrokerIndex;
use crate::refusals::Refusals;
use crate::state::Known;

/// How long after the end of its record a node without a living tunnel is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// How many refused records are kept for reconsidering.
const MAX_WAITING: usize = 4096;

/// Another node, of whatever cluster, whose record was verified.
#[derive(Clone, Debug)]
pub struct RemoteNode {
    /// Its record and grant.
    pub verified: VerifiedRecord,
    /// What each broker that has this very record says of its lease.
    pub heard: BTreeMap<BrokerIndex, Lease>,
    /// Since when it is known in this life of the agent.
    pub since: UnixTime,
}

impl RemoteNode {
    /// Whether nobody confirms the node any more: no broker lists it with a lease that is renewed, or its record
    /// ended. It is used all the same, for as long as its tunnels work.
    #[must_use]
    pub fn stale(&self, now: UnixTime) -> bool {
        !self.heard.values().any(|lease| *lease == Lease::Fresh) || now > self.verified.record().not_after
    }
}

/// What a broker has of this very node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRecord {
    /// The version that is stored.
    pub version: Version,
    /// Whether some agent stands behind it: it is active, and its lease is renewed.
    pub held: bool,
}

/// Where a record comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Broker,
    /// It was in use when the agent ended.
    Disk,
}

/// The other clusters, as far as they are known.
pub struct Membership {
    trust: Trust,
    own: NodeId,
    own_key: PublicKey,
    own_serial: u64,
    /// What no other cluster may overlap: this cluster's CIDRs and this node's underlay addresses.
    own_cidrs: CidrSet,
    high_water: HighWater,
    nodes: BTreeMap<NodeId, RemoteNode>,
    /// Clusters in the order in which they were first seen: of two that overlap the earlier stays.
    order: Vec<ClusterId>,
    /// Brokers that are sending everything anew, each with the nodes that it has not sent yet.
    unseen: BTreeMap<BrokerIndex, BTreeSet<NodeId>>,
    /// Brokers that are heard and have sent everything.
    settled: BTreeSet<BrokerIndex>,
    /// Records that a cluster of the set signed, refused for a reason that may pass: an overlap, or the
    /// time, should this node's clock be wrong. A broker sends a record once, so that nobody else would
    /// bring them again.
    waiting: BTreeMap<NodeId, (VerifiedRecord, Heard)>,
    refusals: Refusals,
    /// The latest record that each broker has of this very node.
    own_stored: BTreeMap<BrokerIndex, OwnRecord>,
    /// The other nodes of the own cluster.
    siblings: BTreeMap<NodeId, RemoteNode>,
    /// Whether tunnels are held with them, so that they matter as much as the others.
    needs_siblings: bool,
    /// The brokers that have sent it since their last reset.
    own_listed: BTreeSet<BrokerIndex>,
}

/// Who said it, and what of the lease.
type Heard = BTreeMap<BrokerIndex, Lease>;

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
    /// any other; the time is not looked at. `needs_siblings` tells whether tunnels are held with the nodes of the own
    /// cluster: then a change of theirs is one of [`Changes::nodes`], and they are among what is [known](Self::known).
    #[must_use]
    pub fn new(
        trust: Trust,
        own: NodeId,
        own_grant: &Grant,
        known: Known,
        needs_siblings: bool,
        now: UnixTime,
    ) -> Self {
        let mut membership = Self {
            trust,
            own,
            own_key: own_grant.cluster_key,
            own_serial: own_grant.serial,
            own_cidrs: own_grant.cidrs(),
            high_water: known.high_water,
            nodes: BTreeMap::new(),
            order: Vec::new(),
            unseen: BTreeMap::new(),
            settled: BTreeSet::new(),
            waiting: BTreeMap::new(),
            refusals: Refusals::default(),
            own_stored: BTreeMap::new(),
            siblings: BTreeMap::new(),
            needs_siblings,
            own_listed: BTreeSet::new(),
        };
        for signed in known.records {
            let taken = membership
                .trust
                .verify_kept(&signed)
                .and_then(|verified| membership.admit(&verified, &Heard::new(), Origin::Disk, now));
            if let Err(refusal) = taken {
                membership.refuse(&signed, &Heard::new(), &refusal, now);
            }
        }
        membership
    }

    /// The nodes of the other clusters.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, RemoteNode> {
        &self.nodes
    }

    /// The other nodes of the own cluster.
    #[must_use]
    pub fn siblings(&self) -> &BTreeMap<NodeId, RemoteNode> {
        &self.siblings
    }

    /// What was refused.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// What the brokers have of this very node, as far as they were heard: the highest version, and whether it is
    /// held at any of them.
    #[must_use]
    pub fn own_stored(&self) -> Option<OwnRecord> {
        self.own_stored.values().copied().max_by_key(|own| (own.version, own.held))
    }

    /// The nodes of the own cluster behind which nobody stands any more: no broker has heard from them for the time of
    /// a lease.
    #[must_use]
    pub fn lapsed_siblings(&self) -> Vec<Record> {
        let fresh = |heard: &Heard| heard.is_empty() || heard.values().any(|lease| *lease == Lease::Fresh);
        let lapsed = self.siblings.values().filter(|node| !fresh(&node.heard));
        lapsed.map(|node| node.verified.record().clone()).collect()
    }

    /// Whether a broker is just sending everything anew: more is to come.
    #[must_use]
    pub fn resetting(&self) -> bool {
        !self.unseen.is_empty()
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
            .chain(self.siblings.values().filter(|_| self.needs_siblings))
            .map(|node| node.verified.signed().clone())
            .collect();
        Known { high_water: self.high_water.clone(), records }
    }

    /// Takes in one event of a broker's watch.
    pub fn handle(&mut self, broker: BrokerIndex, event: WatchEvent, now: UnixTime) -> Changes {
        match event {
            WatchEvent::Reset => {
                self.own_listed.remove(&broker);
                self.unseen.insert(broker, self.nodes.keys().cloned().collect());
                Changes::default()
            }
            WatchEvent::Entry(entry) => {
                let clusters = self.order.len();
                let mut changes = self.take(broker, &entry, now);
                if self.order.len() < clusters {
                    // Another cluster may have waited for its addresses.
                    changes |= self.reconsider(now);
                }
                changes
            }
            WatchEvent::Bookmark { .. } => self.settle(broker),
            WatchEvent::Resync => Changes::default(),
        }
    }

    /// A broker is not heard any more. What only this one said goes on to count, as its last word; where `others` are
    /// heard, theirs replaces it.
    pub fn disconnected(&mut self, broker: BrokerIndex, others: bool) -> Changes {
        // The next connection begins with a reset again.
        self.unseen.remove(&broker);
        self.settled.remove(&broker);
        let mut status = false;
        if others {
            for node in self.nodes.values_mut().filter(|node| node.heard.len() > 1) {
                status |= node.heard.remove(&broker).is_some();
            }
            for sibling in self.siblings.values_mut().filter(|sibling| sibling.heard.len() > 1) {
                sibling.heard.remove(&broker);
            }
            if self.own_stored.len() > 1 {
                self.own_stored.remove(&broker);
            }
        }
        Changes { nodes: false, status }
    }

    /// After a reset and everything that followed it: what was not among it the broker does not list any more. A
    /// broker can leave out what it likes, so that this marks a node and removes none.
    fn settle(&mut self, broker: BrokerIndex) -> Changes {
        let Some(unseen) = self.unseen.remove(&broker) else { return Changes::default() };
        self.settled.insert(broker);
        let mut status = false;
        for id in unseen {
            if let Some(node) = self.nodes.get_mut(&id) {
                status |= node.heard.remove(&broker).is_some();
            }
        }
        if !self.own_listed.contains(&broker)
            && let Some(own) = self.own_stored.get_mut(&broker)
        {
            status |= std::mem::replace(&mut own.held, false);
        }
        Changes { nodes: false, status }
    }

    /// The broker has sent the node since its reset, if it is sending everything.
    fn saw(&mut self, broker: BrokerIndex, id: &NodeId) {
        if let Some(unseen) = self.unseen.get_mut(&broker) {
            unseen.remove(id);
        }
    }

    fn take(&mut self, broker: BrokerIndex, entry: &Entry, now: UnixTime) -> Changes {
        // Brokers send the same record, each of them and after every reconnect; signatures need no second look.
        if let Some((id, _)) = entry.signed.claim()
            && let Some(node) = self.nodes.get_mut(&id)
            && node.verified.signed() == &entry.signed
        {
            let status = node.heard.insert(broker, entry.lease) != Some(entry.lease);
            self.saw(broker, &id);
            return Changes { nodes: false, status };
        }
        let heard = Heard::from([(broker, entry.lease)]);
        let taken = self
            .trust
            .verify(&entry.signed, now)
            .and_then(|verified| self.admit(&verified, &heard, Origin::Broker, now));
        match taken {
            Ok(changes) => changes,
            // Of several brokers one may be behind the others, and no harm done.
            Err(refusal) if refusal.kind == RefusalKind::Replayed && self.others_settled(broker) => {
                self.refusals.count(refusal.kind);
                Changes::default()
            }
            Err(refusal) => {
                self.refuse(&entry.signed, &heard, &refusal, now);
                Changes { nodes: false, status: true }
            }
        }
    }

    fn others_settled(&self, broker: BrokerIndex) -> bool {
        self.settled.iter().any(|other| *other != broker)
    }

    fn admit(
        &mut self,
        verified: &VerifiedRecord,
        heard: &Heard,
        origin: Origin,
        now: UnixTime,
    ) -> Result<Changes, Refusal> {
        let record = verified.record();
        let id = record.id();
        let cluster = &verified.grant().cluster;
        if *cluster == self.own.cluster {
            return self.admit_own_cluster(verified, heard, origin, now);
        }
        // A withdrawal claims no addresses.
        if record.state == RecordState::Active {
            self.check_overlap(verified)?;
        }
        let new_key = self.check_key(verified)?;
        self.check_version(verified)?;
        let seen = self.high_water.of(&id);
        match self.high_water.admit(verified) {
            // A node that has not got its cluster's newest bundle yet was good while the agent ran, and
            // is good after its restart.
            Err(refusal)
                if origin == Origin::Disk && refusal.kind == RefusalKind::GrantSuperseded && !new_key => {}
            admitted => admitted?,
        }
        let raised = self.high_water.of(&id) != seen;
        for broker in heard.keys() {
            self.saw(*broker, &id);
        }
        self.waiting.remove(&id);
        if record.state == RecordState::Withdrawn {
            let known = self.nodes.remove(&id).is_some();
            self.forget_cluster(cluster);
            return Ok(Changes { nodes: known || raised, status: known });
        }
        if !self.order.contains(cluster) {
            self.order.push(cluster.clone());
        }
        if new_key {
            // A newer grant with another key replaces the cluster as a whole: what the former key signed
            // is not the cluster's word any more.
            let key = verified.grant().cluster_key;
            self.nodes.retain(|id, node| &id.cluster != cluster || node.verified.grant().cluster_key == key);
        }
        let known = self.nodes.get(&id);
        let since = known.map_or(now, |known| known.since);
        // Who has said it before still does, if it is the same: with another grant, for instance.
        let same = known.filter(|known| known.verified.record().version == record.version);
        let mut all = same.map(|known| known.heard.clone()).unwrap_or_default();
        all.extend(heard);
        self.nodes.insert(id, RemoteNode { verified: verified.clone(), heard: all, since });
        Ok(Changes { nodes: true, status: true })
    }

    /// Nodes of one's own cluster are reached without podspan, unless tunnels are held with them for what comes from
    /// other clusters; of them else only this node's own record and the cluster's newest grant matter.
    fn admit_own_cluster(
        &mut self,
        verified: &VerifiedRecord,
        heard: &Heard,
        origin: Origin,
        now: UnixTime,
    ) -> Result<Changes, Refusal> {
        let (grant, record) = (verified.grant(), verified.record());
        if grant.cluster_key != self.own_key {
            let detail = if grant.serial > self.own_serial {
                format!(
                    "this agent's bundle is out of date: grant {} of cluster {} is for the key {}, the bundle holds \
                     grant {}: put the cluster's newest bundle here, or give one of two clusters another name",
                    grant.serial, grant.cluster, grant.cluster_key, self.own_serial
                )
            } else {
                format!(
                    "another cluster uses the name of this one: {} stands on grant {} for the key {}, this cluster's \
                     key is {}: give one of the two another name",
                    record.id(),
                    grant.serial,
                    grant.cluster_key,
                    self.own_key
                )
            };
            return Err(Refusal::new(RefusalKind::GrantSuperseded, detail));
        }
        match self.high_water.admit(verified) {
            // As in `admit`: a node that has not got the newest bundle yet is good after a restart too.
            Err(refusal) if origin == Origin::Disk && refusal.kind == RefusalKind::GrantSuperseded => {}
            admitted => admitted?,
        }
        let mut nodes = false;
        for (broker, lease) in heard.iter().filter(|_| record.id() == self.own) {
            self.own_listed.insert(*broker);
            let held = record.state == RecordState::Active && *lease == Lease::Fresh;
            self.own_stored.insert(*broker, OwnRecord { version: record.version, held });
        }
        if record.id() != self.own {
            let known = self.siblings.remove(&record.id());
            let since = known.as_ref().map_or(now, |known| known.since);
            if record.state == RecordState::Active {
                let same = known.as_ref().filter(|known| known.verified.record().version == record.version);
                let mut all = same.map(|known| known.heard.clone()).unwrap_or_default();
                all.extend(heard);
                nodes = same.is_none_or(|same| same.verified.signed().record != verified.signed().record);
                self.siblings
                    .insert(record.id(), RemoteNode { verified: verified.clone(), heard: all, since });
            } else {
                nodes = known.is_some();
            }
        }
        Ok(Changes { nodes: nodes && self.needs_siblings, status: true })
    }

    /// A node signs a version once. Were a second record of it let in, a broker could change between the
    /// two as it likes.
    fn check_version(&self, verified: &VerifiedRecord) -> Result<(), Refusal> {
        let record = verified.record();
        match self.nodes.get(&record.id()) {
            Some(known)
                if known.verified.record().version == record.version
                    && known.verified.signed().record != verified.signed().record =>
            {
                Err(Refusal::new(
                    RefusalKind::Replayed,
                    format!(
                        "there are two records of {} with version {}; the one seen first stays: was its state \
                         directory put back from a copy?",
                        record.id(),
                        record.version
                    ),
                ))
            }
            _ => Ok(()),
        }
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
        // Most nodes of a cluster stand on one grant, and they follow each other.
        let mut last = None;
        for node in self.nodes.values() {
            let other = node.verified.grant();
            if other.cluster != grant.cluster
                && let Some((theirs, endpoint)) = covered_endpoint(&cidrs, node.verified.record())
            {
                return Err(Refusal::new(
                    RefusalKind::Overlap,
                    format!(
                        "cluster {} announces {theirs}, in which the endpoint {endpoint} of {} lies, known before \
                         it: its tunnels would lead into themselves; one of the two needs other addresses",
                        grant.cluster,
                        node.verified.record().id()
                    ),
                ));
            }
            if other.cluster == grant.cluster
                || last.replace((&other.cluster, other.serial)) == Some((&other.cluster, other.serial))
            {
                continue;
            }
            if let Some((theirs, known)) = cidrs.overlap(&other.cidrs()) {
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
    /// Returns whether the key is another than that of the nodes known.
    fn check_key(&self, verified: &VerifiedRecord) -> Result<bool, Refusal> {
        let grant = verified.grant();
        let other = self
            .nodes
            .values()
            .map(|node| node.verified.grant())
            .find(|known| known.cluster == grant.cluster && known.cluster_key != grant.cluster_key);
        match other {
            Some(known) if known.serial == grant.serial => Err(Refusal::new(
                RefusalKind::GrantSuperseded,
                format!(
                    "there are two grants with serial {} for cluster {}, one for the key {} and one for {}: give one \
                     of the two clusters another name",
                    grant.serial, grant.cluster, known.cluster_key, grant.cluster_key
                ),
            )),
            other => Ok(other.is_some()),
        }
    }

    fn forget_cluster(&mut self, cluster: &ClusterId) {
        if !self.nodes.keys().any(|id| &id.cluster == cluster) {
            self.order.retain(|known| known != cluster);
        }
    }

    fn refuse(&mut self, signed: &SignedRecord, heard: &Heard, refusal: &Refusal, now: UnixTime) {
        self.refusals.note(signed, refusal, now);
        let may_pass = matches!(
            refusal.kind,
            RefusalKind::Overlap | RefusalKind::RecordExpired | RefusalKind::GrantExpired
        );
        if may_pass && let Ok(verified) = self.trust.verify_kept(signed) {
            self.wait(verified, heard.clone());
        }
    }

    fn wait(&mut self, verified: VerifiedRecord, mut heard: Heard) {
        let id = verified.record().id();
        let known = self.waiting.get(&id);
        let later = known.is_some_and(|(known, _)| known.record().version > verified.record().version);
        if let Some((known, before)) = known
            && known.record().version == verified.record().version
        {
            heard = before.iter().map(|(broker, lease)| (*broker, *lease)).chain(heard).collect();
        }
        let room = self.waiting.len() < MAX_WAITING || self.waiting.contains_key(&id);
        let matters = id.cluster != self.own.cluster || (self.needs_siblings && id != self.own);
        if matters && room && !later {
            self.waiting.insert(id, (verified, heard));
        }
    }

    /// Looks again at the records that were refused for a reason that may have passed. To be called now
    /// and then, for the clock; whatever else may let one pass is seen to.
    pub fn reconsider(&mut self, now: UnixTime) -> Changes {
        let mut changes = Changes::default();
        for (id, (verified, heard)) in std::mem::take(&mut self.waiting) {
            let end = verified.record().not_after.min(verified.grant().not_after);
            if now > end {
                if now.since(end) <= FORGET_AFTER {
                    self.waiting.insert(id, (verified, heard));
                }
                continue;
            }
            match self.admit(&verified, &heard, Origin::Broker, now) {
                Ok(taken) => changes |= taken,
                Err(refusal) if refusal.kind == RefusalKind::Overlap => {
                    self.waiting.insert(id, (verified, heard));
                }
                // Something later was taken in meanwhile.
                Err(_) => {}
            }
        }
        changes
    }

    /// Sets what no other cluster may overlap besides this cluster's grant: the part of the underlay that
    /// this node needs. Clusters that do are refused from then on, until it changes again.
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
                    self.refuse(node.verified.signed(), &node.heard, &refusal, now);
                }
                self.forget_cluster(&id.cluster);
                changes = Changes { nodes: true, status: true };
            }
        }
        changes |= self.reconsider(now);
        changes
    }

    /// Forgets nodes whose record ended long ago, except those that `alive` says are still heard.
    pub fn forget(&mut self, now: UnixTime, alive: impl Fn(&NodeId) -> bool) -> Changes {
        let before = self.nodes.len();
        self.nodes
            .retain(|id, node| now.since(node.verified.record().not_after) <= FORGET_AFTER || alive(id));
        let mut nodes = self.nodes.len() != before;
        if self.needs_siblings {
            let before = self.siblings.len();
            self.siblings
                .retain(|id, node| now.since(node.verified.record().not_after) <= FORGET_AFTER || alive(id));
            nodes |= self.siblings.len() != before;
        }
        let present: BTreeSet<&ClusterId> = self.nodes.keys().map(|id| &id.cluster).collect();
        self.order.retain(|cluster| present.contains(cluster));
        let mut changes = Changes { nodes, status: nodes };
        changes |= self.reconsider(now);
        changes
    }
}

/// The endpoint of a gateway that lies within one of these CIDRs: a route to the CIDR would cut it off.
fn covered_endpoint(cidrs: &CidrSet, record: &Record) -> Option<(Cidr, IpAddr)> {
    let endpoints = record.endpoints.iter().filter(|_| record.gateway);
    endpoints
        .filter_map(|endpoint| Some((*cidrs.iter().find(|cidr| cidr.contains(*endpoint))?, *endpoint)))
        .next()
}

#[cfg(test)]
#[path = "membership_tests.rs"]
pub(crate) mod tests;
