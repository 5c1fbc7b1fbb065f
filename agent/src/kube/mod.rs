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
//! | `default` | `events.events.k8s.io` (Events about objects without a namespace are there) | create patch |
//! | `podspan-system` | `leases.coordination.k8s.io` | create |
//! | `podspan-system` | `leases.coordination.k8s.io`, named `podspan-status` | get update |

pub mod client;
