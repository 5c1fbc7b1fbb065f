//! What somebody deletes by hand comes back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podspan_wire::INTERFACE;

use super::{Scenario, Setting};
use crate::command::Cmd;
use crate::netns::Netns;
use crate::probe::{self, Job, Task};
use crate::scenario::Findings;
use crate::signals;
use crate::snapshot::Snapshot;
use crate::topology::{Family, POD_PORT};
use crate::world::World;

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let about = "routes, rules, table, addresses deleted by hand are back, with the traffic, within 2 s";
    vec![Scenario { setting, name: "heal", about, timeout: Duration::from_secs(180), run: heal }]
}

/// How long healing may take.
const LIMIT: Duration = Duration::from_secs(2);

fn run(netns: &Netns, line: &str) -> Result<()> {
    Cmd::new("sh").args(["-c", line]).within(netns).run_ok()?;
    Ok(())
}

fn heal(world: &mut World) -> Result<()> {
    let node = world.node("alpha-3")?.clone();
    let netns = node.netns();
    let table = world.agent_status(&node)?.kernel.table;
    let rule = format!("while ip $f rule del lookup {table} 2>/dev/null; do n=1; done");
    let damages = [
        ("IPv4 routes", format!("ip -4 route flush table {table}")),
        ("IPv6 routes", format!("ip -6 route flush table {table}")),
        ("IPv4 rule", format!("f=-4; {rule}; test $n")),
        ("IPv6 rule", format!("f=-6; {rule}; test $n")),
        ("nftables table", nft_delete()),
        ("addresses", format!("ip address flush dev {INTERFACE}")),
        ("the link's state", format!("ip link set {INTERFACE} down")),
        ("the MTU", format!("ip link set {INTERFACE} mtu 1300")),
        (
            "everything at once",
            format!(
                "ip -4 route flush table {table}; ip -6 route flush table {table}; f=-4; {rule}; f=-6; {rule}; \
                 {}; ip address flush dev {INTERFACE}",
                nft_delete()
            ),
        ),
    ];
    let mut findings = Findings::default();
    let before = Snapshot::of(&netns, &[])?;
    for (what, line) in &damages {
        run(&netns, line).with_context(|| format!("deleting {what}"))?;
        let begin = Instant::now();
        let hurt = before.differences(&Snapshot::of(&netns, &[])?);
        let left = loop {
            let left = before.differences(&Snapshot::of(&netns, &[])?);
            if left.is_empty() || begin.elapsed() > LIMIT {
                break left;
            }
            signals::sleep(Duration::from_millis(20))?;
        };
        findings.require(left.is_empty(), || {
            format!("{what}: not healed within {} s: {}", LIMIT.as_secs(), left.join("; "))
        });
        // Healing can be quicker than the first look; then there is nothing to be seen of the damage.
        if hurt.is_empty() && begin.elapsed() > LIMIT {
            findings.require(false, || format!("{what}: the damage was not seen"));
        }
        reach(world, what, begin, &mut findings)?;
    }
    let healed = world.agent_status(&node)?.kernel.healed;
    findings.require(healed >= damages.len() as u64, || format!("the agent has counted {healed} repairs"));
    findings.conclude(damages.len() * 3)
}

fn nft_delete() -> String {
    "nft -a list tables | awk '/podspan/ {print $2, $3}' | while read t; do nft delete table $t || exit 1; done; \
     nft list tables >/dev/null"
        .into()
}

fn reach(world: &World, what: &str, begin: Instant, findings: &mut Findings) -> Result<()> {
    let from = world.topology.find("alpha/pod5").context("pod")?;
    for family in Family::BOTH {
        let target = SocketAddr::new(world.pod_address("beta/pod3", family)?, POD_PORT);
        let job = Job::new("after", target, Task::Tcp { bytes: 3000 }).timeout(LIMIT);
        let outcome = probe::ask(&from, &[job])?.remove(0);
        let seconds = begin.elapsed().as_secs_f64();
        findings.require(outcome.ok() && begin.elapsed() < LIMIT + Duration::from_secs(1), || {
            format!("{what}: traffic by {family} after {seconds:.1} s: {:?}", outcome.error)
        });
    }
    Ok(())
}
