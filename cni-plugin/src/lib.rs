//! The chained CNI plugin of podspan: the plugin's commands, and the routes of a pod.
//!
//! The plugin stands behind the cluster's own CNI plugins. It tells the local agent of the pod over a unix
//! socket, sets the pod's routes towards the other clusters, and passes on what the earlier plugins
//! returned, unchanged. It never waits for another cluster: all it needs is on this node, and everything
//! it does ends within `timeoutMs`.
//!
//! "CNI spec" means the Container Network Interface Specification, version 1.1.0
//! (<https://www.cni.dev/docs/spec/>); section 1 is the configuration format, section 2 the execution
//! protocol, section 3 the execution of configurations by a runtime, section 5 the result types.
//!
//! [`pod_routes`] is shared with the agent, which repairs pods in place when the other clusters' CIDRs or
//! the MTU change; [`pending`] is how the agent learns of pods that were added while it was down, [`results`] how
//! it does of those that were there before podspan.

pub mod agent;
pub mod config;
pub mod environment;
pub mod error;
mod netlink;
pub mod netns;
pub mod pending;
pub mod plugin;
pub mod pod_routes;
pub mod prev_result;
pub mod results;
pub mod version;
