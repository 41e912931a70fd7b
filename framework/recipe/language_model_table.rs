//! Modifiers of the session style that prune or quantise large language models in one shot. They are read and checked
//! like the others, and say by name that they do not apply here.

use crate::modifier_table::{
    Absent, CALIBRATION, END, IGNORE, KeyRow, ModifierRow, OBSERVER, START, Status, Type, key, row,
};
use Absent::{Dropped, Null, Required};
use Status::NotApplicable;
use Type::{Any, Between, Int, Names, Params, Text};

const LLM: &str =
    "it prunes or quantises large language models in one shot, layer by layer, without training";

// Keys that the one-shot methods for language models share.
const SPARSITY_ANY: KeyRow = key("sparsity", Any, Absent::Float(0.0));
const PROFILE: KeyRow = key("sparsity_profile", Text, Null);
const OWL_M: KeyRow = key("owl_m", Int, Null);
const OWL_LAMBDA: KeyRow = key("owl_lmbda", Type::Float, Null);
const MASK_STRUCTURE: KeyRow = key("mask_structure", Any, Absent::Text("0:0"));
const SEQUENTIAL: KeyRow = key("sequential_update", Type::Bool, Absent::Bool(false));
const TARGETS: KeyRow = key("targets", Params, Null);
const BLOCK_SIZE: KeyRow = key("block_size", Int, Absent::Int(128));
const DAMPENING: KeyRow = key("dampening_frac", Type::Float, Absent::Float(0.01));
/// The older name of `dampening_frac`.
const PERCDAMP: KeyRow = key("percdamp", Type::Float, Dropped);
const QUANTIZE: KeyRow = key("quantize", Any, Absent::Bool(false));
const PRUNE_N: KeyRow = key("prunen", Int, Dropped);
const PRUNE_M: KeyRow = key("prunem", Int, Dropped);
const SMOOTHING: KeyRow = key("smoothing_strength", Between(0.0, 1.0), Absent::Float(0.5));
const MAPPINGS: KeyRow = key("mappings", Any, Required);

/// Every such class. Order is for reading only.
pub const LANGUAGE_MODEL_MODIFIERS: &[ModifierRow] = &[
    row(
        "SparseGPTModifier",
        NotApplicable(LLM),
        "prunes a language model layer by layer with second-order corrections",
        &[
            SPARSITY_ANY,
            PROFILE,
            OWL_M,
            OWL_LAMBDA,
            MASK_STRUCTURE,
            SEQUENTIAL,
            TARGETS,
            BLOCK_SIZE,
            DAMPENING,
            PERCDAMP,
            QUANTIZE,
            key("preserve_sparsity_mask", Type::Bool, Absent::Bool(false)),
            key("target_ids", Names, Null),
            key("layer_prefix", Text, Null),
            PRUNE_N,
            PRUNE_M,
            START,
            END,
        ],
    ),
    row(
        "WandaPruningModifier",
        NotApplicable(LLM),
        "prunes a language model by weight times activation",
        &[
            SPARSITY_ANY,
            PROFILE,
            OWL_M,
            OWL_LAMBDA,
            MASK_STRUCTURE,
            SEQUENTIAL,
            TARGETS,
            PRUNE_N,
            PRUNE_M,
            START,
            END,
        ],
    ),
    row(
        "GPTQModifier",
        NotApplicable(LLM),
        "quantises the weights of a language model with corrections of the error",
        &[
            key("config_groups", Type::Map, Null),
            key("scheme", Any, Null),
            QUANTIZE,
            SEQUENTIAL,
            TARGETS,
            BLOCK_SIZE,
            DAMPENING,
            PERCDAMP,
            IGNORE,
            OBSERVER,
            CALIBRATION,
            START,
            END,
        ],
    ),
    row(
        "SmoothQuantModifier",
        NotApplicable(LLM),
        "moves outliers of a language model's activations into its weights",
        &[SMOOTHING, MAPPINGS, IGNORE, CALIBRATION, START, END],
    ),
    row(
        "LogarithmicEqualizationModifier",
        NotApplicable(LLM),
        "moves outliers of a language model's activations into its weights, by their logarithm",
        &[SMOOTHING, MAPPINGS, IGNORE, CALIBRATION, START, END],
    ),
    row(
        "OutputDistillationModifier",
        NotApplicable(
            "it compares the layers of two language models; `!PerLayerDistillationModifier` is for others",
        ),
        "adds the distance from a teacher's layers to the loss",
        &[
            key("targets", Any, Required),
            key("projection", Text, Null),
            key("projection_args", Type::Map, Null),
            key("transforms", Any, Absent::Text("identity")),
            key("transforms_args", Any, Null),
            key("comparison", Text, Absent::Text("kl_divergence")),
            key("comparison_args", Type::Map, Null),
            key("orig_scale", Type::Float, Absent::Float(1.0)),
            key("distill_scale", Type::Float, Absent::Float(1.0)),
            key("offload_layer_output", Type::Bool, Absent::Bool(false)),
            START,
            END,
        ],
    ),
];
