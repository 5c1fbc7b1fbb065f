//! A gateway dies, and is brought back, and dies again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::field::{self, Field, Seen};
use super::{Findings, Strike};
use crate::impair;
use crate::screen::Screen;
use crate::signals;
use crate::world::{self, World};

/// The longest gap that is good.
pub(crate) const LONGEST_GAP: Duration = Duration::from_millis(500);

/// How long all is quiet before a gateway dies.
const QUIET: Duration = Duration::from_millis(400);

/// How long it may take until nobody thinks ill of a gateway any more: loss is of the last 32 probes, which are one a
/// second where nothing else is sent.
const FIT: Duration = Duration::from_secs(45);

/// How long a gateway that is back is left alone, so that it is fit to take over when the other one dies.
const SETTLE: Duration = Duration::from_millis(800);

/// One death.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    pub(crate) victim: &'static str,
    pub(crate) seen: Seen,
    /// Packets per second through the victim at the end, when everything should have left it.
    pub(crate) still_through_it: u64,
    /// How often agents said that a gateway answers but does not forward.
    pub(crate) accusations: usize,
}

impl Trial {
    pub(crate) fn gap(&self) -> Duration {
        Duration::from_micros(self.seen.gap_us)
    }
}

/// Runs that many trials; the gateway that carries the traffic dies.
pub(crate) fn run(world: &mut World, strike: Strike, count: usize, screen: &Screen) -> Result<Vec<Trial>> {
    let result = run_all(world, strike, count, screen);
    field::clean_up(world)?;
    result
}

fn run_all(world: &mut World, strike: Strike, count: usize, screen: &Screen) -> Result<Vec<Trial>> {
    if strike.needs_impairment() {
        impair::start(world)?;
    }
    let field = Field::start(world)?;
    let mut trials = Vec::new();
    for _ in 0..count {
        trials.push(one(world, strike, &field)?);
    }
    field.stop()?;
    screen.raw(&format!("           {}: {}", strike.label(), figures(&trials)));
    Ok(trials)
}

fn one(world: &mut World, strike: Strike, field: &Field) -> Result<Trial> {
    let victim = field::carrier(world)?;
    let accusations = accusations(world)?;
    field.begin()?;
    signals::sleep(QUIET)?;
    let struck = strike.strike(world, victim);
    let watched = struck.and_then(|()| {
        signals::sleep(strike.watch())?;
        let through = field::shares(world, Duration::from_millis(500))?;
        Ok((field.report()?, through[victim] * 2))
    });
    strike.mend(world, victim)?;
    let (seen, still_through_it) = watched?;
    wait_until_back(world, field)?;
    let accusations = self::accusations(world)? - accusations;
    Ok(Trial { victim, seen, still_through_it, accusations })
}

/// How often all agents so far have said that a gateway answers but does not forward.
fn accusations(world: &World) -> Result<usize> {
    let mut all = 0;
    for node in world.topology.nodes() {
        let log = world::log_path(&world::agent_name(&node.name))?;
        let text = std::fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        all += String::from_utf8_lossy(&text).matches("answers but does not forward").count();
    }
    Ok(all)
}

/// Until all nodes have their tunnels and connections again, as before the trial.
fn wait_until_back(world: &World, field: &Field) -> Result<()> {
    world.wait_until_all_tunnels_stand()?;
    field.wait_until_all_stands()?;
    let end = Instant::now() + FIT;
    loop {
        let unfit = field::unfit(world)?;
        if unfit.is_empty() {
            break;
        }
        if Instant::now() > end {
            bail!("{} s after it was made good: {}", FIT.as_secs(), unfit.join("; "));
        }
        signals::sleep(Duration::from_millis(200))?;
    }
    signals::sleep(SETTLE)?;
    Ok(())
}

/// Median, 99th percentile (nearest rank) and maximum.
fn quantiles(trials: &[Trial]) -> [Duration; 3] {
    let mut gaps: Vec<_> = trials.iter().map(Trial::gap).collect();
    gaps.sort_unstable();
    let rank = |percent: usize| gaps.get((gaps.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    [rank(50), rank(99), gaps.last().copied()].map(Option::unwrap_or_default)
}

/// A line for a person.
fn figures(trials: &[Trial]) -> String {
    let [p50, p99, max] = quantiles(trials).map(|gap| gap.as_millis());
    let sum = |field: fn(&Seen) -> u64| trials.iter().map(|trial| field(&trial.seen)).sum::<u64>();
    let most =
        |field: fn(&Seen) -> u64| trials.iter().map(|trial| field(&trial.seen)).max().unwrap_or(0) / 1000;
    format!(
        "{} trials: gap {p50} / {p99} / {max} ms (p50 / p99 / max); lost {} of {}; TCP: {} broken, longest stall {} ms; \
         requests: {} retried, {} failed; to the service: {} connections broken, {} retried, {} failed; sender's own \
         stall {} ms",
        trials.len(),
        sum(|seen| seen.lost),
        sum(|seen| seen.sent),
        sum(|seen| seen.pods.broken),
        most(|seen| seen.pods.stall_us),
        sum(|seen| seen.pods.retried),
        sum(|seen| seen.pods.failed),
        sum(|seen| seen.service.broken),
        sum(|seen| seen.service.retried),
        sum(|seen| seen.service.failed),
        most(|seen| seen.own_stall_us),
    )
}

/// What trials must have shown: five things each, and one all of them.
pub(super) fn judge(trials: &[Trial], strike: Strike, findings: &mut Findings) {
    for (number, trial) in trials.iter().enumerate() {
        let Trial { victim, seen, .. } = trial;
        let what = format!("{} of {victim}, trial {}", strike.label(), number + 1);
        // What the sender was not let see is no gap of the network's.
        let limit = LONGEST_GAP + Duration::from_micros(seen.own_stall_us);
        findings.require(trial.gap() <= limit && seen.sent > 1000, || {
            format!("{what}: a gap of {} ms, {seen:?}", trial.gap().as_millis())
        });
        findings.require(seen.pods.broken == 0 && seen.pods.connections == 50, || {
            format!("{what}: connections: {:?}", seen.pods)
        });
        findings.require(seen.pods.failed == 0 && seen.pods.requests > 50, || {
            format!("{what}: requests: {:?}", seen.pods)
        });
        findings.require(seen.wrong.is_empty(), || format!("{what}: {:?}", seen.wrong));
        // Probes go on; a link that flaps may be used again at the end.
        let left = strike == Strike::Flapping || trial.still_through_it < 200;
        findings.require(left, || {
            format!("{what}: {} packets a second still go through it", trial.still_through_it)
        });
    }
    // Whoever reads the log must be sent to the right place. One that has just come back may indeed not forward yet for a
    // moment, and what is lost at random may look like either.
    let accusations: Vec<usize> = trials.iter().map(|trial| trial.accusations).collect();
    let right = match strike {
        Strike::NotForwarding => !accusations.contains(&0),
        Strike::Lossy | Strike::Flapping => true,
        _ => accusations.iter().sum::<usize>() < trials.len(),
    };
    findings.require(right, || {
        format!(
            "{}: in these trials it was said so many times that it answers but does not forward: {accusations:?}",
            strike.label()
        )
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let trial = |gap_ms: u64| Trial {
            victim: "alpha-1",
            seen: Seen { gap_us: gap_ms * 1000, ..Seen::default() },
            still_through_it: 0,
            accusations: 0,
        };
        let trials: Vec<_> = (1..=30).rev().map(trial).collect();
        assert_eq!(quantiles(&trials).map(|gap| gap.as_millis()), [15, 30, 30]);
        assert_eq!(quantiles(&trials[..1]).map(|gap| gap.as_millis()), [30; 3]);
        assert_eq!(quantiles(&[]), [Duration::ZERO; 3]);
    }
}
