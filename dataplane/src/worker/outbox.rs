//! Datagrams on their way out: those in a row that go to one place leave with one system call.

use std::net::SocketAddr;

use tracing::{debug, info};

use super::socket::LaneSocket;
use crate::core::{Departure, MAX_DATAGRAM, TunnelTag};
use crate::counters::{DropCause, WorkerCounters};

/// Datagrams that one call sends at most: what Linux takes (`UDP_MAX_SEGMENTS`; more since 6.8).
const MAX_SEGMENTS: usize = 64;
/// Room for one datagram, bytes: the largest, and what boringtun wants to have on top.
const ROOM: usize = 65_536 + crate::core::OVERHEAD;
/// The buffer: what one call may send, and room for one more datagram.
const BYTES: usize = MAX_DATAGRAM + ROOM;
/// Paths that are remembered to be too narrow for what the tunnel's MTU allows.
const NARROW: usize = 16;

/// Packets that were lost after the core had given them away.
#[derive(Debug, Default)]
pub(crate) struct Lost(Vec<(TunnelTag, DropCause, u64)>);

impl Lost {
    pub(crate) fn add(&mut self, tunnel: TunnelTag, cause: DropCause, packets: u64) {
        match self.0.last_mut() {
            Some(last) if (last.0, last.1) == (tunnel, cause) => last.2 += packets,
            _ => self.0.push((tunnel, cause, packets)),
        }
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (TunnelTag, DropCause, u64)> + '_ {
        self.0.drain(..)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What can send datagrams: the socket, or a test's.
pub(crate) trait Wire {
    /// Sends `bytes`, cut into datagrams of `segment` bytes if that is given.
    fn send(&self, bytes: &[u8], how: &Departure, segment: Option<u16>) -> std::io::Result<()>;
}

/// The socket, with each call counted.
pub(crate) struct Counted<'a>(pub(crate) &'a LaneSocket, pub(crate) &'a WorkerCounters);

impl Wire for Counted<'_> {
    fn send(&self, bytes: &[u8], how: &Departure, segment: Option<u16>) -> std::io::Result<()> {
        self.1.udp_sends.add(1);
        self.0.send(bytes, how, segment)
    }
}

/// Datagrams of equal length, one after the other in the buffer.
#[derive(Clone, Copy, Debug)]
struct Group {
    how: Departure,
    segment: usize,
    count: usize,
}

/// The send buffer, into which packets are sealed. At most one group waits in it.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: Box<[u8]>,
    /// Where the group begins, and where it ends and the next datagram begins.
    start: usize,
    end: usize,
    group: Option<Group>,
    /// Whether datagrams are sent together.
    together: bool,
    /// Where datagrams of this length are not sent together, since they must be fragmented.
    narrow: Vec<(SocketAddr, usize)>,
}

impl Outbox {
    pub(crate) fn new(together: bool) -> Self {
        let narrow = Vec::with_capacity(NARROW);
        Self { bytes: vec![0; BYTES].into(), start: 0, end: 0, group: None, together, narrow }
    }

    /// Whether datagrams are sent together.
    pub(crate) fn sends_together(&self) -> bool {
        self.together
    }

    /// Room for the next datagram: [`ROOM`] bytes or more.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// Takes in the datagram of `length` bytes in [`Self::room`]. It leaves at once, or with those that
    /// follow, or when [`Self::flush`] is called.
    pub(crate) fn push(&mut self, length: usize, how: Departure, wire: &impl Wire, lost: &mut Lost) {
        let joins = self.group.is_some_and(|group| {
            group.how == how && length <= group.segment && self.end - self.start + length <= MAX_DATAGRAM
        });
        if !joins {
            self.send(wire, lost);
            self.start = self.end;
        }
        self.end += length;
        let group = self.group.get_or_insert(Group { how, segment: length, count: 0 });
        group.count += 1;
        let is_full = length < group.segment
            || group.count == MAX_SEGMENTS
            || self.end - self.start + group.segment > MAX_DATAGRAM
            || self.end + ROOM > BYTES;
        let alone =
            !self.together || self.narrow.iter().any(|&(to, segment)| to == how.to && length >= segment);
        if is_full || alone {
            self.flush(wire, lost);
        }
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self, wire: &impl Wire, lost: &mut Lost) {
        self.send(wire, lost);
        (self.start, self.end) = (0, 0);
    }

    fn send(&mut self, wire: &impl Wire, lost: &mut Lost) {
        let Some(Group { how, segment, count }) = self.group.take() else { return };
        let bytes = &self.bytes[self.start..self.end];
        if count > 1 {
            // It fits: datagrams are at most 65,507 bytes long.
            match again(|| wire.send(bytes, &how, Some(segment as u16))) {
                Ok(()) => return,
                Err(error) => match error.raw_os_error() {
                    // The interface cannot fill in checksums, which cutting needs.
                    Some(libc::EIO | libc::EOPNOTSUPP) => {
                        info!(to = %how.to, %error, "datagrams are sent one by one from now on: the interface cannot cut them (UDP GSO)");
                        self.together = false;
                    }
                    // The datagrams do not fit the interface and must be fragmented, which does not go
                    // together with cutting.
                    Some(libc::EINVAL | libc::EMSGSIZE) => {
                        debug!(to = %how.to, segment, "datagrams of this size are sent one by one: the path is too narrow");
                        if self.narrow.len() == NARROW {
                            self.narrow.remove(0);
                        }
                        self.narrow.push((how.to, segment));
                    }
                    _ => return lost.add(how.tunnel, cause(&error), count as u64),
                },
            }
        }
        for datagram in bytes.chunks(segment) {
            if let Err(error) = again(|| wire.send(datagram, &how, None)) {
                lost.add(how.tunnel, cause(&error), 1);
            }
        }
    }
}

fn again(mut call: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn cause(error: &std::io::Error) -> DropCause {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropCause::QueueFull,
        Some(libc::EMSGSIZE) => DropCause::TooBig,
        // No route, no address of the family, forbidden by a rule: it may change at any moment.
        _ => DropCause::SendFailed,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;

    use super::*;
    use crate::offload::Ecn;

    /// Notes what it is told to send: to which port, ECN, lengths of the datagrams.
    #[derive(Default)]
    struct Notes {
        calls: RefCell<Vec<(u16, Ecn, Vec<usize>)>>,
        /// The datagrams that got through: port and first byte.
        arrived: RefCell<Vec<(u16, u8)>>,
        /// Refuses to cut datagrams of more than so many bytes, with this error.
        refuses: Option<(usize, i32)>,
        /// Refuses this port altogether.
        unreachable: u16,
    }

    impl Wire for Notes {
        fn send(&self, bytes: &[u8], how: &Departure, segment: Option<u16>) -> io::Result<()> {
            let Departure { to, ecn, .. } = *how;
            let length = segment.map_or(bytes.len(), usize::from);
            let datagrams: Vec<_> = bytes.chunks(length).collect();
            self.calls.borrow_mut().push((to.port(), ecn, datagrams.iter().map(|d| d.len()).collect()));
            if to.port() == self.unreachable {
                return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
            }
            match self.refuses {
                Some((most, error)) if segment.is_some() && length > most => {
                    Err(io::Error::from_raw_os_error(error))
                }
                _ => {
                    self.arrived.borrow_mut().extend(datagrams.iter().map(|d| (to.port(), d[0])));
                    Ok(())
                }
            }
        }
    }

    fn how(port: u16, ecn: Ecn) -> Departure {
        Departure { to: ([192, 0, 2, 1], port).into(), ecn, whole: false, tunnel: TunnelTag::default() }
    }

    /// Pushes datagrams (port, ECN, length), numbered in their bytes, and flushes.
    fn push(outbox: &mut Outbox, wire: &Notes, datagrams: &[(u16, Ecn, usize)]) -> Vec<(DropCause, u64)> {
        let mut lost = Lost::default();
        for (n, &(port, ecn, length)) in datagrams.iter().enumerate() {
            outbox.room()[..length].fill(n as u8);
            outbox.push(length, how(port, ecn), wire, &mut lost);
        }
        outbox.flush(wire, &mut lost);
        lost.drain().map(|(_, cause, n)| (cause, n)).collect()
    }

    const NOT: Ecn = Ecn::NotEct;

    #[test]
    fn what_goes_to_one_place_goes_together_and_in_order() {
        let wire = Notes::default();
        let mut outbox = Outbox::new(true);
        let row = [
            (1, NOT, 1000),
            (1, NOT, 1000),
            (1, NOT, 400),
            (1, NOT, 400),
            (2, NOT, 400),
            (1, NOT, 400),
            (1, Ecn::Ce, 400),
            (1, Ecn::Ce, 500),
        ];
        assert_eq!(push(&mut outbox, &wire, &row), []);
        let calls = wire.calls.take();
        let lengths: Vec<_> = calls.iter().map(|(port, _, lengths)| (*port, lengths.as_slice())).collect();
        assert_eq!(
            lengths,
            [(1, &[1000, 1000, 400][..]), (1, &[400]), (2, &[400]), (1, &[400]), (1, &[400]), (1, &[500])]
        );
        assert_eq!(calls[4].1, Ecn::Ce);
        assert!(wire.arrived.take().iter().enumerate().all(|(n, &(_, first))| usize::from(first) == n));
    }

    #[test]
    fn no_call_is_larger_than_the_kernel_takes() {
        let wire = Notes::default();
        let mut outbox = Outbox::new(true);
        push(&mut outbox, &wire, &vec![(1, NOT, 96); 200]);
        push(&mut outbox, &wire, &[(1, NOT, 1452); 100]);
        push(&mut outbox, &wire, &[(1, NOT, MAX_DATAGRAM), (1, NOT, MAX_DATAGRAM), (2, NOT, 32)]);
        let calls = wire.calls.take();
        assert!(
            calls.iter().all(|(_, _, l)| l.len() <= MAX_SEGMENTS && l.iter().sum::<usize>() <= MAX_DATAGRAM)
        );
        let counts: Vec<_> = calls.iter().map(|(_, _, lengths)| lengths.len()).collect();
        assert_eq!(counts, [64, 64, 64, 8, 45, 45, 10, 1, 1, 1]);
    }

    #[test]
    fn nothing_is_lost_when_cutting_is_refused() {
        for error in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
            let wire = Notes { refuses: Some((1000, error)), ..Notes::default() };
            let mut outbox = Outbox::new(true);
            let row = [(1, NOT, 1200), (1, NOT, 1200), (1, NOT, 1200), (1, NOT, 100)];
            assert_eq!(push(&mut outbox, &wire, &row), []);
            assert_eq!(wire.arrived.take(), [(1, 0), (1, 1), (1, 2), (1, 3)]);
            assert_eq!(wire.calls.take().len(), 5, "one attempt, then each for itself");
            // It is not tried again where it failed, but elsewhere unless the interface cannot at all.
            push(&mut outbox, &wire, &row);
            assert_eq!(wire.calls.take().len(), 4);
            push(&mut outbox, &wire, &[(1, NOT, 900), (1, NOT, 900), (2, NOT, 900), (2, NOT, 900)]);
            assert_eq!(wire.calls.take().len(), if error == libc::EIO { 4 } else { 2 });
        }
    }

    #[test]
    fn what_is_lost_is_counted() {
        let wire = Notes { unreachable: 7, ..Notes::default() };
        let mut outbox = Outbox::new(true);
        let lost = push(&mut outbox, &wire, &[(7, NOT, 100), (7, NOT, 100), (1, NOT, 100), (7, NOT, 100)]);
        assert_eq!(lost, [(DropCause::SendFailed, 3)]);
        let mut outbox = Outbox::new(false);
        let lost = push(&mut outbox, &wire, &[(7, NOT, 100), (1, NOT, 100), (1, NOT, 100)]);
        assert_eq!(lost, [(DropCause::SendFailed, 1)]);
        assert_eq!(wire.arrived.take().len(), 3);
    }
}
