//! Just enough blocking rtnetlink (rtnetlink(7)) for the routes of one namespace.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const HEADER: usize = 16;

/// The kernel answers at once; more than this means that something is badly wrong.
const TIMEOUT_SECONDS: i64 = 2;
/// How often an interrupted dump is begun again.
const DUMP_TRIES: usize = 5;

/// An rtnetlink socket of the namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        let timeout = TimeVal::seconds(TIMEOUT_SECONDS);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
        // A dump's message is at most 32 KiB (netlink(7)); twice that is never truncated.
        Ok(Self { socket, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, payload)?;
        self.receive(|_, _| {})
    }

    /// Asks for one object and returns its answer's payload.
    pub(crate) fn get(&mut self, kind: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, payload)?;
        let mut answer = Vec::new();
        self.receive(|_, payload| answer = payload.to_vec())?;
        Ok(answer)
    }

    /// Asks for all objects of a kind and returns the payloads that `keep` wants.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        payload: &[u8],
        keep: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_TRIES {
            self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, payload)?;
            let (mut kept, mut interrupted) = (Vec::new(), false);
            self.receive(|flags, payload| {
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                if keep(payload) {
                    kept.push(payload.to_vec());
                }
            })?;
            // The table changed under the dump: it may have skipped something.
            if !interrupted {
                return Ok(kept);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the table changed during every dump of it"))
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + payload.len();
        let mut message = vec![0; HEADER];
        let mut header = NetlinkBuffer::new(&mut message);
        header.set_length(u32::try_from(length).map_err(io::Error::other)?);
        header.set_message_type(kind);
        header.set_flags(flags);
        header.set_sequence_number(self.sequence);
        message.extend_from_slice(payload);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads up to the end of the answer to the last request.
    fn receive(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer cannot be read");
        loop {
            let length = loop {
                match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                    Err(nix::Error::EINTR) => {}
                    other => break other?,
                }
            };
            let mut rest = self.buffer.get(..length).ok_or_else(broken)?;
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(&rest).map_err(|_| broken())?;
                let end = usize::try_from(message.length()).map_err(|_| broken())?;
                let payload = rest.get(HEADER..end).ok_or_else(broken)?;
                // What is left of an earlier request that was given up.
                let ours = message.sequence_number() == self.sequence;
                match message.message_type() {
                    _ if !ours => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_OVERRUN => {
                        return Err(io::Error::other("the kernel lost messages of the answer"));
                    }
                    NLMSG_ERROR => return acknowledgement(payload),
                    _ => each(message.flags(), payload),
                }
                rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Reads a `nlmsgerr`: 0 is success, everything else a negative errno.
fn acknowledgement(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer cannot be read")),
    }
}

/// The bytes of a message or attribute.
pub(crate) fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}
