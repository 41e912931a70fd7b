//! Quantisation-aware training: observers, integer grids, fake quantisation.
//!
//! Numerics follow PyTorch's observers, which SparseML's recipes mean: ranges are moving averages of batch minima and
//! maxima, and [`crate::scheme`] says for each layer which grids they become. What a layer computes here is what
//! `QuantizeLinear` / `DequantizeLinear` rows of the captured graph say and what the integer engine runs.

use crate::buffer::Buffer;
use crate::flow::{self, Meeting};
use crate::ops::{self, Grid};
use crate::scheme::{self, Args, LayerScheme};
use burn::module::{Module, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

/// Share of a new batch in the moving average of an observer (PyTorch's `averaging_constant`).
pub const AVERAGING: f32 = 0.01;

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

/// What an observer knows: the range [min, max] of what it has seen (min > max until it saw something).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    pub range: [f32; 2],
    /// Whether it still learns.
    pub moves: bool,
    /// What its values are put on, if anything.
    pub args: Option<Args>,
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

    /// The grid of the values; `None` before anything was seen, and where nothing is quantised.
    pub fn grid(self) -> Option<Grid> {
        grid_of(self.args, self.range)
    }
}

fn grid_of(args: Option<Args>, [lo, hi]: [f32; 2]) -> Option<Grid> {
    args.filter(|_| lo <= hi).map(|args| args.grid(lo, hi))
}

/// An activation, and where it was last observed.
#[derive(Clone, Debug)]
pub struct Activation<const D: usize> {
    pub x: Tensor<D>,
    pub site: Option<Site>,
}

/// Where values were observed: what a layer that reads them needs to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Site {
    /// Of the range in the parameter table.
    pub id: ParamId,
    pub range: [f32; 2],
    /// What the values were put on there, if anything.
    pub args: Option<Args>,
}

impl Site {
    /// The grid that the values lie on, if they do.
    pub fn grid(&self) -> Option<Grid> {
        grid_of(self.args, self.range)
    }
}

impl<const D: usize> Activation<D> {
    pub fn plain(x: Tensor<D>) -> Self {
        Activation { x, site: None }
    }

    /// Two ends for a branch; see [`ops::fork`].
    pub fn fork(self) -> (Self, Self) {
        let (a, b) = ops::fork(self.x);
        (Activation { x: a, site: self.site }, Activation { x: b, site: self.site })
    }

    /// The values rearranged or thinned out by `f`, which makes no new ones.
    pub fn map<const E: usize>(self, f: impl FnOnce(Tensor<D>) -> Tensor<E>) -> Activation<E> {
        Activation { x: f(self.x), site: self.site }
    }
}

/// Observes an activation and quantises it. `range` is [min, max]; min > max until something was seen.
#[derive(Module, Debug)]
pub struct ActivationQuantizer {
    pub range: Buffer<1>,
    /// See [`crate::scheme`].
    pub scheme: Buffer<1>,
    /// Behind a ReLU: what is not above it becomes zero, too (FATReLU; Kurtz et al., 2020, "Inducing and exploiting
    /// activation sparsity for fast inference on deep neural networks"). 0 is the plain ReLU.
    pub threshold: Option<Buffer<1>>,
}

impl ActivationQuantizer {
    /// Eight bits with a zero point, until the scheme says otherwise.
    pub fn new(device: &Device) -> Self {
        ActivationQuantizer::with(Some(Args::ACTIVATION), device)
    }

    pub fn with(args: Option<Args>, device: &Device) -> Self {
        ActivationQuantizer {
            range: Buffer::new(Tensor::from_floats([f32::MAX, f32::MIN], device)),
            scheme: scheme::site_buffer(args, device),
            threshold: None,
        }
    }

    /// Of what a ReLU (or ReLU6) gives.
    pub fn behind_relu(device: &Device) -> Self {
        let threshold = Some(Buffer::new(Tensor::zeros([1], device)));
        ActivationQuantizer { threshold, ..ActivationQuantizer::new(device) }
    }

    pub fn forward<const D: usize>(&self, x: Tensor<D>, pass: &Pass) -> Activation<D> {
        self.cut(self.quantized(x, pass))
    }

    fn quantized<const D: usize>(&self, x: Tensor<D>, pass: &Pass) -> Activation<D> {
        if pass.quant == Quant::Off {
            return Activation { x, site: Some(self.site([f32::MAX, f32::MIN], None)) };
        }
        let mut observed = self.observed(pass);
        if observed.moves && x.device().is_autodiff() {
            let seen = host(ops::range(x.clone()));
            observed = observed.after(seen[0], seen[1]);
            self.remember(Tensor::from_floats(observed.range, &self.range.get().device()), observed.args);
        }
        let site = Some(self.site(observed.range, observed.args));
        let Some(grid) = observed.grid() else { return Activation { x, site } };
        Activation { x: ops::fake_quant(x, grid), site }
    }

    /// Without the values that are not above the threshold. It looks at values on their grid, where zero is one of them: in
    /// integers it is a table of bytes.
    pub fn cut<const D: usize>(&self, y: Activation<D>) -> Activation<D> {
        let Some(threshold) = &self.threshold else { return y };
        let threshold = host(threshold.get())[0];
        if threshold <= 0.0 {
            return y;
        }
        let grid = y.site.and_then(|site| site.grid());
        y.map(|x| {
            let x = ops::above(x, threshold);
            // Changes nothing, and says where the result lies.
            grid.map_or_else(|| x.clone(), |grid| ops::fake_quant(x.clone(), grid))
        })
    }

    /// What has been seen, and whether this pass adds to it.
    pub fn observed(&self, pass: &Pass) -> Observed {
        let range = host(self.range.get());
        let args = scheme::of_site(&self.scheme);
        Observed { range: [range[0], range[1]], moves: pass.quant == Quant::Observe, args }
    }

    /// Keeps a range [2] of values that were put on the grid of `args`.
    pub fn remember(&self, range: Tensor<1>, args: Option<Args>) -> Site {
        self.range.set(range);
        let range = host(self.range.get());
        self.site([range[0], range[1]], args)
    }

    fn site(&self, range: [f32; 2], args: Option<Args>) -> Site {
        Site { id: self.range.id(), range, args }
    }
}

/// What a layer computes with: its input, on the grid that its scheme asks for.
pub struct LayerInput<const D: usize> {
    pub x: Tensor<D>,
    /// Of the grid, if the layer asks for one.
    pub scale: Option<f32>,
}

/// Quantises the weight of a layer along its output channels (axis 0). `range` is [min of each channel; max of each
/// channel]; with one grid for the whole tensor, that of the tensor for each.
#[derive(Module, Debug)]
pub struct WeightQuantizer {
    pub range: Buffer<2>,
    /// One step of the grid in units of the stored weight, for each channel, as the last training pass had it; 0
    /// until there was one. (The grid is of the folded weight, which only the forward pass knows.)
    pub step: Buffer<1>,
    /// Of the whole layer; see [`crate::scheme`].
    pub scheme: Buffer<1>,
}

/// A quantised weight. `scales` are those of the rows.
pub struct Quantized<const D: usize> {
    pub w: Tensor<D>,
    pub scales: Vec<f32>,
}

/// The grids of the rows of a weight.
struct RowGrids {
    scales: Vec<f32>,
    /// Smallest and largest step from the one that means zero.
    limits: Vec<[i32; 2]>,
}

impl WeightQuantizer {
    /// Eight bits for each channel, until the scheme says otherwise.
    pub fn new(channels: usize, device: &Device) -> Self {
        WeightQuantizer::with(LayerScheme::INT8, channels, device)
    }

    pub fn with(scheme: LayerScheme, channels: usize, device: &Device) -> Self {
        let mut range = vec![f32::MAX; channels];
        range.extend(vec![f32::MIN; channels]);
        WeightQuantizer {
            range: Buffer::new(Tensor::from_data(TensorData::new(range, [2, channels]), device)),
            step: Buffer::new(Tensor::zeros([channels], device)),
            scheme: scheme.buffer(device),
        }
    }

    /// How the layer is quantised in this pass.
    pub fn layer(&self, pass: &Pass) -> LayerScheme {
        if pass.quant == Quant::Off { LayerScheme::OFF } else { LayerScheme::of(&self.scheme) }
    }

    /// What the layer of this weight (`layer` is the weight's id) computes with: `x`, put on the grid that it asks for
    /// unless it lies on that already. Layers that read the same values may ask for different grids.
    pub fn input<const D: usize>(&self, layer: ParamId, x: &Activation<D>, pass: &Pass) -> LayerInput<D> {
        if let Some(site) = x.site {
            flow::note(Meeting::Reads { layer, site: site.id });
        }
        let asked = self.layer(pass).input;
        let grid = x.site.and_then(|site| grid_of(asked, site.range));
        let on_grid = x.site.is_some_and(|site| site.args == asked);
        LayerInput {
            x: match grid.filter(|_| !on_grid) {
                Some(grid) => ops::fake_quant(x.x.clone(), grid),
                None => x.x.clone(),
            },
            scale: grid.map(|grid| grid.scale),
        }
    }

    /// The weight on its grid. `None` where weights are not quantised, and until a training pass has observed something.
    /// `fold` is what the stored weight was multiplied by to give `w`, if anything.
    pub fn forward<const D: usize>(
        &self,
        w: Tensor<D>,
        fold: Option<&Tensor<1>>,
        pass: &Pass,
    ) -> Option<Quantized<D>> {
        let training = w.device().is_autodiff();
        // Only a training pass notes steps, and while recording there are no values to read.
        let fold = fold.filter(|_| training).map(|f| host(f.clone().without_autodiff()));
        let grids = self.grids(|| host(ops::row_ranges(w.clone())), fold.as_deref(), training, pass)?;
        let w = ops::fake_quant_weight(w.clone(), scales_on(&grids.scales, &w), None, &grids.limits);
        Some(Quantized { w, scales: grids.scales })
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
        let grids = self.grids(seen, Some(&by), w.device().is_autodiff(), pass)?;
        Some(ops::fake_quant_weight(w.clone(), scales_on(&grids.scales, &w), Some(fold), &grids.limits))
    }

    /// Grids of this pass. A training pass moves the range towards what is `seen` and notes the steps.
    fn grids(
        &self,
        seen: impl FnOnce() -> Vec<f32>,
        fold: Option<&[f32]>,
        training: bool,
        pass: &Pass,
    ) -> Option<RowGrids> {
        let args = self.layer(pass).weight?;
        let mut range = host(self.range.get());
        let channels = range.len() / 2;
        if training && pass.quant == Quant::Observe {
            let mut seen = seen();
            if !args.per_channel {
                let (min, max) = seen.split_at_mut(channels);
                min.fill(min.iter().copied().fold(f32::INFINITY, f32::min));
                max.fill(max.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            }
            range = moving_average(&range, &seen, range[0] > range[channels]);
            let device = self.range.get().device();
            self.range.set(Tensor::from_data(TensorData::new(range.clone(), [2, channels]), &device));
        }
        let (min, max) = range.split_at(channels);
        if min[0] > max[0] {
            return None;
        }
        let grids: Vec<Grid> = min.iter().zip(max).map(|(&lo, &hi)| args.grid(lo, hi)).collect();
        let scales: Vec<f32> = grids.iter().map(|grid| grid.scale).collect();
        if training {
            let step = |(i, s): (usize, &f32)| match fold.map_or(1.0, |f| f[i].abs()) {
                0.0 => 0.0,
                f => s / f,
            };
            let steps: Vec<f32> = scales.iter().enumerate().map(step).collect();
            self.step.set(Tensor::from_floats(steps.as_slice(), &self.step.get().device()));
        }
        let mut limits: Vec<[i32; 2]> = grids.iter().map(|g| [g.lo - g.zero, g.hi - g.zero]).collect();
        if args.symmetric {
            limits.truncate(1);
        }
        Some(RowGrids { scales, limits })
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

/// What a bias is rounded to: steps of a 32-bit accumulator.
pub const ACCUMULATOR: [i32; 2] = [i32::MIN, i32::MAX];

/// A bias on the grid of the accumulator it is added to: channel `i` in multiples of `input_scale * weight_scales[i]`.
pub fn bias_on_grid(bias: Tensor<1>, input_scale: f32, weight_scales: &[f32]) -> Tensor<1> {
    let scales: Vec<f32> = weight_scales.iter().map(|w| input_scale * w).collect();
    ops::fake_quant_weight(bias.clone(), scales_on(&scales, &bias), None, &[ACCUMULATOR])
}

/// Elements of a tensor on the host.
pub fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_to_vec().expect("parameters are f32")
}
