//! Ancillary data of datagrams (cmsg(3)), as bytes: what goes along with a `sendmsg` and a `recvmsg`.

/// Length of the header: `struct cmsghdr` is a length, level and type.
const HEADER: usize = size_of::<libc::cmsghdr>();
/// What `CMSG_ALIGN` rounds up to.
const ALIGN: usize = size_of::<usize>();
/// The length's place and width in the header: all systems have it first, padded to a word.
const LENGTH: usize = size_of::<usize>();

/// What one message takes with `n` bytes of data.
const fn space(n: usize) -> usize {
    HEADER + n.next_multiple_of(ALIGN)
}

/// Room for two messages to be sent: a segment's size and a traffic class.
const SENT: usize = 2 * space(4);

/// Messages to be sent along with a datagram.
#[derive(Debug)]
pub(super) struct Control {
    bytes: [u8; SENT],
    used: usize,
}

impl Default for Control {
    fn default() -> Self {
        Self { bytes: [0; SENT], used: 0 }
    }
}

impl Control {
    /// Adds one; its data is a number of up to four bytes.
    pub(super) fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let length = HEADER + data.len();
        let Some(room) = self.bytes.get_mut(self.used..self.used + space(data.len())) else {
            debug_assert!(false, "no room for another message");
            return;
        };
        room[..LENGTH].copy_from_slice(&length.to_ne_bytes());
        room[LENGTH..LENGTH + 4].copy_from_slice(&level.to_ne_bytes());
        room[LENGTH + 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        room[HEADER..length].copy_from_slice(data);
        self.used += space(data.len());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

/// What came along with a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// The traffic class of its IP header.
    pub(super) class: u8,
    /// Length of each datagram, if several came as one.
    pub(super) segment: Option<usize>,
    /// How many did not fit the socket's buffer so far, if there are any.
    pub(super) overflow: Option<u32>,
}

impl Parts {
    /// Room for what is asked for, and a message more.
    pub(super) const ROOM: usize = 4 * space(4);

    /// Reads them; what is unknown or malformed is passed over.
    pub(super) fn read(mut control: &[u8]) -> Self {
        let mut parts = Self::default();
        while let Some((header, _)) = control.split_first_chunk::<HEADER>() {
            let word = |at: usize| {
                libc::c_int::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let mut length = [0; LENGTH];
            length.copy_from_slice(&header[..LENGTH]);
            let length = usize::from_ne_bytes(length);
            let Some(data) = control.get(HEADER..length) else { break };
            match (word(LENGTH), word(LENGTH + 4), data) {
                (libc::SOL_UDP, libc::UDP_GRO, &[a, b, c, d]) => {
                    let segment = usize::try_from(libc::c_int::from_ne_bytes([a, b, c, d]));
                    parts.segment = segment.ok().filter(|&n| n > 0);
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &[a, b, c, d]) => {
                    parts.overflow = Some(u32::from_ne_bytes([a, b, c, d]));
                }
                (libc::IPPROTO_IP, libc::IP_TOS, &[class, ..]) => parts.class = class,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &[a, b, c, d]) => {
                    parts.class = libc::c_int::from_ne_bytes([a, b, c, d]) as u8;
                }
                _ => {}
            }
            control = control.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_rubbish_ends_it() {
        let mut control = Control::default();
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1452_i32.to_ne_bytes());
        control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &3_i32.to_ne_bytes());
        let parts = Parts { class: 3, segment: Some(1452), overflow: None };
        assert_eq!(Parts::read(control.bytes()), parts);
        // As libc's own macros see it.
        // SAFETY: it computes a number from a number.
        assert_eq!(control.bytes().len(), 2 * unsafe { libc::CMSG_SPACE(4) } as usize);
        for cut in 0..control.bytes().len() {
            Parts::read(&control.bytes()[..cut]);
        }
        for length in [0_usize, 1, usize::MAX] {
            let mut bytes = control.bytes().to_vec();
            bytes[..LENGTH].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Parts::read(&bytes), Parts::default());
        }
        let mut v4 = Control::default();
        v4.push(libc::IPPROTO_IP, libc::IP_TOS, &[2]);
        assert_eq!(Parts::read(v4.bytes()).class, 2);
    }
}
