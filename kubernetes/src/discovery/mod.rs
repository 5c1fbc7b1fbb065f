//! From objects of the API server to facts about a node. Pure.
//!
//! Nothing here fails: what cannot be used is named as a [`Contradiction`], and what is sound goes on.

mod cni;
mod endpoints;
mod found;
mod host_addresses;
mod pod_cidrs;
mod service_cidrs;
mod settings;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use podspan_wire::{Cidr, CidrSet, Grant, MAX_CIDRS};
use serde_json::Value;

pub use found::{About, Contradiction, Reason, Severity, Sourced};
pub use pod_cidrs::cluster_pod_cidrs;
pub use settings::{Settings, settings};

/// What was read from the API server. Objects of types that are not Kubernetes' own are plain JSON.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// The node that the facts are about.
    pub node: Option<Node>,
    /// The ClusterSet of the name that counts.
    pub cluster_set: Option<Value>,
    /// All ServiceCIDRs.
    pub service_cidrs: Vec<ServiceCIDR>,
    /// The pods of kube-apiserver.
    pub api_servers: Vec<Pod>,
    /// The Service that the ClusterSet names for endpoints.
    pub endpoint_service: Option<Service>,
    /// Calico's IPPools.
    pub calico_pools: Vec<Value>,
    /// Calico's BlockAffinities, of all nodes.
    pub calico_blocks: Vec<Value>,
    /// The node's CiliumNode.
    pub cilium_node: Option<Value>,
    /// flannel's ConfigMap.
    pub flannel: Option<ConfigMap>,
    /// kindnet's DaemonSet.
    pub kindnet: Option<DaemonSet>,
    /// What could not be read, and why.
    pub unreadable: Vec<String>,
}

/// The facts about a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Whether it is a gateway.
    pub gateway: bool,
    /// Where other clusters reach it, the best first; empty unless it is a gateway.
    pub endpoints: Vec<Sourced<IpAddr>>,
    /// Its weight among the cluster's gateways, if it is annotated.
    pub gateway_weight: Option<u8>,
    /// Whether no pods are to be put on it any more (`kubectl cordon`): it may go soon.
    pub cordoned: bool,
    /// Its own addresses within the cluster.
    pub addresses: Vec<IpAddr>,
    /// The pod CIDRs that it owns and may announce.
    pub pod_cidrs: Vec<Sourced<Cidr>>,
    /// Under which addresses of its pod CIDRs the node itself goes to other clusters; the first ones if `None`.
    pub host_addresses: Option<Vec<Sourced<IpAddr>>>,
    /// The cluster's service CIDRs that may be announced.
    pub service_cidrs: Vec<Sourced<Cidr>>,
    /// What the ClusterSet says.
    pub settings: Settings,
    /// What is not used or does not fit, the worst first.
    pub contradictions: Vec<Contradiction>,
}

/// Finds the facts.
#[must_use]
pub fn discover(objects: &Objects, grant: &Grant) -> Facts {
    let (settings, mut wrong) = settings(objects.cluster_set.as_ref());
    wrong.extend(
        objects
            .unreadable
            .iter()
            .map(|message| Contradiction::problem(About::ClusterSet, Reason::Unreadable, message.clone())),
    );
    let mut pod_cidrs = pod_cidrs::pod_cidrs(objects, &settings, &mut wrong);
    granted("pod", About::Node, &mut pod_cidrs, &grant.pod_cidrs, grant, &mut wrong);
    let host_addresses = host_addresses::host_addresses(objects, &pod_cidrs, &mut wrong);
    let mut service_cidrs = service_cidrs::service_cidrs(objects, &settings, grant, &mut wrong);
    granted("service", About::ClusterSet, &mut service_cidrs, &grant.service_cidrs, grant, &mut wrong);

    let labelled = endpoints::is_gateway(objects, &mut wrong);
    let mut endpoints =
        if labelled { endpoints::endpoints(objects, &settings, &mut wrong) } else { Vec::new() };
    let own = grant.cidrs();
    endpoints.retain(|endpoint| {
        let inside = own.contains(endpoint.value);
        if inside {
            wrong.push(Contradiction::problem(
                About::Node,
                Reason::InvalidAnnotation,
                format!(
                    "{}: {} lies within this cluster's own pod or service CIDRs: an endpoint must be an address \
                     outside the tunnels; it is not used",
                    endpoint.from, endpoint.value
                ),
            ));
        }
        !inside
    });
    let gateway_weight = endpoints::weight(objects, &mut wrong);
    wrong.sort_by_key(|contradiction| std::cmp::Reverse(contradiction.severity));
    wrong.dedup();
    let addresses = ["InternalIP", "ExternalIP"]
        .into_iter()
        .flat_map(|kind| endpoints::addresses(objects, kind))
        .filter(|address| !own.contains(*address))
        .collect();
    Facts {
        gateway: !endpoints.is_empty(),
        gateway_weight,
        cordoned: endpoints::is_cordoned(objects),
        endpoints,
        addresses,
        pod_cidrs,
        host_addresses,
        service_cidrs,
        settings,
        contradictions: wrong,
    }
}

/// Keeps what the grant covers, each once, and not more than a record holds.
fn granted(
    kind: &str,
    about: About,
    found: &mut Vec<Sourced<Cidr>>,
    granted: &CidrSet,
    grant: &Grant,
    wrong: &mut Vec<Contradiction>,
) {
    let mut known: Vec<Cidr> = Vec::new();
    found.retain(|cidr| {
        if known.contains(&cidr.value) {
            return false;
        }
        known.push(cidr.value);
        if granted.covers(&cidr.value) {
            return true;
        }
        wrong.push(Contradiction::problem(
            about,
            Reason::OutsideGrant,
            format!(
                "{}: the {kind} CIDR {} is outside the grant of cluster {} ({granted}): it is not announced; grant \
                 it with `podspan cluster grant {} --renew`, or correct it",
                cidr.from, cidr.value, grant.cluster, grant.cluster
            ),
        ));
        false
    });
    if found.len() > MAX_CIDRS {
        wrong.push(Contradiction::problem(
            about,
            Reason::InvalidObject,
            format!("there are {} {kind} CIDRs: only the first {MAX_CIDRS} are announced", found.len()),
        ));
        found.truncate(MAX_CIDRS);
    }
}

fn node_name(objects: &Objects) -> &str {
    objects.node.as_ref().and_then(|node| node.metadata.name.as_deref()).unwrap_or("?")
}

fn annotation<'a>(objects: &'a Objects, name: &str) -> Option<&'a str> {
    let annotations = objects.node.as_ref()?.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}
