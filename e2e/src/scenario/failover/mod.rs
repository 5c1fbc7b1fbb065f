//! Gateways that die in every way there is, under traffic.
//!
//! alpha has two gateways. Traffic runs between pods of beta and gamma and a pod on alpha-3, which is no
//! gateway: whatever goes there has passed one of the two, and so have the answers to what comes from there.

mod balance;
mod dead;
mod drain;
mod field;
mod path_mtu;
mod strike;
mod trials;
mod ways;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::{Findings, Scenario, Setting};
use crate::screen::Screen;
use crate::world::World;

pub(super) use dead::{Try, attempt};
#[cfg(test)]
pub(crate) use field::Seen;
pub(crate) use field::sent_through;
pub(super) use strike::forwarding;
pub(crate) use strike::{ALL, Strike, plug};
pub(crate) use trials::{Trial, run as run_trials};
pub(super) use ways::{Course, Ways, uneven};

/// Whether this run has the time for many trials.
static SOAK: AtomicBool = AtomicBool::new(false);

/// From now on every scenario of this kind is tried many times.
pub(super) fn soak() {
    SOAK.store(true, Ordering::Relaxed);
}

/// Whether everything is tried many times.
pub(super) fn is_soak() -> bool {
    SOAK.load(Ordering::Relaxed)
}

/// How often each thing is tried.
fn count() -> usize {
    if is_soak() { 30 } else { 3 }
}

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario = |name, about, run: fn(&mut World) -> Result<()>| Scenario {
        setting,
        name,
        about,
        // As long as the soak takes.
        timeout: Duration::from_secs(1200),
        run,
    };
    let mut all = vec![
        scenario(
            "failover-power-cut",
            "a gateway's plug is pulled under traffic: no gap over half a second, no connection breaks",
            |world| kind(world, Strike::PowerCut),
        ),
        scenario("failover-agent-killed", "the same when its agent is killed", |world| {
            kind(world, Strike::AgentKilled)
        }),
        scenario("failover-out-blocked", "the same when nothing it sends arrives", |world| {
            kind(world, Strike::OutBlocked)
        }),
        scenario("failover-in-blocked", "the same when nothing reaches it", |world| {
            kind(world, Strike::InBlocked)
        }),
        scenario("failover-not-forwarding", "the same when it answers but does not forward", |world| {
            kind(world, Strike::NotForwarding)
        }),
        scenario(
            "failover-all-dead",
            "with all gateways dead \"unreachable\" comes at once, and traffic within 1 s of the first one's return",
            dead::unreachable,
        ),
        scenario("failover-broker", "a gateway's plug is pulled in the moment the broker dies", |world| {
            kind(world, Strike::PowerCutAndBroker)
        }),
        scenario(
            "failover-balance",
            "1000 flows are spread evenly over two gateways; only those of a dead one move, and only they move back",
            balance::spread,
        ),
        scenario(
            "failover-path-mtu",
            "the path takes 1400, then 1280 bytes and tells nobody: 200 MB and large datagrams go on within 3 s; \
             it is wide again, and that is used",
            path_mtu::narrow,
        ),
        scenario(
            "failover-path-mtu-jumbo",
            "an underlay of 9000 bytes is used while it is there",
            path_mtu::jumbo,
        ),
        scenario(
            "failover-drain",
            "a gateway that is drained, restarted and taken back loses no packet and no connection",
            drain::drain,
        ),
        scenario(
            "failover-retired",
            "a gateway that is made an ordinary node, and a gateway again, loses no packet and no connection",
            drain::retired,
        ),
        scenario(
            "failover-rolling",
            "all agents of a cluster are followed by new ones, one after the other: no packet and no connection is lost",
            drain::rolling,
        ),
    ];
    if is_soak() {
        all.extend(only_in_soak(scenario));
    }
    all
}

/// What is not in every run: each trial takes a quarter of a minute.
fn only_in_soak(
    scenario: impl Fn(&'static str, &'static str, fn(&mut World) -> Result<()>) -> Scenario,
) -> Vec<Scenario> {
    vec![
        scenario(
            "failover-lossy",
            "a gateway that loses 30 % of its packets is left for the other",
            |world| kind(world, Strike::Lossy),
        ),
        scenario("failover-flapping", "a gateway's link goes down and up each second", |world| {
            kind(world, Strike::Flapping)
        }),
    ]
}

fn kind(world: &mut World, strike: Strike) -> Result<()> {
    let mut findings = Findings::default();
    let trials = run_trials(world, strike, count(), &Screen::new(false))?;
    trials::judge(&trials, strike, &mut findings);
    findings.conclude(count() * 5 + 1)
}
