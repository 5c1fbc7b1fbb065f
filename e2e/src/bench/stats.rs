//! Medians with their spread.

use serde::Serialize;

use crate::random::Random;

/// What repeated measurements of one thing come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The middle one; the mean of the two in the middle if their number is even.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
    /// How many there were.
    pub(crate) count: usize,
}

impl Summary {
    /// Of these, in any order; nothing if there are none. What is no number is left out.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: middle(&sorted), min, max, count: sorted.len() })
    }
}

/// How often the turns are drawn anew for [`ratio_between`].
const DRAWS: usize = 1000;

/// Between what the ratio of the medians of `a` and `b` lies with 95 % certainty, as far as these turns tell: the
/// percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13) over pairs of turns, since
/// those that were measured one after the other saw the same machine. Nothing if there are fewer than three.
pub(crate) fn ratio_between(a: &[f64], b: &[f64]) -> Option<[f64; 2]> {
    let turns = a.len().min(b.len());
    if turns < 3 {
        return None;
    }
    let mut random = Random::new(1);
    let mut ratios = Vec::new();
    for _ in 0..DRAWS {
        let drawn: Vec<_> = std::iter::repeat_with(|| random.below(turns)).take(turns).collect();
        let median =
            |values: &[f64]| Summary::of(&drawn.iter().map(|&turn| values[turn]).collect::<Vec<_>>());
        ratios.push(median(a)?.median / median(b)?.median);
    }
    Some([percentile(&ratios, 0.025)?, percentile(&ratios, 0.975)?])
}

fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// The value below which `share` (0 to 1) of them are, by the nearest rank; nothing if there are none.
pub(crate) fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(odd, Summary { median: 2.0, min: 1.0, max: 3.0, count: 3 });
        assert_eq!(Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[f64::NAN, 5.0]).unwrap().count, 1);
        assert_eq!(Summary::of(&[f64::NAN]), None);
    }

    #[test]
    fn a_ratio_is_known_as_well_as_its_turns_agree() {
        let wide: Vec<f64> = (0..30).map(|n| 100.0 + f64::from(n * 7 % 30)).collect();
        let more = |by: f64| wide.iter().map(|value| value * by).collect::<Vec<_>>();
        let [low, high] = ratio_between(&more(1.2), &wide).unwrap();
        assert!((low - 1.2).abs() < 1e-9 && (high - 1.2).abs() < 1e-9, "turns are compared with their own");
        let mut other = more(1.02);
        other.reverse();
        let [low, high] = ratio_between(&other, &wide).unwrap();
        assert!(low < 1.0 && high > 1.0 && high < 1.15, "{low} {high}");
        assert_eq!(ratio_between(&[1.0, 2.0], &wide), None);
    }

    #[test]
    fn percentiles_are_values_that_were_there() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 1.0), Some(100.0));
        assert_eq!(percentile(&[7.0], 0.0), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
