//! Losses, einsum, determinants, and the norms that only have a plain form.

use super::element::Number;
use super::slice::ints;
use super::{Inputs, Outputs, all_output_dims, f32s, optional, output_dims, strides, tensor, wrong_attr};
use crate::op::Attr;
use crate::shape;
use crate::tensor::{Dim, Elements, Tensor};

/// The loss of each target, weighted, and the weights; what is ignored has neither.
fn picked(attr: &Attr, inputs: Inputs<'_>, log: &[f32]) -> Result<(Vec<f32>, Vec<f32>), String> {
    let ignore = attr.numbers::<2>()?[1].int();
    let dims = &tensor(inputs, 0)?.dims;
    let (c, inner) = (dims[1], dims[2..].iter().product::<usize>());
    let weights = optional(inputs, 2).and_then(Tensor::as_f32);
    let (mut losses, mut used) = (Vec::new(), Vec::new());
    for (i, target) in ints(tensor(inputs, 1)?)?.into_iter().enumerate() {
        let (value, weight) = if target == ignore {
            (0.0, 0.0)
        } else {
            let class = if target < 0 { target.saturating_add(c as i64) } else { target };
            let class = usize::try_from(class).ok().filter(|&t| t < c);
            let class =
                class.ok_or_else(|| format!("target {target} does not exist: there are {c} classes"))?;
            let weight = weights.map_or(1.0, |w| w[class]);
            (-log[(i / inner * c + class) * inner + i % inner] * weight, weight)
        };
        losses.push(value);
        used.push(weight);
    }
    Ok((losses, used))
}

fn reduced(attr: &Attr, dims: &[usize], losses: Vec<f32>, weights: Vec<f32>) -> Result<Tensor, String> {
    let sum = |v: &[f32]| v.iter().fold(0.0f32, |sum, v| sum + v);
    Ok(match attr.numbers::<1>()?[0].choice() {
        0 => Tensor::from_f32(&[], vec![sum(&losses) / sum(&weights)]),
        1 => Tensor::from_f32(dims, losses),
        _ => Tensor::from_f32(&[], vec![sum(&losses)]),
    })
}

pub fn negative_log_likelihood(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::loss, attr, inputs)?;
    let (losses, weights) = picked(attr, inputs, f32s(inputs, 0)?)?;
    Ok(vec![reduced(attr, &dims, losses, weights)?])
}

/// The same of a log-softmax over the classes, which is the second result.
pub fn cross_entropy(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = all_output_dims(shape::cross_entropy, attr, inputs)?.remove(0);
    let log = super::reduce::log_softmax(&Attr::Axis(1), &inputs[..1])?.remove(0);
    let (losses, weights) = picked(attr, inputs, log.as_f32().unwrap_or_default())?;
    Ok(vec![reduced(attr, &dims, losses, weights)?, log])
}

/// Products of one element of each operand, summed over every label that the result has not.
pub fn einsum(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::einsum, attr, inputs)?;
    let Attr::Equation(equation) = attr else { return Err(wrong_attr(attr)) };
    let operands: Vec<&Tensor> = (0..inputs.len()).map(|i| tensor(inputs, i)).collect::<Result<_, _>>()?;
    let shapes: Vec<Vec<Dim>> =
        operands.iter().map(|t| t.dims.iter().map(|&d| Dim::Fixed(d as u64)).collect()).collect();
    let shapes: Vec<&[Dim]> = shapes.iter().map(Vec::as_slice).collect();
    let labels = shape::labels(equation.as_str(), &shapes)?;
    let sizes: Vec<usize> = labels.dims.iter().map(|d| d.fixed().unwrap_or(0) as usize).collect();
    // How far a step along each label goes in each operand: nowhere where it repeats one element.
    let steps: Vec<Vec<usize>> = operands
        .iter()
        .zip(&labels.operands)
        .map(|(t, row)| {
            let own = strides(&t.dims);
            let mut steps = vec![0; sizes.len()];
            row.iter()
                .enumerate()
                .filter(|(d, _)| t.dims[*d] != 1)
                .for_each(|(d, &label)| steps[label] += own[d]);
            steps
        })
        .collect();
    let out = strides(&dims);
    let mut to = vec![0; sizes.len()];
    labels.result.iter().enumerate().for_each(|(d, &label)| to[label] += out[d]);
    let all = strides(&sizes);
    let place =
        |i: usize, steps: &[usize]| (0..sizes.len()).map(|l| i / all[l] % sizes[l] * steps[l]).sum::<usize>();
    fn sums<T: Number>(
        operands: &[&[T]],
        steps: &[Vec<usize>],
        terms: usize,
        place: impl Fn(usize, &[usize]) -> usize,
        to: &[usize],
        n: usize,
    ) -> Vec<T> {
        let mut y = vec![T::default(); n];
        for i in 0..terms {
            let product = operands
                .iter()
                .zip(steps)
                .fold(T::ONE, |product, (x, steps)| product.mul(x[place(i, steps)]));
            let at = place(i, to);
            y[at] = y[at].add(product);
        }
        y
    }
    let (terms, n) = (sizes.iter().product(), dims.iter().product());
    macro_rules! of {
        ($get:ident) => {
            operands.iter().map(|t| t.$get().unwrap_or_default()).collect::<Vec<_>>()
        };
    }
    let elements = match &operands[0].elements {
        Elements::F32(_) => Elements::F32(sums(&of!(as_f32), &steps, terms, place, &to, n)),
        Elements::I64(_) => Elements::I64(sums(&of!(as_i64), &steps, terms, place, &to, n)),
        Elements::I32(_) => Elements::I32(sums(&of!(as_i32), &steps, terms, place, &to, n)),
        Elements::U8(_) => Elements::U8(sums(&of!(as_u8), &steps, terms, place, &to, n)),
        Elements::I8(_) => Elements::I8(sums(&of!(as_i8), &steps, terms, place, &to, n)),
        Elements::Bool(_) => return Err("input 0 is bool, it must be a number".to_string()),
    };
    Ok(vec![Tensor { dims, elements }])
}

/// By elimination with the largest pivots, in f64.
pub fn det(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::det, attr, inputs)?;
    let n = *tensor(inputs, 0)?.dims.last().ok_or("input 0 needs dimensions")?;
    let one = |matrix: &[f32]| -> f32 {
        let mut m: Vec<f64> = matrix.iter().map(|&v| v.into()).collect();
        let mut det = 1.0;
        for column in 0..n {
            let pivot =
                (column..n).max_by(|&a, &b| m[a * n + column].abs().total_cmp(&m[b * n + column].abs()));
            let pivot = pivot.unwrap_or(column);
            if m[pivot * n + column] == 0.0 {
                return 0.0;
            }
            if pivot != column {
                (0..n).for_each(|j| m.swap(pivot * n + j, column * n + j));
                det = -det;
            }
            det *= m[column * n + column];
            for row in column + 1..n {
                let factor = m[row * n + column] / m[column * n + column];
                (column..n).for_each(|j| m[row * n + j] -= factor * m[column * n + j]);
            }
        }
        det as f32
    };
    let count: usize = dims.iter().product();
    let y = match n {
        0 => vec![1.0; count],
        n => f32s(inputs, 0)?.chunks_exact(n * n).map(one).collect(),
    };
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// `(x - mean) / sqrt(var + epsilon)` of each run, times the channel's scale, plus its bias.
fn normalised(inputs: Inputs<'_>, dims: &[usize], run: usize, epsilon: f32) -> Outputs {
    let (scale, bias) = (f32s(inputs, 1)?, f32s(inputs, 2)?);
    let pixels = dims[2..].iter().product::<usize>().max(1);
    let mut y = f32s(inputs, 0)?.to_vec();
    for row in y.chunks_exact_mut(run.max(1)) {
        let n = row.len() as f32;
        let mean = row.iter().fold(0.0f32, |sum, x| sum + x) / n;
        let var = row.iter().fold(0.0f32, |sum, x| sum + (x - mean) * (x - mean)) / n;
        let inverse = 1.0 / (var + epsilon).sqrt();
        row.iter_mut().for_each(|x| *x = (*x - mean) * inverse);
    }
    for (i, y) in y.iter_mut().enumerate() {
        let channel = i / pixels % dims[1];
        *y = *y * scale[channel] + bias[channel];
    }
    Ok(vec![Tensor::from_f32(dims, y)])
}

pub fn instance_norm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::channel_norm, attr, inputs)?;
    let Attr::Epsilon(epsilon) = *attr else { return Err(wrong_attr(attr)) };
    normalised(inputs, &dims, dims[2..].iter().product(), epsilon)
}

/// Wu and He, Group Normalization, 2018.
pub fn group_norm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::channel_norm, attr, inputs)?;
    let [epsilon, groups] = attr.numbers()?;
    let run = dims[1..].iter().product::<usize>() / groups.int() as usize;
    normalised(inputs, &dims, run, epsilon.float())
}

/// Krizhevsky et al., ImageNet classification, 2012: divided by a power of the squares of neighbouring channels.
pub fn lrn(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::lrn, attr, inputs)?;
    let [alpha, beta, bias, size] = attr.numbers()?;
    let (c, inner, n) = (dims[1], dims[2..].iter().product::<usize>(), size.int() as usize);
    let x = f32s(inputs, 0)?;
    let value = |(i, &v): (usize, &f32)| {
        let channel = i / inner % c;
        let (first, last) = (channel.saturating_sub((n - 1) / 2), (channel + n / 2).min(c - 1));
        let sum = (first..=last).fold(0.0f32, |sum, k| {
            let other = x[i + k * inner - channel * inner];
            sum + other * other
        });
        v / (bias.float() + alpha.float() / n as f32 * sum).powf(beta.float())
    };
    Ok(vec![Tensor::from_f32(&dims, x.iter().enumerate().map(value).collect())])
}
