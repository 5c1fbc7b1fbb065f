//! A stream of bytes that both ends can make, so that every byte of a transfer is compared.

/// The pattern of one seed: what splitmix64 gives, as little-endian bytes.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    state: u64,
    sum: u64,
}

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed, sum: 0 }
    }

    /// Writes the next part of the pattern. The length must be a multiple of 8 in all calls but the last.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            self.sum = (self.sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
            let bytes = word.to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    /// A checksum of all that was filled.
    pub(super) fn sum(&self) -> u64 {
        self.sum
    }
}

/// Compares a stream with the pattern, in pieces of any length.
#[derive(Debug)]
pub(super) struct Checker {
    pattern: Pattern,
    expected: Vec<u8>,
    used: usize,
    offset: u64,
}

impl Checker {
    pub(super) fn new(seed: u64) -> Self {
        Self { pattern: Pattern::new(seed), expected: vec![0; 64 * 1024], used: 64 * 1024, offset: 0 }
    }

    /// Takes the next piece; an error is the offset of the first byte that differs.
    pub(super) fn take(&mut self, mut piece: &[u8]) -> Result<(), u64> {
        while !piece.is_empty() {
            if self.used == self.expected.len() {
                self.pattern.fill(&mut self.expected);
                self.used = 0;
            }
            let length = piece.len().min(self.expected.len() - self.used);
            let expected = &self.expected[self.used..self.used + length];
            if piece[..length] != *expected {
                let same = piece.iter().zip(expected).take_while(|(a, b)| a == b).count();
                return Err(self.offset + same as u64);
            }
            self.used += length;
            self.offset += length as u64;
            piece = &piece[length..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_is_found_wherever_it_is() {
        let mut data = vec![0; 200_000];
        Pattern::new(7).fill(&mut data);
        for at in [0, 1, 65_535, 65_536, 199_999] {
            let mut changed = data.clone();
            changed[at] ^= 1;
            let mut checker = Checker::new(7);
            let result = changed.chunks(1000).try_for_each(|piece| checker.take(piece));
            assert_eq!(result, Err(at as u64));
        }
        let mut checker = Checker::new(7);
        assert_eq!(data.chunks(777).try_for_each(|piece| checker.take(piece)), Ok(()));
        assert_eq!(Checker::new(8).take(&data), Err(0));
    }
}
