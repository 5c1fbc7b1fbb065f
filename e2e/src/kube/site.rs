//! What every world has that is made of plain namespaces: those with real Kubernetes in them, and tunnels. The record,
//! the lock, the namespaces and processes.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::command::Cmd;
use crate::netns::Netns;
use crate::process::ProcessId;
use crate::rules::{Backend, Variant};
use crate::screen::Screen;
use crate::signals;
use crate::state::{Lock, Record, Stage};
use crate::world::{self, Leftovers};

/// A world that this run of the lab has made. Dropping it takes it down, unless it was told to stay.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) record: Record,
    pub(crate) screen: Screen,
    lock: Option<Lock>,
    stays: bool,
}

impl Site {
    /// Takes the lock and makes the namespaces, with their loopback up.
    pub(crate) fn create(screen: Screen, clusters: bool, namespaces: &[Netns]) -> Result<Self> {
        Self::of(screen, namespaces, |made_mount| Record::of_kube(clusters, made_mount))
    }

    /// The same for a world that Kubernetes has no part in.
    pub(crate) fn plain(screen: Screen, namespaces: &[Netns]) -> Result<Self> {
        let variant = Variant { backend: Backend::IptablesNft, cluster_cidr: true };
        Self::of(screen, namespaces, |made_mount| Record::new(variant, made_mount))
    }

    fn of(screen: Screen, namespaces: &[Netns], record: impl FnOnce(bool) -> Record) -> Result<Self> {
        let (lock, record) = world::begin(screen, namespaces, record)?;
        let site = Self { record, screen, lock: Some(lock), stays: false };
        for netns in namespaces {
            make_netns(netns)?;
        }
        Ok(site)
    }

    /// The site that stands, made by an earlier run: to be looked at, not to be changed.
    pub(crate) fn standing(record: Record, screen: Screen) -> Self {
        Self { record, screen, lock: None, stays: true }
    }

    /// Removes a namespace with all that runs in it, to be made again.
    pub(crate) fn remove_netns(&mut self, netns: &Netns) -> Result<()> {
        for pid in netns.processes()? {
            if let Ok(process) = ProcessId::of(pid.unsigned_abs()) {
                process.signal(Signal::SIGKILL)?;
                process.wait(Duration::from_secs(10))?;
            }
        }
        netns.remove()
    }

    /// Makes one more namespace, or one that was removed.
    pub(crate) fn add_netns(&mut self, netns: &Netns) -> Result<()> {
        if !self.record.namespaces.iter().any(|name| name == netns.name()) {
            self.record.namespaces.push(netns.name().to_owned());
            self.record.save()?;
        }
        make_netns(netns)
    }

    /// Starts a process that lives on until it is ended.
    pub(crate) fn start(&mut self, name: &str, cmd: &Cmd) -> Result<ProcessId> {
        self.record.start_daemon(name, cmd)
    }

    /// Ends the process of that name, by force if it takes longer than `grace`; and at once without one.
    pub(crate) fn end(&mut self, name: &str, grace: Option<Duration>) -> Result<()> {
        let process = self.record.daemon(name)?;
        match grace {
            Some(grace) => process.end(grace).map(drop),
            None => {
                process.signal(Signal::SIGKILL)?;
                process.wait(Duration::from_secs(10))
            }
        }
        .with_context(|| format!("cannot end {name}"))
    }

    /// The end of a process's log, for finding out why something failed.
    pub(crate) fn log_tail(name: &str, lines: usize) -> String {
        let read = || -> Result<String> { Ok(std::fs::read_to_string(world::log_path(name)?)?) };
        let text = read().unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// What runs and what has ended, with the ends of the logs.
    pub(crate) fn diagnosis(&self) -> String {
        const LINES: usize = 4;
        const LENGTH: usize = 300;
        let mut text = String::new();
        for daemon in &self.record.daemons {
            let state = if daemon.process.is_alive() { "runs" } else { "has ended" };
            text.push_str(&format!("  {} {state}; its log ends:\n", daemon.name));
            for line in Self::log_tail(&daemon.name, LINES).lines() {
                text.push_str(&format!("    {}\n", line.chars().take(LENGTH).collect::<String>()));
            }
        }
        text
    }

    /// Lets it stand when this run ends.
    pub(crate) fn stay(&mut self) -> Result<()> {
        self.record.stage = Stage::Up;
        self.record.save()?;
        self.stays = true;
        Ok(())
    }

    /// Takes it down and tells what is left of it, which should be nothing.
    pub(crate) fn take_down(&mut self) -> Result<Leftovers> {
        self.stays = true;
        let left = signals::uninterrupted(|| world::tear_down(&self.record));
        self.lock = None;
        left
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        match self.take_down() {
            Ok(left) if left.is_empty() => {}
            Ok(left) => eprintln!("lab: left behind: {left}"),
            Err(error) => eprintln!("lab: cleaning up failed, `cargo lab down` tries again: {error:#}"),
        }
    }
}

fn make_netns(netns: &Netns) -> Result<()> {
    netns.create()?;
    world::plain_sysctls(netns)?;
    Cmd::new("ip").args(["link", "set", "lo", "up"]).within(netns).run_ok()?;
    Ok(())
}
