//! podspan's own types. `manifests/base/crds` is generated from them by
//! `cargo run -p podspan-kubernetes --example crds`; a test compares.

mod cluster_set;
mod peer_cluster;
mod schema;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray,
};
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
    let all = [("clustersets.yaml", ClusterSet::crd()), ("peerclusters.yaml", PeerCluster::crd())];
    all.into_iter().map(|(file, definition)| (file, plain(definition))).collect()
}

/// Takes out the formats that are Rust's and not OpenAPI's (the API server would warn of each), and lets an
/// empty `spec` be one.
fn plain(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let Some(schema) = schema else { continue };
        strip(schema);
        // Whoever takes the last setting out by server-side apply leaves null behind, which the default mends.
        if let Some(spec) = schema.properties.as_mut().and_then(|all| all.get_mut("spec")) {
            spec.default = Some(JSON(serde_json::json!({})));
        }
    }
    definition
}

fn strip(schema: &mut JSONSchemaProps) {
    schema.format.take_if(|format| format.starts_with("uint"));
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(strip);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        strip(items);
    }
}
