//! Quantisation-aware training: observers, integer grids, fake quantisation.
//!
//! Numerics follow PyTorch's observers, which SparseML's recipes mean: activations on an unsigned 8-bit affine
//! grid from a moving average of batch minima and maxima; weights on a signed 8-bit grid per output channel,
//! symmetric, `scale = max|w| / 127.5`. What a layer computes here is what `QuantizeLinear` / `DequantizeLinear`
//! rows of the captured graph say and what the integer engine runs.

use crate::buffer::Buffer;
use crate::mark;
use crate::ops::{self, fake_quant::Grid};
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
        if pass.quant == Quant::Observe && x.device().is_autodiff() {
            self.observe(&x);
        }
        let range = host(self.range.get());
        if range[0] > range[1] {
            return Activation::plain(x);
        }
        let grid = activation_grid(range[0], range[1]);
        Activation { x: on_grid(x, grid), scale: Some(grid.scale) }
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        let data = x.clone().without_autodiff().into_data();
        let (lo, hi) = ops::fake_quant::range(data.as_slice::<f32>().expect("activations are f32"));
        let old = host(self.range.get());
        let new = moving_average(&old, &[lo, hi], old[0] > old[1]);
        self.range.set(Tensor::from_floats([new[0], new[1]], &self.range.get().device()));
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
        if pass.quant == Quant::Observe && w.device().is_autodiff() {
            self.observe(&w);
        }
        let range = host(self.range.get());
        let (min, max) = range.split_at(range.len() / 2);
        if min[0] > max[0] {
            return None;
        }
        let scales: Vec<f32> = min.iter().zip(max).map(|(&lo, &hi)| weight_scale(lo, hi)).collect();
        if w.device().is_autodiff() {
            self.note_step(&scales, fold);
        }
        Some((on_channel_grids(w, &scales, WEIGHT_LO, WEIGHT_HI), scales))
    }

    /// Remembers the steps of a training pass.
    fn note_step(&self, scales: &[f32], fold: Option<&Tensor<1>>) {
        let fold = fold.map_or_else(|| vec![1.0; scales.len()], |f| host(f.clone().without_autodiff()));
        let step = |(s, f): (&f32, &f32)| if *f == 0.0 { 0.0 } else { s / f.abs() };
        let steps: Vec<f32> = scales.iter().zip(&fold).map(step).collect();
        self.step.set(Tensor::from_floats(steps.as_slice(), &self.step.get().device()));
    }

    fn observe<const D: usize>(&self, w: &Tensor<D>) {
        let channels = w.dims()[0];
        let w = host(w.clone().without_autodiff());
        let rows = w.chunks_exact(w.len() / channels).map(ops::fake_quant::range);
        let (min, max): (Vec<f32>, Vec<f32>) = rows.unzip();
        let seen = [min, max].concat();
        let old = host(self.range.get());
        let first = old[0] > old[channels];
        let new = moving_average(&old, &seen, first);
        let device = self.range.get().device();
        self.range.set(Tensor::from_data(TensorData::new(new, [2, channels]), &device));
    }
}

fn moving_average(old: &[f32], seen: &[f32], first: bool) -> Vec<f32> {
    old.iter()
        .zip(seen)
        .map(|(&old, &seen)| if first { seen } else { old + AVERAGING * (seen - old) })
        .collect()
}

/// A bias on the grid of the accumulator it is added to: channel `i` in multiples of `input_scale * weight_scales[i]`.
pub fn bias_on_grid(bias: Tensor<1>, input_scale: f32, weight_scales: &[f32]) -> Tensor<1> {
    let scales: Vec<f32> = weight_scales.iter().map(|w| input_scale * w).collect();
    on_channel_grids(bias, &scales, i32::MIN, i32::MAX)
}

/// Elements of a tensor on the host.
pub fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_to_vec().expect("parameters are f32")
}

fn on_grid<const D: usize>(x: Tensor<D>, grid: Grid) -> Tensor<D> {
    let device = x.device();
    if ops::has_kernels(&device) {
        return ops::fake_quant(x, grid);
    }
    if mark::is_capture(&device) {
        return mark::fake_quant(x, grid);
    }
    let (lo, hi) = ((grid.lo - grid.zero) as f32, (grid.hi - grid.zero) as f32);
    let v = x.clone().div_scalar(grid.scale);
    let inside = v
        .clone()
        .detach()
        .round()
        .greater_equal_elem(lo)
        .bool_and(v.clone().detach().round().lower_equal_elem(hi));
    let q = v.detach().round().clamp(lo, hi).mul_scalar(grid.scale);
    straight_through(x, q, inside.float())
}

fn on_channel_grids<const D: usize>(x: Tensor<D>, scales: &[f32], lo: i32, hi: i32) -> Tensor<D> {
    let device = x.device();
    let scales_t = Tensor::<1>::from_floats(scales, &device).without_autodiff();
    if ops::has_kernels(&device) {
        let scales_t = if device.is_autodiff() { Tensor::from_inner(scales_t) } else { scales_t };
        return ops::fake_quant_channels(x, scales_t, lo, hi);
    }
    if mark::is_capture(&device) {
        return mark::fake_quant_channels(x, scales_t, lo, hi);
    }
    let mut shape = [1; D];
    shape[0] = scales.len();
    let s = Tensor::<1>::from_floats(scales, &device).reshape(shape);
    let v = x.clone().detach() / s.clone();
    let r = v.round();
    let inside = r.clone().greater_equal_elem(lo as f32).bool_and(r.clone().lower_equal_elem(hi as f32));
    straight_through(x, r.clamp(lo as f32, hi as f32) * s, inside.float())
}

/// Value `q`, gradient of `x` where `inside` is one.
fn straight_through<const D: usize>(x: Tensor<D>, q: Tensor<D>, inside: Tensor<D>) -> Tensor<D> {
    let masked = x * inside;
    masked.clone() + (q - masked.detach())
}
