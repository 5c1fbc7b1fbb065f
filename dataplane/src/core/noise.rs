//! The one place where boringtun is touched: its tunnel, its limiter and its clock.
//!
//! boringtun reads the clock by itself, and most of its timers only when `update_timers` is called: what
//! happens between two calls is stamped with the time of the earlier one. Hence [`Noise::tick`] comes
//! before anything that is to be stamped right: before a handshake that wakes a tunnel from its sleep.

use std::net::IpAddr;
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use podspan_wire::LaneKey;
use x25519_dalek::PublicKey;

use crate::counters::DropCause;
use crate::secret::LaneSecret;

/// The longest handshake message, bytes (WireGuard paper, section 5.4.2).
pub(crate) const MAX_HANDSHAKE: usize = 148;

/// What a datagram claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A handshake initiation, with its sender still hidden.
    Initiation,
    /// A handshake response to the tunnel with this index.
    Response(u32),
    /// A cookie reply to the tunnel with this index.
    Cookie(u32),
    /// A data packet to the tunnel with this index.
    Data(u32),
}

impl Kind {
    /// Reads type and lengths; `None` if it is no WireGuard message.
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        Some(match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::HandshakeInit(_) => Self::Initiation,
            Packet::HandshakeResponse(p) => Self::Response(p.receiver_idx >> 8),
            Packet::PacketCookieReply(p) => Self::Cookie(p.receiver_idx >> 8),
            Packet::PacketData(p) => Self::Data(p.receiver_idx >> 8),
        })
    }
}

/// What stands before all tunnels of a lane: the check of handshakes that costs little, and the cookies.
pub(crate) struct Door {
    secret: LaneSecret,
    public: PublicKey,
    limiter: RateLimiter,
    /// What the tunnels get: they must not count a second time what was counted here.
    unlimited: Arc<RateLimiter>,
}

/// Why the door stays shut.
pub(crate) enum Refused {
    /// Under load: a cookie reply of this many bytes was written.
    Cookie(usize),
    /// Dropped.
    Drop(DropCause),
}

impl Door {
    pub(crate) fn new(secret: LaneSecret, limit: u64) -> Self {
        let public = PublicKey::from(secret.x25519());
        Self {
            limiter: RateLimiter::new(&public, limit),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret,
            public,
        }
    }

    /// Checks the first MAC of a handshake message, and the cookie's if too many came within a second.
    /// `out` has room for [`MAX_HANDSHAKE`] bytes.
    pub(crate) fn check(&self, from: IpAddr, handshake: &[u8], out: &mut [u8]) -> Result<(), Refused> {
        match self.limiter.verify_packet(Some(from), handshake, out) {
            Ok(_) => Ok(()),
            Err(TunnResult::WriteToNetwork(reply)) => Err(Refused::Cookie(reply.len())),
            Err(TunnResult::Err(error)) => Err(Refused::Drop(cause(&error))),
            Err(_) => Err(Refused::Drop(DropCause::Malformed)),
        }
    }

    /// Starts a new second, if one has passed.
    pub(crate) fn tick(&self) {
        self.limiter.reset_count();
    }

    /// Whose initiation it is. The key is proven only once its tunnel has taken the handshake.
    pub(crate) fn initiator(&self, initiation: &[u8]) -> Option<LaneKey> {
        let Ok(Packet::HandshakeInit(init)) = Tunn::parse_incoming_packet(initiation) else { return None };
        let half = parse_handshake_anon(self.secret.x25519(), &self.public, &init).ok()?;
        Some(LaneKey::from_bytes(half.peer_static_public))
    }
}

/// What opening a data packet gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// A keepalive.
    Keepalive,
    /// An inner packet of this many bytes, its length checked against its header.
    Packet(usize),
    /// It authenticated, but what is inside is no IP packet.
    NotIp,
}

/// What a handshake message gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shaken {
    /// An initiation was taken; a response of this many bytes is to be sent.
    Responded(usize),
    /// Our own handshake is complete; a keepalive of this many bytes confirms it to the peer.
    Completed(usize),
    /// A cookie was taken; it goes into the next attempt.
    Cookie,
}

/// What a tick asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tick {
    /// Nothing.
    Nothing,
    /// A handshake initiation of this many bytes is to be sent.
    Initiation(usize),
    /// A keepalive of this many bytes is to be sent.
    Keepalive(usize),
    /// All attempts failed, or there was no session for long: all state is gone.
    Expired,
}

/// A tunnel of boringtun's, and what it does not tell of itself.
pub(crate) struct Noise {
    tunn: Tunn,
    has_session: bool,
}

impl Noise {
    /// A tunnel to the lane with `key`. `index`, 24 bits, comes back in what the peer sends.
    pub(crate) fn new(door: &Door, key: LaneKey, index: u32) -> Self {
        // No persistent keepalive: boringtun could not change it later. The tunnel's owner sends it.
        let tunn = Tunn::new(
            door.secret.x25519().clone(),
            PublicKey::from(*key.as_bytes()),
            None,
            None,
            index,
            Some(Arc::clone(&door.unlimited)),
        );
        Self { tunn, has_session: false }
    }

    /// Whether [`Self::seal`] would work.
    pub(crate) fn has_session(&self) -> bool {
        self.has_session
    }

    /// Seals `packet`, or a keepalive if it is empty, into `out`, which has [`super::io::OVERHEAD`] bytes
    /// more and at least [`MAX_HANDSHAKE`]. `None` without a session.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        if !self.has_session {
            return None;
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(sealed) => Some(sealed.len()),
            _ => None,
        }
    }

    /// Opens a data packet into `out`, which is at least as long.
    pub(crate) fn open(&mut self, datagram: &[u8], out: &mut [u8]) -> Result<Opened, DropCause> {
        let opened = match self.tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet.len())
            }
            TunnResult::Done => Opened::Keepalive,
            // The only check behind the authentication: see `validate_decapsulated_packet`.
            TunnResult::Err(WireGuardError::InvalidPacket) => Opened::NotIp,
            TunnResult::Err(error) => return Err(cause(&error)),
            TunnResult::WriteToNetwork(_) => return Err(DropCause::Malformed),
        };
        self.has_session = true;
        Ok(opened)
    }

    /// Takes a handshake message in; a reply goes to `out`, of at least [`MAX_HANDSHAKE`] bytes.
    pub(crate) fn shake(&mut self, kind: Kind, message: &[u8], out: &mut [u8]) -> Result<Shaken, DropCause> {
        match (self.tunn.decapsulate(None, message, out), kind) {
            (TunnResult::WriteToNetwork(reply), Kind::Initiation) => {
                let length = reply.len();
                self.refresh();
                Ok(Shaken::Responded(length))
            }
            (TunnResult::WriteToNetwork(keepalive), _) => {
                self.has_session = true;
                Ok(Shaken::Completed(keepalive.len()))
            }
            (TunnResult::Done, _) => Ok(Shaken::Cookie),
            (TunnResult::Err(error), _) => Err(cause(&error)),
            _ => Err(DropCause::Malformed),
        }
    }

    /// Writes a handshake initiation, even if another one is under way. `out` has [`MAX_HANDSHAKE`] bytes.
    pub(crate) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(initiation) => Some(initiation.len()),
            _ => None,
        }
    }

    /// Looks at the clock and the timers. `out` has [`MAX_HANDSHAKE`] bytes.
    pub(crate) fn tick(&mut self, out: &mut [u8]) -> Tick {
        let tick = match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => match Kind::of(message) {
                Some(Kind::Initiation) => Tick::Initiation(message.len()),
                _ => Tick::Keepalive(message.len()),
            },
            TunnResult::Err(WireGuardError::ConnectionExpired) => Tick::Expired,
            _ => Tick::Nothing,
        };
        self.refresh();
        tick
    }

    fn refresh(&mut self) {
        self.has_session = self.tunn.time_since_last_handshake().is_some();
    }
}

fn cause(error: &WireGuardError) -> DropCause {
    match error {
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp
        | WireGuardError::InvalidTai64nTimestamp => DropCause::Replay,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex | WireGuardError::UnexpectedPacket => {
            DropCause::UnknownSession
        }
        WireGuardError::WrongKey => DropCause::UnknownPeer,
        WireGuardError::InvalidMac | WireGuardError::InvalidAeadTag => DropCause::Unauthenticated,
        WireGuardError::UnderLoad => DropCause::UnderLoad,
        _ => DropCause::Malformed,
    }
}
