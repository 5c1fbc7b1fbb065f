//! What must not be disturbed: traffic that was there before, and the daemons' lives.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::probe::{self, Job, Outcome, Pending, Task};
use crate::process::ProcessId;
use crate::scenario::Findings;
use crate::topology::{Family, POD_PORT};
use crate::world::{self, World};

/// Ways over all three clouds: to and from ordinary nodes, gateways and the node behind the NAT.
pub(super) const WAYS: [(&str, &str); 3] =
    [("alpha/pod5", "beta/pod3"), ("gamma/pod3", "alpha/pod1"), ("beta/pod1", "gamma/pod1")];

/// The longest that a stream may be held up, milliseconds; a machine that is busy with other things holds
/// streams up for over 500 ms without losing anything.
const LONGEST_GAP: u64 = 1500;

/// The most datagrams that may be lost in a row: what is sent within 200 ms.
const LOST_IN_A_ROW: u64 = 200 / INTERVAL;

/// How many of the echoes must come, percent.
const LEAST_ECHOED: u64 = 99;

/// Milliseconds between two messages of a stream.
const INTERVAL: u64 = 20;

/// Streams that run while something is done, and the daemons as they were before.
pub(super) struct Calm {
    daemons: Vec<(String, ProcessId)>,
    streams: Vec<Pending>,
    end: Instant,
}

impl Calm {
    /// Starts TCP and UDP streams on these ways in both families, for so long; returns when they run.
    pub(super) fn watch(world: &World, ways: &[(&str, &str)], time: Duration) -> Result<Self> {
        let millis = u64::try_from(time.as_millis())?;
        let mut streams = Vec::new();
        for (from, to) in ways {
            let mut jobs = Vec::new();
            for family in Family::BOTH {
                let target = SocketAddr::new(world.pod_address(to, family)?, POD_PORT);
                for (kind, task) in [
                    ("TCP", Task::TcpStream { millis, interval_ms: INTERVAL }),
                    ("UDP", Task::UdpStream { millis, interval_ms: INTERVAL }),
                ] {
                    let id = format!("{from} -> {to} {family} {kind}");
                    jobs.push(Job::new(id, target, task).timeout(Duration::from_secs(10)));
                }
            }
            let netns = world.topology.find(from).with_context(|| format!("there is no {from}"))?;
            streams.push(probe::start(&netns, jobs));
        }
        let end = Instant::now() + time;
        // Connected before anything is done.
        crate::signals::sleep(Duration::from_millis(500))?;
        let daemons = world.record.daemons.iter().filter(|daemon| daemon.process.is_alive());
        Ok(Self {
            daemons: daemons.map(|daemon| (daemon.name.clone(), daemon.process)).collect(),
            streams,
            end,
        })
    }

    /// Waits for the streams' end. None was held up or lost more than noise, every daemon but `changed` is the
    /// same process, no log tells of a panic, and all ways work afterwards.
    pub(super) fn check(self, world: &World, changed: &[&str], findings: &mut Findings) -> Result<()> {
        let late = Instant::now().saturating_duration_since(self.end);
        findings.require(late.is_zero(), || {
            format!("what was done took {late:?} longer than the traffic that watched it")
        });
        for stream in self.streams {
            for outcome in stream.finish()? {
                check_stream(world, outcome, findings);
            }
        }
        for (name, process) in self.daemons {
            if changed.contains(&name.as_str()) {
                continue;
            }
            let same = world.daemon(&name)? == process && process.is_alive();
            findings.require(same, || format!("{name} has ended or was started anew"));
        }
        no_panic(world, findings)?;
        traffic(world, &WAYS, findings)
    }
}

fn check_stream(world: &World, outcome: Outcome, findings: &mut Findings) {
    findings.expect(&outcome.id, None, outcome.error);
    let stream = outcome.stream.unwrap_or_default();
    let whole = stream.received * 100 >= stream.sent * LEAST_ECHOED && stream.lost_in_a_row <= LOST_IN_A_ROW;
    findings.require(stream.longest_gap_ms <= LONGEST_GAP && whole && stream.sent > 10, || {
        format!(
            "{}: no gap over {LONGEST_GAP} ms, {LEAST_ECHOED} % of the echoes and no more than {LOST_IN_A_ROW} lost in a \
             row expected, saw {stream:?}; meanwhile:\n{}",
            outcome.id,
            world.logs_around(stream.longest_gap_end)
        )
    });
}

/// No log of podspan's tells of a panic.
fn no_panic(world: &World, findings: &mut Findings) -> Result<()> {
    for daemon in world.record.daemons.iter().filter(|daemon| !daemon.name.starts_with("probe")) {
        let log = std::fs::read(world::log_path(&daemon.name)?).context("a daemon's log")?;
        let log = String::from_utf8_lossy(&log);
        let panic = log.lines().find(|line| line.contains("panicked"));
        findings.require(panic.is_none(), || format!("{}: {}", daemon.name, panic.unwrap_or_default()));
    }
    Ok(())
}

/// New connections on these ways work, in both families.
pub(super) fn traffic(world: &World, ways: &[(&str, &str)], findings: &mut Findings) -> Result<()> {
    for (from, to) in ways {
        let netns = world.topology.find(from).with_context(|| format!("there is no {from}"))?;
        let mut jobs = Vec::new();
        for family in Family::BOTH {
            let target = SocketAddr::new(world.pod_address(to, family)?, POD_PORT);
            jobs.push(Job::new(format!("{from} -> {to} {family}"), target, Task::Tcp { bytes: 3000 }));
        }
        for outcome in probe::ask(&netns, &jobs)? {
            findings.expect(&format!("{} afterwards", outcome.id), None, outcome.error);
        }
    }
    Ok(())
}
