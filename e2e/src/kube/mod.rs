//! Real Kubernetes in network namespaces: an API server alone ([`KubeApi`]), for what only deals with objects,
//! and two clusters ([`Clusters`]) of real kubelets and containerds.

mod api;
mod cgroups;
mod change;
mod clusters;
mod commands;
mod files;
mod go;
mod image;
mod images;
mod join;
mod node;
mod node_process;
mod pki;
mod plan;
mod plane;
mod pod_network;
mod programs;
mod resolve;
mod settings;
mod site;
mod workload;

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::state::KubeRecord;

pub(crate) use api::KubeApi;
pub(crate) use api::KubeHost;
pub(crate) use cgroups::roots as cgroup_roots;
pub(crate) use change::{TAINT, until};
pub(crate) use clusters::{Clusters, is_true};
pub(crate) use commands::{KubeCommand, run};
pub(crate) use go::find as find_go;
pub(crate) use join::{PODSPAN, restarts};
pub(crate) use node_process::{run as run_node, run_init as run_node_init};
pub(crate) use programs::{KubePrograms, Wanted, ensure as ensure_programs};
pub(crate) use resolve::run as resolve;
pub(crate) use site::Site;
pub(crate) use workload::{HEADLESS, NAMESPACE, ProbePod, Probes, SERVICE_PORT, first_packet};

/// How the names of these worlds' namespaces begin.
pub(crate) const PREFIX: &str = "psp-kube-";

/// The namespace of a place.
fn netns(place: &str) -> Netns {
    Netns::named(format!("{PREFIX}{place}"))
}

/// What is to be taken down besides namespaces and processes: mounts and control groups. Each error is noted.
pub(crate) fn tear_down(made: &KubeRecord, note: &mut impl FnMut(&str, Result<()>)) {
    for mount in made.mounts.iter().rev() {
        let result = match nix::mount::umount(mount) {
            // It was not made yet.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot unmount {}", mount.display())),
        };
        note("mount", result);
    }
    for directory in &made.cgroups {
        note("control group", cgroups::remove(directory));
    }
}
