//! Keys that are the same in every run: the tunnels hold nothing but test traffic.

use x25519_dalek::{PublicKey, StaticSecret};

/// The secret of lane `lane` of end `number`, as `dataplane/examples/node.rs` derives it.
pub(crate) fn secret(number: u8, lane: u8) -> [u8; 32] {
    [number + lane * 8; 32]
}

/// The public key that belongs to a secret.
pub(crate) fn public(secret: [u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(secret)).to_bytes()
}

/// As the configuration protocol writes keys.
pub(super) fn hex(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_that_of_rfc_7748() {
        // Section 6.1, Bob's keys.
        let mut secret = [0; 32];
        let text = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
        for (i, byte) in secret.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
        }
        assert_eq!(hex(&secret), text);
        let expected = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
        assert_eq!(hex(&public(secret)), expected);
    }
}
