//! The core's way out, into the kernel.

use std::io;

use tracing::info;

use super::outbox::{Counted, Lost, Outbox};
use super::socket::LaneSocket;
use crate::core::{Core, Departure, OVERHEAD, Sink, TunnelTag};
use crate::counters::{DropCause, WorkerCounters};
use crate::offload::{Coalescer, GsoKind, Merge, Merged};
use crate::settings::Offload;
use crate::tun::Queue;

/// Room for the largest packet and what boringtun wants on top.
const ROOM: usize = 65_536 + OVERHEAD;

/// What waits to be handed to the kernel, at the end of a turn at the latest. Some 400 KB, all of it taken
/// at the start.
#[derive(Debug)]
pub(crate) struct Buffers {
    outbox: Outbox,
    packets: Coalescer<TunnelTag>,
    lost: Lost,
    /// What the kernel has taken merged once, which it therefore knows.
    proven: Merge,
}

impl Buffers {
    pub(crate) fn new(socket: &LaneSocket, queue: Option<&Queue>) -> Self {
        let nothing = Merge { tcp: false, udp: false };
        Self {
            outbox: Outbox::new(socket.segments()),
            packets: Coalescer::new(queue.map_or(nothing, Queue::merges)),
            lost: Lost::default(),
            proven: nothing,
        }
    }

    /// The offloads in use.
    pub(crate) fn offload(&self, socket: &LaneSocket) -> Offload {
        let Merge { tcp, udp } = self.packets.merges();
        Offload { tso: tcp, uso: udp, gso: self.outbox.sends_together(), gro: socket.merges() }
    }

    /// Follows a queue that was attached anew.
    pub(crate) fn set_queue(&mut self, queue: &Queue) {
        self.packets.set_merge(queue.merges());
    }
}

pub(crate) struct Kernel<'a> {
    pub(crate) socket: &'a LaneSocket,
    /// `None` while the interface is gone.
    pub(crate) queue: Option<&'a Queue>,
    pub(crate) buffers: &'a mut Buffers,
    pub(crate) counters: &'a WorkerCounters,
}

impl Kernel<'_> {
    /// Hands over what waits, and has the core count what was lost.
    pub(crate) fn flush(&mut self, core: &Core) {
        self.buffers.outbox.flush(&Counted(self.socket, self.counters), &mut self.buffers.lost);
        self.write_packets();
        if !self.buffers.lost.is_empty() {
            self.buffers
                .lost
                .drain()
                .for_each(|(tunnel, cause, packets)| core.charge(tunnel, cause, packets));
        }
    }

    fn write_packets(&mut self) {
        let Buffers { packets, lost, proven, .. } = &mut *self.buffers;
        let mut refused = None;
        packets.flush(|merged| match self.queue {
            None => lost.add(merged.tag(), DropCause::TunWriteFailed, merged.count() as u64),
            Some(queue) => {
                if let Some(kind) = write(&Writes(queue, self.counters), merged, lost, proven) {
                    refused = Some(kind);
                }
            }
        });
        if let Some(kind) = refused {
            let mut merge = self.buffers.packets.merges();
            info!(
                ?kind,
                "packets are written to the interface one by one from now on: the kernel does not take them merged"
            );
            *part(&mut merge, kind) = false;
            self.buffers.packets.set_merge(merge);
        }
    }
}

fn part(merge: &mut Merge, kind: GsoKind) -> &mut bool {
    match kind {
        GsoKind::TcpV4 | GsoKind::TcpV6 => &mut merge.tcp,
        GsoKind::Udp => &mut merge.udp,
    }
}

/// The queue, with each write counted.
struct Writes<'a>(&'a Queue, &'a WorkerCounters);

impl Writes<'_> {
    fn write(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<()> {
        self.1.tun_writes.add(1);
        self.0.write(pieces)
    }
}

/// Writes a packet; one by one what the kernel does not take merged. Returns what it does not know at all.
fn write(
    queue: &Writes<'_>,
    merged: &Merged<'_, TunnelTag>,
    lost: &mut Lost,
    proven: &mut Merge,
) -> Option<GsoKind> {
    let error = match again(|| merged.write(|pieces| queue.write(pieces))) {
        Ok(()) => {
            if let Some(kind) = merged.kind() {
                *part(proven, kind) = true;
            }
            return None;
        }
        Err(error) => error,
    };
    let kind = merged.kind().filter(|_| error.raw_os_error() == Some(libc::EINVAL));
    let Some(kind) = kind else {
        lost.add(merged.tag(), cause(&error), merged.count() as u64);
        return None;
    };
    for packet in merged.plain() {
        if let Err(error) = again(|| queue.write(&[io::IoSlice::new(packet)])) {
            lost.add(merged.tag(), cause(&error), 1);
        }
    }
    // What it took before, it knows: then it was something about these packets.
    (!*part(proven, kind)).then_some(kind)
}

fn again(mut call: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn cause(error: &io::Error) -> DropCause {
    match error.kind() {
        io::ErrorKind::WouldBlock => DropCause::QueueFull,
        _ => DropCause::TunWriteFailed,
    }
}

impl Sink for Kernel<'_> {
    fn datagram(&mut self, length: usize) -> &mut [u8] {
        debug_assert!(length <= ROOM);
        self.buffers.outbox.room()
    }

    fn send(&mut self, length: usize, how: Departure) -> Result<(), DropCause> {
        let wire = Counted(self.socket, self.counters);
        self.buffers.outbox.push(length, how, &wire, &mut self.buffers.lost);
        Ok(())
    }

    fn packet(&mut self, length: usize) -> &mut [u8] {
        debug_assert!(length <= ROOM);
        self.buffers.packets.room()
    }

    fn deliver(&mut self, length: usize, tunnel: TunnelTag) -> Result<(), DropCause> {
        self.buffers.packets.commit(length, tunnel);
        // Never asked for room without having it: what was written there must stay.
        if !self.buffers.packets.has_room(ROOM) {
            self.write_packets();
        }
        Ok(())
    }
}
