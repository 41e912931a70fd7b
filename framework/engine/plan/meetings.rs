//! After which steps the threads meet.
//!
//! A thread may go on with a step if no other thread has written what its part reads, or touched what it writes, since
//! all met last. That is so for a layer whose threads share out the same tokens (or the same lines) as those of the layers before
//! it: a product, the sum and norm behind it and the next product follow each other without a meeting, each in its own core's
//! caches. What a part touches is known as one stretch of bytes for each operand, from the first to the last; of the
//! bytes around a stretch that kernels may read in passing another thread may be writing, but these are arbitrary to them
//! (see `crate::kernels`).

use super::{Plan, Slot, Space, Split, StepKind};
use crate::kernels::steps::{NormStep, share};
use crate::kernels::{CONV_KERNELS, KernelType, Method};
use std::ops::Range;

/// More threads meet after every step: comparing what each touches would take long.
const THREADS_COMPARED: usize = 32;

/// For each step the one until which a buffer is kept that this step is the last to read. Threads that share out tokens are at
/// different steps of a run of them: what one has read another's result must not lie over.
pub fn kept_until(p: &Plan, threads: usize) -> Vec<usize> {
    let by_token = |step: usize| match p.step_kind[step] {
        StepKind::Conv => {
            let g = &p.convs[p.step_row[step] as usize].geom;
            (g.rows, g.kh, g.kw) == (1, 1, 1)
        }
        StepKind::Norm => true,
        _ => false,
    };
    let mut until: Vec<usize> = (0..p.steps()).collect();
    for step in (1..p.steps()).rev().filter(|_| threads > 1) {
        if by_token(step - 1) && by_token(step) {
            until[step - 1] = until[step];
        }
    }
    until
}

/// A stretch of bytes that a part of a step reads or writes.
#[derive(Clone, Debug, PartialEq)]
struct Touch {
    space: Space,
    bytes: Range<usize>,
    writes: bool,
}

impl Touch {
    /// Elements of `size` bytes, counted from the slot.
    fn new(slot: Slot, elements: Range<usize>, size: usize, writes: bool) -> Touch {
        let at = |element: usize| slot.offset + element * size;
        Touch { space: slot.space, bytes: at(elements.start)..at(elements.end), writes }
    }

    fn hinders(&self, other: &Touch) -> bool {
        (self.writes || other.writes)
            && self.space == other.space
            && self.bytes.start < other.bytes.end
            && other.bytes.start < self.bytes.end
    }
}

/// Says after which steps the threads meet.
pub fn set_barriers(p: &mut Plan) {
    meet_after_shared_steps(p);
    // What each thread has touched since the last meeting. Unknown if there is none.
    let mut since: Option<Vec<Vec<Touch>>> = Some(Vec::new());
    let mut step = touches(p, 0);
    for i in 0..p.steps() {
        let next = touches(p, i + 1);
        since = since.zip(step).map(|(mut since, step)| {
            since.resize(since.len().max(step.len()), Vec::new());
            since.iter_mut().zip(step).for_each(|(since, step)| since.extend(step));
            since
        });
        if p.step_barrier[i] {
            // A step without a meeting behind it would not be looked at again.
            let looked_at = i + 1 < p.steps() && p.step_barrier[i + 1];
            let known = since.as_ref().filter(|_| looked_at).zip(next.as_ref());
            p.step_barrier[i] = known.is_none_or(|(since, next)| meet(since, next));
            if p.step_barrier[i] {
                since = Some(Vec::new());
            }
        }
        step = next;
    }
}

/// Whether a thread's part of the next step hinders, or is hindered by, what another thread has done.
fn meet(since: &[Vec<Touch>], next: &[Vec<Touch>]) -> bool {
    let others = |part: usize| since.iter().enumerate().filter(move |&(i, _)| i != part).flat_map(|(_, t)| t);
    next.iter().enumerate().any(|(part, own)| others(part).any(|t| own.iter().any(|own| own.hinders(t))))
}

/// Threads meet after steps that they share, and before and after steps that only the first does. Borders are filled for a step
/// behind the next one.
fn meet_after_shared_steps(p: &mut Plan) {
    let mut shared_fill = false;
    for i in 0..p.steps() {
        if p.step_kind[i] == StepKind::Fill {
            p.step_barrier[i] = false;
            shared_fill |= p.step_parts[i] > 1;
            continue;
        }
        let next_alone =
            i + 1 < p.steps() && p.step_parts[i + 1] == 1 && p.step_kind[i + 1] != StepKind::Fill;
        p.step_barrier[i] = shared_fill || p.step_parts[i] > 1 || !next_alone;
        shared_fill &= !p.step_barrier[i];
    }
}

/// What each part of a step touches, if that is known. Packed weights are only read.
fn touches(p: &Plan, step: usize) -> Option<Vec<Vec<Touch>>> {
    let parts = p.step_parts.get(step).map(|&parts| parts as usize).filter(|&n| n <= THREADS_COMPARED)?;
    let slots = p.step_args[step].of(&p.args);
    let row = p.step_row[step] as usize;
    match p.step_kind[step] {
        StepKind::Conv => (0..parts).map(|part| of_conv(p, row, slots, part, parts)).collect(),
        StepKind::Norm => Some((0..parts).map(|part| of_norm(&p.norms[row], slots, part, parts)).collect()),
        _ => None,
    }
}

fn of_conv(p: &Plan, row: usize, slots: &[Slot], part: usize, parts: usize) -> Option<Vec<Touch>> {
    let s = &p.convs[row];
    // Winograd's kernels read whole tiles.
    if s.split == Split::Banded || matches!(CONV_KERNELS[s.kernel].method, Method::Winograd(_)) {
        return None;
    }
    let (g, tile) = (&s.geom, s.tile(part, parts));
    if tile.is_empty() {
        return Some(Vec::new());
    }
    let size = if CONV_KERNELS[s.kernel].dtype == KernelType::Int8 { 1 } else { 4 };
    let y_size = if s.epilogue.out_f32 { 4 } else { size };
    // Elements from the first pixel's to the last pixel's, wherever the lines lie.
    let stretch = |at: &dyn Fn(u32, u32) -> usize, last: usize| {
        let firsts = tile.rows.clone().map(|row| at(row, tile.cols.start)).min();
        let lasts = tile.rows.clone().map(|row| at(row, tile.cols.end - 1)).max();
        firsts.unwrap_or(0)..lasts.unwrap_or(0) + last
    };
    let window = g.tap_at(g.kh - 1, g.kw - 1) + g.c as usize;
    let channels = tile.ocs.end as usize;
    let mut all = vec![
        Touch::new(slots[0], stretch(&|row, col| g.x_at(row, col), window), size, false),
        Touch::new(slots[1], stretch(&|row, col| g.y_at(row, col), channels), y_size, true),
    ];
    if s.epilogue.has_residual {
        all.push(Touch::new(slots[2], stretch(&|row, col| g.r_at(row, col), channels), size, false));
    }
    Some(all)
}

fn of_norm(s: &NormStep, slots: &[Slot], part: usize, parts: usize) -> Vec<Touch> {
    let [y, x, a, b, scale, bias] = slots else { unreachable!("a norm has six operands") };
    let own = share(s.rows, part, parts);
    if own.is_empty() {
        return Vec::new();
    }
    let rows = |stride: usize| own.start * stride..(own.end - 1) * stride + s.len;
    let operand = |slot: &Slot, stride: usize, is_u8: bool, writes: bool| {
        Touch::new(*slot, rows(stride), if is_u8 { 1 } else { 4 }, writes)
    };
    let mut all = vec![
        match s.f32_stride {
            Some(stride) => operand(x, stride, false, true),
            None => Touch::new(*x, part * s.len..(part + 1) * s.len, 4, true),
        },
        operand(a, s.a.stride, s.a.affine.is_some(), false),
        Touch::new(*scale, 0..s.len, 4, false),
        Touch::new(*bias, 0..s.len, 4, false),
    ];
    all.extend(s.b.map(|o| operand(b, o.stride, o.affine.is_some(), false)));
    all.extend(s.out.map(|(_, stride)| operand(y, stride, true, true)));
    all
}

#[cfg(test)]
mod tests {
    use super::super::{Bases, Fault, Weights, build, run_step};
    use super::*;
    use crate::binding::specialise;
    use crate::memory::AlignedBytes;
    use crate::plan::{How, KernelChoice};
    use crate::target::Target;
    use lacuna_ir::op::{ConvAttr, GemmAttr, NormAttr, Window};
    use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, Tensor, ValueId};

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        };
        (0..len).map(|_| next()).collect()
    }

    struct Net(Graph);

    impl Net {
        fn new(dims: &[u64]) -> (Net, ValueId) {
            let mut g = Graph::new("test");
            let x = g.add_input("x", DType::F32, &dims.iter().map(|&d| Dim::Fixed(d)).collect::<Vec<_>>());
            (Net(g), x)
        }

        fn constant(&mut self, dims: &[usize]) -> ValueId {
            let seed = self.0.consts.len() as u32 + 1;
            // Whole numbers keep Winograd's kernels away, which read other threads' lines.
            let values = noise(dims.iter().product(), seed).into_iter().map(|v| (v * 4.0).round()).collect();
            self.0.add_tensor(&format!("c{seed}"), &Tensor::from_f32(dims, values))
        }

        fn op(&mut self, kind: OpKind, attr: Attr, inputs: &[ValueId]) -> ValueId {
            let name = format!("op{}", self.0.order.len());
            self.0.add_op(kind, attr, &name, inputs, &[&format!("{name}_y")]).unwrap()[0]
        }

        fn product(&mut self, x: ValueId, k: usize, n: usize) -> ValueId {
            let (w, b) = (self.constant(&[k, n]), self.constant(&[n]));
            let attr = GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false };
            self.op(OpKind::Gemm, Attr::Gemm(attr), &[x, w, b])
        }

        fn norm(&mut self, x: ValueId, len: usize) -> ValueId {
            let (scale, bias) = (self.constant(&[len]), self.constant(&[len]));
            let attr = Attr::Norm(NormAttr { axis: -1, epsilon: 1e-5 });
            self.op(OpKind::LayerNormalization, attr, &[x, scale, bias])
        }

        fn conv(&mut self, x: ValueId, c: usize, oc: usize, size: u32) -> ValueId {
            let (w, b) = (self.constant(&[oc, c, size as usize, size as usize]), self.constant(&[oc]));
            let window = Window { kernel: [size; 2], stride: [1; 2], dilation: [1; 2], pads: [size / 2; 4] };
            let y = self.op(OpKind::Conv, Attr::Conv(ConvAttr { group: 1, window }), &[x, w, b]);
            self.op(OpKind::Relu, Attr::None, &[y])
        }
    }

    /// Tokens: products and a norm.
    fn tokens() -> Graph {
        let (mut net, x) = Net::new(&[96, 256]);
        let a = net.product(x, 256, 512);
        let b = net.product(a, 512, 256);
        let c = net.norm(b, 256);
        let y = net.product(c, 256, 64);
        net.0.outputs.push(y);
        net.0
    }

    /// Lines of an image: windows of one line need none of another thread's, windows of three do.
    fn lines() -> Graph {
        let (mut net, x) = Net::new(&[1, 64, 24, 24]);
        let a = net.conv(x, 64, 96, 1);
        let b = net.conv(a, 96, 64, 1);
        let c = net.conv(b, 64, 64, 3);
        let d = net.conv(c, 64, 64, 1);
        let y = net.op(OpKind::Add, Attr::None, &[d, b]);
        net.0.outputs.push(y);
        net.0
    }

    fn planned(g: &Graph, threads: usize) -> (Plan, Weights) {
        let target = Target::new(None, Some(threads)).unwrap();
        let how = How { target: &target, choice: KernelChoice::Auto, tune: false, cache: None };
        let bound = specialise(&crate::passes::lower(g, &target).unwrap().0, &[], &[]).unwrap();
        let mut weights = Weights::default();
        let built = build(bound.graph, &bound.computed, &how, false, &mut weights, || ()).unwrap();
        (built.plan, weights)
    }

    /// The output, where between two meetings the threads run one after the other in the order given.
    fn run(g: &Graph, plan: &Plan, weights: &Weights, order: &[usize]) -> Vec<u8> {
        let bytes = |v: ValueId| g.fixed_shape(v).unwrap().iter().product::<usize>() * 4;
        let mut x = AlignedBytes::zeroed(bytes(g.inputs[0]));
        x.copy_from_slice(bytemuck::cast_slice(&noise(bytes(g.inputs[0]) / 4, 77)));
        let mut y = AlignedBytes::zeroed(bytes(g.outputs[0]));
        let mut arena = AlignedBytes::zeroed(plan.arena_bytes);
        let (blobs, fault) = (weights.table(), Fault::default());
        let (inputs, outputs) = ([x.as_ptr()], [y.as_mut_ptr()]);
        let bases = Bases {
            arena: arena.as_mut_ptr(),
            weights: blobs.as_ptr(),
            inputs: inputs.as_ptr(),
            outputs: outputs.as_ptr(),
            isa: Target::native().unwrap().isa,
            fault: &fault,
        };
        let mut first = 0;
        for end in (0..plan.steps()).filter(|&i| plan.step_barrier[i]) {
            for &thread in order {
                for step in first..=end {
                    // SAFETY: memory is as large as graph and plan say; one thread alone uses it.
                    unsafe { run_step(plan, &bases, step, thread, order.len(), None) };
                }
            }
            first = end + 1;
        }
        y.to_vec()
    }

    #[test]
    fn threads_may_be_ahead_of_each_other_by_all_steps_until_they_meet() {
        for (g, most) in [(tokens(), 3), (lines(), usize::MAX)] {
            let (mut plan, weights) = planned(&g, 3);
            let mut everywhere = plan.clone();
            everywhere.step_barrier.fill(true);
            let want = run(&g, &everywhere, &weights, &[0, 1, 2]);
            let mut never = everywhere.clone();
            never.step_barrier[..plan.steps() - 1].fill(false);
            assert_ne!(run(&g, &never, &weights, &[2, 1, 0]), want);
            for split in [None, Some(Split::Rows), Some(Split::Cols(16)), Some(Split::Channels(64))] {
                plan.convs.iter_mut().for_each(|conv| conv.split = split.unwrap_or(conv.split));
                set_barriers(&mut plan);
                for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
                    assert_eq!(run(&g, &plan, &weights, &order), want, "{split:?} {order:?}");
                }
                if split == Some(Split::Cols(16)) {
                    assert!(plan.step_barrier.iter().filter(|&&b| b).count() <= most, "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn a_meeting_stays_where_another_thread_s_work_is_read() {
        // The 3x3 layer reads lines of others, and what follows the one before it by lines does not.
        let (mut plan, _) = planned(&lines(), 2);
        plan.convs.iter_mut().for_each(|conv| conv.split = Split::Rows);
        set_barriers(&mut plan);
        let meets_before = |conv: usize| {
            let is = |i: &usize| plan.step_kind[*i] == StepKind::Conv && plan.step_row[*i] == conv as u32;
            plan.step_barrier[(0..plan.steps()).find(is).unwrap() - 1]
        };
        assert!(!meets_before(1) && meets_before(2) && !meets_before(3));
    }
}
