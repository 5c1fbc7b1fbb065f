//! Which pod CIDRs a node owns.

use podspan_wire::Cidr;

use super::cni;
use super::found::{About, Contradiction, Reason, Sourced};
use super::settings::Settings;
use super::{Objects, annotation, node_name};
use crate::names::{CLUSTER_SET, POD_CIDRS_ANNOTATION};

/// The pod CIDRs of the node, before the grant is looked at. The order of who wins: the node's annotation;
/// Cilium; Calico; `Node.spec.podCIDRs`. What the ClusterSet lists bounds all but the annotation.
pub(super) fn pod_cidrs(
    objects: &Objects,
    settings: &Settings,
    wrong: &mut Vec<Contradiction>,
) -> Vec<Sourced<Cidr>> {
    let name = node_name(objects);
    if let Some(text) = annotation(objects, POD_CIDRS_ANNOTATION) {
        let from = format!("annotation {POD_CIDRS_ANNOTATION} of Node {name}");
        let own: Vec<Cidr> = cni::list(text, &from, "CIDRs such as 10.1.1.0/24", wrong);
        if !own.is_empty() {
            conflicts(&own, settings, &from, wrong);
            return own.into_iter().map(|cidr| Sourced::new(cidr, from.clone())).collect();
        }
    }
    let spoken = wrong.len();
    let mut own = by_the_network(objects, wrong);
    if own.is_empty() && wrong.len() == spoken {
        wrong.push(Contradiction::problem(
            About::Node,
            Reason::NoPodCidr,
            format!(
                "Node {name} has no pod CIDR yet: its pods are not reached by other clusters. Either \
                 kube-controller-manager gives it one (--allocate-node-cidrs), or the CNI does, or you do: kubectl \
                 annotate node {name} {POD_CIDRS_ANNOTATION}=10.1.1.0/24"
            ),
        ));
    }
    if let Some(all) = &settings.pod_cidrs {
        own.retain(|cidr| {
            let inside = all.iter().any(|range| range.covers(&cidr.value));
            if !inside {
                wrong.push(Contradiction::problem(
                    About::Node,
                    Reason::Disagreement,
                    format!(
                        "{} says {}, which lies outside spec.podCIDRs of ClusterSet {CLUSTER_SET}: it is not \
                         announced; correct the one, or annotate the node with {POD_CIDRS_ANNOTATION}",
                        cidr.from, cidr.value
                    ),
                ));
            }
            inside
        });
    }
    own
}

/// The annotation wins, but a person should know that the other override says otherwise.
fn conflicts(own: &[Cidr], settings: &Settings, from: &str, wrong: &mut Vec<Contradiction>) {
    let Some(all) = &settings.pod_cidrs else { return };
    for cidr in own.iter().filter(|cidr| !all.iter().any(|range| range.covers(cidr))) {
        wrong.push(Contradiction::problem(
            About::Node,
            Reason::ConflictingOverrides,
            format!(
                "{from} says {cidr}, which lies outside spec.podCIDRs of ClusterSet {CLUSTER_SET}: the annotation \
                 wins; correct one of them"
            ),
        ));
    }
}

fn by_the_network(objects: &Objects, wrong: &mut Vec<Contradiction>) -> Vec<Sourced<Cidr>> {
    let name = node_name(objects);
    let by_node = by_node(objects, wrong);
    if let Some(node) = &objects.cilium_node {
        let own = cni::cilium(node, wrong);
        if !own.is_empty() {
            unused(&by_node, &own, "Cilium", wrong);
            return own;
        }
    }
    let pools = cni::calico_pools(&objects.calico_pools, wrong);
    // Blocks, whoever's: Calico's own IPAM is at work, and does not care for Node.spec.podCIDRs. Without any,
    // Calico uses the host-local IPAM, which does.
    if !pools.is_empty() && !objects.calico_blocks.is_empty() {
        let own = cni::calico_blocks(&objects.calico_blocks, name, wrong);
        cni::outside(&own, &pools, wrong);
        unused(&by_node, &own, "Calico", wrong);
        if own.is_empty() {
            wrong.push(Contradiction::note(
                About::Node,
                Reason::NoPodCidr,
                format!(
                    "Calico has given no block of addresses to Node {name} yet: there is no pod to announce"
                ),
            ));
        }
        return own;
    }
    let flannel = objects.flannel.as_ref().map(|config| cni::flannel(config, wrong)).unwrap_or_default();
    cni::outside(&by_node, &flannel, wrong);
    let kindnet = objects.kindnet.as_ref().map(|daemon| cni::kindnet(daemon, wrong)).unwrap_or_default();
    cni::outside(&by_node, &kindnet, wrong);
    cni::outside(&by_node, &pools, wrong);
    by_node
}

fn by_node(objects: &Objects, wrong: &mut Vec<Contradiction>) -> Vec<Sourced<Cidr>> {
    let name = node_name(objects);
    let Some(spec) = objects.node.as_ref().and_then(|node| node.spec.as_ref()) else { return Vec::new() };
    let from = format!("Node {name} spec.podCIDRs");
    // `podCIDR` is `podCIDRs[0]` (Node v1).
    let texts: Vec<&String> = match spec.pod_cidrs.as_deref() {
        Some([]) | None => spec.pod_cidr.iter().collect(),
        Some(all) => all.iter().collect(),
    };
    texts
        .into_iter()
        .filter(|text| !text.is_empty())
        .filter_map(|text| Some(Sourced::new(cni::cidr(text, &from, About::Node, wrong)?, from.clone())))
        .collect()
}

/// Says that what the Node has is not what its pods get: normal with some networks, and puzzling for whoever
/// looks for a fault.
fn unused(by_node: &[Sourced<Cidr>], own: &[Sourced<Cidr>], who: &str, wrong: &mut Vec<Contradiction>) {
    for cidr in by_node.iter().filter(|cidr| !own.iter().any(|own| own.value.overlaps(&cidr.value))) {
        wrong.push(Contradiction::note(
            About::Node,
            Reason::Disagreement,
            format!(
                "{} says {}, which {who} does not use on this node: {who}'s own word counts",
                cidr.from, cidr.value
            ),
        ));
    }
}

/// The pod CIDRs of the whole cluster, as far as they are known: the ClusterSet's, or else the network's own
/// range, or else those of all nodes.
#[must_use]
pub fn cluster_pod_cidrs<'a>(
    objects: &Objects,
    settings: &Settings,
    nodes: impl IntoIterator<Item = &'a k8s_openapi::api::core::v1::Node>,
) -> Vec<Sourced<Cidr>> {
    // What is wrong with these objects is told where a node's facts are found.
    let mut told = Vec::new();
    if let Some(all) = &settings.pod_cidrs {
        let from = format!("ClusterSet {CLUSTER_SET} spec.podCIDRs");
        return all.iter().map(|cidr| Sourced::new(*cidr, from.clone())).collect();
    }
    let ranges = [
        cni::calico_pools(&objects.calico_pools, &mut told),
        objects.flannel.as_ref().map(|config| cni::flannel(config, &mut told)).unwrap_or_default(),
        objects.kindnet.as_ref().map(|daemon| cni::kindnet(daemon, &mut told)).unwrap_or_default(),
    ];
    if let Some(range) = ranges.into_iter().find(|range| !range.is_empty()) {
        return range;
    }
    nodes
        .into_iter()
        .flat_map(|node| {
            let objects = Objects { node: Some(node.clone()), ..Objects::default() };
            by_node(&objects, &mut told)
        })
        .collect()
}
