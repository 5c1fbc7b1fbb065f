//! Doing what a storm says, and making it good.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use podspan_wire::{Cidr, INTERFACE};

use super::plan::{Action, Part, Weather};
use crate::command::Cmd;
use crate::impair::{self, Fault, Rule};
use crate::scenario::failover::{forwarding, plug};
use crate::scenario::joined::with_clock;
use crate::state;
use crate::world::{self, BROKER, World};

/// What is under way on the underlay, by the number of the action.
#[derive(Debug, Default)]
pub(super) struct Faults(BTreeMap<usize, Vec<Rule>>);

impl Faults {
    fn set(&self, seed: u64) -> Result<()> {
        impair::set(&impair::Plan { seed, rules: self.0.values().flatten().cloned().collect() })
    }
}

/// Begins an action or makes it good.
pub(super) fn act(
    world: &mut World,
    faults: &mut Faults,
    seed: u64,
    number: usize,
    action: &Action,
    begins: bool,
) -> Result<()> {
    match action {
        Action::KillAgent { node } => {
            if begins {
                kill(world, &world::agent_name(node))?;
            } else {
                world.start_agent(node)?;
            }
        }
        Action::HangAgent { node } => {
            let signal = if begins { Signal::SIGSTOP } else { Signal::SIGCONT };
            world.daemon(&world::agent_name(node))?.signal(signal)?;
        }
        Action::CutLink { node } => plug(world, node, !begins)?,
        Action::Impair { .. } | Action::Partition { .. } | Action::NoBroker { .. } => {
            if begins {
                faults.0.insert(number, rules(world, action)?);
            } else {
                faults.0.remove(&number);
            }
            faults.set(seed)?;
        }
        Action::KillBroker => {
            if begins {
                kill(world, BROKER)?;
            } else {
                world.start_broker()?;
            }
        }
        Action::ClockStep { node, seconds } => {
            kill(world, &world::agent_name(node))?;
            let mut cmd = world.agent_command(world.node(node)?)?;
            if begins {
                cmd = with_clock(cmd, &format!("{seconds:+}"))?;
            }
            world.start_daemon(&world::agent_name(node), &cmd)?;
        }
        Action::Delete { node, what } => {
            if begins {
                delete(world, node, *what)?;
            }
        }
        Action::NoForwarding { node } => forwarding(world, node, !begins)?,
        Action::ToggleGateway { node } => toggle(world, node)?,
    }
    Ok(())
}

fn kill(world: &World, daemon: &str) -> Result<()> {
    let process = world.daemon(daemon)?;
    process.signal(Signal::SIGKILL)?;
    process.wait(Duration::from_secs(5))
}

fn rules(world: &World, action: &Action) -> Result<Vec<Rule>> {
    Ok(match action {
        Action::Impair { node, fault } => {
            let addresses: Vec<IpAddr> = world.node(node)?.addresses().collect();
            Rule::around(&addresses, &weather(*fault)).into()
        }
        Action::Partition { one, other } => {
            let (one, other) = (subnet(world, one)?, subnet(world, other)?);
            let block = |from: &[Cidr], to: &[Cidr]| Rule {
                from: from.to_vec(),
                to: to.to_vec(),
                fault: Fault::block(),
            };
            vec![block(&one, &other), block(&other, &one)]
        }
        Action::NoBroker { cloud } => {
            let broker = world.topology.broker.address.both();
            let hosts = broker.map(Cidr::host).to_vec();
            vec![Rule { from: subnet(world, cloud)?, to: hosts, fault: Fault::block() }]
        }
        _ => Vec::new(),
    })
}

fn subnet(world: &World, cloud: &str) -> Result<Vec<Cidr>> {
    Ok(world.cloud(cloud)?.subnet.both().to_vec())
}

fn weather(fault: Weather) -> Fault {
    let good = Fault::default();
    match fault {
        Weather::Loss => Fault::lossy(0.3),
        Weather::Delay => Fault { delay_us: 80_000, jitter_us: 40_000, ..good },
        Weather::Duplicate => Fault { duplicate: 0.3, ..good },
        Weather::Reorder => Fault { reorder: 0.2, hold_us: 15_000, ..good },
        Weather::Corrupt => Fault { corrupt: 0.1, ..good },
        Weather::Slow => Fault { rate_kbit: Some(2000), queue_bytes: 64 * 1024, ..good },
    }
}

/// As somebody does who has found out that it is podspan's.
fn delete(world: &World, node: &str, what: Part) -> Result<()> {
    let table = podspan_table();
    let line = match what {
        Part::Routes => format!("ip -4 route flush table {table}; ip -6 route flush table {table}"),
        Part::Rules => {
            format!("for f in -4 -6; do while ip $f rule del lookup {table} 2>/dev/null; do :; done; done")
        }
        Part::Table => "nft delete table inet podspan".into(),
        Part::Addresses => format!("ip address flush dev {INTERFACE}"),
    };
    // What is not there, since the agent is about to put it back, cannot be deleted.
    Cmd::new("sh").args(["-c", &line]).within(&world.node(node)?.netns()).run()?;
    Ok(())
}

/// podspan's routing table (ARCHITECTURE.md).
fn podspan_table() -> u32 {
    7183
}

/// Turns the word in the node's facts around; its agent sees that the file has changed.
fn toggle(world: &World, node: &str) -> Result<()> {
    let file = state::path(world::node_directory(world.node(node)?)).join("node.toml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let (yes, no) = ("gateway = true", "gateway = false");
    let turned = if text.contains(yes) { text.replace(yes, no) } else { text.replace(no, yes) };
    if turned == text {
        bail!("{} does not tell whether {node} is a gateway", file.display());
    }
    let new = file.with_extension("new");
    std::fs::write(&new, turned)?;
    std::fs::rename(&new, &file).with_context(|| file.display().to_string())
}
