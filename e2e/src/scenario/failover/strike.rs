//! The ways in which a gateway dies, and how each is made good again.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::command::Cmd;
use crate::impair::{self, Fault, Rule};
use crate::rules::{self, Script};
use crate::signals;
use crate::state;
use crate::world::{self, BROKER, World};

/// A way to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strike {
    PowerCut,
    AgentKilled,
    OutBlocked,
    InBlocked,
    NotForwarding,
    Lossy,
    Flapping,
    PowerCutAndBroker,
}

/// All of them.
pub(crate) const ALL: [Strike; 8] = [
    Strike::PowerCut,
    Strike::AgentKilled,
    Strike::OutBlocked,
    Strike::InBlocked,
    Strike::NotForwarding,
    Strike::Lossy,
    Strike::Flapping,
    Strike::PowerCutAndBroker,
];

/// How often a flapping link goes down and up, and how long each takes.
const FLAPS: usize = 4;
const FLAP: Duration = Duration::from_secs(1);

impl Strike {
    /// What it is to a person.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::PowerCut => "power cut",
            Self::AgentKilled => "agent killed",
            Self::OutBlocked => "outward blocked",
            Self::InBlocked => "inward blocked",
            Self::NotForwarding => "does not forward",
            Self::Lossy => "30 % loss",
            Self::Flapping => "link flaps",
            Self::PowerCutAndBroker => "power cut, broker dead",
        }
    }

    /// Whether packets must pass the impaired underlay for it.
    pub(super) fn needs_impairment(self) -> bool {
        matches!(self, Self::OutBlocked | Self::InBlocked | Self::Lossy)
    }

    /// How long what follows is watched.
    pub(super) fn watch(self) -> Duration {
        match self {
            // The loss of 32 probes is looked at, one each 100 ms.
            Self::Lossy => Duration::from_secs(6),
            // Its own time is enough.
            Self::Flapping => Duration::from_millis(500),
            _ => Duration::from_secs(2),
        }
    }

    /// Does it; returns at once, unless doing it takes its time.
    pub(crate) fn strike(self, world: &mut World, victim: &str) -> Result<()> {
        match self {
            Self::PowerCut => plug(world, victim, false),
            Self::AgentKilled => world.daemon(&world::agent_name(victim))?.signal(Signal::SIGKILL),
            Self::OutBlocked => {
                impaired(vec![Rule::between(&addresses(world, victim)?, &[], Fault::block())])
            }
            Self::InBlocked => impaired(vec![Rule::between(&[], &addresses(world, victim)?, Fault::block())]),
            Self::NotForwarding => forwarding(world, victim, false),
            Self::Lossy => impaired(Rule::around(&addresses(world, victim)?, &Fault::lossy(0.3)).into()),
            Self::Flapping => {
                for flap in 0..2 * FLAPS {
                    plug(world, victim, flap % 2 == 1)?;
                    signals::sleep(FLAP)?;
                }
                Ok(())
            }
            Self::PowerCutAndBroker => {
                world.daemon(BROKER)?.signal(Signal::SIGKILL)?;
                plug(world, victim, false)
            }
        }
    }

    /// Makes it good.
    pub(crate) fn mend(self, world: &mut World, victim: &str) -> Result<()> {
        match self {
            Self::PowerCut | Self::Flapping => plug(world, victim, true),
            Self::AgentKilled => {
                world.daemon(&world::agent_name(victim))?.wait(Duration::from_secs(5))?;
                world.start_agent(victim)
            }
            Self::OutBlocked | Self::InBlocked | Self::Lossy => impaired(Vec::new()),
            Self::NotForwarding => forwarding(world, victim, true),
            Self::PowerCutAndBroker => {
                plug(world, victim, true)?;
                world.start_broker()
            }
        }
    }
}

/// Pulls a node's plug out of its cloud's network, or puts it back: nothing passes any more and nobody is told.
pub(crate) fn plug(world: &World, node: &str, up: bool) -> Result<()> {
    let node = world.node(node)?;
    for interface in &node.interfaces {
        Cmd::new("ip")
            .args(["link", "set", &node.name, if up { "up" } else { "down" }])
            .within(&interface.network)
            .run_ok()?;
    }
    Ok(())
}

/// A node that answers everybody and forwards nothing.
pub(crate) fn forwarding(world: &World, node: &str, on: bool) -> Result<()> {
    let netns = world.node(node)?.netns();
    if on {
        Cmd::new("nft").args(["delete", "table", "inet", "no-forwarding"]).within(&netns).run_ok()?;
        return Ok(());
    }
    let table =
        "table inet no-forwarding { chain c { type filter hook forward priority -300; policy drop; }\n}\n";
    rules::apply(&[Script::Nft(table.into())], &netns, &state::path("xtables.lock"))
}

fn addresses(world: &World, node: &str) -> Result<Vec<IpAddr>> {
    Ok(world.node(node)?.addresses().collect())
}

fn impaired(rules: Vec<Rule>) -> Result<()> {
    impair::set(&impair::Plan { seed: 5, rules })
}
