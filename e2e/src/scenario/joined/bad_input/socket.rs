//! Garbage at the agent's unix socket, and clients that take places and say nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podspan_wire::local::MAX_LINE;

use super::calm::{Calm, WAYS};
use crate::cni_runtime::{Attachment, Runtime};
use crate::netns::Netns;
use crate::random::Random;
use crate::scenario::Findings;
use crate::state;
use crate::topology::Node;
use crate::world::{self, Chain, PodspanPlugin, World};

/// More than the agent serves at a time.
const IDLE: usize = 300;

/// How long an ADD, or an answer, may take under all this.
const PROMPT: Duration = Duration::from_secs(1);

const GUEST: &str = "psp-guest";

pub(super) fn noise(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let node = world.node("beta-2")?.clone();
    let chain = Chain { podspan: Some(PodspanPlugin { directory: state::path("cni/bin") }) };
    let runtime = world.runtime(&node, &chain)?;
    let guest = Netns::named(GUEST);
    world.record.namespaces.push(GUEST.to_owned());
    world.record.save()?;
    guest.create()?;
    let calm = Calm::watch(world, &WAYS, Duration::from_secs(5))?;
    serves(world, &node, &runtime, &guest, "before", &mut findings)?;
    for (what, bytes, answered) in inputs() {
        let said = say(&node, &bytes).with_context(|| what.to_owned())?;
        findings.require(said.contains("\"error\"") == answered, || {
            format!("{what}: an error {answered}: {:?}", said.chars().take(200).collect::<String>())
        });
    }
    serves(world, &node, &runtime, &guest, "after garbage", &mut findings)?;
    let mut idle = Vec::new();
    for number in 0..IDLE {
        let mut stream = connect(&node)?;
        // Some have begun to speak, some do not read their answers.
        match number % 3 {
            0 => stream.write_all(b"{\"request\":\"stat")?,
            1 => stream.write_all(b"{\"request\":\"status\"}\n")?,
            _ => {}
        }
        idle.push(stream);
    }
    serves(world, &node, &runtime, &guest, "with 300 idle clients", &mut findings)?;
    drop(idle);
    serves(world, &node, &runtime, &guest, "after idle clients", &mut findings)?;
    guest.remove()?;
    world.record.namespaces.retain(|name| name != GUEST);
    world.record.save()?;
    calm.check(world, &[], &mut findings)?;
    findings.conclude(4 * 5 + 10 + 24)
}

/// What is said to the socket, and whether an error is to be answered.
fn inputs() -> Vec<(&'static str, Vec<u8>, bool)> {
    let mut random = Random::new(7);
    vec![
        ("nothing", Vec::new(), false),
        ("an empty line", b"\n".to_vec(), true),
        ("no JSON", b"status please\n".to_vec(), true),
        ("no UTF-8", b"\xff\xfe\x00\n".to_vec(), true),
        ("random bytes", [random.bytes(5000), b"\n".to_vec()].concat(), true),
        ("half a request", b"{\"request\":\"attach\"".to_vec(), true),
        ("an unknown request", b"{\"request\":\"drop-all\"}\n".to_vec(), true),
        ("wrong types", b"{\"request\":\"detach\",\"containerId\":7,\"interface\":[]}\n".to_vec(), true),
        ("an endless line", vec![b'x'; 2 * MAX_LINE], true),
        ("a deep document", [vec![b'['; 500_000], b"\n".to_vec()].concat(), true),
    ]
}

fn connect(node: &Node) -> Result<UnixStream> {
    let path = state::path(world::node_directory(node)).join("agent.sock");
    let stream = UnixStream::connect(path).context("the agent's socket")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Says it and gives the answer up to the connection's end.
fn say(node: &Node, bytes: &[u8]) -> Result<String> {
    let mut stream = connect(node)?;
    // The agent may close before all is said.
    stream.write_all(bytes).ok();
    stream.shutdown(std::net::Shutdown::Write).ok();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("no end of the answer"),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Status and a pod's whole life through the CNI chain, each without delay.
fn serves(
    world: &World,
    node: &Node,
    runtime: &Runtime,
    guest: &Netns,
    when: &str,
    findings: &mut Findings,
) -> Result<()> {
    let attachment = Attachment {
        container_id: "guest".into(),
        interface: "eth0".into(),
        netns: Some(guest.path()),
        args: vec![("IgnoreUnknown".into(), "1".into())],
    };
    let count = |findings: &mut Findings| -> Option<usize> {
        let begin = Instant::now();
        let status = world.agent_status(node);
        findings.require(status.is_ok() && begin.elapsed() < PROMPT, || {
            format!("{when}: status after {:?}: {:?}", begin.elapsed(), status.as_ref().err())
        });
        status.ok().map(|status| status.attachments)
    };
    let before = count(findings);
    let begin = Instant::now();
    let added = runtime.add(&attachment);
    findings.require(added.is_ok() && begin.elapsed() < PROMPT, || {
        format!("{when}: ADD after {:?}: {:?}", begin.elapsed(), added.as_ref().err())
    });
    let checked = runtime.check(&attachment);
    findings.require(checked.is_ok(), || format!("{when}: CHECK: {:?}", checked.as_ref().err()));
    // The plugin lets a pod start without the agent; here the agent must have been told.
    let after = count(findings);
    findings.expect(&format!("{when}: attachments"), before.map(|n| n + 1), after);
    let deleted = runtime.del(&attachment);
    findings.require(deleted.is_ok(), || format!("{when}: DEL: {:?}", deleted.as_ref().err()));
    Ok(())
}
