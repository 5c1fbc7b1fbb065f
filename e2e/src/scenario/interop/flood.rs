//! Handshake initiations of a stranger, with a first MAC that is right: what brings a responder under load.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac};

use crate::netns::Netns;

/// The stranger's address, in podspan's namespace.
pub(super) const STRANGER: &str = "192.0.2.66";

/// How many are sent in a row, and the pause after them: some 40,000 a second. wireguard-go is under load for a second
/// once 128 wait, however few there are on average.
const BURST: u32 = 256;
const PAUSE: Duration = Duration::from_millis(6);

/// The longest that it goes on.
const MOST: Duration = Duration::from_secs(60);

/// A flood that ends when it is dropped.
#[derive(Debug)]
pub(super) struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Flood {
    /// Begins to send to `target`, whose public key is `key`.
    pub(super) fn start(netns: &Netns, target: SocketAddrV4, key: &[u8; 32]) -> Result<Self> {
        let from: SocketAddr = format!("{STRANGER}:0").parse()?;
        let socket = netns.enter(|| UdpSocket::bind(from).context("the stranger's address"))?;
        let (key, mut message) = (*key, initiation(key));
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let begin = Instant::now();
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !until.load(Ordering::Relaxed) && begin.elapsed() < MOST {
                for _ in 0..BURST {
                    // Each from a sender of its own, so that none is taken for a repetition.
                    sent += 1;
                    stamp(&mut message, sent as u32, &key);
                    socket.send_to(&message, target).ok();
                }
                std::thread::sleep(PAUSE);
            }
            sent
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it and tells how many there were.
    pub(super) fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// A handshake initiation (WireGuard paper, section 5.4.2) that nobody can decrypt.
fn initiation(key: &[u8; 32]) -> [u8; 148] {
    let mut message = [0x5a; 148];
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    message[132..].fill(0);
    stamp(&mut message, 0, key);
    message
}

/// Writes the sender's index, and the first MAC over it all (section 5.4.4): BLAKE2s with 16 bytes, keyed with the hash of
/// `mac1----` and the responder's public key.
fn stamp(message: &mut [u8; 148], sender: u32, key: &[u8; 32]) {
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    let hash = Blake2s256::new().chain_update(b"mac1----").chain_update(key).finalize();
    let mut mac = Blake2sMac::<U16>::new_from_slice(&hash).expect("a hash of 32 bytes is a key");
    mac.update(&message[..116]);
    message[116..132].copy_from_slice(&mac.finalize_fixed());
}
