//! Two nodes of one cluster under one name: a settings file that was copied and not changed.

use std::time::Duration;

use anyhow::Result;

use super::calm::{Calm, WAYS, traffic};
use super::stray::Stray;
use super::wait_for;
use crate::scenario::Findings;
use crate::signals;
use crate::world::{self, World};

/// Everything but the node whose name is used twice.
const OTHERS: [(&str, &str); 3] =
    [("alpha/pod3", "beta/pod3"), ("gamma/pod3", "alpha/pod1"), ("beta/pod1", "gamma/pod1")];

/// A lease is renewed every ten seconds or so; at the latest then the one sees that it is not alone.
const NOTICED: Duration = Duration::from_secs(20);

/// The one that goes withdraws its record; then the name is free for the other.
const BACK: Duration = Duration::from_secs(20);

pub(super) fn nodes(world: &mut World) -> Result<()> {
    const PROBLEM: &str = "another agent has announced itself as this node";
    let mut findings = Findings::default();
    let node = world.node("alpha-3")?.clone();
    let calm = Calm::watch(world, &OTHERS, Duration::from_secs(34))?;
    let stray = Stray::start(world, &world::bundle("alpha"), "alpha-3", "10.1.77.0/24")?;
    let says = |problems: &[String]| problems.iter().any(|problem| problem.contains(PROBLEM));
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut look = || -> Result<bool> {
        first = world.agent_status(&node)?.problems;
        second = stray.status().map(|status| status.problems).unwrap_or_default();
        Ok(says(&first) || says(&second))
    };
    let said = wait_for(NOTICED, &mut look)?;
    // It stays to be read, and is not only there in the moment of the clash.
    let mut stays = said;
    for _ in 0..5 {
        signals::sleep(Duration::from_secs(1))?;
        stays &= look()?;
    }
    findings.require(stays, || format!("alpha-3 says {first:?}, the second alpha-3 {second:?}"));
    // The one that does not belong is taken away: the other comes back to its own.
    stray.end(world)?;
    let back = wait_for(BACK, || {
        let mut back = Findings::default();
        traffic(world, &WAYS[..1], &mut back)?;
        Ok(back.conclude(2).is_ok())
    })?;
    findings
        .require(back, || format!("alpha-3 has no traffic {} s after its namesake is gone", BACK.as_secs()));
    let problems = world.agent_status(&node)?.problems;
    findings.require(!says(&problems), || format!("alpha-3 still says {problems:?}"));
    calm.check(world, &[super::stray::STRAY], &mut findings)?;
    world.wait_until_joined()?;
    findings.conclude(24 + 2)
}
