//! The data plane without the kernel's offloads: dearer, and the same for everybody who sends through it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{Scenario, Setting, reach, size};
use crate::command::Cmd;
use crate::scenario::Findings;
use crate::world::{self, World};

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    vec![Scenario {
        setting,
        name: "offload-off",
        about: "without any offload everything arrives as it does with all of them",
        timeout: Duration::from_secs(180),
        run: offload_off,
    }]
}

fn offload_off(world: &mut World) -> Result<()> {
    let before = world::offload();
    restart_with(world, false)?;
    let result = all_arrives(world);
    // Also after a failure: the next scenario is shown with what it says.
    restart_with(world, before)?;
    result
}

fn all_arrives(world: &mut World) -> Result<()> {
    reach::pods(world)?;
    reach::udp(world)?;
    let mut findings = Findings::default();
    size::move_both_ways(world, "alpha/pod5", "beta/pod3", 20_000_000, &mut findings)?;
    size::move_both_ways(world, "gamma/pod3", "alpha/pod1", 20_000_000, &mut findings)?;
    findings.conclude(16)
}

/// Has all agents use every offload, or none, and makes sure that they do.
fn restart_with(world: &mut World, offload: bool) -> Result<()> {
    let nodes: Vec<_> = world.topology.nodes().cloned().collect();
    world::set_offload(offload);
    for node in &nodes {
        world::write_agent_config(node)?;
        let agent = world.daemon(&world::agent_name(&node.name))?;
        agent.signal(Signal::SIGTERM)?;
        agent.wait(Duration::from_secs(10)).with_context(|| format!("{} does not end", node.name))?;
        world.start_agent(&node.name)?;
    }
    world.wait_until_joined()?;
    world.wait_until_all_tunnels_stand()?;
    for node in &nodes {
        // Packets of a TUN with offloads have a `virtio_net_hdr`.
        let link =
            Cmd::new("ip").args(["-d", "-o", "link", "show", "podspan0"]).within(&node.netns()).text()?;
        if !link.contains(if offload { "vnet_hdr on" } else { "vnet_hdr off" }) {
            let wanted = if offload { "on" } else { "off" };
            bail!("{}: offloads should be {wanted}, and podspan0 says: {link}", node.name);
        }
    }
    Ok(())
}
