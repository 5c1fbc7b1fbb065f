//! What the agents do on their nodes, told while it happens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::time::{sleep, timeout_at};

use super::api::{Cluster, describe};
use super::{AGENT, NAMESPACE};
use crate::human;

/// How often to look.
const EVERY: Duration = Duration::from_millis(250);
/// The agents' pods.
const SELECTOR: &str = "app.kubernetes.io/name=podspan,app.kubernetes.io/component=agent";

/// The agents' pods of a node.
struct Agents {
    /// The one that came last.
    last: Pod,
    /// How many came before it and have not ended.
    former: usize,
}

/// The agents' pods by node.
async fn pods(cluster: &Cluster) -> Result<BTreeMap<String, Agents>> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let pods = api
        .list(&ListParams::default().labels(SELECTOR))
        .await
        .map_err(|error| anyhow!("the agents' pods cannot be listed: {}", describe(&error)))?;
    Ok(by_node(pods.items))
}

/// While one agent follows another, a node has two.
fn by_node(mut pods: Vec<Pod>) -> BTreeMap<String, Agents> {
    pods.sort_by_key(|pod| {
        (pod.metadata.deletion_timestamp.is_none(), pod.metadata.creation_timestamp.clone())
    });
    let mut by_node: BTreeMap<String, Agents> = BTreeMap::new();
    for pod in pods {
        let Some(node) = node_of(&pod) else { continue };
        let former = by_node.get(&node).map_or(0, |agents| agents.former + usize::from(!ended(&agents.last)));
        by_node.insert(node, Agents { last: pod, former });
    }
    by_node
}

/// Whether no container of a pod runs any more, nor ever will.
fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Waits until every node runs the DaemonSet's present template, is ready, and its former agent has ended; tells
/// each as it gets ready.
/// Returns the nodes that did not get there, each with the reason: once `patience` has passed in which no
/// further node got ready.
pub(super) async fn ready(cluster: &Cluster, patience: Duration) -> Result<Vec<(String, String)>> {
    let api: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let mut told = Vec::new();
    let mut since = Instant::now();
    loop {
        let daemon =
            api.get(AGENT).await.map_err(|error| anyhow!("DaemonSet {AGENT}: {}", describe(&error)))?;
        let status = daemon.status.unwrap_or_default();
        let current = status.observed_generation.unwrap_or(0) >= daemon.metadata.generation.unwrap_or(0);
        let revision = latest_revision(cluster).await?;
        let pods = pods(cluster).await?;
        let mut missing = Vec::new();
        for (node, Agents { last, former }) in &pods {
            let updated = revision.is_some() && revision_of(&last.metadata) == revision;
            match hindrance(last) {
                None if updated => {
                    if *former > 0 {
                        missing.push((node.clone(), "its former agent has not ended yet".to_owned()));
                    }
                    if !told.contains(node) {
                        println!("  {node}: ready");
                        told.push(node.clone());
                        since = Instant::now();
                    }
                }
                None => missing.push((node.clone(), "still runs the former version".to_owned())),
                Some(why) => missing.push((node.clone(), why)),
            }
        }
        let desired = usize::try_from(status.desired_number_scheduled).unwrap_or(0);
        if current && desired > 0 && missing.is_empty() && pods.len() >= desired {
            return Ok(Vec::new());
        }
        if since.elapsed() >= patience {
            if missing.is_empty() {
                missing.push(("(no node)".into(), "no agent was started: is there a Linux node?".into()));
            }
            return Ok(missing);
        }
        sleep(EVERY).await;
    }
}

/// The label by which pods and revisions of a DaemonSet go together.
fn revision_of(metadata: &ObjectMeta) -> Option<String> {
    metadata.labels.as_ref()?.get("controller-revision-hash").cloned()
}

/// The revision of the DaemonSet's present template.
async fn latest_revision(cluster: &Cluster) -> Result<Option<String>> {
    let api: Api<ControllerRevision> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let revisions = api
        .list(&ListParams::default().labels(SELECTOR))
        .await
        .map_err(|error| anyhow!("the DaemonSet's revisions cannot be listed: {}", describe(&error)))?;
    Ok(revisions.iter().max_by_key(|revision| revision.revision).and_then(|r| revision_of(&r.metadata)))
}

/// Why a pod is not ready, if it is not.
fn hindrance(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    let condition = |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind);
    if pod.metadata.deletion_timestamp.is_none() && condition("Ready").is_some_and(|c| c.status == "True") {
        return None;
    }
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.clone().filter_map(|container| container.state.as_ref()?.waiting.as_ref());
    let why = waiting
        .map(|waiting| {
            let reason = waiting.reason.clone().unwrap_or_default();
            match &waiting.message {
                Some(message) => format!("{reason}: {message}"),
                None => reason,
            }
        })
        .next();
    let last = containers.clone().find_map(|container| {
        let ended = container.last_state.as_ref()?.terminated.as_ref()?;
        Some(format!(
            "its agent ended with {}: {}",
            ended.exit_code,
            ended.message.clone().unwrap_or_default()
        ))
    });
    let ready = condition("Ready").and_then(|c| c.message.clone());
    let scheduled = condition("PodScheduled").filter(|c| c.status != "True").and_then(|c| c.message.clone());
    let text = [why, last].into_iter().flatten().collect::<Vec<_>>().join("; ");
    let text =
        if text.is_empty() { scheduled.or(ready).unwrap_or_else(|| "not started yet".into()) } else { text };
    Some(human::safe(text.trim()))
}

/// How an agent that was told to leave ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// It took everything out.
    Clean,
    /// It ended with an error; what it said last.
    Failed(String),
    /// It has not ended yet; what is known of it.
    Running(String),
}

/// How each of the agents' pods ended, by node and the pod's name.
type Ends = BTreeMap<(String, String), Left>;

/// How it went on each node: where an agent was just following another one, as well as with the worse of the two.
fn worst_by_node(ends: Ends) -> BTreeMap<String, Left> {
    let mut by_node: BTreeMap<String, Left> = BTreeMap::new();
    for ((node, _), end) in ends {
        match by_node.get(&node) {
            Some(Left::Running(_)) => {}
            Some(Left::Failed(_)) if end == Left::Clean => {}
            _ => drop(by_node.insert(node, end)),
        }
    }
    by_node
}

/// Waits until no agent runs any more, telling each as it ends; returns how it went on each node.
pub(super) async fn gone(cluster: &Cluster, within: Duration) -> Result<BTreeMap<String, Left>> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let end = tokio::time::Instant::now() + within;
    let key = |pod: &Pod| Some((node_of(pod)?, pod.metadata.name.clone().unwrap_or_default()));
    let mut left = Ends::new();
    loop {
        // Watched, since how an agent ended is seen in its pod for a moment only.
        let list = api
            .list(&ListParams::default().labels(SELECTOR))
            .await
            .map_err(|error| anyhow!("the agents' pods cannot be listed: {}", describe(&error)))?;
        let version = list.metadata.resource_version.clone().unwrap_or_default();
        let mut running: Vec<(String, String)> = Vec::new();
        for pod in &list {
            if let Some(key) = key(pod) {
                running.push(key.clone());
                left.insert(key, outcome(pod));
            }
        }
        let watch = api.watch(&WatchParams::default().labels(SELECTOR), &version).await;
        let mut watch = match watch {
            Ok(watch) => watch.boxed(),
            Err(error) => return Err(anyhow!("the agents' pods cannot be watched: {}", describe(&error))),
        };
        while !running.is_empty() {
            let event = match timeout_at(end, watch.next()).await {
                Err(_) => return Ok(worst_by_node(left)),
                // Ended or broken: from the beginning.
                Ok(None | Some(Err(_))) => break,
                Ok(Some(Ok(event))) => event,
            };
            match event {
                WatchEvent::Modified(pod) | WatchEvent::Added(pod) => {
                    if let Some(key) = key(&pod) {
                        if !running.contains(&key) {
                            running.push(key.clone());
                        }
                        left.insert(key, outcome(&pod));
                    }
                }
                WatchEvent::Deleted(pod) => {
                    let Some(key) = key(&pod) else { continue };
                    running.retain(|other| *other != key);
                    let outcome = match (outcome(&pod), left.get(&key)) {
                        (Left::Running(_), Some(known @ (Left::Clean | Left::Failed(_)))) => known.clone(),
                        (Left::Running(_), _) => Left::Failed("how its agent ended was not seen".into()),
                        (seen, _) => seen,
                    };
                    let last = running.iter().all(|(node, _)| *node != key.0);
                    match &outcome {
                        Left::Failed(why) => println!("  {}: {why}", key.0),
                        _ if last => println!("  {}: clean", key.0),
                        _ => {}
                    }
                    left.insert(key, outcome);
                }
                // Too old: from the beginning.
                WatchEvent::Error(_) => break,
                WatchEvent::Bookmark(_) => {}
            }
        }
        if running.is_empty() || tokio::time::Instant::now() >= end {
            return Ok(worst_by_node(left));
        }
        sleep(EVERY).await;
    }
}

/// The node that a pod runs on, or is meant for: the DaemonSet's controller names it in the affinity.
fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let meant = || {
        let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms =
            &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
        fields.find(|field| field.key == "metadata.name")?.values.as_ref()?.first().cloned()
    };
    spec.node_name.clone().or_else(meant)
}

/// The last line of what an agent said: its error, behind its log.
fn last_words(message: Option<&str>) -> String {
    let last = message.unwrap_or_default().lines().rev().find(|line| !line.trim().is_empty());
    human::safe(last.unwrap_or("no word of why").trim())
}

fn outcome(pod: &Pod) -> Left {
    let status = pod.status.clone().unwrap_or_default();
    let agent: Option<&ContainerStatus> =
        status.container_statuses.iter().flatten().find(|c| c.name == "agent");
    let ended = agent.and_then(|agent| agent.state.as_ref()?.terminated.as_ref());
    match ended {
        Some(ended) if ended.exit_code == 0 => Left::Clean,
        Some(ended) => Left::Failed(last_words(ended.message.as_deref())),
        None => Left::Running(match status.reason {
            Some(reason) => format!("the node does not answer ({reason})"),
            None => "the node does not answer, or is slow".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, created: u8, phase: &str, ends: bool) -> Pod {
        let mut metadata =
            json!({"name": name, "creationTimestamp": format!("2026-11-23T08:00:{created:02}Z")});
        if ends {
            metadata["deletionTimestamp"] = json!("2026-11-23T08:01:00Z");
        }
        let pod = json!({"metadata": metadata, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}});
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn of_two_agents_of_a_node_the_one_that_came_last_counts() {
        let told = |pods: Vec<Pod>| -> Vec<(String, Option<String>, usize)> {
            by_node(pods)
                .into_iter()
                .map(|(node, agents)| (node, agents.last.metadata.name, agents.former))
                .collect()
        };
        let [old, new] = [("old", 1, false), ("new", 2, false)]
            .map(|(name, at, ends)| pod(name, "a", at, "Running", ends));
        let both = vec![("a".to_owned(), Some("new".to_owned()), 1)];
        assert_eq!(told(vec![old.clone(), new.clone()]), both);
        assert_eq!(told(vec![new.clone(), old]), both);
        // One that is told to end does not count as the last, however young, but has not ended.
        assert_eq!(
            told(vec![pod("ends", "a", 9, "Running", true), new.clone()]),
            [("a".into(), Some("new".into()), 1)]
        );
        // One that has ended is nobody.
        assert_eq!(
            told(vec![pod("done", "a", 1, "Failed", false), new]),
            [("a".into(), Some("new".into()), 0)]
        );
    }

    #[test]
    fn a_node_is_clean_when_all_of_its_agents_ended_well() {
        let end = |name: &str, left: Left| (("a".to_owned(), name.to_owned()), left);
        let of = |ends: [((String, String), Left); 2]| worst_by_node(Ends::from(ends)).remove("a").unwrap();
        let (failed, running) = (Left::Failed("no".into()), Left::Running("slow".into()));
        assert_eq!(of([end("1", Left::Clean), end("2", Left::Clean)]), Left::Clean);
        for (one, other, worse) in [(&failed, &Left::Clean, &failed), (&running, &failed, &running)] {
            assert_eq!(of([end("1", one.clone()), end("2", other.clone())]), *worse);
            assert_eq!(of([end("1", other.clone()), end("2", one.clone())]), *worse);
        }
    }
}
