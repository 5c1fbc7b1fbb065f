//! One agent follows another on the same node without a lost packet.
//!
//! An agent that is started while another one answers at its socket does not wait for the other's end: it takes
//! over from it, step by step, over that socket. Who asks is the *heir* ([`heir`]), who lends the *lender*
//! ([`lender`]); descriptors go along with the answers (`SCM_RIGHTS`, unix(7)).
//!
//! ```text
//! heir                                            lender
//! Begin: interface, port, lanes' keys ──────────►  checks; lends sockets, TUN queues, relays
//!   shakes hands with each peer that               ◄── Lent: descriptors, endpoints of sessions
//!   the lender has a session with
//! Cut ──────────────────────────────────────────►  reads the TUN no more
//!   reads the TUN                                  ◄── Cut
//! Control ──────────────────────────────────────►  ends publishing, host engine, sources, CNI installer
//!                                                  ◄── Control: the state directory's lock, unix socket, health
//! Commit ───────────────────────────────────────►  from here on it does not change its mind
//!   starts its control half                        ◄── Committed
//! Running ──────────────────────────────────────►  opens what is late for a second, then ends
//! ```
//!
//! Nothing of the kernel's state is removed in between, and at no time do two agents write: the heir writes
//! nothing before it has heard `Committed`, the lender nothing after it has said `Control`.
//!
//! Whichever of the two dies, the connection closes, and the other goes on: the lender takes back what it lent
//! and starts its control half again; the heir takes the lock that the dead one has lost. An heir that the lender
//! gave up waiting for finds the lock taken, and ends.

use std::net::SocketAddr;

use podspan_wire::{LaneKey, NodeId};
use serde::{Deserialize, Serialize};

pub mod heir;
pub mod lender;
pub mod notify;
pub mod probe;
pub mod talk;

/// The version of what is said; also of the relay between the packet workers.
pub const PROTOCOL: u32 = 1;

/// What the heir asks; the first is [`Ask::Begin`], on a connection to the control socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "takeOver", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Ask {
    /// May I take over?
    Begin(Begin),
    /// Read the TUN no more.
    Cut,
    /// Write nothing more, and give me what is needed to.
    Control,
    /// I have it; do not change your mind.
    Commit,
    /// I do everything; end.
    Running,
}

/// Who the heir is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begin {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The program's version, for the log.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The TUN interface.
    pub interface: String,
    /// UDP port of the first lane.
    pub port: u16,
    /// Public keys of the lanes.
    pub lanes: Vec<LaneKey>,
}

/// What the lender answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "lend", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reply {
    /// No; everything stays as it is.
    Refused {
        /// For a person.
        why: String,
    },
    /// Yes. With three descriptors for each lane: UDP socket, TUN queue, relay.
    Lent {
        /// The lender's version.
        version: String,
        /// Its process.
        pid: u32,
        /// For each lane the mask of its indices.
        masks: Vec<u32>,
        /// The tunnels that have a session.
        sessions: Vec<Session>,
    },
    /// The TUN is yours.
    Cut,
    /// What is needed to write. With the lock of the state directory, the unix socket, and the health port if
    /// there is one.
    Control {
        /// Whether there is a health port.
        health: bool,
    },
    /// It is yours.
    Committed,
}

/// A tunnel with a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// The peer.
    pub peer: NodeId,
    /// The lane here.
    pub local: usize,
    /// The lane there.
    pub remote: usize,
    /// Where the peer is.
    pub endpoint: SocketAddr,
}
