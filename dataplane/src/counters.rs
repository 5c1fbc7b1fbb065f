//! Counters: written by one worker each, read by anybody at any time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::core::Time;
use crate::core::health::Health;
use crate::core::pmtu::PathMtu;
use crate::settings::Offload;
use crate::status::{BlackHole, Calls, LaneStatus, Liveness, PathStatus, WorkerStatus, liveness};

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropCause {
            $($(#[$doc])* $name,)*
        }

        impl DropCause {
            /// All causes, in the order of their declaration.
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$name),*];

            /// The cause as a metric label: `snake_case`, stable.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

causes! {
    /// From the TUN: no route leads to the destination.
    NoRoute => "no_route",
    /// From the TUN: the route has neither an owner nor a gateway that is a peer.
    NoGateway => "no_gateway",
    /// Not an IP packet (inner), or not a WireGuard message (outer), or its lengths contradict each other.
    Malformed => "malformed",
    /// From a peer: the inner source belongs, by longest prefix, to somebody else.
    SourceMismatch => "source_mismatch",
    /// A handshake by a key that is no peer's.
    UnknownPeer => "unknown_peer",
    /// A data packet or handshake response for a session that is not (or no longer) known here.
    UnknownSession => "unknown_session",
    /// A packet whose counter, or a handshake whose timestamp, was seen before or is too old.
    Replay => "replay",
    /// A packet that does not authenticate.
    Unauthenticated => "unauthenticated",
    /// A handshake without a valid cookie while the lane is under load; a cookie was sent instead.
    UnderLoad => "under_load",
    /// A bounded queue was full: packets waiting for a handshake, handshakes waiting to be worked on, or
    /// the socket's send buffer.
    QueueFull => "queue_full",
    /// Waited too long for a handshake that never came.
    HandshakeTimeout => "handshake_timeout",
    /// Larger than a UDP datagram, than what the interface it would leave by takes, or than the path takes; who
    /// sent it was told then, unless too many were.
    TooBig => "too_big",
    /// The kernel refused the outer packet, for want of a route for example.
    SendFailed => "send_failed",
    /// The kernel refused the inner packet: the interface is down or gone.
    TunWriteFailed => "tun_write_failed",
    /// The TUN queue could not be read: the interface is down or gone.
    TunReadFailed => "tun_read_failed",
    /// The UDP socket could not be read.
    ReceiveFailed => "receive_failed",
    /// More came in than the worker could open: it did not fit the UDP socket's buffer, or was beyond an even share
    /// while that overflowed.
    Overload => "overload",
    /// The peer has no endpoint, and none has been learned from it.
    NoEndpoint => "no_endpoint",
    /// The network marked congestion on the outer packet, and the inner one's transport cannot be told: it is
    /// dropped, as the marking router would otherwise have done (RFC 6040 section 4.2).
    CongestionMarked => "congestion_marked",
    /// From a peer: some pieces of a packet whose others did not come.
    Incomplete => "incomplete",
    /// From a peer: a probe of a version or type that is not known here, or one that was forwarded.
    BadProbe => "bad_probe",
    /// From a peer: more probes than a peer has reason to send.
    ProbeLimit => "probe_limit",
    /// From the TUN: every gateway of the cluster is dead.
    Unreachable => "unreachable",
    /// The inner destination is multicast, broadcast, link-local, loopback or unspecified.
    NotUnicast => "not_unicast",
}

/// Dropped packets by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounts([u64; DropCause::ALL.len()]);

impl DropCounts {
    /// How many were dropped for `cause`.
    #[must_use]
    pub fn get(&self, cause: DropCause) -> u64 {
        self.0[cause as usize]
    }

    /// Every cause with its count, zeros included, in the order of [`DropCause::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (DropCause, u64)> + '_ {
        DropCause::ALL.into_iter().map(|cause| (cause, self.get(cause)))
    }

    /// All drops together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl IntoIterator for DropCounts {
    type Item = (DropCause, u64);
    type IntoIter = std::array::IntoIter<(DropCause, u64), { DropCause::ALL.len() }>;
    fn into_iter(self) -> Self::IntoIter {
        DropCause::ALL.map(|cause| (cause, self.get(cause))).into_iter()
    }
}

/// One number with a single writer: no read-modify-write instruction is needed, and none is used.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Drops by cause, with a single writer.
#[derive(Debug, Default)]
pub(crate) struct DropCounters([Counter; DropCause::ALL.len()]);

impl DropCounters {
    pub(crate) fn count(&self, cause: DropCause) {
        self.add(cause, 1);
    }

    pub(crate) fn add(&self, cause: DropCause, n: u64) {
        self.0[cause as usize].add(n);
    }

    pub(crate) fn read(&self) -> DropCounts {
        let mut counts = DropCounts::default();
        for (count, counter) in counts.0.iter_mut().zip(&self.0) {
            *count = counter.get();
        }
        counts
    }
}

/// What one worker counts. Two cache lines apart from its neighbours: prefetchers fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct WorkerCounters {
    pub(crate) rx_outer_packets: Counter,
    pub(crate) rx_outer_bytes: Counter,
    pub(crate) tx_outer_packets: Counter,
    pub(crate) tx_outer_bytes: Counter,
    pub(crate) rx_inner_packets: Counter,
    pub(crate) rx_inner_bytes: Counter,
    pub(crate) tx_inner_packets: Counter,
    pub(crate) tx_inner_bytes: Counter,
    pub(crate) handshakes: Counter,
    pub(crate) cookies: Counter,
    pub(crate) unreachables: Counter,
    pub(crate) too_bigs: Counter,
    pub(crate) ticks: Counter,
    pub(crate) polls: Counter,
    pub(crate) tun_reads: Counter,
    pub(crate) tun_writes: Counter,
    pub(crate) udp_receives: Counter,
    pub(crate) udp_sends: Counter,
    offload: Counter,
    pub(crate) drops: DropCounters,
}

impl WorkerCounters {
    pub(crate) fn set_offload(&self, offload: Offload) {
        let bits = [offload.tso, offload.uso, offload.gso, offload.gro];
        self.offload.set(bits.into_iter().fold(0, |all, bit| all << 1 | u64::from(bit)));
    }

    fn offload(&self) -> Offload {
        let bits = self.offload.get();
        Offload { tso: bits & 8 != 0, uso: bits & 4 != 0, gso: bits & 2 != 0, gro: bits & 1 != 0 }
    }

    pub(crate) fn status(&self, lane: usize, port: u16, failed: Option<String>) -> WorkerStatus {
        WorkerStatus {
            lane,
            port,
            failed,
            rx_outer_packets: self.rx_outer_packets.get(),
            rx_outer_bytes: self.rx_outer_bytes.get(),
            tx_outer_packets: self.tx_outer_packets.get(),
            tx_outer_bytes: self.tx_outer_bytes.get(),
            rx_inner_packets: self.rx_inner_packets.get(),
            rx_inner_bytes: self.rx_inner_bytes.get(),
            tx_inner_packets: self.tx_inner_packets.get(),
            tx_inner_bytes: self.tx_inner_bytes.get(),
            handshakes: self.handshakes.get(),
            cookies: self.cookies.get(),
            unreachables: self.unreachables.get(),
            too_bigs: self.too_bigs.get(),
            ticks: self.ticks.get(),
            calls: Calls {
                poll: self.polls.get(),
                tun_read: self.tun_reads.get(),
                tun_write: self.tun_writes.get(),
                udp_receive: self.udp_receives.get(),
                udp_send: self.udp_sends.get(),
            },
            offload: self.offload(),
            drops: self.drops.read(),
        }
    }
}

/// Written into a [`Counter`] that stands for a time which has not come yet.
const NEVER: u64 = u64::MAX;

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(NEVER - 1)
}

fn moment(counter: &Counter) -> Option<Time> {
    Some(counter.get()).filter(|&at| at != NEVER).map(Time::from_micros)
}

fn duration(counter: &Counter) -> Option<Duration> {
    Some(counter.get()).filter(|&micros| micros != NEVER).map(Duration::from_micros)
}

/// What one worker tells of one tunnel.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct TunnelCounters {
    pub(crate) rx_packets: Counter,
    pub(crate) rx_bytes: Counter,
    pub(crate) tx_packets: Counter,
    pub(crate) tx_bytes: Counter,
    pub(crate) drops: DropCounters,
    pub(crate) probes_sent: Counter,
    pub(crate) probes_answered: Counter,
    pub(crate) replies_sent: Counter,
    pub(crate) path_probes: Counter,
    /// The size that crosses whole, or 0; that of a search is not told.
    path_mtu: Counter,
    /// When a black hole was found, microseconds of [`Time`], or [`NEVER`], and what had passed before.
    black_hole_at: Counter,
    black_hole_size: Counter,
    black_holes: Counter,
    liveness: Counter,
    changes: Counter,
    jitter: Counter,
    /// Probes lost, and of how many, in 16 bits each.
    loss: Counter,
    /// Microseconds of [`Time`], or [`NEVER`].
    replied_at: Counter,
    established: AtomicBool,
    /// Microseconds of [`Time`], or [`NEVER`].
    handshake_at: Counter,
    /// Microseconds, or [`NEVER`].
    rtt: Counter,
    /// Replaced when the peer roams, which is rare; readers never hold the worker up.
    endpoint: ArcSwapOption<SocketAddr>,
}

impl Default for TunnelCounters {
    fn default() -> Self {
        let never = || Counter(AtomicU64::new(NEVER));
        Self {
            rx_packets: Counter::default(),
            rx_bytes: Counter::default(),
            tx_packets: Counter::default(),
            tx_bytes: Counter::default(),
            drops: DropCounters::default(),
            probes_sent: Counter::default(),
            probes_answered: Counter::default(),
            replies_sent: Counter::default(),
            path_probes: Counter::default(),
            path_mtu: Counter::default(),
            black_hole_at: never(),
            black_hole_size: Counter::default(),
            black_holes: Counter::default(),
            liveness: Counter(AtomicU64::new(Liveness::Unproven as u64)),
            changes: Counter::default(),
            jitter: never(),
            loss: Counter::default(),
            replied_at: never(),
            established: AtomicBool::new(false),
            handshake_at: never(),
            rtt: never(),
            endpoint: ArcSwapOption::empty(),
        }
    }
}

impl TunnelCounters {
    pub(crate) fn status(&self, now: Time, local: usize, remote: usize) -> LaneStatus {
        LaneStatus {
            local,
            remote,
            endpoint: self.endpoint(),
            established: self.established(),
            handshake_age: self.handshake().map(|at| now.since(at)),
            rtt: self.rtt(),
            liveness: self.liveness(),
            changes: self.changes.get(),
            jitter: duration(&self.jitter),
            loss: self.loss(),
            last_reply_age: moment(&self.replied_at).map(|at| now.since(at)),
            probes_sent: self.probes_sent.get(),
            probes_answered: self.probes_answered.get(),
            replies_sent: self.replies_sent.get(),
            path: self.path(now),
            rx_bytes: self.rx_bytes.get(),
            tx_bytes: self.tx_bytes.get(),
            rx_packets: self.rx_packets.get(),
            tx_packets: self.tx_packets.get(),
            drops: self.drops.read(),
        }
    }

    pub(crate) fn set_established(&self, established: bool) {
        self.established.store(established, Relaxed);
    }

    fn established(&self) -> bool {
        self.established.load(Relaxed)
    }

    pub(crate) fn set_handshake(&self, at: Time) {
        self.handshake_at.set(at.as_micros());
    }

    fn handshake(&self) -> Option<Time> {
        moment(&self.handshake_at)
    }

    pub(crate) fn set_rtt(&self, rtt: Duration) {
        self.rtt.set(micros(rtt));
    }

    fn rtt(&self) -> Option<Duration> {
        duration(&self.rtt)
    }

    /// What probes measured: smoothed round trip and its variation; probes lost, of how many; the last reply.
    pub(crate) fn set_probed(
        &self,
        rtt: Option<(Duration, Duration)>,
        (lost, of): (u32, u32),
        last_reply: Option<Time>,
    ) {
        if let Some((rtt, variation)) = rtt {
            self.set_rtt(rtt);
            self.jitter.set(micros(variation));
        }
        self.loss.set(u64::from(lost) << 16 | u64::from(of));
        self.replied_at.set(last_reply.map_or(NEVER, Time::as_micros));
    }

    fn loss(&self) -> Option<f64> {
        let loss = self.loss.get();
        let (lost, of) = (loss >> 16, loss & 0xffff);
        (of > 0).then(|| lost as f64 / of as f64)
    }

    /// Notes what is known of the path. A search leaves what was known before: it is short, and its sizes are
    /// on the way to the truth.
    pub(crate) fn set_path(&self, path: &PathMtu) {
        if !path.is_searching() {
            self.path_mtu.set(path.size().unwrap_or(0).into());
        }
        let (at, size) = path.black_hole().map_or((NEVER, 0), |(at, size)| (at.as_micros(), size));
        self.black_hole_at.set(at);
        self.black_hole_size.set(size.into());
        self.black_holes.set(path.black_holes());
    }

    fn path(&self, now: Time) -> PathStatus {
        let size = |counter: &Counter| u16::try_from(counter.get()).unwrap_or(u16::MAX);
        PathStatus {
            mtu: Some(size(&self.path_mtu)).filter(|&size| size > 0),
            black_hole: moment(&self.black_hole_at)
                .map(|at| BlackHole { age: now.since(at), size: size(&self.black_hole_size) }),
            black_holes: self.black_holes.get(),
            probes: self.path_probes.get(),
        }
    }

    pub(crate) fn set_health(&self, health: &Health) {
        self.liveness.set(liveness(health) as u64);
        self.changes.set(health.changes());
    }

    fn liveness(&self) -> Liveness {
        Liveness::ALL.get(self.liveness.get() as usize).copied().unwrap_or_default()
    }

    pub(crate) fn set_endpoint(&self, endpoint: Option<SocketAddr>) {
        self.endpoint.store(endpoint.map(Arc::new));
    }

    fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint.load().as_deref().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_fit_for_metrics() {
        let mut labels: Vec<_> = DropCause::ALL.iter().map(|cause| cause.label()).collect();
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), DropCause::ALL.len());
    }

    #[test]
    fn offloads_are_read_back() {
        let counters = WorkerCounters::default();
        for n in 0..16 {
            let offload = Offload { tso: n & 1 != 0, uso: n & 2 != 0, gso: n & 4 != 0, gro: n & 8 != 0 };
            counters.set_offload(offload);
            assert_eq!(counters.offload(), offload);
        }
    }

    #[test]
    fn counts_are_read_back_by_cause() {
        let counters = DropCounters::default();
        counters.count(DropCause::Replay);
        counters.add(DropCause::NotUnicast, 3);
        let counts = counters.read();
        assert_eq!(counts.get(DropCause::Replay), 1);
        assert_eq!(counts.total(), 4);
        assert_eq!(counts.into_iter().filter(|&(_, n)| n > 0).count(), 2);
    }
}
