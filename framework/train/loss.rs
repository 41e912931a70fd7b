//! What recipes add to the loss: distance to a teacher's outputs (Hinton et al. 2015, arXiv:1503.02531) or features
//! (Romero et al. 2015, arXiv:1412.6550), and penalties on activations (Kurtz et al. 2020, "Inducing and exploiting
//! activation sparsity"). Terms apply one after the other, each to the loss that the ones before it left.

use crate::checkpoint::NamedTensor;
use crate::error::{Error, Result};
use crate::optimizer::{self, Moments, Optimizer, Rows};
use crate::quantize;
use crate::weights;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use lacuna_nn::features::{self, Feature, Side};
use lacuna_nn::layers::Init;
use lacuna_nn::ops::{self, Window};
use lacuna_nn::params::{ParamTable, Role, Updated};
use lacuna_nn::quant::Pass;
use lacuna_nn::{Classifier, Input, Results};
use lacuna_recipe::{LossTerm, Pair, Penalty, PoolRange, Schedule, TermKind};
use std::collections::BTreeMap;

/// Whom a student follows.
#[derive(Clone, Debug, Default)]
pub enum Teacher<M> {
    /// Nobody was named: a recipe that distils is refused.
    #[default]
    Missing,
    /// Distillation is left out.
    Disabled,
    /// The student itself, as it is when the modifier starts.
    Itself,
    /// Another network, on a device without autodiff, and how it runs.
    Other(M, Pass),
}

/// What terms remember: the copy that a student follows, and projections of its features, which are trained with it.
pub struct Losses<M> {
    teacher: Teacher<M>,
    /// Of the student, where it follows itself.
    copy: Option<(M, Pass)>,
    projections: BTreeMap<(usize, usize), Projection>,
}

/// A matrix [teacher's channels, student's channels] with what the optimiser remembers of it.
#[derive(Clone, Debug)]
struct Projection {
    dims: [usize; 2],
    weight: Vec<f32>,
    moments: Moments,
}

/// A loss whose gradients can be taken.
pub struct Total {
    pub loss: Tensor<1>,
    /// Before any term.
    pub task: f32,
    /// Value of each term's own part, by the name of its modifier.
    pub parts: Vec<(&'static str, f32)>,
    projections: Vec<((usize, usize), Tensor<2>)>,
}

/// Names of a checkpoint's tensors.
const TEACHER: &str = "teacher/";
const PROJECTION: &str = "projection/";

impl<M: Classifier> Losses<M> {
    /// Errors: a recipe that distils, and no teacher, or one that has not got a layer that the recipe names.
    pub fn new(teacher: Teacher<M>, schedule: &Schedule) -> Result<Losses<M>> {
        let distils = schedule.terms.iter().find(|term| term.kind.distils());
        if let (Some(term), Teacher::Missing) = (distils, &teacher) {
            let class = schedule.class(term.modifier);
            return Err(Error::Recipe(format!(
                "{class} needs a teacher: give weights with --teacher FILE, or --teacher self, or --teacher disable"
            )));
        }
        if let Teacher::Other(module, _) = &teacher {
            let table = ParamTable::of(module);
            for term in &schedule.terms {
                if let TermKind::Features { pairs, .. } = term.kind {
                    weights_of(&table, schedule.pairs(pairs).iter().map(|pair| pair.teacher.as_str()))?;
                }
            }
        }
        Ok(Losses { teacher, copy: None, projections: BTreeMap::new() })
    }

    /// A term begins: a student that follows itself is copied.
    pub fn begin(&mut self, term: &LossTerm, student: &M, pass: &Pass) {
        if term.kind.distils() && matches!(self.teacher, Teacher::Itself) {
            self.copy = Some((student.valid(), *pass));
        }
    }

    /// Forward and loss of a step.
    #[allow(clippy::too_many_arguments)]
    pub fn of_step(
        &mut self,
        student: &M,
        table: &ParamTable,
        schedule: &Schedule,
        step: u64,
        x: &Input,
        pass: &Pass,
        task: impl FnOnce(Results) -> Tensor<1>,
    ) -> Result<Total> {
        let disabled = matches!(self.teacher, Teacher::Disabled);
        let terms: Vec<(usize, &LossTerm)> =
            schedule.terms_at(step).filter(|(_, term)| !(disabled && term.kind.distils())).collect();
        if terms.is_empty() {
            let loss = task(student.results(x.clone(), pass));
            let value = loss.clone().into_scalar();
            return Ok(Total { loss, task: value, parts: Vec::new(), projections: Vec::new() });
        }
        let layers = quantize::layers(table);
        let (mut own, mut theirs) = (Vec::new(), Vec::new());
        for (_, term) in &terms {
            match term.kind {
                TermKind::Distillation { .. } => {}
                TermKind::Features { pairs, .. } => {
                    let pairs = schedule.pairs(pairs);
                    let names = pairs.iter().map(|pair| layers[pair.student as usize].name.as_str());
                    own.extend(weights_of(table, names)?.into_iter().map(|id| (id, Side::Output)));
                    if let Some((teacher, _)) = self.teacher() {
                        let names = pairs.iter().map(|pair| pair.teacher.as_str());
                        let ids = weights_of(&ParamTable::of(teacher), names)?;
                        theirs.extend(ids.into_iter().map(|id| (id, Side::Output)));
                    }
                }
                TermKind::Activations { layers: range, of, .. } => {
                    let names =
                        schedule.penalised(range).iter().map(|&(l, _)| layers[l as usize].name.as_str());
                    let side = if of == lacuna_recipe::Side::Input { Side::Input } else { Side::Output };
                    own.extend(weights_of(table, names)?.into_iter().map(|id| (id, side)));
                }
            }
        }
        // One place may be asked for by several terms.
        let (results, found) = features::tap(unique(&own), || student.results(x.clone(), pass));
        let own = spread(&own, found);
        let plain = x.clone().without_autodiff();
        let taught = match self.teacher().filter(|_| terms.iter().any(|(_, term)| term.kind.distils())) {
            Some((teacher, pass)) => {
                let (logits, found) = features::tap(unique(&theirs), || teacher.results(plain, pass));
                Some((logits, spread(&theirs, found)))
            }
            None => None,
        };
        let mut loss = task(results.clone());
        let task: f32 = loss.clone().into_scalar();
        let device = x.device();
        let (mut parts, mut projections) = (Vec::new(), Vec::new());
        let (mut own, mut theirs) = (own.into_iter(), taught.iter().flat_map(|(_, found)| found.clone()));
        for (index, term) in terms {
            let class = schedule.class(term.modifier);
            let part = match term.kind {
                TermKind::Distillation { hardness, temperature } => {
                    let (target, _) = taught.as_ref().ok_or_else(|| no_teacher(class))?;
                    let (Results::Logits(logits), Results::Logits(target)) = (&results, target) else {
                        return Err(Error::Recipe(format!(
                            "{class}: compares logits, and a detector has none (compare features)"
                        )));
                    };
                    if target.dims() != logits.dims() {
                        let (ours, theirs) = (logits.dims()[1], target.dims()[1]);
                        return Err(Error::Recipe(format!(
                            "{class}: the teacher has {theirs} classes, the student {ours}"
                        )));
                    }
                    let part = divergence(logits.clone(), target.clone(), temperature);
                    loss = loss.mul_scalar(1.0 - hardness) + part.clone().mul_scalar(hardness);
                    part
                }
                TermKind::Features { gain, normalize, project, epsilon, pairs } => {
                    let mut sum: Option<Tensor<1>> = None;
                    for (number, pair) in schedule.pairs(pairs).iter().enumerate() {
                        let missing =
                            || Error::Recipe(format!("{class}: layer {} does not run", pair.teacher));
                        let (Some(Some(ours)), Some(Some(theirs))) = (own.next(), theirs.next()) else {
                            return Err(missing());
                        };
                        let ours = match project {
                            false => ours,
                            true => {
                                let w =
                                    self.projection((index, number), width(&ours), width(&theirs), &device);
                                projections.push(((index, number), w.clone()));
                                projected(ours, w)
                            }
                        };
                        let distance =
                            distance(ours, theirs, normalize.then_some(epsilon)).map_err(|why| {
                                Error::Recipe(format!("{class}: {} {why}", name(pair, &layers)))
                            })?;
                        sum = Some(match sum {
                            Some(sum) => sum + distance,
                            None => distance,
                        });
                    }
                    let Some(part) = sum else { continue };
                    loss = loss + part.clone().mul_scalar(gain);
                    part
                }
                TermKind::Activations { layers: range, normalized, function, .. } => {
                    let images = x.count();
                    let Some(part) = penalties(schedule, range, function, images, &mut own) else { continue };
                    let count = schedule.penalised(range).len();
                    let part = if normalized { part.div_scalar(count as f64) } else { part };
                    loss = loss + part.clone();
                    part
                }
            };
            parts.push((class, part.into_scalar()));
        }
        Ok(Total { loss, task, parts, projections })
    }

    /// Trains the projections of a step; call it before the gradients are used up.
    pub fn step(&mut self, total: &Total, gradients: &Gradients, optimizer: &Optimizer, lr: f64, decay: f64) {
        for (key, w) in &total.projections {
            let (Some(projection), Some(gradient)) = (self.projections.get_mut(key), w.grad(gradients))
            else {
                continue;
            };
            let mut gradient = gradient.into_data();
            let gradient = gradient.as_mut_slice().expect("gradients are f32");
            let mut updates = [Updated { row: 0, values: &mut projection.weight, gradient }];
            let rows = Rows { role: &[Role::Weight], trainable: &[true], mask: vec![None] };
            optimizer::step(optimizer, &mut updates, &mut projection.moments, &rows, lr, decay);
        }
    }

    fn teacher(&self) -> Option<(&M, &Pass)> {
        match &self.teacher {
            Teacher::Other(module, pass) => Some((module, pass)),
            _ => self.copy.as_ref().map(|(module, pass)| (module, pass)),
        }
    }

    /// A projection as a tensor that gets a gradient; PyTorch's first values when it is new.
    fn projection(&mut self, key: (usize, usize), from: usize, to: usize, device: &Device) -> Tensor<2> {
        let projection = self.projections.entry(key).or_insert_with(|| {
            let seed = (key.0 as u64) << 32 | key.1 as u64;
            let first = Init::new(&device.clone().inner(), seed).fan_in_uniform(from, [to, from]);
            let weight = first.val().into_data().try_into_vec().expect("parameters are f32");
            Projection { dims: [to, from], weight, moments: Moments::new(1) }
        });
        let data = TensorData::new(projection.weight.clone(), projection.dims);
        Tensor::from_data(data, device).require_grad()
    }

    // ---- saving --------------------------------------------------------------------------------

    pub fn tensors(&self, table: &ParamTable) -> Vec<NamedTensor> {
        let mut out = Vec::new();
        if let Some((copy, pass)) = &self.copy {
            let named = |t: NamedTensor| NamedTensor { name: format!("{TEACHER}{}", t.name), ..t };
            out.extend(weights::tensors(copy, table).into_iter().map(named));
            let pass = crate::trainer::pass_numbers(pass);
            out.push(NamedTensor {
                name: format!("{TEACHER}pass"),
                dims: vec![pass.len()],
                data: pass.into(),
            });
        }
        for ((term, pair), projection) in &self.projections {
            let mut add = |what: &str, dims: &[usize], data: &[f32]| {
                let name = format!("{PROJECTION}{term}/{pair}/{what}");
                out.push(NamedTensor { name, dims: dims.to_vec(), data: data.to_vec() });
            };
            add("weight", &projection.dims, &projection.weight);
            for (what, moment) in
                [("first", &projection.moments.first), ("second", &projection.moments.second)]
            {
                add(what, &[moment[0].len()], &moment[0]);
            }
            // An f32 holds whole numbers up to 2^24.
            let steps = projection.moments.steps[0];
            add("steps", &[2], &[(steps >> 20) as f32, (steps & 0xf_ffff) as f32]);
        }
        out
    }

    /// Takes over what [`Losses::tensors`] gave; `like` is a module of the student's kind.
    ///
    /// Errors: tensors of another model.
    pub fn restore(&mut self, like: &M, tensors: &[NamedTensor]) -> Result<()> {
        let of_teacher: Vec<NamedTensor> = tensors
            .iter()
            .filter_map(|t| Some((t.name.strip_prefix(TEACHER)?.to_owned(), t)))
            .filter(|(name, _)| name != "pass")
            .map(|(name, t)| NamedTensor { name, ..t.clone() })
            .collect();
        let pass = tensors.iter().find(|t| t.name == format!("{TEACHER}pass"));
        if let Some(pass) = pass.and_then(|t| crate::trainer::pass_from_numbers(&t.data)) {
            let copy = weights::put(like.valid(), &of_teacher).map_err(Error::Weights)?;
            self.copy = Some((copy, pass));
        }
        for t in tensors {
            let mut parts = t.name.strip_prefix(PROJECTION).unwrap_or_default().splitn(3, '/');
            let number = |part: Option<&str>| part.and_then(|n| n.parse().ok());
            let (Some(term), Some(pair), Some(what)) =
                (number(parts.next()), number(parts.next()), parts.next())
            else {
                continue;
            };
            let projection = self.projections.entry((term, pair)).or_insert_with(|| Projection {
                dims: [0; 2],
                weight: Vec::new(),
                moments: Moments::new(1),
            });
            match (what, t.dims.as_slice(), t.data.as_slice()) {
                ("weight", &[to, from], data) => {
                    (projection.dims, projection.weight) = ([to, from], data.to_vec());
                }
                ("first", _, data) => projection.moments.first[0] = data.to_vec(),
                ("second", _, data) => projection.moments.second[0] = data.to_vec(),
                ("steps", _, &[high, low]) => {
                    projection.moments.steps[0] = ((high as u64) << 20) + low as u64
                }
                _ => return Err(Error::Weights(format!("the checkpoint's '{}' is not understood", t.name))),
            }
        }
        Ok(())
    }
}

fn no_teacher(class: &str) -> Error {
    Error::Recipe(format!("{class}: there is no teacher at this step"))
}

fn name<'a>(pair: &Pair, layers: &'a [lacuna_recipe::LayerRow]) -> &'a str {
    &layers[pair.student as usize].name
}

/// The ids of the weights of layers.
fn weights_of<'a>(
    table: &ParamTable,
    layers: impl Iterator<Item = &'a str>,
) -> Result<Vec<burn::module::ParamId>> {
    layers
        .map(|layer| {
            let row = table.row(&format!("{layer}.weight"));
            row.map(|row| table.id[row]).ok_or_else(|| {
                Error::Recipe(format!("the network has no layer `{layer}` to compare features of"))
            })
        })
        .collect()
}

fn unique<T: Copy + PartialEq>(all: &[T]) -> Vec<T> {
    let mut seen: Vec<T> = Vec::with_capacity(all.len());
    for &one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

/// What was found for each of `all`, where it was looked for once.
fn spread<T: Copy + PartialEq>(all: &[T], found: Vec<Option<Feature>>) -> Vec<Option<Feature>> {
    let unique = unique(all);
    let place = |one: &T| unique.iter().position(|other| other == one).expect("one of the unique ones");
    all.iter().map(|one| found[place(one)].clone()).collect()
}

/// T^2 times the Kullback-Leibler divergence of softmax(logits / T) from softmax(target / T), the mean over the batch.
fn divergence(logits: Tensor<2>, target: Tensor<2>, temperature: f64) -> Tensor<1> {
    let n = logits.dims()[0] as f64;
    let ours = ops::log_softmax(logits.div_scalar(temperature));
    let theirs = Tensor::from_inner(ops::log_softmax(target.div_scalar(temperature)));
    let differences = theirs.clone().exp() * (theirs - ours);
    differences.sum().mul_scalar(temperature * temperature / n)
}

fn width(feature: &Feature) -> usize {
    match feature {
        Feature::Image(x) => x.dims()[1],
        Feature::Rows(x) => x.dims()[1],
    }
}

/// A feature's channels mixed by w [to, from].
fn projected(feature: Feature, w: Tensor<2>) -> Feature {
    match feature {
        Feature::Image(x) => {
            let [to, from] = w.dims();
            Feature::Image(ops::conv2d(x, w.reshape([to, from, 1, 1]), None, Window::new(1, 0), false))
        }
        Feature::Rows(x) => Feature::Rows(ops::linear(x, w, None, false)),
    }
}

/// Mean square of the difference, divided by that of the teacher's feature (plus epsilon) if asked for.
fn distance(ours: Feature, theirs: Feature, epsilon: Option<f64>) -> Result<Tensor<1>, String> {
    fn of<const D: usize>(a: Tensor<D>, b: Tensor<D>, epsilon: Option<f64>) -> Result<Tensor<1>, String> {
        if a.dims() != b.dims() {
            return Err(format!("gives {:?}, the teacher's layer {:?}", a.dims(), b.dims()));
        }
        let size = epsilon.map(|epsilon| {
            let squares: f32 = b.clone().powi_scalar(2).mean().into_scalar();
            f64::from(squares) + epsilon
        });
        let mean = (a - Tensor::from_inner(b)).powi_scalar(2).mean();
        Ok(match size {
            Some(size) => mean.div_scalar(size),
            None => mean,
        })
    }
    match (ours, theirs) {
        (Feature::Image(a), Feature::Image(b)) => of(a, b, epsilon),
        (Feature::Rows(a), Feature::Rows(b)) => of(a, b, epsilon),
        _ => Err("is no layer of the same kind as the teacher's".into()),
    }
}

/// Sum of alpha times the penalty per image, over the layers of a term that run.
fn penalties(
    schedule: &Schedule,
    layers: PoolRange,
    function: Penalty,
    images: usize,
    found: &mut impl Iterator<Item = Option<Feature>>,
) -> Option<Tensor<1>> {
    let mut sum: Option<Tensor<1>> = None;
    for &(_, alpha) in schedule.penalised(layers) {
        let part = match found.next().flatten() {
            Some(Feature::Image(x)) => penalty(x, function),
            Some(Feature::Rows(x)) => penalty(x, function),
            // A layer that another modifier leaves out has no activations.
            None => continue,
        };
        let part = part.mul_scalar(alpha / images as f64);
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }
    sum
}

fn penalty<const D: usize>(x: Tensor<D>, function: Penalty) -> Tensor<1> {
    match function {
        Penalty::L1 => x.abs().sum(),
        Penalty::L2 => x.powi_scalar(2).sum(),
        Penalty::Relu => x.clamp_min(0.0).sum(),
        Penalty::HoyerSquare => x.clone().abs().sum().powi_scalar(2) / x.powi_scalar(2).sum(),
    }
}
