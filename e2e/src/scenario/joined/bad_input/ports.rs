//! Random bytes at the UDP ports of a gateway.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podspan_wire::DEFAULT_PORT;
use podspan_wire::status::Status;

use super::calm::Calm;
use crate::random::Random;
use crate::scenario::Findings;
use crate::screen::Screen;
use crate::signals;
use crate::topology::Family;
use crate::world::{LANES, World};

/// All of it through the gateway that is shouted at, one way from the node behind NAT.
const WAYS: [(&str, &str); 3] =
    [("beta/pod3", "alpha/pod1"), ("alpha/pod1", "gamma/pod1"), ("gamma/pod3", "alpha/pod2")];

const TIME: Duration = Duration::from_secs(5);

/// Datagrams each burst, and the pause after it: some thousands a second.
const BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(4);

/// Lengths of WireGuard's messages by type, 1 to 4; data has any from 32 on (whitepaper section 5.4).
const LENGTHS: [usize; 4] = [148, 92, 64, 32];

/// One datagram: noise, or noise that looks like a message of WireGuard, of the right length or nearly so.
fn datagram(random: &mut Random) -> Vec<u8> {
    let kind = random.below(8);
    let mut bytes = match kind {
        0 | 1 => {
            let length = random.below(2001);
            random.bytes(length)
        }
        2..=5 => random.bytes(LENGTHS[kind - 2]),
        6 => {
            let length = 32 + 16 * random.below(90);
            random.bytes(length)
        }
        _ => {
            let length = LENGTHS[random.below(4)] - 1 - random.below(20);
            random.bytes(length)
        }
    };
    if kind >= 2 && bytes.len() >= 4 {
        let message = if kind == 6 { 4 } else { u8::try_from(kind - 1).unwrap_or(4).min(4) };
        bytes[..4].copy_from_slice(&[message, 0, 0, 0]);
        // Small numbers may be somebody's session.
        if message != 1 && bytes.len() >= 8 && random.below(2) == 0 {
            let index = u32::try_from(random.below(64)).unwrap_or(0);
            bytes[4..8].copy_from_slice(&index.to_le_bytes());
        }
    }
    bytes
}

/// All drops that the workers were charged with.
fn worker_drops(status: &Status) -> u64 {
    status.workers.iter().flat_map(|worker| worker.drops.values()).sum()
}

/// Shouts at the targets for a while; tells how many datagrams left.
fn shout(targets: &[SocketAddr], seed: u64) -> Result<u64> {
    let v4 = UdpSocket::bind(("0.0.0.0", 0)).context("a socket")?;
    let v6 = UdpSocket::bind(("::", 0)).context("a socket")?;
    let mut random = Random::new(seed);
    let (end, mut sent) = (Instant::now() + TIME, 0);
    while Instant::now() < end {
        for _ in 0..BURST {
            let target = targets[random.below(targets.len())];
            let socket = if target.is_ipv4() { &v4 } else { &v6 };
            // An ICMP answer to an earlier datagram may come as an error.
            sent += u64::from(socket.send_to(&datagram(&mut random), target).is_ok());
        }
        signals::sleep(PAUSE)?;
    }
    Ok(sent)
}

pub(super) fn noise(world: &mut World) -> Result<()> {
    let mut findings = Findings::default();
    let node = world.node("alpha-1")?.clone();
    let addresses: Vec<IpAddr> = node.endpoints.clone();
    findings.require(addresses.len() == Family::BOTH.len(), || format!("endpoints {addresses:?}"));
    let ports = DEFAULT_PORT..DEFAULT_PORT + LANES;
    let targets: Vec<SocketAddr> =
        ports.flat_map(|port| addresses.iter().map(move |address| SocketAddr::new(*address, port))).collect();
    let before = world.agent_status(&node)?;
    let calm = Calm::watch(world, &WAYS, TIME + Duration::from_secs(3))?;
    // From a stranger, and from a host that is a peer but for the port.
    let internet = world.topology.internet.netns();
    let peer = world.node("beta-1")?.netns();
    let (strange, familiar) = std::thread::scope(|scope| {
        let familiar = scope.spawn(|| peer.enter(|| shout(&targets, 2)));
        (internet.enter(|| shout(&targets, 1)), familiar.join())
    });
    let familiar = familiar.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    let sent = strange? + familiar?;
    signals::sleep(Duration::from_millis(500))?;
    let after = world.agent_status(&node)?;
    let counted = worker_drops(&after) - worker_drops(&before);
    Screen::new(false).raw(&format!("           {sent} bad datagrams sent, {counted} counted as dropped"));
    findings.require(sent > 10_000, || format!("only {sent} datagrams were sent"));
    // A kernel under load may lose some on the way; what arrives is counted.
    findings.require(counted * 10 >= sent * 9, || {
        format!("{sent} bad datagrams, {counted} counted as dropped: {:?}", after.workers)
    });
    for cause in ["malformed", "unknown_session"] {
        let named = after.workers.iter().any(|worker| worker.drops.get(cause).is_some_and(|n| *n > 0));
        findings.require(named, || format!("no drop for {cause}: {:?}", after.workers));
    }
    findings.require(after.workers.iter().all(|worker| worker.failed.is_none()), || {
        format!("a worker has failed: {:?}", after.workers)
    });
    calm.check(world, &[], &mut findings)?;
    findings.conclude(6 + 24)
}
