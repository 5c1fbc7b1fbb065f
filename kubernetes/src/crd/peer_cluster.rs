//! `PeerCluster`: how another cluster can be reached from this one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Another cluster of the cluster set; its name is the cluster's id. Written by the agents alone: nothing
/// is set here.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "podspan.io",
    version = "v1alpha1",
    kind = "PeerCluster",
    plural = "peerclusters",
    singular = "peercluster",
    doc = "Another cluster of the cluster set and how it can be reached. Written by the agents alone.",
    status = "PeerClusterStatus",
    derive = "Default",
    derive = "PartialEq",
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Gateways","type":"string","jsonPath":".status.gateways.summary","description":"gateways that answer / all gateways"}"#,
    printcolumn = r#"{"name":"RTT","type":"string","jsonPath":".status.rtt"}"#,
    printcolumn = r#"{"name":"Loss","type":"number","jsonPath":".status.lossPercent","description":"percent; empty until measured"}"#,
    printcolumn = r#"{"name":"MTU","type":"integer","jsonPath":".status.pathMTU"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct PeerClusterSpec {}

/// How the cluster can be reached, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerClusterStatus {
    /// In one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PeerState>,
    /// Its gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<Gateways>,
    /// The round trip to the nearest gateway, for a person: smoothed over probes inside the tunnels, or that of the last
    /// handshake before one was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt: Option<String>,
    /// The same in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_microseconds: Option<u64>,
    /// Percent of the last probes that gateways which can be reached did not answer; absent until measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_percent: Option<f64>,
    /// The largest packet that goes through the tunnels whole, in bytes.
    #[serde(rename = "pathMTU", default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// Bytes of inner packets received since the agent of `observedBy` started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_bytes: Option<u64>,
    /// Bytes of inner packets sent since the agent of `observedBy` started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_bytes: Option<u64>,
    /// Its pod CIDRs.
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<String>,
    /// Its service CIDRs.
    #[serde(rename = "serviceCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    pub service_cidrs: Vec<String>,
    /// The node whose agent saw this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_by: Option<String>,
    /// `Ready`, `Renewed`, `RecordsAccepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How a cluster can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PeerState {
    /// Every gateway answers.
    Connected,
    /// Some gateways, or only some of their lanes, answer.
    Degraded,
    /// No gateway answers.
    Disconnected,
}

/// The gateways of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gateways {
    /// How many answer.
    pub up: u32,
    /// How many there are.
    pub total: u32,
    /// `UP/TOTAL`.
    pub summary: String,
    /// Each of them; at most 64.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub list: Vec<GatewayStatus>,
}

/// A gateway of another cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// The node's name.
    pub name: String,
    /// Where its first lane is sent to, `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `up`, `degraded`, `connecting` or `down`.
    pub state: String,
    /// The shortest round trip of its lanes, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_microseconds: Option<u64>,
    /// Percent of the last probes that it did not answer; absent until measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_percent: Option<f64>,
    /// When the last handshake with it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake_time: Option<Time>,
}
