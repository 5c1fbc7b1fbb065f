//! Keys and signatures: Ed25519 (RFC 8032) for statements, X25519 public keys for lanes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Why a text is not a key or signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not base64 of the right number of bytes.
    #[error("not a {what}: expected {bytes} bytes in base64")]
    Encoding {
        /// What was expected.
        what: &'static str,
        /// How many bytes it has.
        bytes: usize,
    },
    /// The bytes are no point of the curve, or one of small order, under which anything would verify.
    #[error("not a {what}: the bytes are not a usable point of the curve")]
    Weak {
        /// What was expected.
        what: &'static str,
    },
    /// The system's random number source failed.
    #[error("cannot make a key: the system's random source failed: {0}")]
    Random(String),
}

fn decode<const N: usize>(text: &str, what: &'static str) -> Result<[u8; N], KeyError> {
    let error = || KeyError::Encoding { what, bytes: N };
    // 4 characters of base64 for every 3 bytes, padded: anything else is refused before it is decoded.
    if text.len() != N.div_ceil(3) * 4 {
        return Err(error());
    }
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| error())?);
    bytes.as_slice().try_into().map_err(|_| error())
}

macro_rules! text_serde {
    ($type:ident) => {
        impl TryFrom<String> for $type {
            type Error = KeyError;
            fn try_from(text: String) -> Result<Self, KeyError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&STANDARD.encode(self.as_bytes()))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

/// An Ed25519 public key: the root's or a cluster's. Base64 as text. Never a point of small order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

text_serde!(PublicKey);

impl PublicKey {
    /// The key with these 32 bytes (RFC 8032 section 5.1.5).
    ///
    /// # Errors
    /// If they are no point of the curve or one of small order.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        let weak = || KeyError::Weak { what: "public key" };
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| weak())?;
        if key.is_weak() { Err(weak()) } else { Ok(Self(bytes)) }
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` is this key's over `message`. Strict (no malleable signatures).
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
        })
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(decode(text, "public key")?)
    }
}

/// An Ed25519 signature; base64 as text.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signature([u8; 64]);

text_serde!(Signature);

impl Signature {
    /// The 64 bytes of the signature.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl FromStr for Signature {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text, "signature").map(Self)
    }
}

/// The X25519 public key of one lane, as WireGuard prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LaneKey([u8; 32]);

text_serde!(LaneKey);

impl LaneKey {
    /// The key with these 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for LaneKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text, "lane key").map(Self)
    }
}

macro_rules! signing_key {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $type(SigningKey);

        impl $type {
            /// A fresh key from the system's random source.
            ///
            /// # Errors
            /// If that source fails.
            pub fn generate() -> Result<Self, KeyError> {
                let mut seed = Zeroizing::new([0; 32]);
                getrandom::fill(seed.as_mut_slice()).map_err(|e| KeyError::Random(e.to_string()))?;
                Ok(Self(SigningKey::from_bytes(&seed)))
            }

            /// The key of this seed (RFC 8032 section 5.1.5).
            #[must_use]
            pub fn from_seed(seed: &[u8; 32]) -> Self {
                Self(SigningKey::from_bytes(seed))
            }

            /// Reads the key as [`Self::to_secret_text`] wrote it.
            ///
            /// # Errors
            /// If it is not base64 of 32 bytes; the text is not quoted.
            pub fn from_secret_text(text: &str) -> Result<Self, KeyError> {
                let seed = Zeroizing::new(decode::<32>(text, $what)?);
                Ok(Self(SigningKey::from_bytes(&seed)))
            }

            /// The secret seed in base64: for a file of mode 0600, never for a log.
            #[must_use]
            pub fn to_secret_text(&self) -> Zeroizing<String> {
                Zeroizing::new(STANDARD.encode(self.0.as_bytes()))
            }

            /// The public half.
            #[must_use]
            pub fn public(&self) -> PublicKey {
                PublicKey(self.0.verifying_key().to_bytes())
            }

            /// The secret seed as PKCS #8 (RFC 8410), for TLS.
            #[must_use]
            pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
                // SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING { OCTET STRING seed } }
                const HEADER: [u8; 16] =
                    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
                let mut der = Zeroizing::new(Vec::with_capacity(48));
                der.extend_from_slice(&HEADER);
                der.extend_from_slice(self.0.as_bytes());
                der
            }

            pub(crate) fn sign(&self, message: &[u8]) -> Signature {
                Signature(self.0.sign(message).to_bytes())
            }
        }

        impl fmt::Debug for $type {
            /// The secret half is never printed.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self.public())
            }
        }
    };
}

signing_key!(
    /// The root's secret key: signs grants, is kept offline, names the cluster set.
    RootKey,
    "root key"
);

signing_key!(
    /// A cluster's secret key: signs the records of its nodes and proves the cluster to the broker.
    ClusterKey,
    "cluster key"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let key = ClusterKey::from_seed(&[7; 32]);
        let secret = key.to_secret_text();
        assert!(!format!("{key:?}").contains(secret.as_str()));
        assert_eq!(ClusterKey::from_secret_text(&secret).unwrap().public(), key.public());
        let error = ClusterKey::from_secret_text("c2VjcmV0").unwrap_err().to_string();
        assert!(!error.contains("c2VjcmV0"), "{error}");
    }

    #[test]
    fn weak_and_malformed_keys_are_refused() {
        // The identity point: every signature of a suitable form verifies under it.
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(identity), Err(KeyError::Weak { what: "public key" }));
        for text in ["", "AA==", "!", &"A".repeat(43), &"A".repeat(44_000)] {
            assert!(text.parse::<PublicKey>().is_err());
            assert!(text.parse::<Signature>().is_err());
        }
    }

    #[test]
    fn signatures_bind_key_and_message() {
        let (a, b) = (RootKey::from_seed(&[1; 32]), RootKey::from_seed(&[2; 32]));
        let signature = a.sign(b"one");
        assert!(a.public().verifies(b"one", &signature));
        assert!(!a.public().verifies(b"two", &signature));
        assert!(!b.public().verifies(b"one", &signature));
    }
}
