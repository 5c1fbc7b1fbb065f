//! Grants: what the root allows a cluster to announce.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cidr::CidrSet;
use crate::envelope::{Envelope, Statement};
use crate::keys::{PublicKey, RootKey};
use crate::names::{ClusterId, ClusterSetId};
use crate::time::UnixTime;

/// How many pod CIDRs, and how many service CIDRs, a grant or record may hold.
pub const MAX_CIDRS: usize = 64;

/// The root's word that a cluster may announce certain CIDRs.
///
/// A later grant for the same cluster id has a higher `serial` and supersedes the earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The cluster set, that is the root's public key.
    pub cluster_set: ClusterSetId,
    /// The cluster that the grant is for.
    pub cluster: ClusterId,
    /// The key that signs the cluster's records.
    pub cluster_key: PublicKey,
    /// Where the cluster's pods may be: at most [`MAX_CIDRS`].
    pub pod_cidrs: CidrSet,
    /// Where the cluster's services may be: at most [`MAX_CIDRS`].
    pub service_cidrs: CidrSet,
    /// Counts the grants of this cluster id, from 1.
    pub serial: u64,
    /// The last second in which the grant holds.
    pub not_after: UnixTime,
    /// What later versions add. A name that starts with `!` must be understood or the grant is refused;
    /// any other may be ignored.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, serde_json::Value>,
}

impl Statement for Grant {
    const CONTEXT: &'static str = "podspan grant v1";
}

impl Grant {
    /// Signs the grant. The caller makes sure that `root` is the key its `cluster_set` names.
    #[must_use]
    pub fn sign(&self, root: &RootKey) -> Envelope {
        Envelope::seal(self, |message| root.sign(message))
    }

    /// What is wrong with the grant's contents, if anything, whoever signed it.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if self.pod_cidrs.is_empty() {
            return Some("it grants no pod CIDR".into());
        }
        for (kind, cidrs) in [("pod", &self.pod_cidrs), ("service", &self.service_cidrs)] {
            if cidrs.len() > MAX_CIDRS {
                return Some(format!("it has {} {kind} CIDRs, at most {MAX_CIDRS} are allowed", cidrs.len()));
            }
            for cidr in cidrs {
                if let Some(why) = cidr.not_announceable() {
                    return Some(format!("the {kind} CIDR {cidr} {why}"));
                }
            }
        }
        if let Some((pod, service)) = self.pod_cidrs.overlap(&self.service_cidrs) {
            return Some(format!("its pod CIDR {pod} and its service CIDR {service} overlap"));
        }
        crate::trust::critical_extension(&self.extensions)
    }

    /// All CIDRs of the grant.
    #[must_use]
    pub fn cidrs(&self) -> CidrSet {
        self.pod_cidrs.iter().chain(self.service_cidrs.iter()).copied().collect()
    }
}
