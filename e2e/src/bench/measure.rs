//! One turn of one contender: everything that is measured of it, once.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use podspan_aead::Implementation;

use super::contender::{Contender, Tunnel};
use super::metric::{Metric, Results};
use super::stats::percentile;
use super::{cpu, crypto, iperf, memory, udp};
use crate::netns::Netns;
use crate::process::ProcessId;
use crate::tunnel::inner;

/// How long each part of a turn takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Turns of each contender.
    pub(crate) rounds: usize,
    /// A TCP run, whole seconds.
    pub(crate) tcp: u32,
    /// A flood of small packets, and a steady flow of them.
    pub(crate) udp: Duration,
    /// Turns of pings after each round.
    pub(crate) pings: usize,
}

impl Pace {
    pub(crate) const FULL: Self = Self { rounds: 7, tcp: 3, udp: Duration::from_secs(2), pings: 5 };
    pub(crate) const QUICK: Self = Self { rounds: 3, tcp: 1, udp: Duration::from_secs(1), pings: 3 };
}

/// The steady flow, packets per second.
const RATE: u32 = 20_000;

/// The distance of pings.
const PAUSE: Duration = Duration::from_millis(1);

/// How long one turn of pings takes. What a wakeup costs a virtual machine changes from second to second and by more
/// than the contenders differ, so they take turns quickly.
const PINGS: Duration = Duration::from_millis(700);

/// What a turn is measured with.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) contender: Contender,
    pub(crate) netns: &'a [Netns; 2],
    /// The servers of iperf3 in the second namespace.
    pub(crate) iperf: ProcessId,
    pub(crate) pace: Pace,
}

impl Turn<'_> {
    /// Measures all of it. What fails is noted, and the rest is measured all the same.
    pub(crate) fn run(&self, tunnel: &mut Tunnel, results: &mut Results) -> Result<()> {
        self.note(results, "memory", |turn, out| turn.idle_memory(tunnel, out));
        self.note(results, "a steady flow", |turn, out| turn.steady(tunnel, out));
        for (metric, streams, reverse) in Metric::TCP {
            self.note(results, metric.title(), |turn, out| turn.tcp(tunnel, metric, streams, reverse, out));
        }
        self.note(results, "a flood", |turn, out| turn.flood(out));
        if self.contender.is_pinged() {
            self.note(results, "round trips under load", |turn, out| turn.loaded_round_trips(out));
        }
        self.note(results, "memory", |turn, out| turn.loaded_memory(tunnel, out));
        crate::signals::check()?;
        Ok(())
    }

    /// Measures the round trips of a tunnel that carries nothing else.
    pub(crate) fn pings(&self, results: &mut Results) -> Result<()> {
        self.note(results, "round trips", Self::idle_round_trips);
        crate::signals::check()?;
        Ok(())
    }

    /// Measures one thing; once more if it fails, since other work on the machine makes a connection time out now and then.
    fn note(
        &self,
        results: &mut Results,
        what: &str,
        mut measure: impl FnMut(&Self, &mut Results) -> Result<()>,
    ) {
        let Err(error) = measure(self, results) else { return };
        let name = self.contender.name();
        results.notes.push(format!("{name}: {what} was tried again after: {error:#}"));
        if let Err(error) = measure(self, results) {
            results.failures.push(format!("{name}: {what}: {error:#}"));
        }
    }

    fn daemons(&self, tunnel: &Tunnel) -> Result<Duration> {
        Ok(cpu::of_process(tunnel.daemons[0])? + cpu::of_process(tunnel.daemons[1])?)
    }

    fn idle_memory(&self, tunnel: &Tunnel, results: &mut Results) -> Result<()> {
        let [a, b] = tunnel.daemons;
        results.add(self.contender, Metric::RssIdle, memory::resident(a)?.max(memory::resident(b)?));
        Ok(())
    }

    fn loaded_memory(&self, tunnel: &Tunnel, results: &mut Results) -> Result<()> {
        let [a, b] = tunnel.daemons;
        results.add(self.contender, Metric::RssLoad, memory::peak(a)?.max(memory::peak(b)?));
        Ok(())
    }

    fn sockets(&self) -> Result<udp::Pair> {
        udp::Pair::open((&self.netns[0], inner(1)), (&self.netns[1], inner(2)))
    }

    fn idle_round_trips(&self, results: &mut Results) -> Result<()> {
        let times = self.sockets()?.round_trips(PINGS, PAUSE)?;
        for (metric, share) in [(Metric::RttP50, 0.5), (Metric::RttP99, 0.99)] {
            results.add(self.contender, metric, percentile(&times, share).context("no ping came back")?);
        }
        Ok(())
    }

    /// Pings while one TCP stream goes the same way as they do.
    fn loaded_round_trips(&self, results: &mut Results) -> Result<()> {
        let sockets = self.sockets()?;
        let times = std::thread::scope(|scope| {
            let seconds = self.pace.tcp + 1;
            let load = scope.spawn(move || iperf::run(&self.netns[0], inner(2), 1, false, seconds));
            // The stream takes a moment to get going.
            crate::signals::sleep(Duration::from_millis(500))?;
            let times = sockets.round_trips(Duration::from_secs(u64::from(self.pace.tcp)), PAUSE);
            load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
            times
        })?;
        let value = percentile(&times, 0.99).context("no ping came back")?;
        results.add(self.contender, Metric::RttLoadP99, value);
        Ok(())
    }

    fn steady(&self, tunnel: &Tunnel, results: &mut Results) -> Result<()> {
        let sockets = self.sockets()?;
        let before = self.daemons(tunnel)?;
        let flow = sockets.send(self.pace.udp, Some(RATE))?;
        let used = self.daemons(tunnel)? - before;
        if flow.received == 0 {
            bail!("none of {} packets came through", flow.sent);
        }
        if flow.received * 100 < flow.sent * 99 {
            let share = flow.received as f64 / flow.sent as f64 * 100.0;
            let name = self.contender.name();
            results.notes.push(format!("{name}: {share:.0} % came through at {RATE} packets a second"));
        }
        results.add(self.contender, Metric::CpuPerPacket, used.as_secs_f64() * 1e6 / flow.received as f64);
        Ok(())
    }

    fn flood(&self, results: &mut Results) -> Result<()> {
        let flow = self.sockets()?.send(self.pace.udp, None)?;
        if flow.received == 0 {
            bail!("none of {} packets came through", flow.sent);
        }
        results.add(self.contender, Metric::Udp64, flow.received as f64 / flow.time.as_secs_f64() / 1e3);
        Ok(())
    }

    fn tcp(
        &self,
        tunnel: &mut Tunnel,
        metric: Metric,
        streams: u8,
        reverse: bool,
        results: &mut Results,
    ) -> Result<()> {
        let calls = tunnel.calls(self.contender)?;
        let (daemons, load) = (self.daemons(tunnel)?, self.load()?);
        let stream = iperf::run(&self.netns[0], inner(2), streams, reverse, self.pace.tcp)?;
        let daemons = (self.daemons(tunnel)? - daemons).as_secs_f64();
        let load = (self.load()? - load).as_secs_f64();
        results.add(self.contender, metric, stream.gbit());
        let per_gb = |seconds: f64| seconds / (stream.bytes / 1e9);
        match metric {
            Metric::Tcp1 => results.add(self.contender, Metric::CpuPerGb, per_gb(daemons)),
            Metric::Tcp4 => results.add(self.contender, Metric::CpuPerGb4, per_gb(daemons)),
            _ => {}
        }
        if let (Metric::Tcp1, Some(before)) = (metric, calls) {
            let calls = tunnel.calls(self.contender)?.unwrap_or(before) - before;
            results.add(self.contender, Metric::CallsPerMb, calls as f64 / (stream.bytes / 1e6));
        }
        if self.contender == Contender::Bound {
            let crypto = crypto::seconds_per_gb(Implementation::best())?;
            results.crypto.push(crypto);
            results.crypto_aws_lc.push(crypto::seconds_per_gb(Implementation::AwsLc)?);
            results.add_bound(metric, bound(cores(), per_gb(daemons + load), crypto));
        }
        Ok(())
    }

    /// CPU time of the load: the client is a child that was waited for, the server is asked.
    fn load(&self) -> Result<Duration> {
        Ok(cpu::of_lab()? + cpu::of_process(self.iperf)?)
    }
}

/// How many CPUs this process may run on.
pub(crate) fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// Gbit/s that `cores` can carry, with nothing else to do, if each GB costs `plain` seconds of CPU without encryption, both ends and the load
/// together, and `crypto` seconds more with it.
fn bound(cores: f64, plain: f64, crypto: f64) -> f64 {
    cores * 8.0 / (plain + crypto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_that_of_the_issues_figures() {
        // 12 Gbit/s without encryption on two cores are 1.33 CPU s per GB.
        let plain = 2.0 * 8.0 / 12.0;
        assert!((bound(2.0, plain, 0.0) - 12.0).abs() < 1e-9);
        assert!((6.8..7.0).contains(&bound(2.0, plain, 1.0)), "{}", bound(2.0, plain, 1.0));
    }
}
