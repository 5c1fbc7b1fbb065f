//! Everything of a host's network state that podspan, or the lab itself, could leave behind, in a form that
//! can be compared in full: "equal to what was there before".
//!
//! Counters, ages and other things that change by themselves are left out; all else is in.

mod diff;
mod files;
mod kernel;
mod machine;
mod rulesets;
mod sysctls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::netns::Netns;

pub(crate) use diff::ORDER;

/// State by section: in each the lines, or the entries by key, sorted where their order means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Section, key, value.
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl Snapshot {
    /// The state of a namespace, and of the files below `directories`.
    pub(crate) fn of(netns: &Netns, directories: &[PathBuf]) -> Result<Self> {
        Self::take(Some(netns), directories)
    }

    /// The state of the machine itself: its own namespace, and the names of all namespaces.
    pub(crate) fn of_host() -> Result<Self> {
        let mut snapshot = Self::take(None, &[])?;
        let mut names = BTreeMap::new();
        if let Ok(entries) = std::fs::read_dir(crate::netns::DIRECTORY) {
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                // Others on this machine may make and remove namespaces of their own meanwhile.
                if Netns::named(&name) == Netns::named("psp-router") || is_lab_name(&name) {
                    names.insert(name, String::new());
                }
            }
        }
        snapshot.sections.insert("namespaces of the lab".into(), names);
        Ok(snapshot)
    }

    /// The same, with the machine's mounts, its control groups and the directories that Kubernetes would use.
    pub(crate) fn of_machine() -> Result<Self> {
        let mut snapshot = Self::of_host()?;
        machine::add(&mut snapshot.sections)?;
        Ok(snapshot)
    }

    fn take(netns: Option<&Netns>, directories: &[PathBuf]) -> Result<Self> {
        let mut sections = BTreeMap::new();
        kernel::add(netns, &mut sections)?;
        rulesets::add(netns, &mut sections)?;
        sections.insert("sysctls".into(), sysctls::read(netns)?);
        for directory in directories {
            sections.insert(format!("files below {}", directory.display()), files::read(directory)?);
        }
        Ok(Self { sections })
    }

    /// What differs, a line for each; empty if the two are equal.
    pub(crate) fn differences(&self, after: &Self) -> Vec<String> {
        diff::differences(&self.sections, &after.sections)
    }

    /// How many entries there are in all: a snapshot of nothing proves nothing.
    pub(crate) fn len(&self) -> usize {
        self.sections.values().map(BTreeMap::len).sum()
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no snapshot", path.display()))
    }
}

fn is_lab_name(name: &str) -> bool {
    if name.starts_with(crate::kube::PREFIX) {
        return true;
    }
    crate::topology::Shape::ALL.map(crate::topology::Topology::of).iter().any(|topology| {
        topology.fixed_namespaces().iter().any(|netns| netns.name() == name)
            || topology.pods().any(|pod| pod.netns().name() == name)
    })
}

/// Runs a tool in the namespace, or in the machine's own.
fn tool(netns: Option<&Netns>, program: &str, args: &[&str]) -> crate::command::Cmd {
    let cmd = crate::command::Cmd::new(program).args(args);
    match netns {
        Some(netns) => cmd.within(netns),
        None => cmd,
    }
}
