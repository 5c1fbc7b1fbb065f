//! How flows are spread over two gateways, and which of them move.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Findings;
use super::field::{self, BEHIND, Field, GATEWAYS};
use super::strike::plug;
use super::ways::{Course, FLOWS, Ways, uneven};
use crate::screen::Screen;
use crate::signals;
use crate::topology::Family;
use crate::world::World;

/// Within which a gateway that was held down has its flows again.
const RETURN: Duration = Duration::from_secs(70);

const COURSE: Course<'_> = Course { from: "beta/pod3", to: BEHIND, last: "alpha-3", gateways: &GATEWAYS };

pub(super) fn spread(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let result = all(world, &mut findings);
    for gateway in GATEWAYS {
        plug(world, gateway, true)?;
    }
    result?;
    findings.conclude(3 + 2 + 2 * 2 + 1)
}

fn all(world: &mut World, findings: &mut Findings) -> Result<()> {
    quiet(world, findings)?;
    let first = Ways::look(world, &COURSE)?;
    for family in Family::BOTH {
        let counts = first.counts(family);
        Screen::new(false).raw(&format!("           {FLOWS} flows by {family}: {counts:?}"));
        let wrong = uneven(&counts, &GATEWAYS.map(|gateway| (gateway, 1)));
        findings.require(wrong.is_empty(), || format!("{family}: {}", wrong.join("; ")));
    }
    // One dies: all are with the other. It comes back: each is where it was.
    let [dead, other] = GATEWAYS;
    plug(world, dead, false)?;
    signals::sleep(Duration::from_secs(1))?;
    let without = Ways::look(world, &COURSE)?;
    for family in Family::BOTH {
        let counts = without.counts(family);
        let all = Some(&u64::from(FLOWS));
        findings.expect(&format!("{family}: through {other} alone"), all, counts.get(other));
        findings.expect(&format!("{family}: through {dead}"), None, counts.get(dead));
    }
    plug(world, dead, true)?;
    world.wait_until_all_tunnels_stand()?;
    let end = Instant::now() + Duration::from_secs(40);
    let moved = loop {
        let moved = first.moved(&Ways::look(world, &COURSE)?, |_| true);
        if moved == 0 || Instant::now() > end {
            break moved;
        }
        signals::sleep(Duration::from_millis(500))?;
    };
    findings.expect("flows that are not where they were", 0, moved);
    Ok(())
}

/// While nothing happens nothing is lost, doubled or overtaken, with flows on both gateways.
fn quiet(world: &mut World, findings: &mut Findings) -> Result<()> {
    let field = Field::start(world)?;
    // A gateway that died before gets its flows back when it has been steady for a while.
    let end = Instant::now() + RETURN;
    while field::shares(world, Duration::from_secs(1))?.values().any(|packets| *packets < 70)
        && Instant::now() < end
    {
        signals::sleep(Duration::from_millis(200))?;
    }
    field.begin()?;
    let shares = field::shares(world, Duration::from_secs(3))?;
    let seen = field.report()?;
    field.stop()?;
    findings.require(seen.lost == 0 && seen.sent > 2000, || format!("while nothing happened: {seen:?}"));
    findings.expect(
        "reordered, duplicated while nothing happened",
        (0, 0),
        (seen.reordered, seen.duplicates),
    );
    findings.require(shares.values().all(|packets| *packets > 200), || {
        format!("both gateways should carry flows: {shares:?}")
    });
    Ok(())
}
