//! The ops on burn's flex device: tensors in, slices to the kernels of `lacuna-kernels`, tensors out.

use super::autodiff::TrainKernels;
use super::slices::{Buffer, dense, dims4, filled, matrix, nhwc, ordered_like, pixels, row_major, values};
use super::{Act, Grid, Observed, Op};
use burn::backend::{Flex, TensorMetadata};
use burn_flex::FlexTensor;
use lacuna_kernels::attention::{self, AttentionShape, Rows, RowsMut};
use lacuna_kernels::batch_norm::Skip;
use lacuna_kernels::sparse::{self, Pattern};
use lacuna_kernels::{
    ConvShape, activation, add, batch_norm, conv, embedding, fake_quant, gemm, layer_norm, loss,
    pool as pooling, softmax,
};
use std::cell::Cell;
use std::sync::Arc;

/// What a forward pass keeps: tensors (views of what exists, mostly), and what is not a tensor.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    tensors: Vec<FlexTensor>,
    pattern: Option<Arc<Pattern>>,
    /// Places of the largest elements of pooling windows.
    winners: Option<Arc<Vec<u8>>>,
    /// What the result was put on.
    grid: Option<Grid>,
}

impl From<Vec<FlexTensor>> for Saved {
    fn from(tensors: Vec<FlexTensor>) -> Saved {
        Saved { tensors, ..Saved::default() }
    }
}

/// The inputs of an op: `N` that it always has, and one that it may have.
fn take<const N: usize>(inputs: Vec<FlexTensor>) -> ([FlexTensor; N], Option<FlexTensor>) {
    let mut inputs = inputs.into_iter();
    let fixed = std::array::from_fn(|_| inputs.next().expect("an op gets its inputs"));
    (fixed, inputs.next())
}

/// What was saved, in the order in which it was.
fn saved<const N: usize>(tensors: Vec<FlexTensor>) -> ([FlexTensor; N], Option<FlexTensor>) {
    take(tensors)
}

impl TrainKernels for Flex {
    type Saved = Saved;

    fn run(op: &Op, inputs: Vec<FlexTensor>) -> (Vec<FlexTensor>, Saved) {
        match *op {
            Op::Conv { window, sparse, exact } => {
                let ([x, w], bias) = take(inputs);
                let (x, w) = (nhwc(x), row_major(w));
                let shape = ConvShape::new(dims4(&x), dims4(&w), window);
                let pattern = open_weights(sparse, values(&w), &shape);
                let bias = bias.map(row_major);
                let bias = bias.as_ref().map(values);
                let y = filled(shape.y_len(), |y| match &pattern {
                    Some(pattern) => sparse::conv_forward(values(&x), pattern, bias, &shape, y),
                    None if exact => conv::forward_direct(values(&x), values(&w), bias, &shape, y),
                    None => conv::forward(values(&x), values(&w), bias, &shape, y),
                });
                let y = y.image([shape.n, shape.o, shape.oh, shape.ow]);
                (vec![y], Saved { tensors: vec![x, w], pattern, ..Saved::default() })
            }
            Op::BatchNorm { eps, act, observed } => {
                let ([x, gamma, beta], residual) = take(inputs);
                let (x, gamma, beta) = (nhwc(x), row_major(gamma), row_major(beta));
                let residual = residual.map(nhwc);
                let (rows, c) = pixels(&x);
                let (mut mean, mut var) = (Buffer::new(c), Buffer::new(c));
                let mut range = observed.map(|o| o.range);
                let found = Cell::new(None);
                let observer = |lo: f32, hi: f32| {
                    let observed = observed.map(|o| o.after(lo, hi))?;
                    found.set(Some(observed.range));
                    observed.grid()
                };
                let y = filled(rows * c, |y| {
                    batch_norm::forward(
                        values(&x),
                        rows,
                        c,
                        values(&gamma),
                        values(&beta),
                        residual.as_ref().map(values),
                        eps,
                        act,
                        observed.is_some().then_some(&observer as batch_norm::Observer<'_>),
                        y,
                        mean.values(),
                        var.values(),
                    );
                });
                range = found.get().or(range);
                let y = y.image(dims4(&x));
                let (mean, var) = (mean.tensor(&[c]), var.tensor(&[c]));
                let mut kept = vec![x, gamma, beta, y.clone(), mean.clone(), var.clone()];
                kept.extend(residual);
                let mut outputs = vec![y, mean, var];
                outputs.extend(range.map(|r| filled(2, |to| to.copy_from_slice(&r)).tensor(&[2])));
                let grid = observed.zip(range).and_then(|(o, range)| Observed { range, ..o }.grid());
                (outputs, Saved { tensors: kept, grid, ..Saved::default() })
            }
            Op::Affine { act } => {
                let ([x, scale, shift], residual) = take(inputs);
                let (x, scale, shift) = (nhwc(x), row_major(scale), row_major(shift));
                let residual = residual.map(nhwc);
                let (rows, c) = pixels(&x);
                let y = filled(rows * c, |y| {
                    let residual = residual.as_ref().map(values);
                    batch_norm::forward_with(
                        values(&x),
                        rows,
                        c,
                        values(&scale),
                        values(&shift),
                        residual,
                        act,
                        None,
                        y,
                    )
                });
                let y = y.image(dims4(&x));
                let mut kept = vec![x, scale, shift];
                kept.extend(residual);
                (vec![y], kept.into())
            }
            Op::Linear { sparse } => {
                let ([x, w], bias) = take(inputs);
                let (x, w) = (row_major(x), row_major(w));
                let ((m, k), (n, _)) = (matrix(&x), matrix(&w));
                let pattern = open_weights(sparse, values(&w), &sparse::linear_shape(m, k, n));
                let bias = bias.map(row_major);
                let bias = bias.as_ref().map(values);
                let y = filled(m * n, |y| match &pattern {
                    Some(pattern) => sparse::linear_forward(values(&x), pattern, bias, m, y),
                    None => gemm::linear(values(&x), values(&w), bias, m, k, n, y),
                });
                let mut shape = x.shape().to_vec();
                *shape.last_mut().expect("a tensor has an axis") = n;
                (vec![y.tensor(&shape)], Saved { tensors: vec![x, w], pattern, ..Saved::default() })
            }
            Op::LayerNorm { eps } => {
                let ([x, gamma, beta], residual) = take(inputs);
                let (x, gamma, beta) = (row_major(x), row_major(gamma), row_major(beta));
                let residual = residual.map(row_major);
                let (rows, width) = matrix(&x);
                let (mut y, mut mean, mut inv) =
                    (Buffer::new(rows * width), Buffer::new(rows), Buffer::new(rows));
                let (gamma_v, beta_v) = (values(&gamma), values(&beta));
                let mut sum = residual.as_ref().map(|_| Buffer::new(rows * width));
                layer_norm::forward(
                    values(&x),
                    residual.as_ref().map(values).zip(sum.as_mut().map(Buffer::values)),
                    gamma_v,
                    beta_v,
                    eps as f32,
                    y.values(),
                    mean.values(),
                    inv.values(),
                );
                let input = sum.map_or_else(|| x.clone(), |sum| sum.like(&x));
                let y = y.tensor(&x.shape().to_vec());
                (vec![y], vec![input, gamma, mean.tensor(&[rows]), inv.tensor(&[rows])].into())
            }
            Op::Activate(act) => {
                let ([x], _) = take(inputs);
                let x = dense(x);
                let y = filled(values(&x).len(), |y| activation::forward(act, values(&x), y)).like(&x);
                (vec![y], vec![x].into())
            }
            Op::Above(threshold) => {
                let ([x], _) = take(inputs);
                let x = dense(x);
                let y = filled(values(&x).len(), |y| activation::above(threshold, values(&x), values(&x), y));
                (vec![y.like(&x)], vec![x].into())
            }
            Op::Softmax { log } => {
                let ([x], _) = take(inputs);
                let x = row_major(x);
                let forward = if log { softmax::log_softmax } else { softmax::softmax };
                let y = filled(values(&x).len(), |y| forward(values(&x), matrix(&x).1, y)).like(&x);
                (vec![y.clone()], vec![y].into())
            }
            Op::Attention { heads } => {
                let ([q, k, v], mask) = take(inputs);
                let (q, k, v, mask) = (row_major(q), row_major(k), row_major(v), mask.map(row_major));
                let shape = attention_shape(&q, &k, heads);
                let mut kept = Buffer::new(shape.saved_len());
                let out = filled(values(&q).len(), |out| {
                    let mask = mask.as_ref().map(values);
                    attention::forward(
                        heads_of(&q),
                        heads_of(&k),
                        heads_of(&v),
                        mask,
                        shape,
                        out,
                        kept.values(),
                    )
                });
                let out = out.like(&q);
                let kept = kept.tensor(&[shape.saved_len()]);
                let mut all = vec![q, k, v, kept];
                all.extend(mask);
                (vec![out], all.into())
            }
            Op::Embedding { ref ids, shape } => {
                let ([table], _) = take(inputs);
                let table = row_major(table);
                let (_, width) = matrix(&table);
                let y = filled(ids.len() * width, |y| embedding::forward(values(&table), width, ids, y));
                (vec![y.tensor(&[shape[0], shape[1], width])], vec![table].into())
            }
            Op::GlobalAveragePool => {
                let ([x], _) = take(inputs);
                let x = nhwc(x);
                let [n, c, h, w] = dims4(&x);
                let y = filled(n * c, |y| pooling::global_average(values(&x), [n, h * w, c], y));
                (vec![y.image([n, c, 1, 1])], vec![x].into())
            }
            Op::MaxPool { kernel, window } => {
                let ([x], _) = take(inputs);
                let x = nhwc(x);
                let shape = pooling::shape(dims4(&x), [kernel; 2], window);
                let mut winners = vec![0; shape.y_len()];
                let y = filled(shape.y_len(), |y| pooling::max(values(&x), &shape, y, &mut winners));
                let y = y.image([shape.n, shape.c, shape.oh, shape.ow]);
                (vec![y], Saved { tensors: vec![x], winners: Some(Arc::new(winners)), ..Saved::default() })
            }
            Op::CrossEntropy { ref targets } => {
                let ([logits], _) = take(inputs);
                let logits = row_major(logits);
                let (n, classes) = matrix(&logits);
                let mut gradient = Buffer::new(n * classes);
                let mean = loss::cross_entropy(values(&logits), classes, targets, 0.0, gradient.values());
                let gradient = gradient.tensor(&[n, classes]);
                (vec![filled(1, |y| y[0] = mean).tensor(&[1])], vec![gradient].into())
            }
            Op::FakeQuant(grid) => {
                let ([x], _) = take(inputs);
                let x = dense(x);
                let y = filled(values(&x).len(), |y| fake_quant::quantize(values(&x), grid, y)).like(&x);
                (vec![y], vec![x].into())
            }
            Op::Range { of_rows } => {
                let ([x], _) = take(inputs);
                if of_rows {
                    let (x, rows) = (row_major(x.clone()), x.shape()[0]);
                    let ends = filled(2 * rows, |ends| {
                        let (min, max) = ends.split_at_mut(rows);
                        fake_quant::row_ranges(values(&x), None, min, max)
                    });
                    return (vec![ends.tensor(&[2 * rows])], Saved::default());
                }
                let (lo, hi) = fake_quant::range(values(&dense(x)));
                (vec![filled(2, |ends| ends.copy_from_slice(&[lo, hi])).tensor(&[2])], Saved::default())
            }
            Op::FakeQuantWeight { ref limits } => {
                let ([w, scales], fold) = take(inputs);
                let (w, scales, fold) = (row_major(w), row_major(scales), fold.map(row_major));
                let y = filled(values(&w).len(), |y| {
                    let fold = fold.as_ref().map(values);
                    fake_quant::quantize_folded(values(&w), fold, values(&scales), limits, y)
                });
                let y = y.like(&w);
                let mut kept = vec![w, scales];
                kept.extend(fold);
                (vec![y], kept.into())
            }
        }
    }

    fn gradients(op: &Op, kept: Saved, dy: FlexTensor, wanted: &[bool]) -> Vec<Option<FlexTensor>> {
        let Saved { tensors, pattern, winners, grid } = kept;
        let wants = |i: usize| wanted.get(i) == Some(&true);
        match *op {
            Op::Conv { window, .. } => {
                let ([x, w], _) = saved(tensors);
                let dy = nhwc(dy);
                let shape = ConvShape::new(dims4(&x), dims4(&w), window);
                let dx = wants(0).then(|| {
                    filled(shape.x_len(), |dx| match &pattern {
                        Some(pattern) => sparse::conv_input_gradient(values(&dy), pattern, &shape, dx),
                        None => conv::input_gradient(values(&w), values(&dy), &shape, dx),
                    })
                    .image(dims4(&x))
                });
                let dw = wants(1).then(|| {
                    filled(shape.w_len(), |dw| match &pattern {
                        Some(pattern) => {
                            sparse::conv_weight_gradient(values(&x), values(&dy), pattern, &shape, dw)
                        }
                        None => conv::weight_gradient(values(&x), values(&dy), &shape, dw),
                    })
                    .tensor(&dims4(&w))
                });
                let db = wants(2).then(|| bias_gradient(&dy, shape.o));
                vec![dx, dw, db]
            }
            Op::BatchNorm { eps, act, .. } => {
                let ([x, gamma, beta, y, mean, var], residual) = saved(tensors);
                let dy = nhwc(dy);
                let (rows, c) = pixels(&x);
                let (mut dx, mut d_gamma, mut d_beta) =
                    (Buffer::new(rows * c), Buffer::new(c), Buffer::new(c));
                // Without an activation the residual's gradient is dy itself.
                let mut d_residual =
                    (wants(3) && !(act == Act::None && grid.is_none())).then(|| Buffer::new(rows * c));
                let skip = skip(act, grid.is_some(), &y, residual.as_ref());
                batch_norm::backward(
                    values(&x),
                    skip,
                    values(&dy),
                    rows,
                    c,
                    values(&gamma),
                    values(&beta),
                    values(&mean),
                    values(&var),
                    eps,
                    act,
                    grid,
                    dx.values(),
                    d_gamma.values(),
                    d_beta.values(),
                    d_residual.as_mut().map(Buffer::values),
                );
                let d_residual = match d_residual {
                    Some(d) => Some(d.image(dims4(&x))),
                    None => wants(3).then_some(dy),
                };
                vec![
                    Some(dx.image(dims4(&x))),
                    Some(d_gamma.tensor(&[c])),
                    Some(d_beta.tensor(&[c])),
                    d_residual,
                ]
            }
            Op::Affine { act } => {
                let ([x, scale, shift], residual) = saved(tensors);
                let dy = nhwc(dy);
                let (rows, c) = pixels(&x);
                // The gradient before the activation, which is the residual's, too.
                let dz = match act {
                    Act::None => dy,
                    _ => {
                        let mut z = Buffer::new(rows * c);
                        let residual = residual.as_ref().map(values);
                        let (scale, shift) = (values(&scale), values(&shift));
                        batch_norm::forward_with(
                            values(&x),
                            rows,
                            c,
                            scale,
                            shift,
                            residual,
                            Act::None,
                            None,
                            z.values(),
                        );
                        let (z, dy) = (z.image(dims4(&x)), values(&dy));
                        filled(rows * c, |dz| activation::backward(act, values(&z), dy, dz)).image(dims4(&x))
                    }
                };
                let (mut d_scale, mut d_shift) = (Buffer::new(c), Buffer::new(c));
                batch_norm::column_products(
                    values(&x),
                    values(&dz),
                    rows,
                    c,
                    d_scale.values(),
                    d_shift.values(),
                );
                let zeros = vec![0f32; c];
                let dx = filled(rows * c, |dx| {
                    batch_norm::forward_with(
                        values(&dz),
                        rows,
                        c,
                        values(&scale),
                        &zeros,
                        None,
                        Act::None,
                        None,
                        dx,
                    )
                });
                let (d_scale, d_shift) = (d_scale.tensor(&[c]), d_shift.tensor(&[c]));
                vec![Some(dx.image(dims4(&x))), Some(d_scale), Some(d_shift), wants(3).then_some(dz)]
            }
            Op::Linear { .. } => {
                let ([x, w], _) = saved(tensors);
                let dy = row_major(dy);
                let ((m, k), (n, _)) = (matrix(&x), matrix(&w));
                let dx = wants(0).then(|| {
                    filled(m * k, |dx| match &pattern {
                        Some(pattern) => sparse::linear_input_gradient(values(&dy), pattern, m, dx),
                        None => gemm::linear_input_gradient(values(&w), values(&dy), m, k, n, dx),
                    })
                    .like(&x)
                });
                let dw = wants(1).then(|| {
                    filled(n * k, |dw| match &pattern {
                        Some(pattern) => {
                            sparse::linear_weight_gradient(values(&x), values(&dy), pattern, m, dw)
                        }
                        None => gemm::linear_weight_gradient(values(&x), values(&dy), m, k, n, dw),
                    })
                    .tensor(&[n, k])
                });
                let db = wants(2).then(|| bias_gradient(&dy, n));
                vec![dx, dw, db]
            }
            Op::LayerNorm { .. } => {
                let ([input, gamma, mean, inv], _) = saved(tensors);
                let dy = row_major(dy);
                let (_, width) = matrix(&input);
                let (mut d_gamma, mut d_beta) = (Buffer::new(width), Buffer::new(width));
                let dx = filled(values(&input).len(), |dx| {
                    layer_norm::backward(
                        values(&input),
                        values(&gamma),
                        values(&mean),
                        values(&inv),
                        values(&dy),
                        dx,
                        d_gamma.values(),
                        d_beta.values(),
                    )
                });
                let dx = dx.like(&input);
                vec![
                    Some(dx.clone()),
                    Some(d_gamma.tensor(&[width])),
                    Some(d_beta.tensor(&[width])),
                    Some(dx),
                ]
            }
            Op::Activate(act) => {
                let ([x], _) = saved(tensors);
                let dy = ordered_like(dy, &x);
                let dx =
                    filled(values(&x).len(), |dx| activation::backward(act, values(&x), values(&dy), dx));
                vec![Some(dx.like(&x))]
            }
            Op::Above(threshold) => {
                let ([x], _) = saved(tensors);
                let dy = ordered_like(dy, &x);
                let dx =
                    filled(values(&x).len(), |dx| activation::above(threshold, values(&x), values(&dy), dx));
                vec![Some(dx.like(&x))]
            }
            Op::Softmax { log } => {
                let ([y], _) = saved(tensors);
                let dy = row_major(dy);
                let backward = if log { softmax::log_softmax_backward } else { softmax::softmax_backward };
                let dx = filled(values(&y).len(), |dx| backward(values(&y), values(&dy), matrix(&y).1, dx))
                    .like(&y);
                vec![Some(dx)]
            }
            Op::Attention { heads } => {
                let ([q, k, v, kept], mask) = saved(tensors);
                let dy = row_major(dy);
                let shape = attention_shape(&q, &k, heads);
                let new = |x: &FlexTensor| Buffer::new(values(x).len());
                let (mut dq, mut dk, mut dv) = (new(&q), new(&k), new(&v));
                let columns = shape.columns();
                attention::backward(
                    heads_of(&q),
                    heads_of(&k),
                    heads_of(&v),
                    mask.as_ref().map(values),
                    values(&kept),
                    values(&dy),
                    shape,
                    RowsMut::whole(dq.values(), columns),
                    RowsMut::whole(dk.values(), columns),
                    RowsMut::whole(dv.values(), columns),
                );
                vec![Some(dq.like(&q)), Some(dk.like(&k)), Some(dv.like(&v)), None]
            }
            Op::Embedding { ref ids, .. } => {
                let ([table], _) = saved(tensors);
                let dy = row_major(dy);
                let (rows, width) = matrix(&table);
                let d_table = filled(rows * width, |d| embedding::backward(ids, values(&dy), width, d));
                vec![Some(d_table.tensor(&[rows, width]))]
            }
            Op::GlobalAveragePool => {
                let ([x], _) = saved(tensors);
                let dy = nhwc(dy);
                let [n, c, h, w] = dims4(&x);
                let dx = filled(n * c * h * w, |dx| {
                    pooling::global_average_backward(values(&dy), [n, h * w, c], dx)
                });
                vec![Some(dx.image(dims4(&x)))]
            }
            Op::MaxPool { kernel, window } => {
                let ([x], _) = saved(tensors);
                let dy = nhwc(dy);
                let shape = pooling::shape(dims4(&x), [kernel; 2], window);
                let winners = winners.expect("a forward pass saved where its maxima were");
                let dx = filled(shape.x_len(), |dx| pooling::max_backward(values(&dy), &winners, &shape, dx));
                vec![Some(dx.image(dims4(&x)))]
            }
            Op::CrossEntropy { .. } => {
                let ([gradient], _) = saved(tensors);
                let factor = values(&dy)[0];
                let d_logits = filled(values(&gradient).len(), |d| {
                    for (d, g) in d.iter_mut().zip(values(&gradient)) {
                        *d = g * factor;
                    }
                });
                vec![Some(d_logits.like(&gradient))]
            }
            Op::FakeQuant(grid) => {
                let ([x], _) = saved(tensors);
                let dy = ordered_like(dy, &x);
                let dx =
                    filled(values(&x).len(), |dx| fake_quant::backward(values(&x), values(&dy), grid, dx));
                vec![Some(dx.like(&x))]
            }
            Op::Range { .. } => Vec::new(),
            Op::FakeQuantWeight { ref limits } => {
                let ([w, scales], fold) = saved(tensors);
                let dy = row_major(dy);
                let mut d_fold = wants(2).then(|| Buffer::new(values(&scales).len()));
                let dw = filled(values(&w).len(), |dw| {
                    fake_quant::quantize_folded_backward(
                        values(&w),
                        fold.as_ref().map(values),
                        values(&scales),
                        limits,
                        values(&dy),
                        dw,
                        d_fold.as_mut().map(Buffer::values),
                    )
                });
                let channels = values(&scales).len();
                vec![Some(dw.like(&w)), None, d_fold.map(|d| d.tensor(&[channels]))]
            }
        }
    }

    fn add(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        let mut a = dense(a);
        let b = ordered_like(b, &a);
        let at = a.layout().start_offset();
        let len = a.layout().num_elements();
        if let Some(sum) = a.try_storage_mut::<f32>() {
            add::accumulate(&mut sum[at..at + len], values(&b));
            return a;
        }
        filled(len, |sum| add::sum(values(&a), values(&b), sum)).like(&a)
    }
}

/// What the gradient of a batch norm is told of its residual.
fn skip<'a>(act: Act, quantised: bool, y: &'a FlexTensor, residual: Option<&'a FlexTensor>) -> Skip<'a> {
    match residual {
        None => Skip::None,
        Some(_) if matches!(act, Act::None | Act::Relu | Act::Relu6) && !quantised => Skip::Output(values(y)),
        Some(residual) => Skip::Residual(values(residual)),
    }
}

fn bias_gradient(dy: &FlexTensor, channels: usize) -> FlexTensor {
    filled(channels, |db| conv::bias_gradient(values(dy), channels, db)).tensor(&[channels])
}

/// The open weights, if the weight is masked and skipping them pays.
fn open_weights(masked: bool, w: &[f32], shape: &ConvShape) -> Option<Arc<Pattern>> {
    let closed = || w.iter().filter(|w| w.to_bits() == 0).count();
    let density = || 1.0 - closed() as f64 / w.len().max(1) as f64;
    (masked && sparse::pays(shape, density())).then(|| Arc::new(Pattern::of(w, shape)))
}

/// Tokens of [batch, tokens, heads * width] as rows.
fn heads_of(x: &FlexTensor) -> Rows<'_> {
    Rows::whole(values(x), matrix(x).1)
}

fn attention_shape(q: &FlexTensor, k: &FlexTensor, heads: usize) -> AttentionShape {
    let ([batch, queries, wide], [_, keys, _]) = (q.shape().dims::<3>(), k.shape().dims::<3>());
    AttentionShape { batch, heads, queries, keys, width: wide / heads }
}
