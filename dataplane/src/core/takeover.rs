//! What the core does differently while another one follows it: see `crate::takeover`.

use std::net::SocketAddr;
use std::time::Duration;

use super::noise::Kind;
use super::{Core, Time};

/// The topmost bit of an index: one for all of a core's indices, since its slots are fewer.
pub(super) const HALF: u32 = 1 << 23;

/// Between two handshakes when all peers are to be asked: about what one costs.
const SPREAD: Duration = Duration::from_micros(200);

impl Core {
    /// By what a slot differs from its index.
    pub(crate) fn mask(&self) -> u32 {
        self.mask
    }

    /// Makes its indices differ from those of the core with this mask. Before the first table.
    pub(crate) fn beside(&mut self, mask: u32) {
        debug_assert!(self.tunnels.is_empty());
        self.mask = (self.mask & !HALF) | (!mask & HALF);
    }

    /// Leaves what is another's alone from now on, and renews no session.
    pub(crate) fn lend(&mut self) {
        self.shared.lent = true;
    }

    /// Everything is its own again. Peers have moved to sessions that nobody has any more: they are asked for
    /// new ones.
    pub(crate) fn take_back(&mut self, now: Time) {
        self.shared.lent = false;
        let mut at = now;
        for slot in 0..self.tunnels.len() as u32 {
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { continue };
            tunnel.follow(false);
            if tunnel.has_session() {
                tunnel.hint(now);
                self.schedule(slot, Some(at));
                at = at + SPREAD;
            }
        }
    }

    /// The peer at this address sends on a session of the other core's. Whoever forges that keeps a tunnel from being
    /// probed by a core that is about to end.
    pub(super) fn note_followed(&mut self, from: SocketAddr) {
        let slot = self.by_endpoint.get(&from).and_then(|&slot| self.tunnels.get_mut(slot as usize));
        if let Some(Some(tunnel)) = slot {
            tunnel.follow(true);
        }
    }

    /// Whether a datagram is for another core on the same socket, while there is one.
    pub(crate) fn is_foreign(&self, datagram: &[u8]) -> bool {
        Kind::of(datagram).is_some_and(|kind| self.is_foreign_kind(kind))
    }

    pub(super) fn is_foreign_kind(&self, kind: Kind) -> bool {
        match kind {
            Kind::Initiation => true,
            Kind::Response(index) | Kind::Cookie(index) | Kind::Data(index) => {
                (index ^ self.mask) & HALF != 0
            }
        }
    }
}
