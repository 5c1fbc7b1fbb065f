//! From the root to a record: what may be believed.
//!
//! [`Trust`] holds the one key that is believed without proof. [`Trust::verify`] leads from it to a
//! grant and from the grant to a record. [`HighWater`] refuses what was true once and is not any more.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, EnvelopeError};
use crate::grant::Grant;
use crate::names::{ClusterId, ClusterSetId, NodeId};
use crate::record::{Record, RecordState, SignedRecord, Version};
use crate::time::UnixTime;

/// Why a record or grant was refused: what a counter is named after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// It cannot be read, or its contents contradict themselves.
    Malformed,
    /// It is of another cluster set.
    OtherClusterSet,
    /// The grant is not signed by the root.
    GrantSignature,
    /// The grant's time is over.
    GrantExpired,
    /// A later grant for the same cluster is known.
    GrantSuperseded,
    /// The record is not signed by the cluster's key.
    RecordSignature,
    /// The record's time is over.
    RecordExpired,
    /// It announces something that its grant does not allow.
    OutsideGrant,
    /// A later record of the node is known.
    Replayed,
    /// Its CIDRs overlap those of another cluster or of this node.
    Overlap,
}

impl RefusalKind {
    /// All kinds, in the order of the checks.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::OtherClusterSet,
        Self::GrantSignature,
        Self::GrantExpired,
        Self::GrantSuperseded,
        Self::RecordSignature,
        Self::RecordExpired,
        Self::OutsideGrant,
        Self::Replayed,
        Self::Overlap,
    ];

    /// The kind as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::OtherClusterSet => "other-cluster-set",
            Self::GrantSignature => "grant-signature",
            Self::GrantExpired => "grant-expired",
            Self::GrantSuperseded => "grant-superseded",
            Self::RecordSignature => "record-signature",
            Self::RecordExpired => "record-expired",
            Self::OutsideGrant => "outside-grant",
            Self::Replayed => "replayed",
            Self::Overlap => "overlap",
        }
    }
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// A record or grant that was refused, and why, in words for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Refusal {
    /// The kind, for counting.
    pub kind: RefusalKind,
    /// The particulars.
    pub detail: String,
}

impl Refusal {
    /// A refusal of this kind.
    pub fn new(kind: RefusalKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// Names the first extension that must be understood and is not.
pub(crate) fn critical_extension(extensions: &BTreeMap<String, serde_json::Value>) -> Option<String> {
    extensions
        .keys()
        .find(|name| name.starts_with('!'))
        .map(|name| format!("it needs {name:?}, which this version does not know: upgrade podspan here"))
}

/// A grant that the root signed and whose contents make sense. Only [`Trust`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedGrant(Grant);

impl std::ops::Deref for VerifiedGrant {
    type Target = Grant;
    fn deref(&self) -> &Grant {
        &self.0
    }
}

/// A record whose chain up to the root was checked. Only [`Trust`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedRecord {
    grant: VerifiedGrant,
    record: Record,
    signed: SignedRecord,
}

impl VerifiedRecord {
    /// The cluster's grant.
    #[must_use]
    pub fn grant(&self) -> &VerifiedGrant {
        &self.grant
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The record as it was sent, for passing it on and for keeping it.
    #[must_use]
    pub fn signed(&self) -> &SignedRecord {
        &self.signed
    }
}

/// The one key that is believed: the root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    cluster_set: ClusterSetId,
}

impl Trust {
    /// Trusts the root that `cluster_set` names.
    #[must_use]
    pub fn new(cluster_set: ClusterSetId) -> Self {
        Self { cluster_set }
    }

    /// The cluster set whose root is trusted.
    #[must_use]
    pub fn cluster_set(&self) -> &ClusterSetId {
        &self.cluster_set
    }

    /// Checks a grant: signature, contents, time.
    ///
    /// # Errors
    /// A [`Refusal`] whose detail names what is wrong.
    pub fn verify_grant(&self, envelope: &Envelope, now: UnixTime) -> Result<VerifiedGrant, Refusal> {
        let grant = self.open_grant(envelope)?;
        if now > grant.not_after {
            return Err(Refusal::new(
                RefusalKind::GrantExpired,
                format!(
                    "the grant of cluster {} ended at {} and it is {now} here: renew it with \
                     `podspan cluster grant {} --renew`, or set this node's clock",
                    grant.cluster, grant.not_after, grant.cluster
                ),
            ));
        }
        Ok(grant)
    }

    fn open_grant(&self, envelope: &Envelope) -> Result<VerifiedGrant, Refusal> {
        let grant: Grant = envelope.open(self.cluster_set.root()).map_err(|error| match error {
            EnvelopeError::Signature { .. } => {
                // Tell a grant of another set from a forged one: the first is a mix-up of bundles.
                match envelope.peek::<Grant>() {
                    Ok(grant) if grant.cluster_set != self.cluster_set => Refusal::new(
                        RefusalKind::OtherClusterSet,
                        format!(
                            "the grant of cluster {} is of the cluster set {}, this is {}",
                            grant.cluster, grant.cluster_set, self.cluster_set
                        ),
                    ),
                    _ => Refusal::new(
                        RefusalKind::GrantSignature,
                        format!("the grant is not signed by the root {}", self.cluster_set),
                    ),
                }
            }
            other => Refusal::new(RefusalKind::Malformed, format!("grant: {other}")),
        })?;
        if grant.cluster_set != self.cluster_set {
            return Err(Refusal::new(
                RefusalKind::OtherClusterSet,
                format!(
                    "the grant names the cluster set {}, this is {}",
                    grant.cluster_set, self.cluster_set
                ),
            ));
        }
        match grant.fault() {
            Some(fault) => Err(Refusal::new(
                RefusalKind::Malformed,
                format!("the grant of cluster {}: {fault}", grant.cluster),
            )),
            None => Ok(VerifiedGrant(grant)),
        }
    }

    /// Checks root -> grant -> record, and that both hold at `now`.
    ///
    /// # Errors
    /// A [`Refusal`] whose detail names what is wrong.
    pub fn verify(&self, signed: &SignedRecord, now: UnixTime) -> Result<VerifiedRecord, Refusal> {
        let verified = self.verify_kept(signed)?;
        self.verify_grant(&signed.grant, now)?;
        let record = verified.record();
        if now > record.not_after {
            return Err(Refusal::new(
                RefusalKind::RecordExpired,
                format!(
                    "the record of {} ended at {} and it is {now} here: is its agent running, and are both \
                     clocks right?",
                    record.id(),
                    record.not_after
                ),
            ));
        }
        Ok(verified)
    }

    /// Checks a record that was already taken in once and was kept since: everything but the time. What
    /// was good when the broker was last heard stays good while nobody can be heard.
    ///
    /// # Errors
    /// A [`Refusal`] whose detail names what is wrong.
    pub fn verify_kept(&self, signed: &SignedRecord) -> Result<VerifiedRecord, Refusal> {
        let grant = self.open_grant(&signed.grant)?;
        let record: Record = signed.record.open(&grant.cluster_key).map_err(|error| match error {
            EnvelopeError::Signature { .. } => Refusal::new(
                RefusalKind::RecordSignature,
                format!("a record is not signed by the key of cluster {}", grant.cluster),
            ),
            other => Refusal::new(
                RefusalKind::Malformed,
                format!("a record of cluster {}: {other}", grant.cluster),
            ),
        })?;
        let id = record.id();
        if record.cluster_set != self.cluster_set {
            return Err(Refusal::new(
                RefusalKind::OtherClusterSet,
                format!("the record of {id} names the cluster set {}", record.cluster_set),
            ));
        }
        if record.cluster != grant.cluster {
            return Err(Refusal::new(
                RefusalKind::OutsideGrant,
                format!("the record of {id} stands on the grant of cluster {}", grant.cluster),
            ));
        }
        if let Some(fault) = record.fault() {
            return Err(Refusal::new(RefusalKind::Malformed, format!("the record of {id}: {fault}")));
        }
        for (kind, announced, granted) in [
            ("pod", &record.pod_cidrs, &grant.pod_cidrs),
            ("service", &record.service_cidrs, &grant.service_cidrs),
        ] {
            if let Some(cidr) = announced.iter().find(|cidr| !granted.covers(cidr)) {
                return Err(Refusal::new(
                    RefusalKind::OutsideGrant,
                    format!(
                        "the record of {id} announces the {kind} CIDR {cidr}, its grant allows {}",
                        if granted.is_empty() { "none".to_owned() } else { granted.to_string() }
                    ),
                ));
            }
        }
        Ok(VerifiedRecord { grant, record, signed: signed.clone() })
    }
}

/// The latest versions that were ever seen, per node, and the latest grant per cluster: what was once
/// replaced does not come back. Kept on disk, so that a restart does not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighWater {
    records: BTreeMap<NodeId, Version>,
    grants: BTreeMap<ClusterId, u64>,
}

impl HighWater {
    /// Admits a record, or refuses one that a later one has replaced. The same version again is
    /// admitted: a broker sends it again after every reconnect. Whoever admits must persist before the
    /// record is used.
    ///
    /// # Errors
    /// [`RefusalKind::GrantSuperseded`] or [`RefusalKind::Replayed`]; nothing is changed then.
    pub fn admit(&mut self, verified: &VerifiedRecord) -> Result<(), Refusal> {
        let (grant, record) = (verified.grant(), verified.record());
        let id = record.id();
        if let Some(&known) = self.grants.get(&grant.cluster)
            && grant.serial < known
        {
            return Err(Refusal::new(
                RefusalKind::GrantSuperseded,
                format!(
                    "the record of {id} stands on grant {} of cluster {}, but grant {known} is known: give that \
                     cluster's agents its newest bundle, or another name if these are two clusters",
                    grant.serial, grant.cluster
                ),
            ));
        }
        if let Some(&known) = self.records.get(&id)
            && record.version < known
        {
            return Err(Refusal::new(
                RefusalKind::Replayed,
                format!("the record of {id} has version {}, but {known} is known", record.version),
            ));
        }
        self.grants.insert(grant.cluster.clone(), grant.serial);
        self.records.insert(id, record.version);
        Ok(())
    }

    /// The latest version seen of a node.
    #[must_use]
    pub fn of(&self, id: &NodeId) -> Option<Version> {
        self.records.get(id).copied()
    }

    /// Whether a record says that its node is gone.
    #[must_use]
    pub fn is_withdrawal(record: &Record) -> bool {
        record.state == RecordState::Withdrawn
    }
}
