//! What a worker reads, and what it passes on, before, during and after a takeover.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::mpsc::Sender;
use std::thread::sleep;
use std::time::Duration;

use super::relay::{Read, Relay};
use super::{LendError, LentLane};
use crate::core::{Arrival, Batch, Core, Time};
use crate::counters::{DropCause, WorkerCounters};
use crate::worker::Worker;

/// How often, and after what pause, the new worker is told to read the TUN if the relay is full.
const TELLS: u32 = 50;
const TELL_PAUSE: Duration = Duration::from_micros(200);

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Lend everything, and relay from now on.
    Lend(Sender<Result<LentLane, LendError>>),
    /// Read the TUN no more.
    Cut(Sender<()>),
    /// Take everything back.
    TakeBack,
    /// Read the TUN from now on.
    ReadTun,
    /// Read everything from now on.
    Own,
}

/// Who a worker is to another dataplane's worker of the same lane.
#[derive(Debug, Default)]
pub(crate) enum Role {
    /// There is no other one: everything is its own.
    #[default]
    Owner,
    /// The old one.
    Lender {
        /// To the new one.
        relay: Relay,
        /// Whether the TUN is the other's.
        cut: bool,
    },
    /// The new one.
    Heir {
        /// From the old one, until it is closed.
        relay: Option<Relay>,
        /// Whether it reads the TUN.
        tun: bool,
        /// Whether it reads the socket as soon as the relay is empty.
        own: bool,
    },
}

impl Role {
    pub(crate) fn heir(relay: Relay) -> Self {
        Self::Heir { relay: Some(relay), tun: false, own: false }
    }

    /// Whether packets of the TUN are read.
    pub(crate) fn reads_tun(&self) -> bool {
        match self {
            Self::Owner => true,
            Self::Lender { cut, .. } => !cut,
            Self::Heir { tun, .. } => *tun,
        }
    }

    /// Where datagrams come from; `socket` is the lane's own.
    pub(crate) fn inbound<'a>(&'a self, socket: BorrowedFd<'a>) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Owner | Self::Lender { .. } => Some(socket),
            Self::Heir { relay, .. } => relay.as_ref().map(|relay| relay.as_fd()),
        }
    }

    /// Reads what was relayed, if that is where datagrams come from; whether it is.
    pub(crate) fn read_relayed(&mut self, batch: &mut Batch<Arrival>) -> bool {
        let Self::Heir { relay, tun, own } = self else { return false };
        while let Some(end) = relay
            && batch.room().is_some()
        {
            match end.read(batch) {
                Read::Datagrams => {}
                Read::TunIsYours => *tun = true,
                Read::Nothing => {
                    if *own {
                        *relay = None;
                    }
                    break;
                }
                Read::Closed => *relay = None,
            }
        }
        if *own && relay.is_none() {
            *self = Self::Owner;
        }
        true
    }

    /// Passes on what is another's; the core leaves that alone.
    pub(crate) fn relay(&self, core: &Core, batch: &Batch<Arrival>, counters: &WorkerCounters) {
        let Self::Lender { relay, .. } = self else { return };
        let send = |arrival: &Arrival, segment: usize, bytes: &[u8]| {
            if relay.send(arrival, segment, bytes).is_err() {
                // No room, or nobody there: whoever is told of the latter takes everything back.
                counters.drops.add(DropCause::QueueFull, bytes.len().div_ceil(segment.max(1)).max(1) as u64);
            }
        };
        for (arrival, segment, bytes) in batch.units() {
            let foreign = || bytes.chunks(segment).filter(|datagram| core.is_foreign(datagram));
            match foreign().count() {
                0 => {}
                n if n == bytes.len().div_ceil(segment) => send(arrival, segment, bytes),
                // Of both: hardly ever, just while a peer moves from one session to the other.
                _ => foreign().for_each(|datagram| send(arrival, datagram.len(), datagram)),
            }
        }
    }
}

impl Worker {
    /// Does as it is told.
    pub(crate) fn take_over(&mut self, now: Time, order: Order) {
        match order {
            Order::Lend(answer) => {
                // Whoever asked may have given up waiting: then nothing is lent.
                match self.lend() {
                    Ok((lane, relay)) => {
                        if answer.send(Ok(lane)).is_ok() {
                            self.role = Role::Lender { relay, cut: false };
                            self.core.lend();
                        }
                    }
                    Err(why) => drop(answer.send(Err(why))),
                }
            }
            Order::Cut(answer) => {
                if let Role::Lender { relay, cut } = &mut self.role {
                    // All that was read has left at the end of the turn before.
                    *cut = true;
                    for _ in 0..TELLS {
                        match relay.give_tun() {
                            // The other will be told by its owner too.
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(TELL_PAUSE),
                            _ => break,
                        }
                    }
                }
                let _ = answer.send(());
            }
            Order::TakeBack => {
                if matches!(self.role, Role::Lender { .. }) {
                    self.role = Role::Owner;
                    self.core.take_back(now);
                }
            }
            Order::ReadTun => {
                if let Role::Heir { tun, .. } = &mut self.role {
                    *tun = true;
                }
            }
            Order::Own => {
                if let Role::Heir { relay, tun, own } = &mut self.role {
                    (*tun, *own) = (true, true);
                    if relay.is_none() {
                        self.role = Role::Owner;
                    }
                }
            }
        }
    }

    fn lend(&self) -> Result<(LentLane, Relay), LendError> {
        if !matches!(self.role, Role::Owner) {
            return Err(LendError::Busy);
        }
        let queue = self.queue.as_ref().ok_or(LendError::NoInterface)?;
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(LendError::System);
        let (relay, end) = Relay::pair().map_err(LendError::System)?;
        let lane = LentLane {
            socket: copy(self.socket.as_fd())?,
            queue: copy(queue.as_fd())?,
            relay: end,
            mask: self.core.mask(),
        };
        Ok((lane, relay))
    }
}
