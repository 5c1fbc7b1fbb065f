//! The lab's own instruments, tried on things that are known: a snapshot that sees nothing and a capture that
//! finds nothing would make every other scenario pass.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Findings, Scenario, Setting};
use crate::capture::{Capture, Expected, Needle};
use crate::cni_runtime::CniError;
use crate::command::Cmd;
use crate::probe::{self, Job, Task};
use crate::snapshot::Snapshot;
use crate::topology::{Dual, Family, POD_PORT};
use crate::world::{self, Chain, World};

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario =
        |name, about, run| Scenario { setting, name, about, timeout: Duration::from_secs(90), run };
    vec![
        scenario(
            "snapshot",
            "a snapshot sees every kind of change, and nothing where nothing changed",
            snapshot,
        ),
        scenario("capture", "a capture on the router finds what does not belong there", capture),
        scenario("transfer", "200 MB pass unchanged each way, streams go on without a gap", transfer),
        scenario(
            "impaired",
            "the impaired underlay loses, delays, doubles, reorders and blocks as it is told",
            super::impaired::impaired,
        ),
        scenario("cni", "the CNI runtime: CHECK, DEL twice, ADD again, errors with their code", cni),
    ]
}

/// A change, how to take it back, and the section in which it must show.
const CHANGES: [(&str, &str, &str); 11] = [
    ("ip route add 10.77.0.0/24 via 192.0.2.1", "ip route del 10.77.0.0/24", "IPv4 routes"),
    (
        "ip -6 route add fd77::/64 via 2001:db8:a::1 table 77",
        "ip -6 route del fd77::/64 table 77",
        "IPv6 routes",
    ),
    ("ip rule add fwmark 0x77 lookup 77 priority 777", "ip rule del priority 777", "IPv4 rules"),
    ("ip -6 rule add fwmark 0x77 lookup 77 priority 777", "ip -6 rule del priority 777", "IPv6 rules"),
    ("ip link add psp-test type veth peer name psp-test2", "ip link del psp-test", "links"),
    ("ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500", "links"),
    ("ip address add 10.77.1.1/32 dev eth0", "ip address del 10.77.1.1/32 dev eth0", "addresses"),
    ("nft add table inet test", "nft delete table inet test", "nftables"),
    ("nft add rule inet kept x counter", "nft flush chain inet kept x", "nftables"),
    ("sysctl -qw net.ipv4.conf.eth0.rp_filter=2", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1", "sysctls"),
    ("sysctl -qw net.ipv6.conf.eth0.forwarding=0", "sysctl -qw net.ipv6.conf.eth0.forwarding=1", "sysctls"),
];

fn snapshot(world: &mut World) -> Result<()> {
    let node = world.node("alpha-1")?.netns();
    let run = |line: &str| Cmd::new("sh").args(["-c", line]).within(&node).run_ok();
    run("nft 'add table inet kept; add chain inet kept x'")?;
    let mut findings = Findings::default();
    let before = Snapshot::of(&node, &[])?;
    findings
        .require(before.len() > 500, || format!("a snapshot of a node has only {} entries", before.len()));
    for (make, undo, section) in CHANGES {
        run(make)?;
        let seen = before.differences(&Snapshot::of(&node, &[])?);
        findings.require(seen.iter().any(|line| line.starts_with(section)), || {
            format!("{make}: no change in {section:?} was seen, but {seen:?}")
        });
        run(undo)?;
        let seen = before.differences(&Snapshot::of(&node, &[])?);
        findings.require(seen.is_empty(), || format!("after {undo}: {seen:?}"));
    }
    run("nft delete table inet kept")?;
    // Traffic changes counters, and none of those may count as a change.
    let before = Snapshot::of(&node, &[])?;
    run("ping -c 3 -i 0.05 -W 1 192.0.2.12")?;
    let seen = before.differences(&Snapshot::of(&node, &[])?);
    findings.require(seen.is_empty(), || format!("after mere traffic: {seen:?}"));
    findings.conclude(2 * CHANGES.len() + 2)
}

fn capture(world: &mut World) -> Result<()> {
    let marker = b"a-marker-in-clear-text".to_vec();
    let expected = Expected {
        underlay: world.topology.underlay().iter().flat_map(|(_, net)| net.both()).collect(),
        wireguard: 51840..51904,
        brokers: Vec::new(),
        needles: vec![Needle { name: "the marker".into(), bytes: marker.clone() }],
    };
    let node = world.node("alpha-1")?.netns();
    let mut findings = Findings::default();
    let quiet = Capture::start(world)?;
    Cmd::new("ping").args(["-c", "3", "-i", "0.1", "-W", "1", "198.51.100.11"]).within(&node).run_ok()?;
    let report = quiet.finish(&expected)?;
    findings
        .require(report.violations.is_empty(), || format!("nothing was wrong, yet: {:?}", report.violations));
    findings.require(report.count("ICMP") >= 12, || format!("pings between two links: {:?}", report.kinds));
    let loud = Capture::start(world)?;
    let pod = world.topology.find("alpha/pod1").context("alpha/pod1")?;
    let pattern: String = marker[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    // Masqueraded by the node, but to the address of a pod: a leak.
    Cmd::new("ping").args(["-c", "1", "-W", "1", "10.2.1.2"]).within(&pod).run()?;
    let loud_marker = &marker[..16];
    Cmd::new("ping").args(["-c", "1", "-W", "1", "-p", &pattern, "10.98.0.2"]).within(&pod).run_ok()?;
    let expected = Expected {
        needles: vec![Needle { name: "the marker".into(), bytes: loud_marker.to_vec() }],
        ..expected
    };
    let report = loud.finish(&expected)?;
    let told = report.violations.join("\n");
    findings.require(told.contains("to 10.2.1.2"), || format!("the leak was not told: {told}"));
    findings.require(told.contains("the marker"), || format!("the marker was not told: {told}"));
    findings.conclude(4)
}

fn transfer(world: &mut World) -> Result<()> {
    const BYTES: u64 = 200 * 1024 * 1024;
    let from = world.topology.find("alpha/pod1").context("alpha/pod1")?;
    let mut findings = Findings::default();
    for family in Family::BOTH {
        let target = (world.pod_address("alpha/pod5", family)?, POD_PORT).into();
        let stream = [
            Job::new("TCP stream", target, Task::TcpStream { millis: 1000, interval_ms: 5 }),
            Job::new("UDP stream", target, Task::UdpStream { millis: 1000, interval_ms: 5 }),
        ];
        for outcome in probe::ask(&from, &stream)? {
            findings.expect(&format!("{} {family}", outcome.id), None, outcome.error);
            let stream = outcome.stream.context("a stream has an outcome of its own")?;
            findings.require(stream.received > 50 && stream.received == stream.sent, || {
                format!("{} {family}: {stream:?}", outcome.id)
            });
        }
        let jobs = [
            Job::new("up", target, Task::Upload { bytes: BYTES }),
            Job::new("down", target, Task::Download { bytes: BYTES }),
        ];
        for outcome in probe::ask(&from, &jobs)? {
            findings.expect(&format!("{} {family}", outcome.id), None, outcome.error.clone());
            findings.expect(&format!("{} {family}: bytes", outcome.id), BYTES, outcome.bytes);
        }
        let nobody = (world.topology.internet.address.of(family), 9).into();
        let refused = probe::ask(&from, &[Job::new("nobody", nobody, Task::Tcp { bytes: 1 })])?;
        findings.require(!refused[0].ok(), || "a port where nobody listens was reached".into());
    }
    findings.conclude(2 * 9)
}

fn cni(world: &mut World) -> Result<()> {
    let pod = world.topology.pods().find(|pod| pod.id() == "beta/pod4").cloned().context("beta/pod4")?;
    let runtime = world.runtime(world.node(&pod.node)?, &Chain::bare())?;
    let attachment = world::attachment(&pod);
    let before: Option<Dual<_>> = world.record.pods.get(&pod.id()).copied();
    let mut findings = Findings::default();
    runtime.check(&attachment)?;
    Cmd::new("ip").args(["address", "flush", "dev", "eth0"]).within(&pod.netns()).run_ok()?;
    findings.require(runtime.check(&attachment).is_err(), || "CHECK passed without addresses".into());
    findings.require(runtime.add(&attachment).is_err(), || "a second ADD passed".into());
    runtime.del(&attachment)?;
    runtime.del(&attachment).context("the second DEL")?;
    let links = Cmd::new("ip").args(["-o", "link", "show"]).within(&pod.netns()).text()?;
    findings.require(!links.contains("eth0"), || format!("after DEL: {links}"));
    let bad = crate::cni_runtime::Attachment { netns: Some("/nonexistent".into()), ..attachment.clone() };
    match runtime.add(&bad).map_err(|error| error.downcast::<CniError>()) {
        Err(Ok(error)) => findings.require(!error.msg.is_empty(), || format!("{error:?}")),
        other => bail!("ADD to a namespace that does not exist: {other:?}"),
    }
    for (plugin, versions) in runtime.versions()? {
        let supported = versions["supportedVersions"].to_string();
        findings.require(supported.contains("1.0.0"), || format!("{plugin}: {versions}"));
    }
    runtime.status()?;
    runtime.gc(&[])?;
    let Some(before) = before else { bail!("beta/pod4 was never attached") };
    world.attach_pod(&pod, &Chain::bare())?;
    let after = world.record.pods.get(&pod.id()).copied();
    findings.require(after.is_some_and(|after| after.v4 != before.v4), || {
        format!("host-local gives addresses in turn: {before:?}, then {after:?}")
    });
    // It is reached again, and by its services too.
    let from = world.topology.find("beta/pod1").context("beta/pod1")?;
    for family in Family::BOTH {
        let target = (world.pod_address(&pod.id(), family)?, POD_PORT).into();
        let outcome = probe::ask(&from, &[Job::new("again", target, Task::Tcp { bytes: 10 })])?;
        findings.expect("reached again", None, outcome[0].error.clone());
    }
    findings.conclude(8)
}
