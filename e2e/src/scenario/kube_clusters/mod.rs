//! In two clusters of real Kubernetes.

mod bare;
mod joined;
mod leave;
mod ways;

use std::time::Duration;

use anyhow::Result;

use super::Scenario;
use super::place::ClustersSetting;
use crate::kube::Clusters;

/// All of them: first those of clusters that know nothing of each other.
pub(super) fn all() -> Vec<Scenario<Clusters>> {
    let bare = |name, about, run| scenario(ClustersSetting { podspan: false }, name, about, run);
    let joined = |name, about, run| scenario(ClustersSetting { podspan: true }, name, about, run);
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
        joined("told", "PeerClusters and the ClusterSet tell what a person asks at 3 a.m.", joined::told),
        joined("leave", "podspan leave: nodes and clusters exactly as before, pods run on", leave::leave),
    ]
}

fn scenario(
    setting: ClustersSetting,
    name: &'static str,
    about: &'static str,
    run: fn(&mut Clusters) -> Result<()>,
) -> Scenario<Clusters> {
    Scenario { setting, name, about, timeout: Duration::from_secs(300), run }
}
