//! Chaos: what happens is drawn from a seed, what must hold is looked at all along.

mod act;
mod command;
mod invariant;
mod plan;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::act::Faults;
use self::invariant::Sizes;
use self::plan::{Cast, Storm};
use super::{Scenario, Setting};
use crate::capture::Capture;
use crate::command::Cmd;
use crate::impair;
use crate::probe::{self, Traffic, TrafficPlan, UdpPlan};
use crate::screen::Screen;
use crate::signals;
use crate::topology::{Family, POD_PORT};
use crate::world::{self, World};

pub(crate) use command::{ChaosArgs, chaos};

/// What the scenario runs; a soak takes another seed and more of it.
const SEED: u64 = 20;
const SHORT: Duration = Duration::from_secs(110);
const LONG: Duration = Duration::from_secs(20 * 60);

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    vec![Scenario {
        setting,
        name: "chaos",
        about: "whatever happens: no plain text, nothing astray, no loop, well again within 5 s, nothing grows",
        timeout: LONG + Duration::from_secs(300),
        run: |world| {
            let time = if super::failover::is_soak() { LONG } else { SHORT };
            run(world, &Run { seed: SEED, time, only: None }, &Screen::new(false))
        },
    }]
}

/// What is to be run.
#[derive(Clone, Copy, Debug)]
struct Run {
    seed: u64,
    time: Duration,
    /// One storm only.
    only: Option<u64>,
}

/// From, to: over all clouds, ordinary nodes, gateways, and the node behind the NAT.
const WAYS: [(&str, &str); 4] = [
    ("alpha/pod5", "beta/pod3"),
    ("beta/pod1", "gamma/pod3"),
    ("gamma/pod1", "alpha/pod1"),
    ("beta/pod3", "alpha/pod5"),
];

/// After a storm, and once all is well, nothing is lost for so long.
const CLEAN: Duration = Duration::from_millis(1500);

/// Of what is sent then, so much may be lost by a machine that is busy with other things, percent.
const LOST: u64 = 1;

fn run(world: &mut World, run: &Run, screen: &Screen) -> Result<()> {
    // What is meant for a node whose plug was pulled would otherwise be flooded to every port of its cloud's switch,
    // the router's among them, where it would be taken for a leak: inside a cloud pods talk in clear.
    flood(world, "off")?;
    let result = storms(world, run, screen);
    impair::stop_if_there(world)?;
    flood(world, "on")?;
    result
}

/// Whether the clouds' switches send to the router what they do not know the port of.
fn flood(world: &World, word: &str) -> Result<()> {
    for cloud in &world.topology.clouds {
        Cmd::new("bridge")
            .args(["link", "set", "dev", "router", "flood", word])
            .within(&cloud.network())
            .run_ok()?;
    }
    Ok(())
}

fn cast(world: &World) -> Cast {
    let names = |wanted: fn(&crate::topology::Node) -> bool| {
        world.topology.nodes().filter(|node| wanted(node)).map(|node| node.name.clone()).collect()
    };
    Cast {
        nodes: names(|_| true),
        gateways: names(|node| node.gateway),
        // One of each kind, so that no cluster is ever without a gateway.
        toggles: vec!["alpha-2".into(), "alpha-3".into(), "beta-2".into()],
        clouds: world.topology.clouds.iter().map(|cloud| cloud.name.to_owned()).collect(),
    }
}

fn storms(world: &mut World, run: &Run, screen: &Screen) -> Result<()> {
    impair::start(world)?;
    let senders = senders(world)?;
    let cast = cast(world);
    let mut sizes = Sizes::default();
    let begin = Instant::now();
    let mut number = run.only.unwrap_or(0);
    loop {
        let storm = Storm::new(run.seed, number, &cast);
        let what: Vec<_> = storm.actions.iter().map(|action| format!("{action:?}")).collect();
        screen.raw(&format!("           storm {number}: {}", what.join(", ")));
        let replay = format!(
            "storm {number} of seed {}; again: cargo lab chaos --seed {0} --storm {number}; or all of it: \
             cargo lab chaos --seed {0} --minutes {1}",
            run.seed,
            run.time.as_secs().div_ceil(60)
        );
        one(world, &storm, &senders, &mut sizes, screen).with_context(|| replay)?;
        number += 1;
        // At least one is seen, whatever the time.
        if run.only.is_some() || begin.elapsed() > run.time {
            break;
        }
    }
    for sender in &senders {
        sender.stop()?;
    }
    Ok(())
}

fn senders(world: &mut World) -> Result<Vec<Traffic>> {
    let mut senders = Vec::new();
    for (from, to) in WAYS {
        let mut plan = TrafficPlan { from: from.into(), ..TrafficPlan::default() };
        for family in Family::BOTH {
            let target = (world.pod_address(to, family)?, POD_PORT).into();
            plan.udp.push(UdpPlan { to: to.into(), target, flows: 4, packets_per_second: 100 });
        }
        let netns = world.topology.find(from).context("the pod")?;
        senders.push(Traffic::start(world, &netns, &plan)?);
    }
    Ok(senders)
}

fn one(
    world: &mut World,
    storm: &Storm,
    senders: &[Traffic],
    sizes: &mut Sizes,
    screen: &Screen,
) -> Result<()> {
    let leaks = world::leaks(&world.topology)?;
    let expired = invariant::expired(world)?;
    let capture = if storm.bares() { None } else { Some(Capture::start(world)?) };
    senders.iter().try_for_each(Traffic::begin)?;
    storm_over(world, storm)?;
    let took = match invariant::converge(world)? {
        Ok(took) => took,
        Err(failed) => bail!(
            "{} s after everything was made good this does not work:\n  {}",
            invariant::CONVERGED.as_secs(),
            failed.join("\n  ")
        ),
    };
    let mut wrong = Vec::new();
    for (sender, report) in senders.iter().zip(Traffic::reports(senders)?) {
        wrong.extend(report.wrong);
        // WireGuard knows what it has seen: what the underlay doubles arrives once.
        let doubled: u64 = report.udp.iter().map(|flow| flow.window.duplicates).sum();
        if doubled > 0 {
            wrong.push(format!("{}: {doubled} datagrams came back twice", sender.name));
        }
        sender.begin()?;
    }
    signals::sleep(CLEAN)?;
    for (sender, report) in senders.iter().zip(Traffic::reports(senders)?) {
        if report.lost() * 100 > report.sent() * LOST {
            wrong.push(format!(
                "{}: with all made good and well, {} of {} were lost; longest gap {} ms",
                sender.name,
                report.lost(),
                report.sent(),
                report.gap_us() / 1000
            ));
        }
    }
    for pod in world.topology.pods() {
        let arrivals = probe::arrivals(&pod.netns())?;
        if arrivals.wrong > 0 {
            wrong.push(format!("{} messages went astray: {:?}", arrivals.wrong, arrivals.examples));
        }
    }
    if let Some(capture) = capture {
        let report = capture.finish(&invariant::expected(world))?;
        if report.violation_count > 0 {
            wrong.push(format!("{} packets on the router: {:?}", report.violation_count, report.violations));
        }
        let after = world::leaks(&world.topology)?;
        if leaks != after {
            wrong.push(format!("packets left in clear, by cloud: before {leaks:?}, after {after:?}"));
        }
    }
    let circles = invariant::expired(world)? - expired;
    if circles > 0 {
        wrong.push(format!("{circles} packets went round until their time to live was over"));
    }
    wrong.extend(sizes.look(world)?);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n  "));
    }
    screen.raw(&format!("             well again after {} ms", took.as_millis()));
    Ok(())
}

/// Does all of it, each thing in its time; what takes longer than it should makes the rest later.
fn storm_over(world: &mut World, storm: &Storm) -> Result<()> {
    let begin = Instant::now();
    let mut faults = Faults::default();
    for step in &storm.steps {
        signals::sleep(step.at.saturating_sub(begin.elapsed()))?;
        let action = &storm.actions[step.action];
        act::act(world, &mut faults, storm.seed, step.action, action, step.begins)
            .with_context(|| format!("{} {action:?}", if step.begins { "doing" } else { "making good" }))?;
    }
    Ok(())
}
