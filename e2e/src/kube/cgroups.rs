//! The control groups below which the nodes' pods are.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const BASE: &str = "/sys/fs/cgroup";
const NAME: &str = "podspan-lab";

/// The directory below which all control groups of the lab are, in each hierarchy.
///
/// With version 1 every directory below the base is a hierarchy, with version 2 the base itself is the only one.
pub(crate) fn roots() -> Vec<PathBuf> {
    let is_hierarchy = |path: &PathBuf| path.join("cgroup.procs").exists();
    let base = PathBuf::from(BASE);
    let all = if is_hierarchy(&base) {
        vec![base]
    } else {
        let entries = std::fs::read_dir(&base).into_iter().flatten().flatten();
        let mut all: Vec<_> =
            entries.filter(|entry| !entry.path().is_symlink()).map(|entry| entry.path()).collect();
        all.retain(is_hierarchy);
        all.sort();
        all
    };
    all.into_iter().map(|path| path.join(NAME)).collect()
}

/// A node's control group, as kubelet's `cgroupRoot` names it.
pub(crate) fn of_node(name: &str) -> String {
    format!("/{NAME}/{name}")
}

/// Makes a node's control group in every hierarchy.
pub(crate) fn make(name: &str) -> Result<()> {
    for root in roots() {
        for directory in [root.clone(), root.join(name)] {
            match std::fs::create_dir(&directory) {
                Ok(()) => prepare(&directory),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error.into()),
            }
            .with_context(|| format!("cannot make the control group {}", directory.display()))?;
        }
    }
    Ok(())
}

/// A new cpuset of version 1 is empty and takes no process; version 2 gives children no controllers by itself.
fn prepare(directory: &Path) -> Result<()> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), directory.join(file));
        if from.exists() && to.exists() && !parent.join("cgroup.controllers").exists() {
            std::fs::write(to, std::fs::read(from)?)?;
        }
    }
    let available = parent.join("cgroup.controllers");
    if available.exists() && parent.join("cgroup.subtree_control").exists() {
        let names = std::fs::read_to_string(available)?;
        for name in names.split_ascii_whitespace() {
            // One that cannot be given away is missed only if kubelet asks for it, and then kubelet names it.
            std::fs::write(parent.join("cgroup.subtree_control"), format!("+{name}")).ok();
        }
    }
    Ok(())
}

/// Removes a group with all below it; processes that are just ending hold it for a moment.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match remove_once(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > end => {
                return Err(error)
                    .with_context(|| format!("cannot remove the control group {}", directory.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn remove_once(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_once(&entry.path())?;
        }
    }
    std::fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_hierarchy() {
        assert!(roots().iter().all(|root| root.ends_with(NAME)));
        assert_eq!(of_node("alpha-1"), "/podspan-lab/alpha-1");
        remove(Path::new("/sys/fs/cgroup/podspan-lab-never-made")).unwrap();
    }
}
