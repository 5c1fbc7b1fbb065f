//! What podspan reads from and writes to a Kubernetes API server.
//!
//! Three things, none of which does IO:
//!
//! - [`names`]: every name by which podspan's parts find each other in a cluster;
//! - [`crd`]: the types `ClusterSet` and `PeerCluster`, from which `manifests/base/crds` is generated;
//! - [`discovery`]: objects of the API server in, facts about a node and what contradicts them out.

pub mod conditions;
pub mod crd;
pub mod discovery;
pub mod names;

pub use crd::{ClusterSet, PeerCluster};
