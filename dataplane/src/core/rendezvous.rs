//! Rendezvous hashing (Thaler and Ravishankar, 1998): every candidate gets a weight for the flow, the
//! highest wins; when a candidate is lost, only its own flows move. No state is kept, so all lanes, all
//! nodes and all restarts agree.
//!
//! The hash is not secret: a pod may choose its ports so that a flow takes a certain gateway, which gains
//! it nothing.

/// Mixes 64 bits so that each depends on all (the finalizer of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Folds one word into a hash.
pub(crate) fn fold(hash: u64, word: u64) -> u64 {
    mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ word)
}

/// The number that stands for a candidate, from its name.
pub(crate) fn seed(name: &[u8]) -> u64 {
    name.chunks(8).fold(name.len() as u64, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        fold(hash, u64::from_le_bytes(word))
    })
}

/// The weight of the candidate with this seed for the flow with this hash.
pub(crate) fn weight(flow: u64, seed: u64) -> u64 {
    fold(flow, seed)
}

/// The candidate of the highest weight; of equal ones the first, so give them in a fixed order.
pub(crate) fn choose<T: Copy>(flow: u64, candidates: impl Iterator<Item = (T, u64)>) -> Option<T> {
    let mut best: Option<(T, u64)> = None;
    for (candidate, seed) in candidates {
        let weight = weight(flow, seed);
        if best.is_none_or(|(_, highest)| weight > highest) {
            best = Some((candidate, weight));
        }
    }
    best.map(|(candidate, _)| candidate)
}

/// The same for candidates of different weights: each wins its part of the flows (Schindelhauer and Schomaker,
/// "Weighted distributed hash tables", 2005, the logarithmic method). With equal weights it is [`choose`].
pub(crate) fn choose_weighted<T: Copy>(
    flow: u64,
    candidates: impl Iterator<Item = (T, u64, u8)>,
) -> Option<T> {
    let mut best: Option<(T, f64)> = None;
    for (candidate, seed, share) in candidates {
        // Within (0, 1]: the place of the hash among all there are.
        let place = (weight(flow, seed) as f64 + 1.0) / 18_446_744_073_709_551_616.0;
        let distance = -place.ln() / f64::from(share.max(1));
        if best.is_none_or(|(_, least)| distance < least) {
            best = Some((candidate, distance));
        }
    }
    best.map(|(candidate, _)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(n: usize) -> Vec<(usize, u64)> {
        (0..n).map(|i| (i, seed(format!("beta/node-{i}").as_bytes()))).collect()
    }

    #[test]
    fn only_the_flows_of_a_lost_candidate_move() {
        let all = candidates(5);
        let without: Vec<_> = all.iter().copied().filter(|&(i, _)| i != 2).collect();
        for flow in (0..10_000).map(|n| fold(1, n)) {
            let before = choose(flow, all.iter().copied()).unwrap();
            let after = choose(flow, without.iter().copied()).unwrap();
            assert!(before == after || before == 2, "flow {flow} moved from {before} to {after}");
        }
    }

    #[test]
    fn flows_are_spread_evenly_even_when_they_differ_in_one_bit() {
        let all = candidates(4);
        let mut counts = [0_u32; 4];
        for port in 0..40_000 {
            counts[choose(fold(7, port), all.iter().copied()).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&n| (9_500..10_500).contains(&n)), "{counts:?}");
    }

    #[test]
    fn the_choice_never_changes_between_versions() {
        // A mixed cluster set must agree: these values are part of the protocol between lanes and restarts.
        assert_ne!(seed(b"beta/node-1"), seed(b"beta/node-10"));
        let picks: Vec<_> = (0..12).map(|n| choose(fold(0, n), candidates(3).into_iter()).unwrap()).collect();
        assert_eq!(picks, PICKS);
    }

    const PICKS: [usize; 12] = [1, 2, 2, 0, 1, 0, 2, 2, 2, 1, 1, 0];

    #[test]
    fn weights_are_honoured_and_only_lost_flows_move() {
        let weighted = |shares: &[u8]| -> Vec<(usize, u64, u8)> {
            candidates(shares.len())
                .into_iter()
                .zip(shares)
                .map(|((i, seed), &share)| (i, seed, share))
                .collect()
        };
        let (all, without) = (weighted(&[10, 20, 70]), weighted(&[10, 20]));
        let mut counts = [0_i32; 3];
        for flow in (0..30_000).map(|n| fold(5, n)) {
            let before = choose_weighted(flow, all.iter().copied()).unwrap();
            counts[before] += 1;
            let after = choose_weighted(flow, without.iter().copied()).unwrap();
            assert!(before == after || before == 2);
        }
        for (count, part) in counts.into_iter().zip([3_000, 6_000, 21_000]) {
            assert!((count - part).abs() < part / 10, "{counts:?}");
        }
        for flow in (0..1000).map(|n| fold(9, n)) {
            let same = weighted(&[10, 10, 10, 10]);
            let plain = choose(flow, same.iter().map(|&(i, seed, _)| (i, seed)));
            assert_eq!(choose_weighted(flow, same.into_iter()), plain);
        }
    }

    #[test]
    fn nobody_is_chosen_from_nobody() {
        assert_eq!(choose::<usize>(1, [].into_iter()), None);
    }
}
