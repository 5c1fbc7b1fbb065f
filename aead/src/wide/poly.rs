//! Poly1305 (RFC 8439 section 2.5) of one message without associated data, eight blocks at once.
//!
//! Numbers modulo 2^130 - 5 are in limbs of 44, 44 and 42 bits. A register holds one limb of eight numbers, so that
//! the instructions that multiply 52 bits take eight products at once. Blocks are counted from the end of the
//! message: the first group of eight is the one that may be incomplete, and each lane meets each power of r
//! once:
//!
//! ```text
//!   lane 0: ((m0 · r^8 + m8 ) · r^8 + m16) · r^8
//!   lane 1: ((m1 · r^8 + m9 ) · r^8 + m17) · r^7
//!   ...
//!   lane 7: ((m7 · r^8 + m15) · r^8 + m23) · r
//! ```
//!
//! Two groups are taken at a time: one is multiplied by r^8, what came before by r^16, and what the products' limbs
//! have too much is carried once for both.
//!
//! Splitting blocks into limbs puts them into another order, that of [`ORDER`].

use std::arch::x86_64::*;

/// Length of a block, bytes.
const BLOCK: usize = 16;
/// Length of a group of blocks, bytes.
const GROUP: usize = 8 * BLOCK;
/// The block of the group that is in each lane.
const ORDER: [u8; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

const LOW44: u64 = (1 << 44) - 1;
const LOW42: u64 = (1 << 42) - 1;
/// The bit that is set behind each block, in the last limb: 2^128.
const END: u64 = 1 << 40;

/// Eight numbers. Each limb is less than 2^46: little more than normal, and so that adding two gives what may be
/// multiplied.
type Numbers = [__m512i; 3];

/// Eight numbers to multiply with, and 20 times two of their limbs: what is carried beyond 2^132 comes back as
/// that (2^130 is 5).
struct Factors {
    r: Numbers,
    s: [__m512i; 2],
}

/// The tag of `message` with the key that [`super::chacha::Blocks::poly_key`] gave.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn tag(key: [u64; 4], message: &[u8]) -> [u8; BLOCK] {
    let low = key[0] & 0x0fff_fffc_0fff_ffff;
    let high = key[1] & 0x0fff_fffc_0fff_fffc;
    let r = [low & LOW44, (low >> 44 | high << 20) & LOW44, high >> 24];
    let r = [broadcast(r[0]), broadcast(r[1]), broadcast(r[2])];

    // The powers of r, with as few multiplications after one another as can be.
    let r2 = multiply(r, &Factors::new(r));
    let two = Factors::new(r2);
    let (r3, r4) = (multiply(r, &two), multiply(r2, &two));
    let small = blend(blend(blend(r, r2, 0b0011_0000), r3, 0b0000_1100), r4, 0b0000_0011);
    // What was 4 4 3 3 2 2 1 1 becomes 8 4 7 3 6 2 5 1, as `ORDER` wants it.
    let powers = blend(small, multiply(small, &Factors::new(r4)), 0b0101_0101);
    let eight = Factors::new(powers.map(|limb| _mm512_broadcastq_epi64(_mm512_castsi512_si128(limb))));

    let blocks = message.len().div_ceil(BLOCK) + 1;
    let groups = blocks.div_ceil(8);
    let empty = groups * 8 - blocks;
    let numbers = |group: usize| {
        let (x, y) = load(message, empty, group, group + 1 == groups);
        split(x, y, if group == 0 { FROM[empty] } else { 0xff })
    };
    let mut sum = numbers(0);
    if groups.is_multiple_of(2) {
        sum = add(multiply(sum, &eight), numbers(1));
    }
    if groups > 2 {
        let sixteen = Factors::new(multiply(eight.r, &eight));
        for group in (2 - groups % 2..groups).step_by(2) {
            sum = add(multiply_both(sum, &sixteen, numbers(group), &eight), numbers(group + 1));
        }
    }
    finish(multiply(sum, &Factors::new(powers)), key[2], key[3])
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(word: u64) -> __m512i {
    _mm512_set1_epi64(word.cast_signed())
}

/// `numbers` with those of `others` in the lanes of the mask.
#[inline]
#[target_feature(enable = "avx512f")]
fn blend(numbers: Numbers, others: Numbers, lanes: u8) -> Numbers {
    [0, 1, 2].map(|i| _mm512_mask_mov_epi64(numbers[i], lanes, others[i]))
}

/// Limbs of the sums become less than 2^47, which [`multiply`] takes.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(numbers: Numbers, others: Numbers) -> Numbers {
    [0, 1, 2].map(|i| _mm512_add_epi64(numbers[i], others[i]))
}

impl Factors {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(r: Numbers) -> Self {
        let times_20 = |x| _mm512_add_epi64(_mm512_slli_epi64::<4>(x), _mm512_slli_epi64::<2>(x));
        Self { r, s: [times_20(r[1]), times_20(r[2])] }
    }
}

/// Eight products. Limbs of `a` may be up to 2^47, those of `by` are products or normal: up to 2^45, and
/// so 20 times them below 2^50. Nothing is near 52 bits where 52 bits are taken.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn multiply(a: Numbers, by: &Factors) -> Numbers {
    let zero = [_mm512_setzero_si512(); 3];
    carry(add_products(Columns { low: zero, high: zero }, a, by))
}

/// Eight sums of two products; limbs as for [`multiply`]. `a` comes last, because it is waited for.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn multiply_both(a: Numbers, by: &Factors, b: Numbers, with: &Factors) -> Numbers {
    let zero = [_mm512_setzero_si512(); 3];
    let columns = add_products(Columns { low: zero, high: zero }, b, with);
    carry(add_products(columns, a, by))
}

/// Sums of products for each limb before anything is carried: of the lower 52 bits of each, and of what is above.
struct Columns {
    low: Numbers,
    high: Numbers,
}

/// Six terms each after two products: below 2^55.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn add_products(sums: Columns, a: Numbers, by: &Factors) -> Columns {
    let ([r0, r1, r2], [s1, s2]) = (by.r, by.s);
    let columns = [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]];
    let Columns { mut low, mut high } = sums;
    for term in 0..3 {
        for limb in 0..3 {
            low[limb] = _mm512_madd52lo_epu64(low[limb], a[term], columns[limb][term]);
            high[limb] = _mm512_madd52hi_epu64(high[limb], a[term], columns[limb][term]);
        }
    }
    Columns { low, high }
}

/// What is beyond 52 bits belongs to the next limb, 8 bits up: limbs are 44 bits apart. Behind the last, 42
/// bits long, it is 10 bits, and comes back to the first five times. Then each limb, below 2^56, hands on what it has
/// too much, up to 2^14, and all do so at once: no limb waits for another one's.
#[inline]
#[target_feature(enable = "avx512f")]
fn carry(sums: Columns) -> Numbers {
    let Columns { low: [l0, l1, l2], high: [h0, h1, h2] } = sums;
    let five = |x| _mm512_add_epi64(x, _mm512_slli_epi64::<2>(x));
    let l0 = _mm512_add_epi64(l0, five(_mm512_slli_epi64::<10>(h2)));
    let l1 = _mm512_add_epi64(l1, _mm512_slli_epi64::<8>(h0));
    let l2 = _mm512_add_epi64(l2, _mm512_slli_epi64::<8>(h1));
    let (low44, low42) = (broadcast(LOW44), broadcast(LOW42));
    [
        _mm512_add_epi64(_mm512_and_si512(l0, low44), five(_mm512_srli_epi64::<42>(l2))),
        _mm512_add_epi64(_mm512_and_si512(l1, low44), _mm512_srli_epi64::<44>(l0)),
        _mm512_add_epi64(_mm512_and_si512(l2, low42), _mm512_srli_epi64::<44>(l1)),
    ]
}

/// Of a group that lacks the first `n` blocks, the lanes of those that are there.
const FROM: [u8; 8] = {
    let mut masks = [0; 8];
    let mut n = 0;
    while n < 8 {
        let mut lane = 0;
        while lane < 8 {
            if ORDER[lane] as usize >= n {
                masks[n] |= 1 << lane;
            }
            lane += 1;
        }
        n += 1;
    }
    masks
};

/// The bytes of a group: of its first four blocks and of the others. What is before and behind the message is
/// zeros; the last block of the last group has the lengths (RFC 8439 section 2.8).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(message: &[u8], empty: usize, group: usize, is_last: bool) -> (__m512i, __m512i) {
    // Where the group begins; before the message, if it is the first one and not complete.
    let begin = (group * GROUP).wrapping_sub(empty * BLOCK);
    let at = message.as_ptr().wrapping_add(begin).cast::<i8>();
    let next = at.wrapping_add(GROUP / 2);
    let from = if group == 0 { empty * BLOCK } else { 0 };
    let to = message.len().wrapping_sub(begin).min(GROUP);
    // SAFETY: the mask has those bytes only that are bytes of `message`.
    let x = unsafe { _mm512_maskz_loadu_epi8(mask(from, to), at) };
    let (from, to) = (from.saturating_sub(GROUP / 2), to.saturating_sub(GROUP / 2));
    // SAFETY: as above.
    let mut y = unsafe { _mm512_maskz_loadu_epi8(mask(from, to), next) };
    if is_last {
        let lengths = broadcast(message.len() as u64);
        y = _mm512_or_si512(y, _mm512_maskz_mov_epi64(0b1000_0000, lengths));
    }
    (x, y)
}

/// The bits `from..to`, as far as there are: 64.
fn mask(from: usize, to: usize) -> u64 {
    let below = |n: usize| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    below(to) & !below(from)
}

/// Limbs of the blocks in `x` and `y`, with the bit behind each block that there is.
#[inline]
#[target_feature(enable = "avx512f")]
fn split(x: __m512i, y: __m512i, is_block: u8) -> Numbers {
    let (low, high) = (_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
    let low44 = broadcast(LOW44);
    let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    let end = _mm512_maskz_mov_epi64(is_block, broadcast(END));
    [
        _mm512_and_si512(low, low44),
        _mm512_and_si512(middle, low44),
        _mm512_or_si512(_mm512_srli_epi64::<24>(high), end),
    ]
}

/// Adds the eight up, reduces the sum, and adds `s` to it modulo 2^128.
#[inline]
#[target_feature(enable = "avx512f")]
fn finish(numbers: Numbers, s0: u64, s1: u64) -> [u8; BLOCK] {
    let [mut h0, mut h1, mut h2] = numbers.map(|limb| _mm512_reduce_add_epi64(limb).cast_unsigned());
    // Twice: the second time there is at most a bit to carry.
    for _ in 0..2 {
        h1 += h0 >> 44;
        h0 &= LOW44;
        h2 += h1 >> 44;
        h1 &= LOW44;
        h0 += (h2 >> 42) * 5;
        h2 &= LOW42;
    }
    h1 += h0 >> 44;
    h0 &= LOW44;
    h2 += h1 >> 44;
    h1 &= LOW44;
    // Less 2^130 - 5, if that is not negative.
    let mut g0 = h0 + 5;
    let mut g1 = h1 + (g0 >> 44);
    g0 &= LOW44;
    let g2 = h2.wrapping_add(g1 >> 44).wrapping_sub(1 << 42);
    g1 &= LOW44;
    let keep = (g2 >> 63).wrapping_neg();
    let choose = |h: u64, g: u64| (h & keep) | (g & !keep);
    let (h0, h1, h2) = (choose(h0, g0), choose(h1, g1), choose(h2, g2));
    let h = u128::from(h0) | u128::from(h1) << 44 | u128::from(h2) << 88;
    h.wrapping_add(u128::from(s0) | u128::from(s1) << 64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::Cipher;
    use super::*;

    /// A number less than 2^192, its lowest word first. What follows is slow, and plain enough to be believed.
    type Number = [u64; 3];

    /// 2^130 - 5.
    const P: Number = [u64::MAX - 4, u64::MAX, 3];

    fn plus(a: Number, b: Number) -> Number {
        let (mut sum, mut carry) = ([0; 3], 0);
        for i in 0..3 {
            let word = u128::from(a[i]) + u128::from(b[i]) + carry;
            (sum[i], carry) = (word as u64, word >> 64);
        }
        reduced(sum)
    }

    /// Modulo 2^192, plus P if it is negative: what is carried out of the last word makes up for what was borrowed.
    fn minus(a: Number, b: Number) -> Number {
        let (mut difference, mut borrow) = ([0; 3], false);
        for i in 0..3 {
            let (word, first) = a[i].overflowing_sub(b[i]);
            let (word, second) = word.overflowing_sub(borrow.into());
            (difference[i], borrow) = (word, first || second);
        }
        if borrow { plus(difference, P) } else { difference }
    }

    fn reduced(mut a: Number) -> Number {
        while a.iter().rev().ge(P.iter().rev()) {
            a = minus(a, P);
        }
        a
    }

    fn times(a: Number, b: Number) -> Number {
        (0..130).rev().fold([0; 3], |product, bit| {
            let product = plus(product, product);
            if b[bit / 64] >> (bit % 64) & 1 == 1 { plus(product, a) } else { product }
        })
    }

    /// By Fermat: the power P - 2.
    fn inverse(a: Number) -> Number {
        let exponent = minus(P, [2, 0, 0]);
        (0..130).rev().fold([1, 0, 0], |power, bit| {
            let power = times(power, power);
            if exponent[bit / 64] >> (bit % 64) & 1 == 1 { times(power, a) } else { power }
        })
    }

    fn number(bytes: &[u8], end: u64) -> Number {
        let mut block = [0; BLOCK];
        block[..bytes.len()].copy_from_slice(bytes);
        let value = u128::from_le_bytes(block);
        [value as u64, (value >> 64) as u64, end]
    }

    fn clamped(key: [u64; 4]) -> Number {
        [key[0] & 0x0fff_fffc_0fff_ffff, key[1] & 0x0fff_fffc_0fff_fffc, 0]
    }

    /// The sum after some blocks, each followed by its bit.
    fn sum(r: Number, blocks: &[u8]) -> Number {
        blocks.chunks(BLOCK).fold([0; 3], |sum, block| times(plus(sum, number(block, 1)), r))
    }

    fn lengths(message: usize) -> Number {
        [0, message as u64, 1]
    }

    fn slow_tag(key: [u64; 4], message: &[u8]) -> [u8; BLOCK] {
        let r = clamped(key);
        let h = times(plus(sum(r, message), lengths(message.len())), r);
        let h = u128::from(h[0]) | u128::from(h[1]) << 64;
        h.wrapping_add(u128::from(key[2]) | u128::from(key[3]) << 64).to_le_bytes()
    }

    /// Sums that end a little above nothing or below the modulus, where the last reduction decides: random messages would
    /// not come upon them once in the life of the universe.
    #[test]
    fn sums_near_the_modulus_are_reduced() {
        assert_eq!(times(inverse([7, 8, 1]), [7, 8, 1]), [1, 0, 0]);
        if !Cipher::is_supported() {
            println!("this processor has no AVX-512 with IFMA: nothing to test");
            return;
        }
        let keys = [
            [1, 0],
            [2, 0],
            [4, 0],
            [0, 4],
            [u64::MAX, u64::MAX],
            [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
        ];
        let mut found = 0;
        for [low, high] in keys {
            for s in [[0, 0], [u64::MAX, u64::MAX], [5, u64::MAX]] {
                let key = [low, high, s[0], s[1]];
                let r = clamped(key);
                let back = inverse(r);
                for offset in 0..=8_u64 {
                    for target in [[offset, 0, 0], minus(P, [offset + 1, 0, 0])] {
                        for blocks in [2, 7, 8, 9, 23, 31, 39] {
                            // The last block that makes the sum what it is to be, if there is one: one in four has it.
                            for fill in 0..40_u8 {
                                let mut message = vec![fill.wrapping_mul(37); blocks * BLOCK];
                                let (first, last) = message.split_at_mut((blocks - 1) * BLOCK);
                                let wanted = minus(times(target, back), lengths(blocks * BLOCK));
                                let wanted = minus(times(wanted, back), sum(r, first));
                                let block = minus(wanted, [0, 0, 1]);
                                if block[2] != 0 {
                                    continue;
                                }
                                last[..8].copy_from_slice(&block[0].to_le_bytes());
                                last[8..].copy_from_slice(&block[1].to_le_bytes());
                                let h = plus(sum(r, &message), lengths(message.len()));
                                assert_eq!(times(h, r), target);
                                // SAFETY: the processor has what it takes.
                                let tag = unsafe { tag(key, &message) };
                                assert_eq!(
                                    tag,
                                    slow_tag(key, &message),
                                    "{key:x?}, {target:x?}, {blocks} blocks"
                                );
                                found += 1;
                                break;
                            }
                        }
                    }
                }
            }
        }
        assert!(found > 1000, "only {found} sums were tried");
    }
}
