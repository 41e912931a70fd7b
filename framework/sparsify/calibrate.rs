//! What values of a graph hold, measured by running it on samples.

use crate::error::{Error, Result};
use lacuna_engine::{Options, Session};
use lacuna_ir::{DType, Def, Graph, IdVec, Tensor, ValueId};

/// Bins of a histogram of magnitudes.
pub const BINS: usize = 2048;

/// What is to be measured of a value, besides its range.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// Sums per channel, which are this axis.
    pub channels: Option<usize>,
}

/// What a value held over all samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    pub min: f32,
    pub max: f32,
    /// Of magnitudes, over 0 to the largest; empty if not asked for. Zeros are left out: they cost nothing at any range.
    pub histogram: Vec<u64>,
    /// Per channel: sum, sum of squares.
    sums: Vec<[f64; 2]>,
    /// Elements per channel.
    count: f64,
}

impl Stats {
    fn new() -> Stats {
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        Stats { min, max, histogram: Vec::new(), sums: Vec::new(), count: 0.0 }
    }

    pub fn largest(&self) -> f32 {
        self.min.abs().max(self.max.abs())
    }

    /// Mean of each channel; zeros where channels were not measured, or are not that many.
    pub fn channel_mean(&self, channels: usize) -> Vec<f64> {
        self.per_channel(channels, 0, 0.0)
    }

    /// Mean square of each channel; ones where channels were not measured, or are not that many.
    pub fn channel_energy(&self, channels: usize) -> Vec<f64> {
        self.per_channel(channels, 1, 1.0)
    }

    fn per_channel(&self, channels: usize, which: usize, unknown: f64) -> Vec<f64> {
        match self.sums.len() == channels && self.count > 0.0 {
            true => self.sums.iter().map(|s| s[which] / self.count).collect(),
            false => vec![unknown; channels],
        }
    }

    fn add(&mut self, t: &Tensor, x: &[f32], channels: Option<usize>) {
        for &x in x {
            self.min = self.min.min(x);
            self.max = self.max.max(x);
        }
        let Some(axis) = channels.filter(|&axis| axis < t.dims.len()) else { return };
        let (n, inner) = (t.dims[axis], t.dims[axis + 1..].iter().product::<usize>());
        self.sums.resize(n, [0.0; 2]);
        if n == 0 || inner == 0 {
            return;
        }
        for (run, x) in x.chunks_exact(inner).enumerate() {
            let sum = &mut self.sums[run % n];
            sum[0] += x.iter().map(|&x| f64::from(x)).sum::<f64>();
            sum[1] += x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        }
        self.count += (x.len() / n) as f64;
    }

    fn add_to_histogram(&mut self, x: &[f32]) {
        self.histogram.resize(BINS, 0);
        let scale = BINS as f32 / self.largest().max(f32::MIN_POSITIVE);
        for x in x.iter().map(|x| x.abs()).filter(|&x| x > 0.0) {
            self.histogram[((x * scale) as usize).min(BINS - 1)] += 1;
        }
    }
}

/// Runs `g` on every sample and measures each value that `observed` names; `each` sees them, once. Histograms need a second round, because they
/// need the range.
pub fn calibrate(
    g: &Graph,
    observed: &IdVec<ValueId, Option<Observed>>,
    samples: &[Vec<Tensor>],
    histograms: bool,
    threads: Option<usize>,
    each: &mut dyn FnMut(ValueId, &Tensor, &[f32]),
) -> Result<IdVec<ValueId, Option<Stats>>> {
    let mut stats: IdVec<ValueId, Option<Stats>> = IdVec::filled(None, g.value_name.len());
    let f32s = |v: &ValueId| observed[*v].is_some() && g.value_dtype[*v] == DType::F32;
    let made: Vec<ValueId> =
        observed.ids().filter(f32s).filter(|&v| matches!(g.value_def[v], Def::Op(..))).collect();
    let given: Vec<(usize, ValueId)> =
        g.inputs.iter().copied().enumerate().filter(|(_, v)| f32s(v)).collect();
    let mut session = match made.is_empty() {
        true => None,
        false => {
            let probe = Graph { outputs: made.clone(), ..g.clone() };
            Some(Session::new(&probe, &Options { threads, ..Options::default() })?)
        }
    };
    for round in 0..1 + usize::from(histograms) {
        for (i, sample) in samples.iter().enumerate() {
            let outputs = match &mut session {
                Some(session) => {
                    session.run(sample).map_err(|e| Error::Sample { sample: i, why: e.to_string() })?
                }
                None => Vec::new(),
            };
            let inputs = given.iter().filter_map(|&(at, v)| Some((v, sample.get(at)?)));
            for (v, t) in made.iter().copied().zip(&outputs).chain(inputs) {
                let Some(x) = t.as_f32() else { continue };
                if let Some(bad) = x.iter().find(|x| !x.is_finite()) {
                    let why = format!("'{}' holds {bad}: a range needs finite numbers", g.value_name[v]);
                    return Err(Error::Sample { sample: i, why });
                }
                let stats = stats[v].get_or_insert_with(Stats::new);
                match round {
                    0 => {
                        stats.add(t, x, observed[v].and_then(|o| o.channels));
                        each(v, t, x);
                    }
                    _ => stats.add_to_histogram(x),
                }
            }
        }
    }
    Ok(stats)
}
