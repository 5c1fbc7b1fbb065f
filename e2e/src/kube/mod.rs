//! Real Kubernetes in network namespaces: an API server alone ([`KubeApi`]), for what only deals with objects,
//! and two clusters ([`Clusters`]) of real kubelets and containerds.

mod api;
mod files;
mod pki;
mod plane;
mod programs;
mod site;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::state::KubeRecord;

pub(crate) use api::{KubeApi, KubeHost};
pub(crate) use programs::{KubePrograms, Wanted, ensure as ensure_programs};

/// How the names of these worlds' namespaces begin.
pub(crate) const PREFIX: &str = "psp-kube-";

/// The namespace of a place.
fn netns(place: &str) -> Netns {
    Netns::named(format!("{PREFIX}{place}"))
}

/// The directory below which all control groups of the lab are, in each hierarchy.
pub(crate) fn cgroup_roots() -> impl Iterator<Item = PathBuf> {
    const BASE: &str = "/sys/fs/cgroup";
    const NAME: &str = "podspan-lab";
    let below = std::fs::read_dir(BASE).into_iter().flatten().flatten().map(|entry| entry.path());
    // Version 1: every directory there is a hierarchy. Version 2: all of it is one.
    let hierarchies = below.filter(|path| path.join("cgroup.procs").exists());
    std::iter::once(PathBuf::from(BASE)).chain(hierarchies).map(|path| path.join(NAME))
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
}
