//! ChaCha20 (RFC 8439 section 2.3), four blocks in four registers, up to six times.
//!
//! A register holds one row of the state of four blocks: with `a` to `d` for the rows, a quarter round of all
//! columns is twelve instructions, and turning the rows makes diagonals columns. Six such units fill 24 of the
//! 32 registers, and none of them waits for another.
//!
//! Where there are six, four of them are transposed: then a register holds one word of sixteen blocks, and turning a
//! row is to take another register, which costs nothing.

use std::arch::x86_64::*;

use crate::{KEY, NONCE};

/// Length of a block, bytes.
const BLOCK: usize = 64;
/// Blocks in a unit.
const UNIT: usize = 4;
/// Units that are worked on at once, at most.
const UNITS: usize = 6;
/// What one pass gives, bytes.
const PASS: usize = UNITS * UNIT * BLOCK;

/// "expand 32-byte k".
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The key stream of one message.
pub(super) struct Stream {
    /// Rows of the state of four blocks, but for the counter.
    rows: [__m512i; 4],
}

/// The key stream's blocks, one in each register.
pub(super) struct Blocks([__m512i; UNITS * UNIT]);

impl Stream {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(key: &[u8; KEY], nonce: [u8; NONCE]) -> Self {
        let word = |bytes: &[u8], i: usize| {
            i32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        };
        let c = CONSTANTS.map(|word| word as i32);
        let rows = [
            _mm_set_epi32(c[3], c[2], c[1], c[0]),
            _mm_set_epi32(word(key, 3), word(key, 2), word(key, 1), word(key, 0)),
            _mm_set_epi32(word(key, 7), word(key, 6), word(key, 5), word(key, 4)),
            _mm_set_epi32(word(&nonce, 2), word(&nonce, 1), word(&nonce, 0), 0),
        ];
        let mut all = [_mm512_setzero_si512(); 4];
        for (wide, row) in all.iter_mut().zip(rows) {
            *wide = _mm512_broadcast_i32x4(row);
        }
        // Each lane is a block of its own.
        all[3] = _mm512_add_epi32(all[3], _mm512_set_epi32(0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0));
        Self { rows: all }
    }

    /// Blocks from number 0 on: those that `length` bytes of a message need, and block 0.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn first(&mut self, length: usize) -> Blocks {
        match (length + BLOCK).div_ceil(UNIT * BLOCK) {
            0 | 1 => self.blocks::<1>(0),
            2 => self.blocks::<2>(0),
            3 | 4 => self.blocks::<4>(0),
            _ => self.blocks::<UNITS>(0),
        }
    }

    /// Applies what comes behind [`Self::first`] to what of `data` that left.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn rest(&mut self, data: &mut [u8]) {
        let Some(rest) = data.get_mut(PASS - BLOCK..) else { return };
        let mut counter = (UNITS * UNIT) as u32;
        for chunk in rest.chunks_mut(PASS) {
            self.blocks::<UNITS>(counter).apply(0, chunk);
            counter = counter.wrapping_add((UNITS * UNIT) as u32);
        }
    }

    /// `N` units of blocks, from number `counter` on; the rest is zeros.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn blocks<const N: usize>(&self, counter: u32) -> Blocks {
        let zero = _mm512_setzero_si512();
        let [a0, b0, c0, d0] = self.rows;
        let d0 = _mm512_add_epi32(d0, _mm512_maskz_set1_epi32(0x1111, counter as i32));
        let mut last = [zero; N];
        for (n, d) in last.iter_mut().enumerate() {
            *d = _mm512_add_epi32(d0, _mm512_maskz_set1_epi32(0x1111, (n * UNIT) as i32));
        }
        let (mut a, mut b, mut c, mut d) = ([a0; N], [b0; N], [c0; N], last);
        let transposed = if N == UNITS { UNIT } else { 0 };
        if transposed > 0 {
            for row in [&mut a, &mut b, &mut c, &mut d] {
                transpose(row);
            }
        }
        for _ in 0..10 {
            quarter_rounds(&mut a, &mut b, &mut c, &mut d);
            if transposed > 0 {
                turn::<1>(&mut b);
                turn::<2>(&mut c);
                turn::<3>(&mut d);
            }
            for n in transposed..N {
                b[n] = _mm512_shuffle_epi32::<0b00_11_10_01>(b[n]);
                c[n] = _mm512_shuffle_epi32::<0b01_00_11_10>(c[n]);
                d[n] = _mm512_shuffle_epi32::<0b10_01_00_11>(d[n]);
            }
            quarter_rounds(&mut a, &mut b, &mut c, &mut d);
            if transposed > 0 {
                turn::<3>(&mut b);
                turn::<2>(&mut c);
                turn::<1>(&mut d);
            }
            for n in transposed..N {
                b[n] = _mm512_shuffle_epi32::<0b10_01_00_11>(b[n]);
                c[n] = _mm512_shuffle_epi32::<0b01_00_11_10>(c[n]);
                d[n] = _mm512_shuffle_epi32::<0b00_11_10_01>(d[n]);
            }
        }
        if transposed > 0 {
            for row in [&mut a, &mut b, &mut c, &mut d] {
                transpose(row);
            }
        }
        let mut blocks = Blocks([zero; UNITS * UNIT]);
        for n in 0..N {
            let (a, b) = (_mm512_add_epi32(a[n], a0), _mm512_add_epi32(b[n], b0));
            let (c, d) = (_mm512_add_epi32(c[n], c0), _mm512_add_epi32(d[n], last[n]));
            // From a row of four blocks in each to a block in each.
            let (ab0, ab1) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
            let (cd0, cd1) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
            blocks.0[UNIT * n] = _mm512_shuffle_i32x4::<0x88>(ab0, cd0);
            blocks.0[UNIT * n + 1] = _mm512_shuffle_i32x4::<0xdd>(ab0, cd0);
            blocks.0[UNIT * n + 2] = _mm512_shuffle_i32x4::<0x88>(ab1, cd1);
            blocks.0[UNIT * n + 3] = _mm512_shuffle_i32x4::<0xdd>(ab1, cd1);
        }
        blocks
    }
}

/// Transposes the words of the first four units within each lane: from one row of four blocks in each register to one word
/// of sixteen blocks, and back.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(row: &mut [__m512i]) {
    let [x0, x1, x2, x3] = [row[0], row[1], row[2], row[3]];
    let (low01, high01) = (_mm512_unpacklo_epi32(x0, x1), _mm512_unpackhi_epi32(x0, x1));
    let (low23, high23) = (_mm512_unpacklo_epi32(x2, x3), _mm512_unpackhi_epi32(x2, x3));
    row[0] = _mm512_unpacklo_epi64(low01, low23);
    row[1] = _mm512_unpackhi_epi64(low01, low23);
    row[2] = _mm512_unpacklo_epi64(high01, high23);
    row[3] = _mm512_unpackhi_epi64(high01, high23);
}

/// Turns a row by `BY` columns where each column has a register of its own.
#[inline]
fn turn<const BY: usize>(row: &mut [__m512i]) {
    let columns = [row[0], row[1], row[2], row[3]];
    for (n, column) in row.iter_mut().take(UNIT).enumerate() {
        *column = columns[(n + BY) % UNIT];
    }
}

/// A quarter round of every column of every unit.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarter_rounds<const N: usize>(
    a: &mut [__m512i; N],
    b: &mut [__m512i; N],
    c: &mut [__m512i; N],
    d: &mut [__m512i; N],
) {
    for n in 0..N {
        a[n] = _mm512_add_epi32(a[n], b[n]);
        d[n] = _mm512_rol_epi32::<16>(_mm512_xor_si512(d[n], a[n]));
    }
    for n in 0..N {
        c[n] = _mm512_add_epi32(c[n], d[n]);
        b[n] = _mm512_rol_epi32::<12>(_mm512_xor_si512(b[n], c[n]));
    }
    for n in 0..N {
        a[n] = _mm512_add_epi32(a[n], b[n]);
        d[n] = _mm512_rol_epi32::<8>(_mm512_xor_si512(d[n], a[n]));
    }
    for n in 0..N {
        c[n] = _mm512_add_epi32(c[n], d[n]);
        b[n] = _mm512_rol_epi32::<7>(_mm512_xor_si512(b[n], c[n]));
    }
}

impl Blocks {
    /// The key of Poly1305, if these are the first blocks (RFC 8439 section 2.6): r and s.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn poly_key(&self) -> [u64; 4] {
        let low = _mm512_castsi512_si256(self.0[0]);
        [
            _mm256_extract_epi64::<0>(low) as u64,
            _mm256_extract_epi64::<1>(low) as u64,
            _mm256_extract_epi64::<2>(low) as u64,
            _mm256_extract_epi64::<3>(low) as u64,
        ]
    }

    /// Applies the blocks from number `skip` on to `data`, as far as they reach.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn apply(&self, skip: usize, data: &mut [u8]) {
        for (block, bytes) in self.0[skip..].iter().zip(data.chunks_mut(BLOCK)) {
            let mask = u64::MAX >> (BLOCK - bytes.len());
            let at = bytes.as_mut_ptr().cast();
            // SAFETY: the mask covers `bytes` and no byte beyond it; chunks are 1 to 64 bytes long.
            let plain = unsafe { _mm512_maskz_loadu_epi8(mask, at) };
            let sealed = _mm512_xor_si512(plain, *block);
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_epi8(at, mask, sealed) };
        }
    }
}
