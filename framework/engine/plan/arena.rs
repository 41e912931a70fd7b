//! Where each buffer lies in the arena: offline interval colouring, largest buffer first, best fit.
//!
//! (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, greedy by size.)

/// A buffer that steps `first..=last` use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub first: usize,
    pub last: usize,
    /// Bytes, a multiple of 64.
    pub size: usize,
}

/// Offset of each interval, and bytes in all. Intervals that share a step share no byte.
pub fn colour(intervals: &[Interval]) -> (Vec<usize>, usize) {
    let mut by_size: Vec<usize> = (0..intervals.len()).collect();
    by_size.sort_by_key(|&i| (std::cmp::Reverse(intervals[i].size), intervals[i].first));
    let mut offsets = vec![0usize; intervals.len()];
    // Placed intervals by offset.
    let mut placed: Vec<usize> = Vec::with_capacity(intervals.len());
    let mut total = 0;
    for &i in &by_size {
        let me = intervals[i];
        let (mut best, mut best_gap, mut end) = (None, usize::MAX, 0);
        for &p in &placed {
            let other = intervals[p];
            if other.last < me.first || me.last < other.first {
                continue;
            }
            let gap = offsets[p].saturating_sub(end);
            if gap >= me.size && gap < best_gap {
                (best, best_gap) = (Some(end), gap);
            }
            end = end.max(offsets[p] + other.size);
        }
        offsets[i] = best.unwrap_or(end);
        total = total.max(offsets[i] + me.size);
        let at = placed.partition_point(|&p| offsets[p] <= offsets[i]);
        placed.insert(at, i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(intervals: &[Interval]) -> usize {
        let (offsets, total) = colour(intervals);
        for (i, a) in intervals.iter().enumerate() {
            assert!(offsets[i] + a.size <= total);
            for (j, b) in intervals.iter().enumerate().skip(i + 1) {
                let together = a.first <= b.last && b.first <= a.last;
                let apart = offsets[i] + a.size <= offsets[j] || offsets[j] + b.size <= offsets[i];
                assert!(!together || apart, "{a:?} at {} and {b:?} at {}", offsets[i], offsets[j]);
            }
        }
        total
    }

    #[test]
    fn buffers_that_live_together_never_share_bytes() {
        let mut seed = 1u64;
        let mut next = |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        for _ in 0..200 {
            let n = 1 + next(30);
            let intervals: Vec<Interval> = (0..n)
                .map(|_| {
                    let first = next(20);
                    Interval { first, last: first + next(6), size: 64 * (1 + next(9)) }
                })
                .collect();
            check(&intervals);
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let chain: Vec<Interval> = (0..10).map(|i| Interval { first: i, last: i + 1, size: 64 }).collect();
        assert_eq!(check(&chain), 128);
    }
}
