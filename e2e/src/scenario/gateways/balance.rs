//! How flows are spread over five, three and two gateways, and which of them move.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{COURSE, Findings, GATEWAYS, all_gateways, plugs, require_spread, set_gateways};
use crate::scenario::failover::Ways;
use crate::screen::Screen;
use crate::signals;
use crate::topology::Family;
use crate::world::World;

const DEAD: &str = "beta-3";

/// Within which a gateway that is back has its flows again: it is held down for a second at first, and longer if
/// it died before.
const RETURN: Duration = Duration::from_secs(30);

const WEIGHTS: [(&str, u8); 5] =
    [("beta-1", 10), ("beta-2", 10), ("beta-3", 20), ("beta-4", 20), ("beta-5", 40)];

pub(super) fn balance(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let result = all(world, &mut findings);
    plugs(world, &GATEWAYS, true)?;
    set_gateways(world, &all_gateways())?;
    result?;
    findings.conclude(3 + 3 + 2 + 2 + 2 * 3)
}

fn all(world: &mut World, findings: &mut Findings) -> Result<()> {
    set_gateways(world, &all_gateways())?;
    let first = Ways::look(world, &COURSE)?;
    require_spread(findings, "five gateways", &first, &all_gateways());
    findings.expect("flows that went through two gateways while nothing happened", 0, first.split);

    one_dies(world, &first, findings)?;

    set_gateways(world, &WEIGHTS)?;
    require_spread(findings, "by weight", &Ways::look(world, &COURSE)?, &WEIGHTS);

    let mut before = first;
    for count in [3, 2] {
        let left = &all_gateways()[..count];
        set_gateways(world, left)?;
        let now = Ways::look(world, &COURSE)?;
        require_spread(findings, &format!("{count} gateways"), &now, left);
        let stays = |gateway: &str| left.iter().any(|(name, _)| *name == gateway);
        let moved = before.moved(&now, stays);
        findings.expect(&format!("flows of these {count} that moved"), 0, moved);
        before = now;
    }
    Ok(())
}

/// One of five dies: its fifth moves, and when it is back, moves back; nothing else does.
fn one_dies(world: &mut World, first: &Ways, findings: &mut Findings) -> Result<()> {
    plugs(world, &[DEAD], false)?;
    signals::sleep(Duration::from_secs(1))?;
    let without = Ways::look(world, &COURSE)?;
    let others = |gateway: &str| gateway != DEAD;
    findings.expect("flows of the other four that moved", 0, first.moved(&without, others));
    for family in Family::BOTH {
        let counts = without.counts(family);
        Screen::new(false).raw(&format!("           without {DEAD}, {family}: {counts:?}"));
        findings.expect(&format!("{family}: through {DEAD}"), None, counts.get(DEAD));
    }

    plugs(world, &[DEAD], true)?;
    let begin = Instant::now();
    let (mut strangers, mut looks) = (0, 0);
    let away = loop {
        let now = Ways::look(world, &COURSE)?;
        looks += 1;
        strangers += first.moved(&now, others);
        let away = first.moved(&now, |_| true);
        if away == 0 || begin.elapsed() > RETURN {
            break away;
        }
        signals::sleep(Duration::from_millis(200))?;
    };
    let seconds = begin.elapsed().as_secs_f64();
    Screen::new(false)
        .raw(&format!("           {DEAD} had its flows again after {seconds:.1} s, {looks} looks"));
    findings.expect("flows that are not where they were", 0, away);
    findings.expect("flows of the other four that moved when it came back", 0, strangers);
    Ok(())
}
