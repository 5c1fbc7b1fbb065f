//! `lab chaos`: as long as one likes, with any seed.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;

use super::Run;
use crate::build;
use crate::commands::VariantArgs;
use crate::requirements;
use crate::screen::Screen;
use crate::topology::Shape;
use crate::world::World;

#[derive(Debug, Args)]
pub(crate) struct ChaosArgs {
    /// What happens is drawn from it; one from the clock if it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// For how long
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// One storm of the seed only
    #[arg(long)]
    storm: Option<u64>,
    #[command(flatten)]
    variant: VariantArgs,
}

/// Runs it in a world of its own.
pub(crate) fn chaos(args: &ChaosArgs) -> Result<ExitCode> {
    let screen = Screen::new(false);
    requirements::ensure(&screen)?;
    let programs = build::programs(&screen)?;
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = args.seed.unwrap_or_else(clock);
    let mut world = World::create(Shape::Standard, args.variant.variant(), screen)?;
    world.start_all(Some(&programs))?;
    screen.line(&format!("chaos for {} minutes from seed {seed}", args.minutes));
    let run = Run { seed, time: Duration::from_secs(args.minutes * 60), only: args.storm };
    if let Err(error) = super::run(&mut world, &run, &screen) {
        screen.raw(&world.diagnosis());
        return Err(error);
    }
    let left = world.down()?;
    if !left.is_empty() {
        bail!("what must hold held, but this was left: {left}");
    }
    screen.line("everything that must hold held, and nothing is left");
    Ok(ExitCode::SUCCESS)
}
