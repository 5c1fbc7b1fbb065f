//! podspan's own types. `manifests/base/crds` is generated from them by
//! `cargo run -p podspan-kubernetes --example crds`; a test compares.

mod cluster_set;
mod peer_cluster;
mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

pub use cluster_set::{
    ClusterSet, ClusterSetSpec, ClusterSetStatus, Cni, CniMode, Discovered, DiscoveredCidr, EndpointSource,
    Endpoints, ServiceReference,
};
pub use peer_cluster::{GatewayStatus, Gateways, PeerCluster, PeerClusterSpec, PeerClusterStatus, PeerState};
pub use schema::CidrText;

/// The definitions, each with the name of its file.
#[must_use]
pub fn definitions() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![("clustersets.yaml", ClusterSet::crd()), ("peerclusters.yaml", PeerCluster::crd())]
}
