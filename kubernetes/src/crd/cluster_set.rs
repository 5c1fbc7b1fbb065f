//! `ClusterSet`: the settings of this cluster, and how it stands.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::CidrText;

/// The settings of this cluster within its cluster set; the one named `podspan` counts. All are optional:
/// what is left out is found by itself.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "podspan.io",
    version = "v1alpha1",
    kind = "ClusterSet",
    plural = "clustersets",
    singular = "clusterset",
    doc = "The settings of this cluster within its cluster set, and how it stands. The one named podspan counts.",
    status = "ClusterSetStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Cluster","type":"string","jsonPath":".status.cluster"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Nodes","type":"integer","jsonPath":".status.nodes"}"#,
    printcolumn = r#"{"name":"Gateways","type":"integer","jsonPath":".status.gateways"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct ClusterSetSpec {
    /// The cluster's pod CIDRs, in place of those that are found. A node's own pod CIDRs that lie outside are
    /// not announced.
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_cidrs: Option<Vec<CidrText>>,
    /// The cluster's service CIDRs, in place of those that are found.
    #[serde(rename = "serviceCIDRs", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub service_cidrs: Option<Vec<CidrText>>,
    /// At which addresses other clusters reach this cluster's gateways. A node's annotation
    /// `podspan.io/endpoints` wins over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
    /// The tunnel's MTU in bytes; it follows the nodes' interfaces unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65455))]
    pub mtu: Option<u32>,
    /// How podspan joins the nodes' CNI configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<Cni>,
}

/// Where a gateway's endpoints come from: `from`, or a Service; a Service wins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    /// Which of the Node's addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<EndpointSource>,
    /// A Service of type LoadBalancer whose addresses lead to the gateway. It must lead to one gateway only:
    /// a tunnel is held with one node, not with any of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceReference>,
}

/// Which addresses of a Node are endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EndpointSource {
    /// Those of type ExternalIP where there are any, else those of type InternalIP.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Those of type ExternalIP.
    #[serde(rename = "nodeExternalIP")]
    NodeExternalIp,
    /// Those of type InternalIP.
    #[serde(rename = "nodeInternalIP")]
    NodeInternalIp,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReference {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// How podspan joins the nodes' CNI configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cni {
    /// The way; `auto` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<CniMode>,
}

/// How podspan joins a node's CNI configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CniMode {
    /// Whichever way suits what stands there.
    #[default]
    Auto,
    /// An entry at the end of the primary's list of plugins.
    Append,
    /// A copy of the primary's list of its own, sorted first.
    Owned,
    /// A file in the drop-in directory of CNI 1.1.
    DropIn,
    /// Not at all.
    Off,
}

/// How this cluster stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSetStatus {
    /// The cluster set: its root's public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_set: Option<String>,
    /// This cluster's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// How many nodes the cluster has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// How many of them are gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<u32>,
    /// The brokers, `https://HOST:PORT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub brokers: Vec<String>,
    /// What was found, and where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovered: Option<Discovered>,
    /// `Ready`, `Granted`, `NoConflict`, `BrokerConnected`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the settings that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The node whose agent wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_by: Option<String>,
}

/// The CIDRs of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Discovered {
    /// Of its pods.
    #[serde(rename = "podCIDRs", default)]
    pub pod_cidrs: Vec<DiscoveredCidr>,
    /// Of its services.
    #[serde(rename = "serviceCIDRs", default)]
    pub service_cidrs: Vec<DiscoveredCidr>,
}

/// A CIDR, and where it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiscoveredCidr {
    /// The CIDR.
    pub cidr: String,
    /// Where it was found, such as `ServiceCIDR kubernetes`.
    pub from: String,
}
