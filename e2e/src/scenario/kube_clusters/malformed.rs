//! Objects that make no sense, in clusters that work: each is named where a person looks, and traffic goes on.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::changes::{check, on, streams};
use crate::kube::{Clusters, until};
use crate::scenario::Findings;

const SOON: Duration = Duration::from_secs(45);

/// The ClusterSet's condition of that type: status, reason, message.
fn condition(clusters: &Clusters, kind: &str) -> Result<[String; 3]> {
    let set = clusters.get_json("beta", &["clusterset", "podspan"])?;
    let all = set["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
    Ok(["status", "reason", "message"].map(|key| found[key].as_str().unwrap_or_default().to_owned()))
}

/// Waits until a condition is false, with a message that names `part`.
fn named(clusters: &Clusters, kind: &str, part: &str) -> Result<Duration> {
    until(&format!("{kind} is False, with {part:?}"), SOON, || {
        let [status, reason, message] = condition(clusters, kind)?;
        Ok(status == "False" && !reason.is_empty() && message.contains(part))
    })
}

/// Waits for an Event of that reason about an object of beta.
fn told(clusters: &Clusters, kind: &str, name: &str, reason: &str) -> Result<Duration> {
    until(&format!("an Event {reason} about {kind} {name}"), SOON, || {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={name},reason={reason}");
        let events =
            clusters.get_json("beta", &["events", "-n", "default", "--field-selector", &selector])?;
        Ok(events["items"].as_array().is_some_and(|events| !events.is_empty()))
    })
}

fn set_spec(clusters: &Clusters, spec: &Value) -> Result<()> {
    let object = json!({"apiVersion": "podspan.io/v1alpha1", "kind": "ClusterSet", "metadata": {"name": "podspan"}, "spec": spec});
    clusters.apply("beta", &object.to_string())
}

fn node(clusters: &Clusters, verb: &str, what: &str) -> Result<()> {
    clusters.kubectl("beta", &[verb, "--overwrite", "node", "beta-2", what])?;
    Ok(())
}

pub(super) fn malformed(clusters: &mut Clusters) -> Result<()> {
    let probes = clusters.probes()?;
    let mut findings = Findings::default();
    let time = Duration::from_secs(60);
    let running = streams(clusters, on(&probes, "alpha-1")?, on(&probes, "beta-1")?, time)?;
    let back = streams(clusters, on(&probes, "beta-2")?, on(&probes, "alpha-2")?, time)?;
    let clusters: &Clusters = clusters;

    node(clusters, "label", "podspan.io/gateway=perhaps")?;
    named(clusters, "NoConflict", "neither \"true\" nor \"false\"")?;
    told(clusters, "Node", "beta-2", "InvalidLabel")?;
    node(clusters, "label", "podspan.io/gateway=true")?;

    node(clusters, "annotate", "podspan.io/endpoints=everywhere")?;
    named(clusters, "NoConflict", "everywhere")?;
    told(clusters, "Node", "beta-2", "InvalidAnnotation")?;
    node(clusters, "annotate", "podspan.io/endpoints-")?;

    // Its own CIDRs, with one that is none and one that was never granted; and one that another override forbids.
    let cidrs = clusters.get_json("beta", &["node", "beta-2"])?["spec"]["podCIDRs"].clone();
    let own: Vec<&str> = cidrs.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    node(clusters, "annotate", &format!("podspan.io/pod-cidrs={},nonsense,10.99.0.0/24", own.join(",")))?;
    named(clusters, "NoConflict", "nonsense")?;
    named(clusters, "Granted", "10.99.0.0/24")?;
    told(clusters, "Node", "beta-2", "OutsideGrant")?;
    node(clusters, "annotate", &format!("podspan.io/pod-cidrs={}", own.join(",")))?;
    set_spec(clusters, &json!({"podCIDRs": ["10.2.0.0/28", "fd00:10:2::/48"]}))?;
    named(clusters, "NoConflict", "the annotation wins")?;
    told(clusters, "Node", "beta-2", "ConflictingOverrides")?;
    set_spec(clusters, &json!({}))?;
    node(clusters, "annotate", "podspan.io/pod-cidrs-")?;

    // A schema that somebody opened, and what it lets in.
    let open = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]);
    clusters.kubectl(
        "beta",
        &["patch", "crd", "clustersets.podspan.io", "--type=json", "-p", &open.to_string()],
    )?;
    let hostile = json!({"podCIDRs": {"a": 1}, "serviceCIDRs": ["0.0.0.0/0", 7], "mtu": -5, "endpoints": "x",
        "cni": {"mode": ["append"]}});
    until("the schema is gone", SOON, || Ok(set_spec(clusters, &hostile).is_ok()))?;
    for part in ["podCIDRs", "serviceCIDRs[0]"] {
        named(clusters, "NoConflict", part)?;
    }
    told(clusters, "ClusterSet", "podspan", "InvalidSetting")?;
    // Nothing can be applied over what the schema would not have let in: it goes before the schema comes back.
    clusters.kubectl("beta", &["delete", "clusterset", "podspan"])?;
    clusters.join_one(clusters.programs()?, "beta", &["--force-conflicts"])?;
    until("all is well again", SOON, || {
        Ok(condition(clusters, "NoConflict")?[0] == "True" && condition(clusters, "Ready")?[0] == "True")
    })?;
    findings.expect("the probe pods, which should be the same", &probes.pods, &clusters.probes()?.pods);
    for pending in [running, back] {
        check(clusters, pending, Duration::from_secs(3), &mut findings)?;
    }
    findings.conclude(1 + 16)
}
