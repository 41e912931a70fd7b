//! Which channels of a network belong together: the filters that make a channel, the scales and shifts on its way, the
//! sums that it enters, and the inputs that read it. Found in the captured graph, so that it holds for any network.
//!
//! ```text
//! conv1 ─ bn1 ─┬─ conv2 ─ bn2 ─(+)─ conv3     group 0: conv1.0 bn1.0 conv2.1 conv2.0 bn2.0 conv3.1
//!              └────────────────┘             (name.axis; channel 5 of the group is place 5 of each)
//! ```

use lacuna_ir::{Attr, Graph, OpId, OpKind, ValueId};
use lacuna_nn::capture::capture;
use lacuna_nn::params::{ParamTable, Role};
use lacuna_nn::quant::{Norm, Pass};
use lacuna_nn::{Classifier, Results};
use std::collections::HashMap;

/// Channels that are kept or removed in all members alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Number of channels.
    pub size: usize,
    /// Sorted by row and axis.
    pub members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Row of the parameter table.
    pub row: usize,
    /// Axis of the tensor along which the channels lie.
    pub axis: usize,
    pub part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A filter of a convolution or an output of a linear layer makes the channel.
    Maker,
    /// A filter of a depthwise convolution: reads the channel and makes it again.
    Depthwise,
    /// Scale, shift or bias of the channel.
    Scale,
    /// The weights that read it.
    Reader,
    /// A statistic, or a range of a quantiser.
    Buffer,
}

/// The groups of a network for images of `input` (channels, height, width), but for channels that must stay: those of the
/// images, of the results, and of ops that this does not follow.
///
/// Errors: the forward pass is no graph.
pub fn groups<M: Classifier>(module: &M, input: [usize; 3]) -> Result<Vec<Group>, String> {
    let module = module.valid();
    let params = ParamTable::of(&module);
    let [c, h, w] = input;
    let pass = Pass { norm: Norm::Frozen, ..Pass::default() };
    let names = Results::names(module.head().as_ref());
    let g = capture(&module, "input", [1, c, h, w], &names, |m, x| m.results(x, &pass))
        .map_err(|e| e.to_string())?;
    let mut sets =
        Sets { g: &g, params: &params, of: HashMap::new(), parent: Vec::new(), members: Vec::new() };
    for op in g.order.clone() {
        sets.follow(op);
    }
    for &v in g.inputs.iter().chain(&g.outputs) {
        sets.fix(v);
    }
    Ok(sets.groups())
}

/// Sets of channels, merged as ops are met. Set 0 is the one that must stay.
struct Sets<'a> {
    g: &'a Graph,
    params: &'a ParamTable,
    of: HashMap<ValueId, usize>,
    parent: Vec<usize>,
    members: Vec<(usize, Member)>,
}

const FIXED: usize = 0;

impl Sets<'_> {
    fn follow(&mut self, op: OpId) {
        let g = self.g;
        let y = g.outputs_of(op)[0];
        let x = g.input_of(op, 0);
        let weight = g.input_of(op, 1).and_then(|v| self.row(v));
        match (g.op_kind[op], g.op_attr[op], x, weight) {
            (OpKind::Conv, Attr::Conv(conv), Some(x), Some(row)) if conv.group == 1 => {
                self.join(x, row, 1, Part::Reader);
                self.make(op, y, row);
            }
            (OpKind::Conv, Attr::Conv(conv), Some(x), Some(row))
                if self.is_depthwise(row, conv.group) && g.input_of(op, 2).is_none() =>
            {
                self.join(x, row, 0, Part::Depthwise);
                self.same(x, y);
                self.extras(op, y, row);
            }
            (OpKind::Gemm | OpKind::MatMul, _, Some(x), Some(row)) if g.shape(x).len() == 2 => {
                self.join(x, row, 1, Part::Reader);
                self.make(op, y, row);
            }
            (OpKind::BatchNormalization, _, Some(x), Some(_)) => {
                for &v in &g.inputs_of(op)[1..] {
                    match self.row(v) {
                        Some(row) => self.join(x, row, 0, self.part(row)),
                        None => self.fix(x),
                    }
                }
                self.same(x, y);
            }
            (kind, _, Some(x), _)
                if KEEPS_CHANNELS.contains(&kind) && self.channels(x) == self.channels(y) =>
            {
                for &v in g.inputs_of(op) {
                    self.operand(v, y);
                }
            }
            _ => {
                for &v in g.inputs_of(op).iter().chain(g.outputs_of(op)) {
                    if !v.is_none() && g.const_bytes(v).is_none() {
                        self.fix(v);
                    }
                }
            }
        }
    }

    /// An operand of an op that leaves channels alone.
    fn operand(&mut self, v: ValueId, y: ValueId) {
        if v.is_none() {
            return;
        }
        if self.g.const_bytes(v).is_none() {
            match self.channels(v) == self.channels(y) {
                true => self.same(v, y),
                false => [v, y].into_iter().for_each(|v| self.fix(v)),
            }
            return;
        }
        match self.row(v) {
            Some(row) if self.params.shape[row] == [self.channels(y).unwrap_or(0)] => {
                self.join(y, row, 0, self.part(row));
            }
            // A number, or the shape that a tensor gets.
            None if self.g.shape(v).iter().all(|d| d.fixed() == Some(1)) || self.is_shape(v) => {}
            _ => self.fix(y),
        }
    }

    fn is_shape(&self, v: ValueId) -> bool {
        self.g.value_dtype[v] == lacuna_ir::DType::I64
    }

    fn is_depthwise(&self, row: usize, groups: u32) -> bool {
        let shape = &self.params.shape[row];
        shape.len() == 4 && shape[1] == 1 && shape[0] == groups as usize
    }

    /// `y` has channels of its own, made by the filters of `row`.
    fn make(&mut self, op: OpId, y: ValueId, row: usize) {
        self.join(y, row, 0, Part::Maker);
        self.extras(op, y, row);
    }

    /// The bias of an op, and what its layer keeps for each output channel.
    fn extras(&mut self, op: OpId, y: ValueId, weight: usize) {
        if let Some(bias) = self.g.input_of(op, 2) {
            match self.row(bias) {
                Some(row) => self.join(y, row, 0, Part::Scale),
                None => self.fix(y),
            }
        }
        let outputs = self.params.shape[weight][0];
        let prefix = format!("{}_quantizer.", self.params.name[weight]);
        for row in 0..self.params.len() {
            let shape = &self.params.shape[row];
            let field = self.params.name[row].strip_prefix(&prefix);
            if matches!(field, Some("range" | "step")) && shape.last() == Some(&outputs) {
                self.join(y, row, shape.len() - 1, Part::Buffer);
            }
        }
    }

    fn part(&self, row: usize) -> Part {
        if self.params.role[row] == Role::Buffer { Part::Buffer } else { Part::Scale }
    }

    /// The row of the parameter that a constant is; not of one that it was made from in another shape.
    fn row(&self, v: ValueId) -> Option<usize> {
        self.g.const_bytes(v)?;
        let row = self.params.row(&self.g.value_name[v])?;
        (self.g.fixed_shape(v)? == self.params.shape[row]).then_some(row)
    }

    /// Axis 1 of a value, if it is known.
    fn channels(&self, v: ValueId) -> Option<usize> {
        self.g.shape(v).get(1).and_then(|d| d.fixed()).map(|n| n as usize)
    }

    // ---- sets ----------------------------------------------------------------------------------

    fn set(&mut self, v: ValueId) -> usize {
        if self.parent.is_empty() {
            self.parent.push(FIXED);
        }
        let next = self.parent.len();
        let set = *self.of.entry(v).or_insert(next);
        if set == next {
            self.parent.push(next);
        }
        self.root(set)
    }

    fn root(&self, mut set: usize) -> usize {
        while self.parent[set] != set {
            set = self.parent[set];
        }
        set
    }

    fn same(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.set(a), self.set(b));
        // The lower number stays, so that the fixed set does.
        self.parent[a.max(b)] = a.min(b);
    }

    fn fix(&mut self, v: ValueId) {
        let set = self.set(v);
        self.parent[set] = FIXED;
    }

    fn join(&mut self, v: ValueId, row: usize, axis: usize, part: Part) {
        let set = self.set(v);
        self.members.push((set, Member { row, axis, part }));
    }

    fn groups(self) -> Vec<Group> {
        let mut found: Vec<(usize, Group)> = Vec::new();
        for &(set, member) in &self.members {
            let root = self.root(set);
            let size = self.params.shape[member.row][member.axis];
            match found.iter_mut().find(|(r, _)| *r == root) {
                Some((_, group)) => group.members.push(member),
                None => found.push((root, Group { size, members: vec![member] })),
            }
        }
        let mut groups = Vec::new();
        for (root, mut group) in found {
            group.members.sort();
            group.members.dedup();
            let agree = group.members.iter().all(|m| self.params.shape[m.row][m.axis] == group.size);
            if root != FIXED && agree {
                groups.push(group);
            }
        }
        groups
    }
}

/// Ops after which axis 1 means what it meant before.
const KEEPS_CHANNELS: [OpKind; 18] = [
    OpKind::Relu,
    OpKind::ThresholdedRelu,
    OpKind::Sigmoid,
    OpKind::Tanh,
    OpKind::Erf,
    OpKind::Clip,
    OpKind::Identity,
    OpKind::Add,
    OpKind::Sub,
    OpKind::Mul,
    OpKind::Div,
    OpKind::MaxPool,
    OpKind::AveragePool,
    OpKind::GlobalAveragePool,
    OpKind::ReduceMean,
    OpKind::Reshape,
    OpKind::Flatten,
    OpKind::Squeeze,
];
