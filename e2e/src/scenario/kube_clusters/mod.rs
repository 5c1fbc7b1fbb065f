//! In two clusters of real Kubernetes.

mod bare;
mod changes;
mod joined;
mod leave;
mod malformed;
mod ways;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;

use super::Scenario;
use super::place::ClustersSetting;
use crate::kube::Clusters;

/// Whether `--soak` was given: what takes long for its own sake takes long.
pub(super) static SOAK: AtomicBool = AtomicBool::new(false);

/// All of them: first those of clusters that know nothing of each other.
pub(super) fn all() -> Vec<Scenario<Clusters>> {
    let bare = |name, about, run| scenario(ClustersSetting::Bare, name, about, run);
    let joined = |name, about, run| scenario(ClustersSetting::Joined, name, about, run);
    vec![
        bare(
            "inside",
            "without podspan: pods, services, DNS work inside each cluster, and nothing reaches the other",
            bare::inside,
        ),
        joined(
            "reach",
            "pods and nodes reach the other cluster's pods and ClusterIPs, IPv4 and IPv6, pods under their own address",
            joined::reach,
        ),
        joined(
            "headless",
            "a headless service of the other cluster by the other cluster's DNS",
            joined::headless,
        ),
        joined(
            "tainted",
            "a node that most pods may not use has its agent, and its pods are reached",
            joined::tainted,
        ),
        joined("told", "PeerClusters and the ClusterSet tell what a person asks at 3 a.m.", joined::told),
        joined(
            "first-packet",
            "a fresh pod's first packet, sent as it starts, is not lost",
            changes::first_packet,
        ),
        joined(
            "gateway-moved",
            "a gateway label taken off and put back, with traffic going on",
            changes::gateway_moved,
        ),
        joined(
            "agent-rolled",
            "the agents of a cluster replaced one by one, with traffic going on",
            changes::agent_rolled,
        ),
        joined(
            "api-away",
            "an API server away for half a minute (ten with --soak), with traffic going on; then a change",
            changes::api_away,
        ),
        joined("kubelet-restarted", "kubelet killed, with traffic going on", changes::kubelet_restarted),
        joined(
            "service-range-added",
            "a ServiceCIDR added: its Services are reached from the other cluster",
            changes::service_range_added,
        ),
        joined(
            "malformed",
            "objects that make no sense: each is named, and what worked goes on",
            malformed::malformed,
        ),
        joined("node-added", "a node added, made a gateway, and lost without a word", changes::node_added),
        joined(
            "pod-range-added",
            "a second range of pod addresses: granted, joined, and a node in it",
            changes::pod_range_added,
        ),
        joined("upgraded", "podspan upgrade to another image, and to none", changes::upgraded),
        joined("node-rebooted", "a node's power cut, its namespace made anew", changes::node_rebooted),
        scenario(
            ClustersSetting::Leaving,
            "deleted",
            "kubectl delete -k: nodes and clusters as before, pods run on; joined again, also while agents still leave",
            leave::deleted,
        ),
        scenario(
            ClustersSetting::Leaving,
            "entered",
            "agents that may enter pods set the routes in those that were there before podspan",
            leave::entered,
        ),
        scenario(
            ClustersSetting::Leaving,
            "leave",
            "podspan leave: nodes, clusters and pods exactly as before, and pods run on",
            leave::leave,
        ),
    ]
}

fn scenario(
    setting: ClustersSetting,
    name: &'static str,
    about: &'static str,
    run: fn(&mut Clusters) -> Result<()>,
) -> Scenario<Clusters> {
    Scenario { setting, name, about, timeout: Duration::from_secs(900), run }
}
