//! The Internet checksum (RFC 1071), quickly: every byte of TCP and UDP passes here once each way.

/// A one's complement sum of 16-bit words, not yet folded. Words are taken in the machine's byte order:
/// the sum is the same but for the order of its two bytes (RFC 1071 section 2), so nothing is swapped on
/// the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum over `bytes`, with a zero added to an odd number of them. They must begin at an even place
    /// of what is summed up.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if bytes.len() >= 128 && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, which is all that the function asks for.
            return Self(unsafe { words_avx2(bytes) });
        }
        Self(words(bytes))
    }

    /// The sum of a number in network byte order, at an even place.
    #[must_use]
    pub fn of_u16(word: u16) -> Self {
        Self(u64::from(word.to_be()))
    }

    /// The same for 32 bits.
    #[must_use]
    pub fn of_u32(word: u32) -> Self {
        Self(u64::from(word.to_be()))
    }

    /// Two sums together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        // Each is at most 2^46 or so (64 KB of 32-bit words), so this does not overflow; a sum that was
        // added up from many is folded in between.
        Self(self.0.wrapping_add(other.0))
    }

    /// This sum less `word`, which was added before.
    #[must_use]
    pub fn without_u16(self, word: u16) -> Self {
        Self(self.0.wrapping_add(u64::from(!word.to_be())))
    }

    /// Folded to 16 bits, as bytes go into a packet: what a checksum field holds while it is partial.
    #[must_use]
    pub fn fold(self) -> [u8; 2] {
        self.folded().to_ne_bytes()
    }

    /// The checksum: the complement of the folded sum.
    #[must_use]
    pub fn finish(self) -> [u8; 2] {
        (!self.folded()).to_ne_bytes()
    }

    /// Whether this is the sum over something with a right checksum in it.
    #[must_use]
    pub fn is_right(self) -> bool {
        self.folded() == 0xffff
    }

    fn folded(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }
}

/// The sum of the pseudo-header of TCP and UDP, without its length (RFC 9293 section 3.1, RFC 8200
/// section 8.1): `addresses` are source and destination as they stand in the IP header.
#[must_use]
pub fn pseudo(addresses: &[u8], protocol: u8) -> Sum {
    Sum::of(addresses).and(Sum::of_u16(protocol.into()))
}

/// Adds up 32-bit words; sums of several lanes, so that compilers use vector instructions.
#[inline(always)]
fn words(bytes: &[u8]) -> u64 {
    const LANES: usize = 16;
    let mut lanes = [0_u64; LANES];
    let (chunks, rest) = bytes.as_chunks::<{ LANES * 4 }>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut sum = lanes.iter().sum::<u64>();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// The same, compiled for AVX2: twice as quick over the length of a packet.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn words_avx2(bytes: &[u8]) -> u64 {
    words(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 section 4.1 has it.
    fn reference(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), [0xdd, 0xf2]);
        assert_eq!(sum.finish(), [0x22, 0x0d]);
    }

    #[test]
    fn the_largest_sum_does_not_overflow() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(Sum::of(&bytes).finish(), reference(&bytes));
        assert_eq!(Sum::of(&bytes).and(Sum::of(&bytes[..65_534])).and(Sum::of_u16(1)).folded().to_be(), {
            let mut all = [bytes.as_slice(), &[0], &bytes[..65_534]].concat();
            all.extend([0, 1]);
            !u16::from_be_bytes(reference(&all))
        });
    }

    proptest! {
        #[test]
        fn any_bytes_at_any_length(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::of(&bytes).finish(), reference(&bytes));
            prop_assert_eq!(Sum(words(&bytes)).finish(), reference(&bytes));
        }

        #[test]
        fn parts_add_up(bytes in prop::collection::vec(any::<u8>(), 4..600), at in 0_usize..300, word: u16) {
            let at = (at * 2).min(bytes.len() & !1);
            let sum = Sum::of(&bytes[..at]).and(Sum::of(&bytes[at..]));
            prop_assert_eq!(sum.finish(), reference(&bytes));
            let more = sum.and(Sum::of_u16(word)).without_u16(word);
            // Both zeros of one's complement mean the same.
            let zero = |sum: [u8; 2]| if sum == [0xff, 0xff] { [0, 0] } else { sum };
            prop_assert_eq!(zero(more.finish()), zero(reference(&bytes)));
        }
    }
}
