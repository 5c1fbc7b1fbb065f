//! From discovery to the facts that the agent works by. Pure.

use podspan_kubernetes::discovery::{Facts, Reason, Severity};
use podspan_wire::status::{Contradiction, Discovered, Discovery};
use podspan_wire::{CidrSet, NodeName};

use crate::facts::LocalFacts;

/// The facts as the rest of the agent knows them. What is missing now but was there `before` stays, if it
/// is only missing and nobody took it away on purpose.
#[must_use]
pub fn local(node: NodeName, found: &Facts, before: Option<&LocalFacts>) -> LocalFacts {
    let mut facts = LocalFacts {
        gateway: found.gateway,
        endpoints: found.endpoints.iter().map(|endpoint| endpoint.value).collect(),
        pod_cidrs: found.pod_cidrs.iter().map(|cidr| cidr.value).collect(),
        host_addresses: found
            .host_addresses
            .as_ref()
            .map(|addresses| addresses.iter().map(|address| address.value).collect()),
        service_cidrs: found.service_cidrs.iter().map(|cidr| cidr.value).collect(),
        addresses: found.addresses.clone(),
        mtu: found.settings.mtu,
        cni: found.settings.cni,
        draining: found.cordoned.then(|| format!("Node {node} is cordoned")),
        gateway_weight: found.gateway_weight,
        discovery: discovery(found),
        ..LocalFacts::new(node)
    };
    let Some(before) = before else { return facts };
    let lost =
        |reason| found.contradictions.iter().any(|c| c.severity == Severity::Problem && c.reason == reason);
    if facts.pod_cidrs.is_empty() && !before.pod_cidrs.is_empty() && lost(Reason::NoPodCidr) {
        keep(&mut facts.discovery, "pod CIDR", &before.pod_cidrs.to_string());
        facts.pod_cidrs = before.pod_cidrs.clone();
        facts.host_addresses = before.host_addresses.clone();
    }
    if !facts.gateway && before.gateway && lost(Reason::NoAddress) {
        let endpoints: Vec<String> = before.endpoints.iter().map(ToString::to_string).collect();
        keep(&mut facts.discovery, "endpoint", &endpoints.join(", "));
        facts.gateway = true;
        facts.endpoints = before.endpoints.clone();
    }
    facts
}

fn keep(discovery: &mut Discovery, kind: &str, value: &str) {
    let from = "before: nothing is found any more, and what there was stays in use".to_owned();
    discovery.found.push(Discovered { kind: kind.to_owned(), value: value.to_owned(), from });
}

fn discovery(found: &Facts) -> Discovery {
    let cidrs = [("pod CIDR", &found.pod_cidrs), ("service CIDR", &found.service_cidrs)];
    let mut all: Vec<Discovered> = cidrs
        .into_iter()
        .flat_map(|(kind, cidrs)| {
            cidrs.iter().map(move |cidr| Discovered {
                kind: kind.to_owned(),
                value: cidr.value.to_string(),
                from: cidr.from.clone(),
            })
        })
        .collect();
    all.extend(found.endpoints.iter().map(|endpoint| Discovered {
        kind: "endpoint".to_owned(),
        value: endpoint.value.to_string(),
        from: endpoint.from.clone(),
    }));
    all.extend(found.host_addresses.iter().flatten().map(|address| Discovered {
        kind: "host address".to_owned(),
        value: address.value.to_string(),
        from: address.from.clone(),
    }));
    all.extend(found.settings.mtu.map(|mtu| Discovered {
        kind: "MTU".to_owned(),
        value: mtu.to_string(),
        from: "ClusterSet podspan spec.mtu".to_owned(),
    }));
    let contradictions = found
        .contradictions
        .iter()
        .map(|contradiction| Contradiction {
            reason: contradiction.reason.to_string(),
            message: contradiction.message.clone(),
            problem: contradiction.severity == Severity::Problem,
        })
        .collect();
    Discovery { found: all, contradictions }
}

/// Whether two sets of facts announce the same; what is shown of them may differ.
#[must_use]
pub fn same_network(a: &LocalFacts, b: &LocalFacts) -> bool {
    type Key = (bool, Option<String>, Option<u8>, [Vec<std::net::IpAddr>; 2], CidrSet, CidrSet, Option<u32>);
    let key = |facts: &LocalFacts| -> Key {
        (
            facts.gateway,
            facts.draining.clone(),
            facts.gateway_weight,
            [facts.endpoints.clone(), facts.host_addresses()],
            facts.pod_cidrs.clone(),
            facts.service_cidrs.clone(),
            facts.mtu,
        )
    };
    key(a) == key(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podspan_kubernetes::discovery::{About, Contradiction as Wrong, Sourced};

    fn found(gateway: bool, cidr: Option<&str>, wrong: &[Reason]) -> Facts {
        Facts {
            gateway,
            endpoints: gateway.then(|| Sourced::new("192.0.2.1".parse().unwrap(), "x")).into_iter().collect(),
            pod_cidrs: cidr.map(|cidr| Sourced::new(cidr.parse().unwrap(), "x")).into_iter().collect(),
            contradictions: wrong.iter().map(|r| Wrong::problem(About::Node, *r, "m")).collect(),
            ..Facts::default()
        }
    }

    #[test]
    fn what_only_got_lost_stays_and_what_was_taken_away_goes() {
        let node: NodeName = "node-1".parse().unwrap();
        let before = local(node.clone(), &found(true, Some("10.1.1.0/24"), &[]), None);
        assert!(before.gateway && before.discovery.found.len() == 2);
        for (now, gateway, cidrs) in [
            (found(false, None, &[Reason::NoPodCidr, Reason::NoAddress]), true, "10.1.1.0/24"),
            (found(false, Some("10.1.2.0/24"), &[]), false, "10.1.2.0/24"),
            (found(false, Some("10.1.1.0/24"), &[Reason::InvalidLabel]), false, "10.1.1.0/24"),
            (found(true, None, &[Reason::OutsideGrant]), true, ""),
        ] {
            let facts = local(node.clone(), &now, Some(&before));
            assert_eq!((facts.gateway, facts.pod_cidrs.to_string().as_str()), (gateway, cidrs), "{now:?}");
            assert_eq!(facts.gateway, !facts.endpoints.is_empty());
        }
    }

    #[test]
    fn kept_facts_survive_the_disk() {
        let facts =
            local("node-1".parse().unwrap(), &found(true, Some("10.1.1.0/24"), &[Reason::NoAddress]), None);
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<LocalFacts>(&text).unwrap(), facts);
    }
}
