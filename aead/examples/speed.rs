//! Time per packet of each implementation that this processor has: `cargo run --release -p podspan-aead --example
//! speed`. The best of many rounds, so that what else the machine does hardly counts.

use std::hint::black_box;
use std::time::Instant;

use podspan_aead::{Implementation, Key, Refused, TAG};

const ROUNDS: usize = 40;
const PACKETS: usize = 2000;

/// The best round's time for a packet, ns.
fn best(mut work: impl FnMut() -> Result<(), Refused>) -> Result<f64, Refused> {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..PACKETS {
            work()?;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / PACKETS as f64);
    }
    Ok(best)
}

fn main() -> Result<(), Refused> {
    println!("{:>8} {:>6} {:>12} {:>12}", "", "bytes", "seal, ns", "open, ns");
    for implementation in [Implementation::AwsLc, Implementation::Wide] {
        if implementation == Implementation::Wide && Implementation::best() != implementation {
            println!("this processor has no AVX-512 with IFMA");
            continue;
        }
        let key = Key::with(implementation, &[7; 32])?;
        for length in [0, 64, 200, 400, 576, 1420, 8920] {
            let mut data = vec![1; length];
            let mut sealed = data.clone();
            sealed.extend(key.seal([0; 12], &[], &mut sealed.clone()[..length])?);
            sealed[..length].copy_from_slice(&{
                let mut copy = data.clone();
                key.seal([0; 12], &[], &mut copy)?;
                copy
            });
            let mut number = 0_u64;
            let seal = best(|| {
                number += 1;
                let mut nonce = [0; 12];
                nonce[4..].copy_from_slice(&number.to_le_bytes());
                black_box(key.seal(nonce, &[], black_box(&mut data))?);
                Ok(())
            })?;
            let mut room = vec![0; length + TAG];
            let open = best(|| {
                room.copy_from_slice(&sealed);
                black_box(key.open([0; 12], &[], black_box(&mut room))?);
                Ok(())
            })?;
            println!("{:>8} {length:>6} {seal:>12.1} {open:>12.1}", format!("{implementation:?}"));
        }
    }
    Ok(())
}
