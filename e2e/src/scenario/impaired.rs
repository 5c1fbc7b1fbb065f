//! The impaired underlay, tried on nodes that know nothing of podspan: it must do what it is told, and nothing
//! when it is told nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::Findings;
use crate::command::Cmd;
use crate::impair::{self, Fault, Rule};
use crate::probe::{self, Traffic, TrafficPlan, TrafficReport, UdpPlan};
use crate::signals;
use crate::topology::{Family, POD_PORT};
use crate::world::{self, World};

/// Datagrams per second, of both families together.
const RATE: u64 = 1000;

pub(super) fn impaired(world: &mut World) -> Result<()> {
    let result = try_out(world);
    impair::stop_if_there(world)?;
    result
}

fn try_out(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let leaks = world::leaks(&world.topology)?;
    impair::start(world)?;
    let (a, b) = (world.node("alpha-1")?.clone(), world.node("beta-1")?.clone());
    let (a_addresses, b_addresses) = (a.endpoints.clone(), b.endpoints.clone());
    let udp = |family: Family| UdpPlan {
        to: "beta-1".into(),
        target: SocketAddr::new(
            *b_addresses.iter().find(|a| Family::of(**a) == family).unwrap_or(&b_addresses[0]),
            POD_PORT,
        ),
        flows: 1,
        packets_per_second: RATE / 2,
    };
    let plan =
        TrafficPlan { from: "alpha-1".into(), udp: Family::BOTH.map(udp).into(), ..TrafficPlan::default() };
    let traffic = Traffic::start(world, &a.netns(), &plan)?;
    let (there, back) = (
        |fault| Rule::between(&a_addresses, &b_addresses, fault),
        |fault| Rule::between(&b_addresses, &a_addresses, fault),
    );
    let run = |rules: Vec<Rule>, time: f64| -> Result<(TrafficReport, u64, impair::Counts)> {
        impair::set(&impair::Plan { seed: 5, rules })?;
        // What is on its way under the former plan belongs to the former window.
        signals::sleep(Duration::from_millis(200))?;
        probe::arrivals(&b.netns())?;
        traffic.begin()?;
        signals::sleep(Duration::from_secs_f64(time))?;
        let report = traffic.report()?;
        let arrived = probe::arrivals(&b.netns())?.flows.iter().map(|flow| flow.window.received).sum();
        Ok((report, arrived, impair::counts()?))
    };

    let (clean, arrived, counts) = run(Vec::new(), 1.0)?;
    let faults = |report: &TrafficReport| {
        let sum =
            |field: fn(&probe::Window) -> u64| report.udp.iter().map(|flow| field(&flow.window)).sum::<u64>();
        (sum(|w| w.lost), sum(|w| w.duplicates), sum(|w| w.reordered))
    };
    findings.expect("without a fault: lost, duplicated, reordered", (0, 0, 0), faults(&clean));
    let enough = clean.sent() > RATE / 2 && arrived >= clean.sent() && counts.seen >= 2 * clean.sent();
    findings.require(enough, || format!("sent {}, arrived {arrived}, {counts:?}", clean.sent()));

    let (lossy, _, counts) = run(vec![there(Fault::lossy(0.3))], 3.0)?;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let rate = lossy.lost() as f64 / lossy.sent() as f64;
    findings.require((0.26..0.34).contains(&rate), || format!("a loss of 0.3 lost {rate}: {counts:?}"));

    // One direction only: everything arrives, nothing comes back.
    let (blocked, arrived, _) = run(vec![back(Fault::block())], 1.0)?;
    findings.expect("a blocked way back: lost", blocked.sent(), blocked.lost());
    findings.require(arrived >= blocked.sent(), || format!("of {} arrived {arrived}", blocked.sent()));

    let twice = Fault { duplicate: 0.2, reorder: 0.1, hold_us: 20_000, ..Fault::default() };
    let (mixed, ..) = run(vec![there(twice)], 2.0)?;
    let (lost, duplicates, reordered) = faults(&mixed);
    let near = |seen: u64, part: u64| seen > mixed.sent() / part / 2 && seen < mixed.sent() / part * 2;
    findings.require(lost == 0 && near(duplicates, 5) && near(reordered, 10), || {
        format!("of {}: lost {lost}, duplicates {duplicates}, reordered {reordered}", mixed.sent())
    });

    // Damage that no checksum tells is seen by the ledger, as loss or as what makes no sense.
    let (damaged, _, counts) = run(vec![there(Fault { corrupt: 0.5, ..Fault::default() })], 0.5)?;
    findings.require(damaged.lost() > 0 && counts.corrupted > 50, || format!("{counts:?}"));

    slow(&a, &a_addresses, &b_addresses, &mut findings)?;
    black_hole(&a, &a_addresses, &b_addresses, &mut findings)?;

    // Without the forwarder the kernel forwards as ever.
    impair::set(&impair::Plan { seed: 1, rules: vec![there(Fault::block())] })?;
    world.daemon(impair::DAEMON)?.signal(Signal::SIGKILL)?;
    world.daemon(impair::DAEMON)?.wait(Duration::from_secs(5))?;
    for address in &b_addresses {
        let ping = ping(&a, *address, &["-c", "2", "-i", "0.1"])?;
        findings.require(ping.0, || format!("{address} after the forwarder's end: {}", ping.1));
    }
    traffic.stop()?;
    findings.expect("leaks", leaks, world::leaks(&world.topology)?);
    findings.conclude(7 + 2 + 4 + 2 + 1)
}

fn ping(from: &crate::topology::Node, to: IpAddr, args: &[&str]) -> Result<(bool, String)> {
    let finished = Cmd::new("ping")
        .args([Family::of(to).flag(), "-n", "-W", "1"])
        .args(args)
        .arg(to.to_string())
        .within(&from.netns())
        .run()?;
    Ok((finished.status.success(), format!("{}{}", finished.stdout_text(), finished.stderr_text())))
}

/// 30 ms each way are 60 ms for a ping.
fn slow(a: &crate::topology::Node, from: &[IpAddr], to: &[IpAddr], findings: &mut Findings) -> Result<()> {
    let fault = Fault { delay_us: 30_000, ..Fault::default() };
    let rules = vec![Rule::between(from, to, fault.clone()), Rule::between(to, from, fault)];
    impair::set(&impair::Plan { seed: 1, rules })?;
    for address in to {
        let (_, text) = ping(a, *address, &["-c", "5", "-i", "0.1"])?;
        let least = text.split("rtt min/avg/max/mdev = ").nth(1).and_then(|rest| rest.split('/').next());
        let least: f64 = least.and_then(|least| least.parse().ok()).unwrap_or(0.0);
        findings.require((60.0..75.0).contains(&least), || format!("{address} took {least} ms: {text}"));
    }
    Ok(())
}

/// What is larger than the MTU vanishes, and nobody is told.
fn black_hole(
    a: &crate::topology::Node,
    from: &[IpAddr],
    to: &[IpAddr],
    findings: &mut Findings,
) -> Result<()> {
    let fault = Fault { mtu: Some(1400), ..Fault::default() };
    impair::set(&impair::Plan { seed: 1, rules: vec![Rule::between(from, to, fault)] })?;
    for address in to {
        let headers = if address.is_ipv4() { 28 } else { 48 };
        for (size, passes) in [(1400, true), (1401, false)] {
            let payload = (size - headers).to_string();
            let (passed, text) = ping(a, *address, &["-c", "1", "-M", "do", "-s", &payload])?;
            let told = text.contains("too") || text.contains("needed") || text.contains("mtu");
            findings.require(passed == passes && !told, || format!("{size} bytes to {address}: {text}"));
        }
    }
    Ok(())
}
