//! Processes by an identity that is never another's: the id together with the time of the start.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks between the machine's start and the process's (proc(5), `stat` field 22).
    pub(crate) started: u64,
}

impl ProcessId {
    /// The process that has the id `pid` now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid)?;
        let (_, started) = stat(pid).with_context(|| format!("there is no process {pid}"))?;
        Ok(Self { pid, started })
    }

    /// Whether it runs; one that has ended and waits for its parent does not. A killed one has not ended before its
    /// last thread has: its sockets and locks are there so long, though its first thread may be a zombie already.
    pub(crate) fn is_alive(self) -> bool {
        // If it is a child of this process, its end is taken note of here.
        waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG)).ok();
        stat(self.pid)
            .is_some_and(|(state, started)| started == self.started && runs(state, threads(self.pid)))
    }

    /// Sends it a signal, if it still is.
    pub(crate) fn signal(self, signal: Signal) -> Result<()> {
        if self.is_alive() {
            match kill(Pid::from_raw(self.pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(error).context(format!("cannot send {signal} to {}", self.pid)),
            }
        }
        Ok(())
    }

    /// Waits until it has ended.
    pub(crate) fn wait(self, timeout: Duration) -> Result<()> {
        let end = Instant::now() + timeout;
        while self.is_alive() {
            if Instant::now() > end {
                bail!("process {} has not ended within {} s", self.pid, timeout.as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Asks it to end, and ends it if it has not within `grace`; tells whether it ended by itself.
    pub(crate) fn end(self, grace: Duration) -> Result<bool> {
        self.signal(Signal::SIGTERM)?;
        if self.wait(grace).is_ok() {
            return Ok(true);
        }
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(5))?;
        Ok(false)
    }

    /// What it takes (proc(5)).
    pub(crate) fn size(self) -> Result<Size> {
        let directory = std::path::PathBuf::from(format!("/proc/{}", self.pid));
        let status = std::fs::read_to_string(directory.join("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let memory = resident.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
        let descriptors = std::fs::read_dir(directory.join("fd"))?.count();
        Ok(Size { process: self, memory, descriptors })
    }
}

/// What a process takes at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) process: ProcessId,
    /// Resident, KiB.
    pub(crate) memory: u64,
    pub(crate) descriptors: usize,
}

/// Whether a process runs whose first thread is in this state.
fn runs(state: char, threads: usize) -> bool {
    state != 'Z' || threads > 1
}

/// How many threads a process has; a zombie among them counts.
fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// State and start time of a process (proc(5)).
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too; the fields after the last one are plain.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_until_it_ends() {
        #[expect(clippy::zombie_processes, reason = "ProcessId::wait reaps it, which is what is tested")]
        let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        assert!(process.is_alive());
        let other = ProcessId { started: process.started + 1, ..process };
        assert!(!other.is_alive(), "another process of the same id");
        other.signal(Signal::SIGKILL).unwrap();
        assert!(process.is_alive(), "what is signalled is never another process");
        assert!(process.end(Duration::from_secs(5)).unwrap());
        assert!(!process.is_alive());
    }

    #[test]
    fn this_process_has_a_size() {
        let own = ProcessId::of(std::process::id()).unwrap().size().unwrap();
        assert!(own.memory > 100 && own.descriptors >= 3, "{own:?}");
    }

    #[test]
    fn a_process_lives_as_long_as_its_last_thread() {
        let cases = [('S', 1, true), ('R', 3, true), ('Z', 3, true), ('Z', 2, true), ('Z', 1, false)];
        for (state, threads, alive) in cases {
            assert_eq!(runs(state, threads), alive, "{state} {threads}");
        }
        assert!(threads(i32::try_from(std::process::id()).unwrap()) > 1, "libtest's own and this one");
        assert_eq!(threads(i32::MAX), 0);
    }
}
