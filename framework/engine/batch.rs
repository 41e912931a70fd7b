//! Large batches, a few images at a time: what a step writes is still in the nearest caches when the next step reads it.
//!
//! A session may run its plan several times, each time for the next images of the batch, if no op mixes images. Symbolic
//! shapes say so: what depends on an input has the batch as its first dimension from the inputs to the outputs, and every
//! op on the way is one of [`keeps_images_apart`].

use crate::binding::specialise;
use crate::plan::{How, KernelChoice, Plan, Weights, build};
use crate::target::Target;
use crate::trial::Trial;
use lacuna_ir::op::{Attr, OpKind};
use lacuna_ir::{Def, Dim, Graph, Id, OpId, SymbolId, ValueId};
use std::time::Duration;

/// The symbol that counts the images, if they can be run one after another.
pub fn separable(g: &Graph) -> Option<SymbolId> {
    let &Dim::Symbol(batch) = g.shape(*g.inputs.first()?).first()? else { return None };
    let is_batch = |v: ValueId| {
        let dims = g.shape(v);
        dims.first() == Some(&Dim::Symbol(batch)) && !dims[1..].contains(&Dim::Symbol(batch))
    };
    // Constants, and what ops make of them alone, are the same for all images.
    let mut same = vec![false; g.value_name.len()];
    for v in g.value_name.ids() {
        same[v.index()] = matches!(g.value_def[v], Def::Const(_));
    }
    for &op in &g.order {
        let read = || g.inputs_of(op).iter().copied().filter(|v| !v.is_none());
        if read().all(|v| same[v.index()]) {
            g.outputs_of(op).iter().for_each(|v| same[v.index()] = true);
            continue;
        }
        let fits = g.outputs_of(op).iter().all(|&v| is_batch(v))
            && read().all(|v| same[v.index()] || is_batch(v))
            && keeps_images_apart(g, op, &same);
        if !fits {
            return None;
        }
    }
    let ends = g.inputs.iter().chain(&g.outputs);
    ends.copied().all(|v| !same[v.index()] && is_batch(v)).then_some(batch)
}

/// Whether image i of the results is made of image i of the operands and of what is `same` for all. Every operand that is
/// not has the batch as its first dimension, and so have the results.
fn keeps_images_apart(g: &Graph, op: OpId, same: &[bool]) -> bool {
    use OpKind::*;
    let inputs = g.inputs_of(op);
    let rank = g.shape(g.outputs_of(op)[0]).len();
    // The results have a first dimension.
    let is_inner = |axis: i32| axis.rem_euclid(rank as i32) != 0;
    let is_same = |i: usize| inputs.get(i).is_none_or(|v| v.is_none() || same[v.index()]);
    match (g.op_kind[op], &g.op_attr[op]) {
        (
            Relu | Sigmoid | Clip | Identity | Add | Sub | Mul | Div | Sqrt | Tanh | Erf | Silu | HardSwish
            | HardSigmoid | LeakyRelu | Gelu | QLookup | QMul | QAdd,
            _,
        ) => {
            // Operands meet at their last dimensions.
            inputs.iter().filter(|v| !v.is_none()).all(|&v| match same[v.index()] {
                true => g.shape(v).len() < rank || g.shape(v).first() == Some(&Dim::Fixed(1)),
                false => g.shape(v).len() == rank,
            })
        }
        (Conv | FusedConv | QConv | QGemm | BatchNormalization, _) => is_same(1) && is_same(2),
        // What is added may not have a row for each image.
        (Gemm, _) => {
            let rows = inputs.get(2).filter(|v| !v.is_none()).map(|&c| g.shape(c));
            is_same(1) && is_same(2) && rows.is_none_or(|c| c.len() < 2 || c[0] == Dim::Fixed(1))
        }
        (
            MaxPool | AveragePool | GlobalAveragePool | MaxPoolNhwc | AveragePoolNhwc | GlobalAvgPoolNhwc
            | QGlobalAvgPool | Resize | ResizeNhwc | Flatten,
            _,
        ) => true,
        (Reshape, _) => is_same(1),
        (Transpose, Attr::Perm(perm)) => perm.as_slice().first() == Some(&0),
        (Concat | Softmax, Attr::Axis(axis)) => is_inner(*axis),
        (QuantizeLinear | DequantizeLinear | QuantizeSilu, Attr::Axis(axis)) => {
            is_same(1) && is_same(2) && (is_inner(*axis) || g.shape(inputs[1]).is_empty())
        }
        _ => false,
    }
}

/// Into how many pieces a batch is cut to find the best, each of so many images at least.
pub fn ways(batch: u64, least: u64) -> impl Iterator<Item = u64> {
    (1..).map(|i| 1 << i).take_while(move |&n| batch.is_multiple_of(n) && batch / n >= least)
}

/// So many times as many pieces as threads are shared evenly enough, whatever is left.
const EVEN_ENOUGH: usize = 4;

/// How a batch is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Images at a time, of a batch that is a multiple of it; 0 for all.
    pub images: u64,
    /// Each thread runs images of its own, alone. Otherwise threads share the work on every image.
    pub apart: bool,
}

/// A way for batches counted by a symbol.
#[derive(Clone, Copy)]
pub struct Cut {
    pub batch: SymbolId,
    pub way: Way,
}

/// One binding of a session that may be cut.
pub struct Cutting {
    /// Symbols of one piece.
    pub symbols: Vec<u64>,
    pub pieces: usize,
    /// What the plan of a piece is for.
    pub target: Target,
    /// Threads of the session.
    threads: usize,
}

impl Cutting {
    pub fn of(cut: Option<Cut>, symbols: &[u64], target: &Target) -> Cutting {
        let mut cutting =
            Cutting { symbols: symbols.to_vec(), pieces: 1, target: *target, threads: target.threads };
        let Some(Cut { batch, way }) = cut else { return cutting };
        let all = &mut cutting.symbols[batch.index()];
        if way.images == 0 || !all.is_multiple_of(way.images) {
            return cutting;
        }
        let pieces = (*all / way.images) as usize;
        // Threads that share images evenly, or many of them, need not wait long for the last.
        let even = pieces.is_multiple_of(target.threads) || pieces >= EVEN_ENOUGH * target.threads;
        if !way.apart || even {
            (cutting.pieces, *all) = (pieces, way.images);
        }
        if way.apart && cutting.pieces > 1 {
            cutting.target.threads = 1;
        }
        cutting
    }

    /// How many arenas runs of this plan need: one for each thread if each runs pieces of its own. Steps that may fail stop
    /// all threads, which then run together.
    pub fn arenas(&self, plan: &Plan) -> usize {
        let apart = self.target.threads < self.threads && !plan.may_fail();
        if apart { self.threads } else { 1 }
    }
}

/// Writes where each operand of each piece begins, one row for each piece. `operands` are their beginnings, and the bytes of a
/// piece: pieces of a batch lie one after another, and are equally long.
pub fn point_at(table: &mut [*mut u8], pieces: usize, operands: impl Iterator<Item = (*mut u8, usize)>) {
    let of_piece = (table.len() / pieces).max(1);
    for (nth, (start, each)) in operands.enumerate() {
        let column = table.iter_mut().skip(nth).step_by(of_piece);
        column.enumerate().for_each(|(piece, p)| *p = start.wrapping_add(piece * each));
    }
}

/// A way that is measured.
struct Entry {
    way: Way,
    piece: Plan,
    pieces: usize,
    arenas: usize,
    least: Duration,
}

/// How a batch is best run. `plan` is that of the whole batch.
pub fn measure_ways(
    (g, symbols, batch): (&Graph, &[u64], SymbolId),
    plan: &Plan,
    weights: &mut Weights,
    target: &Target,
    choice: KernelChoice,
    trial: &mut Trial<'_>,
) -> Way {
    /// Threads with images of their own come first, then the whole batch at once, then pieces that threads share: what comes later
    /// must be faster than the best before by this factor. Threads that share wait for each other, which takes longer at other
    /// times.
    const GAIN: f64 = 0.97;
    /// Runs of each way, in turns.
    const RUNS: usize = 3;
    let all = symbols[batch.index()];
    let mut entries = Vec::new();
    for apart in [true, false].into_iter().filter(|&apart| !apart || target.threads > 1) {
        // Threads that share an image's work have one each at least.
        let least = if apart { 1 } else { target.threads as u64 };
        for pieces in ways(all, least) {
            let way = Way { images: all / pieces, apart };
            let cutting = Cutting::of(Some(Cut { batch, way }), symbols, target);
            if cutting.pieces == 1 {
                continue;
            }
            let how = How { target: &cutting.target, choice, tune: false, cache: None };
            // What does not bind or plan for fewer images runs whole.
            let Ok(bound) = specialise(g, &cutting.symbols, &[]) else { break };
            let Ok(built) = build(bound.graph, &bound.computed, &how, false, weights, || ()) else { break };
            let (arenas, piece) = (cutting.arenas(&built.plan), built.plan);
            entries.push(Entry { way, piece, pieces: cutting.pieces, arenas, least: Duration::MAX });
        }
    }
    let blobs = weights.table();
    let mut whole = Duration::MAX;
    for _ in 0..RUNS {
        whole = whole.min(trial.time(plan, &blobs, 1));
        for Entry { piece, pieces, arenas, least, .. } in &mut entries {
            let time = match *arenas {
                more if piece.arena_bytes * more > plan.arena_bytes => continue,
                1 => trial.time(piece, &blobs, *pieces) * *pieces as u32,
                _ => trial.time_apart(piece, &blobs, *pieces, 1),
            };
            *least = time.min(*least);
        }
    }
    let fastest = |apart: bool| {
        let alike = entries.iter().filter(|e| e.way.apart == apart);
        alike.min_by_key(|e| e.least).map(|e| (e.way, e.least))
    };
    let mut best = (Way::default(), Duration::MAX);
    for (way, time) in [fastest(true), Some((Way::default(), whole)), fastest(false)].into_iter().flatten() {
        if time < best.1 {
            best = (way, time.mul_f64(GAIN));
        }
    }
    let computed = entries.iter().flat_map(|e| &e.piece.computed_blobs);
    computed.for_each(|&blob| weights.reuse(blob));
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_ir::op::Axes;
    use lacuna_ir::{DType, Tensor};

    /// `x[N,3,N or 3]`, one op, a ReLU.
    fn network(kind: OpKind, attr: Attr, constant: Option<&[usize]>, square: bool) -> Graph {
        let mut g = Graph::new("test");
        let n = Dim::Symbol(g.symbol("N"));
        let x = g.add_input("x", DType::F32, &[n, Dim::Fixed(3), if square { n } else { Dim::Fixed(3) }]);
        let mut inputs = vec![x];
        inputs.extend(constant.map(|dims| g.add_tensor("c", &Tensor::zeros(DType::F32, dims))));
        let y = g.add_op(kind, attr, "op", &inputs, &["y"]).unwrap()[0];
        let z = g.add_op(OpKind::Relu, Attr::None, "relu", &[y], &["z"]).unwrap()[0];
        g.outputs.push(z);
        g
    }

    #[test]
    fn ops_that_mix_images_keep_a_batch_whole() {
        use OpKind::*;
        let perm = |axes: &[i64]| Attr::Perm(Axes::new(axes).unwrap());
        let apart = |kind, attr, constant| separable(&network(kind, attr, constant, false)).is_some();
        assert!(apart(Sigmoid, Attr::None, None));
        assert!(apart(Softmax, Attr::Axis(-1), None) && apart(Softmax, Attr::Axis(1), None));
        assert!(!apart(Softmax, Attr::Axis(0), None) && !apart(Softmax, Attr::Axis(-3), None));
        assert!(apart(Add, Attr::None, Some(&[3])) && apart(Add, Attr::None, Some(&[1, 3, 1])));
        assert!(apart(Transpose, perm(&[0, 2, 1]), None) && !apart(Transpose, perm(&[1, 0, 2]), None));
        // Not listed: scales of all images together.
        assert!(!apart(Hardmax, Attr::Axis(0), None));
        // Rows and columns that are equally many are not told apart.
        assert!(separable(&network(Transpose, perm(&[2, 1, 0]), None, true)).is_none());
        assert!(separable(&network(Sigmoid, Attr::None, None, true)).is_none());
    }

    #[test]
    fn a_batch_of_fixed_size_is_not_cut() {
        let mut g = Graph::new("test");
        let x = g.add_input("x", DType::F32, &[Dim::Fixed(16), Dim::Fixed(3)]);
        let y = g.add_op(OpKind::Relu, Attr::None, "relu", &[x], &["y"]).unwrap()[0];
        g.outputs.push(y);
        assert!(separable(&g).is_none());
    }

    #[test]
    fn pieces_have_images_enough() {
        assert_eq!(ways(16, 2).collect::<Vec<_>>(), [2, 4, 8]);
        assert_eq!(ways(16, 1).collect::<Vec<_>>(), [2, 4, 8, 16]);
        assert_eq!(ways(12, 4).collect::<Vec<_>>(), [2]);
        assert_eq!(ways(1, 1).count() + ways(7, 2).count(), 0);
    }

    #[test]
    fn images_are_shared_out_evenly_or_the_batch_runs_whole() {
        let mut g = Graph::new("test");
        let batch = g.symbol("N");
        let target = Target { threads: 4, ..Target::native().unwrap() };
        let cut = |images, apart, all: u64| {
            let cut = Some(Cut { batch, way: Way { images, apart } });
            let cutting = Cutting::of(cut, &[all], &target);
            (cutting.pieces, cutting.symbols[0], cutting.target.threads)
        };
        assert_eq!(cut(0, true, 8), (1, 8, 4));
        assert_eq!(cut(2, false, 8), (4, 2, 4));
        assert_eq!(cut(3, true, 8), (1, 8, 4));
        assert_eq!(cut(2, true, 8), (4, 2, 1));
        // Two or five pieces would leave threads waiting, seventeen not for long.
        assert_eq!(cut(4, true, 8), (1, 8, 4));
        assert_eq!(cut(2, true, 10), (1, 10, 4));
        assert_eq!(cut(2, true, 34), (17, 2, 1));
    }
}
