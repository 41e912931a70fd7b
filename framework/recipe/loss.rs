//! Modifiers that add to the loss: distillation from a teacher's outputs or features, and a penalty on activations. Read
//! here, and compiled to terms that are looked up by step.

use crate::diagnostic::Pos;
use crate::kind::Kind;
use crate::modifier::Reader;
use crate::params::{Selector, no_match_help};
use crate::plan::{Action, Compiler, PoolRange};
use crate::value::{float, is_null};

/// A modifier that adds to the loss while it lasts.
#[derive(Clone, PartialEq, Debug)]
pub struct Loss {
    pub start: f64,
    pub end: f64,
    pub rule: LossRule,
}

#[derive(Clone, PartialEq, Debug)]
pub enum LossRule {
    /// `(1 - hardness) * loss + hardness * temperature^2 * KL` of the teacher's outputs from the student's.
    Distillation { hardness: f64, temperature: f64, outputs: Vec<(Pos, String)> },
    /// `loss + gain * sum of mean squares` of differences between features.
    Features {
        gain: f64,
        normalize: bool,
        project: bool,
        epsilon: f64,
        /// All layers that can be, where absent.
        student: Option<Vec<(Pos, String)>>,
        teacher: Option<Vec<(Pos, String)>>,
    },
    /// `loss + sum of alpha * penalty` of the inputs or outputs of layers.
    Activations { layers: Selector, alpha: Vec<f64>, normalized: bool, function: Penalty, of: Side },
}

/// What is added up of an activation, per image: its absolute values, their squares, what is above zero, or the Hoyer
/// square (sum of absolute values, squared, by sum of squares).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Penalty {
    L1,
    L2,
    Relu,
    HoyerSquare,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Input,
    Output,
}

/// What a modifier adds to the loss at every step from `first` to before `end`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LossTerm {
    /// Number of the modifier in [`Recipe::modifiers`](crate::Recipe::modifiers).
    pub modifier: u32,
    pub first: u64,
    pub end: u64,
    pub kind: TermKind,
}

/// See [`LossRule`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum TermKind {
    Distillation {
        hardness: f64,
        temperature: f64,
    },
    /// [`Schedule::pairs`](crate::Schedule::pairs) resolves the range.
    Features {
        gain: f64,
        normalize: bool,
        project: bool,
        epsilon: f64,
        pairs: PoolRange,
    },
    /// [`Schedule::penalised`](crate::Schedule::penalised) resolves the range.
    Activations {
        layers: PoolRange,
        normalized: bool,
        function: Penalty,
        of: Side,
    },
}

impl TermKind {
    /// Whether it needs a teacher.
    pub fn distils(&self) -> bool {
        !matches!(self, TermKind::Activations { .. })
    }
}

/// A layer of the student (a row of the layers that `compile` was given) and the one of the teacher that it follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    pub student: u32,
    pub teacher: String,
}

/// The one output that models here have, by the names that recipes give it.
const OUTPUTS: [&str; 2] = ["logits", "0"];

impl Reader<'_> {
    pub(crate) fn distillation(&mut self, start: f64, end: f64) -> Option<Kind> {
        let outputs = self.listed("distill_output_keys").unwrap_or_default();
        let rule = LossRule::Distillation {
            hardness: self.float("hardness"),
            temperature: self.float("temperature"),
            outputs,
        };
        Some(Kind::Loss(Loss { start, end, rule }))
    }

    pub(crate) fn feature_distillation(&mut self, start: f64, end: f64) -> Option<Kind> {
        let (student, teacher) = (self.listed("student_layer_names"), self.listed("teacher_layer_names"));
        if let (Some(student), Some(teacher)) = (&student, &teacher)
            && student.len() != teacher.len()
        {
            let message = format!("{} student layers follow {} of the teacher", student.len(), teacher.len());
            self.error(self.at("teacher_layer_names"), message, "name as many of both");
        }
        let epsilon = self.float("epsilon");
        if epsilon < 0.0 {
            self.error(self.at("epsilon"), "`epsilon` must be 0 or more", "");
        }
        let rule = LossRule::Features {
            gain: self.float("gain"),
            normalize: self.bool("normalize"),
            project: self.bool("project_features"),
            epsilon,
            student: student.clone().or_else(|| teacher.clone()),
            teacher: teacher.or(student),
        };
        Some(Kind::Loss(Loss { start, end, rule }))
    }

    pub(crate) fn activation_penalty(&mut self, start: f64, end: f64) -> Option<Kind> {
        let node = self.arg("alpha")?;
        let listed = self.doc.list(node).to_vec();
        let alpha: Option<Vec<f64>> = match listed.is_empty() {
            true => float(self.doc, node).map(|alpha| vec![alpha]),
            false => listed.iter().map(|&node| float(self.doc, node)).collect(),
        };
        let Some(alpha) = alpha else {
            self.error(self.at("alpha"), "`alpha` must be a number, or one for each layer", "");
            return None;
        };
        let rule = LossRule::Activations {
            layers: self.params("layers")?,
            alpha,
            normalized: self.bool("layer_normalized"),
            function: match self.text("reg_func") {
                "l2" => Penalty::L2,
                "relu" => Penalty::Relu,
                "hs" => Penalty::HoyerSquare,
                _ => Penalty::L1,
            },
            of: if self.text("reg_tens") == "out" { Side::Output } else { Side::Input },
        };
        Some(Kind::Loss(Loss { start, end, rule }))
    }

    /// Names and numbers of a list, as texts; `None` where it is absent or empty.
    fn listed(&mut self, name: &str) -> Option<Vec<(Pos, String)>> {
        let node = self.given(name)?;
        let single = [node];
        let listed = self.doc.list(node);
        let nodes = if listed.is_empty() && self.doc.text(node).is_some() { &single[..] } else { listed };
        let text = |&node: &_| {
            let text = self.doc.text(node).map_or_else(|| self.doc.show(node), str::to_owned);
            (self.doc.pos(node), text)
        };
        Some(nodes.iter().filter(|&&n| !is_null(self.doc, n)).map(text).collect())
            .filter(|l: &Vec<_>| !l.is_empty())
    }
}

impl Compiler<'_> {
    pub(crate) fn loss(&mut self, number: u32, pos: Pos, loss: &Loss) {
        let kind = match &loss.rule {
            LossRule::Distillation { hardness, temperature, outputs } => {
                for (pos, name) in outputs.iter().filter(|(_, name)| !OUTPUTS.contains(&name.as_str())) {
                    self.error(
                        *pos,
                        format!("the model has no output `{name}`"),
                        "its one output is `logits`",
                    );
                }
                TermKind::Distillation { hardness: *hardness, temperature: *temperature }
            }
            LossRule::Features { gain, normalize, project, epsilon, student, teacher } => {
                let Some(pairs) = self.pairs(student.as_deref(), teacher.as_deref()) else { return };
                let (gain, normalize, project, epsilon) = (*gain, *normalize, *project, *epsilon);
                TermKind::Features { gain, normalize, project, epsilon, pairs }
            }
            LossRule::Activations { layers, alpha, normalized, function, of } => {
                let Some(layers) = self.penalised(pos, layers, alpha) else { return };
                TermKind::Activations { layers, normalized: *normalized, function: *function, of: *of }
            }
        };
        let (first, last) = (self.step(loss.start), self.schedule.steps);
        let end = if loss.end < 0.0 { last } else { self.step(loss.end).min(last) };
        let term = self.schedule.terms.len() as u32;
        self.schedule.terms.push(LossTerm { modifier: number, first, end, kind });
        self.event(number, first, Action::BeginTerm { term });
        if loss.end >= 0.0 {
            self.event(number, self.step(loss.end), Action::EndTerm { term });
        }
    }

    fn pairs(
        &mut self,
        student: Option<&[(Pos, String)]>,
        teacher: Option<&[(Pos, String)]>,
    ) -> Option<PoolRange> {
        let start = self.schedule.pairs.len() as u32;
        let errors = self.error_count();
        match (student, teacher) {
            (Some(student), Some(teacher)) => {
                for ((pos, student), (_, teacher)) in student.iter().zip(teacher) {
                    let found = self.layers.iter().position(|l| l.has_weight && l.name == *student);
                    match found {
                        Some(row) => {
                            self.schedule.pairs.push(Pair { student: row as u32, teacher: teacher.clone() })
                        }
                        None => self.no_layer(*pos, student),
                    }
                }
            }
            _ => {
                let of_features = |l: &crate::LayerRow| l.has_weight && l.kind != "Embedding";
                for (row, layer) in self.layers.iter().enumerate().filter(|(_, l)| of_features(l)) {
                    let pair = Pair { student: row as u32, teacher: layer.name.clone() };
                    self.schedule.pairs.push(pair);
                }
            }
        }
        let len = self.schedule.pairs.len() as u32 - start;
        (self.error_count() == errors).then_some(PoolRange { start, len })
    }

    fn penalised(&mut self, pos: Pos, selector: &Selector, alpha: &[f64]) -> Option<PoolRange> {
        let errors = self.error_count();
        let mut chosen: Vec<u32> = Vec::new();
        for pattern in &selector.patterns {
            let found: Vec<u32> = (0..self.layers.len())
                .filter(|&row| {
                    let layer = &self.layers[row];
                    layer.has_weight && layer.kind != "Embedding" && pattern.covers_layer(&layer.name)
                })
                .map(|row| row as u32)
                .collect();
            if found.is_empty() {
                self.no_layer(pattern.pos, &pattern.text);
            }
            chosen.extend(found.iter().filter(|row| !chosen.contains(row)).collect::<Vec<_>>());
        }
        if alpha.len() != 1 && alpha.len() != chosen.len() {
            let message = format!("{} values of `alpha` for {} layers", alpha.len(), chosen.len());
            self.error(pos, message, "give one, or one for each layer");
        }
        if self.error_count() > errors {
            return None;
        }
        let start = self.schedule.penalised.len() as u32;
        let of = |(i, row): (usize, u32)| (row, alpha[if alpha.len() == 1 { 0 } else { i }]);
        self.schedule.penalised.extend(chosen.into_iter().enumerate().map(of));
        Some(PoolRange { start, len: self.schedule.penalised.len() as u32 - start })
    }

    pub(crate) fn no_layer(&mut self, pos: Pos, name: &str) {
        let pattern = crate::params::Pattern { pos, text: name.to_owned(), rule: crate::params::Rule::Name };
        let help = no_match_help(&pattern, self.layers.iter().map(|layer| layer.name.as_str()));
        self.error(pos, format!("no layer matches `{name}`"), help);
    }
}
