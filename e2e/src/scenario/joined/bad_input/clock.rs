//! Clocks that are an hour off, or went back.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::calm::{Calm, traffic};
use super::signer::set_directory;
use super::wait_for;
use crate::command::Cmd;
use crate::probe::{self, Job, Task};
use crate::scenario::Findings;
use crate::screen::Screen;
use crate::topology::{Family, POD_PORT};
use crate::world::{self, BROKER, World};

/// Ways that do not touch the nodes whose clocks are wrong.
const OTHERS: [(&str, &str); 2] = [("alpha/pod5", "gamma/pod3"), ("gamma/pod1", "alpha/pod1")];

/// How long a restart may keep traffic away, new keys included.
const BACK: Duration = Duration::from_secs(3);

/// `cmd` with a wall clock that is off by `offset` (such as `-1h`); the monotonic clock stays.
pub(in crate::scenario) fn with_clock(cmd: Cmd, offset: &str) -> Result<Cmd> {
    let library =
        PathBuf::from(format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH));
    if !library.exists() {
        bail!("there is no {}: is the Debian package faketime installed?", library.display());
    }
    Ok(cmd
        .env("LD_PRELOAD", &library)
        .env("FAKETIME", offset)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1"))
}

pub(super) fn off(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let calm = Calm::watch(world, &OTHERS, Duration::from_secs(25))?;
    // An ordinary node and a gateway; behind, ahead, and back to what is right, which is an hour back.
    for (node, pod, far) in [("beta-2", "beta/pod3", "alpha/pod5"), ("beta-1", "beta/pod1", "alpha/pod3")] {
        let mut keys = Vec::new();
        for offset in [Some("-1h"), Some("+1h"), None] {
            let what = format!("{node} with its clock {}", offset.unwrap_or("right again"));
            restart(world, node, offset, (pod, far), &what, &mut findings)?;
            let status = world.agent_status(world.node(node)?)?;
            let lanes: Vec<_> = status.node.lanes.iter().map(|lane| lane.key).collect();
            keys.push(lanes);
        }
        // Ahead nothing is in the way of the former keys; after an hour back they would be refused as replays.
        findings.require(keys[0] == keys[1], || format!("{node}: a clock that went ahead changed the keys"));
        findings.require(keys[1] != keys[2], || format!("{node}: a clock that went back kept the keys"));
        world.wait_until_joined()?;
    }
    for offset in ["-1h", "+1h"] {
        wrong_broker(world, offset, &mut findings)?;
    }
    world.stop_broker()?;
    world.start_broker()?;
    world.wait_until_connected()?;
    let changed = [BROKER.to_owned(), world::agent_name("beta-1"), world::agent_name("beta-2")];
    let changed: Vec<&str> = changed.iter().map(String::as_str).collect();
    calm.check(world, &changed, &mut findings)?;
    findings.conclude(6 * 2 + 4 + 16)
}

/// Restarts an agent under another clock and waits for its traffic.
fn restart(
    world: &mut World,
    name: &str,
    offset: Option<&str>,
    (pod, far): (&str, &str),
    what: &str,
    findings: &mut Findings,
) -> Result<()> {
    world.daemon(&world::agent_name(name))?.end(Duration::from_secs(10))?;
    let node = world.node(name)?.clone();
    let mut cmd = world.agent_command(&node)?;
    if let Some(offset) = offset {
        cmd = with_clock(cmd, offset)?;
    }
    let netns = world.topology.find(pod).ok_or_else(|| anyhow::anyhow!("there is no {pod}"))?;
    let begin = Instant::now();
    world.start_daemon(&world::agent_name(name), &cmd)?;
    let back = loop {
        let mut all = true;
        for family in Family::BOTH {
            let target = SocketAddr::new(world.pod_address(far, family)?, POD_PORT);
            let job = Job::new("back", target, Task::Udp { bytes: 100 }).timeout(Duration::from_millis(100));
            all &= probe::ask(&netns, &[job])?.remove(0).ok();
        }
        if all || begin.elapsed() > Duration::from_secs(12) {
            break begin.elapsed();
        }
    };
    findings.require(back <= BACK, || {
        format!("{what}: traffic was back after {:.1} s, not within {} s", back.as_secs_f64(), BACK.as_secs())
    });
    Screen::new(false).raw(&format!("           {what}: traffic after {:.1} s", back.as_secs_f64()));
    // The clock really is as it was meant to be, and the record was taken.
    let mut seen = None;
    let published = wait_for(Duration::from_secs(5), || {
        let status = world.agent_status(&node)?;
        seen = Some((status.now, status.broker.last_published));
        Ok(status.broker.last_published.is_some())
    })?;
    findings.require(published, || format!("{what}: no broker took its record: {seen:?}"));
    let hour = match offset {
        Some("-1h") => -3600,
        Some(_) => 3600,
        None => 0,
    };
    let real = i64::try_from(podspan_wire::UnixTime::from(std::time::SystemTime::now()).0)?;
    let clock = i64::try_from(seen.map_or(0, |(now, _)| now.0))?;
    findings.require((clock - real - hour).abs() < 5, || format!("{what}: its clock shows {}", clock - real));
    Ok(())
}

/// A broker with a wrong clock takes records and gives them out like any other.
fn wrong_broker(world: &mut World, offset: &str, findings: &mut Findings) -> Result<()> {
    world.stop_broker()?;
    let host = world.topology.broker.clone();
    let cmd = Cmd::new(&world.programs()?.broker)
        .arg("--config")
        .arg(set_directory().join("broker/broker.toml"))
        .within(&host.netns());
    world.start_daemon(BROKER, &with_clock(cmd, offset)?)?;
    let what = format!("the broker with its clock {offset}");
    let nodes: Vec<_> = world.topology.nodes().cloned().collect();
    let begin = podspan_wire::UnixTime::from(std::time::SystemTime::now());
    for node in &nodes {
        let mut problems = Vec::new();
        let good = wait_for(Duration::from_secs(25), || {
            let status = world.agent_status(node)?;
            problems = status.problems;
            Ok(status.broker.connected.is_some())
        })?;
        findings
            .require(good, || format!("{what}: {} is not connected since {begin}: {problems:?}", node.name));
    }
    // A node that starts anew publishes and is taken in.
    restart(world, "beta-2", None, ("beta/pod3", "alpha/pod5"), &what, findings)?;
    let status = world.agent_status(world.node("beta-2")?)?;
    findings.expect(&format!("{what}: refusals at beta-2"), 0, status.refused.len());
    traffic(world, &OTHERS, findings)
}
