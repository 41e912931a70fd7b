//! The table of modifiers: every class of the classic recipe language with its keys, their types and defaults,
//! what it does, and whether a schedule can carry it out. Reading, checking and `recipe expand` follow this table.

use crate::language_model_table::LANGUAGE_MODEL_MODIFIERS;

/// What a key's value must be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Type {
    /// A finite float, -1 (before training / never) or from 0 to [`EPOCH_MAX`].
    Epoch,
    /// Epochs between updates: -1 (every step) or above 0.
    Frequency,
    /// Any finite float.
    Float,
    /// A float from `.0` to `.1`, both included.
    Between(f64, f64),
    /// A float from 0 up to but not including 1.
    Sparsity,
    /// A sparsity, or `__FROM_PARAM__`.
    InitSparsity,
    /// A sparsity, or a map from sparsity to a list of parameters.
    FinalSparsity,
    Int,
    Bool,
    Text,
    OneOf(&'static [&'static str]),
    /// One name, token or `re:` pattern, or a list of them.
    Params,
    /// A list of texts.
    Names,
    /// A list of integers.
    Ints,
    /// `unstructured`, `block4`, `N:M`, `tensorrt`, `filter`, `channel`, or two integers.
    Mask,
    Map,
    /// A map of other keys of the same class: the place where older recipes write them.
    Options,
    /// `default`, `deepsparse`, `tensorrt`, or a map of quantisation arguments.
    Scheme,
    Any,
}

/// What holds when a key is absent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Absent {
    Required,
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'static str),
    /// The empty list.
    Empty,
    /// The key is accepted and has no effect.
    Dropped,
}

#[derive(Clone, Copy, Debug)]
pub struct KeyRow {
    pub name: &'static str,
    pub ty: Type,
    pub default: Absent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// [`compile`](crate::compile) turns it into events.
    Implemented,
    /// A user's own, with `params` if it changes parameters: [`compile`](crate::compile) turns it into events for a
    /// function of theirs. See `examples/custom_modifier.rs`.
    Custom,
    /// Read and checked; it belongs to work that is not done here, for this reason. `compile` refuses it.
    NotApplicable(&'static str),
}

/// One class. A class with several forms has several rows; the first row that knows all keys given is taken.
#[derive(Clone, Copy, Debug)]
pub struct ModifierRow {
    pub class: &'static str,
    pub does: &'static str,
    pub status: Status,
    pub keys: &'static [KeyRow],
}

/// Last epoch that a recipe may name.
pub const EPOCH_MAX: f64 = 1e6;

/// Keys that every modifier takes.
pub const COMMON_KEYS: &[KeyRow] =
    &[key("enabled", Type::Bool, Absent::Bool(true)), key("log_types", Type::Any, Absent::Dropped)];

pub(crate) const fn key(name: &'static str, ty: Type, default: Absent) -> KeyRow {
    KeyRow { name, ty, default }
}

pub(crate) const fn row(
    class: &'static str,
    status: Status,
    does: &'static str,
    keys: &'static [KeyRow],
) -> ModifierRow {
    ModifierRow { class, does, status, keys }
}

/// Every row: those of [`MODIFIERS`], then those that only language models need.
pub fn rows() -> impl Iterator<Item = &'static ModifierRow> + Clone {
    MODIFIERS.iter().chain(LANGUAGE_MODEL_MODIFIERS)
}

use Absent::{Dropped, Empty, Null, Required};
use Status::Implemented;
use Type::{Any, Between, Epoch, Frequency, Int, Ints, Mask, Names, OneOf, Params, Sparsity, Text};

const NEVER: Absent = Absent::Float(-1.0);
const FALSE: Absent = Absent::Bool(false);
const TRUE: Absent = Absent::Bool(true);
const UNSTRUCTURED: Absent = Absent::Text("unstructured");
const CUBIC: Absent = Absent::Text("cubic");
const LR: Type = Between(0.0, 1.0);
const INTER: Type = OneOf(&["cubic", "linear", "inverse_cubic"]);

pub(crate) const START: KeyRow = key("start_epoch", Epoch, NEVER);
const START_REQUIRED: KeyRow = key("start_epoch", Epoch, Required);
pub(crate) const END: KeyRow = key("end_epoch", Epoch, NEVER);
const END_REQUIRED: KeyRow = key("end_epoch", Epoch, Required);
/// Classes without an end accept the key of their base class and ignore it.
const END_DROPPED: KeyRow = key("end_epoch", Epoch, Dropped);
const UPDATE: KeyRow = key("update_frequency", Frequency, Required);
const UPDATE_DROPPED: KeyRow = key("update_frequency", Frequency, Dropped);
const PARAMS: KeyRow = key("params", Params, Required);
const INIT: KeyRow = key("init_sparsity", Type::InitSparsity, Required);
const FINAL: KeyRow = key("final_sparsity", Type::FinalSparsity, Required);
const LEAVE: KeyRow = key("leave_enabled", Type::Bool, TRUE);
const INTER_FUNC: KeyRow = key("inter_func", INTER, CUBIC);
const MASK: KeyRow = key("mask_type", Mask, UNSTRUCTURED);
const GLOBAL: KeyRow = key("global_sparsity", Type::Bool, FALSE);
const GLOBAL_TRUE: KeyRow = key("global_sparsity", Type::Bool, TRUE);
const GROUPS: KeyRow = key("param_groups", Ints, Null);
const LOGGING: KeyRow = key("constant_logging", Type::Bool, Dropped);
const MOMENTUM_RESET: KeyRow = key("momentum_buffer_reset", Type::Bool, TRUE);
pub(crate) const OBSERVER: KeyRow = key("disable_quantization_observer_epoch", Epoch, Null);
const FREEZE_BN: KeyRow = key("freeze_bn_stats_epoch", Epoch, Null);
const FUSE: KeyRow = key("model_fuse_fn_name", Text, Null);
const FUSE_KWARGS: KeyRow = key("model_fuse_fn_kwargs", Type::Map, Null);
pub(crate) const CALIBRATION: KeyRow = key("num_calibration_steps", Int, Null);
/// Of calibration without training, which is a verb of its own and no part of a recipe.
const ONE_SHOT: KeyRow = key("post_oneshot_calibration", Type::Bool, Dropped);
const GROUPS_OF_SCHEMES: KeyRow = key("config_groups", Type::Map, Required);
pub(crate) const IGNORE: KeyRow = key("ignore", Names, Empty);

/// Every class that is of use here; [`rows`] adds the others. Order is for reading only.
pub const MODIFIERS: &[ModifierRow] = &[
    row("EpochRangeModifier", Implemented, "sets how long training lasts", &[START_REQUIRED, END_REQUIRED]),
    row(
        "SetLearningRateModifier",
        Implemented,
        "sets the learning rate once",
        &[key("learning_rate", LR, Required), START, GROUPS, END_DROPPED, LOGGING],
    ),
    row(
        "LearningRateFunctionModifier",
        Implemented,
        "moves the learning rate from one value to another, step by step",
        &[
            key("lr_func", OneOf(&["linear", "cosine", "cyclic_linear"]), Required),
            key("init_lr", LR, Required),
            key("final_lr", LR, Required),
            START_REQUIRED,
            END_REQUIRED,
            key("cycle_epochs", Type::Float, Absent::Float(1.0)),
            GROUPS,
            UPDATE_DROPPED,
            LOGGING,
        ],
    ),
    row(
        "LearningRateModifier",
        Implemented,
        "runs a learning-rate scheduler whose arguments are in epochs",
        &[
            key(
                "lr_class",
                OneOf(&["StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingWarmRestarts"]),
                Required,
            ),
            key("lr_kwargs", Type::Map, Required),
            key("init_lr", LR, Required),
            START_REQUIRED,
            END,
            UPDATE_DROPPED,
            LOGGING,
        ],
    ),
    row(
        "TrainableParamsModifier",
        Implemented,
        "freezes or unfreezes parameters, and undoes it at its end",
        &[PARAMS, key("trainable", Type::Bool, Required), key("params_strict", Type::Bool, TRUE), START, END],
    ),
    row(
        "SetParamModifier",
        Implemented,
        "sets parameters to a value",
        &[PARAMS, key("val", Any, Required), key("params_strict", Type::Bool, TRUE), START, END_DROPPED],
    ),
    row(
        "GradualParamModifier",
        Implemented,
        "moves parameters from one value to another",
        &[
            PARAMS,
            key("init_val", Any, Required),
            key("final_val", Any, Required),
            START_REQUIRED,
            END_REQUIRED,
            UPDATE,
            key("inter_func", INTER, Absent::Text("linear")),
            key("params_strict", Type::Bool, TRUE),
        ],
    ),
    row(
        "SetWeightDecayModifier",
        Implemented,
        "sets the optimiser's weight decay",
        &[key("weight_decay", Between(0.0, 1e6), Required), START, GROUPS, END_DROPPED, LOGGING],
    ),
    row(
        "SparsificationLoggingModifier",
        Implemented,
        "logs sparsity and quantisation",
        &[START_REQUIRED, END, key("update_frequency", Frequency, Absent::Float(1.0))],
    ),
    row(
        "GMPruningModifier",
        Implemented,
        "gradual magnitude pruning: zeroes the smallest weights of each tensor, more and more",
        &[
            INIT,
            FINAL,
            START_REQUIRED,
            END_REQUIRED,
            UPDATE,
            PARAMS,
            LEAVE,
            INTER_FUNC,
            MASK,
            GLOBAL,
            key("phased", Type::Bool, FALSE),
            key("score_type", Text, Absent::Text("magnitude")),
        ],
    ),
    row(
        "MagnitudePruningModifier",
        Implemented,
        "gradual magnitude pruning, a threshold for each tensor",
        &[INIT, FINAL, START_REQUIRED, END_REQUIRED, UPDATE, PARAMS, LEAVE, INTER_FUNC, MASK],
    ),
    row(
        "GlobalMagnitudePruningModifier",
        Implemented,
        "gradual magnitude pruning, one threshold for all its tensors",
        &[INIT, FINAL, START_REQUIRED, END_REQUIRED, UPDATE, PARAMS, LEAVE, INTER_FUNC, MASK],
    ),
    row(
        "MovementPruningModifier",
        Implemented,
        "prunes weights that move towards zero",
        &[INIT, FINAL, START_REQUIRED, END_REQUIRED, UPDATE, PARAMS, LEAVE, INTER_FUNC, MASK],
    ),
    row(
        "ConstantPruningModifier",
        Implemented,
        "keeps the zeros that a model has",
        &[PARAMS, START, END, UPDATE_DROPPED],
    ),
    row(
        "ACDCPruningModifier",
        Implemented,
        "alternates dense and compressed phases",
        &[
            key("compression_sparsity", Sparsity, Required),
            START_REQUIRED,
            END_REQUIRED,
            UPDATE,
            PARAMS,
            GLOBAL_TRUE,
            LEAVE,
            MOMENTUM_RESET,
            MASK,
        ],
    ),
    row(
        "OBSPruningModifier",
        Implemented,
        "second-order pruning with compensation of the surviving weights (oBERT)",
        &[
            INIT,
            FINAL,
            START_REQUIRED,
            END_REQUIRED,
            UPDATE,
            PARAMS,
            LEAVE,
            INTER_FUNC,
            GLOBAL_TRUE,
            MASK,
            key("num_grads", Int, Absent::Int(1024)),
            key("damp", Type::Float, Absent::Float(1e-7)),
            key("fisher_block_size", Int, Absent::Int(1)),
            key("grad_sampler_kwargs", Type::Map, Null),
            key("num_recomputations", Int, Absent::Int(1)),
        ],
    ),
    row(
        "MFACPruningModifier",
        Implemented,
        "second-order pruning with a matrix-free Fisher inverse",
        &[
            INIT,
            FINAL,
            START_REQUIRED,
            END_REQUIRED,
            UPDATE,
            PARAMS,
            LEAVE,
            INTER_FUNC,
            MASK,
            key("global_sparsity", Type::Bool, FALSE),
            key("use_gradient_buffering", Type::Bool, Null),
            key("num_grads", Any, Absent::Int(64)),
            key("damp", Type::Float, Absent::Float(1e-5)),
            key("grads_device", Text, Absent::Text("cpu")),
            key("fisher_block_size", Int, Absent::Int(2000)),
            key("num_pages", Int, Absent::Int(1)),
            key("available_devices", Names, Null),
            // The older name of `available_devices`.
            key("available_gpus", Names, Dropped),
            key("grad_sampler_kwargs", Type::Map, Null),
            key("mfac_options", Type::Options, Null),
        ],
    ),
    row(
        "RigLPruningModifier",
        Implemented,
        "sparse training that drops small weights and grows by gradient",
        &[
            key("final_sparsity", Sparsity, Required),
            START_REQUIRED,
            END_REQUIRED,
            UPDATE,
            PARAMS,
            key("num_grads", Int, Absent::Int(1)),
            key(
                "sparsity_strategy",
                OneOf(&["uniform", "erdos_renyi", "erdos_renyi_kernel"]),
                Absent::Text("erdos_renyi_kernel"),
            ),
            key("init_update_fraction", Between(0.0, 1.0), Absent::Float(0.3)),
            MOMENTUM_RESET,
            LEAVE,
            MASK,
            GLOBAL,
            key("grad_sampler_kwargs", Type::Map, Null),
        ],
    ),
    row(
        "TopKASTPruningModifier",
        Implemented,
        "sparse forward pass, less sparse backward pass",
        &[
            key("forward_sparsity", Sparsity, Required),
            key("backward_sparsity", Sparsity, Required),
            START_REQUIRED,
            END_REQUIRED,
            UPDATE,
            PARAMS,
            GLOBAL_TRUE,
            LEAVE,
            MASK,
            key("active_weight_decay", Type::Float, Absent::Float(1e-4)),
        ],
    ),
    row(
        "StructuredPruningModifier",
        Implemented,
        "prunes whole filters or channels",
        &[
            INIT,
            FINAL,
            START_REQUIRED,
            END_REQUIRED,
            UPDATE,
            key("param_groups", Any, Null),
            key("params", Params, Absent::Text("__ALL_PRUNABLE__")),
            LEAVE,
            INTER_FUNC,
            key("mask_type", Mask, Absent::Text("filter")),
            key("score_type", Text, Absent::Text("magnitude")),
        ],
    ),
    row(
        "LayerThinningModifier",
        Implemented,
        "removes pruned filters from the model",
        &[
            key("param_group_dependency_map", Any, Null),
            key("structure_type", OneOf(&["filter", "channel"]), Absent::Text("filter")),
            START,
            key("update_epochs", Any, Null),
            key("strict", Type::Bool, TRUE),
            END_DROPPED,
        ],
    ),
    row(
        "LayerPruningModifier",
        Implemented,
        "replaces layers by the identity",
        &[key("layers", Params, Required), START, END, UPDATE_DROPPED],
    ),
    row(
        "PowerpropagationModifier",
        Implemented,
        "reparametrises weights so that small ones stay small",
        &[START, END, PARAMS, key("alpha", Type::Float, Absent::Float(1.0)), key("strict", Type::Bool, TRUE)],
    ),
    row(
        "QuantizationModifier",
        Implemented,
        "quantisation-aware training, a scheme for each layer",
        &[
            START,
            key("scheme", Type::Scheme, Null),
            key("scheme_overrides", Type::Map, Null),
            key("ignore", Names, Empty),
            OBSERVER,
            FREEZE_BN,
            FUSE,
            FUSE_KWARGS,
            CALIBRATION,
            key("strict", Type::Bool, TRUE),
            END,
            ONE_SHOT,
        ],
    ),
    row(
        "QuantizationModifier",
        Implemented,
        "quantisation-aware training, the older form by submodules",
        &[
            START,
            key("submodules", Names, Null),
            key("quantize_embeddings", Type::Bool, TRUE),
            key("reduce_range", Type::Bool, FALSE),
            key("quantize_linear_activations", Type::Bool, TRUE),
            key("quantize_conv_activations", Type::Bool, TRUE),
            key("quantize_embedding_activations", Type::Bool, TRUE),
            key("activation_bits", Int, Absent::Int(8)),
            key("weight_bits", Int, Absent::Int(8)),
            key("exclude_batchnorm", Type::Bool, TRUE),
            key("exclude_module_types", Names, Empty),
            key("custom_quantizable_module_types", Names, Empty),
            key("activation_qconfig_kwargs", Type::Map, Null),
            key("weight_qconfig_kwargs", Type::Map, Null),
            key("tensorrt", Type::Bool, FALSE),
            OBSERVER,
            FREEZE_BN,
            FUSE,
            FUSE_KWARGS,
            CALIBRATION,
            END,
        ],
    ),
    row(
        "QuantizationModifier",
        Implemented,
        "quantisation-aware training, schemes by group of layers",
        &[START, GROUPS_OF_SCHEMES, IGNORE, OBSERVER, CALIBRATION, END, ONE_SHOT],
    ),
    row(
        "LegacyQuantizationModifier",
        Implemented,
        "quantisation-aware training, as the session style names the form with schemes",
        &[
            START,
            key("scheme", Type::Scheme, Null),
            key("scheme_overrides", Type::Map, Null),
            IGNORE,
            OBSERVER,
            FREEZE_BN,
            FUSE,
            FUSE_KWARGS,
            CALIBRATION,
            key("strict", Type::Bool, TRUE),
            END,
            ONE_SHOT,
        ],
    ),
    row(
        "DistillationModifier",
        Implemented,
        "adds the divergence from a teacher's output to the loss",
        &[
            START,
            END,
            key("distill_output_keys", Names, Null),
            key("teacher_input_keys", Names, Null),
            key("hardness", Between(0.0, 1.0), Absent::Float(0.5)),
            key("temperature", Between(1e-6, 1e6), Absent::Float(2.0)),
            UPDATE_DROPPED,
        ],
    ),
    row(
        "PerLayerDistillationModifier",
        Implemented,
        "adds the distance from a teacher's features to the loss",
        &[
            START,
            END,
            key("gain", Type::Float, Absent::Float(1.5)),
            key("student_layer_names", Names, Null),
            key("teacher_layer_names", Names, Null),
            key("normalize", Type::Bool, TRUE),
            key("project_features", Type::Bool, TRUE),
            key("epsilon", Type::Float, Absent::Float(1e-6)),
            UPDATE_DROPPED,
        ],
    ),
    row(
        "ASRegModifier",
        Implemented,
        "adds the size of activations to the loss, so that more of them are zero",
        &[
            key("layers", Params, Required),
            key("alpha", Any, Required),
            key("layer_normalized", Type::Bool, FALSE),
            key("reg_func", OneOf(&["l1", "l2", "relu", "hs"]), Absent::Text("l1")),
            key("reg_tens", OneOf(&["inp", "out"]), Absent::Text("inp")),
            START,
            END,
            UPDATE_DROPPED,
        ],
    ),
    // SparseML has FATReLU as functions on models, which recipes cannot name; the keys are theirs.
    row(
        "FATReLUModifier",
        Implemented,
        "lets ReLUs cut off what is not above a threshold, so that more activations are zero",
        &[
            key("layers", Params, Absent::Text("__ALL__")),
            key("threshold", Type::Between(0.0, f32::MAX as f64), Required),
            START,
            END,
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_every_class_says_what_it_does() {
        for row in rows() {
            let mut names: Vec<&str> = row.keys.iter().chain(COMMON_KEYS).map(|k| k.name).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "{} has a key twice", row.class);
            assert!(!row.does.is_empty() && row.class.ends_with("Modifier"));
        }
    }
}
