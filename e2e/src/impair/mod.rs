//! The impaired underlay: this kernel may have no `sch_netem`, so a program of the lab's own stands in the
//! router and delays, drops, duplicates, reorders, damages and limits what passes between the clouds.
//!
//! While a scenario wants it, rules lead every packet that comes in by one of the router's links to a TUN. The
//! forwarder reads it there, lets it pass the [`Path`](path::Path), and writes it back to the TUN, from where
//! the kernel forwards it as it would have before. If the forwarder dies, its TUN goes and the rules find an
//! empty table: the kernel forwards by itself again.

mod forwarder;
mod packet;
mod path;
mod plan;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::Cmd;
use crate::control;
use crate::state;
use crate::topology::Family;
use crate::world::World;

pub(crate) use forwarder::{Impair, run};
pub(crate) use plan::{Counts, Fault, Plan, Rule};

/// The TUN.
pub(crate) const INTERFACE: &str = "psp-imp0";

/// The routing table whose default route is the TUN, and the priority of the rules that lead there. The router
/// has no other rules of its own.
const TABLE: u32 = 7700;
const PRIORITY: u32 = 7700;

/// The forwarder among the daemons.
pub(crate) const DAEMON: &str = "impaired underlay";

const TIMEOUT: Duration = Duration::from_secs(5);

/// What the forwarder is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// From now on this.
    Set(Plan),
    /// What is done, and what was.
    Show,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Done,
    Now { plan: Plan, counts: Counts },
}

fn socket() -> PathBuf {
    state::path("impair.sock")
}

/// Puts the forwarder into the router. From here on every packet between the underlay's subnets passes it.
pub(crate) fn start(world: &mut World) -> Result<()> {
    let router = world.topology.router();
    std::fs::remove_file(socket()).ok();
    let cmd = Cmd::lab().args(["impair", "--socket"]).arg(socket()).within(&router);
    world.start_daemon(DAEMON, &cmd)?;
    control::wait(&socket(), TIMEOUT).context("the forwarder of the impaired underlay has not started")?;
    // The route first: a rule that finds none is passed over.
    change(world, |_| vec![format!("route add default dev {INTERFACE} table {TABLE}")])?;
    change(world, |world| rules(world, "add"))
}

/// Takes it out again.
pub(crate) fn stop(world: &mut World) -> Result<()> {
    change(world, |world| rules(world, "del"))?;
    world.daemon(DAEMON)?.end(TIMEOUT)?;
    Ok(())
}

/// Takes it out if it is there: for the end of a scenario, however it ended.
pub(crate) fn stop_if_there(world: &mut World) -> Result<()> {
    if world.daemon(DAEMON).is_ok_and(|process| process.is_alive()) { stop(world) } else { Ok(()) }
}

fn rules(world: &World, verb: &str) -> Vec<String> {
    let links = world.topology.underlay();
    links
        .iter()
        .map(|(link, _)| format!("rule {verb} iif {link} priority {PRIORITY} lookup {TABLE}"))
        .collect()
}

/// The same lines for both families.
fn change(world: &World, lines: impl Fn(&World) -> Vec<String>) -> Result<()> {
    for family in Family::BOTH {
        Cmd::new("ip")
            .args([family.flag(), "-batch", "-"])
            .stdin(lines(world).join("\n") + "\n")
            .within(&world.topology.router())
            .run_ok()?;
    }
    Ok(())
}

/// From now on this is done to what passes.
pub(crate) fn set(plan: &Plan) -> Result<()> {
    match control::ask(&socket(), &Request::Set(plan.clone()), TIMEOUT)? {
        Answer::Done => Ok(()),
        other @ Answer::Now { .. } => bail!("the forwarder answered {other:?}"),
    }
}

/// What was done since the last [`set`].
pub(crate) fn counts() -> Result<Counts> {
    match control::ask(&socket(), &Request::Show, TIMEOUT)? {
        Answer::Now { counts, .. } => Ok(counts),
        Answer::Done => bail!("the forwarder does not tell what it does"),
    }
}
