//! The core's way out, into the kernel: one system call for each packet, as yet.

use std::io;
use std::net::SocketAddr;

use super::socket::LaneSocket;
use crate::core::{OVERHEAD, Sink};
use crate::counters::DropCause;
use crate::tun::Queue;

/// Room for the largest packet and what boringtun wants on top.
const ROOM: usize = 65_536 + OVERHEAD;

#[derive(Debug)]
pub(crate) struct Buffers {
    datagram: Box<[u8]>,
    packet: Box<[u8]>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { datagram: vec![0; ROOM].into(), packet: vec![0; ROOM].into() }
    }
}

pub(crate) struct Kernel<'a> {
    pub(crate) socket: &'a LaneSocket,
    /// `None` while the interface is gone.
    pub(crate) queue: Option<&'a Queue>,
    pub(crate) buffers: &'a mut Buffers,
}

impl Sink for Kernel<'_> {
    fn datagram(&mut self, length: usize) -> &mut [u8] {
        debug_assert!(length <= ROOM);
        &mut self.buffers.datagram
    }

    fn send(&mut self, length: usize, to: SocketAddr) -> Result<(), DropCause> {
        let datagram = &self.buffers.datagram[..length];
        loop {
            let Err(error) = self.socket.send(datagram, to) else { return Ok(()) };
            return Err(match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => DropCause::QueueFull,
                Some(libc::EMSGSIZE) => DropCause::TooBig,
                // No route, no address of the family, forbidden by a rule: it may change at any moment.
                _ => DropCause::SendFailed,
            });
        }
    }

    fn packet(&mut self, length: usize) -> &mut [u8] {
        debug_assert!(length <= ROOM);
        &mut self.buffers.packet
    }

    fn deliver(&mut self, length: usize) -> Result<(), DropCause> {
        let queue = self.queue.ok_or(DropCause::TunWriteFailed)?;
        loop {
            let Err(error) = queue.write(&self.buffers.packet[..length]) else { return Ok(()) };
            return Err(match error.kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock => DropCause::QueueFull,
                _ => DropCause::TunWriteFailed,
            });
        }
    }
}
