//! Anything at all at the CNI plugin's standard input.

use std::time::Duration;

use anyhow::Result;

use super::calm::{Calm, WAYS};
use crate::cni_runtime::CniError;
use crate::command::Cmd;
use crate::random::Random;
use crate::scenario::Findings;
use crate::state;
use crate::world::World;

const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

/// CNI specification, section 5, "Error".
const DECODE: u32 = 6;
const INVALID_CONFIG: u32 = 7;

pub(super) fn stdin(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let calm = Calm::watch(world, &WAYS, Duration::from_secs(4))?;
    let node = world.node("beta-2")?.clone();
    let before = world.agent_status(&node)?.attachments;
    let good = format!(
        r#"{{"cniVersion":"1.0.0","name":"pods","type":"podspan","socket":"{}","prevResult":{{"cniVersion":"1.0.0","interfaces":[],"ips":[]}}}}"#,
        state::path(crate::world::node_directory(&node)).join("agent.sock").display()
    );
    let mut random = Random::new(17);
    let mut inputs: Vec<(String, Vec<u8>, u32)> = vec![
        ("garbage".into(), b"not json".to_vec(), DECODE),
        ("no UTF-8".into(), b"\xff\xfe\x00\x01".to_vec(), DECODE),
        ("random bytes".into(), random.bytes(4096), DECODE),
        ("a list".into(), b"[]".to_vec(), DECODE),
        ("2 MiB".into(), format!("{{\"name\":\"{}\"}}", "x".repeat(2 * 1024 * 1024)).into_bytes(), DECODE),
        ("2 MiB of brackets".into(), vec![b'['; 2 * 1024 * 1024], DECODE),
    ];
    for length in (1..good.len()).step_by(23) {
        inputs.push((format!("the first {length} bytes"), good.as_bytes()[..length].to_vec(), DECODE));
    }
    for command in COMMANDS {
        for (what, input, code) in &inputs {
            refused(world, command, what, input, *code, &mut findings)?;
        }
        if command != "VERSION" {
            refused(world, command, "nothing", b"", DECODE, &mut findings)?;
        }
    }
    for (key, from, to) in [
        ("name", "\"name\":\"pods\"", "\"name\":7"),
        ("socket", "\"socket\":\"", "\"onFailure\":\"maybe\",\"socket\":\""),
        ("socket", "\"socket\":\"", "\"timeoutMs\":{},\"socket\":\""),
        ("prevResult", "\"ips\":[]", "\"ips\":7"),
    ] {
        let input = good.replace(from, to);
        findings.require(input != good, || format!("{key}: nothing was changed"));
        let codes = codes(world, "ADD", input.as_bytes(), &mut findings)?;
        // What cannot be decoded and what is no good configuration are told apart by the specification.
        findings.require(codes.is_some_and(|code| [2, DECODE, INVALID_CONFIG].contains(&code)), || {
            format!("ADD with {to}: code {codes:?}")
        });
    }
    findings.expect("attachments", before, world.agent_status(&node)?.attachments);
    calm.check(world, &[], &mut findings)?;
    findings.conclude(100)
}

fn refused(
    world: &World,
    command: &str,
    what: &str,
    input: &[u8],
    code: u32,
    findings: &mut Findings,
) -> Result<()> {
    let seen = codes(world, command, input, findings)?;
    findings.expect(&format!("{command} with {what}: code"), Some(code), seen);
    Ok(())
}

/// The code of the plugin's error result.
fn codes(world: &World, command: &str, input: &[u8], findings: &mut Findings) -> Result<Option<u32>> {
    let finished = Cmd::new(state::path("cni/bin/podspan"))
        .clear_env()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "nobody")
        .env("CNI_NETNS", "/run/netns/psp-nobody")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .within(&world.node("beta-2")?.netns())
        .stdin(input)
        .timeout(Duration::from_secs(5))
        .run()?;
    findings.require(finished.status.code() == Some(1), || {
        format!("{command}: {}: {}", finished.status, finished.stderr_text())
    });
    Ok(serde_json::from_slice::<CniError>(&finished.stdout).ok().map(|error| error.code))
}
