//! An API server that is away for an hour, and tokens that end meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;

use super::joined::{Agent, Joined, annotate, apply_node, apply_settings, label, until};
use super::outages::{Tokens, reached};
use crate::kube::KubeApi;
use crate::scenario::Findings;
use crate::screen::Screen;
use crate::signals;

/// How long it is away.
const AWAY: Duration = Duration::from_secs(3600);

/// The whole scenario's time.
pub(super) const LIMIT: Duration = Duration::from_secs(3600 + 900);

/// By when memory and descriptors are what they stay.
const SETTLED: Duration = Duration::from_secs(300);

/// What memory may grow by from then on, KiB.
const MORE: u64 = 2048;

const SOON: Duration = Duration::from_secs(30);

/// Lines of the log that an outage of an hour may be worth: at 3 a.m. somebody has to read them.
const LINES: usize = 100;

/// Both agents' traffic goes on for the hour, one of them is killed and starts in the middle of it; and then both
/// follow, the one with a token that ended as soon as it has another.
pub(super) fn hour(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "hour")?;
    apply_settings(api, &json!({}))?;
    let steady = {
        let agent = joined.agent(api, "h1")?;
        joined.give_bundle(&agent)?;
        agent
    };
    let tokens = Tokens::new(api)?;
    tokens.mint(api, "first")?;
    steady.edit_settings(|text| tokens.in_place_of_kubeconfig(text))?;
    apply_node(api, &steady.host, 1)?;
    label(api, "h1", "podspan.io/gateway=true")?;
    joined.start_agent(api, &steady)?;
    let restarted = joined.node(api, "h2", 2, true)?;
    let beta = joined.start_beta(api)?;
    for agent in [&steady, &restarted] {
        agent.until("the tunnel", SOON, reached)?;
        answers(agent)?;
    }

    api.kubectl(&["-n", "podspan-system", "delete", "secret", "first"])?;
    api.stop()?;
    let begun = Instant::now();
    let process = joined.process(&steady)?;
    let log = joined.log(&steady)?;
    let lines = || -> Result<usize> {
        let text = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        Ok(text
            .lines()
            .filter(|line| [" INFO ", " WARN ", "ERROR "].iter().any(|l| line.contains(l)))
            .count())
    };
    let lines_before = lines()?;
    let (mut asked, mut answered) = ([0_u32; 2], [0_u32; 2]);
    let mut settled = None;
    let mut killed = false;
    while begun.elapsed() < AWAY {
        for (n, agent) in [&steady, &restarted].into_iter().enumerate() {
            asked[n] += 1;
            answered[n] += u32::from(agent.pings("10.62.1.0")?);
        }
        if settled.is_none() && begun.elapsed() > SETTLED {
            settled = Some(process.size()?);
        }
        if !killed && begun.elapsed() > AWAY / 2 {
            killed = true;
            joined.process(&restarted)?.signal(Signal::SIGKILL)?;
            joined.process(&restarted)?.wait(Duration::from_secs(5))?;
            joined.start_agent(api, &restarted)?;
            let taken = restarted.until("it forwards again", Duration::from_secs(40), reached)?;
            answers(&restarted)?;
            Screen::new(false).raw(&format!(
                "           half an hour in, an agent that starts has its tunnel after {:.1} s",
                taken.as_secs_f64()
            ));
        }
        signals::sleep(Duration::from_secs(1))?;
    }
    let settled = settled.context("the outage was shorter than memory takes to settle")?;
    let now = process.size()?;
    let told = lines()? - lines_before;
    Screen::new(false).raw(&format!(
        "           {} s without API server: {} of {} and {} of {} echoes; {told} lines in the log; {} and then {} KiB of \
         memory, {} and then {} descriptors",
        begun.elapsed().as_secs(),
        answered[0],
        asked[0],
        answered[1],
        asked[1],
        settled.memory,
        now.memory,
        settled.descriptors,
        now.descriptors
    ));
    findings.expect("echoes, nothing done to the agent", asked[0], answered[0]);
    findings.expect("echoes, but for the time of the restart", asked[1], answered[1]);
    let has_grown = now.memory > settled.memory + MORE || now.descriptors > settled.descriptors + 2;
    findings.require(!has_grown, || format!("{settled:?} has become {now:?}"));
    findings.require(told <= LINES, || format!("{told} lines in the log of {}", log.display()));

    api.start()?;
    annotate(api, "h1", "podspan.io/pod-cidrs=10.61.50.0/24")?;
    annotate(api, "h2", "podspan.io/pod-cidrs=10.61.60.0/24")?;
    let back = restarted.until("it follows again", Duration::from_secs(60), |status| {
        status.node.pod_cidrs.to_string() == "10.61.60.0/24"
    })?;
    tokens.mint(api, "second")?;
    let renewed = steady.until("it follows with another token", Duration::from_secs(120), |status| {
        status.node.pod_cidrs.to_string() == "10.61.50.0/24"
            && !status.problems.iter().any(|problem| problem.contains("API server"))
    })?;
    Screen::new(false).raw(&format!(
        "           back: a change is followed after {:.1} s, with a token that ended {:.0} s after there is another",
        back.as_secs_f64(),
        renewed.as_secs_f64()
    ));
    for agent in [&steady, &restarted] {
        findings.require(reached(&agent.status()?), || format!("{}: the tunnel fell", agent.node));
    }
    drop(beta);
    joined.end(api)?;
    api.kubectl(&["-n", "podspan-system", "delete", "secret", "second"])?;
    findings.conclude(6)
}

/// Waits until the other cluster answers through the tunnel.
fn answers(agent: &Agent) -> Result<Duration> {
    until("an answer through the tunnel", SOON, || {
        Ok(if agent.pings("10.62.1.0")? { Ok(()) } else { Err("none".into()) })
    })
}
