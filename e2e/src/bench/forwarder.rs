//! The bound: one end of a tunnel that moves packets from a TUN to UDP and back with all of the kernel's offloads, and does
//! nothing else. It encrypts nothing, checks nothing and looks nothing up; it is no WireGuard and no part of podspan.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context, Result};
use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt};

use super::frame::{self, Assembly, DATAGRAM, HEAD};
use crate::tun;

/// Its interface.
pub(crate) const INTERFACE: &str = "wg0";

/// How often one side is read before the other gets its turn.
const TURN: usize = 64;

/// Bytes that wait in the socket.
const ROOM: usize = 4 << 20;

/// Room for the largest packet of a TUN with its virtio header.
const LARGEST: usize = 65_536 + 64;

#[derive(Debug, Args)]
pub(crate) struct Forwarder {
    /// The other end
    peer: SocketAddr,
}

/// Forwards until it is ended.
pub(crate) fn forward(args: &Forwarder) -> Result<()> {
    let mut tun = tun::open(INTERFACE, libc::IFF_VNET_HDR)?;
    let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: the descriptor is open, and the request takes a number.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, offload) } < 0 {
        return Err(std::io::Error::last_os_error()).context("the TUN has no TSO");
    }
    let any: SocketAddr = if args.peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let socket = UdpSocket::bind(SocketAddr::new(any.ip(), args.peer.port()))?;
    socket.connect(args.peer)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
    setsockopt(&socket, sockopt::SndBufForce, &ROOM)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true).context("the kernel has no UDP GRO")?;
    let mut buffer = vec![0; HEAD + LARGEST];
    let (mut number, mut assembly) = (0_u32, Assembly::default());
    loop {
        let mut ready =
            [PollFd::new(tun.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        for _ in 0..TURN {
            let Some(length) = some(tun.read(&mut buffer[HEAD..])).context("the TUN cannot be read")? else {
                break;
            };
            number = number.wrapping_add(1);
            frame::send(&mut buffer[..HEAD + length], number, |part| send(&socket, part))?;
        }
        for _ in 0..TURN {
            let Some(length) = receive(&socket, &mut buffer)? else { break };
            // What the TUN refuses is lost, as on any network.
            assembly.receive(&buffer[..length], |frame| drop(tun.write(frame)));
        }
    }
}

/// A result, or nothing where there is nothing for now.
fn some(result: std::io::Result<usize>) -> Result<Option<usize>> {
    use std::io::ErrorKind::{Interrupted, WouldBlock};
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn send(socket: &UdpSocket, part: &[u8]) -> Result<()> {
    let size = DATAGRAM as u16;
    let cut = [ControlMessage::UdpGsoSegments(&size)];
    let control: &[ControlMessage<'_>] = if part.len() > DATAGRAM { &cut } else { &[] };
    let pieces = [IoSlice::new(part)];
    match sendmsg::<SockaddrStorage>(socket.as_raw_fd(), &pieces, control, MsgFlags::empty(), None) {
        Ok(_) => Ok(()),
        // A full queue, or a far end that is not there yet: lost, as on any network.
        Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED | Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("the socket cannot send"),
    }
}

/// Datagrams that the kernel received as one arrive as one; where they are cut is told by their heads.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<usize>> {
    let mut pieces = [IoSliceMut::new(buffer)];
    match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut pieces, None, MsgFlags::empty()) {
        Ok(message) => Ok(Some(message.bytes)),
        Err(Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR) => Ok(None),
        Err(error) => Err(error).context("the socket cannot receive"),
    }
}
