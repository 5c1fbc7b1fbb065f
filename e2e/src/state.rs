//! What the lab has made, on disk before it is made, so that `lab down` finds it after any crash.
//!
//! Everything is below one directory, [`ROOT`]; beside it there are only the network namespaces, named
//! `psp-...`, where `ip netns` keeps them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::command::Cmd;
use crate::process::ProcessId;
use crate::rules::{Backend, Variant};
use crate::topology::{Dual, Shape};

/// The lab's directory.
pub(crate) const ROOT: &str = "/run/podspan-lab";

/// How far the world is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// It is being made, used by a run of the lab, or taken down; without such a run it is a leftover.
    Working,
    /// It stands and is meant to stay until `lab down`.
    Up,
}

/// A process that lives on by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Daemon {
    /// What it is to a person: `agent alpha-1`, `probe server alpha/pod1`.
    pub(crate) name: String,
    pub(crate) process: ProcessId,
}

/// What a world with real Kubernetes in it has besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KubeRecord {
    /// Two clusters, or an API server alone.
    pub(crate) clusters: bool,
    /// Mount points, in the order in which they were made.
    pub(crate) mounts: Vec<PathBuf>,
    /// Directories of control groups, with all below them.
    pub(crate) cgroups: Vec<PathBuf>,
}

/// The record of what was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) stage: Stage,
    /// When it was begun, seconds since 1970.
    pub(crate) begun: u64,
    pub(crate) variant: Variant,
    #[serde(default)]
    pub(crate) shape: Shape,
    /// Whether podspan runs in it.
    pub(crate) podspan: bool,
    /// Names of the namespaces, in the order in which they were made.
    pub(crate) namespaces: Vec<String>,
    pub(crate) daemons: Vec<Daemon>,
    /// The pods' addresses, by `CLUSTER/POD`, as the CNI chain gave them.
    pub(crate) pods: BTreeMap<String, Dual<IpAddr>>,
    /// Whether /run/netns was no mount point before, as `ip netns` makes it one.
    pub(crate) made_netns_mount: bool,
    /// Set if Kubernetes runs in it.
    #[serde(default)]
    pub(crate) kube: Option<KubeRecord>,
}

impl Record {
    /// The record of a world with real Kubernetes in it, where nothing of the rules' variants is of any meaning.
    pub(crate) fn of_kube(clusters: bool, made_netns_mount: bool) -> Self {
        let variant = Variant { backend: Backend::IptablesNft, cluster_cidr: true };
        let kube = KubeRecord { clusters, mounts: Vec::new(), cgroups: Vec::new() };
        Self { kube: Some(kube), ..Self::new(variant, made_netns_mount) }
    }

    /// Starts a process that lives on until it is ended; its output goes to a file named after it.
    pub(crate) fn start_daemon(&mut self, name: &str, cmd: &Cmd) -> Result<ProcessId> {
        let child = cmd.start(&log_path(name)?)?;
        let process = ProcessId::of(child.id())?;
        self.daemons.retain(|daemon| daemon.name != name);
        self.daemons.push(Daemon { name: name.to_owned(), process });
        self.save()?;
        Ok(process)
    }

    /// The same for a program that is talked to through pipes, and that ends when its standard input does.
    pub(crate) fn start_talking(&mut self, name: &str, cmd: &Cmd) -> Result<Child> {
        let child = cmd.start_talking(&log_path(name)?)?;
        let process = ProcessId::of(child.id())?;
        self.daemons.retain(|daemon| daemon.name != name);
        self.daemons.push(Daemon { name: name.to_owned(), process });
        self.save()?;
        Ok(child)
    }

    /// The process of that name, as it was last started.
    pub(crate) fn daemon(&self, name: &str) -> Result<ProcessId> {
        let daemon = self.daemons.iter().find(|daemon| daemon.name == name);
        Ok(daemon.with_context(|| format!("{name} was never started"))?.process)
    }

    pub(crate) fn new(variant: Variant, made_netns_mount: bool) -> Self {
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            stage: Stage::Working,
            begun,
            variant,
            shape: Shape::default(),
            podspan: false,
            namespaces: Vec::new(),
            daemons: Vec::new(),
            pods: BTreeMap::new(),
            made_netns_mount,
            kube: None,
        }
    }

    fn path() -> PathBuf {
        path("world.json")
    }

    /// The record on disk, if there is one.
    pub(crate) fn load() -> Result<Option<Self>> {
        let path = Self::path();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let record = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is not the lab's record: remove the directory {ROOT} and the namespaces psp-* by hand",
                path.display()
            )
        })?;
        Ok(Some(record))
    }

    /// Puts it on disk whole.
    pub(crate) fn save(&self) -> Result<()> {
        let path = Self::path();
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A path below the lab's directory.
pub(crate) fn path(below: impl AsRef<Path>) -> PathBuf {
    Path::new(ROOT).join(below)
}

/// Where a daemon's output goes.
pub(crate) fn log_path(name: &str) -> Result<PathBuf> {
    Ok(directory("logs")?.join(format!("{}.log", name.replace([' ', '/'], "-"))))
}

/// Makes a directory below the lab's, with its parents, and gives its path.
pub(crate) fn directory(below: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path(below);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// The right to change the world: at most one run of the lab has it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes it, or says who has it.
    pub(crate) fn take() -> Result<Self> {
        loop {
            std::fs::create_dir_all(ROOT)
                .and_then(|()| std::fs::set_permissions(ROOT, PermissionsExt::from_mode(0o700)))
                .with_context(|| format!("cannot make the lab's directory {ROOT}"))?;
            let path = path("lock");
            let file = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder).ok();
                    bail!(
                        "another run of the lab is under way (process {}): wait for it, or stop it with Ctrl-C",
                        holder.trim()
                    );
                }
                Err((_, error)) => return Err(error).context(format!("cannot lock {}", path.display())),
            };
            // `lab down` removes the file while it holds it: then this is the lock of nothing any more.
            let same = std::fs::metadata(&path).is_ok_and(|now| {
                file.metadata().is_ok_and(|mine| (mine.ino(), mine.dev()) == (now.ino(), now.dev()))
            });
            if same {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(Self { _file: file });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_disk() {
        let variant = Variant { backend: Backend::IptablesNft, cluster_cidr: false };
        let mut record = Record::new(variant, true);
        record.namespaces.push("psp-router".into());
        record.daemons.push(Daemon { name: "x".into(), process: ProcessId { pid: 1, started: 2 } });
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
