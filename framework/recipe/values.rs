//! Modifiers that set parameters to values, take layers out, and log: read here, and compiled to events.

use crate::diagnostic::Pos;
use crate::kind::{Inter, Kind};
use crate::modifier::{Modifier, Reader};
use crate::params::{Pattern, Rule, Selector};
use crate::plan::{Action, Compiler, PoolRange};
use crate::plan_pruning::interpolate;
use crate::plan_quant::LayerRow;
use crate::value::float;
use crate::yaml::NodeId;

/// A number for every element, or a tensor of the parameter's shape.
#[derive(Clone, PartialEq, Debug)]
pub struct ParamValue {
    pub pos: Pos,
    /// Empty: one number for all.
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// Sets parameters once (`from` and `to` are the same and `end` is -1), or moves them from one value to another.
#[derive(Clone, PartialEq, Debug)]
pub struct SetParam {
    pub params: Selector,
    pub strict: bool,
    pub from: ParamValue,
    pub to: ParamValue,
    pub inter: Inter,
    pub start: f64,
    pub end: f64,
    pub update_frequency: f64,
}

/// Deepest list in a value: tensors of convolutions have four dimensions.
const DIMS_MAX: usize = 8;

impl Reader<'_> {
    pub(crate) fn set_param(&mut self, start: f64) -> Option<Kind> {
        let value = self.param_value("val")?;
        Some(Kind::SetParam(SetParam {
            params: self.params("params")?,
            strict: self.bool("params_strict"),
            from: value.clone(),
            to: value,
            inter: Inter::Linear,
            start,
            end: -1.0,
            update_frequency: -1.0,
        }))
    }

    pub(crate) fn gradual_param(&mut self, start: f64, end: f64) -> Option<Kind> {
        if end < 0.0 {
            self.error(self.at("end_epoch"), "moving a parameter needs an end epoch", "");
        }
        let (from, to) = (self.param_value("init_val")?, self.param_value("final_val")?);
        if from.dims != to.dims {
            self.error(to.pos, format!("`final_val` is {:?}, `init_val` is {:?}", to.dims, from.dims), "");
        }
        Some(Kind::SetParam(SetParam {
            params: self.params("params")?,
            strict: self.bool("params_strict"),
            from,
            to,
            inter: self.inter(),
            start,
            end,
            update_frequency: self.float("update_frequency"),
        }))
    }

    fn param_value(&mut self, name: &str) -> Option<ParamValue> {
        let node = self.arg(name)?;
        let mut value = ParamValue { pos: self.doc.pos(node), dims: Vec::new(), values: Vec::new() };
        let fits = self.gather(node, 0, &mut value);
        if !fits {
            let message = format!("`{name}` must be a number, or lists of numbers as long as each other");
            self.error(value.pos, message, "");
        }
        fits.then_some(value)
    }

    /// Appends the numbers below a node; whether all lists of one depth are of one length.
    fn gather(&self, node: NodeId, depth: usize, value: &mut ParamValue) -> bool {
        if let Some(number) = float(self.doc, node).filter(|n| n.is_finite()) {
            value.values.push(number as f32);
            return depth == value.dims.len();
        }
        let list = self.doc.list(node);
        if list.is_empty() || depth == DIMS_MAX {
            return false;
        }
        if value.dims.len() == depth && value.values.is_empty() {
            value.dims.push(list.len());
        }
        value.dims.get(depth) == Some(&list.len())
            && list.iter().all(|&node| self.gather(node, depth + 1, value))
    }
}

impl Compiler<'_> {
    pub(crate) fn set_param(&mut self, number: u32, pos: Pos, set: &SetParam) {
        let Some(params) = self.select(&set.params, false, set.strict) else { return };
        for &row in self.schedule.params(params).to_vec().iter() {
            let param = &self.params[row as usize];
            if !set.from.dims.is_empty() && set.from.dims != param.shape {
                let message =
                    format!("the value is {:?}, `{}` is {:?}", set.from.dims, param.name, param.shape);
                self.error(set.from.pos, message, "give a number, or a list of its shape");
                return;
            }
        }
        let (from, to) = (self.pooled(&set.from), self.pooled(&set.to));
        let first = self.step(set.start);
        let last = if set.end < 0.0 { first } else { self.step(set.end) };
        let Some(steps) = self.updates(pos, first, last, set.update_frequency, 1) else { return };
        for step in steps {
            let (epoch, start) = (step as f64 / self.steps_per_epoch, set.start.max(0.0));
            let time = if step >= last { 1.0 } else { (epoch - start) / (set.end - start) };
            let part = interpolate(set.inter, time);
            self.event(number, step, Action::SetParams { params, from, to, part });
        }
    }

    fn pooled(&mut self, value: &ParamValue) -> PoolRange {
        let start = self.schedule.values.len() as u32;
        self.schedule.values.extend(&value.values);
        PoolRange { start, len: value.values.len() as u32 }
    }

    pub(crate) fn remove_layers(&mut self, number: u32, layers: &Selector, start: f64, end: f64) {
        let means = |pattern: &Pattern, layer: &LayerRow| match pattern.rule {
            Rule::All | Rule::AllPrunable => layer.removable && layer.has_weight,
            _ => pattern.matches(&layer.name, layer.has_weight),
        };
        let unfit = ("does not give what it takes", "only layers that keep the shape can be left out");
        let Some(layers) = self.choose_layers(layers, means, |layer| layer.removable, unfit) else { return };
        self.event(number, self.step(start), Action::RemoveLayers { layers, removed: true });
        if end >= 0.0 {
            self.event(number, self.step(end), Action::RemoveLayers { layers, removed: false });
        }
    }

    pub(crate) fn fat_relu(&mut self, number: u32, layers: &Selector, threshold: f64, start: f64, end: f64) {
        let means = |pattern: &Pattern, layer: &LayerRow| match pattern.rule {
            Rule::All | Rule::AllPrunable => layer.rectifies,
            _ => pattern.covers_layer(&layer.name) && (layer.rectifies || pattern.text == layer.name),
        };
        let unfit =
            ("has no ReLU", "`lacuna recipe plan` with `layers: __ALL__` counts the places that have one");
        let Some(layers) = self.choose_layers(layers, means, |layer| layer.rectifies, unfit) else { return };
        self.event(number, self.step(start), Action::SetThreshold { layers, threshold });
        if end >= 0.0 {
            self.event(number, self.step(end), Action::SetThreshold { layers, threshold: 0.0 });
        }
    }

    /// The layers that `selector` means and that are `fit`. A pattern that means none is an error, as is the name of a layer
    /// that is not fit: `unfit` says what it lacks, and what to do.
    fn choose_layers(
        &mut self,
        selector: &Selector,
        means: impl Fn(&Pattern, &LayerRow) -> bool,
        fit: impl Fn(&LayerRow) -> bool,
        unfit: (&str, &str),
    ) -> Option<PoolRange> {
        let errors = self.error_count();
        let mut chosen = vec![false; self.layers.len()];
        for pattern in &selector.patterns {
            let mut found = false;
            for (row, layer) in self.layers.iter().enumerate().filter(|(_, layer)| means(pattern, layer)) {
                if fit(layer) {
                    (chosen[row], found) = (true, true);
                } else if matches!(pattern.rule, Rule::Name) {
                    self.error(pattern.pos, format!("`{}` {}", pattern.text, unfit.0), unfit.1);
                    found = true;
                }
            }
            if !found {
                self.no_layer(pattern.pos, &pattern.text);
            }
        }
        if self.error_count() > errors {
            return None;
        }
        let start = self.schedule.pool.len() as u32;
        self.schedule.pool.extend((0..chosen.len() as u32).filter(|&row| chosen[row as usize]));
        Some(PoolRange { start, len: self.schedule.pool.len() as u32 - start })
    }

    pub(crate) fn custom(&mut self, number: u32, modifier: &Modifier) {
        let Kind::Custom { params, numbers, start, end, update_frequency } = &modifier.kind else { return };
        let params = match params {
            Some(params) => self.select(params, false, true),
            None => Some(PoolRange { start: 0, len: 0 }),
        };
        let Some(params) = params else { return };
        let from = self.schedule.numbers.len() as u32;
        self.schedule.numbers.extend(numbers);
        let numbers = PoolRange { start: from, len: numbers.len() as u32 };
        let first = self.step(*start);
        let last = if *end < 0.0 { first } else { self.step(*end).max(first) };
        let Some(steps) = self.updates(modifier.pos, first, last, *update_frequency, 1) else { return };
        for step in steps {
            let part = if step >= last { 1.0 } else { (step - first) as f64 / (last - first) as f64 };
            self.event(number, step, Action::Custom { params, numbers, part });
        }
    }

    pub(crate) fn logging(&mut self, number: u32, pos: Pos, start: f64, end: f64, update_frequency: f64) {
        let (first, all) = (self.step(start), self.schedule.steps);
        let last = if end < 0.0 { all } else { self.step(end).min(all) };
        let Some(steps) = self.updates(pos, first, last.max(first), update_frequency, 1) else { return };
        for step in steps {
            self.event(number, step, Action::LogSparsity);
        }
    }
}
