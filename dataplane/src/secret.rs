//! The secret half of a lane's key.

use std::fmt;

use podspan_wire::{KeyError, LaneKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// An X25519 secret key (RFC 7748): one lane's static key. Never printed; wiped from memory when dropped.
#[derive(Clone)]
pub struct LaneSecret(StaticSecret);

impl LaneSecret {
    /// The key with these 32 bytes; they are clamped when used, as RFC 7748 section 5 says.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// A fresh key.
    ///
    /// # Errors
    /// If the system's random source fails.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(|e| KeyError::Random(e.to_string()))?;
        Ok(Self::from_bytes(*bytes))
    }

    /// The 32 secret bytes: for a file of mode 0600, never for a log.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half, as the node's record announces it.
    #[must_use]
    pub fn public(&self) -> LaneKey {
        LaneKey::from_bytes(PublicKey::from(&self.0).to_bytes())
    }

    pub(crate) fn x25519(&self) -> &StaticSecret {
        &self.0
    }
}

impl fmt::Debug for LaneSecret {
    /// Names the key by its public half.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneSecret({})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_never_printed() {
        let secret = LaneSecret::from_bytes([0x42; 32]);
        let printed = format!("{secret:?}");
        assert!(printed.contains(&secret.public().to_string()));
        assert!(!printed.contains("66") && !printed.contains("42, "), "{printed}");
        assert_eq!(*secret.to_bytes(), [0x42; 32]);
    }

    #[test]
    fn the_public_half_is_that_of_rfc_7748() {
        // RFC 7748 section 6.1, Alice.
        let secret = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
            0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = LaneSecret::from_bytes(secret).public();
        assert_eq!(public.as_bytes()[..4], [0x85, 0x20, 0xf0, 0x09]);
    }
}
