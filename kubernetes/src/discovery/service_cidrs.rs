//! The cluster's service CIDRs.

use k8s_openapi::api::core::v1::Pod;
use podspan_wire::{Cidr, Grant};

use super::Objects;
use super::cni;
use super::found::{About, Contradiction, Reason, Sourced};
use super::settings::Settings;
use crate::names::CLUSTER_SET;

/// The flag of kube-apiserver.
const FLAG: &str = "--service-cluster-ip-range";

/// The service CIDRs, before the grant is looked at. The order of who wins: the ClusterSet; the ServiceCIDR
/// API (`networking.k8s.io/v1`); the flags of kube-apiserver, where it runs as a pod; the grant.
pub(super) fn service_cidrs(
    objects: &Objects,
    settings: &Settings,
    grant: &Grant,
    wrong: &mut Vec<Contradiction>,
) -> Vec<Sourced<Cidr>> {
    let by_api = by_api(objects, wrong);
    let by_flags = by_flags(&objects.api_servers, wrong);
    // Objects can be added at any time, a flag cannot: one that no object has is the odd one.
    if !by_api.is_empty() {
        for flag in by_flags.iter().filter(|flag| !by_api.iter().any(|cidr| cidr.value.overlaps(&flag.value)))
        {
            wrong.push(Contradiction::problem(
                About::ClusterSet,
                Reason::Disagreement,
                format!(
                    "{} says {}, but no ServiceCIDR object does: the objects count",
                    flag.from, flag.value
                ),
            ));
        }
    }
    if let Some(all) = &settings.service_cidrs {
        let from = format!("ClusterSet {CLUSTER_SET} spec.serviceCIDRs");
        let found = if by_api.is_empty() { &by_flags } else { &by_api };
        for cidr in found.iter().filter(|cidr| !all.iter().any(|own| own.overlaps(&cidr.value))) {
            wrong.push(Contradiction::note(
                About::ClusterSet,
                Reason::Disagreement,
                format!("{} says {}, but {from} does not: the override wins", cidr.from, cidr.value),
            ));
        }
        return all.iter().map(|cidr| Sourced::new(*cidr, from.clone())).collect();
    }
    if !by_api.is_empty() {
        return by_api;
    }
    if !by_flags.is_empty() {
        return by_flags;
    }
    grant.service_cidrs.iter().map(|cidr| Sourced::new(*cidr, "the cluster's grant")).collect()
}

fn by_api(objects: &Objects, wrong: &mut Vec<Contradiction>) -> Vec<Sourced<Cidr>> {
    let mut found = Vec::new();
    for object in &objects.service_cidrs {
        let from = format!("ServiceCIDR {}", object.metadata.name.as_deref().unwrap_or("?"));
        // One that is being deleted stays until no Service has an address of it: it counts until then.
        for text in object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()) {
            if let Some(cidr) = cni::cidr(text, &from, About::ClusterSet, wrong) {
                found.push(Sourced::new(cidr, from.clone()));
            }
        }
    }
    found
}

fn by_flags(pods: &[Pod], wrong: &mut Vec<Contradiction>) -> Vec<Sourced<Cidr>> {
    let mut found: Vec<Sourced<Cidr>> = Vec::new();
    for pod in pods {
        let from = format!("flag {FLAG} of Pod {}", pod.metadata.name.as_deref().unwrap_or("?"));
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        for container in containers {
            let words: Vec<&str> =
                container.command.iter().chain(&container.args).flatten().map(String::as_str).collect();
            for (i, word) in words.iter().enumerate() {
                let value = match word.strip_prefix(FLAG) {
                    Some("") => words.get(i + 1).copied(),
                    Some(rest) => rest.strip_prefix('='),
                    None => None,
                };
                for text in value.into_iter().flat_map(|value| value.split(',')) {
                    if let Some(cidr) = flag_cidr(text, &from, wrong)
                        && !found.iter().any(|known| known.value == cidr)
                    {
                        found.push(Sourced::new(cidr, from.clone()));
                    }
                }
            }
        }
    }
    found
}

/// kube-apiserver takes a range with host bits and clears them.
fn flag_cidr(text: &str, from: &str, wrong: &mut Vec<Contradiction>) -> Option<Cidr> {
    let cleared = text
        .trim()
        .split_once('/')
        .and_then(|(address, length)| Cidr::containing(address.parse().ok()?, length.parse().ok()?).ok());
    cleared.or_else(|| cni::cidr(text, from, About::ClusterSet, wrong))
}
