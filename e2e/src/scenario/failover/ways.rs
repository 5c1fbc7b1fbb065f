//! By which gateway each of many flows goes, as the node behind the gateways sees it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::command::Cmd;
use crate::netns::Netns;
use crate::signals;
use crate::topology::Family;
use crate::world::{self, World};

/// How many flows there are, of each family.
pub(crate) const FLOWS: u16 = 1000;

/// The sources of the flows begin here; nobody listens where they go to.
const FIRST_PORT: u16 = 20_000;
const PORT: u16 = 9;

/// How far from what it should be a gateway's part of the flows may be, percent.
const UNEVEN: u64 = 15;

/// Flows from a pod to a pod behind gateways.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course<'a> {
    /// The pods.
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    /// The node of the latter: what arrives there tells by its link address who forwarded it.
    pub(crate) last: &'a str,
    pub(crate) gateways: &'a [&'static str],
}

/// Which gateway each flow went through, by its family and its source port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    last: BTreeMap<(Family, u16), &'static str>,
    /// How many went through more than one while they were looked at.
    pub(crate) split: usize,
}

impl Ways {
    /// Sends a few packets of each flow and looks by which gateway they come.
    pub(crate) fn look(world: &mut World, course: &Course<'_>) -> Result<Self> {
        let last = world.node(course.last)?.netns();
        let links = link_addresses(world, course.gateways)?;
        let mut targets = Vec::new();
        for family in Family::BOTH {
            targets.push(world.pod_address(course.to, family)?);
        }
        let log = watch(world, &last, &targets)?;
        let from = world.topology.find(course.from).context("the pod")?;
        from.enter(|| targets.iter().try_for_each(|to| send(*to)))?;
        signals::sleep(Duration::from_millis(400))?;
        world.daemon(WATCH)?.signal(Signal::SIGINT)?;
        world.daemon(WATCH)?.wait(Duration::from_secs(10))?;
        let text = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let mut ways = Self::default();
        let mut split = std::collections::BTreeSet::new();
        for line in text.lines() {
            let Some((link, flow)) = read(line) else { continue };
            let Some(gateway) = links.get(link) else { bail!("a packet that no gateway forwarded: {line}") };
            if ways.last.insert(flow, gateway).is_some_and(|before| before != *gateway) {
                split.insert(flow);
            }
        }
        ways.split = split.len();
        for family in Family::BOTH {
            let seen = ways.last.keys().filter(|(of, _)| *of == family).count();
            if seen != usize::from(FLOWS) {
                bail!("{seen} of {FLOWS} flows by {family} were seen at {}", course.last);
            }
        }
        Ok(ways)
    }

    /// How many flows of a family went through each gateway that any went through.
    pub(crate) fn counts(&self, family: Family) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for (_, gateway) in self.last.iter().filter(|((of, _), _)| *of == family) {
            *counts.entry(*gateway).or_default() += 1;
        }
        counts
    }

    /// How many flows of a gateway go elsewhere in `other`; of any gateway, if none is given.
    pub(crate) fn moved(&self, other: &Self, whose: impl Fn(&str) -> bool) -> usize {
        let own = self.last.iter().filter(|(_, gateway)| whose(gateway));
        own.filter(|(flow, gateway)| other.last.get(flow) != Some(gateway)).count()
    }
}

/// The gateways whose part of the flows is over 15 % from what their weight gives them, or that have flows and no weight.
pub(crate) fn uneven(counts: &BTreeMap<&'static str, u64>, weights: &[(&str, u64)]) -> Vec<String> {
    let all: u64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut wrong: Vec<String> = weights
        .iter()
        .filter_map(|(gateway, weight)| {
            let count = counts.get(gateway).copied().unwrap_or(0);
            let due = u64::from(FLOWS) * weight / all.max(1);
            let is_off = count.abs_diff(due) * 100 > due * UNEVEN;
            is_off
                .then(|| format!("{count} of {FLOWS} flows went through {gateway}, {due} would be its part"))
        })
        .collect();
    let strangers = counts.iter().filter(|(gateway, _)| weights.iter().all(|(name, _)| name != *gateway));
    wrong.extend(strangers.map(|(gateway, count)| format!("{count} flows went through {gateway}")));
    wrong
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
fn link_addresses(world: &World, gateways: &[&'static str]) -> Result<BTreeMap<String, &'static str>> {
    let mut links = BTreeMap::new();
    for gateway in gateways {
        let node = world.node(gateway)?;
        let interface = node.interfaces.first().context("an interface")?.name;
        let text = Cmd::new("ip").args(["-j", "link", "show", interface]).within(&node.netns()).text()?;
        let value: serde_json::Value = serde_json::from_str(&text).context("the answer of ip")?;
        let address = value[0]["address"].as_str().context("a link address")?;
        links.insert(address.to_owned(), *gateway);
    }
    Ok(links)
}

const WATCH: &str = "tcpdump flows";

/// Starts to watch what comes in for the pod; gives the file where it is told.
fn watch(world: &mut World, netns: &Netns, targets: &[IpAddr]) -> Result<PathBuf> {
    let log = world::log_path(WATCH)?;
    std::fs::remove_file(&log).ok();
    let hosts: Vec<_> = targets.iter().map(|to| format!("dst host {to}")).collect();
    let filter = format!("udp and dst port {PORT} and ({})", hosts.join(" or "));
    let cmd = Cmd::new("tcpdump")
        .args(["--immediate-mode", "-n", "-e", "-l", "-B", "8192", "-Q", "in", "-i", "eth0", &filter])
        .within(netns);
    world.start_daemon(WATCH, &cmd)?;
    let end = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("listening on") {
        if Instant::now() > end {
            bail!("tcpdump does not listen in {netns}");
        }
        signals::sleep(Duration::from_millis(10))?;
    }
    Ok(log)
}

/// The link address of the sender, family and source port, out of a line of `tcpdump -e -n`.
fn read(line: &str) -> Option<(&str, (Family, u16))> {
    let link = line.split(' ').nth(1)?;
    let family = if line.contains("ethertype IPv6") { Family::V6 } else { Family::V4 };
    let source = line.split(" > ").nth(1)?.rsplit(' ').next()?;
    let port = source.rsplit('.').next()?.parse().ok()?;
    (FIRST_PORT..FIRST_PORT + FLOWS).contains(&port).then_some((link, (family, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tcpdump_are_read() {
        let v4 = "11:02:03.456789 52:54:00:00:00:01 > 52:54:00:00:00:02, ethertype IPv4 (0x0800), length 51: \
                  10.2.2.2.20017 > 10.1.3.2.9: UDP, length 9";
        assert_eq!(read(v4), Some(("52:54:00:00:00:01", (Family::V4, 20_017))));
        let v6 = "11:02:03.456789 52:54:00:00:00:01 > 52:54:00:00:00:02, ethertype IPv6 (0x86dd), length 71: \
                  fd00:10:2:2::2.20999 > fd00:10:1:3::2.9: UDP, length 9";
        assert_eq!(read(v6), Some(("52:54:00:00:00:01", (Family::V6, 20_999))));
        assert_eq!(
            read("listening on eth0, link-type EN10MB (Ethernet), snapshot length 262144 bytes"),
            None
        );
    }

    #[test]
    fn flows_that_moved_are_counted_for_whom_they_left() {
        let ways = |gateways: [&'static str; 3]| Ways {
            last: (0..).zip(gateways).map(|(port, gateway)| ((Family::V4, port), gateway)).collect(),
            split: 0,
        };
        let (before, after) = (ways(["a", "b", "a"]), ways(["a", "a", "c"]));
        assert_eq!(before.moved(&after, |_| true), 2);
        assert_eq!(before.moved(&after, |gateway| gateway == "b"), 1);
        assert_eq!(before.moved(&Ways::default(), |_| true), 3);
        assert_eq!(before.counts(Family::V4), BTreeMap::from([("a", 2), ("b", 1)]));
        assert!(before.counts(Family::V6).is_empty());
    }

    #[test]
    fn fifteen_percent_are_even_and_sixteen_are_not() {
        let wrong = |a, b, weights: [u64; 2]| {
            uneven(&BTreeMap::from([("a", a), ("b", b)]), &[("a", weights[0]), ("b", weights[1])]).len()
        };
        assert_eq!(wrong(575, 425, [10, 10]), 0);
        assert_eq!(wrong(576, 424, [10, 10]), 2);
        assert_eq!(wrong(212, 788, [10, 40]), 0);
        assert_eq!(wrong(500, 500, [10, 40]), 2);
        assert_eq!(uneven(&BTreeMap::from([("a", 1000), ("c", 1)]), &[("a", 1)]).len(), 1);
        assert_eq!(uneven(&BTreeMap::new(), &[("a", 1)]).len(), 1);
    }
}
