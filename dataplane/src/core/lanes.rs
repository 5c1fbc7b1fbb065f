//! Which lanes of two nodes talk to each other.

/// The remote lane through which local lane `local` sends, when the peer has `remote_lanes` lanes.
#[must_use]
pub fn through(local: usize, remote_lanes: usize) -> usize {
    local % remote_lanes.max(1)
}

/// Whether local lane `a` of a node with `n_a` lanes and lane `b` of a peer with `n_b` lanes hold a
/// tunnel: one of them sends through the other.
#[must_use]
pub fn paired(a: usize, n_a: usize, b: usize, n_b: usize) -> bool {
    b == through(a, n_b) || a == through(b, n_a)
}

/// All pairs (local lane, remote lane) that hold a tunnel, in order: as many as the larger number of lanes.
pub fn pairs(n_a: usize, n_b: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n_a).flat_map(move |a| (0..n_b).filter(move |&b| paired(a, n_a, b, n_b)).map(move |b| (a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row<'a> = (usize, usize, &'a [(usize, usize)]);

    #[test]
    fn pairs_by_table() {
        let table: [Row<'_>; 6] = [
            (1, 1, &[(0, 0)]),
            (1, 4, &[(0, 0), (0, 1), (0, 2), (0, 3)]),
            (4, 2, &[(0, 0), (1, 1), (2, 0), (3, 1)]),
            (2, 3, &[(0, 0), (0, 2), (1, 1)]),
            (3, 2, &[(0, 0), (1, 1), (2, 0)]),
            (2, 2, &[(0, 0), (1, 1)]),
        ];
        for (n_a, n_b, expected) in table {
            assert_eq!(pairs(n_a, n_b).collect::<Vec<_>>(), expected, "{n_a} x {n_b}");
        }
    }

    #[test]
    fn both_sides_agree_and_nobody_is_left_out() {
        for n_a in 1..=16 {
            for n_b in 1..=16 {
                let here: Vec<_> = pairs(n_a, n_b).collect();
                let mut there: Vec<_> = pairs(n_b, n_a).map(|(b, a)| (a, b)).collect();
                there.sort_unstable();
                assert_eq!(here, there, "{n_a} x {n_b}");
                assert_eq!(here.len(), n_a.max(n_b));
                assert!((0..n_a).all(|a| here.contains(&(a, through(a, n_b)))));
                assert!((0..n_b).all(|b| here.contains(&(through(b, n_a), b))));
            }
        }
    }
}
