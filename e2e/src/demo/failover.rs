//! The demo's end: a gateway dies before the viewer's eyes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::probe::{TcpPlan, Traffic, TrafficPlan, UdpPlan};
use crate::scenario::failover::{plug, sent_through};
use crate::screen::Screen;
use crate::signals;
use crate::topology::{Family, POD_PORT};
use crate::world::World;

const FROM: &str = "beta/pod3";
const TO: &str = "alpha/pod5";
const VICTIM: &str = "alpha-1";

/// Datagrams per second, both families together.
const RATE: u64 = 1000;
const CONNECTIONS: usize = 10;

/// One line each.
const TICK: Duration = Duration::from_millis(250);

/// What was seen, for the JSON document.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Seen {
    /// The longest time without an answer around the moment in which the gateway died.
    gap_ms: u64,
    packets_sent: u64,
    packets_lost: u64,
    tcp_broken: u64,
    /// Whether the gateway carried traffic again after it came back.
    returned: bool,
}

impl Seen {
    /// The viewer was shown what was promised.
    pub(super) fn is_good(self) -> bool {
        self.packets_sent > RATE && self.gap_ms <= 1000 && self.tcp_broken == 0 && self.returned
    }
}

pub(super) fn show(world: &mut World, screen: &Screen) -> Result<Seen> {
    screen.heading(&format!("The plug of {VICTIM} is pulled"));
    screen.raw(&format!(
        "{RATE} datagrams a second in 16 flows and {} TCP connections go from {FROM} to {TO}, through alpha's two \
         gateways. Each line: answers per second, and what part of the packets each gateway carries.\n",
        CONNECTIONS * 2
    ));
    let mut plan = TrafficPlan { from: FROM.into(), ..TrafficPlan::default() };
    for family in Family::BOTH {
        let target = SocketAddr::new(world.pod_address(TO, family)?, POD_PORT);
        let to = TO.to_owned();
        plan.udp.push(UdpPlan { to: to.clone(), target, flows: 8, packets_per_second: RATE / 2 });
        plan.tcp.push(TcpPlan { to, target, connections: CONNECTIONS, interval_ms: 100 });
    }
    let netns = world.topology.find(FROM).context("the pod")?;
    let traffic = Traffic::start(world, &netns, &plan)?;
    let result = watch(world, &traffic, screen);
    // Whatever happened, the world is left whole.
    plug(world, VICTIM, true)?;
    traffic.stop()?;
    result
}

fn watch(world: &World, traffic: &Traffic, screen: &Screen) -> Result<Seen> {
    let mut eyes = Eyes::new(world, traffic, screen)?;
    // Until all connections stand.
    signals::sleep(Duration::from_millis(500))?;
    eyes.look_for(Duration::from_secs(2))?;
    traffic.begin()?;
    eyes.tell(&format!("the plug of {VICTIM} is pulled, without a word to anybody"))?;
    plug(world, VICTIM, false)?;
    eyes.look_for(Duration::from_millis(2500))?;
    let report = traffic.report()?;
    let (gap_ms, lost, sent, broken) =
        (report.gap_us() / 1000, report.lost(), report.sent(), report.broken());
    eyes.tell(&format!(
        "no answer for {gap_ms} ms at worst; {lost} of {sent} datagrams lost; {broken} TCP connections broken"
    ))?;
    eyes.tell(&format!("the plug of {VICTIM} is back in"))?;
    plug(world, VICTIM, true)?;
    let end = Instant::now() + Duration::from_secs(12);
    let mut returned = false;
    while !returned && Instant::now() < end {
        returned = eyes.look()? > 10;
    }
    if returned {
        eyes.look_for(Duration::from_millis(750))?;
        eyes.tell(&format!("{VICTIM} carries its flows again, and no others have moved"))?;
    }
    let later = traffic.report()?;
    Ok(Seen {
        gap_ms,
        packets_sent: sent,
        packets_lost: lost,
        // The window goes on: what broke later is in it too.
        tcp_broken: later.broken().max(broken),
        returned,
    })
}

/// Looks at the traffic, a line each time.
struct Eyes<'a> {
    world: &'a World,
    traffic: &'a Traffic,
    screen: &'a Screen,
    begin: Instant,
    last: Look,
}

struct Look {
    at: Instant,
    answers: u64,
    through: Vec<(&'static str, u64)>,
}

impl Look {
    fn now(world: &World, traffic: &Traffic) -> Result<Self> {
        let through = sent_through(world)?.into_iter().collect();
        Ok(Self { at: Instant::now(), answers: traffic.count()?, through })
    }
}

impl<'a> Eyes<'a> {
    fn new(world: &'a World, traffic: &'a Traffic, screen: &'a Screen) -> Result<Self> {
        let last = Look::now(world, traffic)?;
        Ok(Self { world, traffic, screen, begin: Instant::now(), last })
    }

    fn tell(&self, what: &str) -> Result<()> {
        self.screen.raw(&format!("  {:5.2} s  >>> {what}", self.begin.elapsed().as_secs_f64()));
        Ok(())
    }

    fn look_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look()?;
        }
        Ok(())
    }

    /// Waits for the next line and gives the part that the victim carried, percent.
    fn look(&mut self) -> Result<u64> {
        signals::sleep(TICK.saturating_sub(self.last.at.elapsed()))?;
        let now = Look::now(self.world, self.traffic)?;
        let millis = u64::try_from((now.at - self.last.at).as_millis())?.max(1);
        let rate = (now.answers - self.last.answers) * 1000 / millis;
        let sent: Vec<_> = now
            .through
            .iter()
            .zip(&self.last.through)
            .map(|((name, now), (_, before))| (*name, now.saturating_sub(*before)))
            .collect();
        let all = sent.iter().map(|(_, packets)| packets).sum::<u64>().max(1);
        let percent = |packets: u64| (packets * 100 + all / 2) / all;
        let bars: Vec<_> =
            sent.iter().map(|(name, packets)| format!("{name} {}", bar(percent(*packets)))).collect();
        let seconds = self.begin.elapsed().as_secs_f64();
        self.screen.raw(&format!("  {seconds:5.2} s  {rate:>5}/s   {}", bars.join("   ")));
        self.last = now;
        let victims = sent.iter().find(|(name, _)| *name == VICTIM).map_or(0, |(_, packets)| *packets);
        Ok(percent(victims))
    }
}

/// Twenty characters for a hundred percent.
fn bar(percent: u64) -> String {
    let full = usize::try_from(percent.min(100)).unwrap_or(0) / 5;
    format!("{}{} {percent:>3} %", "#".repeat(full), ".".repeat(20 - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_part() {
        assert_eq!(bar(0), ".................... ".to_owned() + "  0 %");
        assert_eq!(bar(50), "##########.......... ".to_owned() + " 50 %");
        assert_eq!(bar(100).matches('#').count(), 20);
        assert_eq!(bar(140).matches('#').count(), 20);
    }

    #[test]
    fn what_was_promised_is_more_than_nothing() {
        let good = Seen { gap_ms: 200, packets_sent: 2900, packets_lost: 90, tcp_broken: 0, returned: true };
        assert!(good.is_good());
        for bad in [
            Seen { gap_ms: 1500, ..good },
            Seen { packets_sent: 0, ..good },
            Seen { tcp_broken: 1, ..good },
            Seen { returned: false, ..good },
        ] {
            assert!(!bad.is_good(), "{bad:?}");
        }
    }
}
