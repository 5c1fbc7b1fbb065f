//! How flows are spread over the gateways, and which of them move.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::Findings;
use super::field::{self, BEHIND, Field, GATEWAYS};
use super::strike::plug;
use crate::command::Cmd;
use crate::netns::Netns;
use crate::screen::Screen;
use crate::signals;
use crate::topology::Family;
use crate::world::{self, World};

const FLOWS: u16 = 1000;

/// The sources of the flows begin here; nobody listens where they go to.
const FIRST_PORT: u16 = 20_000;
const PORT: u16 = 9;

/// Within which a gateway that was held down has its flows again.
const RETURN: Duration = Duration::from_secs(70);

/// How far from even the spread may be, percent.
const UNEVEN: u64 = 15;

const FROM: &str = "beta/pod3";

/// The node of the pods behind the gateways: what arrives there tells by its link address who forwarded it.
const LAST: &str = "alpha-3";

/// Which gateway each flow went through, by its source port.
type Ways = BTreeMap<u16, &'static str>;

pub(super) fn spread(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let result = all(world, &mut findings);
    for gateway in GATEWAYS {
        plug(world, gateway, true)?;
    }
    result?;
    findings.conclude(3 + 2 * (2 + 2 + 1))
}

fn all(world: &mut World, findings: &mut Findings) -> Result<()> {
    quiet(world, findings)?;
    let mut first = Vec::new();
    for family in Family::BOTH {
        let ways = ways(world, family)?;
        let counts = counted(&ways);
        Screen::new(false).raw(&format!("           {FLOWS} flows by {family}: {counts:?}"));
        for gateway in GATEWAYS {
            let count = counts.get(gateway).copied().unwrap_or(0);
            let even = u64::from(FLOWS) / 2;
            findings.require(count.abs_diff(even) * 100 <= even * UNEVEN, || {
                format!("{family}: of {FLOWS} flows {count} went through {gateway}: {counts:?}")
            });
        }
        first.push((family, ways));
    }
    // One dies: all are with the other. It comes back: each is where it was.
    let [dead, other] = GATEWAYS;
    plug(world, dead, false)?;
    signals::sleep(Duration::from_secs(1))?;
    for (family, _) in &first {
        let counts = counted(&ways(world, *family)?);
        findings.expect(
            &format!("{family}: through {other} alone"),
            Some(&u64::from(FLOWS)),
            counts.get(other),
        );
        findings.expect(&format!("{family}: through {dead}"), None, counts.get(dead));
    }
    plug(world, dead, true)?;
    world.wait_until_all_tunnels_stand()?;
    let end = Instant::now() + Duration::from_secs(40);
    for (family, before) in &first {
        let moved = loop {
            let after = ways(world, *family)?;
            let moved = before.iter().filter(|(port, gateway)| after.get(port) != Some(gateway)).count();
            if moved == 0 || Instant::now() > end {
                break moved;
            }
            signals::sleep(Duration::from_millis(500))?;
        };
        findings.expect(&format!("{family}: flows that are not where they were"), 0, moved);
    }
    Ok(())
}

/// While nothing happens nothing is lost, doubled or overtaken, with flows on both gateways.
fn quiet(world: &mut World, findings: &mut Findings) -> Result<()> {
    let field = Field::start(world)?;
    // A gateway that died before gets its flows back when it has been steady for a while.
    let end = Instant::now() + RETURN;
    while field::shares(world, Duration::from_secs(1))?.values().any(|packets| *packets < 70)
        && Instant::now() < end
    {
        signals::sleep(Duration::from_millis(200))?;
    }
    field.begin()?;
    let shares = field::shares(world, Duration::from_secs(3))?;
    let seen = field.report()?;
    field.stop()?;
    findings.require(seen.lost == 0 && seen.sent > 2000, || format!("while nothing happened: {seen:?}"));
    findings.expect(
        "reordered, duplicated while nothing happened",
        (0, 0),
        (seen.reordered, seen.duplicates),
    );
    findings.require(shares.values().all(|packets| *packets > 200), || {
        format!("both gateways should carry flows: {shares:?}")
    });
    Ok(())
}

fn counted(ways: &Ways) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for gateway in ways.values() {
        *counts.entry(*gateway).or_default() += 1;
    }
    counts
}

/// Sends a few packets of each flow and looks by which gateway they come.
fn ways(world: &mut World, family: Family) -> Result<Ways> {
    let last = world.node(LAST)?.netns();
    let links = link_addresses(world)?;
    let to = world.pod_address(BEHIND, family)?;
    let log = watch(world, &last, to)?;
    let from = world.topology.find(FROM).context("the pod")?;
    from.enter(|| send(to))?;
    signals::sleep(Duration::from_millis(400))?;
    world.daemon(WATCH)?.signal(Signal::SIGINT)?;
    world.daemon(WATCH)?.wait(Duration::from_secs(10))?;
    let text = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    let mut ways = Ways::new();
    for line in text.lines() {
        let Some((link, port)) = read(line) else { continue };
        let Some(gateway) = links.get(link) else { bail!("a packet that no gateway forwarded: {line}") };
        ways.insert(port, gateway);
    }
    if ways.len() != usize::from(FLOWS) {
        bail!("{} of {FLOWS} flows were seen at {LAST}", ways.len());
    }
    Ok(ways)
}

/// Three packets of each flow, not faster than a socket's buffer empties.
fn send(to: IpAddr) -> Result<()> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    for _ in 0..3 {
        for port in FIRST_PORT..FIRST_PORT + FLOWS {
            let socket = UdpSocket::bind((any, port)).with_context(|| format!("port {port}"))?;
            // The answer that nobody listens there comes to earlier ones.
            socket.send_to(b"which way", SocketAddr::new(to, PORT)).ok();
            if port % 16 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    Ok(())
}

/// The gateways by their link addresses in the cloud's network.
fn link_addresses(world: &World) -> Result<BTreeMap<String, &'static str>> {
    let mut links = BTreeMap::new();
    for gateway in GATEWAYS {
        let node = world.node(gateway)?;
        let interface = node.interfaces.first().context("an interface")?.name;
        let text = Cmd::new("ip").args(["-j", "link", "show", interface]).within(&node.netns()).text()?;
        let value: serde_json::Value = serde_json::from_str(&text).context("the answer of ip")?;
        let address = value[0]["address"].as_str().context("a link address")?;
        links.insert(address.to_owned(), gateway);
    }
    Ok(links)
}

const WATCH: &str = "tcpdump flows";

/// Starts to watch what comes in for the pod; gives the file where it is told.
fn watch(world: &mut World, netns: &Netns, to: IpAddr) -> Result<PathBuf> {
    let log = world::log_path(WATCH)?;
    std::fs::remove_file(&log).ok();
    let filter = format!("udp and dst host {to} and dst port {PORT}");
    let cmd = Cmd::new("tcpdump")
        .args(["--immediate-mode", "-n", "-e", "-l", "-B", "8192", "-Q", "in", "-i", "eth0", &filter])
        .within(netns);
    world.start_daemon(WATCH, &cmd)?;
    let end = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("listening on") {
        if Instant::now() > end {
            bail!("tcpdump does not listen at {LAST}");
        }
        signals::sleep(Duration::from_millis(10))?;
    }
    Ok(log)
}

/// The link address of the sender and the source port, out of a line of `tcpdump -e -n`.
fn read(line: &str) -> Option<(&str, u16)> {
    let mut words = line.split(' ');
    let link = words.nth(1)?;
    let source = line.split(" > ").nth(1)?.rsplit(' ').next()?;
    let port = source.rsplit('.').next()?.parse().ok()?;
    (FIRST_PORT..FIRST_PORT + FLOWS).contains(&port).then_some((link, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tcpdump_are_read() {
        let v4 = "11:02:03.456789 52:54:00:00:00:01 > 52:54:00:00:00:02, ethertype IPv4 (0x0800), length 51: \
                  10.2.2.2.20017 > 10.1.3.2.9: UDP, length 9";
        assert_eq!(read(v4), Some(("52:54:00:00:00:01", 20_017)));
        let v6 = "11:02:03.456789 52:54:00:00:00:01 > 52:54:00:00:00:02, ethertype IPv6 (0x86dd), length 71: \
                  fd00:10:2:2::2.20999 > fd00:10:1:3::2.9: UDP, length 9";
        assert_eq!(read(v6), Some(("52:54:00:00:00:01", 20_999)));
        assert_eq!(
            read("listening on eth0, link-type EN10MB (Ethernet), snapshot length 262144 bytes"),
            None
        );
    }
}
