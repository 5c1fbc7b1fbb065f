//! In two clusters of real Kubernetes.

mod bare;
mod ways;

use std::time::Duration;

use super::Scenario;
use super::place::ClustersSetting;
use crate::kube::Clusters;

/// All of them: first those of clusters that know nothing of each other.
pub(super) fn all() -> Vec<Scenario<Clusters>> {
    let bare = ClustersSetting { podspan: false };
    vec![Scenario {
        setting: bare,
        name: "inside",
        about: "without podspan: pods, services, DNS work inside each cluster, and nothing reaches the other",
        timeout: Duration::from_secs(180),
        run: bare::inside,
    }]
}
