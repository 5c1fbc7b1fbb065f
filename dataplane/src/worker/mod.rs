//! A worker: one thread that joins a [`Core`] to a TUN queue and a UDP socket.
//!
//! ```text
//!          ┌───────────────────────── ppoll ◄──────────────────────┐
//!          ▼                                                       │
//!   control (eventfd): tables, stop                                │
//!   UDP: up to BATCH datagrams ─► Core::handle_udp ─► TUN, UDP     │
//!   TUN: up to BATCH packets ───► Core::handle_tun ─► UDP          │
//!   due? ───────────────────────► Core::handle_timeout ─► UDP ─────┘
//! ```
//!
//! Both sides get one batch in each turn, so neither starves the other. Errors of the kernel are counted
//! and survived; an interface that was deleted is made anew. What the core gives out waits in [`Buffers`],
//! merged into as few system calls as may be, until it is full or the turn is over.

mod control;
mod outbox;
mod pace;
mod sink;
mod socket;

use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{io, panic, thread};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use podspan_wire::NodeId;
use tracing::{error, info, warn};

use crate::core::{Arrival, BATCH, Batch, Core, PathLimits, Time};
use crate::counters::{DropCause, WorkerCounters};
use crate::offload::VnetHeader;
use crate::settings::Offload;
use crate::table::Table;
use crate::takeover::{Order, Role};
use crate::tun::Queue;
use pace::Pace;
use sink::{Buffers, Kernel};
pub(crate) use socket::LaneSocket;

/// Between two attempts to make an interface anew that was deleted.
const REATTACH: Duration = Duration::from_secs(1);

/// How long an interface that is down, or a socket that only gives errors, is left alone: it would
/// report itself ready all the time.
const REST: Duration = Duration::from_millis(50);

/// What one call read is small if it has fewer bytes; others rarely come alone.
const SMALL: usize = 1024;

/// What a worker is told.
pub(crate) enum Command {
    Table(Arc<Table>),
    PathLimits(PathLimits),
    Takeover(Order),
    /// Whether this node is about to go.
    Draining(bool),
    /// Whether a gateway forwards, as probes through it showed.
    Forwarding(NodeId, bool),
    /// An inner packet that is to take the tunnel of this peer, whatever else would be better.
    Through(NodeId, Box<[u8]>),
    /// Another worker found that this peer is gone, or back.
    Turned(NodeId),
    Stop,
}

/// How a worker is told something.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    pub(crate) lane: usize,
    pub(crate) commands: Sender<Command>,
    pub(crate) wake: Arc<EventFd>,
}

impl Teller {
    pub(crate) fn tell(&self, command: Command) {
        // A worker that has ended takes no commands; `status` tells of it.
        if self.commands.send(command).is_ok()
            && let Err(error) = self.wake.write(1)
        {
            warn!(lane = self.lane, %error, "cannot wake the packet worker");
        }
    }
}

/// The clock that all workers share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Time {
        Time::default() + self.0.elapsed()
    }
}

pub(crate) struct Worker {
    pub(crate) lane: usize,
    pub(crate) interface: String,
    pub(crate) persist: bool,
    pub(crate) offload: Offload,
    pub(crate) clock: Clock,
    pub(crate) core: Core,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) queue: Option<Queue>,
    pub(crate) socket: LaneSocket,
    /// What of it is another worker's at the moment.
    pub(crate) role: Role,
    pub(crate) commands: Receiver<Command>,
    pub(crate) wake: Arc<EventFd>,
    /// All workers, once all are started.
    pub(crate) all: Arc<OnceLock<Vec<Teller>>>,
    /// Filled if the worker ends without having been told to.
    pub(crate) failed: Arc<OnceLock<String>>,
}

/// What is to be done in this turn.
#[derive(Default)]
struct Ready {
    control: bool,
    socket: bool,
    queue: bool,
    /// The queue reported an error instead of packets.
    queue_failed: bool,
}

/// Until when a descriptor that only gives errors is left alone.
#[derive(Default)]
struct Rests {
    socket: Option<Time>,
    queue: Option<Time>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn spawn(self) -> io::Result<thread::JoinHandle<()>> {
        thread::Builder::new().name(format!("podspan-lane{}", self.lane)).spawn(move || {
            let (lane, failed) = (self.lane, Arc::clone(&self.failed));
            // A worker that ends silently would look like a network that eats packets.
            let why = match panic::catch_unwind(panic::AssertUnwindSafe(|| self.run())) {
                Ok(Ok(())) => return,
                Ok(Err(why)) => why,
                Err(payload) => {
                    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
                    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
                    format!("bug: the worker panicked: {}", text.unwrap_or_else(|| "no message".into()))
                }
            };
            error!(lane, why, "a packet worker has ended: restart the agent");
            let _ = failed.set(why);
        })
    }

    fn run(mut self) -> Result<(), String> {
        // So that pauses end when they should. Without it they are longer, no more.
        if let Err(error) = nix::sys::prctl::set_timerslack(1000) {
            warn!(lane = self.lane, %error, "cannot set the timer slack");
        }
        let mut buffers = Buffers::new(&self.socket, self.queue.as_ref());
        self.counters.set_offload(buffers.offload(&self.socket));
        let mut datagrams = Batch::<Arrival>::default();
        let mut packets = Batch::<VnetHeader>::default();
        let mut rests = Rests::default();
        let mut pace = Pace::default();
        let mut reattach_at = Time::default();
        loop {
            let now = self.clock.now();
            if self.queue.is_none() && now >= reattach_at {
                reattach_at = now + REATTACH;
                self.reattach();
                self.queue.iter().for_each(|queue| buffers.set_queue(queue));
            }
            rests.socket = rests.socket.filter(|&until| now < until);
            rests.queue = rests.queue.filter(|&until| now < until);
            let ready = self
                .wait(now, &rests, reattach_at, &pace)
                .map_err(|error| format!("cannot poll: {error}"))?;

            let waited = now;
            let now = self.clock.now();
            let waited = now.since(waited);
            if ready.control && !self.obey(now) {
                return Ok(());
            }
            // What the worker was woken up for is often alone, unless it is big: what comes behind it ends the next wait.
            let alone = waited > pace::SLEPT && pace.pause().is_none();
            if ready.socket && self.read_socket(&mut datagrams, alone) {
                rests.socket = Some(now + REST);
            }
            if ready.queue
                && self.role.reads_tun()
                && self.read_queue(&mut packets, ready.queue_failed, alone)
            {
                rests.queue = Some(now + REST);
            }
            let mut kernel = Kernel {
                socket: &self.socket,
                queue: self.queue.as_ref(),
                buffers: &mut buffers,
                counters: &self.counters,
            };
            pace.note(now, waited, datagrams.len() + packets.len());
            self.role.relay(&self.core, &datagrams, &self.counters);
            self.core.handle_udp(now, &datagrams, &mut kernel);
            self.core.handle_tun(now, &mut packets, &mut kernel);
            datagrams.clear();
            packets.clear();
            if self.core.poll_timeout().is_some_and(|at| at <= now) {
                self.core.handle_timeout(now, &mut kernel);
            }
            kernel.flush(&self.core);
            while let Some(peer) = self.core.poll_turned() {
                self.tell_others(&peer);
            }
            self.counters.set_offload(buffers.offload(&self.socket));
        }
    }

    /// Waits until something is to be done.
    fn wait(&self, now: Time, rests: &Rests, reattach_at: Time, pace: &Pace) -> nix::Result<Ready> {
        let reattach = self.queue.is_none().then_some(reattach_at);
        let until =
            [self.core.poll_timeout(), rests.socket, rests.queue, reattach].into_iter().flatten().min();
        let timeout = until.map(|at| at.since(now));

        // Who is not waited for has the control's descriptor in its place: an empty set of events would
        // still report errors.
        let control = || PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
        let socket = self.role.inbound(self.socket.as_fd()).filter(|_| rests.socket.is_none());
        let queue = self.queue.as_ref().filter(|_| rests.queue.is_none() && self.role.reads_tun());
        let mut fds = [
            control(),
            socket.map_or_else(control, |socket| PollFd::new(socket, PollFlags::POLLIN)),
            queue.map_or_else(control, |queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN)),
        ];
        self.counters.polls.add(1);
        if let Some(pause) = pace.pause()
            && timeout.is_none_or(|timeout| timeout > pause)
        {
            self.counters.polls.add(1);
            // Who controls it is not kept waiting.
            let _ = ppoll(&mut [control()], Some(TimeSpec::from(pause)), None);
        }
        match ppoll(&mut fds, timeout.map(TimeSpec::from), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(error) => return Err(error),
        }
        let events = |i: usize| fds[i].revents().unwrap_or(PollFlags::empty());
        Ok(Ready {
            control: !events(0).is_empty(),
            socket: socket.is_some() && !events(1).is_empty(),
            queue: queue.is_some() && !events(2).is_empty(),
            queue_failed: events(2).contains(PollFlags::POLLERR),
        })
    }

    /// Has the other workers look at a peer that was found to be gone, or back.
    fn tell_others(&self, peer: &NodeId) {
        let all = self.all.get().map(Vec::as_slice).unwrap_or_default();
        for other in all.iter().filter(|other| other.lane != self.lane) {
            other.tell(Command::Turned(peer.clone()));
        }
    }

    /// Does what it was told; `false` if that was to stop.
    fn obey(&mut self, now: Time) -> bool {
        // Nothing to read means that somebody else's wake-up was taken with an earlier one.
        let _ = self.wake.read();
        // Of several tables only the last one counts: it is whole.
        let mut latest = None;
        loop {
            match self.commands.try_recv() {
                Ok(Command::Table(table)) => latest = Some(table),
                Ok(Command::PathLimits(limits)) => self.core.set_path_limits(limits),
                Ok(Command::Takeover(order)) => self.take_over(now, order),
                Ok(Command::Draining(draining)) => self.core.set_draining(now, draining),
                Ok(Command::Forwarding(gateway, forwards)) => {
                    self.core.set_forwarding(now, &gateway, forwards);
                }
                Ok(Command::Through(gateway, packet)) => self.core.send_through(now, &gateway, packet),
                Ok(Command::Turned(peer)) => self.core.look_at(now, &peer),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => break,
            }
        }
        if let Some(table) = latest {
            self.core.set_table(now, table);
        }
        true
    }

    /// Reads one batch, or what may be `alone` if it is small; returns whether the socket needs a rest.
    fn read_socket(&mut self, batch: &mut Batch<Arrival>, alone: bool) -> bool {
        if self.role.read_relayed(batch) {
            return false;
        }
        let mut errors = 0;
        while let Some(room) = batch.room() {
            self.counters.udp_receives.add(1);
            match self.socket.receive(room) {
                Ok(received) => {
                    if received.lost > 0 {
                        self.core.note_overflow(self.clock.now(), received.lost.into());
                    }
                    batch.push_segments(received.arrival, received.length, received.segment);
                    if alone && received.length < SMALL {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An error that an earlier packet brought about is reported once, then the queue goes on.
                Err(_) => {
                    self.counters.drops.count(DropCause::ReceiveFailed);
                    errors += 1;
                    if errors >= BATCH {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// The same of the queue.
    fn read_queue(&mut self, batch: &mut Batch<VnetHeader>, failed: bool, alone: bool) -> bool {
        let Some(queue) = &self.queue else { return false };
        while let Some(room) = batch.room() {
            self.counters.tun_reads.add(1);
            match queue.read(room) {
                Ok((place, Some(header))) => {
                    batch.push_part(header, place.start, place.end);
                    if alone && place.len() < SMALL {
                        break;
                    }
                }
                Ok((_, None)) => self.counters.drops.count(DropCause::Malformed),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return failed && batch.is_empty(),
                    Some(libc::EINTR) => {}
                    Some(libc::EBADFD | libc::ENODEV) => {
                        self.counters.drops.count(DropCause::TunReadFailed);
                        warn!(
                            lane = self.lane,
                            interface = self.interface,
                            "the interface was deleted; it is made anew"
                        );
                        self.queue = None;
                        return false;
                    }
                    // EIO: the link is down; the agent may set it up at any time.
                    _ => {
                        self.counters.drops.count(DropCause::TunReadFailed);
                        return true;
                    }
                },
            }
        }
        false
    }

    fn reattach(&mut self) {
        match Queue::attach(&self.interface, self.persist, self.offload) {
            Ok(queue) => {
                info!(lane = self.lane, interface = self.interface, "attached to the interface again");
                self.queue = Some(queue);
            }
            Err(error) => {
                self.counters.drops.count(DropCause::TunReadFailed);
                warn!(lane = self.lane, %error, "cannot attach to the interface; trying again");
            }
        }
    }
}
