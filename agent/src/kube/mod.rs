//! The agent in a Kubernetes cluster: where its facts come from, and where its status goes.
//!
//! ```text
//!  API server ──watches──► objects ──► discovery (pure) ──► LocalFacts ──► controller
//!                                                               └──► facts.json (an agent that starts without
//!                                                                    any API server forwards by it)
//!  controller ──Status──► report (pure) ──► writer (one agent holds the lease) ──► PeerClusters, ClusterSet
//!                                     └──► Events
//! ```
//!
//! Nothing on the way of a packet waits for anything here.
//!
//! What the agent's service account needs, and no more:
//!
//! | where | what | verbs |
//! | --- | --- | --- |
//! | cluster | `nodes`, `services`; `servicecidrs.networking.k8s.io` | get list watch |
//! | cluster | `ippools`, `blockaffinities.crd.projectcalico.org`; `ciliumnodes.cilium.io` | get list watch |
//! | cluster | `configmaps`, named `kube-flannel-cfg` (flannel's namespace differs) | get |
//! | cluster | `clustersets`, `peerclusters.podspan.io` | get list watch |
//! | cluster | `peerclusters.podspan.io` | create patch delete |
//! | cluster | `clustersets/status`, `peerclusters/status.podspan.io` | patch |
//! | `kube-system` | `pods` | list |
//! | `kube-system` | `daemonsets.apps`, named `kindnet` | get |
//! | `default` | `events.events.k8s.io` (Events about objects without a namespace are there) | create |
//! | `podspan-system` | `leases.coordination.k8s.io` | create |
//! | `podspan-system` | `leases.coordination.k8s.io`, named `podspan-status` | get update |

use std::sync::Arc;

use podspan_wire::{Grant, NodeName};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::control_socket::Query;
use crate::departed::Present;
use crate::start::end_task;
use crate::state::StateDir;
use writer::Writer;

pub mod changes;
pub mod client;
pub mod events;
pub mod facts;
pub mod lease;
pub mod objects;
pub mod report;
pub mod source;
pub mod watches;
pub mod writer;

/// What runs for as long as the agent does.
pub struct Running {
    /// The names of all Nodes, while this agent writes the cluster's status.
    pub present: watch::Receiver<Present>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// Ends it; nothing of it holds the state directory afterwards.
    pub async fn end(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            end_task(task).await;
        }
    }
}

/// Until the agent ends.
async fn ended(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Starts the source and what writes status. Within a Tokio runtime.
pub fn start(
    client: kube::Client,
    node: NodeName,
    grant: &Grant,
    state: &Arc<StateDir>,
    queries: mpsc::Sender<Query>,
) -> (source::KubernetesFacts, Running) {
    let (stop, stopped) = watch::channel(false);
    let (facts, source) =
        source::start(client.clone(), node.clone(), grant.clone(), state.clone(), stopped.clone());
    let (here, present) = watch::channel(None);
    let writer = Writer::new(client, node, grant.clone(), queries, facts.view.clone(), here);
    (facts, Running { present, stop, tasks: vec![source, tokio::spawn(writer.run(stopped))] })
}
