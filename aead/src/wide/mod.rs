//! ChaCha20-Poly1305 without associated data, by AVX-512 with IFMA.
//!
//! ```text
//!  key, nonce ─► chacha: up to 24 blocks at once ─► block 0: the key of Poly1305
//!                                                └► blocks 1 to 23: over the first 1472 bytes, and so on
//!  ciphertext, lengths ─► poly: 8 blocks of 16 bytes at once ─► tag
//! ```
//!
//! A packet of a tunnel is one pass of `chacha`. Lengths are not secret; all else is only ever added, rotated,
//! multiplied and compared without a branch.

mod chacha;
mod poly;

use std::arch::is_x86_feature_detected;

use zeroize::Zeroize as _;

use crate::{KEY, NONCE, Refused, TAG};
use chacha::Stream;

/// The longest message, bytes: the block counter has 32 bits, and block 0 is not for the message (RFC 8439
/// section 2.8).
const LONGEST: u64 = (1 << 38) - 64;

/// A key, on a processor that can do what the functions here need.
pub(crate) struct Cipher([u8; KEY]);

impl Drop for Cipher {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Cipher {
    /// Whether this processor has what is needed.
    pub(crate) fn is_supported() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
    }

    /// Refused where the processor cannot: what follows relies on a `Cipher` being only where it can.
    pub(crate) fn new(key: &[u8; KEY]) -> Result<Self, Refused> {
        if Self::is_supported() { Ok(Self(*key)) } else { Err(Refused) }
    }

    /// Makes another implementation's key of this one.
    pub(crate) fn with_key<T>(&self, make: impl FnOnce(&[u8; KEY]) -> T) -> T {
        make(&self.0)
    }

    /// Encrypts in place; returns the tag.
    pub(crate) fn seal(&self, nonce: [u8; NONCE], data: &mut [u8]) -> Result<[u8; TAG], Refused> {
        if data.len() as u64 > LONGEST {
            return Err(Refused);
        }
        // SAFETY: there is no `Cipher` on a processor that lacks any of the features.
        Ok(unsafe { seal(&self.0, nonce, data) })
    }

    /// Decrypts in place if the tag is right, and changes nothing if it is not.
    pub(crate) fn open(&self, nonce: [u8; NONCE], data: &mut [u8], tag: &[u8; TAG]) -> Result<(), Refused> {
        if data.len() as u64 > LONGEST {
            return Err(Refused);
        }
        // SAFETY: there is no `Cipher` on a processor that lacks any of the features.
        if unsafe { open(&self.0, nonce, data, tag) } { Ok(()) } else { Err(Refused) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn seal(key: &[u8; KEY], nonce: [u8; NONCE], data: &mut [u8]) -> [u8; TAG] {
    let mut stream = Stream::new(key, nonce);
    let first = stream.first(data.len());
    first.apply(1, data);
    stream.rest(data);
    poly::tag(first.poly_key(), data)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn open(key: &[u8; KEY], nonce: [u8; NONCE], data: &mut [u8], tag: &[u8; TAG]) -> bool {
    let mut stream = Stream::new(key, nonce);
    let first = stream.first(data.len());
    let expected = poly::tag(first.poly_key(), data);
    let differs = u128::from_le_bytes(expected) ^ u128::from_le_bytes(*tag);
    // The only thing that depends on secrets and is told: whether the tag was right.
    if std::hint::black_box(differs) != 0 {
        return false;
    }
    first.apply(1, data);
    stream.rest(data);
    true
}
