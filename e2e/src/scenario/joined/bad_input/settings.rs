//! Settings, facts and bundles that are wrong.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::calm::{Calm, WAYS};
use super::signer::set_directory;
use super::stray;
use super::wait_for;
use crate::command::{Cmd, Finished};
use crate::scenario::Findings;
use crate::state;
use crate::world::{self, World};

const AGENT: &str = r#"bundle = "alpha.bundle"
state-dir = "state"
socket = "agent.sock"
health-listen = "127.0.0.1:9841"
on-exit = "keep"
[source]
file = "node.toml"
[tunnel]
interface = "podspan0"
lanes = 2
port = 51840
mtu = 1420
fwmark = 12403
table = 7183
rule-priority = 5183
persistent-keepalive-seconds = 25
[offload]
tso = true
uso = true
gso = true
gro = true
"#;

const AGENT_WRONG: [(&str, &str); 21] = [
    ("bundle", "bundle = \"\""),
    ("state-dir", "state-dir = 5.5"),
    ("socket", "socket = []"),
    ("health-listen", "health-listen = \"9841\""),
    ("on-exit", "on-exit = \"stay\""),
    ("source.file", "file = {}"),
    ("tunnel.interface", "interface = \"a/b\""),
    ("tunnel.lanes", "lanes = 65"),
    ("tunnel.port", "port = 65536"),
    ("tunnel.mtu", "mtu = \"big\""),
    ("tunnel.fwmark", "fwmark = 0"),
    ("tunnel.table", "table = -1"),
    ("tunnel.rule-priority", "rule-priority = 32766"),
    ("tunnel.persistent-keepalive-seconds", "persistent-keepalive-seconds = \"often\""),
    ("offload.tso", "tso = 1"),
    ("offload.uso", "uso = \"no\""),
    ("offload.gso", "gso = []"),
    ("offload.gro", "gro = {}"),
    ("tunnel.lans", "lans = 2"),
    ("on-exti", "on-exti = \"keep\""),
    ("source.fiel", "fiel = \"node.toml\""),
];

const NODE: &str = r#"name = "stray-1"
gateway = true
endpoints = ["10.98.0.2"]
pod-cidrs = ["10.1.99.0/24"]
service-cidrs = ["10.101.0.0/16"]
underlay = ["eth0"]
"#;

const NODE_WRONG: [(&str, &str); 8] = [
    ("name", "name = \"Node 1\""),
    ("gateway", "gateway = \"perhaps\""),
    ("endpoints", "endpoints = [\"10.98.0.2:51840\"]"),
    ("pod-cidrs", "pod-cidrs = [\"10.1.99.1/24\"]"),
    ("pod-cidrs", "pod-cidrs = 7"),
    ("service-cidrs", "service-cidrs = [\"10.101.0.0\"]"),
    ("underlay", "underlay = \"eth0\""),
    ("nmae", "nmae = \"stray-1\""),
];

const BROKER_WRONG: [(&str, &str); 11] = [
    ("listen", "listen = [\"7443\"]"),
    ("listen", "listen = [\"[::]:7443\", \"[::]:7443\"]"),
    ("cluster-set", "cluster-set = \"AAAA\""),
    ("certificate", "certificate = 7"),
    ("private-key", "private-key = \"\""),
    ("data", "data = []"),
    ("lease-seconds", "lease-seconds = 4"),
    ("health-listen", "health-listen = \"everywhere\""),
    ("limits.connections", "connections = 0"),
    ("limits.watcher-queue", "watcher-queue = \"long\""),
    ("limits.recrods", "recrods = 7"),
];

/// The key at the beginning of a line.
fn key_of(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// `whole` with the line of its key replaced, or added at the end of its section; and its number, from 1.
fn with_line(whole: &str, key: &str, line: &str) -> (String, usize) {
    let mut lines: Vec<&str> = whole.lines().collect();
    let index = match lines.iter().position(|old| key_of(old) == key_of(line)) {
        Some(index) => {
            lines[index] = line;
            index
        }
        None => {
            let section = key.rsplit_once('.').map(|(section, _)| format!("[{section}]"));
            let index = section.and_then(|section| lines.iter().position(|old| *old == section));
            let index = index.map_or(0, |index| index + 1);
            lines.insert(index, line);
            index
        }
    };
    (lines.join("\n") + "\n", index + 1)
}

/// What a program said, and that it refused.
fn refused(cmd: &Cmd, what: &str, findings: &mut Findings) -> Result<String> {
    let Finished { status, stdout, stderr } = cmd.run()?;
    let said = String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout);
    findings.require(status.code() == Some(1), || {
        format!("{what}: exit status 1 expected, saw {status}: {said}")
    });
    Ok(said)
}

/// One fault: one line that names it under the file's name.
fn one_fault(said: &str, file: &Path, number: usize, key: &str, line: &str, findings: &mut Findings) {
    let lines: Vec<&str> = said.lines().collect();
    let headed = lines.iter().any(|said| said.ends_with(&format!("{}: 1 error", file.display())));
    let named = lines.iter().filter(|said| said.trim_start().starts_with("line "));
    let exact = format!("line {number}: {key}: ");
    let good = headed && named.count() == 1 && lines.iter().any(|said| said.trim().starts_with(&exact));
    findings
        .require(good, || format!("{line}: one line `{exact}...` below {} expected: {said}", file.display()));
}

/// Tries every wrong line of a settings file with a program that reads it.
fn each_field(
    whole: &str,
    wrong: &[(&str, &str)],
    file: &Path,
    cmd: &Cmd,
    findings: &mut Findings,
) -> Result<()> {
    for (key, line) in wrong {
        let (text, number) = with_line(whole, key, line);
        std::fs::write(file, text).context("cannot write a settings file")?;
        let said = refused(cmd, line, findings)?;
        one_fault(&said, file, number, key, line, findings);
    }
    // All at once: each key of the above is named.
    let mut text = whole.to_owned();
    for (key, line) in wrong {
        text = with_line(&text, key, line).0;
    }
    std::fs::write(file, text).context("cannot write a settings file")?;
    let said = refused(cmd, "all fields wrong", findings)?;
    for (key, _) in wrong {
        findings.require(said.contains(&format!(": {key}: ")), || {
            format!("all wrong at once: {key} is not named in {said}")
        });
    }
    // Bytes that are no text, half a file, nothing at all.
    for (what, bytes) in [
        ("no UTF-8", &b"name = \"\xff\xfe\"\n"[..]),
        ("NUL", b"\0\0\0\0"),
        ("half a string", b"bundle = \"a"),
        ("half a list", b"listen = [\"a\","),
        ("nothing", b""),
    ] {
        std::fs::write(file, bytes).context("cannot write a settings file")?;
        let said = refused(cmd, what, findings)?;
        findings.require(said.contains(&file.display().to_string()), || {
            format!("{what}: {} is not named: {said}", file.display())
        });
    }
    std::fs::remove_file(file).context("a settings file")?;
    let said = refused(cmd, "no file", findings)?;
    findings.require(said.contains(&file.display().to_string()), || format!("no file: {said}"));
    Ok(())
}

pub(super) fn files(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let calm = Calm::watch(world, &WAYS, Duration::from_secs(6))?;
    let directory = state::directory("bad")?;
    let programs = world.programs()?.clone();
    // Should one of them start after all, it is where it does no harm, and is ended.
    let run = |program: &PathBuf, args: &[&str], file: &Path| {
        let cmd = Cmd::new(program).args(args).arg(file).within(&world.topology.internet.netns());
        cmd.timeout(Duration::from_secs(5))
    };
    let agent = directory.join("agent.toml");
    let check = run(&programs.agent, &["--check", "--config"], &agent);
    each_field(AGENT, &AGENT_WRONG, &agent, &check, &mut findings)?;

    let broker = directory.join("broker.toml");
    let whole = std::fs::read_to_string(set_directory().join("broker/broker.toml")).context("broker.toml")?;
    let whole: String =
        whole.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(|l| format!("{l}\n")).collect();
    let check = run(&programs.broker, &["--check", "--config"], &broker);
    each_field(&format!("{whole}[limits]\n"), &BROKER_WRONG, &broker, &check, &mut findings)?;

    std::fs::write(&agent, stray::settings(&world::bundle("alpha"))).context("agent.toml")?;
    let start = run(&programs.agent, &["--config"], &agent);
    let node = directory.join("node.toml");
    each_field(NODE, &NODE_WRONG, &node, &start, &mut findings)?;
    for (line, needles) in [
        ("pod-cidrs = [\"10.9.0.0/24\", \"10.2.1.0/24\"]", ["10.9.0.0/24", "10.2.1.0/24"]),
        ("endpoints = [\"10.1.99.7\"]", ["10.1.99.7", "node.toml"]),
    ] {
        std::fs::write(&node, with_line(NODE, "", line).0).context("node.toml")?;
        let said = refused(&start, line, &mut findings)?;
        findings.require(needles.iter().all(|needle| said.contains(needle)), || format!("{line}: {said}"));
    }
    std::fs::write(&node, NODE).context("node.toml")?;
    bundles(&directory, &programs.cli, &start, &mut findings)?;
    std::fs::remove_dir_all(&directory).context("the directory of bad files")?;
    calm.check(world, &[], &mut findings)?;
    findings.conclude(150)
}

/// Bundles that are wrong, each in one way, at a real start.
fn bundles(directory: &Path, cli: &Path, start: &Cmd, findings: &mut Findings) -> Result<()> {
    let alpha = std::fs::read_to_string(world::bundle("alpha")).context("alpha's bundle")?;
    let beta = std::fs::read_to_string(world::bundle("beta")).context("beta's bundle")?;
    let other_set = directory.join("other-set");
    let other = directory.join("other.bundle");
    Cmd::new(cli)
        .args(["clusterset", "create", "--name", "other", "--broker", "10.99.0.2:7443", "--dir"])
        .arg(&other_set)
        .run_ok()?;
    Cmd::new(cli)
        .args(["cluster", "grant", "alpha", "--pod-cidr", "10.1.0.0/16", "--dir"])
        .arg(&other_set)
        .arg("--out")
        .arg(&other)
        .run_ok()?;
    let other: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&other)?)?;
    let (alpha_value, beta): (serde_json::Value, serde_json::Value) =
        (serde_json::from_str(&alpha)?, serde_json::from_str(&beta)?);
    let secret = alpha_value["clusterKey"].as_str().context("the bundle's key")?.to_owned();
    let with = |key: &str, value: serde_json::Value| {
        let mut changed = alpha_value.clone();
        changed[key] = value;
        changed.to_string()
    };
    let file = directory.join("alpha.bundle");
    std::fs::write(directory.join("agent.toml"), stray::settings(&file)).context("agent.toml")?;
    let cases = [
        ("truncated", alpha[..alpha.len() / 2].to_owned(), 0o600, "not a bundle"),
        ("empty", String::new(), 0o600, "not a bundle"),
        ("open to others", alpha.clone(), 0o644, "0600"),
        ("another cluster's key", with("clusterKey", beta["clusterKey"].clone()), 0o600, "key"),
        ("another cluster set's grant", with("grant", other["grant"].clone()), 0o600, "cluster set"),
        ("another cluster set's name", with("clusterSet", other["clusterSet"].clone()), 0o600, "cluster set"),
        ("no broker", with("brokers", serde_json::json!([])), 0o600, "broker"),
        (
            "a broker that is none",
            with("brokers", serde_json::json!(["http://b"])),
            0o600,
            "https://HOST:PORT",
        ),
        ("no authority", with("brokerCa", "none".into()), 0o600, "authority"),
        ("the key as a number", with("clusterKey", 7.into()), 0o600, "not a bundle"),
        ("an unknown field", with("more", 7.into()), 0o600, "not a bundle"),
    ];
    for (what, text, mode, needle) in cases {
        std::fs::write(&file, text).context("a bundle")?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
        let what = format!("bundle: {what}");
        let said = refused(start, &what, findings)?;
        findings.require(said.contains(needle) && said.contains("alpha.bundle"), || {
            format!("{what}: it should name the file and {needle:?}: {said}")
        });
        findings.require(!said.contains(&secret), || format!("{what}: the secret key is told"));
    }
    std::fs::remove_file(&file)?;
    let said = refused(start, "no bundle", findings)?;
    findings.require(said.contains("alpha.bundle"), || format!("no bundle: {said}"));
    Ok(())
}

/// Faults put into the facts of an agent that runs.
pub(super) fn running(world: &mut World) -> Result<()> {
    const PROBLEM: &str = "the facts about this node cannot be used";
    let node = world.node("beta-2")?.clone();
    let mut findings = Findings::default();
    let calm = Calm::watch(world, &WAYS, Duration::from_secs(12))?;
    let file = state::path(world::node_directory(&node)).join("node.toml");
    let good = std::fs::read_to_string(&file).context("node.toml")?;
    let facts = |world: &World| -> Result<_> {
        let status = world.agent_status(&node)?;
        Ok((status.node.pod_cidrs, status.node.host_addresses, status.kernel.routes))
    };
    let before = facts(world)?;
    let faults: [(&str, Option<Vec<u8>>); 6] = [
        ("line 1: name", Some(good.replace("beta-2", "Beta 2").into())),
        ("line 4: pod-cidrs", Some(with_line(&good, "pod-cidrs", "pod-cidrs = [\"10.2.2.1/24\"]").0.into())),
        ("10.9.9.0/24", Some(with_line(&good, "pod-cidrs", "pod-cidrs = [\"10.9.9.0/24\"]").0.into())),
        ("node.toml", Some(b"\xff\xfe\0".to_vec())),
        ("line 1", Some(good[..8].into())),
        ("does not exist", None),
    ];
    for (needle, text) in faults {
        match text {
            Some(text) => std::fs::write(&file, text).context("node.toml")?,
            None => std::fs::remove_file(&file).context("node.toml")?,
        }
        let mut problems = Vec::new();
        let said = wait_for(Duration::from_secs(3), || {
            problems = world.agent_status(&node)?.problems;
            Ok(problems.iter().any(|problem| problem.contains(PROBLEM) && problem.contains(needle)))
        })?;
        findings.require(said, || format!("{needle:?} is not among the problems: {problems:?}"));
        findings.expect(&format!("what stands with {needle:?}"), &before, &facts(world)?);
    }
    std::fs::write(&file, &good).context("node.toml")?;
    let mut problems = Vec::new();
    let cleared = wait_for(Duration::from_secs(3), || {
        problems = world.agent_status(&node)?.problems;
        Ok(!problems.iter().any(|problem| problem.contains("facts")))
    })?;
    findings.require(cleared, || format!("the file is mended and the problem stays: {problems:?}"));
    // A change of name needs a restart, and says so.
    std::fs::write(&file, good.replace("beta-2", "beta-3")).context("node.toml")?;
    let said = wait_for(Duration::from_secs(3), || {
        problems = world.agent_status(&node)?.problems;
        Ok(problems.iter().any(|problem| problem.contains("beta-3") && problem.contains("restart")))
    })?;
    findings.require(said, || format!("another name is not among the problems: {problems:?}"));
    std::fs::write(&file, &good).context("node.toml")?;
    let cleared = wait_for(Duration::from_secs(3), || {
        problems = world.agent_status(&node)?.problems;
        Ok(!problems.iter().any(|problem| problem.contains("facts")))
    })?;
    findings.require(cleared, || format!("the name is back and the problem stays: {problems:?}"));
    calm.check(world, &[], &mut findings)?;
    findings.conclude(12 + 3 + 24)
}
