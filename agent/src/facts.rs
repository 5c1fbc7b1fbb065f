//! The facts about this node, wherever they come from.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use podspan_kubernetes::crd::CniMode;
use podspan_wire::settings::{Reader, SettingsError};
use podspan_wire::status::Discovery;
use podspan_wire::{CidrSet, DEFAULT_GATEWAY_WEIGHT, Grant, MAX_GATEWAY_WEIGHT, NodeName};
use serde::{Deserialize, Serialize};

/// What this node is. Every source of facts yields this, and nothing behind it knows which one it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalFacts {
    /// The node's name within its cluster.
    pub node: NodeName,
    /// Whether nodes of other clusters may open tunnels to it.
    pub gateway: bool,
    /// The underlay addresses at which they do, the best first.
    pub endpoints: Vec<IpAddr>,
    /// The pod CIDRs that this node owns.
    pub pod_cidrs: CidrSet,
    /// Under which addresses the node itself goes to other clusters; the first ones of its pod CIDRs if `None`.
    #[serde(default)]
    pub host_addresses: Option<Vec<IpAddr>>,
    /// The service CIDRs of the cluster, as far as they are announced.
    pub service_cidrs: CidrSet,
    /// The interfaces by which other nodes of the cluster are reached; found by the endpoints or the
    /// default route where the source does not tell.
    pub underlay: Vec<String>,
    /// The node's own addresses on the underlay, as far as the source knows them: they tell its interfaces.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The tunnel's MTU, bytes; that of the agent's settings unless set.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// How podspan joins the node's CNI configuration; as the agent's settings say unless set.
    #[serde(default)]
    pub cni: Option<CniMode>,
    /// Why packets had better take other gateways than this node, if they had.
    #[serde(default)]
    pub draining: Option<String>,
    /// Its weight among the cluster's gateways; the default unless set.
    #[serde(default)]
    pub gateway_weight: Option<u8>,
    /// What the source found by itself, and where; for a person.
    #[serde(default)]
    pub discovery: Discovery,
}

/// Facts that cannot be used, each with what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactsError(pub Vec<String>);

impl fmt::Display for FactsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for FactsError {}

impl LocalFacts {
    /// A node that is nothing but its name.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            gateway: false,
            endpoints: Vec::new(),
            pod_cidrs: CidrSet::default(),
            host_addresses: None,
            service_cidrs: CidrSet::default(),
            underlay: Vec::new(),
            addresses: Vec::new(),
            mtu: None,
            cni: None,
            draining: None,
            gateway_weight: None,
            discovery: Discovery::default(),
        }
    }

    /// Reads the facts of the source `file`. Service CIDRs are the grant's unless the file names them.
    ///
    /// # Errors
    /// Every fault of the file at once, each with line and key.
    pub fn parse(path: &Path, text: &str, grant: &Grant) -> Result<Self, SettingsError> {
        let (mut reader, mut top) = Reader::new(text);
        let r = &mut reader;
        let node = top.required(r, "name", "the node's name, such as \"node-1\"");
        let gateway = top.optional(r, "gateway").unwrap_or(false);
        let endpoints: Vec<IpAddr> = top.list(r, "endpoints").unwrap_or_default();
        let pod_cidrs: Option<Vec<_>> = top.list(r, "pod-cidrs");
        if pod_cidrs.is_none() {
            r.fault(
                &top,
                "pod-cidrs",
                "is missing: the CIDRs of this node's own pods, such as [\"10.1.1.0/24\"]",
            );
        }
        let service_cidrs: Option<Vec<_>> = top.list(r, "service-cidrs");
        let underlay = top.list::<String>(r, "underlay").unwrap_or_default();
        if gateway && endpoints.is_empty() {
            r.fault(
                &top,
                "endpoints",
                "a gateway needs at least one address at which other clusters reach it",
            );
        }
        let draining = top.optional(r, "draining").unwrap_or(false);
        let default = u64::from(DEFAULT_GATEWAY_WEIGHT);
        let weight = top.number(r, "gateway-weight", 1..=MAX_GATEWAY_WEIGHT.into(), default);
        top.finish(r);
        let file = path.display().to_string();
        reader.finish(&file)?;
        let Some(node) = node else { return Err(SettingsError { file, faults: Vec::new() }) };
        Ok(Self {
            gateway,
            endpoints,
            pod_cidrs: pod_cidrs.unwrap_or_default().into(),
            service_cidrs: service_cidrs.map_or_else(|| grant.service_cidrs.clone(), CidrSet::from),
            underlay,
            draining: draining.then(|| format!("{} says so", path.display())),
            gateway_weight: (weight != default).then_some(weight as u8),
            ..Self::new(node)
        })
    }

    /// Whether the facts agree with the grant: what is outside could never be announced.
    ///
    /// # Errors
    /// Every contradiction at once.
    pub fn check(&self, grant: &Grant) -> Result<(), FactsError> {
        let mut faults = Vec::new();
        for (kind, own, granted) in [
            ("pod", &self.pod_cidrs, &grant.pod_cidrs),
            ("service", &self.service_cidrs, &grant.service_cidrs),
        ] {
            for cidr in own.iter().filter(|cidr| !granted.covers(cidr)) {
                faults.push(format!(
                    "the {kind} CIDR {cidr} of this node is outside the grant of cluster {} ({granted}): grant \
                     it with `podspan cluster grant {} --renew`, or correct the node's facts",
                    grant.cluster, grant.cluster
                ));
            }
        }
        for endpoint in &self.endpoints {
            if grant.cidrs().contains(*endpoint) {
                faults.push(format!(
                    "the endpoint {endpoint} lies within this cluster's own pod or service CIDRs: it must be an \
                     underlay address"
                ));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(FactsError(faults)) }
    }

    /// The addresses with which the host itself goes to other clusters: the first of each pod CIDR, one
    /// for each family. No pod ever gets it, and the far side knows to whom it belongs.
    #[must_use]
    pub fn host_addresses(&self) -> Vec<IpAddr> {
        if let Some(addresses) = &self.host_addresses {
            return addresses.clone();
        }
        [false, true]
            .into_iter()
            .filter_map(|ipv6| self.pod_cidrs.iter().find(|cidr| cidr.is_ipv6() == ipv6))
            .map(podspan_wire::Cidr::address)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podspan_wire::{ClusterKey, ClusterSetId, RootKey, UnixTime};

    fn grant() -> Grant {
        Grant {
            cluster_set: ClusterSetId::new(RootKey::from_seed(&[1; 32]).public()),
            cluster: "alpha".parse().unwrap(),
            cluster_key: ClusterKey::from_seed(&[2; 32]).public(),
            pod_cidrs: vec!["10.1.0.0/16".parse().unwrap(), "fd00:10:1::/48".parse().unwrap()].into(),
            service_cidrs: vec!["10.101.0.0/16".parse().unwrap()].into(),
            serial: 1,
            not_after: UnixTime(u64::MAX),
            extensions: Default::default(),
        }
    }

    fn parse(text: &str) -> Result<LocalFacts, SettingsError> {
        LocalFacts::parse(Path::new("node.toml"), text, &grant())
    }

    const WHOLE: &str = "name = \"node-1\"\ngateway = true\nendpoints = [\"192.0.2.11\"]\n\
        pod-cidrs = [\"10.1.1.0/24\", \"fd00:10:1:1::/64\"]\nservice-cidrs = [\"10.101.0.0/16\"]\nunderlay = [\"eth0\"]\n";

    #[test]
    fn host_addresses_are_the_first_of_each_family() {
        let facts = parse(WHOLE).unwrap();
        facts.check(&grant()).unwrap();
        let addresses: Vec<String> = facts.host_addresses().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.1.0", "fd00:10:1:1::"]);
    }

    #[test]
    fn each_field_wrong_in_turn() {
        for (key, line) in [
            ("name", "name = \"Node 1\""),
            ("gateway", "gateway = \"perhaps\""),
            ("endpoints", "endpoints = [\"192.0.2.11:51840\"]"),
            ("endpoints", "endpoints = []"),
            ("pod-cidrs", "pod-cidrs = \"10.1.1.0/24\""),
            ("pod-cidrs", "pod-cidrs = [\"10.1.1.1/24\"]"),
            ("service-cidrs", "service-cidrs = [\"10.101.0.0\"]"),
            ("underlay", "underlay = \"eth0\""),
            ("nmae", "nmae = \"x\"\nname = \"x\""),
        ] {
            let name = line.split(' ').next().unwrap().replace("nmae", "name");
            let text: Vec<&str> = WHOLE
                .lines()
                .map(|l| if l.split(' ').next() == Some(name.as_str()) { line } else { l })
                .collect();
            let error = parse(&text.join("\n")).unwrap_err();
            assert!(error.faults.iter().all(|fault| fault.key == key), "{line}: {error}");
        }
    }

    #[test]
    fn facts_outside_the_grant_are_named_all_at_once() {
        let mut facts = parse(WHOLE).unwrap();
        facts.pod_cidrs = vec!["10.9.0.0/24".parse().unwrap(), "10.1.1.0/24".parse().unwrap()].into();
        facts.endpoints.push("10.1.7.7".parse().unwrap());
        let faults = facts.check(&grant()).unwrap_err().0;
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
