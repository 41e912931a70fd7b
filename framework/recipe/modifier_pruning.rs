//! Reads the modifiers that prune into their typed form.

use crate::diagnostic::Diagnostic;
use crate::kind::{
    Acdc, FisherRule, Inter, Kind, MaskStructure, Pruning, PruningGroup, RigL, Scope, ScoreRule,
    SparsityStrategy, TopKast,
};
use crate::modifier::Reader;
use crate::modifier_table::{Absent, EPOCH_MAX};
use crate::params::selector;
use crate::value::{float, int, mask};
use crate::yaml::NodeId;

/// Most gradients in one estimate of the Fisher matrix, images in a gradient, and estimates per update.
const GRADS_MAX: i64 = 1 << 20;
const BATCH_MAX: i64 = 1 << 16;
const RECOMPUTATIONS_MAX: i64 = 1000;
/// Largest block of the Fisher matrix.
const BLOCK_MAX: i64 = 1 << 16;
/// Largest exponent of Powerpropagation.
const POWER_MAX: f64 = 16.0;

impl Reader<'_> {
    /// A class of the family of GMPruningModifier: it prunes more and more, from a start to an end.
    pub(crate) fn pruning(&mut self, start: f64, end: f64) -> Option<Pruning> {
        self.needs_end(end);
        if self.bool("phased") {
            self.error(self.at("phased"), "`phased: true` is not part of the language any more", "use ACDC");
        }
        let score = self.score()?;
        let last = self.arg("final_sparsity")?;
        let groups = if self.doc.is_map(last) {
            let listed = self
                .arg("params")
                .map_or(0, |node| self.doc.list(node).len().max(usize::from(self.doc.text(node).is_some())));
            if listed > 0 {
                let help = "write `params: []`";
                self.error(self.at("params"), "the parameters stand in `final_sparsity` here", help);
            }
            let entries: Vec<(NodeId, NodeId)> = self.doc.map(last).collect();
            let mut groups = Vec::with_capacity(entries.len());
            for (sparsity, names) in entries {
                let params = selector(self.doc, self.file, names, self.found)?;
                groups.push(PruningGroup { params, final_sparsity: float(self.doc, sparsity)? });
            }
            groups
        } else {
            vec![PruningGroup { params: self.params("params")?, final_sparsity: float(self.doc, last)? }]
        };
        let global = self.row.class == "GlobalMagnitudePruningModifier" || self.bool("global_sparsity");
        Some(Pruning {
            score,
            init_sparsity: float(self.doc, self.arg("init_sparsity")?),
            groups,
            start,
            end,
            update_frequency: self.float("update_frequency"),
            leave_enabled: self.bool("leave_enabled"),
            inter: self.inter(),
            structure: self.structure()?,
            scope: if global { Scope::Global } else { Scope::Uniform },
        })
    }

    pub(crate) fn acdc(&mut self, start: f64, end: f64) -> Option<Acdc> {
        self.needs_end(end);
        if self.float("update_frequency") < 0.0 {
            self.error(self.at("update_frequency"), "a phase lasts some epochs", "give their number");
        }
        Some(Acdc {
            params: self.params("params")?,
            sparsity: self.float("compression_sparsity"),
            start,
            end,
            update_frequency: self.float("update_frequency"),
            leave_enabled: self.bool("leave_enabled"),
            momentum_reset: self.bool("momentum_buffer_reset"),
            structure: self.structure()?,
            scope: self.scope(),
        })
    }

    pub(crate) fn rigl(&mut self, start: f64, end: f64) -> Option<RigL> {
        self.needs_end(end);
        if self.structure()? != MaskStructure::Unstructured {
            self.error(self.at("mask_type"), "RigL moves single weights", "use mask_type: unstructured");
        }
        Some(RigL {
            params: self.params("params")?,
            sparsity: self.float("final_sparsity"),
            start,
            end,
            update_frequency: self.float("update_frequency"),
            leave_enabled: self.bool("leave_enabled"),
            momentum_reset: self.bool("momentum_buffer_reset"),
            grads: self.whole("num_grads", GRADS_MAX)?,
            strategy: match self.text("sparsity_strategy") {
                "uniform" => SparsityStrategy::Uniform,
                "erdos_renyi" => SparsityStrategy::ErdosRenyi,
                _ => SparsityStrategy::ErdosRenyiKernel,
            },
            init_fraction: self.float("init_update_fraction"),
        })
    }

    pub(crate) fn top_kast(&mut self, start: f64, end: f64) -> Option<TopKast> {
        self.needs_end(end);
        let (forward, backward) = (self.float("forward_sparsity"), self.float("backward_sparsity"));
        if backward > forward {
            let message = "`backward_sparsity` is higher than `forward_sparsity`";
            self.error(self.at("backward_sparsity"), message, "every weight in use must be trained");
        }
        Some(TopKast {
            params: self.params("params")?,
            forward_sparsity: forward,
            backward_sparsity: backward,
            start,
            end,
            update_frequency: self.float("update_frequency"),
            leave_enabled: self.bool("leave_enabled"),
            active_weight_decay: self.float("active_weight_decay"),
            structure: self.structure()?,
            scope: self.scope(),
        })
    }

    pub(crate) fn structured(&mut self, start: f64, end: f64) -> Option<Pruning> {
        let pruning = self.pruning(start, end)?;
        if !matches!(pruning.structure, MaskStructure::Filter | MaskStructure::Channel) {
            let message = "StructuredPruning prunes filters or channels";
            self.error(self.at("mask_type"), message, "use mask_type: filter or channel");
        }
        if pruning.init_sparsity.is_none() {
            let message = "groups of tensors have no sparsity of their own";
            self.error(self.at("init_sparsity"), message, "give a number");
        }
        if pruning.score != ScoreRule::Magnitude {
            self.error(self.at("score_type"), "filters are scored by magnitude", "leave `score_type` out");
        }
        self.groups_are_found("param_groups");
        Some(Pruning { scope: Scope::Dependent, ..pruning })
    }

    pub(crate) fn layer_thinning(&mut self, start: f64) -> Option<Kind> {
        // `param_group_dependency_map`, which the class asks for, is of no consequence: the model shows what depends on what.
        let structure = match self.text("structure_type") {
            "channel" => MaskStructure::Channel,
            _ => MaskStructure::Filter,
        };
        let mut updates = Vec::new();
        for node in self.given("update_epochs").map(|list| self.doc.list(list).to_vec()).unwrap_or_default() {
            let epoch = float(self.doc, node).filter(|e| (0.0..=EPOCH_MAX).contains(e));
            match epoch {
                Some(epoch) => updates.push(epoch),
                None => self.error(self.doc.pos(node), "`update_epochs` is a list of epochs", ""),
            }
        }
        Some(Kind::LayerThinning { structure, start, updates })
    }

    /// Which tensors depend on each other is seen in the model.
    fn groups_are_found(&mut self, key: &str) {
        if let Some(node) = self.given(key) {
            let message = format!("`{key}` has no effect: what depends on what is found in the model");
            self.found.push(Diagnostic::warning(self.file, self.doc.pos(node), message, ""));
        }
    }

    pub(crate) fn powerpropagation(&mut self, start: f64, end: f64) -> Option<Kind> {
        let alpha = self.float("alpha");
        if !(1.0..=POWER_MAX).contains(&alpha) {
            let message = format!("`alpha` must be 1 to {POWER_MAX}");
            self.error(self.at("alpha"), message, "1 changes nothing, 2 to 4 are usual");
        }
        let (params, strict) = (self.params("params")?, self.bool("strict"));
        Some(Kind::Powerpropagation { params, alpha, strict, start, end })
    }

    fn needs_end(&mut self, end: f64) {
        if end < 0.0 {
            self.error(self.at("end_epoch"), "pruning needs an end epoch", "");
        }
    }

    fn structure(&self) -> Option<MaskStructure> {
        match self.arg("mask_type") {
            Some(node) => mask(self.doc, node),
            None => match self.default("mask_type") {
                Absent::Text("filter") => Some(MaskStructure::Filter),
                _ => Some(MaskStructure::Unstructured),
            },
        }
    }

    fn scope(&self) -> Scope {
        if self.bool("global_sparsity") { Scope::Global } else { Scope::Uniform }
    }

    pub(crate) fn inter(&self) -> Inter {
        match self.text("inter_func") {
            "linear" => Inter::Linear,
            "inverse_cubic" => Inter::InverseCubic,
            _ => Inter::Cubic,
        }
    }

    fn score(&mut self) -> Option<ScoreRule> {
        match self.row.class {
            "MovementPruningModifier" => return Some(ScoreRule::Movement),
            "OBSPruningModifier" => return self.fisher(false),
            "MFACPruningModifier" => return self.fisher(true),
            _ => {}
        }
        match self.text("score_type") {
            "magnitude" | "" => Some(ScoreRule::Magnitude),
            "movement" => Some(ScoreRule::Movement),
            other => {
                let message = format!("`score_type: {other}` is not known here");
                let help = "magnitude or movement; second-order scores have modifiers of their own";
                self.error(self.at("score_type"), message, help);
                None
            }
        }
    }

    fn fisher(&mut self, matrix_free: bool) -> Option<ScoreRule> {
        let damp = self.float("damp");
        if damp <= 0.0 {
            self.error(self.at("damp"), "`damp` must be above 0", "1e-7 is usual");
        }
        let batch = match self.given("grad_sampler_kwargs") {
            None => None,
            Some(kwargs) => {
                let found = self.doc.map(kwargs).find(|&(key, _)| self.doc.text(key) == Some("batch_size"));
                match found {
                    None => None,
                    Some((_, node)) => Some(self.count(node, "batch_size", BATCH_MAX)?),
                }
            }
        };
        let structure = self.structure()?;
        if !matrix_free && !matches!(structure, MaskStructure::Unstructured | MaskStructure::Block4) {
            let message = "OBSPruning knows masks of single weights and of four";
            self.error(self.at("mask_type"), message, "use mask_type: unstructured or block4");
        }
        let grads = match self.arg("num_grads").filter(|&node| self.doc.is_map(node)) {
            None => vec![(0.0, self.whole("num_grads", GRADS_MAX)?)],
            Some(map) => {
                let entries: Vec<(NodeId, NodeId)> = self.doc.map(map).collect();
                let mut grads = Vec::with_capacity(entries.len());
                for (from, count) in entries {
                    let Some(from) = float(self.doc, from).filter(|n| (0.0..1.0).contains(n)) else {
                        self.error(self.doc.pos(from), "the keys of `num_grads` are sparsities", "");
                        return None;
                    };
                    grads.push((from, self.count(count, "num_grads", GRADS_MAX)?));
                }
                grads.sort_by(|a, b| a.0.total_cmp(&b.0));
                if grads.first().is_none_or(|first| first.0 != 0.0) {
                    let help = "add the number from sparsity 0 on";
                    self.error(self.at("num_grads"), "`num_grads` has no entry for 0", help);
                }
                grads
            }
        };
        let block = self.whole("fisher_block_size", BLOCK_MAX)?;
        if !matrix_free && structure == MaskStructure::Block4 && block % 4 != 0 {
            let message = "`fisher_block_size` must be a multiple of 4 with mask_type: block4";
            self.error(self.at("fisher_block_size"), message, "48 is usual");
        }
        let rule = FisherRule {
            grads,
            batch,
            damp,
            block,
            recomputations: if matrix_free {
                1
            } else {
                self.whole("num_recomputations", RECOMPUTATIONS_MAX)?
            },
            matrix_free,
        };
        Some(ScoreRule::Fisher(rule))
    }

    /// A whole number of the recipe or the table, from 1 to `max`.
    fn whole(&mut self, name: &str, max: i64) -> Option<u32> {
        match self.arg(name) {
            Some(node) => self.count(node, name, max),
            None => match self.default(name) {
                Absent::Int(value) => u32::try_from(value).ok(),
                _ => None,
            },
        }
    }

    fn count(&mut self, node: NodeId, name: &str, max: i64) -> Option<u32> {
        let value = int(self.doc, node).filter(|n| (1..=max).contains(n)).and_then(|n| u32::try_from(n).ok());
        if value.is_none() {
            self.error(self.doc.pos(node), format!("`{name}` must be a whole number from 1 to {max}"), "");
        }
        value
    }
}
