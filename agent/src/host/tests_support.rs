//! A host as the tests of this module want it.

use podspan_wire::CidrSet;

use super::HostDesired;

fn set(cidrs: &[&str]) -> CidrSet {
    cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()
}

/// Node 1 of a cluster with two others.
pub(super) fn desired() -> HostDesired {
    HostDesired {
        interface: "podspan0".into(),
        mtu: 1420,
        addresses: vec!["10.1.1.0".parse().unwrap(), "fd00:1:1::".parse().unwrap()],
        table: 7183,
        rule_priority: 5183,
        fwmark: 0x7073,
        routes: ["10.2.0.0/16", "10.3.0.0/16", "fd00:2::/48"].map(|cidr| cidr.parse().unwrap()).into(),
        route_mtus: [("10.2.0.0/16".parse().unwrap(), 1340), ("fd00:2::/48".parse().unwrap(), 1340)].into(),
        local_pod_cidrs: set(&["10.1.1.0/24", "fd00:1:1::/64"]),
        cluster_pod_cidrs: set(&["10.1.0.0/16", "fd00:1::/32"]),
        cluster_service_cidrs: set(&["10.96.0.0/16"]),
        underlay: vec!["eth0".into()],
        pod_delivery: None,
    }
}
