//! What the broker knows: entries, revisions, leases, grant serials. A pure state machine: it does no IO
//! and reads no clock.
//!
//! Every change of an entry takes the next revision, so "what changed since revision r" is exactly the
//! entries with a higher one. Changes are journalled until they are durable: the caller applies any
//! number of operations, takes [`Registry::batch`], writes it to the store, and then calls
//! [`Registry::keep`], or [`Registry::roll_back`] if the store refused. Nothing may be answered or
//! published before `keep`.
//!
//! The state of a lease is durable, its deadline is not: after a restart every fresh entry gets a whole
//! lease of grace, and a lapsed one stays lapsed until it is renewed. So a watcher that resumes after a
//! restart has seen every change of a lease that happened before it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podspan_wire::api::{Entry, Lease, Token};
use podspan_wire::{
    Cidr, ClusterId, NodeId, NodeName, PublicKey, RecordState, UnixTime, VerifiedRecord, Version,
};

/// How long past its `notAfter` an active record is kept. Agents refuse it from `notAfter` on; it stays
/// listed for a while so that a person can see which node stopped publishing.
pub const KEEP_EXPIRED: Duration = Duration::from_secs(7 * 24 * 3600);

/// One entry as the registry holds it. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The revision at which it last changed.
    pub revision: u64,
    /// The state of the node's lease.
    pub lease: Lease,
    /// When the lease ends, since the registry's start; `None` once lapsed or withdrawn.
    deadline: Option<Duration>,
    /// The record, verified when it was put or loaded.
    pub verified: Arc<VerifiedRecord>,
}

impl Stored {
    /// The entry as the API sends it.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry { revision: self.revision, lease: self.lease, signed: self.verified.signed().clone() }
    }

    fn version(&self) -> Version {
        self.verified.record().version
    }

    fn is_withdrawn(&self) -> bool {
        self.verified.record().state == RecordState::Withdrawn
    }
}

/// How many entries may be stored.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// In all.
    pub records: usize,
    /// Of one cluster.
    pub records_per_cluster: usize,
}

/// Why the registry refused an operation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// A later record of the node is stored, or another one of the same version.
    #[error(
        "version {given} of {id} is not newer than the stored {stored}: take a higher version (the node \
         lost its state, or two nodes use one name)"
    )]
    NotNewer {
        /// Which node.
        id: NodeId,
        /// The version that was sent.
        given: Version,
        /// The version that is stored.
        stored: Version,
    },
    /// A renewal named another version than the stored one.
    #[error("{id} is stored with version {stored}, not {given}: put the record again, with a higher version")]
    OtherVersion {
        /// Which node.
        id: NodeId,
        /// The version that was named.
        given: Version,
        /// The version that is stored.
        stored: Version,
    },
    /// A renewal of a node that was withdrawn.
    #[error("{id} was withdrawn with version {stored}: put an active record with a higher version")]
    Withdrawn {
        /// Which node.
        id: NodeId,
        /// The version of the withdrawal.
        stored: Version,
    },
    /// Nothing is stored for the node.
    #[error("no record of {id} is stored: put it")]
    Unknown {
        /// Which node.
        id: NodeId,
    },
    /// The grant overlaps that of another cluster, which was there first.
    #[error(transparent)]
    Overlap(Box<Overlap>),
    /// A later grant of the cluster is known.
    #[error(
        "grant {given} of cluster {cluster} was superseded by grant {known}: give this cluster's agents its \
         newest bundle"
    )]
    Superseded {
        /// Which cluster.
        cluster: ClusterId,
        /// The serial of the grant that was shown.
        given: u64,
        /// The highest serial seen.
        known: u64,
    },
    /// Two grants of one serial for two keys: two clusters were given one name. The earlier stays.
    #[error(
        "there are two grants with serial {serial} for cluster {cluster}, one for the key {known}, which was here \
         first, and one for {given}: give one of the two clusters another name"
    )]
    OtherKey {
        /// The name that both have.
        cluster: ClusterId,
        /// The serial that both have.
        serial: u64,
        /// The key of the nodes that are stored.
        known: PublicKey,
        /// The other key.
        given: PublicKey,
    },
    /// No further record fits.
    #[error("{what} reached its limit of {limit} records: raise `{key}` in the broker's configuration")]
    Full {
        /// What is full.
        what: String,
        /// How many it may have.
        limit: usize,
        /// The configuration key.
        key: &'static str,
    },
}

/// Two clusters whose grants share addresses.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "the grant of cluster {cluster} has {own}, which overlaps {theirs} of cluster {other} (node {node}), \
     which was here first: grant one of the two other CIDRs, or withdraw the other cluster's nodes"
)]
pub struct Overlap {
    /// The cluster that came later.
    pub cluster: ClusterId,
    /// Its CIDR.
    pub own: Cidr,
    /// The cluster that was there first.
    pub other: ClusterId,
    /// Its CIDR.
    pub theirs: Cidr,
    /// A node of it that stands on that grant.
    pub node: NodeId,
}

/// What must be written for the operations since the last [`Registry::keep`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The revision after them.
    pub revision: u64,
    /// New and changed entries, in the order of their revision.
    pub entries: Vec<(NodeId, Entry)>,
    /// Entries to forget.
    pub removed: Vec<NodeId>,
    /// Grant serials that rose.
    pub serials: Vec<(ClusterId, u64)>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.removed.is_empty() && self.serials.is_empty()
    }
}

/// Where a watcher starts.
#[derive(Clone, Debug)]
pub struct Resume {
    /// Whether it must forget what it has.
    pub reset: bool,
    /// Everything, in the order of revision: one list, shared by all who start at this revision.
    snapshot: Arc<[Stored]>,
    /// How many at its beginning the watcher has seen.
    seen: usize,
    /// Where the watcher stands after these.
    pub token: Token,
}

impl Resume {
    /// What the watcher has not seen, in the order of revision.
    #[must_use]
    pub fn entries(&self) -> &[Stored] {
        self.snapshot.get(self.seen..).unwrap_or_default()
    }

    /// Lets go of the entries once they were sent.
    pub fn forget(&mut self) {
        self.snapshot = Arc::default();
    }
}

enum Undo {
    Entry(NodeId, Option<Stored>),
    Serial(ClusterId, Option<u64>),
}

/// Entries, leases and grant serials of one cluster set.
pub struct Registry {
    store: String,
    lease: Duration,
    capacity: Capacity,
    revision: u64,
    /// The revision that is durable.
    kept_revision: u64,
    clusters: BTreeMap<ClusterId, BTreeMap<NodeName, Stored>>,
    count: usize,
    by_revision: BTreeMap<u64, NodeId>,
    deadlines: BTreeSet<(Duration, NodeId)>,
    serials: BTreeMap<ClusterId, u64>,
    journal: Vec<Undo>,
    dirty: BTreeSet<NodeId>,
    dirty_serials: BTreeSet<ClusterId>,
    /// All entries by revision, made when first asked for after a change: when thousands of watchers come
    /// back at once, they share it.
    snapshot: OnceCell<Arc<[Stored]>>,
}

impl Registry {
    /// An empty registry over the store `store`, whose last revision was `revision`.
    #[must_use]
    pub fn new(store: String, revision: u64, lease: Duration, capacity: Capacity) -> Self {
        Self {
            store,
            lease,
            capacity,
            revision,
            kept_revision: revision,
            clusters: BTreeMap::new(),
            count: 0,
            by_revision: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            serials: BTreeMap::new(),
            journal: Vec::new(),
            dirty: BTreeSet::new(),
            dirty_serials: BTreeSet::new(),
            snapshot: OnceCell::new(),
        }
    }

    /// Takes in an entry that the store holds. A fresh one gets a whole lease from `now` on.
    pub fn load(&mut self, revision: u64, lease: Lease, verified: VerifiedRecord, now: Duration) {
        let id = verified.record().id();
        let mut stored = Stored { revision, lease, deadline: None, verified: Arc::new(verified) };
        if lease == Lease::Fresh && !stored.is_withdrawn() {
            stored.deadline = Some(now + self.lease);
        }
        let grant = stored.verified.grant();
        let serial = self.serials.entry(grant.cluster.clone()).or_default();
        *serial = grant.serial.max(*serial);
        self.revision = self.revision.max(revision);
        self.kept_revision = self.revision;
        self.exchange(&id, Some(stored));
    }

    /// Takes in a grant serial that the store holds.
    pub fn load_serial(&mut self, cluster: ClusterId, serial: u64) {
        let known = self.serials.entry(cluster).or_default();
        *known = serial.max(*known);
    }

    /// Puts an active record or a withdrawal. The same record again renews the lease and is no change.
    ///
    /// # Errors
    /// [`Refused`]; nothing is changed then.
    pub fn put(&mut self, verified: VerifiedRecord, now: Duration, time: UnixTime) -> Result<u64, Refused> {
        let (id, version) = (verified.record().id(), verified.record().version);
        let (cluster, serial) = (verified.grant().cluster.clone(), verified.grant().serial);
        if let Some(known) = self.serial(&cluster)
            && serial < known
        {
            return Err(Refused::Superseded { cluster, given: serial, known });
        }
        self.check_key(&verified, time)?;
        let old = self.get(&id).cloned();
        if let Some(old) = &old {
            if old.version() == version && old.verified.signed() == verified.signed() {
                self.note(&cluster, serial);
                if !old.is_withdrawn() {
                    self.refresh(&id, old.clone(), now);
                }
                return Ok(self.get(&id).map_or(old.revision, |stored| stored.revision));
            }
            if version <= old.version() {
                return Err(Refused::NotNewer { id, given: version, stored: old.version() });
            }
        } else {
            self.check_capacity(&cluster)?;
        }
        let active = verified.record().state == RecordState::Active;
        if active {
            self.check_overlap(&verified, time)?;
        }
        self.note(&cluster, serial);
        let deadline = active.then(|| now + self.lease);
        let revision = self.next_revision();
        let stored = Stored { revision, lease: Lease::Fresh, deadline, verified: Arc::new(verified) };
        self.change(&id, Some(stored));
        Ok(revision)
    }

    /// Renews the lease of a node; a change only if it had lapsed.
    ///
    /// # Errors
    /// [`Refused`] if the node is unknown, withdrawn or stored with another version.
    pub fn renew(&mut self, id: &NodeId, version: Version, now: Duration) -> Result<(), Refused> {
        let Some(stored) = self.get(id).cloned() else {
            return Err(Refused::Unknown { id: id.clone() });
        };
        if stored.version() != version {
            return Err(Refused::OtherVersion { id: id.clone(), given: version, stored: stored.version() });
        }
        if stored.is_withdrawn() {
            return Err(Refused::Withdrawn { id: id.clone(), stored: version });
        }
        self.refresh(id, stored, now);
        Ok(())
    }

    /// Notes the serial of a grant that the root signed: earlier grants of the cluster end with it.
    pub fn note(&mut self, cluster: &ClusterId, serial: u64) {
        let known = self.serials.get(cluster).copied();
        if known.is_none_or(|known| known < serial) {
            self.journal.push(Undo::Serial(cluster.clone(), known));
            self.serials.insert(cluster.clone(), serial);
            self.dirty_serials.insert(cluster.clone());
        }
    }

    /// Lets the leases lapse that ended by `now`; returns how many did.
    pub fn lapse(&mut self, now: Duration) -> usize {
        let mut lapsed = 0;
        while let Some((deadline, id)) = self.deadlines.first().cloned() {
            if deadline > now {
                break;
            }
            let Some(mut stored) = self.get(&id).cloned() else {
                self.deadlines.remove(&(deadline, id));
                continue;
            };
            stored.lease = Lease::Lapsed;
            stored.deadline = None;
            stored.revision = self.next_revision();
            self.change(&id, Some(stored));
            lapsed += 1;
        }
        lapsed
    }

    /// Forgets withdrawals past their `notAfter` and active records [`KEEP_EXPIRED`] past theirs: neither
    /// can come back, since an expired record is refused. Returns how many.
    pub fn expire(&mut self, time: UnixTime) -> usize {
        let gone: Vec<NodeId> = self
            .iter()
            .filter(|stored| {
                let not_after = stored.verified.record().not_after;
                let keep = if stored.is_withdrawn() { Duration::ZERO } else { KEEP_EXPIRED };
                time > not_after.after(keep)
            })
            .map(|stored| stored.verified.record().id())
            .collect();
        for id in &gone {
            self.change(id, None);
        }
        gone.len()
    }

    /// What the operations since the last [`Self::keep`] come to.
    #[must_use]
    pub fn batch(&self) -> Batch {
        let mut batch = Batch { revision: self.revision, ..Batch::default() };
        for id in &self.dirty {
            match self.get(id) {
                Some(stored) => batch.entries.push((id.clone(), stored.entry())),
                None => batch.removed.push(id.clone()),
            }
        }
        batch.entries.sort_by_key(|(_, entry)| entry.revision);
        batch.serials = self
            .dirty_serials
            .iter()
            .filter_map(|cluster| Some((cluster.clone(), *self.serials.get(cluster)?)))
            .collect();
        batch
    }

    /// The batch is durable: the changes stand.
    pub fn keep(&mut self) {
        self.kept_revision = self.revision;
        self.journal.clear();
        self.dirty.clear();
        self.dirty_serials.clear();
    }

    /// The batch could not be written: all is as it was at the last [`Self::keep`].
    pub fn roll_back(&mut self) {
        while let Some(undo) = self.journal.pop() {
            match undo {
                Undo::Entry(id, old) => {
                    self.exchange(&id, old);
                }
                Undo::Serial(cluster, Some(old)) => {
                    self.serials.insert(cluster, old);
                }
                Undo::Serial(cluster, None) => {
                    self.serials.remove(&cluster);
                }
            }
        }
        self.revision = self.kept_revision;
        self.dirty.clear();
        self.dirty_serials.clear();
    }

    /// Where a watcher with this token goes on.
    #[must_use]
    pub fn resume(&self, from: Option<&Token>) -> Resume {
        // A token ahead of the store is of a store that was put back from a copy: it proves nothing.
        let seen = from
            .filter(|token| token.store == self.store && token.revision <= self.revision)
            .map(|token| token.revision);
        let snapshot = self
            .snapshot
            .get_or_init(|| self.by_revision.values().filter_map(|id| self.get(id).cloned()).collect());
        Resume {
            reset: seen.is_none(),
            snapshot: snapshot.clone(),
            seen: snapshot.partition_point(|stored| seen.is_some_and(|seen| stored.revision <= seen)),
            token: self.token(),
        }
    }

    /// Where the registry stands.
    #[must_use]
    pub fn token(&self) -> Token {
        Token { store: self.store.clone(), revision: self.revision }
    }

    /// The highest serial seen of a cluster's grants.
    #[must_use]
    pub fn serial(&self, cluster: &ClusterId) -> Option<u64> {
        self.serials.get(cluster).copied()
    }

    /// All serials.
    pub fn serials(&self) -> impl Iterator<Item = (&ClusterId, u64)> {
        self.serials.iter().map(|(cluster, serial)| (cluster, *serial))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.clusters.values().flat_map(BTreeMap::values)
    }

    fn get(&self, id: &NodeId) -> Option<&Stored> {
        self.clusters.get(&id.cluster)?.get(&id.node)
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// A whole lease from now on; a change only if the entry had lapsed.
    fn refresh(&mut self, id: &NodeId, mut stored: Stored, now: Duration) {
        stored.deadline = Some(now + self.lease);
        if stored.lease == Lease::Lapsed {
            stored.lease = Lease::Fresh;
            stored.revision = self.next_revision();
            self.change(id, Some(stored));
        } else {
            // A deadline alone is not durable and needs no undoing: a renewal that was rolled back with
            // somebody else's write still came in time.
            self.exchange(id, Some(stored));
        }
    }

    fn change(&mut self, id: &NodeId, new: Option<Stored>) {
        let old = self.exchange(id, new);
        self.journal.push(Undo::Entry(id.clone(), old));
        self.dirty.insert(id.clone());
    }

    /// The only place where an entry and its indices change.
    fn exchange(&mut self, id: &NodeId, new: Option<Stored>) -> Option<Stored> {
        let added = new.as_ref().map(|new| (new.revision, new.deadline));
        let old = match new {
            Some(new) => self.clusters.entry(id.cluster.clone()).or_default().insert(id.node.clone(), new),
            None => self.clusters.get_mut(&id.cluster).and_then(|nodes| nodes.remove(&id.node)),
        };
        // A deadline is not shown to anybody.
        if old.as_ref().map(|old| old.revision) != added.map(|(revision, _)| revision) {
            self.snapshot.take();
        }
        if let Some(old) = &old {
            self.count -= 1;
            self.by_revision.remove(&old.revision);
            if let Some(deadline) = old.deadline {
                self.deadlines.remove(&(deadline, id.clone()));
            }
        }
        if let Some((revision, deadline)) = added {
            self.count += 1;
            self.by_revision.insert(revision, id.clone());
            if let Some(deadline) = deadline {
                self.deadlines.insert((deadline, id.clone()));
            }
        }
        old
    }

    fn check_capacity(&self, cluster: &ClusterId) -> Result<(), Refused> {
        let own = self.clusters.get(cluster).map_or(0, BTreeMap::len);
        if own >= self.capacity.records_per_cluster {
            return Err(Refused::Full {
                what: format!("cluster {cluster}"),
                limit: self.capacity.records_per_cluster,
                key: "limits.records-per-cluster",
            });
        }
        if self.count >= self.capacity.records {
            return Err(Refused::Full {
                what: "this broker".into(),
                limit: self.capacity.records,
                key: "limits.records",
            });
        }
        Ok(())
    }

    /// Looks for an active record of the cluster on a grant with the same serial and another key. All that
    /// stand on one serial have one key, so the first of them decides.
    fn check_key(&self, verified: &VerifiedRecord, time: UnixTime) -> Result<(), Refused> {
        let grant = verified.grant();
        let standing =
            self.clusters.get(&grant.cluster).into_iter().flat_map(BTreeMap::values).find(|stored| {
                stored.verified.grant().serial == grant.serial
                    && !stored.is_withdrawn()
                    && time <= stored.verified.record().not_after
            });
        match standing.map(|stored| stored.verified.grant().cluster_key) {
            Some(known) if known != grant.cluster_key => Err(Refused::OtherKey {
                cluster: grant.cluster.clone(),
                serial: grant.serial,
                known,
                given: grant.cluster_key,
            }),
            _ => Ok(()),
        }
    }

    /// Looks for another cluster with an active record whose standing grant overlaps. One node of a
    /// cluster is enough to know its grant, so this costs a step per cluster, not per node.
    fn check_overlap(&self, verified: &VerifiedRecord, time: UnixTime) -> Result<(), Refused> {
        let grant = verified.grant();
        let own = grant.cidrs();
        for (other, nodes) in &self.clusters {
            if *other == grant.cluster {
                continue;
            }
            let standing = nodes.values().find(|stored| {
                let theirs = stored.verified.grant();
                !stored.is_withdrawn()
                    && self.serial(other) == Some(theirs.serial)
                    && time <= theirs.not_after
                    && time <= stored.verified.record().not_after
            });
            let Some(standing) = standing else { continue };
            if let Some((own, theirs)) = own.overlap(&standing.verified.grant().cidrs()) {
                return Err(Refused::Overlap(Box::new(Overlap {
                    cluster: grant.cluster.clone(),
                    own,
                    other: other.clone(),
                    theirs,
                    node: standing.verified.record().id(),
                })));
            }
        }
        Ok(())
    }
}
