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

/// What takes packets: the queue, or a test's.
trait Tun {
    /// As [`Queue::write`].
    fn write(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<()>;
}

/// The queue, with each write counted.
struct Writes<'a>(&'a Queue, &'a WorkerCounters);

impl Tun for Writes<'_> {
    fn write(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<()> {
        self.1.tun_writes.add(1);
        self.0.write(pieces)
    }
}

/// Writes a packet; one by one what the kernel does not take merged. Returns what it does not know at all.
fn write(
    queue: &impl Tun,
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
    let mut taken = false;
    for packet in merged.plain() {
        match again(|| queue.write(&[io::IoSlice::new(packet)])) {
            Ok(()) => taken = true,
            Err(error) => lost.add(merged.tag(), cause(&error), 1),
        }
    }
    // What it took before, it knows: then it was something about these packets.
    (taken && !*part(proven, kind)).then_some(kind)
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::offload::{VNET_HEADER, VnetHeader};

    /// Takes packets as a kernel does that knows only some kinds of merged ones, or none while it is down.
    struct Kernel {
        knows_udp: bool,
        error: Option<i32>,
        taken: RefCell<Vec<(VnetHeader, Vec<u8>)>>,
    }

    impl Tun for Kernel {
        fn write(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<()> {
            let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
            let (header, packet) = bytes.split_first_chunk::<VNET_HEADER>().unwrap();
            let header = VnetHeader::decode(header).unwrap();
            if let Some(error) = self.error {
                return Err(io::Error::from_raw_os_error(error));
            }
            if header.gso.is_some_and(|gso| gso.kind == GsoKind::Udp) && !self.knows_udp {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            self.taken.borrow_mut().push((header, packet.to_vec()));
            Ok(())
        }
    }

    /// Datagrams in a row that may be merged.
    fn datagrams(n: u8) -> Vec<Vec<u8>> {
        (0..n)
            .map(|i| {
                let mut p = vec![0x45, 0, 0, 32, 0, i, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3];
                p.extend([0, 1, 0, 2, 0, 12, 0, 0, i, i, i, i]);
                let sum = crate::offload::checksum::Sum::of(&p[..20]).finish();
                p[10..12].copy_from_slice(&sum);
                let pseudo = crate::offload::checksum::pseudo(&p[12..20], 17);
                let length = crate::offload::checksum::Sum::of_u16(12);
                let sum = pseudo.and(length).and(crate::offload::checksum::Sum::of(&p[20..])).finish();
                p[26..28].copy_from_slice(&sum);
                p
            })
            .collect()
    }

    /// Writes these datagrams; tells what was lost and what is not to be merged any more.
    fn write_all(kernel: &Kernel, proven: &mut Merge) -> (Vec<(DropCause, u64)>, Option<GsoKind>) {
        let mut packets = Coalescer::new(Merge { tcp: true, udp: true });
        for datagram in datagrams(5) {
            packets.room()[..datagram.len()].copy_from_slice(&datagram);
            packets.commit(datagram.len(), TunnelTag::default());
        }
        let (mut lost, mut refused) = (Lost::default(), None);
        packets.flush(|merged| {
            assert_eq!(merged.count(), 5);
            refused = write(kernel, merged, &mut lost, proven);
        });
        (lost.drain().map(|(_, cause, n)| (cause, n)).collect(), refused)
    }

    const NOTHING: Merge = Merge { tcp: false, udp: false };

    #[test]
    fn what_is_not_taken_merged_is_written_one_by_one() {
        let mut kernel = Kernel { knows_udp: false, error: None, taken: RefCell::default() };
        let plain: Vec<_> = datagrams(5).into_iter().map(|p| (VnetHeader::default(), p)).collect();
        assert_eq!(write_all(&kernel, &mut NOTHING.clone()), (vec![], Some(GsoKind::Udp)));
        assert_eq!(kernel.taken.take(), plain);
        // What it has taken before is not given up for a single refusal.
        kernel.knows_udp = true;
        let mut proven = NOTHING;
        assert_eq!(write_all(&kernel, &mut proven), (vec![], None));
        assert_eq!(kernel.taken.take().len(), 1);
        assert_eq!(proven, Merge { tcp: false, udp: true });
        kernel.knows_udp = false;
        assert_eq!(write_all(&kernel, &mut proven), (vec![], None));
        assert_eq!(kernel.taken.take(), plain);
    }

    #[test]
    fn what_is_not_taken_at_all_is_counted() {
        for (error, cause) in [(libc::EIO, DropCause::TunWriteFailed), (libc::EAGAIN, DropCause::QueueFull)] {
            let kernel = Kernel { knows_udp: true, error: Some(error), taken: RefCell::default() };
            assert_eq!(write_all(&kernel, &mut NOTHING.clone()), (vec![(cause, 5)], None));
        }
        let kernel = Kernel { knows_udp: true, error: Some(libc::EINVAL), taken: RefCell::default() };
        let lost = vec![(DropCause::TunWriteFailed, 5)];
        assert_eq!(write_all(&kernel, &mut NOTHING.clone()), (lost, None));
    }
}
