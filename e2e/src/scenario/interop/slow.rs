//! What takes two minutes: it goes on from the start, beside the other scenarios.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::PEERS;
use super::meter::{Message, Meter, Way};
use super::place::{Interop, Pair};
use crate::command::Cmd;
use crate::kube::Site;
use crate::netns::Netns;
use crate::process::ProcessId;
use crate::scenario::Findings;
use crate::signals;
use crate::tunnel::{Kind, Options, inner, outer};

/// After this time the side that began makes new keys with the next packet (WireGuard paper, section 6.2).
const REKEY: Duration = Duration::from_secs(120);

/// What it may take longer, at the pace of the pings and on a busy machine.
const MARGIN: Duration = Duration::from_secs(8);

/// Pings a second, from the side that began.
const PINGS: u64 = 10;

/// A tunnel on which time passes.
#[derive(Debug)]
pub(crate) struct Slow {
    name: String,
    kind: Kind,
    podspan_begins: bool,
    pair: Option<Pair>,
    meter: Meter,
    ping: ProcessId,
    begun: Instant,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.told())
    }
}

/// Short enough, with `psp-` before it, for whoever has to read it.
fn place(kind: Kind, podspan_begins: bool, end: char) -> Netns {
    let side = if podspan_begins { "ours" } else { "theirs" };
    Netns::named(format!("psp-interop-{}-{side}-{end}", kind.name()))
}

/// The namespaces, pair after pair.
pub(super) fn namespaces() -> impl Iterator<Item = Netns> {
    let pairs = PEERS.into_iter().flat_map(|kind| [(kind, true), (kind, false)]);
    pairs.flat_map(|(kind, begins)| ['a', 'b'].map(|end| place(kind, begins, end)))
}

/// Starts a tunnel that podspan or the peer begins, and pings from there.
pub(super) fn start(interop: &mut Interop, kind: Kind, podspan_begins: bool) -> Result<Slow> {
    let (ours, theirs) = (place(kind, podspan_begins, 'a'), place(kind, podspan_begins, 'b'));
    let meter = Meter::start(&ours, &outer(1).to_string())?;
    let options = |dials| Options { dials, ..Options::default() };
    let pair = interop.start(kind, [&ours, &theirs], &options(podspan_begins), &options(!podspan_begins))?;
    pair.up(podspan_begins)?;
    let name =
        format!("pings {} {}", kind.name(), if podspan_begins { "from podspan" } else { "to podspan" });
    let (from, to) = if podspan_begins { (&ours, inner(2)) } else { (&theirs, inner(1)) };
    let pause = format!("{}", 1.0 / PINGS as f64);
    // Longer than anybody waits for it; SIGINT has it write its summary.
    let cmd = Cmd::new("ping").args(["-n", "-q", "-i", &pause, "-w", "400", &to.to_string()]).within(from);
    let ping = interop.site.start(&name, &cmd)?;
    Ok(Slow { name, kind, podspan_begins, pair: Some(pair), meter, ping, begun: Instant::now() })
}

/// `1234 packets transmitted, 1230 received, ...` of ping's summary.
fn sent_and_received(summary: &str) -> Option<(u64, u64)> {
    let line = summary.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split([' ', ',']).filter_map(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// Waits until two minutes have passed for all of them, and looks what happened.
pub(super) fn rekey(interop: &mut Interop) -> Result<()> {
    let mut findings = Findings::default();
    for slow in &mut interop.slow {
        let until = slow.begun + REKEY + MARGIN;
        signals::sleep(until.saturating_duration_since(Instant::now()))?;
        let begins = if slow.podspan_begins { Way::Out } else { Way::In };
        let answers = if slow.podspan_begins { Way::In } else { Way::Out };
        let name = &slow.name;
        let initiations = slow.meter.count(begins, Message::Initiation)?;
        findings.require((2..=3).contains(&initiations), || {
            format!(
                "{name}: {initiations} handshakes were begun by the side that is to begin, 2 should have been"
            )
        });
        let others = slow.meter.count(answers, Message::Initiation)?;
        findings.require(others == 0, || {
            format!("{name}: the side that does not know the other's address began {others} handshakes")
        });
        let pair = slow.pair.as_mut().context("the pair runs until it is ended")?;
        let handshakes = pair.podspan.counter("handshakes")?;
        findings.require((2..=3).contains(&handshakes), || {
            format!("{name}: podspan counts {handshakes} handshakes")
        });
        slow.ping.signal(nix::sys::signal::Signal::SIGINT)?;
        slow.ping.wait(Duration::from_secs(5))?;
        let summary = Site::log_tail(&slow.name, 5);
        let (sent, received) =
            sent_and_received(&summary).with_context(|| format!("ping said: {summary}"))?;
        let least = PINGS * (REKEY.as_secs()) / 2;
        findings.require(sent >= least, || format!("{name}: only {sent} pings were sent"));
        // The last one may still be on its way when ping ends.
        findings.require(received + 1 >= sent, || {
            format!("{name} ({}): {} of {sent} pings were lost", slow.kind.name(), sent - received)
        });
    }
    let count = interop.slow.len();
    for slow in interop.slow.drain(..) {
        slow.pair.map_or(Ok(()), Pair::stop)?;
    }
    findings.require(count == 2 * PEERS.len(), || format!("there were only {count} tunnels"));
    findings.conclude(5 * 2 * PEERS.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_summary_is_read() {
        let text = "\n--- 10.202.0.1 ping statistics ---\n5 packets transmitted, 4 received, 20% packet loss, time 1ms";
        assert_eq!(sent_and_received(text), Some((5, 4)));
        assert_eq!(sent_and_received("nothing"), None);
    }

    #[test]
    fn namespaces_come_in_pairs() {
        let all: Vec<_> = namespaces().collect();
        assert_eq!(all.len(), 4 * PEERS.len());
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
