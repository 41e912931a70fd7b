//! New recipes: commented YAML put together from a few choices, those of `sparseml.recipe_template` among them.
//!
//! Every number is a variable at the top, so that the command line can change it; epochs follow from `num_epochs`.

use std::fmt::Write as _;

/// What a new recipe does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Template {
    pub pruning: Pruner,
    pub quantization: bool,
    pub rate: Rate,
    pub target: Target,
    pub distillation: bool,
}

/// How weights are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pruner {
    None,
    Gmp,
    Global,
    Acdc,
    Obs,
    Mfac,
    Movement,
    Structured,
    Constant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rate {
    Constant,
    Linear,
    Cosine,
    Cyclic,
    Stepped,
    Exponential,
}

/// What the result runs on, which decides the structure of masks and the kind of quantisation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Default,
    Vnni,
    TensorRt,
}

/// The words that choose a value, each with the value that it chooses.
pub const PRUNERS: &[(&str, Pruner)] = &[
    ("false", Pruner::None),
    ("true", Pruner::Gmp),
    ("gmp", Pruner::Gmp),
    ("magnitude", Pruner::Gmp),
    ("global", Pruner::Global),
    ("acdc", Pruner::Acdc),
    ("obs", Pruner::Obs),
    ("mfac", Pruner::Mfac),
    ("movement", Pruner::Movement),
    ("structured", Pruner::Structured),
    ("constant", Pruner::Constant),
];
pub const RATES: &[(&str, Rate)] = &[
    ("constant", Rate::Constant),
    ("linear", Rate::Linear),
    ("cosine", Rate::Cosine),
    ("cyclic", Rate::Cyclic),
    ("stepped", Rate::Stepped),
    ("exponential", Rate::Exponential),
];
pub const TARGETS: &[(&str, Target)] =
    &[("default", Target::Default), ("vnni", Target::Vnni), ("tensorrt", Target::TensorRt)];

/// Ready-made choices: name, what it is for, the choices.
pub const TEMPLATES: &[(&str, &str, Template)] = &[
    ("dense", "training without sparsity, to compare with", plain(Pruner::None, false)),
    ("pruning", "gradual magnitude pruning", plain(Pruner::Gmp, false)),
    ("quantization", "quantisation-aware training", plain(Pruner::None, true)),
    ("pruning_quantization", "pruning, then quantisation of what is left", plain(Pruner::Gmp, true)),
    ("transfer", "a pruned model on other data: its zeros stay", plain(Pruner::Constant, false)),
    ("transfer_quantization", "the same, quantised at the end", plain(Pruner::Constant, true)),
    (
        "distillation",
        "pruning with a teacher's outputs in the loss",
        Template { distillation: true, ..plain(Pruner::Gmp, false) },
    ),
    ("acdc", "alternating dense and compressed phases", plain(Pruner::Acdc, false)),
    ("obs", "second-order pruning (oBERT)", plain(Pruner::Obs, false)),
    ("mfac", "second-order pruning without a matrix", plain(Pruner::Mfac, false)),
    ("movement", "pruning of weights that move towards zero", plain(Pruner::Movement, false)),
    ("structured", "whole filters pruned and removed", plain(Pruner::Structured, false)),
];

const fn plain(pruning: Pruner, quantization: bool) -> Template {
    Template { pruning, quantization, rate: Rate::Cosine, target: Target::Default, distillation: false }
}

impl Template {
    /// Why these choices do not go together, where they do not.
    pub fn conflict(&self) -> Option<&'static str> {
        match (self.pruning, self.target) {
            (Pruner::Obs, Target::TensorRt) => {
                Some("second-order pruning knows masks of single weights and of four, not 2:4")
            }
            _ => None,
        }
    }

    /// The recipe's text. `command` is its first line, a comment that says how to run it.
    pub fn text(&self, command: &str) -> String {
        let mut out = format!("# {command}\n#\n# {}\n", self.summary());
        out += "# Change any variable from the command line: --recipe-args num_epochs=40\n";
        self.variables(&mut out);
        self.training(&mut out);
        self.pruning(&mut out);
        self.quantization(&mut out);
        if self.distillation {
            out += "
distillation_modifiers:
  - !DistillationModifier
    start_epoch: 0.0
    hardness: eval(distillation_hardness)
    temperature: eval(distillation_temperature)
";
        }
        out
    }

    fn summary(&self) -> String {
        let pruning = match self.pruning {
            Pruner::None => "no pruning",
            Pruner::Gmp => "gradual magnitude pruning, each tensor by itself",
            Pruner::Global => "gradual magnitude pruning over all tensors together",
            Pruner::Acdc => "alternating compressed and dense phases (AC/DC)",
            Pruner::Obs => "second-order pruning with compensation of the surviving weights (oBERT)",
            Pruner::Mfac => "second-order pruning with a matrix-free Fisher inverse (M-FAC)",
            Pruner::Movement => "pruning of weights that move towards zero",
            Pruner::Structured => "pruning of whole filters, which are removed from the model at the end",
            Pruner::Constant => "the zeros that the model has stay zero",
        };
        let quantization = if self.quantization { ", then quantisation to int8" } else { "" };
        let distillation = if self.distillation { ", with a teacher" } else { "" };
        format!("Training with {pruning}{quantization}{distillation}.")
    }

    /// Whether weights are pruned step by step.
    fn gradual(&self) -> bool {
        !matches!(self.pruning, Pruner::None | Pruner::Constant)
    }

    fn variables(&self, out: &mut String) {
        *out += "\n# Length of the training, in epochs\nnum_epochs: 30\n\n# Learning rate\ninit_lr: 0.05\n";
        match self.rate {
            Rate::Constant => {}
            Rate::Linear | Rate::Cosine => *out += "final_lr: 0.0\n",
            Rate::Cyclic => *out += "final_lr: 0.0005\ncycle_epochs: 5\n",
            Rate::Stepped => {
                *out += "# A tenth of it from each of these epochs on\nlr_steps: [10, 20]\nlr_gamma: 0.1\n"
            }
            Rate::Exponential => *out += "# Its share that is left after each epoch\nlr_gamma: 0.9\n",
        }
        if self.gradual() {
            let until = if self.quantization { "0.5" } else { "0.6" };
            let whole = if self.pruning == Pruner::Acdc { ("int(", ")") } else { ("", "") };
            let _ = write!(
                out,
                "\n# Pruning: its epochs, and how much of each layer becomes zero\npruning_start_epoch: 0\npruning_end_epoch: eval({}num_epochs * {until}{})\n",
                whole.0, whole.1
            );
            // Phases of AC/DC are whole numbers of epochs.
            let every = match self.pruning {
                Pruner::Acdc => "3",
                Pruner::Obs | Pruner::Mfac => "2.0",
                _ => "0.5",
            };
            let (init, last) = match (self.pruning, self.target) {
                (Pruner::Structured, _) => ("0.05", "0.5"),
                // Two of four weights are zero at all times.
                (_, Target::TensorRt) => ("0.5", "0.5"),
                (Pruner::Obs | Pruner::Mfac, _) => ("0.3", "0.9"),
                _ => ("0.05", "0.9"),
            };
            let _ = writeln!(out, "pruning_update_frequency: {every}");
            if self.pruning != Pruner::Acdc {
                let _ = writeln!(out, "init_sparsity: {init}");
            }
            let _ = writeln!(out, "final_sparsity: {last}");
            let mask = match (self.pruning, self.target) {
                (Pruner::Structured, _) => "filter",
                (_, Target::Default) => "unstructured",
                (_, Target::Vnni) => "block4",
                // In quotes: YAML reads 2:4 as 124.
                (_, Target::TensorRt) => "\"2:4\"",
            };
            let _ = writeln!(out, "mask_type: {mask}");
            match self.pruning {
                Pruner::Obs => {
                    *out += "# Gradients in an estimate, and the side of its blocks\nnum_grads: 1024\nfisher_block_size: 48\n"
                }
                Pruner::Mfac => {
                    *out += "# Gradients in an estimate, and the side of its blocks\nnum_grads: 64\nfisher_block_size: 2000\n"
                }
                _ => {}
            }
        }
        if self.quantization {
            *out += "\n# Quantisation: ranges are observed first, then frozen, then the batch-norm statistics are\nquantization_start_epoch: eval(num_epochs * 0.8)\ndisable_observer_epoch: eval(num_epochs * 0.9)\nfreeze_bn_epoch: eval(num_epochs * 0.95)\n";
        }
        if self.distillation {
            *out += "\n# Share of the teacher in the loss, and how soft its outputs are made\ndistillation_hardness: 0.5\ndistillation_temperature: 2.0\n";
        }
    }

    fn training(&self, out: &mut String) {
        *out += "\ntraining_modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0.0\n    end_epoch: eval(num_epochs)\n\n";
        let function = |name: &str, more: &str| {
            format!(
                "  - !LearningRateFunctionModifier\n    start_epoch: 0.0\n    end_epoch: eval(num_epochs)\n    lr_func: {name}\n    init_lr: eval(init_lr)\n    final_lr: eval(final_lr)\n{more}"
            )
        };
        let class = |name: &str, kwargs: &str| {
            format!(
                "  - !LearningRateModifier\n    start_epoch: 0.0\n    end_epoch: eval(num_epochs)\n    lr_class: {name}\n    lr_kwargs: {{{kwargs}}}\n    init_lr: eval(init_lr)\n"
            )
        };
        *out += &match self.rate {
            Rate::Constant => {
                "  - !SetLearningRateModifier\n    start_epoch: 0.0\n    learning_rate: eval(init_lr)\n"
                    .to_owned()
            }
            Rate::Linear => function("linear", ""),
            Rate::Cosine => function("cosine", ""),
            Rate::Cyclic => function("cyclic_linear", "    cycle_epochs: eval(cycle_epochs)\n"),
            Rate::Stepped => class("MultiStepLR", "milestones: eval(lr_steps), gamma: eval(lr_gamma)"),
            Rate::Exponential => class("ExponentialLR", "gamma: eval(lr_gamma)"),
        };
    }

    fn pruning(&self, out: &mut String) {
        let (class, special) = match self.pruning {
            Pruner::None => return,
            Pruner::Constant => {
                *out += "\npruning_modifiers:\n  - !ConstantPruningModifier\n    params: __ALL_PRUNABLE__\n    start_epoch: 0.0\n";
                return;
            }
            Pruner::Gmp => ("MagnitudePruningModifier", ""),
            Pruner::Global => ("GlobalMagnitudePruningModifier", ""),
            Pruner::Acdc => ("ACDCPruningModifier", "    compression_sparsity: eval(final_sparsity)\n"),
            Pruner::Obs => (
                "OBSPruningModifier",
                "    num_grads: eval(num_grads)\n    fisher_block_size: eval(fisher_block_size)\n",
            ),
            Pruner::Mfac => (
                "MFACPruningModifier",
                "    num_grads: eval(num_grads)\n    fisher_block_size: eval(fisher_block_size)\n",
            ),
            Pruner::Movement => ("MovementPruningModifier", ""),
            Pruner::Structured => ("StructuredPruningModifier", ""),
        };
        let _ = write!(out, "\npruning_modifiers:\n  - !{class}\n    params: __ALL_PRUNABLE__\n");
        if self.pruning != Pruner::Acdc {
            *out += "    init_sparsity: eval(init_sparsity)\n    final_sparsity: eval(final_sparsity)\n    inter_func: cubic\n";
        }
        *out += "    start_epoch: eval(pruning_start_epoch)\n    end_epoch: eval(pruning_end_epoch)\n    update_frequency: eval(pruning_update_frequency)\n    mask_type: eval(mask_type)\n";
        *out += special;
        if self.pruning == Pruner::Structured {
            *out += "\n  # Once no filter is pruned any more, those that are zero leave the model.\n  - !LayerThinningModifier\n    param_group_dependency_map: {}\n    structure_type: filter\n    start_epoch: eval(pruning_end_epoch)\n    update_epochs: [eval(pruning_end_epoch)]\n";
        }
    }

    fn quantization(&self, out: &mut String) {
        if !self.quantization {
            return;
        }
        *out += "\nquantization_modifiers:\n  - !QuantizationModifier\n    start_epoch: eval(quantization_start_epoch)\n    disable_quantization_observer_epoch: eval(disable_observer_epoch)\n    freeze_bn_stats_epoch: eval(freeze_bn_epoch)\n";
        *out += if self.target == Target::TensorRt {
            "    scheme: tensorrt\n"
        } else {
            "    scheme:\n      input_activations:\n        num_bits: 8\n        symmetric: False\n      weights:\n        num_bits: 8\n        symmetric: True\n        strategy: channel\n"
        };
    }
}
