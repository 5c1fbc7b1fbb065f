//! The subcommands that make a world, look at it and take it down.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build;
use crate::command::Cmd;
use crate::requirements;
use crate::rules::{Backend, Variant};
use crate::screen::Screen;
use crate::state::{Lock, Record};
use crate::topology::{Shape, Topology};
use crate::world::{self, World};

/// Which variant of the clusters' own rules a world has.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct VariantArgs {
    /// How the clusters' CNI and kube-proxy write their rules
    #[arg(long, value_enum, default_value = "iptables-nft")]
    rules: Backend,
    /// Run kube-proxy without a cluster CIDR, so that clients from elsewhere are not masqueraded
    #[arg(long)]
    no_cluster_cidr: bool,
}

impl VariantArgs {
    pub(crate) fn variant(self) -> Variant {
        Variant { backend: self.rules, cluster_cidr: !self.no_cluster_cidr }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    variant: VariantArgs,
    /// Leave podspan out: three clusters that know nothing of each other
    #[arg(long)]
    bare: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Where: a pod such as alpha/pod1, a node such as alpha-1, or router, broker, internet
    place: String,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) fn up(up: &Up) -> Result<ExitCode> {
    let screen = Screen::new(false);
    requirements::ensure(&screen)?;
    let programs = if up.bare { None } else { Some(build::programs(&screen)?) };
    let mut world = World::create(Shape::Standard, up.variant.variant(), screen)?;
    world.start_all(programs.as_ref())?;
    world.stay()?;
    screen.line("the lab is up; look at it with `cargo lab status`, end it with `cargo lab down`");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn down() -> Result<ExitCode> {
    let screen = Screen::new(false);
    requirements::ensure_root()?;
    let Some(record) = with_lock()? else {
        screen.line("there is no lab: nothing to do");
        return Ok(ExitCode::SUCCESS);
    };
    let (lock, record) = record;
    let left = crate::signals::uninterrupted(|| world::tear_down(&record))?;
    drop(lock);
    if left.is_empty() {
        screen.line("the lab is down; the machine's network is as it was before, compared in full");
        return Ok(ExitCode::SUCCESS);
    }
    bail!("the lab is down, but this is left or changed:\n  {}", left.0.join("\n  "));
}

/// The lock and the record, if there is one; without one no directory is left either.
fn with_lock() -> Result<Option<(Lock, Record)>> {
    if !std::path::Path::new(crate::state::ROOT).exists() {
        return Ok(None);
    }
    let lock = Lock::take()?;
    match Record::load()? {
        Some(record) => Ok(Some((lock, record))),
        None => {
            std::fs::remove_dir_all(crate::state::ROOT).ok();
            Ok(None)
        }
    }
}

pub(crate) fn exec(exec: &Exec) -> Result<ExitCode> {
    requirements::ensure_root()?;
    let record = Record::load()?;
    let topology = Topology::of(record.as_ref().map(|record| record.shape).unwrap_or_default());
    let Some(netns) = topology.find(&exec.place) else {
        bail!("there is no {:?} in the lab; there are: {}", exec.place, topology.places().join(" "));
    };
    if record.is_none() {
        bail!("there is no lab; make one with `cargo lab up`");
    }
    if record.is_some_and(|record| record.kube.is_some()) {
        bail!("clusters of real Kubernetes are up: `cargo lab kube exec NODE -- COMMAND`");
    }
    let (program, args) = exec.command.split_first().context("no command was given")?;
    let code = Cmd::new(program).args(args).within(&netns).hand_over()?;
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)))
}
