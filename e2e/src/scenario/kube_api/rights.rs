//! What the agents' service account may do: what it needs, and nothing more.

use std::collections::BTreeSet;

use anyhow::Result;

use super::joined::apply_manifests;
use crate::kube::KubeApi;
use crate::scenario::Findings;

const USER: &str = "system:serviceaccount:podspan-system:podspan-agent";
const GROUPS: [&str; 2] = ["system:serviceaccounts", "system:authenticated"];

/// Everywhere: resource, names, verbs.
const EVERYWHERE: [(&str, &str, &str); 11] = [
    ("nodes", "", "get list watch"),
    ("services", "", "get list watch"),
    ("servicecidrs.networking.k8s.io", "", "get list watch"),
    ("ippools.crd.projectcalico.org", "", "get list watch"),
    ("blockaffinities.crd.projectcalico.org", "", "get list watch"),
    ("ciliumnodes.cilium.io", "", "get list watch"),
    ("configmaps", "kube-flannel-cfg", "get"),
    ("clustersets.podspan.io", "", "get list watch"),
    ("peerclusters.podspan.io", "", "get list watch create patch delete"),
    ("clustersets.podspan.io/status", "", "patch"),
    ("peerclusters.podspan.io/status", "", "patch"),
];

/// Whether podspan is being taken out of the cluster: its own DaemonSet, and the namespace.
const NAMESPACE: (&str, &str, &str) = ("namespaces", "podspan-system", "get list watch");

/// In one namespace only.
const IN_NAMESPACE: [(&str, &str, &str, &str); 6] = [
    ("podspan-system", "leases.coordination.k8s.io", "", "create"),
    ("podspan-system", "leases.coordination.k8s.io", "podspan-status", "get update"),
    ("podspan-system", "daemonsets.apps", "podspan-agent", "get list watch"),
    ("kube-system", "pods", "", "list"),
    ("kube-system", "daemonsets.apps", "kindnet", "get"),
    ("default", "events.events.k8s.io", "", "create"),
];

type Right = (String, String, BTreeSet<String>);

fn right(resource: &str, names: &str, verbs: &str) -> Right {
    (resource.to_owned(), names.to_owned(), verbs.split_ascii_whitespace().map(str::to_owned).collect())
}

/// What `kubectl auth can-i --list` tells of a user in a namespace.
fn rights(api: &KubeApi, namespace: &str, user: &str) -> Result<BTreeSet<Right>> {
    let mut command =
        api.kubectl_cmd(&["auth", "can-i", "--list", "--no-headers", "-n", namespace, "--as", user]);
    for group in GROUPS {
        command = command.args(["--as-group", group]);
    }
    let text = command.text()?;
    // RESOURCES  [URLS]  [NAMES]  [VERBS]; the first is empty for URLs.
    let parse = |line: &str| -> Option<Right> {
        let (resource, rest) = line.split_once('[')?;
        let lists: Vec<&str> = rest.split('[').filter_map(|part| part.split(']').next()).collect();
        let [urls, names, verbs] = lists.as_slice() else { return None };
        let resource =
            if resource.trim().is_empty() { format!("URL {urls}") } else { resource.trim().to_owned() };
        Some(right(&resource, names.trim(), verbs))
    };
    Ok(text.lines().filter_map(parse).collect())
}

pub(super) fn rights_of_the_agent(api: &mut KubeApi) -> Result<()> {
    apply_manifests(api)?;
    let mut findings = Findings::default();
    for namespace in ["podspan-system", "kube-system", "default", "kube-public"] {
        // What anybody may who has logged in is no right of the agent's.
        let anybody = rights(api, namespace, "system:serviceaccount:podspan-system:nobody")?;
        let agent = rights(api, namespace, USER)?;
        findings
            .require(!anybody.is_empty(), || format!("{namespace}: nothing was read of anybody's rights"));
        let own: BTreeSet<Right> = agent.difference(&anybody).cloned().collect();
        let expected: BTreeSet<Right> = EVERYWHERE
            .iter()
            .chain([&NAMESPACE])
            .map(|(resource, names, verbs)| right(resource, names, verbs))
            .chain(
                IN_NAMESPACE
                    .iter()
                    .filter(|(of, ..)| *of == namespace)
                    .map(|(_, resource, names, verbs)| right(resource, names, verbs)),
            )
            .collect();
        for extra in own.difference(&expected) {
            findings
                .require(false, || format!("{namespace}: the agent may {extra:?}, which it does not need"));
        }
        for missing in expected.difference(&own) {
            findings.require(false, || format!("{namespace}: the agent may not {missing:?}"));
        }
        findings.expect(&format!("{namespace}: how many rights"), expected.len(), own.len());
    }
    // Asked one by one, as the API server decides.
    for (verb, what, may) in [
        ("get", "secrets", false),
        ("list", "secrets", false),
        ("create", "pods", false),
        ("patch", "nodes", false),
        ("update", "nodes/status", false),
        ("patch", "clustersets.podspan.io", false),
        ("create", "clustersets.podspan.io", false),
        ("get", "configmaps", false),
        ("delete", "leases.coordination.k8s.io/podspan-status", false),
        ("update", "leases.coordination.k8s.io/podspan-status", true),
        ("update", "leases.coordination.k8s.io/another", false),
        ("escalate", "clusterroles.rbac.authorization.k8s.io", false),
        ("get", "nodes", true),
    ] {
        let mut command =
            api.kubectl_cmd(&["auth", "can-i", verb, what, "-n", "podspan-system", "--as", USER]);
        for group in GROUPS {
            command = command.args(["--as-group", group]);
        }
        let answer = command.run()?.stdout_text();
        findings.expect(
            &format!("may the agent {verb} {what}"),
            if may { "yes" } else { "no" },
            answer.trim(),
        );
    }
    findings.conclude(21)
}
