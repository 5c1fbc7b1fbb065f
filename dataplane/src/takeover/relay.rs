//! The way from the old worker to the new one: records on a socket pair.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, MaybeUninitSlice, Socket, Type};

use crate::core::{Arrival, Batch};
use crate::offload::Ecn;

/// What may wait in it, bytes of the kernel's accounting: as much as in a lane's UDP socket.
const ROOM: usize = 4 << 20;

/// What stands before each record: kind, ECN, length of the segments, port, scope, address.
const HEADER: usize = 26;

/// Datagrams follow.
const DATAGRAMS: u8 = 1;
/// Nothing follows: the sender reads the TUN no more, and has sent all that it had read.
const TUN_IS_YOURS: u8 = 2;

/// One end. Records come out whole and in order.
#[derive(Debug)]
pub(crate) struct Relay(Socket);

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Datagrams were added to the batch.
    Datagrams,
    /// The TUN is to be read from now on.
    TunIsYours,
    /// Nothing, for now.
    Nothing,
    /// The other end is closed.
    Closed,
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Relay {
    /// Both ends.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (old, new) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        old.set_nonblocking(true)?;
        new.set_nonblocking(true)?;
        // Beyond `net.core.wmem_max` with CAP_NET_ADMIN, up to it without.
        if force_send_buffer(&old).is_err() {
            old.set_send_buffer_size(ROOM)?;
        }
        Ok((Self(old), new.into()))
    }

    /// The end that was given.
    pub(crate) fn adopt(end: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(end);
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Passes on what came as one; `WouldBlock` if there is no room.
    pub(crate) fn send(&self, arrival: &Arrival, segment: usize, bytes: &[u8]) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[0] = DATAGRAMS;
        header[1] = arrival.ecn.bits();
        // No datagram is longer than 65,507 bytes.
        header[2..4].copy_from_slice(&(segment.min(65_535) as u16).to_ne_bytes());
        let (address, scope) = match arrival.from {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        header[4..6].copy_from_slice(&arrival.from.port().to_ne_bytes());
        header[6..10].copy_from_slice(&scope.to_ne_bytes());
        header[10..].copy_from_slice(&address.octets());
        self.write(&header, bytes)
    }

    /// Says that the TUN is the other's.
    pub(crate) fn give_tun(&self) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[0] = TUN_IS_YOURS;
        self.write(&header, &[])
    }

    fn write(&self, header: &[u8], bytes: &[u8]) -> io::Result<()> {
        let pieces = [IoSlice::new(header), IoSlice::new(bytes)];
        loop {
            match self.0.send_vectored_with_flags(&pieces, libc::MSG_NOSIGNAL) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done.map(|_| ()),
            }
        }
    }

    /// Reads one record; its datagrams go into the batch, which has room.
    pub(crate) fn read(&self, batch: &mut Batch<Arrival>) -> Read {
        let mut header = [MaybeUninit::<u8>::zeroed(); HEADER];
        let Some(room) = batch.room() else { return Read::Nothing };
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, and the kernel writes initialized bytes.
        let room = unsafe { &mut *(std::ptr::from_mut(room) as *mut [MaybeUninit<u8>]) };
        let mut pieces = [MaybeUninitSlice::new(&mut header), MaybeUninitSlice::new(room)];
        let length = match self.0.recv_vectored(&mut pieces) {
            Ok((0, _)) => return Read::Closed,
            Ok((length, _)) => length,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Read::Nothing,
                    _ => Read::Closed,
                };
            }
        };
        // SAFETY: the array was zeroed before the kernel wrote into it.
        let header = header.map(|byte| unsafe { byte.assume_init() });
        match (header[0], length.checked_sub(HEADER)) {
            (TUN_IS_YOURS, Some(_)) => Read::TunIsYours,
            (DATAGRAMS, Some(length)) => {
                let (arrival, segment) = parse(&header);
                batch.push_segments(arrival, length, segment);
                Read::Datagrams
            }
            // From a podspan that knows more: it has agreed to this version and sends no such thing.
            _ => Read::Nothing,
        }
    }
}

fn parse(header: &[u8; HEADER]) -> (Arrival, usize) {
    let number = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let scope = u32::from_ne_bytes([header[6], header[7], header[8], header[9]]);
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[10..]);
    let from = SocketAddrV6::new(Ipv6Addr::from(octets), number(4), 0, scope);
    (Arrival { from: from.into(), ecn: Ecn::from_bits(header[1]) }, usize::from(number(2)))
}

fn force_send_buffer(socket: &Socket) -> nix::Result<()> {
    nix::sys::socket::setsockopt(&socket.as_fd(), nix::sys::socket::sockopt::SndBufForce, &ROOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_out_as_they_went_in_and_the_end_is_seen() {
        let (old, new) = Relay::pair().unwrap();
        let new = Relay::adopt(new).unwrap();
        let mut batch = Batch::default();
        assert_eq!(new.read(&mut batch), Read::Nothing);
        let from: SocketAddr = "[2001:db8::1%7]:51840".parse().unwrap();
        old.send(&Arrival { from, ecn: Ecn::Ce }, 100, &[7; 250]).unwrap();
        let v4: SocketAddr = "192.0.2.1:9".parse().unwrap();
        old.send(&Arrival { from: v4, ecn: Ecn::NotEct }, 65_507, &[8; 65_507]).unwrap();
        old.give_tun().unwrap();
        drop(old);
        assert_eq!(new.read(&mut batch), Read::Datagrams);
        assert_eq!(new.read(&mut batch), Read::Datagrams);
        assert_eq!(new.read(&mut batch), Read::TunIsYours);
        assert_eq!(new.read(&mut batch), Read::Closed);
        let read: Vec<_> = batch
            .iter()
            .map(|(arrival, bytes)| {
                (
                    SocketAddr::new(arrival.from.ip().to_canonical(), arrival.from.port()),
                    arrival.ecn,
                    bytes.len(),
                )
            })
            .collect();
        let plain = SocketAddr::new(from.ip(), from.port());
        let first = [100, 100, 50].map(|length| (plain, Ecn::Ce, length));
        assert_eq!(read[..3], first);
        assert_eq!(read[3..], [(v4, Ecn::NotEct, 65_507)]);
    }

    #[test]
    fn it_is_bounded_and_a_closed_end_is_an_error() {
        let (old, new) = Relay::pair().unwrap();
        let arrival = Arrival { from: ([192, 0, 2, 1], 9).into(), ecn: Ecn::NotEct };
        let sent = (0..100_000).take_while(|_| old.send(&arrival, 1400, &[1; 1400]).is_ok()).count();
        assert!((1_000..100_000).contains(&sent), "{sent}");
        assert_eq!(old.give_tun().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(new);
        // Once for what was not read, then for good.
        assert_eq!(old.give_tun().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(old.give_tun().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
