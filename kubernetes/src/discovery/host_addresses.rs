//! Under which addresses the node itself goes to other clusters.
//!
//! They must lie in the node's own pod CIDRs, since these are what other clusters know to be the node's. Where
//! the CIDR is the node's alone and given out by host-local (flannel, kindnet, bridge, ptp), its first address is
//! never a pod's, and is taken as flannel takes it for its own interface. Calico and Cilium give out addresses by
//! IPAM of their own, which may well give the first one to a pod; both give the host one, and tell which.

use std::net::IpAddr;

use podspan_wire::Cidr;
use serde_json::Value;

use super::cni;
use super::found::{About, Contradiction, Reason, Sourced};
use super::{Objects, annotation, node_name};
use crate::names::HOST_ADDRESSES_ANNOTATION;

/// Where Calico writes which addresses its IPAM gave to the node's own interfaces (annotations of the Node).
const CALICO: [&str; 5] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
];
/// The type that Cilium gives to the address of the node's own interface (`spec.addresses` of the CiliumNode).
const CILIUM: &str = "CiliumInternalIP";

/// The addresses, at most one of each family; `None` if the first ones of the pod CIDRs are to be taken. A family
/// in which there is none to be had is left out, and said to be.
pub(super) fn host_addresses(
    objects: &Objects,
    pod_cidrs: &[Sourced<Cidr>],
    wrong: &mut Vec<Contradiction>,
) -> Option<Vec<Sourced<IpAddr>>> {
    let mut told = by_annotation(objects, pod_cidrs, wrong);
    told.extend(by_the_network(objects).into_iter().filter(|address| inside(pod_cidrs, address.value)));
    let mut addresses = Vec::new();
    let mut differs = false;
    for ipv6 in [false, true] {
        let own = || pod_cidrs.iter().filter(|cidr| cidr.value.is_ipv6() == ipv6);
        let Some(first) = own().next() else { continue };
        if let Some(address) = told.iter().find(|address| address.value.is_ipv6() == ipv6) {
            differs = true;
            addresses.push(address.clone());
        } else if let Some(free) = own().find(|cidr| !by_ipam(objects, cidr.value)) {
            differs |= free != first;
            addresses.push(Sourced::new(free.value.address(), format!("first address of {}", free.value)));
        } else {
            differs = true;
            let name = node_name(objects);
            wrong.push(Contradiction::note(
                About::Node,
                Reason::NoHostAddress,
                format!(
                    "no address of {} is known to be Node {name}'s own, and its first one may be a pod's: the node \
                     itself cannot reach {} pods of other clusters, its pods can; reserve an address of it (with \
                     Calico by an IPReservation) and kubectl annotate node {name} {HOST_ADDRESSES_ANNOTATION}=ADDRESS",
                    first.value,
                    if ipv6 { "IPv6" } else { "IPv4" }
                ),
            ));
        }
    }
    differs.then_some(addresses)
}

fn inside(pod_cidrs: &[Sourced<Cidr>], address: IpAddr) -> bool {
    pod_cidrs.iter().any(|cidr| cidr.value.contains(address))
}

fn by_annotation(
    objects: &Objects,
    pod_cidrs: &[Sourced<Cidr>],
    wrong: &mut Vec<Contradiction>,
) -> Vec<Sourced<IpAddr>> {
    let Some(text) = annotation(objects, HOST_ADDRESSES_ANNOTATION) else { return Vec::new() };
    let from = format!("annotation {HOST_ADDRESSES_ANNOTATION} of Node {}", node_name(objects));
    let mut own: Vec<IpAddr> = cni::list(text, &from, "addresses such as 10.1.1.2", wrong);
    own.retain(|address| {
        let good = inside(pod_cidrs, *address);
        if !good {
            wrong.push(Contradiction::problem(
                About::Node,
                Reason::InvalidAnnotation,
                format!(
                    "{from}: {address} lies in no pod CIDR of this node, so that other clusters would not know whose \
                     it is: it is not used"
                ),
            ));
        }
        good
    });
    own.into_iter().map(|address| Sourced::new(address, from.clone())).collect()
}

/// What the cluster's own network says, as far as it can be read.
fn by_the_network(objects: &Objects) -> Vec<Sourced<IpAddr>> {
    let mut found = Vec::new();
    for name in CALICO {
        if let Some(address) = annotation(objects, name).and_then(|text| text.trim().parse().ok()) {
            let from = format!("annotation {name} of Node {}", node_name(objects));
            found.push(Sourced::new(address, from));
        }
    }
    let cilium = objects.cilium_node.as_ref();
    let addresses = cilium.and_then(|node| node.pointer("/spec/addresses")).and_then(Value::as_array);
    for entry in addresses.into_iter().flatten() {
        let address = entry.get("ip").and_then(Value::as_str).and_then(|text| text.trim().parse().ok());
        if let (Some(CILIUM), Some(address)) = (entry.get("type").and_then(Value::as_str), address) {
            found.push(Sourced::new(address, format!("{CILIUM} of CiliumNode {}", node_name(objects))));
        }
    }
    found
}

/// Whether Calico's or Cilium's IPAM gives out the addresses of a CIDR.
fn by_ipam(objects: &Objects, cidr: Cidr) -> bool {
    // What is wrong with these objects is told where the pod CIDRs are found.
    let mut told = Vec::new();
    let blocks = cni::calico_blocks(&objects.calico_blocks, node_name(objects), &mut told);
    let cilium = objects.cilium_node.as_ref().map(|node| cni::cilium(node, &mut told)).unwrap_or_default();
    blocks.iter().chain(&cilium).any(|given| given.value == cidr)
}
