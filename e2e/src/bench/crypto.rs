//! What ChaCha20-Poly1305 costs on this machine by itself: what no WireGuard can do without.

use anyhow::{Result, anyhow};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::cpu;
use crate::tunnel::TUNNEL_MTU;

/// How many packets are sealed and opened: a tenth of a second or two.
const PACKETS: u64 = 50_000;

/// Bytes of an authentication tag (RFC 8439).
const TAG: usize = 16;

/// CPU seconds for sealing and opening, together, a GB (10^9 bytes) in packets of the tunnel's MTU, with ring as boringtun
/// does it.
pub(crate) fn seconds_per_gb() -> Result<f64> {
    let broken = |_| anyhow!("ring does not open what it has sealed");
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(broken)?);
    let length = TUNNEL_MTU as usize;
    let mut buffer = vec![0x5a; length + TAG];
    let begin = cpu::of_thread()?;
    for number in 0..PACKETS {
        let (packet, tag) = buffer.split_at_mut(length);
        let made = key.seal_in_place_separate_tag(nonce(number), Aad::from([]), packet).map_err(broken)?;
        tag.copy_from_slice(made.as_ref());
        key.open_in_place(nonce(number), Aad::from([]), &mut buffer).map_err(broken)?;
    }
    let took = cpu::of_thread()? - begin;
    Ok(took.as_secs_f64() / (PACKETS as f64 * f64::from(TUNNEL_MTU)) * 1e9)
}

/// As WireGuard counts (paper, section 5.4.6).
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn crypto_has_a_price() {
        let cost = super::seconds_per_gb().unwrap();
        assert!(cost > 0.05 && cost < 1000.0, "{cost}");
    }
}
