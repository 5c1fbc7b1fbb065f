//! Large transfers and large packets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Scenario, Setting};
use crate::command::Cmd;
use crate::probe::{self, Job, Task};
use crate::rules::{self, Script};
use crate::scenario::Findings;
use crate::signals;
use crate::topology::{Family, POD_PORT, Pod};
use crate::world::World;

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(180), run };
    vec![
        scenario("transfer", "200 MB each way arrive unchanged, from and to ordinary nodes", transfer),
        scenario(
            "path-mtu",
            "a ping of exactly the path MTU passes, one byte more is answered with it",
            path_mtu,
        ),
        scenario("mss", "TCP moves with all ICMP errors blocked", mss),
    ]
}

const MEGABYTES: u64 = 1_000_000;

pub(super) fn move_both_ways(
    world: &World,
    from: &str,
    to: &str,
    bytes: u64,
    findings: &mut Findings,
) -> Result<()> {
    let netns = world.topology.find(from).context("the client's pod")?;
    for family in Family::BOTH {
        let target = SocketAddr::new(world.pod_address(to, family)?, POD_PORT);
        for (word, task) in [("up", Task::Upload { bytes }), ("down", Task::Download { bytes })] {
            let id = format!("{from} -> {to} {family}, {word}");
            let outcome =
                probe::ask(&netns, &[Job::new(&id, target, task).timeout(Duration::from_secs(10))])?
                    .remove(0);
            findings.expect(&id, None, outcome.error);
            findings.expect(&format!("{id}: bytes"), bytes, outcome.bytes);
        }
    }
    Ok(())
}

fn transfer(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    move_both_ways(world, "alpha/pod5", "beta/pod3", 200 * MEGABYTES, &mut findings)?;
    findings.conclude(8)
}

fn path_mtu(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    for (from, to) in [("alpha/pod1", "beta/pod1"), ("alpha/pod5", "beta/pod3"), ("gamma/pod3", "alpha/pod5")]
    {
        let pod = world.topology.pods().find(|pod| pod.id() == from).context("the pod")?;
        let mtu = settled_mtu(world, pod, to)?;
        findings.require((1280..1500).contains(&mtu), || format!("the MTU from {} to {to}: {mtu}", pod.node));
        for family in Family::BOTH {
            let address = world.pod_address(to, family)?.to_string();
            let headers = if family == Family::V4 { 28 } else { 48 };
            let ping = |size: u32| {
                let size = (size - headers).to_string();
                Cmd::new("ping")
                    .args([
                        family.flag(),
                        "-n",
                        "-M",
                        "do",
                        "-c",
                        "2",
                        "-i",
                        "0.2",
                        "-W",
                        "2",
                        "-s",
                        &size,
                        &address,
                    ])
                    .within(&pod.netns())
            };
            // What the pod has learned of the path earlier must not decide, nor what its own route takes.
            Cmd::new("ip").args([family.flag(), "route", "flush", "cache"]).within(&pod.netns()).run_ok()?;
            let bypass = bypass_pod_route(pod, family, &address)?;
            let fits = ping(mtu).run()?;
            findings.require(fits.status.success(), || {
                format!("{from} -> {to} {family}, {mtu} bytes: {}{}", fits.stdout_text(), fits.stderr_text())
            });
            let over = ping(mtu + 1).run()?;
            let said = format!("{}{}", over.stdout_text(), over.stderr_text());
            let told = said.contains(&format!("mtu={mtu}"))
                || said.contains(&format!("mtu = {mtu}"))
                || said.contains(&format!("mtu: {mtu}"));
            findings.require(!over.status.success() && told, || {
                format!(
                    "{from} -> {to} {family}, {} bytes: expected to be told an MTU of {mtu}, saw: {said}",
                    mtu + 1
                )
            });
            bypass.run_ok()?;
        }
    }
    findings.conclude(3 * 5)
}

/// Gives the pod a route to one address by its default gateway, of its link's MTU: the node decides then. The
/// command takes it out again.
fn bypass_pod_route(pod: &Pod, family: Family, address: &str) -> Result<Cmd> {
    let ip = |args: &[&str]| Cmd::new("ip").arg(family.flag()).args(args).within(&pod.netns());
    let default = ip(&["route", "show", "default"]).text()?;
    let by: Vec<&str> = default.split_whitespace().skip(1).take(4).collect();
    ip(&["route", "add", address]).args(&by).run_ok()?;
    Ok(ip(&["route", "del", address]).args(&by))
}

/// The MTU of the routes from a pod's node to a cluster, once it was measured: it is while the path is used.
fn settled_mtu(world: &World, from: &Pod, to: &str) -> Result<u32> {
    const SETTLED: Duration = Duration::from_secs(7);
    let cluster = to.split('/').next().unwrap_or(to);
    let (limit, mut since, mut mtu) = (Instant::now() + Duration::from_secs(60), Instant::now(), 0);
    while since.elapsed() < SETTLED {
        for family in Family::BOTH {
            let target = SocketAddr::new(world.pod_address(to, family)?, POD_PORT);
            probe::ask(&from.netns(), &[Job::new("use", target, Task::Udp { bytes: 1000 })])?;
        }
        let status = world.agent_status(world.node(&from.node)?)?;
        let now = status.clusters.iter().find(|c| c.cluster.as_str() == cluster).and_then(|c| c.path_mtu);
        if now != Some(mtu) {
            (mtu, since) = (now.context("the routes have no MTU")?, Instant::now());
        }
        if Instant::now() > limit {
            bail!("the MTU of the routes from {} to {cluster} does not settle", from.node);
        }
        signals::sleep(Duration::from_millis(200))?;
    }
    Ok(mtu)
}

fn mss(world: &mut World) -> Result<()> {
    let table = Script::Nft(
        "table inet no-icmp { chain c { type filter hook prerouting priority raw;\n\
         icmp type destination-unreachable drop\nicmpv6 type packet-too-big drop\n}\n}\n"
            .into(),
    );
    let nodes = ["alpha-1", "alpha-2", "alpha-3", "beta-1", "beta-2"];
    let mut places = vec![
        world.topology.find("alpha/pod5").context("pod")?,
        world.topology.find("beta/pod3").context("pod")?,
    ];
    for node in nodes {
        places.push(world.node(node)?.netns());
    }
    for netns in &places {
        rules::apply(std::slice::from_ref(&table), netns, &crate::state::path("xtables.lock"))?;
    }
    let mut findings = Findings::default();
    move_both_ways(world, "alpha/pod5", "beta/pod3", 5 * MEGABYTES, &mut findings)?;
    for netns in &places {
        Cmd::new("nft").args(["delete", "table", "inet", "no-icmp"]).within(netns).run_ok()?;
    }
    findings.conclude(8)
}
