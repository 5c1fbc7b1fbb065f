//! ChaCha20-Poly1305 (RFC 8439), the cipher of WireGuard's data packets (WireGuard paper, section 5.4.6).
//!
//! Half of the time that a tunnel costs is this cipher. Where the processor has AVX-512 with its 52-bit
//! multiplication (IFMA; Intel since Ice Lake, AMD since Zen 4), packets are sealed and opened by the
//! module `wide`, in half the time that aws-lc and ring take, which know AVX2 at most. Everywhere else, and for
//! messages with associated data, which in WireGuard only handshakes have, it is aws-lc.
//!
//! `wide` is used only after it has given the same as aws-lc for messages of many lengths, when the first key is
//! made (`self_test`); if it does not, that is said once, at ERROR, and aws-lc is used. Nothing in `wide` branches on,
//! or looks up in memory by, what is secret.
//!
//! boringtun reaches this through the package in `ring/`, which has the interface of the crate that boringtun
//! asks for.

#[cfg(target_arch = "x86_64")]
mod self_test;
#[cfg(target_arch = "x86_64")]
mod wide;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Length of a key, bytes.
pub const KEY: usize = 32;
/// Length of a nonce, bytes.
pub const NONCE: usize = 12;
/// Length of an authentication tag, bytes.
pub const TAG: usize = 16;

/// The message is not what was sealed with this key, nonce and associated data; or a key is not [`KEY`] bytes
/// long, or a message is longer than the cipher can take (256 GB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What seals and opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// AVX-512 with IFMA.
    Wide,
    /// aws-lc.
    AwsLc,
}

impl Implementation {
    /// The quickest that this processor has and that works.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            static BEST: std::sync::OnceLock<Implementation> = std::sync::OnceLock::new();
            *BEST.get_or_init(|| self_test::choose(wide::Cipher::is_supported(), self_test::wide))
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::AwsLc
    }
}

impl std::fmt::Display for Implementation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Wide => "AVX-512 with IFMA",
            Self::AwsLc => "aws-lc",
        })
    }
}

/// A key.
#[derive(Debug)]
pub struct Key(Inner);

enum Inner {
    #[cfg(target_arch = "x86_64")]
    Wide(wide::Cipher),
    AwsLc(Box<LessSafeKey>),
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            #[cfg(target_arch = "x86_64")]
            Self::Wide(_) => "Wide",
            Self::AwsLc(_) => "AwsLc",
        })
    }
}

impl Key {
    /// Takes the bytes of a key, for the best implementation.
    ///
    /// # Errors
    /// If there are not [`KEY`] of them.
    pub fn new(bytes: &[u8]) -> Result<Self, Refused> {
        Self::with(Implementation::best(), bytes)
    }

    /// The same for a given implementation, or aws-lc where the processor lacks that.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(implementation: Implementation, bytes: &[u8]) -> Result<Self, Refused> {
        let bytes: &[u8; KEY] = bytes.try_into().map_err(|_| Refused)?;
        Ok(Self(match implementation {
            #[cfg(target_arch = "x86_64")]
            Implementation::Wide if wide::Cipher::is_supported() => Inner::Wide(wide::Cipher::new(bytes)?),
            _ => Inner::AwsLc(Box::new(aws_lc(bytes)?)),
        }))
    }

    /// Encrypts `data` in place and returns the tag. A nonce must not come twice with one key.
    ///
    /// # Errors
    /// If there is too much data; it is not to be used then.
    pub fn seal(&self, nonce: [u8; NONCE], associated: &[u8], data: &mut [u8]) -> Result<[u8; TAG], Refused> {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Inner::Wide(cipher) if associated.is_empty() => cipher.seal(nonce, data),
            #[cfg(target_arch = "x86_64")]
            Inner::Wide(cipher) => seal(&cipher.with_key(aws_lc)?, nonce, associated, data),
            Inner::AwsLc(key) => seal(key, nonce, associated, data),
        }
    }

    /// Decrypts the last of `data` but the tag, with which it ends, in place; returns what was sealed.
    ///
    /// # Errors
    /// If it was not sealed so; then what `data` holds means nothing.
    pub fn open<'a>(
        &self,
        nonce: [u8; NONCE],
        associated: &[u8],
        data: &'a mut [u8],
    ) -> Result<&'a mut [u8], Refused> {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Inner::Wide(cipher) if associated.is_empty() => {
                let (data, tag) = data.split_last_chunk_mut().ok_or(Refused)?;
                cipher.open(nonce, data, tag)?;
                Ok(data)
            }
            #[cfg(target_arch = "x86_64")]
            Inner::Wide(cipher) => open(&cipher.with_key(aws_lc)?, nonce, associated, data),
            Inner::AwsLc(key) => open(key, nonce, associated, data),
        }
    }
}

fn aws_lc(bytes: &[u8; KEY]) -> Result<LessSafeKey, Refused> {
    Ok(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| Refused)?))
}

fn seal(
    key: &LessSafeKey,
    nonce: [u8; NONCE],
    associated: &[u8],
    data: &mut [u8],
) -> Result<[u8; TAG], Refused> {
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(associated), data).map_err(|_| Refused)?;
    tag.as_ref().try_into().map_err(|_| Refused)
}

fn open<'a>(
    key: &LessSafeKey,
    nonce: [u8; NONCE],
    associated: &[u8],
    data: &'a mut [u8],
) -> Result<&'a mut [u8], Refused> {
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.open_in_place(nonce, Aad::from(associated), data).map_err(|_| Refused)
}
