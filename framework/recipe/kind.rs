//! What each modifier asks for, as plain data: the typed form of a recipe, read by `modifier.rs` and
//! compiled by `plan.rs`.

use crate::loss::Loss;
use crate::params::Selector;
use crate::values::SetParam;

/// What a modifier asks for. Epochs are fractional; -1 is before training (start) or never (end).
#[derive(Clone, PartialEq, Debug)]
pub enum Kind {
    EpochRange {
        start: f64,
        end: f64,
    },
    SetLearningRate {
        learning_rate: f64,
        start: f64,
    },
    LearningRateFunction {
        function: LrFunction,
        init: f64,
        last: f64,
        start: f64,
        end: f64,
        cycle_epochs: f64,
    },
    LearningRate {
        class: LrClass,
        init: f64,
        start: f64,
        end: f64,
    },
    SetWeightDecay {
        weight_decay: f64,
        start: f64,
    },
    TrainableParams {
        params: Selector,
        trainable: bool,
        strict: bool,
        start: f64,
        end: f64,
    },
    Pruning(Pruning),
    Acdc(Acdc),
    RigL(RigL),
    TopKast(TopKast),
    /// Channels that are zero are removed.
    LayerThinning {
        structure: MaskStructure,
        start: f64,
        /// Further epochs at which it happens.
        updates: Vec<f64>,
    },
    /// Weights are trained as theta with w = theta * |theta|^(alpha - 1) (Schwarz et al. 2021, arXiv:2110.00296).
    Powerpropagation {
        params: Selector,
        alpha: f64,
        strict: bool,
        start: f64,
        end: f64,
    },
    ConstantPruning {
        params: Selector,
        start: f64,
        end: f64,
    },
    Quantization(Quantization),
    Loss(Loss),
    SetParam(SetParam),
    LayerPruning {
        layers: Selector,
        start: f64,
        end: f64,
    },
    /// ReLUs cut off what is not above a threshold.
    FatRelu {
        layers: Selector,
        threshold: f64,
        start: f64,
        end: f64,
    },
    Logging {
        start: f64,
        end: f64,
        update_frequency: f64,
    },
    /// A user's own: at its start, every update and its end, with its numbers.
    Custom {
        params: Option<Selector>,
        numbers: Vec<(&'static str, f64)>,
        start: f64,
        end: f64,
        update_frequency: f64,
    },
    /// Known and checked, not carried out here.
    NotApplicable {
        start: f64,
        end: f64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LrFunction {
    Linear,
    Cosine,
    CyclicLinear,
}

/// A scheduler, its arguments in epochs from the modifier's start except for milestones, which are absolute.
#[derive(Clone, PartialEq, Debug)]
pub enum LrClass {
    Step { step_size: f64, gamma: f64 },
    MultiStep { milestones: Vec<f64>, gamma: f64 },
    Exponential { gamma: f64 },
    CosineWarmRestarts { minimum: f64, cycle_epochs: f64 },
}

/// Gradual pruning (Zhu & Gupta 2017, "To prune, or not to prune") by any score.
#[derive(Clone, PartialEq, Debug)]
pub struct Pruning {
    pub score: ScoreRule,
    /// `None` is `__FROM_PARAM__`: each tensor's own sparsity at the start.
    pub init_sparsity: Option<f64>,
    /// What to prune and how far: one group, or one for each entry of a `final_sparsity` map.
    pub groups: Vec<PruningGroup>,
    pub start: f64,
    pub end: f64,
    /// Epochs between updates; -1 is every step.
    pub update_frequency: f64,
    pub leave_enabled: bool,
    pub inter: Inter,
    pub structure: MaskStructure,
    pub scope: Scope,
}

#[derive(Clone, PartialEq, Debug)]
pub struct PruningGroup {
    pub params: Selector,
    pub final_sparsity: f64,
}

/// Dense and compressed phases in turn, compressed at the end (Peste et al. 2021, arXiv:2106.12379).
#[derive(Clone, PartialEq, Debug)]
pub struct Acdc {
    pub params: Selector,
    pub sparsity: f64,
    pub start: f64,
    pub end: f64,
    /// Epochs of a phase.
    pub update_frequency: f64,
    pub leave_enabled: bool,
    /// Whether the optimiser's momentum is zero at the begin of a dense phase.
    pub momentum_reset: bool,
    pub structure: MaskStructure,
    pub scope: Scope,
}

/// Sparse from the start; at each update some small weights go and as many others come, by gradient (Evci et al. 2020,
/// arXiv:1911.11134).
#[derive(Clone, PartialEq, Debug)]
pub struct RigL {
    pub params: Selector,
    pub sparsity: f64,
    pub start: f64,
    pub end: f64,
    pub update_frequency: f64,
    pub leave_enabled: bool,
    pub momentum_reset: bool,
    /// Gradients per update.
    pub grads: u32,
    pub strategy: SparsityStrategy,
    /// Part of the open weights that the first update replaces; a cosine leads from it to 0.
    pub init_fraction: f64,
}

/// How a sparsity is shared out among tensors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SparsityStrategy {
    Uniform,
    /// Density in proportion to (inputs + outputs) / (inputs * outputs).
    ErdosRenyi,
    /// Density in proportion to the sum of all sides over their product.
    ErdosRenyiKernel,
}

/// One mask for the forward pass, a more open one for gradients; weights between them move but do not count
/// (Jayakumar et al. 2020, arXiv:2106.03517).
#[derive(Clone, PartialEq, Debug)]
pub struct TopKast {
    pub params: Selector,
    pub forward_sparsity: f64,
    pub backward_sparsity: f64,
    pub start: f64,
    pub end: f64,
    pub update_frequency: f64,
    pub leave_enabled: bool,
    pub active_weight_decay: f64,
    pub structure: MaskStructure,
    pub scope: Scope,
}

/// What the weights that become zero are chosen by, lowest first.
#[derive(Clone, PartialEq, Debug)]
pub enum ScoreRule {
    Magnitude,
    /// What the weights moved by, summed over the steps since the start (Sanh et al. 2020, arXiv:2005.07683).
    Movement,
    /// The loss that a weight is worth by the empirical Fisher matrix, blocks of it (Kurtic et al. 2022, arXiv:2203.07259;
    /// Frantar et al. 2021, arXiv:2107.03356). The surviving weights make up for the others.
    Fisher(FisherRule),
}

#[derive(Clone, PartialEq, Debug)]
pub struct FisherRule {
    /// Gradients per estimate, from that sparsity on; sorted by sparsity, beginning with 0.
    pub grads: Vec<(f64, u32)>,
    /// Images per gradient; `None` is the training's batch.
    pub batch: Option<u32>,
    pub damp: f64,
    /// Side of the blocks along the diagonal.
    pub block: u32,
    /// Estimates per update; the sparsity moves evenly between them.
    pub recomputations: u32,
    /// Keep the gradients and never the matrix (M-FAC), instead of the inverse (oBERT).
    pub matrix_free: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inter {
    Cubic,
    Linear,
    InverseCubic,
}

/// Which weights share one mask decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaskStructure {
    Unstructured,
    /// Blocks of 4 along the input channel (last, after padding), by mean magnitude.
    Block4,
    /// Keep `keep` of every `of` consecutive weights along the input channel.
    NOfM {
        keep: u32,
        of: u32,
    },
    /// The list form `[rows, columns]`: tiles of that many outputs by inputs, one for each kernel position; -1 is the
    /// whole side.
    Block {
        rows: i32,
        columns: i32,
    },
    /// What SparseML made of `[rows, columns]`: rows·columns consecutive (output, input) pairs, so [2, 4] is 1 x 8. See
    /// [`Recipe::sparseml_compatible`](crate::Recipe::sparseml_compatible).
    PairRun {
        rows: i32,
        columns: i32,
    },
    Filter,
    Channel,
}

/// What reaches the sparsity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Each tensor.
    Uniform,
    /// All tensors together.
    Global,
    /// Each group of tensors whose filters or channels depend on each other; they share one mask.
    Dependent,
}

/// Quantisation-aware training, of either form.
#[derive(Clone, PartialEq, Debug)]
pub struct Quantization {
    pub start: f64,
    pub disable_observer: Option<f64>,
    pub freeze_bn: Option<f64>,
    /// The scheme of every layer that no override names.
    pub scheme: LayerQuant,
    /// Later entries win over earlier ones.
    pub overrides: Vec<(Selector, LayerQuant)>,
    /// Layers (or the layers below a module) that stay in floating point.
    pub ignore: Option<Selector>,
    /// The only modules whose layers are quantised; `None` is the whole model.
    pub submodules: Option<Selector>,
    pub calibration_steps: Option<u32>,
    /// Whether convolution, batch norm and activation are fused first.
    pub fuse: bool,
    /// Per kind of layer, whether its outputs may be quantised (the older form can switch that off).
    pub linear_activations: bool,
    pub conv_activations: bool,
    pub embeddings: bool,
    pub reduce_range: bool,
    /// Whether a name in `ignore` or `overrides` that the model lacks is an error.
    pub strict: bool,
}

/// Quantisation of one layer's input, weight and output; `None` leaves it in floating point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LayerQuant {
    pub input: Option<QuantArgs>,
    pub weight: Option<QuantArgs>,
    pub output: Option<QuantArgs>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuantArgs {
    pub bits: u8,
    /// Symmetric is signed with zero point 0; asymmetric is unsigned.
    pub symmetric: bool,
    /// One scale for each output channel instead of one for the tensor.
    pub per_channel: bool,
}
