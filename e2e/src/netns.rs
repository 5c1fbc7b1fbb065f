//! Network namespaces by name, kept where `ip netns` keeps them (/run/netns).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::command::Cmd;

/// Where `ip netns` keeps its namespaces.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A named network namespace. The value is only the name: it need not exist.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Netns(String);

impl Netns {
    /// The namespace called `name`.
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// The file by which it is entered.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.0)
    }

    pub(crate) fn exists(&self) -> bool {
        self.path().exists()
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(self.path())
            .with_context(|| format!("the namespace {} cannot be entered: is the lab up?", self.0))
    }

    /// Makes it; fails if there is one of that name.
    pub(crate) fn create(&self) -> Result<()> {
        if self.exists() {
            bail!(
                "a network namespace {0} is there already and is not the lab's; if nobody needs it: ip netns del {0}",
                self.0
            );
        }
        Cmd::new("ip").args(["netns", "add", &self.0]).run_ok()?;
        Ok(())
    }

    /// Removes it, if it is there.
    pub(crate) fn remove(&self) -> Result<()> {
        if self.exists() {
            Cmd::new("ip").args(["netns", "del", &self.0]).run_ok()?;
        }
        Ok(())
    }

    /// Runs `work` in a thread that has entered the namespace: sockets made and `/proc/sys/net` read there
    /// are the namespace's. Use `/proc/thread-self/net`, never `/proc/net`, for the rest.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter the namespace {}", self.0))?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The processes that are in it, by id.
    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let text = Cmd::new("ip").args(["netns", "pids", &self.0]).text()?;
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }
}

impl std::fmt::Display for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// Moves the calling thread into the namespace of `file`. Async-signal-safe: for use between fork and exec.
pub(crate) fn enter_raw(file: &File) -> std::io::Result<()> {
    // SAFETY: setns takes an open descriptor and a flag and touches no memory of ours.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
