//! The nearest gateway carries everything, where that is asked for.

use std::time::Duration;

use anyhow::Result;

use super::{Findings, GATEWAYS, SENDER, all_gateways, require_spread, restart_with, traffic, until};
use crate::impair::{self, Fault, Rule};
use crate::screen::Screen;
use crate::topology::Family;
use crate::world::World;

/// Within which flows are with another gateway when the distances have changed: round trips are smoothed over
/// some ten probes.
const FOLLOW: Duration = Duration::from_secs(15);

/// Round trips to the gateways, in their order, milliseconds.
const FIRST: [u64; 5] = [30, 14, 30, 4, 30];
/// The nearest has become the farthest.
const THEN: [u64; 5] = [30, 14, 30, 80, 30];

pub(super) fn nearest(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    impair::start(world)?;
    let result = all(world, &mut findings);
    impair::stop_if_there(world)?;
    let back = restart_with(world, "");
    result?;
    back?;
    findings.conclude(2 + 2 + 2 + 2)
}

fn all(world: &mut World, findings: &mut Findings) -> Result<()> {
    distances(world, FIRST)?;
    // Spread is what comes without asking, whatever the distances.
    let traffic = traffic(world, (super::FROM, super::TO), (5, 100), 0)?;
    let (ways, _) = until(world, Duration::ZERO, |_| true)?;
    require_spread(findings, "not asked for", &ways, &all_gateways());

    restart_with(world, "[gateways]\nchoice = \"nearest\"\n")?;
    carried_by(world, "beta-4", findings)?;
    distances(world, THEN)?;
    carried_by(world, "beta-2", findings)?;

    restart_with(world, "[gateways]\nchoice = \"spread\"\n")?;
    let (ways, _) = until(world, Duration::ZERO, |_| true)?;
    require_spread(findings, "spread again", &ways, &all_gateways());
    traffic.stop()
}

/// All flows go through this gateway, soon.
fn carried_by(world: &mut World, gateway: &'static str, findings: &mut Findings) -> Result<()> {
    let is_alone = |ways: &super::Ways, family| ways.counts(family).keys().eq([&gateway]);
    let (ways, time) =
        until(world, FOLLOW, |ways| Family::BOTH.iter().all(|family| is_alone(ways, *family)))?;
    for family in Family::BOTH {
        findings.require(is_alone(&ways, family), || {
            format!("{family}: {gateway} is the nearest, and flows went through {:?}", ways.counts(family))
        });
    }
    let seconds = time.as_secs_f64();
    Screen::new(false).raw(&format!("           all through {gateway} after {seconds:.1} s"));
    Ok(())
}

/// Has round trips between the sending node and the gateways take so long.
fn distances(world: &World, milliseconds: [u64; 5]) -> Result<()> {
    let sender: Vec<_> = world.node(SENDER)?.addresses().collect();
    let mut rules = Vec::new();
    for (gateway, milliseconds) in GATEWAYS.iter().zip(milliseconds) {
        let addresses: Vec<_> = world.node(gateway)?.addresses().collect();
        let fault = Fault { delay_us: milliseconds * 500, ..Fault::default() };
        rules.push(Rule::between(&sender, &addresses, fault.clone()));
        rules.push(Rule::between(&addresses, &sender, fault));
    }
    impair::set(&impair::Plan { seed: 5, rules })
}
