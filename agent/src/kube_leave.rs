//! Whether podspan is being taken out of the cluster, as against only this pod being replaced.
//!
//! The agent is told to stop by the same SIGTERM in both cases; and when podspan goes, its rights may be gone
//! before the agent can ask. So it looks all the time: a watch that stands is not broken by rights that are
//! taken away. When in doubt it stays: what is in the kernel serves the next agent.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client, Resource, ResourceExt as _};
use podspan_kubernetes::names::AGENT;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::cni_install::Order;

/// How long the API server may take to answer one question when the agent is told to stop.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// How long to go on looking when it does not let the agent ask any more.
const LAST_LOOK: Duration = Duration::from_secs(5);
/// How often the container runtime's name is asked for until it is known.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// The finalizer of a deletion that leaves the pods.
const ORPHAN: &str = "orphan";

/// What is known of podspan's own objects. Pure: objects in, a decision out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The DaemonSet was there once. An agent that runs without it is not taken out with it.
    seen: bool,
    /// It is gone, or marked for deletion.
    gone: bool,
    /// It is or was deleted in such a way that its pods stay, for another to adopt.
    orphaned: bool,
    /// The namespace is being deleted.
    namespace_ends: bool,
}

impl Known {
    /// Takes in the DaemonSet as it is now.
    pub fn daemon_set(&mut self, found: Option<&DaemonSet>) {
        match found {
            None => self.gone = self.seen,
            Some(found) => {
                self.seen = true;
                self.gone = found.metadata.deletion_timestamp.is_some();
                self.orphaned = found.finalizers().iter().any(|name| name == ORPHAN);
            }
        }
    }

    /// Takes in the namespace as it is now.
    pub fn namespace(&mut self, found: Option<&Namespace>) {
        self.namespace_ends =
            self.seen && found.is_none_or(|found| found.metadata.deletion_timestamp.is_some());
    }

    /// Whether podspan leaves, and what it put into CNI configurations can go at once.
    #[must_use]
    pub fn leaves(&self) -> bool {
        self.namespace_ends || self.gone && !self.orphaned
    }

    /// Whether an agent that is told to stop now takes everything out.
    #[must_use]
    pub fn leaves_at_stop(&self) -> bool {
        self.namespace_ends || self.gone
    }
}

/// The watch over podspan's own objects.
pub struct Leave {
    client: Client,
    namespace: String,
    known: watch::Receiver<Known>,
    task: JoinHandle<()>,
}

impl Leave {
    /// Begins to watch. `orders` has, from then on, whether the CNI plugin must go. Within a Tokio runtime.
    #[must_use]
    pub fn start(client: Client, namespace: String, node: String, orders: watch::Sender<Order>) -> Self {
        let (sender, known) = watch::channel(Known::default());
        let task = tokio::spawn(look(client.clone(), namespace.clone(), node, orders, sender));
        Self { client, namespace, known, task }
    }

    /// For an agent that is told to stop: whether podspan leaves this node for good.
    pub async fn now(mut self) -> bool {
        let answer = self.ask().await;
        self.task.abort();
        if answer {
            info!("podspan is taken out of the cluster: leaving this node");
        }
        answer
    }

    async fn ask(&mut self) -> bool {
        if self.known.borrow().leaves_at_stop() {
            return true;
        }
        let mut known = self.known.borrow().clone();
        if !known.seen {
            return false;
        }
        let daemons: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let asked = timeout(ANSWER_TIME, async {
            tokio::join!(daemons.get_opt(AGENT), namespaces.get_opt(&self.namespace))
        });
        let Ok((daemon, namespace)) = asked.await else {
            // No API server, no sign that podspan goes.
            return false;
        };
        let refused = |error: &kube::Error| matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403));
        let lost = daemon.as_ref().is_err_and(refused) || namespace.as_ref().is_err_and(refused);
        if let Ok(daemon) = daemon {
            known.daemon_set(daemon.as_ref());
        }
        if let Ok(namespace) = namespace {
            known.namespace(namespace.as_ref());
        }
        if known.leaves_at_stop() || !lost {
            return known.leaves_at_stop();
        }
        // The rights went before the DaemonSet, or this very moment: the watches still tell.
        let gone = self.known.wait_for(Known::leaves_at_stop);
        if timeout(LAST_LOOK, gone).await.is_ok_and(|found| found.is_ok()) {
            return true;
        }
        warn!(
            "told to stop, and the API server refuses this agent what its manifests allow: taken for podspan being \
             taken out of the cluster"
        );
        true
    }
}

async fn look(
    client: Client,
    namespace: String,
    node: String,
    orders: watch::Sender<Order>,
    known: watch::Sender<Known>,
) {
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
    let mut daemons = std::pin::pin!(objects(daemons, AGENT));
    let mut namespaces = std::pin::pin!(objects(Api::<Namespace>::all(client.clone()), &namespace));
    let mut runtime = std::pin::pin!(runtime(client, node));
    let mut runtime_known = false;
    loop {
        tokio::select! {
            Some(found) = daemons.next() => known.send_modify(|known| known.daemon_set(found.as_ref())),
            Some(found) = namespaces.next() => known.send_modify(|known| known.namespace(found.as_ref())),
            name = &mut runtime, if !runtime_known => {
                runtime_known = true;
                let keep = name.starts_with("cri-o://");
                orders.send_if_modified(|order| std::mem::replace(&mut order.keep_plugin, keep) != keep);
            }
            else => return,
        }
        let leaves = known.borrow().leaves();
        if orders.send_if_modified(|order| std::mem::replace(&mut order.leave, leaves) != leaves) {
            info!(leaves, "podspan's own DaemonSet");
        }
    }
}

/// The object of this name, whenever it changes; none when it is gone. Goes on for ever.
fn objects<K>(api: Api<K>, name: &str) -> impl Stream<Item = Option<K>> + Send + use<K>
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watch_object(api, name)
        .backoff(watcher::DefaultBackoff::default())
        // Where it cannot be watched, nothing is known of it; another look follows by itself.
        .filter_map(|found| std::future::ready(found.ok()))
}

/// The node's container runtime, such as `containerd://2.1.4`.
async fn runtime(client: Client, node: String) -> String {
    let nodes: Api<Node> = Api::all(client);
    loop {
        if let Ok(node) = nodes.get(&node).await
            && let Some(info) = node.status.and_then(|status| status.node_info)
        {
            return info.container_runtime_version;
        }
        sleep(ASK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn daemon(metadata: serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn namespace(metadata: serde_json::Value) -> Namespace {
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    const WHEN: &str = "2026-11-23T08:00:00Z";

    #[test]
    fn leaves_with_the_daemon_set_or_the_namespace_and_never_without_having_seen_it() {
        let there = daemon(json!({"name": AGENT}));
        let marked =
            daemon(json!({"name": AGENT, "deletionTimestamp": WHEN, "finalizers": ["foregroundDeletion"]}));
        let ending = namespace(json!({"deletionTimestamp": WHEN}));

        let mut never = Known::default();
        never.daemon_set(None);
        never.namespace(Some(&ending));
        assert!(!never.leaves() && !never.leaves_at_stop());

        let mut known = Known::default();
        known.daemon_set(Some(&there));
        assert!(!known.leaves_at_stop(), "an update");
        known.daemon_set(Some(&marked));
        assert!(known.leaves());
        known.daemon_set(None);
        assert!(known.leaves() && known.leaves_at_stop());
        known.daemon_set(Some(&there));
        assert!(!known.leaves(), "installed again");
        known.namespace(Some(&ending));
        assert!(known.leaves());
        known.namespace(Some(&namespace(json!({}))));
        assert!(!known.leaves());
        known.namespace(None);
        assert!(known.leaves());
    }

    #[test]
    fn pods_that_are_left_for_another_daemon_set_stay() {
        let mut known = Known::default();
        known.daemon_set(Some(&daemon(json!({"name": AGENT}))));
        known.daemon_set(Some(&daemon(
            json!({"name": AGENT, "deletionTimestamp": WHEN, "finalizers": [ORPHAN]}),
        )));
        known.daemon_set(None);
        assert!(!known.leaves(), "the pod runs on");
        assert!(known.leaves_at_stop(), "but nobody is there to start another");
        known.daemon_set(Some(&daemon(json!({"name": AGENT}))));
        assert!(!known.leaves_at_stop());
    }
}
