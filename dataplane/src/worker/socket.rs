//! The UDP socket of a lane.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, MaybeUninitSlice, MsgHdr, MsgHdrMut, Protocol, SockAddr, SockRef, Socket, Type};
use tracing::{debug, info, warn};

use super::control::{Control, Parts};
use crate::core::{Arrival, Departure};
use crate::offload::Ecn;
use crate::settings::{Offload, StartError};

/// Buffers of the kernel for one socket, bytes each way: some 30 ms of traffic at 1 Gbit/s. Memory is
/// taken only for what waits. With a quarter of it a TCP stream costs 1.3 times the CPU, with four times as much no less
/// (docs/performance.md, "Defaults").
const BUFFER: usize = 4 << 20;

/// How often a port that is taken is tried, and the wait in between: 200 ms in all.
const BIND_ATTEMPTS: u32 = 11;
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// A bound UDP socket: for both families where the system has IPv6, else for IPv4.
#[derive(Debug)]
pub(crate) struct LaneSocket {
    socket: UdpSocket,
    dual: bool,
    segments: bool,
    merges: bool,
    /// Whether datagrams are sent with "don't fragment" at the moment, by IPv4 and by IPv6; unknown of a socket
    /// that another process has used.
    whole: [Cell<Option<bool>>; 2],
    /// How many datagrams have not fitted the buffer so far (`SO_RXQ_OVFL`); unknown of a socket that another process
    /// has used.
    overflow: Cell<Option<u32>>,
}

/// What one call received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) arrival: Arrival,
    /// Bytes in all.
    pub(crate) length: usize,
    /// Datagrams that did not fit the socket's buffer since the call before.
    pub(crate) lost: u32,
    /// Bytes of each datagram but the last, which may be shorter.
    pub(crate) segment: usize,
}

impl LaneSocket {
    pub(crate) fn open(lane: usize, port: u16, fwmark: u32, offload: Offload) -> Result<Self, StartError> {
        let failed = |what| move |error| StartError::Socket { lane, port, what, error };
        let (socket, dual) = match Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)) {
            Ok(socket) => (socket, true),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP));
                (socket.map_err(failed("opening a socket"))?, false)
            }
            Err(error) => return Err(failed("opening a socket")(error)),
        };
        if dual {
            socket.set_only_v6(false).map_err(failed("taking IPv4 on the IPv6 socket"))?;
        }
        socket.set_nonblocking(true).map_err(failed("making the socket non-blocking"))?;
        if fwmark != 0 {
            socket.set_mark(fwmark).map_err(failed("setting the fwmark (CAP_NET_ADMIN is needed)"))?;
        }
        buffers(&socket, lane);
        tell_ecn(&socket, dual).map_err(failed("asking for the ECN bits"))?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)
            .map_err(failed("asking how much does not fit the buffer"))?;
        // Zero is the default: each datagram for itself. A kernel that does not know the option says so.
        let segments = offload.gso && set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let merges = offload.gro && set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        for (what, wanted, works) in [("GSO", offload.gso, segments), ("GRO", offload.gro, merges)] {
            if wanted && !works {
                info!(lane, "the kernel has no UDP {what}: each datagram is a system call of its own");
            }
        }
        let any: SocketAddr = if dual {
            SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, port).into()
        };
        bind(&socket, any).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => StartError::PortTaken { port, lane },
            _ => failed("binding")(error),
        })?;
        Ok(Self {
            socket: socket.into(),
            dual,
            segments,
            merges,
            whole: Default::default(),
            overflow: Cell::new(Some(0)),
        })
    }

    /// Takes over the socket of another process that runs or has run for this lane. What is waiting in it
    /// stays there.
    pub(crate) fn adopt(
        fd: OwnedFd,
        lane: usize,
        port: u16,
        fwmark: u32,
        offload: Offload,
    ) -> Result<Self, StartError> {
        let failed = |what| move |error| StartError::Socket { lane, port, what, error };
        let socket = Socket::from(fd);
        let bound = socket.local_addr().map_err(failed("looking at the socket"))?;
        let Some(bound) = bound.as_socket().filter(|bound| bound.port() == port) else {
            return Err(failed("taking over a socket")(io::Error::other("it is of another port")));
        };
        let dual = bound.is_ipv6();
        socket.set_nonblocking(true).map_err(failed("making the socket non-blocking"))?;
        socket.set_mark(fwmark).map_err(failed("setting the fwmark (CAP_NET_ADMIN is needed)"))?;
        let segments = offload.gso && set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let merges = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, offload.gro.into()).is_ok();
        let merges = merges && offload.gro;
        Ok(Self {
            socket: socket.into(),
            dual,
            segments,
            merges,
            whole: Default::default(),
            overflow: Cell::new(None),
        })
    }

    /// Whether the kernel knows how to cut what is sent.
    pub(crate) fn segments(&self) -> bool {
        self.segments
    }

    /// Whether the kernel gives out several datagrams as one.
    pub(crate) fn merges(&self) -> bool {
        self.merges
    }

    /// Receives a datagram, or several that came from one sender in a row.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control = [MaybeUninit::<u8>::zeroed(); Parts::ROOM];
        // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, and nothing that is not initialized is written
        // through it: the kernel writes bytes.
        let buffer = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
        // Room for an address of either family.
        let mut from = SockAddr::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0));
        let mut buffers = [MaybeUninitSlice::new(buffer)];
        let mut message =
            MsgHdrMut::new().with_addr(&mut from).with_buffers(&mut buffers).with_control(&mut control);
        let length = SockRef::from(&self.socket).recvmsg(&mut message, 0)?;
        let control_length = message.control_len();
        // SAFETY: the array was zeroed before the kernel wrote into it.
        let control = control.map(|byte| unsafe { byte.assume_init() });
        let parts = Parts::read(&control[..control_length.min(Parts::ROOM)]);
        let from = from.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        let arrival = Arrival { from, ecn: Ecn::from_bits(parts.class) };
        let lost = parts
            .overflow
            .map_or(0, |all| self.overflow.replace(Some(all)).map_or(0, |before| all.wrapping_sub(before)));
        Ok(Received { arrival, length, lost, segment: parts.segment.unwrap_or(length) })
    }

    /// Sends `bytes`, cut into datagrams of `segment` bytes.
    pub(crate) fn send(&self, bytes: &[u8], how: &Departure, segment: Option<u16>) -> io::Result<()> {
        let Departure { to, ecn, whole, .. } = *how;
        self.set_whole(to, whole);
        let mut control = Control::default();
        if let Some(segment) = segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if ecn != Ecn::NotEct {
            let class = libc::c_int::from(ecn.bits()).to_ne_bytes();
            match to {
                // Also where it is written as an IPv6 address.
                SocketAddr::V4(_) => control.push(libc::IPPROTO_IP, libc::IP_TOS, &class),
                SocketAddr::V6(_) => control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class),
            }
        }
        let to: SockAddr = match to {
            SocketAddr::V4(v4) if self.dual => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            to => to.into(),
        };
        let buffers = [IoSlice::new(bytes)];
        let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(control.bytes());
        SockRef::from(&self.socket).sendmsg(&message, 0).map(|_| ())
    }
}

impl LaneSocket {
    /// Whether what goes to `to` may be fragmented, by the kernel and by routers of IPv4. Where the path's MTU is
    /// not known it may, as WireGuard in the kernel has it: slow is better than lost. Where it is, probes look
    /// after it, and what ICMP says of it is not believed. A call of its own, since no message that goes along
    /// with a datagram says so; few nodes have peers of both kinds.
    fn set_whole(&self, to: SocketAddr, whole: bool) {
        let is_v6 = to.is_ipv6();
        let known = &self.whole[usize::from(is_v6)];
        if known.replace(Some(whole)) == Some(whole) {
            return;
        }
        let (level, name, value) = match (is_v6, whole) {
            (false, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
            (false, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            (true, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
            (true, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        };
        if let Err(error) = set_option(&self.socket, level, name, value) {
            debug!(%error, whole, "the socket does not learn whether datagrams may be fragmented");
        }
    }
}

impl std::os::fd::AsFd for LaneSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Binds; waits a moment for a port that is taken. The agent before this one may be about to end, and a
/// process that is being started holds, until its `exec`, what its parent has just closed.
fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let mut left = BIND_ATTEMPTS;
    loop {
        left -= 1;
        match socket.bind(&address.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && left > 0 => {
                std::thread::sleep(BIND_PAUSE);
            }
            result => return result,
        }
    }
}

/// Has the ECN bits of what arrives told, which [`Ecn::decapsulated`] needs.
fn tell_ecn(socket: &Socket, dual: bool) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    if dual {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    Ok(())
}

/// Asks for large buffers; with CAP_NET_ADMIN beyond `net.core.{r,w}mem_max`, without it up to that, of which the kernel
/// says nothing.
fn buffers(socket: &Socket, lane: usize) {
    let size = BUFFER as libc::c_int;
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        let forced = set_option(socket, libc::SOL_SOCKET, force, size);
        if let Err(error) = forced.or_else(|_| set_option(socket, libc::SOL_SOCKET, plain, size)) {
            warn!(lane, %error, "the UDP socket keeps its small buffer");
        }
    }
    for (buffer, sysctl, size) in [
        ("receive", "net.core.rmem_max", socket.recv_buffer_size()),
        ("send", "net.core.wmem_max", socket.send_buffer_size()),
    ] {
        // The kernel tells twice what was asked for: half of it is for its own use (socket(7)).
        if let Ok(size) = size
            && size < 2 * BUFFER
        {
            warn!(
                lane,
                bytes = size / 2,
                wanted = BUFFER,
                "the UDP socket's {buffer} buffer is small, which costs CPU and packets: give the agent CAP_NET_ADMIN, or \
                 raise {sysctl}"
            );
        }
    }
}

fn set_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is open; the kernel reads one `c_int` from the pointer, which is valid for it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::core::TunnelTag;

    fn how(to: SocketAddr, ecn: Ecn, whole: bool) -> Departure {
        Departure { to, ecn, whole, tunnel: TunnelTag::default() }
    }

    #[test]
    fn buffers_are_as_large_as_they_should_be() {
        let socket = LaneSocket::open(0, 0, 0, Offload::ALL).unwrap();
        let socket = SockRef::from(&socket.socket);
        let sizes = (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap());
        assert_eq!(
            sizes,
            (2 * BUFFER, 2 * BUFFER),
            "without CAP_NET_ADMIN (run the tests as root) they are less"
        );
    }

    /// The loopback interface takes 65,536 bytes: nothing to see of fragments, but of what the socket was told.
    #[test]
    fn a_socket_sends_to_peers_of_both_kinds() {
        let socket = LaneSocket::open(0, 0, 0, Offload::ALL).unwrap();
        let modes = || {
            [(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER), (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)].map(
                |(level, name)| {
                    let mut value: libc::c_int = -1;
                    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
                    // SAFETY: the descriptor is open, and the kernel writes one `c_int`, for which there is room.
                    let result = unsafe {
                        libc::getsockopt(
                            socket.as_fd().as_raw_fd(),
                            level,
                            name,
                            (&raw mut value).cast(),
                            &raw mut length,
                        )
                    };
                    assert_eq!(result, 0);
                    value
                },
            )
        };
        let (v4, v6): (SocketAddr, SocketAddr) = ("127.0.0.1:9".parse().unwrap(), "[::1]:9".parse().unwrap());
        let send = |to, whole| socket.send(b"x", &how(to, Ecn::NotEct, whole), None).unwrap();
        send(v4, true);
        send(v6, false);
        assert_eq!(modes(), [libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_DONT]);
        send(v4, false);
        send(v6, true);
        assert_eq!(modes(), [libc::IP_PMTUDISC_DONT, libc::IPV6_PMTUDISC_PROBE]);
    }

    #[test]
    fn both_families_reach_it_and_a_taken_port_is_named() {
        let socket = LaneSocket::open(3, 0, 0, Offload::ALL).unwrap();
        let port = socket.socket.local_addr().unwrap().port();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"four", ("127.0.0.1", port)).unwrap();
        let mut buffer = [0; 16];
        let from = loop {
            match socket.receive(&mut buffer) {
                Ok(Received { length: 4, segment: 4, arrival, .. }) => break arrival.from,
                Ok(other) => panic!("another datagram: {other:?}"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        socket.send(b"back", &how(from, Ecn::NotEct, false), None).unwrap();
        assert_eq!(sender.recv(&mut buffer).unwrap(), 4);
        let error = LaneSocket::open(3, port, 0, Offload::NONE).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("lane 3"), "{error}");
    }

    #[test]
    fn what_does_not_fit_the_buffer_is_told() {
        let socket = LaneSocket::open(0, 0, 0, Offload::ALL).unwrap();
        let port = socket.socket.local_addr().unwrap().port();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        const SENT: u32 = 20_000;
        for _ in 0..SENT {
            sender.send_to(&[0; 1000], ("127.0.0.1", port)).unwrap();
        }
        let mut buffer = vec![0; 65_536];
        let (mut got, mut lost) = (0, 0);
        let mut drain = || {
            while let Ok(received) = socket.receive(&mut buffer) {
                got += received.length.div_ceil(received.segment) as u32;
                lost += received.lost;
            }
        };
        drain();
        // What comes next tells of what was lost before.
        sender.send_to(&[0; 1000], ("127.0.0.1", port)).unwrap();
        drain();
        assert_eq!(got + lost, SENT + 1);
        assert!(lost > 0, "everything fitted");
    }

    /// Two sockets on loopback, over IPv4 and IPv6: several datagrams with one call, and the ECN bits.
    #[test]
    fn datagrams_travel_together_with_their_ecn_bits() {
        for to in ["127.0.0.1", "::1"] {
            let sender = LaneSocket::open(0, 0, 0, Offload::ALL).unwrap();
            let receiver = LaneSocket::open(0, 0, 0, Offload::ALL).unwrap();
            let port = receiver.socket.local_addr().unwrap().port();
            let to = SocketAddr::new(to.parse().unwrap(), port);
            for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce] {
                sender.send(&[7; 2500], &how(to, ecn, true), Some(1000)).unwrap();
                let mut buffer = vec![0; 65_536];
                let (mut bytes, mut datagrams) = (0, 0);
                while bytes < 2500 {
                    match receiver.receive(&mut buffer) {
                        Ok(received) => {
                            bytes += received.length;
                            datagrams += received.length.div_ceil(received.segment);
                            assert_eq!(received.arrival.ecn, ecn, "{to}");
                        }
                        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                    }
                }
                assert_eq!((bytes, datagrams), (2500, 3));
            }
        }
    }
}
