//! What the dataplane tells of itself.

use std::net::SocketAddr;
use std::time::Duration;

use podspan_wire::NodeId;
pub use podspan_wire::status::Liveness;

use crate::core::health::{Health, Rank, State};
use crate::counters::DropCounts;
use crate::settings::Offload;

/// The state of the dataplane at one moment. Numbers of different tunnels may be microseconds apart.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The peers of the table, in the order of their ids.
    pub peers: Vec<PeerStatus>,
    /// The workers, by lane.
    pub workers: Vec<WorkerStatus>,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Which node it is.
    pub id: NodeId,
    /// The tunnels to it, by local and remote lane.
    pub lanes: Vec<LaneStatus>,
}

/// One tunnel: a lane of this node and a lane of the peer.
#[derive(Clone, Debug, Default)]
pub struct LaneStatus {
    /// Index of the lane here.
    pub local: usize,
    /// Index of the lane there.
    pub remote: usize,
    /// Where packets are sent: the address that last authenticated, or before that the one tried last.
    /// Worth remembering for [`crate::PeerSpec::learned`] only if there is a `handshake_age`.
    pub endpoint: Option<SocketAddr>,
    /// Whether there is a session that this end may send on and whose other end is not silent: packets
    /// sent in the last 15 s were answered by something (WireGuard paper, section 6.5).
    pub established: bool,
    /// Time since the last handshake that was completed.
    pub handshake_age: Option<Duration>,
    /// Round trip: smoothed over the probes, or before the first one is answered that of the last handshake
    /// which this end began.
    pub rtt: Option<Duration>,
    /// What the replies to probes say of the tunnel.
    pub liveness: Liveness,
    /// How often that has changed.
    pub changes: u64,
    /// Mean deviation of the round trips (RFC 6298 section 2).
    pub jitter: Option<Duration>,
    /// The part of the last probes, at most 32, that was not answered.
    pub loss: Option<f64>,
    /// Time since the last reply to a probe.
    pub last_reply_age: Option<Duration>,
    /// Probes sent.
    pub probes_sent: u64,
    /// Replies to them that came.
    pub probes_answered: u64,
    /// Replies given to the peer's probes.
    pub replies_sent: u64,
    /// How large a packet its path takes.
    pub path: PathStatus,
    /// Bytes of inner packets received and passed on.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Inner packets received and passed on; keepalives do not count.
    pub rx_packets: u64,
    /// Inner packets sent; keepalives do not count.
    pub tx_packets: u64,
    /// Packets dropped that this peer is charged with.
    pub drops: DropCounts,
}

/// How large a packet the path of a tunnel takes, as probes found it (RFC 8899).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStatus {
    /// The largest inner packet that crosses whole, bytes. None before the first packets have had it measured, and
    /// with a plain WireGuard peer: then large packets may travel in fragments. Under 1280, larger ones up to
    /// that cross in pieces.
    pub mtu: Option<u16>,
    /// Set while less passes than did before.
    pub black_hole: Option<BlackHole>,
    /// How many black holes were found.
    pub black_holes: u64,
    /// Probes sent.
    pub probes: u64,
}

/// Large packets vanish though small ones pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlackHole {
    /// Time since it was found.
    pub age: Duration,
    /// The largest inner packet that had passed before, bytes.
    pub size: u16,
}

/// What is thought of a tunnel, in the words of the status.
pub(crate) fn liveness(health: &Health) -> Liveness {
    match (health.state(), health.rank()) {
        (State::Unproven, Rank::Good | Rank::Far) => Liveness::Unproven,
        (_, Rank::Good | Rank::Far | Rank::Unknown) => Liveness::Healthy,
        (_, Rank::HeldDown | Rank::Returned) => Liveness::HeldDown,
        (_, Rank::Draining) => Liveness::Draining,
        (_, Rank::Lossy) => Liveness::Lossy,
        (_, Rank::Suspect) => Liveness::Suspect,
        (_, Rank::NotForwarding) => Liveness::NotForwarding,
        (_, Rank::Dead | Rank::Absent) => Liveness::Dead,
    }
}

/// One packet worker.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// The lane it owns.
    pub lane: usize,
    /// Its UDP port.
    pub port: u16,
    /// Why it does not run, if it does not.
    pub failed: Option<String>,
    /// Datagrams received, of whatever kind.
    pub rx_outer_packets: u64,
    /// Their payload, bytes.
    pub rx_outer_bytes: u64,
    /// Datagrams sent.
    pub tx_outer_packets: u64,
    /// Their payload, bytes.
    pub tx_outer_bytes: u64,
    /// Inner packets written to the TUN.
    pub rx_inner_packets: u64,
    /// Their bytes.
    pub rx_inner_bytes: u64,
    /// Inner packets read from the TUN.
    pub tx_inner_packets: u64,
    /// Their bytes.
    pub tx_inner_bytes: u64,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Cookie replies sent.
    pub cookies: u64,
    /// Senders of inner packets told by ICMP that no gateway of a cluster can be reached.
    pub unreachables: u64,
    /// Senders told that their packet is too large.
    pub too_bigs: u64,
    /// How often a tunnel's timers were looked at.
    pub ticks: u64,
    /// System calls made.
    pub calls: Calls,
    /// The offloads in use: those of the settings that the kernel has and has not refused since.
    pub offload: Offload,
    /// Packets dropped that no peer could be charged with.
    pub drops: DropCounts,
}

/// System calls of a packet worker, those that found nothing to do included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Waits for something to do.
    pub poll: u64,
    /// Reads of the TUN queue: of a packet, or of one that stands for many.
    pub tun_read: u64,
    /// Writes to it.
    pub tun_write: u64,
    /// Receptions of the socket: of a datagram, or of several as one.
    pub udp_receive: u64,
    /// Its transmissions.
    pub udp_send: u64,
}
