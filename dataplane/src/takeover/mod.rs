//! One dataplane follows another without losing a packet.
//!
//! WireGuard sessions cannot be moved, so the new dataplane makes sessions of its own while the old one goes
//! on. Both have the same sockets and the same TUN queues: descriptors of one kernel object, so that what
//! waits in the kernel's buffers is never in nobody's hands.
//!
//! ```text
//!             old (lends)                                 new (beside)
//!  lend ─►    reads TUN, reads UDP;                       shakes hands with every peer, sends keepalives:
//!             relays what is not its own: handshake       peers move to the new sessions;
//!             initiations, packets of other indices ────► opens what is relayed, writes it to the TUN
//!  cut  ─►    stops reading TUN, flushes, says so ──────► reads TUN
//!             goes on opening what is still sent
//!             on its sessions
//!  end  ─►    stops; the relay closes ──────────────────► drains the relay, then reads UDP
//! ```
//!
//! What is whose is told by the index of WireGuard's messages: its topmost bit differs between the two. The
//! relay is a bounded socket pair; what does not fit is dropped and counted.
//!
//! If the new one dies, [`crate::Dataplane::take_back`] has the old one go on; if the old one dies,
//! [`crate::Dataplane::own`] has the new one read everything. Neither happens by itself: only the caller knows
//! whether the other one has died or has changed its mind.

pub(crate) mod adopt;
mod handle;
mod relay;
mod role;

pub(crate) use role::{Order, Role};

use std::os::fd::OwnedFd;

/// How long a worker may take to do what it is told.
const OBEY_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// What one lane of the old dataplane lends to the new one's.
#[derive(Debug)]
pub struct LentLane {
    /// Its UDP socket.
    pub socket: OwnedFd,
    /// Its TUN queue.
    pub queue: OwnedFd,
    /// The new one's end of the relay.
    pub relay: OwnedFd,
    /// The mask of the old one's indices.
    pub mask: u32,
}

/// Why a dataplane lends nothing. It goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    /// It lends to another one already, or has itself not been given everything yet.
    #[error("another takeover is under way")]
    Busy,
    /// Its interface was deleted a moment ago.
    #[error("the interface is gone at the moment; it is made anew within a second")]
    NoInterface,
    /// A worker has ended or does not answer.
    #[error("the worker of lane {0} does not answer")]
    Hung(usize),
    /// The system refused.
    #[error("no descriptors for it: {0}")]
    System(std::io::Error),
}
