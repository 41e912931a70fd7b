//! LSTM: the input's part of all gates is one matrix product; the state's part, which waits for the step before, is a step
//! of its own.

use super::StepKind;
use super::build::{Builder, operand, push};
use super::conv::{NO_EPILOGUE, emit, narrow};
use super::place::{Demand, Place, Root, dense_strides};
use super::weights::{Key, Source};
use crate::error::Result;
use crate::kernels::ConvGeom;
use crate::kernels::steps::{LstmStep, pack_recurrent, recurrent_panel};
use bytes::Bytes;
use lacuna_ir::{DType, OpId};

/// Places of Sigmoid and Tanh in `lacuna_ir::params::ACTIVATIONS`: the gates', the cell's, the result's.
const USUAL: [usize; 3] = [0, 1, 1];

pub fn emit_lstm(b: &mut Builder<'_>, op: OpId) -> Result<()> {
    let g = b.g;
    let numbers = g.op_attr[op].numbers::<11>().or_else(|why| b.error(why))?;
    let [direction, _, clip, layout, coupled, rest @ ..] = numbers;
    let functions = rest.map(|p| p.choice());
    let dirs = if direction.choice() == 2 { 2 } else { 1 };
    let plain = functions[..3 * dirs].chunks(3).all(|f| f == &USUAL[..]) && clip.float() == f32::INFINITY;
    let absent = |i: usize| g.input_of(op, i).is_none();
    if !plain || layout.flag() || coupled.flag() || !absent(4) || !absent(7) {
        return b.error("lengths, peepholes, clips, and other activations than the usual have no kernel");
    }
    let constant = |i: usize| g.input_of(op, i).and_then(|v| g.const_bytes(v)).cloned();
    let (Some(w), Some(r)) = (constant(1), constant(2)) else {
        return b.error("its weights must be constants");
    };
    let [seq, batch, width] = b.dims(g.inputs_of(op)[0])?[..] else {
        return b.error("x has three dimensions");
    };
    let hidden = b.dims(g.inputs_of(op)[2])?[2];
    let row = 4 * hidden;
    let bias = match (g.input_of(op, 3), constant(3)) {
        (None, _) => vec![0.0; dirs * row],
        (_, Some(both)) => sums_of_biases(&both, row),
        _ => return b.error("its biases must be constants"),
    };

    let x = b.input(op, 0)?;
    let fits = x.serves(Demand::BARE) && x.as_matrix().is_some();
    let x = b.placed_for(x, DType::F32, fits, Demand::BARE)?;
    let gates = b.new_place(DType::F32, &[seq * batch, dirs * row], None)?;
    let Some((_, x_pixel)) = x.as_matrix() else { return b.error("its rows do not lie one after another") };
    let geom = ConvGeom {
        x_origin: narrow(b, x.origin)?,
        x_pixel: narrow(b, x_pixel)?,
        y_origin: narrow(b, gates.origin)?,
        y_pixel: narrow(b, gates.strides[0])?,
        ..ConvGeom::product(narrow(b, seq * batch)?, narrow(b, width)?, narrow(b, dirs * row)?)
    };
    let bias = Some(Bytes::copy_from_slice(bytemuck::cast_slice(&bias)));
    let source = Source::F32 { w, bias, channels: dirs * row, transposed: false };
    emit(b, Key::new(op, 0, &geom), geom, NO_EPILOGUE, None, [Some(&x), Some(&gates), None], Some(source))?;

    // State and cell begin in their results, where they stay.
    let results: Result<Vec<Place>> = (0..3).map(|i| b.output_place_of(i)).collect();
    let results = results?;
    let dense = results[1..].iter().all(|p| p.strides == dense_strides(&p.dims));
    if !dense || results[0].strides[3] != 1 {
        return b.error("its results lie apart");
    }
    for (i, to) in results[1..].iter().enumerate() {
        let from = match g.input_of(op, 5 + i) {
            Some(v) => b.place(v)?,
            None => {
                let zeros = b.weights.zeros(to.dims.iter().product::<usize>() * DType::F32.size());
                Place::dense(Root::Const(zeros), &to.dims)
            }
        };
        b.copy(&from, to, DType::F32)?;
    }
    let isa = b.target.isa;
    let packed = b.weights.packed(g.inputs_of(op)[2], || pack_recurrent(isa, &r, row, hidden));
    let y = &results[0];
    let step = LstmStep {
        seq,
        batch,
        hidden,
        dirs,
        backwards: direction.choice() == 1,
        panel: recurrent_panel(isa),
        y: [y.strides[0], y.strides[1], y.strides[2]],
    };
    let mut operands: Vec<_> = results.iter().chain([&gates]).map(|p| operand(p, DType::F32)).collect();
    operands.push((Root::Const(packed), 0, DType::F32.size()));
    let row = push(&mut b.plan.lstms, step);
    let parts = b.target.threads.min(dirs);
    b.step(StepKind::Lstm, row, &operands, parts, "lstm_f32", seq * r.len());
    Ok(())
}

/// Of each direction, biases of the input's part and after them those of the state's, `row` of each.
fn sums_of_biases(both: &[u8], row: usize) -> Vec<f32> {
    let both: Vec<f32> = bytemuck::pod_collect_to_vec(both);
    let pairs = both.chunks_exact(2 * row);
    pairs.flat_map(|d| d[..row].iter().zip(&d[row..]).map(|(w, r)| w + r)).collect()
}
