//! What the dataplane is started with, and why it may refuse to.

use std::io;

use crate::secret::LaneSecret;
use crate::tun::TunError;

/// Handshakes that a lane takes in each second before it asks for cookies (WireGuard paper, section
/// 5.4.7), unless the settings say otherwise: about an eighth of one core.
pub const DEFAULT_HANDSHAKE_LIMIT: u64 = 500;

/// What the dataplane is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the TUN interface, 1 to 15 bytes; made if there is none.
    pub interface: String,
    /// Lane `i` listens on UDP port `port + i`, on one socket for IPv4 and IPv6, or for IPv4 only where
    /// IPv6 is switched off.
    pub port: u16,
    /// `SO_MARK` of every outer packet, so that rules can keep them out of the tunnel; 0 for none.
    pub fwmark: u32,
    /// One secret for each lane, 1 to [`podspan_wire::MAX_LANES`], each with a worker thread of its own.
    pub lanes: Vec<LaneSecret>,
    /// Whether the interface, and with it its addresses and routes, outlives the process (`TUNSETPERSIST`).
    pub persist: bool,
    /// Handshakes per second and lane before cookies are asked for; see [`DEFAULT_HANDSHAKE_LIMIT`].
    pub handshake_limit: u64,
    /// Which offloads are used, where the kernel has them.
    pub offload: Offload,
}

/// Which offloads of the kernel are used. Each is probed when it is switched on, and given up when the kernel
/// refuses it later, so that switching one off serves diagnosis only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The TUN hands over TCP in packets of up to 64 KB, and takes them so (`TUN_F_TSO4`, `TUN_F_TSO6`).
    pub tso: bool,
    /// The same for UDP (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    pub uso: bool,
    /// The socket sends many datagrams with one call (`UDP_SEGMENT`; Linux 4.18).
    pub gso: bool,
    /// The socket receives many datagrams with one call (`UDP_GRO`; Linux 5.0).
    pub gro: bool,
}

impl Offload {
    /// All of them.
    pub const ALL: Self = Self { tso: true, uso: true, gso: true, gro: true };
    /// None of them.
    pub const NONE: Self = Self { tso: false, uso: false, gso: false, gro: false };
}

impl Default for Offload {
    fn default() -> Self {
        Self::ALL
    }
}

/// Why the dataplane did not start. Nothing is left behind, but for a persistent interface that was there.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No lanes, or more than a record can announce.
    #[error("{0} lanes are asked for: there must be 1 to {most}", most = podspan_wire::MAX_LANES)]
    Lanes(usize),
    /// The last lane's port would be over 65535, or the first is 0.
    #[error("{lanes} lanes do not fit at UDP port {port} and up: choose a port from 1 to {most}", most = 65536 - lanes)]
    PortRange {
        /// The first port.
        port: u16,
        /// How many lanes there are.
        lanes: usize,
    },
    /// Two lanes have the same key.
    #[error("lanes {0} and {1} have the same key: each lane needs a key of its own")]
    SameKey(usize, usize),
    /// Somebody else has the port.
    #[error(
        "UDP port {port} of lane {lane} is taken by another process (`ss -lunp` names it): stop it, or give podspan another port"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// The lane that wanted it.
        lane: usize,
    },
    /// A UDP socket could not be opened or set up.
    #[error("lane {lane} cannot use UDP port {port}: {what}: {error}")]
    Socket {
        /// The lane.
        lane: usize,
        /// Its port.
        port: u16,
        /// The step that failed, and what to do.
        what: &'static str,
        /// The system's word for it.
        error: io::Error,
    },
    /// Another dataplane lends another number of lanes.
    #[error("the running dataplane has {lent} lanes, this one is to have {own}")]
    OtherLanes {
        /// How many are lent.
        lent: usize,
        /// How many the settings ask for.
        own: usize,
    },
    /// The TUN interface could not be opened.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The system gave no thread, eventfd or random bytes.
    #[error("cannot start the packet workers: {what}: {error}")]
    System {
        /// The step that failed.
        what: &'static str,
        /// The system's word for it.
        error: io::Error,
    },
}
