//! Records: what a cluster announces about one of its nodes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cidr::CidrSet;
use crate::envelope::{Envelope, Statement};
use crate::grant::MAX_CIDRS;
use crate::keys::{ClusterKey, LaneKey};
use crate::names::{ClusterId, ClusterSetId, NodeId, NodeName};
use crate::time::UnixTime;

/// How many lanes a node may have.
pub const MAX_LANES: usize = 64;
/// How many endpoint addresses a node may have.
pub const MAX_ENDPOINTS: usize = 8;

/// How much of the flows to its cluster a gateway takes, relative to its siblings, unless it says so.
pub const DEFAULT_GATEWAY_WEIGHT: u8 = 10;
/// The largest weight; the smallest is 1.
pub const MAX_GATEWAY_WEIGHT: u8 = 100;

/// The names under which [`Record::extensions`] holds what this version adds; others ignore it.
const WEIGHT: &str = "gateway-weight";
const HOST_ADDRESSES: &str = "host-addresses";

/// One of a node's parallel WireGuard tunnels: its public key, and the UDP port it listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lane {
    /// The lane's public key.
    pub key: LaneKey,
    /// The UDP port at each of the node's endpoint addresses; never 0.
    pub port: u16,
}

/// Orders the records of one node: by epoch, then by sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Grows whenever the node lost its state: the time at which it began anew, or one more than the
    /// last epoch anybody has seen of it.
    pub epoch: u64,
    /// Grows with each record of the epoch, from 1.
    pub sequence: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

/// Whether the node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordState {
    /// The node can be reached as the record says.
    Active,
    /// The node is gone for good. A deletion is a statement of the cluster, not of the broker: an entry
    /// that a broker merely stops listing is kept.
    Withdrawn,
}

/// A node as its cluster announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The cluster set, that is the root's public key.
    pub cluster_set: ClusterSetId,
    /// The node's cluster.
    pub cluster: ClusterId,
    /// The node's name.
    pub node: NodeName,
    /// Active or withdrawn.
    pub state: RecordState,
    /// The node's lanes in order, 1 to [`MAX_LANES`]; none twice.
    pub lanes: Vec<Lane>,
    /// Underlay addresses of the node, the best first; at most [`MAX_ENDPOINTS`]. A node that only dials
    /// may have none; a gateway has at least one.
    pub endpoints: Vec<IpAddr>,
    /// The pod CIDRs that this node owns, within the grant's.
    pub pod_cidrs: CidrSet,
    /// The service CIDRs that this node translates (gateways), within the grant's.
    pub service_cidrs: CidrSet,
    /// Whether nodes of other clusters may open tunnels to it.
    pub gateway: bool,
    /// Orders the node's records.
    pub version: Version,
    /// The last second in which the record may be taken in.
    pub not_after: UnixTime,
    /// What later versions add; see [`crate::Grant::extensions`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, serde_json::Value>,
}

impl Statement for Record {
    const CONTEXT: &'static str = "podspan record v1";
}

impl Record {
    /// Signs the record and puts the cluster's grant beside it.
    #[must_use]
    pub fn sign(&self, key: &ClusterKey, grant: Envelope) -> SignedRecord {
        SignedRecord { grant, record: Envelope::seal(self, |message| key.sign(message)) }
    }

    /// The node that the record is about.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId { cluster: self.cluster.clone(), node: self.node.clone() }
    }

    /// What [`Self::gateway_weight`] and [`Self::host_addresses`] read.
    #[must_use]
    pub fn extensions(weight: Option<u8>, host_addresses: &[IpAddr]) -> BTreeMap<String, serde_json::Value> {
        let mut extensions = BTreeMap::new();
        if let Some(weight) = weight {
            extensions.insert(WEIGHT.to_owned(), weight.into());
        }
        if !host_addresses.is_empty() {
            let addresses: Vec<String> = host_addresses.iter().map(ToString::to_string).collect();
            extensions.insert(HOST_ADDRESSES.to_owned(), addresses.into());
        }
        extensions
    }

    /// The weight of a gateway among those of its cluster, 1 to [`MAX_GATEWAY_WEIGHT`]; the default where the
    /// record says nothing that makes sense.
    #[must_use]
    pub fn gateway_weight(&self) -> u8 {
        let weight = self.extensions.get(WEIGHT).and_then(serde_json::Value::as_u64);
        let weight = weight.and_then(|weight| u8::try_from(weight).ok());
        weight.filter(|weight| (1..=MAX_GATEWAY_WEIGHT).contains(weight)).unwrap_or(DEFAULT_GATEWAY_WEIGHT)
    }

    /// The node's own addresses within its pod CIDRs, as far as the record tells: at them its agent answers
    /// probes through gateways.
    #[must_use]
    pub fn host_addresses(&self) -> Vec<IpAddr> {
        let addresses = self.extensions.get(HOST_ADDRESSES).and_then(serde_json::Value::as_array);
        let parsed = addresses.into_iter().flatten().filter_map(|address| address.as_str()?.parse().ok());
        parsed.filter(|address| self.pod_cidrs.contains(*address)).take(MAX_ENDPOINTS).collect()
    }

    /// What is wrong with the record's contents, if anything, whoever signed it.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if self.lanes.is_empty() || self.lanes.len() > MAX_LANES {
            return Some(format!("it has {} lanes, 1 to {MAX_LANES} are allowed", self.lanes.len()));
        }
        if self.lanes.iter().any(|lane| lane.port == 0) {
            return Some("a lane has port 0".into());
        }
        let mut keys: Vec<_> = self.lanes.iter().map(|lane| lane.key).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Some("two of its lanes have one key".into());
        }
        if self.endpoints.len() > MAX_ENDPOINTS {
            return Some(format!(
                "it has {} endpoints, at most {MAX_ENDPOINTS} are allowed",
                self.endpoints.len()
            ));
        }
        if let Some(address) = self.endpoints.iter().find(|address| !is_endpoint(address)) {
            return Some(format!("the endpoint {address} is no unicast address"));
        }
        if self.gateway && self.endpoints.is_empty() && self.state == RecordState::Active {
            return Some("it is a gateway without an endpoint".into());
        }
        for (kind, cidrs) in [("pod", &self.pod_cidrs), ("service", &self.service_cidrs)] {
            if cidrs.len() > MAX_CIDRS {
                return Some(format!("it has {} {kind} CIDRs, at most {MAX_CIDRS} are allowed", cidrs.len()));
            }
        }
        crate::trust::critical_extension(&self.extensions)
    }
}

/// Whether a packet can be sent to `address` from another host.
fn is_endpoint(address: &IpAddr) -> bool {
    let canonical = address.to_canonical() == *address;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    canonical && !(link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// A record as it is sent and stored: with the grant that it stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedRecord {
    /// The root's grant for the cluster.
    pub grant: Envelope,
    /// The cluster's record of the node.
    pub record: Envelope,
}

impl SignedRecord {
    /// The node and version that the record claims to be about. Nothing was checked: for naming a refused
    /// record in an error, and for telling whether it was seen before.
    #[must_use]
    pub fn claim(&self) -> Option<(NodeId, Version)> {
        let record: Record = self.record.peek().ok()?;
        Some((record.id(), record.version))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(extensions: serde_json::Value) -> Record {
        serde_json::from_value(json!({
            "clusterSet": crate::keys::RootKey::from_seed(&[1; 32]).public().to_string(),
            "cluster": "beta", "node": "node-1", "state": "active", "lanes": [], "endpoints": [],
            "podCidrs": ["10.2.1.0/24", "fd00:10:2:1::/64"], "serviceCidrs": [], "gateway": true,
            "version": { "epoch": 1, "sequence": 1 }, "notAfter": 1, "extensions": extensions,
        }))
        .unwrap()
    }

    #[test]
    fn what_this_version_adds_is_read_and_nonsense_is_passed_over() {
        let addresses: Vec<IpAddr> = vec!["10.2.1.1".parse().unwrap(), "fd00:10:2:1::1".parse().unwrap()];
        let written = record(serde_json::to_value(Record::extensions(Some(70), &addresses)).unwrap());
        assert_eq!((written.gateway_weight(), written.host_addresses()), (70, addresses));
        assert!(Record::extensions(None, &[]).is_empty());
        for (extensions, weight) in [
            (json!({}), DEFAULT_GATEWAY_WEIGHT),
            (json!({ "gateway-weight": 0 }), DEFAULT_GATEWAY_WEIGHT),
            (json!({ "gateway-weight": 101 }), DEFAULT_GATEWAY_WEIGHT),
            (json!({ "gateway-weight": "70" }), DEFAULT_GATEWAY_WEIGHT),
            (json!({ "gateway-weight": 100 }), 100),
        ] {
            assert_eq!(record(extensions.clone()).gateway_weight(), weight, "{extensions}");
        }
        // Only addresses of the node's own: whoever is named otherwise is not to be asked.
        let strangers = record(json!({ "host-addresses": ["192.0.2.1", 5, "10.2.1.7", "nonsense"] }));
        assert_eq!(strangers.host_addresses(), ["10.2.1.7".parse::<IpAddr>().unwrap()]);
    }
}
