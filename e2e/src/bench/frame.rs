//! How the forwarder without encryption puts what it reads from its TUN into datagrams of the size that WireGuard's have.
//!
//! A frame is what one read of the TUN gave. It is sent in parts, each with one system call and with a head that says where
//! it belongs; the kernel cuts a part into datagrams, and puts it together again at the other end.

/// Bytes of payload of each datagram: a packet of the tunnel's MTU and WireGuard's 32 bytes.
pub(super) const DATAGRAM: usize = 1452;

/// Most bytes of a part: whole datagrams, within the 65,507 bytes and the 64 datagrams that the kernel takes.
const PART: usize = 44 * DATAGRAM;

/// Bytes of a part's head: a mark, the frame's number, its length, the part's place in it; 32 bits each.
pub(super) const HEAD: usize = 16;

const MARK: u32 = 0x7073_7062;

/// Sends a frame, `buffer[HEAD..]`, in parts. The head of each part is written over the end of the part before, which has
/// been sent by then.
pub(super) fn send<E>(
    buffer: &mut [u8],
    number: u32,
    mut part: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let length = buffer.len() - HEAD;
    let mut at = 0;
    while at < length {
        let end = (at + PART - HEAD).min(length);
        let words = [MARK, number, length as u32, at as u32];
        for (to, word) in buffer[at..at + HEAD].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        part(&buffer[at..end + HEAD])?;
        at = end;
    }
    Ok(())
}

/// Puts frames together.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    frame: Vec<u8>,
    number: u32,
}

impl Assembly {
    /// Takes what one reception gave, and hands on the frames that it completes. What does not fit together is
    /// dropped: the tunnel's TCP sends it again.
    pub(super) fn receive(&mut self, mut bytes: &[u8], mut whole: impl FnMut(&[u8])) {
        while let Some((head, rest)) = bytes.split_at_checked(HEAD) {
            let word = |i: usize| {
                u32::from_le_bytes([head[4 * i], head[4 * i + 1], head[4 * i + 2], head[4 * i + 3]])
            };
            let (number, length, at) = (word(1), word(2) as usize, word(3) as usize);
            let size = length.saturating_sub(at).min(PART - HEAD);
            if word(0) != MARK || size == 0 || size > rest.len() {
                return;
            }
            let (part, next) = rest.split_at(size);
            if at == 0 && size == length {
                whole(part);
            } else {
                if at == 0 {
                    self.frame.clear();
                    self.number = number;
                }
                if self.number == number && self.frame.len() == at {
                    self.frame.extend_from_slice(part);
                    if self.frame.len() == length {
                        whole(&self.frame);
                        self.frame.clear();
                    }
                }
            }
            bytes = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(frame: &[u8], number: u32) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; HEAD];
        buffer.extend_from_slice(frame);
        let mut parts = Vec::new();
        send(&mut buffer, number, |part| {
            parts.push(part.to_vec());
            Ok::<(), ()>(())
        })
        .unwrap();
        parts
    }

    fn frame(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn frames_of_every_size_come_out_as_they_went_in() {
        for length in [1, 74, PART - HEAD, PART - HEAD + 1, 65_545, 2 * (PART - HEAD)] {
            let mut assembly = Assembly::default();
            let mut out = Vec::new();
            for part in parts(&frame(length), 5) {
                assert!(part.len() <= PART);
                assembly.receive(&part, |frame| out.push(frame.to_vec()));
            }
            assert_eq!(out, [frame(length)], "{length}");
        }
    }

    #[test]
    fn a_lost_part_loses_its_frame_only() {
        let mut assembly = Assembly::default();
        let mut out = 0;
        assembly.receive(&parts(&frame(65_000), 1)[0], |_| out += 1);
        assembly.receive(&parts(&frame(65_000), 2)[1], |_| out += 1);
        assert_eq!(out, 0);
        let joined: Vec<u8> = [parts(&frame(10), 3), parts(&frame(20), 4)].concat().concat();
        assembly.receive(&joined, |_| out += 1);
        assert_eq!(out, 2);
        assembly.receive(b"something else, and long enough", |_| out += 1);
        assert_eq!(out, 2);
    }
}
