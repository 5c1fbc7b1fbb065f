//! Whether a node is a gateway, and at which addresses other clusters reach it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use podspan_wire::{DEFAULT_GATEWAY_WEIGHT, MAX_ENDPOINTS, MAX_GATEWAY_WEIGHT};

use super::cni;
use super::found::{About, Contradiction, Reason, Sourced, quote};
use super::settings::Settings;
use super::{Objects, annotation, node_name};
use crate::crd::EndpointSource;
use crate::names::{ENDPOINTS_ANNOTATION, GATEWAY_LABEL, GATEWAY_WEIGHT_ANNOTATION};

/// Whether the node's label makes it a gateway.
pub(super) fn is_gateway(objects: &Objects, wrong: &mut Vec<Contradiction>) -> bool {
    let labels = objects.node.as_ref().and_then(|node| node.metadata.labels.as_ref());
    match labels.and_then(|labels| labels.get(GATEWAY_LABEL)).map(String::as_str) {
        Some("true") => true,
        None | Some("false") => false,
        Some(other) => {
            wrong.push(Contradiction::problem(
                About::Node,
                Reason::InvalidLabel,
                format!(
                    "label {GATEWAY_LABEL} of Node {} is {} and neither \"true\" nor \"false\": the node is no \
                     gateway; kubectl label --overwrite node {} {GATEWAY_LABEL}=true",
                    node_name(objects),
                    quote(other),
                    node_name(objects)
                ),
            ));
            false
        }
    }
}

/// Whether no pods are to be put on the node any more.
pub(super) fn is_cordoned(objects: &Objects) -> bool {
    let spec = objects.node.as_ref().and_then(|node| node.spec.as_ref());
    spec.and_then(|spec| spec.unschedulable).unwrap_or(false)
}

/// The weight that the node's annotation gives it.
pub(super) fn weight(objects: &Objects, wrong: &mut Vec<Contradiction>) -> Option<u8> {
    let text = annotation(objects, GATEWAY_WEIGHT_ANNOTATION)?;
    let weight = text.trim().parse().ok().filter(|weight| (1..=MAX_GATEWAY_WEIGHT).contains(weight));
    if weight.is_none() {
        wrong.push(Contradiction::problem(
            About::Node,
            Reason::InvalidAnnotation,
            format!(
                "annotation {GATEWAY_WEIGHT_ANNOTATION} of Node {} is {} and not a number from 1 to \
                 {MAX_GATEWAY_WEIGHT}: the weight is {DEFAULT_GATEWAY_WEIGHT}",
                node_name(objects),
                quote(text)
            ),
        ));
    }
    weight
}

/// The addresses of the Node itself, by which its underlay is found.
pub(super) fn addresses(objects: &Objects, kind: &str) -> Vec<IpAddr> {
    let status = objects.node.as_ref().and_then(|node| node.status.as_ref());
    status
        .into_iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .filter(|address| address.type_ == kind)
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

/// The endpoints of a gateway. The order of who wins: the node's annotation; the LoadBalancer Service; the
/// Node's addresses.
pub(super) fn endpoints(
    objects: &Objects,
    settings: &Settings,
    wrong: &mut Vec<Contradiction>,
) -> Vec<Sourced<IpAddr>> {
    let name = node_name(objects);
    let mut found = Vec::new();
    if let Some(text) = annotation(objects, ENDPOINTS_ANNOTATION) {
        let from = format!("annotation {ENDPOINTS_ANNOTATION} of Node {name}");
        let own: Vec<IpAddr> = cni::list(text, &from, "addresses such as 192.0.2.11", wrong);
        found = own.into_iter().map(|address| Sourced::new(address, from.clone())).collect();
        usable(&mut found, wrong);
    }
    if found.is_empty()
        && let Some(reference) = &settings.service
    {
        let which = format!("Service {}/{}", reference.namespace, reference.name);
        found = match &objects.endpoint_service {
            Some(service) => by_service(service, &which, wrong),
            None => {
                let message = format!(
                    "{which}, from which the endpoints should come, is not there: the Node's own \
                     addresses are used"
                );
                wrong.push(Contradiction::problem(About::ClusterSet, Reason::InvalidSetting, message));
                Vec::new()
            }
        };
        usable(&mut found, wrong);
    }
    if found.is_empty() {
        found = by_node(objects, settings.from);
        usable(&mut found, wrong);
    }
    if found.is_empty() {
        let which = match settings.from {
            EndpointSource::Auto => "ExternalIP or InternalIP",
            EndpointSource::NodeExternalIp => "ExternalIP",
            EndpointSource::NodeInternalIp => "InternalIP",
        };
        wrong.push(Contradiction::problem(
            About::Node,
            Reason::NoAddress,
            format!(
                "Node {name} should be a gateway but has no address of type {which}: it is not announced as one; \
                 kubectl annotate node {name} {ENDPOINTS_ANNOTATION}=ADDRESS"
            ),
        ));
    }
    if found.len() > MAX_ENDPOINTS {
        let message = format!(
            "Node {name} has {} endpoints: only the first {MAX_ENDPOINTS} are announced",
            found.len()
        );
        wrong.push(Contradiction::problem(About::Node, Reason::InvalidAnnotation, message));
        found.truncate(MAX_ENDPOINTS);
    }
    found
}

/// Keeps what other clusters could send to, each once.
fn usable(found: &mut Vec<Sourced<IpAddr>>, wrong: &mut Vec<Contradiction>) {
    let mut known = Vec::new();
    found.retain(|endpoint| {
        let address = endpoint.value.to_canonical();
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            let message = format!(
                "{}: nobody can send to {} from another cluster; it is not used",
                endpoint.from, endpoint.value
            );
            wrong.push(Contradiction::problem(About::Node, Reason::InvalidAnnotation, message));
            return false;
        }
        let new = !known.contains(&address);
        known.push(address);
        new
    });
}

fn by_node(objects: &Objects, from: EndpointSource) -> Vec<Sourced<IpAddr>> {
    let of = |kind: &str| -> Vec<Sourced<IpAddr>> {
        let from = format!("Node {} status.addresses, type {kind}", node_name(objects));
        addresses(objects, kind).into_iter().map(|address| Sourced::new(address, from.clone())).collect()
    };
    match from {
        EndpointSource::NodeExternalIp => of("ExternalIP"),
        EndpointSource::NodeInternalIp => of("InternalIP"),
        EndpointSource::Auto => match of("ExternalIP") {
            external if !external.is_empty() => external,
            _ => of("InternalIP"),
        },
    }
}

fn by_service(service: &Service, which: &str, wrong: &mut Vec<Contradiction>) -> Vec<Sourced<IpAddr>> {
    let mut problem = |message: String| {
        wrong.push(Contradiction::problem(About::ClusterSet, Reason::InvalidSetting, message));
    };
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()).unwrap_or("ClusterIP");
    if kind != "LoadBalancer" {
        problem(format!(
            "{which}, from which the endpoints should come, is of type {kind} and not LoadBalancer: the Node's own \
             addresses are used"
        ));
        return Vec::new();
    }
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = ingress.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    let mut found = Vec::new();
    let mut names = Vec::new();
    for point in ingress {
        match (&point.ip, &point.hostname) {
            (Some(ip), _) => match ip.parse() {
                Ok(address) => {
                    found.push(Sourced::new(address, format!("{which} status.loadBalancer")));
                }
                Err(_) => problem(format!("{which}: {} is no address; it is not used", quote(ip))),
            },
            (None, Some(name)) => names.push(name.clone()),
            (None, None) => {}
        }
    }
    if found.is_empty() {
        problem(match names.first() {
            Some(name) => format!(
                "{which} is known by the name {} only, and an endpoint is an address: annotate the gateway with \
                 {ENDPOINTS_ANNOTATION}; until then the Node's own addresses are used",
                quote(name)
            ),
            None => format!("{which} has no address yet: the Node's own addresses are used until then"),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;

    fn objects(node: serde_json::Value) -> Objects {
        let node: Node = serde_json::from_value(node).unwrap();
        Objects { node: Some(node), ..Objects::default() }
    }

    #[test]
    fn weights_and_cordons() {
        for (text, expected) in
            [("20", Some(20)), (" 100 ", Some(100)), ("0", None), ("101", None), ("many", None)]
        {
            let mut wrong = Vec::new();
            let node =
                json!({ "metadata": { "name": "n", "annotations": { GATEWAY_WEIGHT_ANNOTATION: text } } });
            assert_eq!(weight(&objects(node), &mut wrong), expected, "{text}");
            assert_eq!(wrong.len(), usize::from(expected.is_none()), "{text}: {wrong:?}");
        }
        assert_eq!(weight(&objects(json!({ "metadata": {} })), &mut Vec::new()), None);
        assert!(is_cordoned(&objects(json!({ "metadata": {}, "spec": { "unschedulable": true } }))));
        assert!(!is_cordoned(&objects(json!({ "metadata": {}, "spec": {} }))));
    }
}
