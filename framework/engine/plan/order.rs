//! The order of channels in memory. Where it is not the graph's, LaneGather takes fewer steps for the sparse integer
//! layers that make them ([`lane_gather::order`]); weights are packed in the order of what a layer reads and makes. Sums of
//! integers do not depend on it, so results stay the same to the bit.
//!
//! Channels that must lie in one order, those of both sides of a sum for instance, are a *class*. A value's channels,
//! its last dimension, are a list of classes: a join's are those of what it joins. Where an op is not known to treat
//! channels alike, the classes it touches keep their order.

use super::cache;
use super::side_by_side::side_by_side;
use crate::kernels::count_nonzeros;
use crate::kernels::lane_gather::{self, Counts};
use crate::passes::tensor_params;
use crate::target::{Isa, Target};
use lacuna_ir::{Attr, Graph, Id, OpId, OpKind, ValueId};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// The most classes of a value's channels: a graph may join a value with itself again and again.
const CLASSES_MAX: usize = 256;
/// Share of zeros from which LaneGather may be faster than a dense kernel.
const SPARSE: f64 = 0.5;

/// The new order of the channels of values that have one: channel `i` is channel `order[i]` of the graph's.
#[derive(Clone, Debug, Default)]
pub struct Orders(HashMap<ValueId, Arc<[u32]>>);

impl Orders {
    /// An order is a function of the graph's weights alone, so that every binding of it has the same. Those found before are taken
    /// from the folder `kept`.
    pub fn of(g: &Graph, target: &Target, kept: Option<&Path>) -> Orders {
        if target.isa < Isa::Avx512Vbmi {
            return Orders::default();
        }
        let layers: Vec<Layer> = g.order.iter().filter_map(|&op| Layer::of(g, op)).collect();
        if !layers.iter().any(|layer| layer.sparse) {
            return Orders::default();
        }
        let mut classes = Classes::of(g);
        let makers = makers(&layers, &classes);
        let open: Vec<bool> =
            (0..makers.len()).map(|class| !makers[class].is_empty() && !classes.settled[class]).collect();
        if !open.contains(&true) {
            return Orders::default();
        }
        let kept = kept.map(|folder| (folder, key(g, &layers)));
        let channels = open.iter().zip(&classes.channels).map(|(open, &channels)| open.then_some(channels));
        match kept.and_then(|(folder, key)| cache::load_orders(folder, key, &channels.collect::<Vec<_>>())) {
            Some(orders) => classes.orders = orders,
            None => {
                decide(g, &makers, open, &mut classes, target.threads);
                if let Some((folder, key)) = kept {
                    cache::store_orders(folder, key, &classes.orders);
                }
            }
        }
        let ends = layers.iter().flat_map(|layer| [layer.x, layer.y]);
        Orders(ends.filter_map(|v| Some((v, classes.order_of(v)?.into()))).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, v: ValueId) -> Option<Arc<[u32]>> {
        self.0.get(&v).cloned()
    }
}

/// Row `i` of the columns is a class, or one that has become part of another.
#[derive(Default)]
struct Classes {
    part_of: Vec<u32>,
    channels: Vec<usize>,
    /// Keeps its order, because of an op.
    settled: Vec<bool>,
    /// Channel `i` of the new order is channel `orders[i]` of the old.
    orders: Vec<Option<Vec<u32>>>,
    /// By value: the classes of its channels, one after the other.
    of_value: Vec<Vec<u32>>,
}

impl Classes {
    fn of(g: &Graph) -> Classes {
        let mut classes = Classes { of_value: vec![Vec::new(); g.value_name.len()], ..Classes::default() };
        for &v in &g.inputs {
            classes.add(g, v);
            classes.settle(v);
        }
        for &op in &g.order {
            if classes.follow(g, op).is_none() {
                g.inputs_of(op).iter().filter(|v| !v.is_none()).for_each(|&v| classes.settle(v));
                for &v in g.outputs_of(op) {
                    classes.add(g, v);
                    classes.settle(v);
                }
            }
        }
        g.outputs.iter().for_each(|&v| classes.settle(v));
        classes
    }

    /// Gives `v` a class of its own, if its number of channels is known.
    fn add(&mut self, g: &Graph, v: ValueId) {
        let Some(channels) = channels(g, v) else { return };
        let class = self.part_of.len() as u32;
        self.part_of.push(class);
        self.channels.push(channels);
        self.settled.push(false);
        self.orders.push(None);
        self.of_value[v.index()] = vec![class];
    }

    /// The class that `class` has become part of.
    fn whole(&self, mut class: u32) -> usize {
        while self.part_of[class as usize] != class {
            class = self.part_of[class as usize];
        }
        class as usize
    }

    fn settle(&mut self, v: ValueId) {
        for i in 0..self.of_value[v.index()].len() {
            let class = self.whole(self.of_value[v.index()][i]);
            self.settled[class] = true;
        }
    }

    /// Both values' channels are in one order from now on.
    fn join(&mut self, a: ValueId, b: ValueId) {
        let [of_a, of_b] = [a, b].map(|v| self.of_value[v.index()].clone());
        let alike = of_a.len() == of_b.len()
            && of_a.iter().zip(&of_b).all(|(&a, &b)| self.channels[a as usize] == self.channels[b as usize]);
        if !alike {
            self.settle(a);
            self.settle(b);
            return;
        }
        for (&a, &b) in of_a.iter().zip(&of_b) {
            let [a, b] = [a, b].map(|class| self.whole(class));
            self.part_of[b] = a as u32;
            self.settled[a] |= self.settled[b];
        }
    }

    /// `y` has the channels of `x`.
    fn pass_on(&mut self, x: ValueId, y: ValueId) {
        self.of_value[y.index()] = self.of_value[x.index()].clone();
    }

    /// Gives the results of `op` their classes, if it treats all channels alike.
    fn follow(&mut self, g: &Graph, op: OpId) -> Option<()> {
        use OpKind::*;
        let inputs = g.inputs_of(op);
        let (&x, &[y]) = (inputs.first()?, g.outputs_of(op)) else { return None };
        let same = |v: ValueId| channels(g, v).filter(|&n| channels(g, y) == Some(n)).map(|_| ());
        match (g.op_kind[op], g.op_attr[op]) {
            (QConv, Attr::QConv(a)) => {
                weights_of(g, op)?;
                match a.conv.group {
                    1 => self.add(g, y),
                    group => {
                        (channels(g, x)? == group as usize && channels(g, y)? == group as usize)
                            .then_some(())?;
                        self.pass_on(x, y);
                    }
                }
                if let Some(residual) = g.input_of(op, 4) {
                    self.join(y, residual);
                }
            }
            (QGemm, _) => {
                weights_of(g, op)?;
                self.add(g, y);
            }
            (QLookup, _) => {
                g.const_bytes(*inputs.get(1)?)?;
                self.pass_on(x, y);
            }
            (Silu | MaxPoolNhwc | AveragePoolNhwc | GlobalAvgPoolNhwc | QGlobalAvgPool | ResizeNhwc, _) => {
                self.pass_on(x, y)
            }
            (QuantizeLinear | DequantizeLinear | QuantizeSilu, _) => {
                tensor_params(g, op)?;
                self.pass_on(x, y);
            }
            (Flatten | Reshape, _) => {
                same(x)?;
                self.pass_on(x, y);
            }
            (QAdd | QMul, _) => {
                let b = *inputs.get(1)?;
                // One channel is for all of the other side's.
                let wide: Vec<ValueId> = [x, b].into_iter().filter(|&v| same(v).is_some()).collect();
                let narrow = [x, b].iter().filter(|&&v| channels(g, v) == Some(1)).count();
                (wide.len() + narrow >= 2 && [x, b].iter().all(|&v| g.const_bytes(v).is_none()))
                    .then_some(())?;
                self.pass_on(*wide.first()?, y);
                wide[1..].iter().for_each(|&v| self.join(wide[0], v));
            }
            (Concat, Attr::Axis(axis)) => {
                let rank = g.shape(y).len() as i32;
                (axis == -1 || axis == rank - 1).then_some(())?;
                let all = inputs.iter().map(|v| &self.of_value[v.index()]);
                (all.clone().map(Vec::len).sum::<usize>() <= CLASSES_MAX).then_some(())?;
                let known = all.clone().all(|classes| !classes.is_empty());
                let joined = known.then(|| all.flatten().copied().collect())?;
                self.of_value[y.index()] = joined;
            }
            _ => return None,
        }
        Some(())
    }

    /// Channel `i` of `v` is channel `result[i]` of what it was, if any changes places.
    fn order_of(&self, v: ValueId) -> Option<Vec<u32>> {
        let classes = &self.of_value[v.index()];
        classes.iter().any(|&class| self.orders[self.whole(class)].is_some()).then_some(())?;
        let mut order = Vec::new();
        for &class in classes {
            let begin = order.len() as u32;
            match &self.orders[self.whole(class)] {
                Some(places) => order.extend(places.iter().map(|&place| begin + place)),
                None => order.extend(begin..begin + self.channels[class as usize] as u32),
            }
        }
        Some(order)
    }
}

/// The last dimension.
fn channels(g: &Graph, v: ValueId) -> Option<usize> {
    usize::try_from(g.shape(v).last()?.fixed()?).ok()
}

/// An integer layer with constant weights.
struct Layer {
    op: OpId,
    x: ValueId,
    y: ValueId,
    /// Rows and columns of the window, channels of x.
    dims: [usize; 3],
    nonzeros: u64,
    sparse: bool,
}

impl Layer {
    /// `None` for other ops, and for layers with other weights.
    fn of(g: &Graph, op: OpId) -> Option<Layer> {
        matches!(g.op_kind[op], OpKind::QConv | OpKind::QGemm).then_some(())?;
        let (w, dims) = weights_of(g, op)?;
        let depthwise = matches!(g.op_attr[op], Attr::QConv(a) if a.conv.group != 1);
        let nonzeros = count_nonzeros(w);
        let sparse = !depthwise && (nonzeros as f64) < SPARSE * w.len() as f64;
        Some(Layer { op, x: g.inputs_of(op)[0], y: g.outputs_of(op)[0], dims, nonzeros, sparse })
    }
}

/// The weights of an integer layer and their last three dimensions, if all it reads but x and a residual is constant: then
/// its weights are packed, and it runs.
fn weights_of(g: &Graph, op: OpId) -> Option<(&[i8], [usize; 3])> {
    let residual = if g.op_kind[op] == OpKind::QConv { 4 } else { usize::MAX };
    let rest = (1..g.inputs_of(op).len()).filter(|&i| i != residual);
    rest.filter_map(|i| g.input_of(op, i)).all(|v| g.const_bytes(v).is_some()).then_some(())?;
    let w = g.inputs_of(op)[1];
    let rows = channels(g, g.outputs_of(op)[0])?;
    let dims = match g.fixed_shape(w)?[..] {
        [o, c] if o == rows => [1, 1, c],
        [o, kh, kw, c] if o == rows => [kh, kw, c],
        _ => return None,
    };
    let w: &[i8] = bytemuck::cast_slice(g.const_bytes(w)?);
    (!w.is_empty()).then_some((w, dims))
}

fn key(g: &Graph, layers: &[Layer]) -> u128 {
    let sparse = layers.iter().filter(|layer| layer.sparse);
    cache::orders_key(sparse.map(|layer| weights_of(g, layer.op).expect("a layer has weights")))
}

/// By class: the sparse layers whose results' channels it is.
fn makers<'a>(layers: &'a [Layer], classes: &Classes) -> Vec<Vec<&'a Layer>> {
    let mut makers: Vec<Vec<&Layer>> = vec![Vec::new(); classes.part_of.len()];
    for layer in layers.iter().filter(|layer| layer.sparse) {
        if let &[class] = &classes.of_value[layer.y.index()][..] {
            makers[classes.whole(class)].push(layer);
        }
    }
    makers
}

/// Finds an order for each class that is `open`. Which one is best rests on the order of the channels that its makers read, so
/// the class is next whose makers have the fewest weights on channels that are still to be decided. Classes whose makers have
/// none do not rest on each other: they are decided side by side.
fn decide(g: &Graph, makers: &[Vec<&Layer>], mut open: Vec<bool>, classes: &mut Classes, threads: usize) {
    loop {
        let undecided = |layer: &&&Layer| {
            classes.of_value[layer.x.index()].iter().any(|&class| open[classes.whole(class)])
        };
        let unsure =
            |class: usize| makers[class].iter().filter(undecided).map(|layer| layer.nonzeros).sum::<u64>();
        let waiting = (0..open.len()).filter(|&class| open[class]).map(|class| (unsure(class), class));
        let waiting: Vec<(u64, usize)> = waiting.collect();
        let Some(&least) = waiting.iter().min() else { return };
        let next: Vec<usize> = match least {
            (0, _) => waiting.iter().filter(|w| w.0 == 0).map(|w| w.1).collect(),
            (_, class) => vec![class],
        };
        next.iter().for_each(|&class| open[class] = false);
        let orders = side_by_side(threads, next.len(), |i| {
            let mut counts = Counts::new(classes.channels[next[i]]);
            for layer in &makers[next[i]] {
                let (w, _) = weights_of(g, layer.op).expect("a layer has weights");
                let places = classes.order_of(layer.x).map(|order| inverse(&order));
                counts.push(w, layer.dims, places.as_deref());
            }
            lane_gather::order(&counts)
        });
        next.iter().zip(orders).for_each(|(&class, order)| classes.orders[class] = order);
    }
}

/// Where each channel went.
pub fn inverse(order: &[u32]) -> Vec<u32> {
    let mut places = vec![0; order.len()];
    order.iter().zip(0..).for_each(|(&from, to)| places[from as usize] = to);
    places
}
