//! All gateways of a cluster dead: nothing leaves in clear, unless the settings say of this cluster that it may, and
//! nobody is told where they ask for silence.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::failover::{Try, attempt};
use super::{FROM, Findings, GATEWAYS, TO, plugs, restart_with, seen, sender, traffic, wait_until_calm};
use crate::probe::Traffic;
use crate::screen::Screen;
use crate::signals;
use crate::topology::{Family, POD_PORT};
use crate::world::{self, World};

/// By when all gateways must be known to be dead: a tunnel that happens to carry none of the flows is asked once in
/// 5 s, and counts as dead 2 s and what its answers usually take after that.
const KNOWN: Duration = Duration::from_secs(15);

/// How soon after the return of the first gateway traffic must pass again.
const BACK: Duration = Duration::from_secs(1);

/// How long nothing must leave.
const QUIET: Duration = Duration::from_secs(1);

const FIRST_BACK: &str = "beta-2";

pub(super) fn bypass(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    wait_until_calm(world)?;
    let result = closed(world, &mut findings).and_then(|()| open(world, &mut findings));
    plugs(world, &GATEWAYS, true)?;
    let back = restart_with(world, "");
    result?;
    back?;
    findings.conclude(2 + 7)
}

/// Where silence is asked for, whoever wants to reach the cluster waits in vain; else he is told at once.
pub(super) fn silent(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let result = restart_with(world, "[unreachable]\ndrop = [\"beta\"]\n")
        .and_then(|()| without_gateways(world, &mut findings, true));
    plugs(world, &GATEWAYS, true)?;
    let back = restart_with(world, "");
    result?;
    back?;
    let result = without_gateways(world, &mut findings, false);
    plugs(world, &GATEWAYS, true)?;
    result?;
    world.wait_until_all_tunnels_stand()?;
    findings.conclude(2 * (2 + 2))
}

/// What is tried while all gateways are dead gets no answer, or is answered that there is no way; and traffic is back
/// soon after.
fn without_gateways(world: &mut World, findings: &mut Findings, is_silent: bool) -> Result<()> {
    let client = world.topology.find(FROM).context("the pod")?;
    let traffic = start(world)?;
    let before = in_clear(world)?;
    plugs(world, &GATEWAYS, false)?;
    until(KNOWN, "all gateways to be known to be dead", || is_dead(world))?;
    for family in Family::BOTH {
        let seen = attempt(&client, SocketAddr::new(world.pod_address(TO, family)?, POD_PORT))?;
        let as_wanted = match &seen {
            Try::Other(error) => is_silent && error.kind() == ErrorKind::TimedOut,
            Try::Unreachable => !is_silent,
            Try::Reached => false,
        };
        findings.require(as_wanted, || format!("{family}, silence {is_silent}: {seen:?}"));
    }
    findings.expect("packets in clear", before, in_clear(world)?);
    let echoes = traffic.count()?;
    plugs(world, &[FIRST_BACK], true)?;
    let back = until(BACK * 5, "traffic by the tunnels", || Ok(traffic.count()? > echoes))?;
    findings
        .require(back <= BACK, || format!("echoes {} ms after the first gateway was back", back.as_millis()));
    traffic.stop()
}

/// Packets of alpha's that the router has dropped, since no pod address is the underlay's: they came in clear.
fn in_clear(world: &World) -> Result<u64> {
    Ok(world::leaks(&world.topology)?.get("alpha").copied().unwrap_or(0))
}

/// The default: whatever is sent, nothing leaves.
fn closed(world: &mut World, findings: &mut Findings) -> Result<()> {
    let traffic = start(world)?;
    let before = in_clear(world)?;
    plugs(world, &GATEWAYS, false)?;
    until(KNOWN, "all gateways to be known to be dead", || is_dead(world))?;
    let echoes = traffic.count()?;
    signals::sleep(QUIET)?;
    findings.expect("packets in clear by default", before, in_clear(world)?);
    findings.expect("echoes while all gateways were dead", echoes, traffic.count()?);
    plugs(world, &GATEWAYS, true)?;
    world.wait_until_all_tunnels_stand()?;
    traffic.stop()
}

/// As asked for: by the underlay while no gateway answers, and only then.
fn open(world: &mut World, findings: &mut Findings) -> Result<()> {
    restart_with(world, "[unreachable]\nbypass = [\"beta\"]\n")?;
    let traffic = start(world)?;
    let before = in_clear(world)?;
    signals::sleep(QUIET)?;
    findings.expect("packets in clear while the gateways are well", before, in_clear(world)?);
    findings.require(routes(world)? > 0, || "no routes to beta while its gateways are well".into());

    plugs(world, &GATEWAYS, false)?;
    let left = until(KNOWN, "packets to leave by the underlay", || Ok(in_clear(world)? > before + 20))?;
    let problems = sender(world)?.problems;
    let is_told = problems.iter().any(|text| text.contains("cluster beta") && text.contains("in clear"));
    findings.require(is_told, || format!("nobody is told of the bypass: {problems:?}"));
    findings.expect("routes to beta while no gateway answers", 0, routes(world)?);

    let echoes = traffic.count()?;
    plugs(world, &[FIRST_BACK], true)?;
    let back = until(BACK * 5, "traffic by the tunnels", || Ok(traffic.count()? > echoes))?;
    findings
        .require(back <= BACK, || format!("echoes {} ms after the first gateway was back", back.as_millis()));
    signals::sleep(Duration::from_millis(300))?;
    let (after, echoes) = (in_clear(world)?, traffic.count()?);
    signals::sleep(QUIET)?;
    findings.expect("packets in clear when a gateway is back", after, in_clear(world)?);
    let came = traffic.count()? - echoes;
    findings.require(came > RATE, || format!("{came} echoes in {QUIET:?} of {} packets", 2 * RATE));
    Screen::new(false).raw(&format!(
        "           in clear {} ms after the last gateway's death, by the tunnels again {} ms after the first one's \
         return",
        left.as_millis(),
        back.as_millis()
    ));
    traffic.stop()
}

/// Datagrams a second, of each family.
const RATE: u64 = 100;

fn start(world: &mut World) -> Result<Traffic> {
    let traffic = traffic(world, (FROM, TO), (16, RATE), 0)?;
    until(KNOWN, "echoes", || Ok(traffic.count()? > 0))?;
    Ok(traffic)
}

fn is_dead(world: &World) -> Result<bool> {
    let status = sender(world)?;
    Ok(seen(&status).iter().flat_map(|node| &node.lanes).all(|lane| !lane.established))
}

/// How many of the kernel's routes lead to beta's pods and services.
fn routes(world: &World) -> Result<usize> {
    let beta = world.cloud("beta")?;
    let cidrs = [beta.pod_cidr.both(), beta.service_cidr.both()].concat();
    Ok(sender(world)?
        .kernel
        .routes
        .iter()
        .filter(|route| cidrs.iter().any(|cidr| cidr.covers(route)))
        .count())
}

/// Waits; gives how long it took.
fn until(limit: Duration, what: &str, good: impl Fn() -> Result<bool>) -> Result<Duration> {
    let begin = Instant::now();
    while !good()? {
        if begin.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        signals::sleep(Duration::from_millis(5))?;
    }
    Ok(begin.elapsed())
}
