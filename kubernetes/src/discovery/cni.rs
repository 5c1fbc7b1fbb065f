//! What the cluster's own network says of pod CIDRs: Calico, Cilium, flannel, kindnet.
//!
//! Calico and Cilium hand out a node's addresses by objects of their own; flannel and kindnet use
//! `Node.spec.podCIDRs` and only have a range in which these must lie. Objects of foreign types come as plain
//! JSON: of what they hold only a little is read, and a version that writes it otherwise is told, not feared.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ConfigMap;
use podspan_wire::Cidr;
use serde_json::Value;

use super::found::{About, Contradiction, Reason, Sourced, quote};

fn text<'a>(object: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(object, |value, key| value.get(key))?.as_str()
}

fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"]).unwrap_or("?")
}

/// Reads `text` as a CIDR, or says what object holds something else.
pub(super) fn cidr(text: &str, from: &str, about: About, wrong: &mut Vec<Contradiction>) -> Option<Cidr> {
    match text.trim().parse() {
        Ok(cidr) => Some(cidr),
        Err(error) => {
            let message = format!("{from}: {error}; it is not used");
            wrong.push(Contradiction::problem(about, Reason::InvalidObject, message));
            None
        }
    }
}

/// Calico's pools that are in use (`crd.projectcalico.org/v1` IPPool, `spec.cidr`, `spec.disabled`).
pub(super) fn calico_pools(pools: &[Value], wrong: &mut Vec<Contradiction>) -> Vec<Sourced<Cidr>> {
    pools
        .iter()
        .filter(|pool| pool.pointer("/spec/disabled").and_then(Value::as_bool) != Some(true))
        .filter_map(|pool| {
            let from = format!("Calico IPPool {}", name(pool));
            let read =
                cidr(text(pool, &["spec", "cidr"]).unwrap_or_default(), &from, About::ClusterSet, wrong)?;
            Some(Sourced::new(read, from))
        })
        .collect()
}

/// The blocks that Calico's IPAM gave to `node` (`crd.projectcalico.org/v1` BlockAffinity: `spec.node`,
/// `spec.cidr`, `spec.state`, `spec.deleted`).
pub(super) fn calico_blocks(
    affinities: &[Value],
    node: &str,
    wrong: &mut Vec<Contradiction>,
) -> Vec<Sourced<Cidr>> {
    affinities
        .iter()
        .filter(|affinity| text(affinity, &["spec", "node"]) == Some(node))
        .filter(|affinity| text(affinity, &["spec", "deleted"]) != Some("true"))
        .filter(|affinity| text(affinity, &["spec", "state"]).is_none_or(|state| state == "confirmed"))
        .filter_map(|affinity| {
            let from = format!("Calico BlockAffinity {}", name(affinity));
            let read =
                cidr(text(affinity, &["spec", "cidr"]).unwrap_or_default(), &from, About::Node, wrong)?;
            Some(Sourced::new(read, from))
        })
        .collect()
}

/// The CIDRs that Cilium's operator gave to the node (`cilium.io/v2` CiliumNode: `spec.ipam.podCIDRs`, and
/// with multi-pool IPAM `spec.ipam.pools.allocated[].cidrs`).
pub(super) fn cilium(node: &Value, wrong: &mut Vec<Contradiction>) -> Vec<Sourced<Cidr>> {
    let from = format!("CiliumNode {} spec.ipam", name(node));
    let own = node.pointer("/spec/ipam/podCIDRs").and_then(Value::as_array).into_iter().flatten();
    let pools = node.pointer("/spec/ipam/pools/allocated").and_then(Value::as_array).into_iter().flatten();
    let pooled = pools.filter_map(|pool| pool.get("cidrs")?.as_array()).flatten();
    own.chain(pooled)
        .filter_map(|value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Some(Sourced::new(cidr(&text, &from, About::Node, wrong)?, from.clone()))
        })
        .collect()
}

/// flannel's network (`net-conf.json` of the ConfigMap `kube-flannel-cfg`: `Network`, `IPv6Network`).
pub(super) fn flannel(config: &ConfigMap, wrong: &mut Vec<Contradiction>) -> Vec<Sourced<Cidr>> {
    let from = format!(
        "flannel ConfigMap {}/{}",
        config.metadata.namespace.as_deref().unwrap_or("?"),
        config.metadata.name.as_deref().unwrap_or("?")
    );
    let Some(text) = config.data.as_ref().and_then(|data| data.get("net-conf.json")) else {
        let message = format!("{from} has no net-conf.json: flannel's network is not known");
        wrong.push(Contradiction::problem(About::ClusterSet, Reason::InvalidObject, message));
        return Vec::new();
    };
    let conf: Value = match serde_json::from_str(text) {
        Ok(conf) => conf,
        Err(error) => {
            let message =
                format!("{from}: net-conf.json is not JSON ({error}): flannel's network is not known");
            wrong.push(Contradiction::problem(About::ClusterSet, Reason::InvalidObject, message));
            return Vec::new();
        }
    };
    ["Network", "IPv6Network"]
        .into_iter()
        .filter_map(|key| conf.get(key)?.as_str())
        .filter(|text| !text.is_empty())
        .filter_map(|text| Some(Sourced::new(cidr(text, &from, About::ClusterSet, wrong)?, from.clone())))
        .collect()
}

/// kindnet's network (`POD_SUBNET` of the DaemonSet `kindnet`, separated by commas).
pub(super) fn kindnet(daemon: &DaemonSet, wrong: &mut Vec<Contradiction>) -> Vec<Sourced<Cidr>> {
    let from = "kindnet DaemonSet kube-system/kindnet POD_SUBNET".to_owned();
    let pod = daemon.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let subnets = pod
        .into_iter()
        .flat_map(|pod| &pod.containers)
        .flat_map(|container| container.env.iter().flatten())
        .find(|variable| variable.name == "POD_SUBNET")
        .and_then(|variable| variable.value.as_deref());
    subnets
        .into_iter()
        .flat_map(|text| text.split(','))
        .filter(|text| !text.trim().is_empty())
        .filter_map(|text| Some(Sourced::new(cidr(text, &from, About::ClusterSet, wrong)?, from.clone())))
        .collect()
}

/// Names those of a node's CIDRs that lie outside the network they should be in. They are announced all the
/// same: the Node says so, and the network may be another's by now.
pub(super) fn outside(own: &[Sourced<Cidr>], network: &[Sourced<Cidr>], wrong: &mut Vec<Contradiction>) {
    for cidr in own {
        let family: Vec<_> =
            network.iter().filter(|range| range.value.is_ipv6() == cidr.value.is_ipv6()).collect();
        let Some(first) = family.first() else { continue };
        if !family.iter().any(|range| range.value.covers(&cidr.value)) {
            wrong.push(Contradiction::problem(
                About::Node,
                Reason::Disagreement,
                format!(
                    "{} says {}, which lies outside {} of {}: the cluster's own network will not carry it",
                    cidr.from, cidr.value, first.value, first.from
                ),
            ));
        }
    }
}

/// Splits a list separated by commas and reads each part; the bad are named.
pub(super) fn list<T: std::str::FromStr>(
    text: &str,
    from: &str,
    what: &str,
    wrong: &mut Vec<Contradiction>,
) -> Vec<T>
where
    T::Err: std::fmt::Display,
{
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        let message =
            format!("{from} is empty: write {what}, separated by commas, or remove it; it is not used");
        wrong.push(Contradiction::problem(About::Node, Reason::InvalidAnnotation, message));
    }
    parts
        .into_iter()
        .filter_map(|part| match part.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let message =
                    format!("{from}: {} is not one of {what} ({error}); it is not used", quote(part));
                wrong.push(Contradiction::problem(About::Node, Reason::InvalidAnnotation, message));
                None
            }
        })
        .collect()
}
