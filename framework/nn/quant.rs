//! Quantisation-aware training: observers, integer grids, fake quantisation.
//!
//! Numerics follow PyTorch's observers, which SparseML's recipes mean: activations on an unsigned 8-bit affine
//! grid from a moving average of batch minima and maxima; weights on a signed 8-bit grid per output channel,
//! symmetric, `scale = max|w| / 127.5`. What a layer computes here is what `QuantizeLinear` / `DequantizeLinear`
//! rows of the captured graph say and what the integer engine runs.

use crate::buffer::Buffer;
use crate::ops::{self, Grid};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

/// Share of a new batch in the moving average of an observer (PyTorch's `averaging_constant`).
pub const AVERAGING: f32 = 0.01;

/// Smallest scale, so that an all-zero tensor has a grid (f32 epsilon, as in PyTorch).
const SCALE_MIN: f32 = f32::EPSILON;

/// What a forward pass does about quantisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Quant {
    /// Plain f32.
    #[default]
    Off,
    /// Fake quantisation; a training pass moves the observers.
    Observe,
    /// Fake quantisation on the ranges seen so far.
    Frozen,
}

/// Which statistics batch norm uses in a training pass; evaluation always uses the running ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Norm {
    #[default]
    Batch,
    /// The running statistics, no longer updated.
    Frozen,
}

/// How one forward pass runs: the part of a recipe's state that layers look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pass {
    pub quant: Quant,
    pub norm: Norm,
    /// Some weights are masked: in prunable weights the bits of +0.0 mean "masked", and open weights that are zero
    /// are -0.0, so that kernels may find the pattern of zeros in the weights.
    pub sparse: bool,
}

/// The unsigned 8-bit grid of an observed range.
pub fn activation_grid(min: f32, max: f32) -> Grid {
    let (min, max) = (min.min(0.0), max.max(0.0));
    let scale = ((max - min) / 255.0).max(SCALE_MIN);
    let zero = (-(min / scale).round_ties_even()).clamp(0.0, 255.0) as i32;
    Grid { scale, zero, lo: 0, hi: 255 }
}

/// What an observer knows: the range [min, max] of what it has seen (min > max until it saw something).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    pub range: [f32; 2],
    /// Whether it still learns.
    pub moves: bool,
}

impl Observed {
    /// After values between `lo` and `hi`.
    pub fn after(self, lo: f32, hi: f32) -> Observed {
        if !self.moves {
            return self;
        }
        let [old_lo, old_hi] = self.range;
        let blend = |old: f32, seen: f32| if old_lo > old_hi { seen } else { old + AVERAGING * (seen - old) };
        Observed { range: [blend(old_lo, lo), blend(old_hi, hi)], ..self }
    }

    /// The grid of the range; `None` before anything was seen.
    pub fn grid(self) -> Option<Grid> {
        let [lo, hi] = self.range;
        (lo <= hi).then(|| activation_grid(lo, hi))
    }
}

/// The symmetric signed 8-bit scale of a channel's range.
pub fn weight_scale(min: f32, max: f32) -> f32 {
    (max.max(-min).max(0.0) / 127.5).max(SCALE_MIN)
}

pub const WEIGHT_LO: i32 = -128;
pub const WEIGHT_HI: i32 = 127;

/// An activation with the scale of the grid it lies on, if it lies on one.
#[derive(Clone, Debug)]
pub struct Activation<const D: usize> {
    pub x: Tensor<D>,
    pub scale: Option<f32>,
}

impl<const D: usize> Activation<D> {
    pub fn plain(x: Tensor<D>) -> Self {
        Activation { x, scale: None }
    }

    /// Two ends for a branch; see [`ops::fork`].
    pub fn fork(self) -> (Self, Self) {
        let (a, b) = ops::fork(self.x);
        (Activation { x: a, scale: self.scale }, Activation { x: b, scale: self.scale })
    }
}

/// Quantises an activation. `range` is [min, max]; min > max until something was seen.
#[derive(Module, Debug)]
pub struct ActivationQuantizer {
    pub range: Buffer<1>,
}

impl ActivationQuantizer {
    pub fn new(device: &Device) -> Self {
        ActivationQuantizer { range: Buffer::new(Tensor::from_floats([f32::MAX, f32::MIN], device)) }
    }

    pub fn forward<const D: usize>(&self, x: Tensor<D>, pass: &Pass) -> Activation<D> {
        if pass.quant == Quant::Off {
            return Activation::plain(x);
        }
        let mut observed = self.observed(pass);
        if observed.moves && x.device().is_autodiff() {
            let seen = host(ops::range(x.clone()));
            observed = observed.after(seen[0], seen[1]);
            self.remember(Tensor::from_floats(observed.range, &self.range.get().device()));
        }
        let Some(grid) = observed.grid() else { return Activation::plain(x) };
        Activation { x: ops::fake_quant(x, grid), scale: Some(grid.scale) }
    }

    /// What has been seen, and whether this pass adds to it.
    pub fn observed(&self, pass: &Pass) -> Observed {
        let range = host(self.range.get());
        Observed { range: [range[0], range[1]], moves: pass.quant == Quant::Observe }
    }

    /// Keeps a range [2], and gives the scale of its grid if it has one.
    pub fn remember(&self, range: Tensor<1>) -> Option<f32> {
        self.range.set(range);
        let range = host(self.range.get());
        Observed { range: [range[0], range[1]], moves: false }.grid().map(|grid| grid.scale)
    }
}

/// Quantises a weight per output channel (axis 0). `range` is [min of each channel; max of each channel].
#[derive(Module, Debug)]
pub struct WeightQuantizer {
    pub range: Buffer<2>,
    /// One step of the grid in units of the stored weight, for each channel, as the last training pass had it; 0
    /// until there was one. (The grid is of the folded weight, which only the forward pass knows.)
    pub step: Buffer<1>,
}

impl WeightQuantizer {
    pub fn new(channels: usize, device: &Device) -> Self {
        let mut range = vec![f32::MAX; channels];
        range.extend(vec![f32::MIN; channels]);
        WeightQuantizer {
            range: Buffer::new(Tensor::from_data(TensorData::new(range, [2, channels]), device)),
            step: Buffer::new(Tensor::zeros([channels], device)),
        }
    }

    /// The weight on its grid, and the scale of each channel. `None` until a training pass has observed something.
    /// `fold` is what the stored weight was multiplied by to give `w`, if anything.
    pub fn forward<const D: usize>(
        &self,
        w: Tensor<D>,
        fold: Option<&Tensor<1>>,
        pass: &Pass,
    ) -> Option<(Tensor<D>, Vec<f32>)> {
        let training = w.device().is_autodiff();
        // Only a training pass notes steps, and while recording there are no values to read.
        let fold = fold.filter(|_| training).map(|f| host(f.clone().without_autodiff()));
        let scales = self.scales(|| host(ops::row_ranges(w.clone())), fold.as_deref(), training, pass)?;
        let w = ops::fake_quant_weight(w.clone(), scales_on(&scales, &w), None, WEIGHT_LO, WEIGHT_HI);
        Some((w, scales))
    }

    /// The stored weight of a training pass, quantised as it will be deployed, multiplied by `fold`, and divided by it
    /// again.
    pub fn forward_unfolded<const D: usize>(
        &self,
        w: Tensor<D>,
        fold: Tensor<1>,
        pass: &Pass,
    ) -> Option<Tensor<D>> {
        let by = host(fold.clone().without_autodiff());
        let seen = || {
            let mut seen = host(ops::row_ranges(w.clone()));
            let (min, max) = seen.split_at_mut(by.len());
            for ((min, max), f) in min.iter_mut().zip(max).zip(&by) {
                let ends = [*min * f, *max * f];
                (*min, *max) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
            }
            seen
        };
        let scales = self.scales(seen, Some(&by), w.device().is_autodiff(), pass)?;
        Some(ops::fake_quant_weight(w.clone(), scales_on(&scales, &w), Some(fold), WEIGHT_LO, WEIGHT_HI))
    }

    /// Scales of this pass. A training pass moves the range towards what is `seen` and notes the steps.
    fn scales(
        &self,
        seen: impl FnOnce() -> Vec<f32>,
        fold: Option<&[f32]>,
        training: bool,
        pass: &Pass,
    ) -> Option<Vec<f32>> {
        let mut range = host(self.range.get());
        let channels = range.len() / 2;
        if training && pass.quant == Quant::Observe {
            range = moving_average(&range, &seen(), range[0] > range[channels]);
            let device = self.range.get().device();
            self.range.set(Tensor::from_data(TensorData::new(range.clone(), [2, channels]), &device));
        }
        let (min, max) = range.split_at(channels);
        if min[0] > max[0] {
            return None;
        }
        let scales: Vec<f32> = min.iter().zip(max).map(|(&lo, &hi)| weight_scale(lo, hi)).collect();
        if training {
            let step = |(i, s): (usize, &f32)| match fold.map_or(1.0, |f| f[i].abs()) {
                0.0 => 0.0,
                f => s / f,
            };
            let steps: Vec<f32> = scales.iter().enumerate().map(step).collect();
            self.step.set(Tensor::from_floats(steps.as_slice(), &self.step.get().device()));
        }
        Some(scales)
    }
}

fn moving_average(old: &[f32], seen: &[f32], first: bool) -> Vec<f32> {
    old.iter()
        .zip(seen)
        .map(|(&old, &seen)| if first { seen } else { old + AVERAGING * (seen - old) })
        .collect()
}

/// Scales as a constant where `w` lives.
fn scales_on<const D: usize>(scales: &[f32], w: &Tensor<D>) -> Tensor<1> {
    let plain = Tensor::<1>::from_floats(scales, &w.device()).without_autodiff();
    if w.device().is_autodiff() { Tensor::from_inner(plain) } else { plain }
}

/// A bias on the grid of the accumulator it is added to: channel `i` in multiples of `input_scale * weight_scales[i]`.
pub fn bias_on_grid(bias: Tensor<1>, input_scale: f32, weight_scales: &[f32]) -> Tensor<1> {
    let scales: Vec<f32> = weight_scales.iter().map(|w| input_scale * w).collect();
    ops::fake_quant_weight(bias.clone(), scales_on(&scales, &bias), None, i32::MIN, i32::MAX)
}

/// Elements of a tensor on the host.
pub fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_to_vec().expect("parameters are f32")
}
