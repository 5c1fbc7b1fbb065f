//! Taking a world down from its record alone, so that it works after any crash.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::kube;
use crate::netns::{self, Netns};
use crate::process::ProcessId;
use crate::snapshot::Snapshot;
use crate::state::{self, Record};

/// How long a daemon has for its own clean-up.
const GRACE: Duration = Duration::from_secs(5);

/// What is left after a teardown; nothing, if all went well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leftovers(pub(crate) Vec<String>);

impl Leftovers {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Leftovers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Ends the daemons, removes namespaces and files, and compares the host in full with what it was before.
/// Goes on past every error; each becomes part of what is told to be left.
pub(crate) fn tear_down(record: &Record) -> Result<Leftovers> {
    let before_path = state::path("before.json");
    let before = before_path.exists().then(|| Snapshot::load(&before_path)).transpose();
    let mut left = Vec::new();
    let mut note = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            left.push(format!("{what}: {error:#}"));
        }
    };
    end_all(record, &mut note);
    for name in record.namespaces.iter().rev() {
        let netns = Netns::named(name);
        note(name, end_strays(&netns));
        note(name, netns.remove());
    }
    if let Some(made) = &record.kube {
        kube::tear_down(made, &mut note);
    }
    if record.made_netns_mount {
        note(netns::DIRECTORY, unmake_netns_directory());
    }
    match before {
        Ok(Some(before)) => match super::look_at_machine(record) {
            Ok(after) => left.extend(before.differences(&after)),
            Err(error) => left.push(format!("the host could not be looked at: {error:#}")),
        },
        Ok(None) => {}
        Err(error) => left.push(format!("the look at the host from before is lost: {error:#}")),
    }
    if left.is_empty() {
        std::fs::remove_dir_all(state::ROOT).with_context(|| format!("cannot remove {}", state::ROOT))?;
    }
    Ok(Leftovers(left))
}

/// All at once, so that their times to end do not add up.
fn end_all(record: &Record, note: &mut impl FnMut(&str, Result<()>)) {
    for daemon in &record.daemons {
        // An API server waits long for watches to end, and nothing of its is kept.
        let is_api = daemon.name.starts_with("kube-apiserver");
        note(&daemon.name, daemon.process.signal(if is_api { Signal::SIGKILL } else { Signal::SIGTERM }));
    }
    let end = Instant::now() + GRACE;
    for daemon in &record.daemons {
        let grace = end.saturating_duration_since(Instant::now());
        note(&daemon.name, daemon.process.end(grace).map(drop));
    }
}

/// Ends what else runs in the namespace: a shell from `lab exec`, say.
fn end_strays(netns: &Netns) -> Result<()> {
    for pid in netns.processes()? {
        if let Ok(process) = ProcessId::of(pid.unsigned_abs()) {
            process.signal(Signal::SIGKILL)?;
            process.wait(GRACE)?;
        }
    }
    Ok(())
}

/// `ip netns` makes its directory a mount point at its first use; if that was the lab's doing and nobody else
/// has namespaces there, it becomes again what it was.
fn unmake_netns_directory() -> Result<()> {
    let directory = Path::new(netns::DIRECTORY);
    let is_empty = std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty {
        // Busy means that somebody has come to use it meanwhile, which is their right.
        match nix::mount::umount(directory) {
            Ok(()) | Err(nix::errno::Errno::EBUSY | nix::errno::Errno::EINVAL) => {}
            Err(error) => return Err(error).context("cannot unmount"),
        }
        std::fs::remove_dir(directory).ok();
    }
    Ok(())
}
