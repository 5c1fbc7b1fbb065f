//! What ChaCha20-Poly1305 costs on this machine by itself: what no WireGuard can do without.

use anyhow::{Result, anyhow};
use podspan_aead::{Implementation, Key, NONCE, TAG};

use super::cpu;
use crate::tunnel::TUNNEL_MTU;

/// How many packets are sealed and opened: a tenth of a second or two.
const PACKETS: u64 = 50_000;

/// CPU seconds for sealing and opening, together, a GB (10^9 bytes) in packets of the tunnel's MTU. podspan uses
/// [`Implementation::best`]; aws-lc is as quick as the crate ring, which others use.
pub(crate) fn seconds_per_gb(implementation: Implementation) -> Result<f64> {
    let broken = |_| anyhow!("{implementation} does not open what it has sealed");
    let key = Key::with(implementation, &[7; 32]).map_err(broken)?;
    let length = TUNNEL_MTU as usize;
    let mut buffer = vec![0x5a; length + TAG];
    let begin = cpu::of_thread()?;
    for number in 0..PACKETS {
        let (packet, tag) = buffer.split_at_mut(length);
        tag.copy_from_slice(&key.seal(nonce(number), &[], packet).map_err(broken)?);
        key.open(nonce(number), &[], &mut buffer).map_err(broken)?;
    }
    let took = cpu::of_thread()? - begin;
    Ok(took.as_secs_f64() / (PACKETS as f64 * f64::from(TUNNEL_MTU)) * 1e9)
}

/// As WireGuard counts (paper, section 5.4.6).
fn nonce(number: u64) -> [u8; NONCE] {
    let mut bytes = [0; NONCE];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crypto_has_a_price() {
        for implementation in [Implementation::best(), Implementation::AwsLc] {
            let cost = seconds_per_gb(implementation).unwrap();
            assert!(cost > 0.05 && cost < 1000.0, "{implementation}: {cost}");
        }
    }
}
