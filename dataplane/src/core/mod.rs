//! The core of one worker: packets and time go in, packets come out. No socket, no clock, no thread, no
//! randomness of its own; the only clock behind it is boringtun's, fenced in `noise`.
//!
//! # The way of a packet out
//!
//! ```text
//! handle_tun ─► Header::parse ─► unicast? ─► Table::route (longest prefix)
//!  (one packet, or a big one                      │
//!   that stands for many)                         │
//!    owner's tunnel does well ────────────────────┤ send there
//!    else gateways of the best rank, or the owner ┤ rendezvous hash of the flow
//!    else whoever may be reached by a handshake ──┤ the owner, or by rendezvous hash; queue, shake hands
//!    all are dead ────────────────────────────────┤ ICMP to the sender, through the TUN
//!                                                 ▼
//!            too large for the path, and may not be fragmented? tell the sender
//!                                                 ▼
//!                     Segments ─► Tunnel::send ─► Noise::seal ─► Sink::send
//! ```
//!
//! # The way of a packet in
//!
//! ```text
//! handle_udp ─► Kind::of ─► data ───────► tunnel by index ─► Noise::open ─► Header::parse
//!                  │                          │                               │
//!                  │                          │ none: handshake with whoever  ▼
//!                  │                          │ has this endpoint   source is the peer's by longest
//!                  │                          ▼                     prefix, destination is unicast?
//!                  │                        drop                              │
//!                  └► handshake ─► Door::check ─► bounded queue ─► ...        ▼
//!                                  (MAC, cookie)   handle_timeout          Sink::deliver
//! ```
//!
//! # Contract
//!
//! - Times given to the `handle_*` functions never decrease.
//! - [`Core::handle_timeout`] is called when [`Core::poll_timeout`] says so, or soon after.
//! - The work of one call is bounded: by the batch, and by [`TURN`], [`BUSY_TURN`] and [`TICKS`] for
//!   handshakes and timers, so that whoever sends handshakes in masses slows no session down. What is left
//!   over makes `poll_timeout` return a time that has passed.
//! - Memory is bounded: [`QUEUE_BYTES`] of packets and [`HANDSHAKE_QUEUE`] handshakes wait at most.

pub(crate) mod health;
mod inbound;
pub(crate) mod io;
pub mod lanes;
mod liveness;
mod noise;
mod outbound;
mod overload;
pub(crate) mod packet;
mod peers;
mod pieces;
pub(crate) mod pmtu;
mod probe;
mod queue;
pub(crate) mod rendezvous;
mod takeover;
mod time;
mod timers;
mod tunnel;
mod unreachable;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podspan_wire::{LaneKey, NodeId};

pub use io::{Arrival, BATCH, Batch, Departure, MAX_DATAGRAM, OVERHEAD, Sink, TunnelTag};
pub use pmtu::PathLimits;
pub use queue::QUEUE_BYTES;
pub use time::Time;

use crate::counters::{DropCause, WorkerCounters};
use crate::secret::LaneSecret;
use crate::status::WorkerStatus;
use crate::table::{Recent, Table};
use inbound::Handshake;
use noise::Door;
use overload::Overload;
use peers::Parted;
use pieces::Pieces;
use queue::Budget;
use timers::{Jitter, Timers};
use tunnel::Tunnel;

/// Handshakes that one call of [`Core::handle_timeout`] answers, and begins: some 3 ms of key exchanges.
pub const TURN: usize = 8;

/// The same while packets come in at the same time: they are not to wait for more than one of each.
pub const BUSY_TURN: usize = 1;

/// Due tunnels that one call looks at, at most; without a handshake that costs under a microsecond each.
pub const TICKS: usize = 256;

/// Handshakes that wait to be worked on, at most (about 180 KB).
pub const HANDSHAKE_QUEUE: usize = 1024;

/// The front door's limiter counts by seconds.
const DOOR_TICK: Duration = Duration::from_secs(1);

/// What a core is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Index of the lane.
    pub lane: usize,
    /// The lane's secret.
    pub secret: LaneSecret,
    /// Handshakes per second before cookies are asked for.
    pub handshake_limit: u64,
    /// Seeds the jitter of timers and the mask of indices: random, so that a node that starts again does
    /// not take packets of its earlier life for its own.
    pub seed: u64,
}

/// What tunnels share.
struct Shared {
    door: Door,
    counters: Arc<WorkerCounters>,
    budget: Budget,
    /// Handshakes begun so far.
    initiations: u64,
    /// Whether this node is about to go.
    draining: bool,
    /// Seconds between probes of an idle tunnel that peers are asked to leave.
    pace: u16,
    /// How large packets may be at all.
    limits: PathLimits,
    /// How many senders may still be told that nothing can be reached.
    unreachable: unreachable::Limit,
    /// Whether another core follows this one: it answers handshakes, and begins those of tunnels with a session.
    lent: bool,
}

/// The tunnels of one peer on this worker.
#[derive(Default)]
struct PeerSlots {
    /// The one to send through comes first, then those through which the peer sends.
    slots: Vec<u32>,
}

/// One worker's packet path. See the module's documentation for the contract.
pub struct Core {
    lane: usize,
    shared: Shared,
    table: Arc<Table>,
    /// What was looked up in it lately.
    recent: Recent,
    tunnels: Vec<Option<Tunnel>>,
    /// Slots that were given up, the longest unused first: their indices rest before they come back.
    free: VecDeque<u32>,
    /// A slot and the index that peers know are one exclusive or apart.
    mask: u32,
    by_peer: Vec<PeerSlots>,
    by_key: HashMap<LaneKey, u32>,
    /// Packets that are to take a certain tunnel, by its slot.
    through: Vec<(u32, Box<[u8]>)>,
    /// Peers that were found to be gone, or back.
    turned: Vec<NodeId>,
    /// When a packet was last to go to each cluster of the table.
    used: Vec<Option<Time>>,
    /// Who may be behind an address: current, learned and published endpoints.
    by_endpoint: HashMap<SocketAddr, u32>,
    parted: Parted,
    pieces: Pieces,
    timers: Timers,
    jitter: Jitter,
    handshakes: VecDeque<Handshake>,
    door_tick: Time,
    overload: Overload,
    /// Whether packets came in since the last [`Core::handle_timeout`].
    busy: bool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("lane", &self.lane)
            .field("tunnels", &self.by_key.len())
            .finish_non_exhaustive()
    }
}

impl Core {
    /// A core with an empty table.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self::with_counters(config, Arc::default())
    }

    pub(crate) fn with_counters(config: Config, counters: Arc<WorkerCounters>) -> Self {
        let mut jitter = Jitter::new(config.seed);
        Self {
            lane: config.lane,
            shared: Shared {
                door: Door::new(config.secret, config.handshake_limit),
                counters,
                budget: Budget::default(),
                initiations: 0,
                draining: false,
                pace: 0,
                limits: PathLimits::default(),
                unreachable: unreachable::Limit::default(),
                lent: false,
            },
            table: Arc::default(),
            recent: Recent::default(),
            tunnels: Vec::new(),
            free: VecDeque::new(),
            mask: jitter.next() as u32 & 0x00ff_ffff,
            by_peer: Vec::new(),
            by_key: HashMap::new(),
            used: Vec::new(),
            through: Vec::new(),
            turned: Vec::new(),
            by_endpoint: HashMap::new(),
            parted: Parted::default(),
            pieces: Pieces::default(),
            timers: Timers::default(),
            jitter,
            handshakes: VecDeque::new(),
            door_tick: Time::default(),
            overload: Overload::default(),
            busy: false,
        }
    }

    /// How large packets may be at all, from now on: the paths of tunnels in use are measured anew.
    pub fn set_path_limits(&mut self, limits: PathLimits) {
        if std::mem::replace(&mut self.shared.limits, limits) != limits {
            // Those that nobody uses would not look for minutes.
            for slot in 0..self.tunnels.len() as u32 {
                self.schedule(slot, Some(Time::default()));
            }
        }
    }

    /// When [`Self::handle_timeout`] wants to be called, if nothing else happens; never, for a core whose
    /// tunnels all sleep.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let waiting = !self.handshakes.is_empty() || !self.through.is_empty();
        if waiting { Some(Time::default()) } else { self.timers.next() }
    }

    /// Looks after what is due: handshakes that wait, and the timers of tunnels.
    pub fn handle_timeout(&mut self, now: Time, sink: &mut impl Sink) {
        self.tick_door(now);
        let turn = if std::mem::take(&mut self.busy) { BUSY_TURN } else { TURN };
        self.work_on_handshakes(now, turn, sink);
        self.flush_through(now, sink);
        let before = self.shared.initiations;
        for _ in 0..TICKS {
            if self.shared.initiations - before >= turn as u64 {
                break;
            }
            let Some((at, slot)) = self.timers.pop(now) else { break };
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { continue };
            if tunnel.due != Some(at) {
                continue;
            }
            tunnel.due = None;
            let in_use = self.table.cluster_of(tunnel.profile.peer).is_some_and(|cluster| {
                let cluster = cluster as usize;
                self.table.clusters[cluster].watched
                    || self.used[cluster].is_some_and(|at| now.since(at) < health::USE)
            });
            let demand = tunnel.health.demand(now, in_use, tunnel.profile.dial);
            let next = tunnel.tick(now, demand, &mut self.jitter, &mut self.shared, sink);
            self.schedule(slot, next);
            self.note_turn(slot);
            self.compare(now, slot);
        }
    }

    fn tick_door(&mut self, now: Time) {
        if now.since(self.door_tick) >= DOOR_TICK {
            self.door_tick = now;
            self.shared.door.tick();
        }
    }

    /// Makes the tunnel in `slot` due at `at`, unless it is so earlier.
    fn schedule(&mut self, slot: u32, at: Option<Time>) {
        let Some(at) = at else { return };
        let Some(Some(tunnel)) = self.tunnels.get_mut(slot as usize) else { return };
        if tunnel.due.is_none_or(|due| at < due) {
            tunnel.due = Some(at);
            self.timers.push(at, slot);
        }
    }

    /// Takes note of `lost` datagrams that did not fit the socket's buffer. For a while packets beyond an even share
    /// are dropped before they are opened, so that what comes in next is taken out faster.
    pub fn note_overflow(&mut self, now: Time, lost: u64) {
        self.shared.counters.drops.add(DropCause::Overload, lost);
        self.overload.note(now);
    }

    /// Counts `packets` that were lost after a [`Sink`] had taken them.
    pub fn charge(&self, tunnel: TunnelTag, cause: DropCause, packets: u64) {
        if tunnel == TunnelTag::TRIAL {
            return;
        }
        let tunnel = tunnel.0.and_then(|index| self.slot_of(index));
        match tunnel.and_then(|slot| self.tunnels[slot as usize].as_ref()) {
            Some(tunnel) => tunnel.profile.counters.drops.add(cause, packets),
            None => self.shared.counters.drops.add(cause, packets),
        }
    }

    /// What the core has counted so far, for a worker on `port`.
    #[must_use]
    pub fn status(&self, port: u16) -> WorkerStatus {
        self.shared.counters.status(self.lane, port, None)
    }
}
