//! All gateways of a cluster dead: whoever tries to reach it is told so at once, and reaches it again as soon as
//! one of them is back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::field::{BEHIND, GATEWAYS};
use super::strike::plug;
use super::{Findings, count};
use crate::netns::Netns;
use crate::screen::Screen;
use crate::signals;
use crate::topology::{Family, POD_PORT};
use crate::world::World;

/// By when all tunnels must be known to be dead.
const KNOWN: Duration = Duration::from_secs(4);

/// How soon "unreachable" must come: at once, on a machine that is busy.
const AT_ONCE: Duration = Duration::from_millis(300);

/// How soon after the return of the first gateway it must be reached again.
const BACK: Duration = Duration::from_secs(1);

/// How long one try may take.
const TRY: Duration = Duration::from_secs(1);

const CLIENT: &str = "beta/pod3";

pub(super) fn unreachable(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let client = world.topology.find(CLIENT).context("the client")?;
    for number in 0..count() {
        let result = one(world, &client, number, &mut findings);
        for gateway in GATEWAYS {
            plug(world, gateway, true)?;
        }
        result?;
        world.wait_until_all_tunnels_stand()?;
    }
    findings.conclude(count() * (2 + 6 + 2))
}

fn one(world: &World, client: &Netns, number: usize, findings: &mut Findings) -> Result<()> {
    let targets = Family::BOTH.map(|family| Ok((family, world.pod_address(BEHIND, family)?)));
    let targets: Vec<_> = targets.into_iter().collect::<Result<_>>()?;
    let target = |address| SocketAddr::new(address, POD_PORT);
    for (family, address) in &targets {
        reach(client, target(*address)).with_context(|| format!("{family} before anything was done"))?;
    }
    for gateway in GATEWAYS {
        plug(world, gateway, false)?;
    }
    let begin = Instant::now();
    for (family, address) in &targets {
        let mut last = String::new();
        let known = loop {
            match attempt(client, target(*address))? {
                Try::Unreachable => break Some(begin.elapsed()),
                Try::Reached => bail!("{family}: reached through gateways without plugs"),
                Try::Other(error) => last = error.to_string(),
            }
            if begin.elapsed() > KNOWN {
                break None;
            }
        };
        findings.require(known.is_some(), || {
            format!("{family}: after {} s not told that it is unreachable: {last}", KNOWN.as_secs())
        });
        for _ in 0..3 {
            let begin = Instant::now();
            let seen = attempt(client, target(*address))?;
            let (at_once, after) = (begin.elapsed() < AT_ONCE, begin.elapsed());
            findings.require(matches!(seen, Try::Unreachable) && at_once, || {
                format!("{family}: a new try was to be told at once, it was {seen:?} after {after:?}")
            });
        }
    }
    // One that has been away for so long, and the other one next time.
    signals::sleep(Duration::from_millis(500))?;
    plug(world, GATEWAYS[number % GATEWAYS.len()], true)?;
    let begin = Instant::now();
    let mut told = Vec::new();
    for (family, address) in &targets {
        let back = loop {
            if matches!(attempt(client, target(*address))?, Try::Reached) || begin.elapsed() > BACK * 5 {
                break begin.elapsed();
            }
            signals::sleep(Duration::from_millis(5))?;
        };
        findings.require(back <= BACK, || {
            format!("{family}: reached {:.2} s after the first gateway was back", back.as_secs_f64())
        });
        told.push(format!("{family} {} ms", back.as_millis()));
    }
    Screen::new(false).raw(&format!(
        "           reached again after {}; ICMP messages that the kernel did not take: {}",
        told.join(", "),
        not_taken(client)?
    ));
    Ok(())
}

/// What became of a connection that was to be made.
#[derive(Debug)]
pub(in crate::scenario) enum Try {
    Reached,
    /// Somebody said that there is no way.
    Unreachable,
    /// Nobody answers ([`ErrorKind::TimedOut`], after [`TRY`]), or something else is wrong.
    Other(std::io::Error),
}

/// Tries to make a connection to a pod and to get an echo.
pub(in crate::scenario) fn attempt(client: &Netns, target: SocketAddr) -> Result<Try> {
    signals::check()?;
    client.enter(|| {
        let result = TcpStream::connect_timeout(&target, TRY).and_then(|stream| {
            stream.set_read_timeout(Some(TRY))?;
            (&stream).write_all(b"echo\nx")?;
            let mut answer = [0; 1];
            (&stream).read_exact(&mut answer)
        });
        Ok(match result {
            Ok(()) => Try::Reached,
            Err(error)
                if matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) =>
            {
                Try::Unreachable
            }
            Err(error) => Try::Other(error),
        })
    })
}

/// How many ICMP messages met a socket that was busy at that moment, so that the kernel only took note of them: a
/// connection that is being made then waits until it asks again.
fn not_taken(client: &Netns) -> Result<String> {
    let text = client.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/netstat")?))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let found = pairs.find(|(name, _)| *name == "LockDroppedIcmps");
    Ok(found.map_or("unknown", |(_, value)| value).to_owned())
}

fn reach(client: &Netns, target: SocketAddr) -> Result<()> {
    // A session may have to be made first.
    for _ in 0..5 {
        if matches!(attempt(client, target)?, Try::Reached) {
            return Ok(());
        }
    }
    bail!("{target} was not reached")
}
