//! From what a value held to its scale and zero point.

use crate::calibrate::{BINS, Stats};
use crate::error::{Error, Result};
use crate::select::moves_values;
use lacuna_ir::{Graph, Id, IdVec, ValueId};

/// Steps between the ends of eight bits.
const STEPS: f32 = 255.0;
/// Levels of a magnitude that [`RangeRule::Entropy`] compares with.
const LEVELS: usize = 128;

/// How a range comes from what was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RangeRule {
    MinMax,
    /// This share of the magnitudes lies within, 0 to 1.
    Percentile(f64),
    /// The range whose eight-bit values are distributed most like the values themselves (Kullback–Leibler; Migacz,
    /// "8-bit inference with TensorRT", GTC 2017).
    Entropy,
}

/// Scale and zero point of u8 values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub scale: f32,
    pub zero: u8,
}

/// Scale and zero point of every value that becomes eight-bit.
pub struct Ranges(pub IdVec<ValueId, Option<Scale>>);

impl Ranges {
    pub fn none(g: &Graph) -> Ranges {
        Ranges(IdVec::filled(None, g.value_name.len()))
    }

    /// Values that ops only move share one range. A value that was not measured stays f32.
    ///
    /// # Errors
    /// [`Error::Options`] for a percentile outside 0..=1.
    pub fn new(
        g: &Graph,
        chosen: &IdVec<ValueId, bool>,
        stats: &IdVec<ValueId, Option<Stats>>,
        rule: RangeRule,
    ) -> Result<Ranges> {
        if let RangeRule::Percentile(p) = rule
            && !(0.0..=1.0).contains(&p)
        {
            return Err(Error::Options(format!("a percentile of {} is not in 0..=100", p * 100.0)));
        }
        let mut group: Vec<ValueId> = g.value_name.ids().collect();
        let root = |group: &[ValueId], mut v: ValueId| {
            while group[v.index()] != v {
                v = group[v.index()];
            }
            v
        };
        let measured = |v: ValueId| stats[v].as_ref().filter(|_| chosen[v]);
        for &op in g.order.iter().filter(|&&op| moves_values(g, op)) {
            let out = g.outputs_of(op)[0];
            for &v in g.inputs_of(op).iter().filter(|v| !v.is_none()) {
                if chosen[v] && chosen[out] {
                    let (a, b) = (root(&group, v), root(&group, out));
                    group[a.index()] = b;
                }
            }
        }
        let mut ends: IdVec<ValueId, [f32; 2]> = IdVec::filled([0.0; 2], g.value_name.len());
        for v in g.value_name.ids() {
            if let Some(stats) = measured(v) {
                let [lo, hi] = rule.ends(stats);
                let shared = &mut ends[root(&group, v)];
                *shared = [shared[0].min(lo), shared[1].max(hi)];
            }
        }
        let mut ranges = Ranges::none(g);
        for v in g.value_name.ids().filter(|&v| measured(v).is_some()) {
            let [lo, hi] = ends[root(&group, v)];
            let scale = ((hi - lo) / STEPS).max(1e-6 / STEPS);
            ranges.0[v] = Some(Scale { scale, zero: (-lo / scale).round().clamp(0.0, STEPS) as u8 });
        }
        Ok(ranges)
    }
}

impl RangeRule {
    /// Lowest and highest value; zero always lies between them.
    fn ends(self, stats: &Stats) -> [f32; 2] {
        let [lo, hi] = [stats.min.min(0.0), stats.max.max(0.0)];
        let limit = match self {
            RangeRule::MinMax => return [lo, hi],
            RangeRule::Percentile(p) => percentile_bin(&stats.histogram, p),
            RangeRule::Entropy => entropy_bin(&stats.histogram, lo < 0.0),
        };
        let limit = stats.largest() * limit as f32 / BINS as f32;
        [lo.max(-limit), hi.min(limit)]
    }
}

/// The first number of bins that holds this share of the counts.
fn percentile_bin(histogram: &[u64], share: f64) -> usize {
    let all: u64 = histogram.iter().sum();
    let mut seen = 0;
    for (i, n) in histogram.iter().enumerate() {
        seen += n;
        if seen as f64 >= all as f64 * share {
            return i + 1;
        }
    }
    histogram.len()
}

/// The number of bins whose distribution, everything above counted into the last of them, is nearest to its own
/// rounding to [`LEVELS`] levels (twice as many where values have one sign only).
fn entropy_bin(histogram: &[u64], two_signs: bool) -> usize {
    let levels = if two_signs { LEVELS } else { 2 * LEVELS };
    let all: u64 = histogram.iter().sum();
    let (mut best, mut least) = (histogram.len(), f64::INFINITY);
    let mut within: u64 = histogram.iter().take(levels).sum();
    for bins in (levels..=histogram.len()).step_by(8) {
        if bins > levels {
            within += histogram[bins - 8..bins].iter().sum::<u64>();
        }
        let divergence = divergence(&histogram[..bins], all - within, levels);
        if divergence < least {
            (best, least) = (bins, divergence);
        }
    }
    best
}

/// Kullback-Leibler divergence of `bins` (with `above` added to the last) from the same in `levels` levels, each of which
/// spreads what it holds evenly over those of its bins that hold anything.
fn divergence(bins: &[u64], above: u64, levels: usize) -> f64 {
    let total = (bins.iter().sum::<u64>() + above) as f64;
    let held = total - above as f64;
    if total == 0.0 || held == 0.0 {
        return f64::INFINITY;
    }
    let mut sum = 0.0;
    for level in 0..levels {
        let (from, to) = (level * bins.len() / levels, (level + 1) * bins.len() / levels);
        let part = &bins[from..to];
        let filled = part.iter().filter(|&&n| n > 0).count() as f64;
        let even = part.iter().sum::<u64>() as f64 / filled.max(1.0) / held;
        for (i, &n) in part.iter().enumerate() {
            let n = n + if from + i + 1 == bins.len() { above } else { 0 };
            if n > 0 {
                let p = n as f64 / total;
                // A bin that is empty but for what lies above has no share of its own in the levels.
                sum += p * (p / even.max(1e-9)).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Magnitudes of a normal distribution with a few outliers at eight times the deviation.
    fn with_outliers() -> Vec<u64> {
        let density = |i: usize| (1e6 * (-0.5 * (i as f64 / 256.0).powi(2)).exp()) as u64;
        let mut histogram: Vec<u64> = (0..BINS).map(density).collect();
        histogram[BINS - 1] += 10;
        histogram
    }

    #[test]
    fn percentile_counts_from_zero() {
        let histogram = [5, 3, 1, 0, 1];
        assert_eq!(percentile_bin(&histogram, 0.5), 1);
        assert_eq!(percentile_bin(&histogram, 0.8), 2);
        assert_eq!(percentile_bin(&histogram, 0.9), 3);
        assert_eq!(percentile_bin(&histogram, 1.0), 5);
        assert_eq!(percentile_bin(&[], 0.9), 0);
    }

    #[test]
    fn entropy_cuts_outliers_and_keeps_flat_ranges() {
        let cut = entropy_bin(&with_outliers(), true);
        assert!((600..1700).contains(&cut), "cut at {cut} of {BINS}, a deviation is 256");
        assert_eq!(entropy_bin(&vec![100; BINS], true), BINS);
    }

    #[test]
    fn ends_hold_zero() {
        let mut stats = test_stats();
        assert_eq!((stats.min, stats.max), (1.0, 3.0));
        assert_eq!(RangeRule::MinMax.ends(&stats), [0.0, 3.0]);
        stats.histogram = vec![1; BINS];
        assert_eq!(RangeRule::Percentile(0.5).ends(&stats), [0.0, 1.5]);
        (stats.min, stats.max) = (-4.0, 1.0);
        assert_eq!(RangeRule::Percentile(0.5).ends(&stats), [-2.0, 1.0]);
    }

    fn test_stats() -> Stats {
        let g = lacuna_ir::text::parse("input %x: f32[2]\n%y: f32[2] = Relu(%x)\noutput %y").unwrap();
        let mut observed = IdVec::filled(None, g.value_name.len());
        observed[g.inputs[0]] = Some(crate::calibrate::Observed { channels: None });
        let sample = [lacuna_ir::Tensor::from_f32(&[2], vec![1.0, 3.0])];
        let stats =
            crate::calibrate::calibrate(&g, &observed, &[sample.to_vec()], false, Some(1), &mut |_, _, _| ())
                .unwrap();
        stats[g.inputs[0]].clone().unwrap()
    }
}
