//! What a world with real Kubernetes in it could leave behind on the machine besides network state: mounts,
//! control groups, and the directories that kubelet, containerd and CNI plugins use.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

/// Where nodes keep things; a node of the lab has all of these for itself.
const DIRECTORIES: [&str; 11] = [
    "/etc/cni/net.d",
    "/etc/kubernetes",
    "/opt/cni/bin",
    "/run/containerd",
    "/run/flannel",
    "/run/podspan",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/podspan",
    "/var/log/pods",
];

pub(super) fn add(sections: &mut BTreeMap<String, BTreeMap<String, String>>) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    sections.insert("mounts".into(), mounted(&mounts));
    sections.insert("control groups of the lab".into(), control_groups());
    let directories = DIRECTORIES.into_iter().filter(|directory| Path::new(directory).exists());
    sections.insert(
        "directories of Kubernetes".into(),
        directories.map(|directory| (directory.to_owned(), String::new())).collect(),
    );
    Ok(())
}

/// Mount points with their kinds (proc(5), mountinfo); network namespaces are a section of their own.
fn mounted(text: &str) -> BTreeMap<String, String> {
    let parse = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let point = head.split(' ').nth(4)?;
        let kind = tail.split(' ').next()?;
        let is_netns = Path::new(point).starts_with(crate::netns::DIRECTORY);
        (!is_netns).then(|| (point.to_owned(), kind.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

/// With version 1 one hierarchy for each controller, with version 2 one for all.
fn control_groups() -> BTreeMap<String, String> {
    crate::kube::cgroup_roots()
        .into_iter()
        .filter(|path| path.exists())
        .map(|path| (path.display().to_string(), String::new()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_and_namespaces_left_to_their_own_section() {
        let text = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                    30 22 0:5 / /run/podspan-lab/disk rw shared:1 - tmpfs tmpfs rw\n\
                    31 22 0:4 net:[1] /run/netns/psp-router rw - nsfs nsfs rw\n";
        let mounts = mounted(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts["/run/podspan-lab/disk"], "tmpfs");
    }
}
