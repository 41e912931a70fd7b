//! Ops that sample images: resizing, grids, regions. Sums are f32, in row-major order of what is sampled.

use super::element::Number;
use super::slice::ints;
use super::{Inputs, Outputs, f32s, optional, output_dims, strides, tensor, wrong_attr};
use crate::op::Attr;
use crate::shape;
use crate::tensor::{Elements, Tensor};

/// Weights of places along one dimension: what one element of the result is the sum of.
type Taps = Vec<(usize, f32)>;

/// How Interpolate picks along a dimension.
#[derive(Clone, Copy)]
struct Rule {
    mode: usize,
    coordinates: usize,
    nearest: usize,
    cubic: f64,
    exclude_outside: bool,
    antialias: bool,
}

/// Where element `i` of a result of `out` elements lies among `size` elements.
fn original(rule: &Rule, i: usize, size: usize, out: usize, scale: f64, roi: [f64; 2]) -> f64 {
    let (i, n, m) = (i as f64, size as f64, out as f64);
    match rule.coordinates {
        1 => i / scale,
        2 if out == 1 => 0.0,
        // By the exact size, of which the result's is the whole part.
        2 => i * (n - 1.0) / (scale * n - 1.0),
        3 if out == 1 => -0.5,
        4 if out == 1 => 0.5 * (roi[0] + roi[1]) * (n - 1.0),
        4 => roi[0] * (n - 1.0) + i * (roi[1] - roi[0]) * (n - 1.0) / (m - 1.0),
        5 => {
            // Half pixels of a result of the exact size, in whose middle the rounded one lies.
            let exact = scale * n;
            let centre = n / 2.0;
            centre * (1.0 - m / exact) + (i + 0.5) / scale - 0.5
        }
        6 => (i + 0.5) / scale,
        _ => (i + 0.5) / scale - 0.5,
    }
}

/// Keys' cubic, Cubic convolution interpolation for digital image processing, 1981.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

fn taps(rule: &Rule, at: f64, size: usize, scale: f64) -> Taps {
    let inside = |i: i64| i.clamp(0, size as i64 - 1) as usize;
    if rule.mode == 0 {
        let (floor, half) = (at.floor(), at - at.floor() == 0.5);
        let i = match rule.nearest {
            0 if half => floor,
            1 if half => floor + 1.0,
            0 | 1 => at.round(),
            2 => floor,
            _ => at.ceil(),
        };
        return vec![(inside(i as i64), 1.0)];
    }
    let reach = if rule.mode == 1 { 1.0 } else { 2.0 };
    // Where the result is smaller, the filter widens so that every element has a part.
    let widen = if rule.antialias && scale < 1.0 { scale } else { 1.0 };
    let reach = reach / widen;
    let (first, last) = ((at - reach).floor() as i64 + 1, (at + reach).ceil() as i64 - 1);
    let weight = |i: i64| {
        let x = (i as f64 - at) * widen;
        if rule.mode == 1 { (1.0 - x.abs()).max(0.0) } else { cubic(x, rule.cubic) }
    };
    let outside = |i: i64| i < 0 || i >= size as i64;
    let mut found: Vec<(usize, f64)> = Vec::new();
    for i in first..=last {
        if !(rule.exclude_outside && outside(i)) {
            found.push((inside(i), weight(i)));
        }
    }
    if found.is_empty() {
        return vec![(inside(at.round() as i64), 1.0)];
    }
    let sum: f64 = found.iter().map(|f| f.1).sum();
    let normal = rule.exclude_outside || rule.antialias;
    found.iter().map(|&(i, w)| (i, (if normal && sum != 0.0 { w / sum } else { w }) as f32)).collect()
}

/// x, region, scales or sizes, axes: one dimension after another.
pub fn interpolate(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::interpolate, attr, inputs)?;
    let [mode, coordinates, nearest, cubic, exclude, extrapolation, antialias, policy] = attr.numbers()?;
    let x = tensor(inputs, 0)?;
    let axes: Vec<usize> = match optional(inputs, 4) {
        Some(t) => ints(t)?.iter().map(|&a| shape::axis_index(a, dims.len())).collect::<Result<_, _>>()?,
        None => (0..dims.len()).collect(),
    };
    let own: Vec<u64> = x.dims.iter().map(|&d| d as u64).collect();
    let wanted: Option<Vec<u64>> =
        optional(inputs, 3).map(ints).transpose()?.map(|w| w.iter().map(|&v| v as u64).collect());
    let scales = optional(inputs, 2).and_then(Tensor::as_f32);
    let resized = shape::resized(&own, &axes, scales, wanted.as_deref(), policy.choice())?;
    let rule = Rule {
        mode: mode.choice(),
        coordinates: coordinates.choice(),
        nearest: nearest.choice(),
        cubic: f64::from(cubic.float()),
        exclude_outside: exclude.flag(),
        antialias: antialias.flag(),
    };
    let roi = optional(inputs, 1).and_then(Tensor::as_f32).unwrap_or_default();
    if x.is_empty() {
        return Ok(vec![Tensor::zeros(x.dtype(), &dims)]);
    }
    let mut y = Sampled { dims: x.dims.clone(), values: floats(x)? };
    let mut outside = vec![Vec::new(); dims.len()];
    for (k, &axis) in axes.iter().enumerate() {
        if rule.coordinates != 4 && dims[axis] == x.dims[axis] && resized.scales[axis] == 1.0 {
            continue;
        }
        let region = |i: usize| roi.get(i).copied().map_or([0.0, 1.0][i / axes.len().max(1) % 2], f64::from);
        let region = [region(k), region(axes.len() + k)];
        let place = |i: usize| original(&rule, i, x.dims[axis], dims[axis], resized.scales[axis], region);
        let along: Vec<Taps> =
            (0..dims[axis]).map(|i| taps(&rule, place(i), x.dims[axis], resized.scales[axis])).collect();
        if rule.coordinates == 4 {
            let last = (x.dims[axis] - 1) as f64;
            outside[axis] = (0..dims[axis]).map(|i| !(0.0..=last).contains(&place(i))).collect();
        }
        y.resample(axis, &along);
    }
    let out = strides(&dims);
    let is_out = |i: usize| (0..dims.len()).any(|d| outside[d].get(i / out[d] % dims[d]) == Some(&true));
    for i in 0..y.values.len() {
        if is_out(i) {
            y.values[i] = extrapolation.float();
        }
    }
    Ok(vec![Tensor { elements: as_type(x, y.values), dims }])
}

/// Elements of any number type as f32.
fn floats(x: &Tensor) -> Result<Vec<f32>, String> {
    fn all<T: Number>(x: &[T]) -> Vec<f32> {
        x.iter().map(|x| x.to_f64() as f32).collect()
    }
    Ok(match &x.elements {
        Elements::F32(x) => x.clone(),
        Elements::I64(x) => all(x),
        Elements::I32(x) => all(x),
        Elements::U8(x) => all(x),
        Elements::I8(x) => all(x),
        Elements::Bool(_) => return Err("input 0 is bool, it must be a number".to_string()),
    })
}

/// Back to the type of x, rounded.
fn as_type(x: &Tensor, y: Vec<f32>) -> Elements {
    fn all<T: Number>(y: &[f32]) -> Vec<T> {
        y.iter().map(|&y| T::from_f64(f64::from(y.round_ties_even()))).collect()
    }
    match &x.elements {
        Elements::I64(_) => Elements::I64(all(&y)),
        Elements::I32(_) => Elements::I32(all(&y)),
        Elements::U8(_) => Elements::U8(all(&y)),
        Elements::I8(_) => Elements::I8(all(&y)),
        _ => Elements::F32(y),
    }
}

struct Sampled {
    dims: Vec<usize>,
    values: Vec<f32>,
}

impl Sampled {
    /// Replaces dimension `axis` by one with an element for each of the sums.
    fn resample(&mut self, axis: usize, sums: &[Taps]) {
        let (n, inner) = (self.dims[axis], self.dims[axis + 1..].iter().product::<usize>());
        let outer: usize = self.dims[..axis].iter().product();
        let mut y = Vec::with_capacity(outer * sums.len() * inner);
        for o in 0..outer {
            let block = &self.values[o * n * inner..][..n * inner];
            for taps in sums {
                y.extend(
                    (0..inner)
                        .map(|i| taps.iter().fold(0.0f32, |sum, &(j, w)| sum + block[j * inner + i] * w)),
                );
            }
        }
        self.dims[axis] = sums.len();
        self.values = y;
    }
}

/// A place in -1..1 as one among `size` elements.
fn unnormalised(x: f64, size: usize, align: bool) -> f64 {
    let n = size as f64;
    if align { (x + 1.0) / 2.0 * (n - 1.0) } else { ((x + 1.0) * n - 1.0) / 2.0 }
}

/// Mirrored until it lies between the borders.
fn reflected(x: f64, low: f64, high: f64) -> f64 {
    let span = high - low;
    if span <= 0.0 {
        return low;
    }
    let at = (x - low).rem_euclid(2.0 * span);
    low + if at > span { 2.0 * span - at } else { at }
}

pub fn grid_sample(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::grid_sample, attr, inputs)?;
    let [mode, padding, align] = attr.numbers()?;
    let (x, xs, grid) = (tensor(inputs, 0)?, f32s(inputs, 0)?, f32s(inputs, 1)?);
    let (sizes, n, c) = (&x.dims[2..], x.dims.len() - 2, x.dims[1]);
    let own = strides(sizes);
    let (from, to): (usize, usize) = (sizes.iter().product(), dims[2..].iter().product());
    let align = align.flag();
    let borders = |d: usize| if align { (0.0, sizes[d] as f64 - 1.0) } else { (-0.5, sizes[d] as f64 - 0.5) };
    // Where an index that may lie outside is read; `None`: a zero.
    let index = |d: usize, i: i64| -> Option<usize> {
        let last = sizes[d] as i64 - 1;
        match padding.choice() {
            _ if (0..=last).contains(&i) => Some(i as usize),
            1 => Some(i.clamp(0, last) as usize),
            2 => {
                let (low, high) = borders(d);
                Some((reflected(i as f64, low, high).round() as i64).clamp(0, last) as usize)
            }
            _ => None,
        }
    };
    let along = |d: usize, at: f64| -> Vec<(Option<usize>, f32)> {
        let (low, high) = borders(d);
        let at = match padding.choice() {
            1 if mode.choice() != 2 => at.clamp(0.0, sizes[d] as f64 - 1.0),
            2 if mode.choice() != 2 => reflected(at, low, high),
            _ => at,
        };
        let floor = at.floor() as i64;
        match mode.choice() {
            1 => vec![(index(d, at.round_ties_even() as i64), 1.0)],
            2 => (floor - 1..floor + 3).map(|i| (index(d, i), cubic(i as f64 - at, -0.75) as f32)).collect(),
            _ => (floor..floor + 2).map(|i| (index(d, i), (1.0 - (i as f64 - at).abs()) as f32)).collect(),
        }
    };
    let mut y = vec![0.0f32; dims.iter().product()];
    for (batch, at) in (0..dims[0]).flat_map(|batch| (0..to).map(move |at| (batch, at))) {
        let place = &grid[(batch * to + at) * n..][..n];
        // The grid's last numbers belong to the first dimensions: x before y before z.
        let mut seen: Vec<(usize, f32)> = vec![(0, 1.0)];
        for d in 0..n {
            let taps = along(d, unnormalised(place[n - 1 - d].into(), sizes[d], align));
            let inside = taps.iter().filter_map(|&(i, w)| Some((i? * own[d], w)));
            let inside: Vec<(usize, f32)> = inside.collect();
            seen = seen.iter().flat_map(|&(i, w)| inside.iter().map(move |&(j, v)| (i + j, w * v))).collect();
        }
        for ch in 0..c {
            let plane = &xs[(batch * c + ch) * from..][..from];
            y[(batch * c + ch) * to + at] = seen.iter().fold(0.0f32, |sum, &(i, w)| sum + plane[i] * w);
        }
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

pub fn affine_grid(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::affine_grid, attr, inputs)?;
    let align = attr.numbers::<1>()?[0].flag();
    let theta = f32s(inputs, 0)?;
    let (n, sizes) = (dims.len() - 2, &dims[1..dims.len() - 1]);
    let own = strides(sizes);
    let mut y = Vec::new();
    for batch in 0..dims[0] {
        for at in 0..sizes.iter().product() {
            // In -1..1 along each dimension: the last is x.
            let coordinate = |d: usize| {
                let (i, size) = ((at / own[d] % sizes[d]) as f32, sizes[d] as f32);
                if align && size > 1.0 { 2.0 * i / (size - 1.0) - 1.0 } else { (2.0 * i + 1.0) / size - 1.0 }
            };
            for row in 0..n {
                let t = &theta[(batch * n + row) * (n + 1)..][..n + 1];
                y.push((0..n).fold(0.0f32, |sum, k| sum + t[k] * coordinate(n - 1 - k)) + t[n]);
            }
        }
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// He et al., Mask R-CNN, 2017: bilinear samples of each bin, averaged or their maximum.
pub fn roi_align(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::roi_align, attr, inputs)?;
    let [mode, _, _, ratio, scale, coordinates] = attr.numbers()?;
    let (x, xs, rois) = (tensor(inputs, 0)?, f32s(inputs, 0)?, f32s(inputs, 1)?);
    let batches = ints(tensor(inputs, 2)?)?;
    let (n, c, h, w) = (x.dims[0], x.dims[1], x.dims[2], x.dims[3]);
    let (oh, ow) = (dims[2], dims[3]);
    let half = coordinates.choice() == 0;
    let mut y = vec![0.0f32; dims.iter().product()];
    for (r, &batch) in batches.iter().enumerate() {
        let batch = usize::try_from(batch)
            .ok()
            .filter(|&b| b < n)
            .ok_or_else(|| format!("there is no image {batch}"))?;
        let offset = if half { 0.5 } else { 0.0 };
        let [x1, y1, x2, y2] = std::array::from_fn(|k| rois[r * 4 + k] * scale.float() - offset);
        let least = if half { f32::MIN } else { 1.0 };
        let (bin_h, bin_w) = ((y2 - y1).max(least) / oh as f32, (x2 - x1).max(least) / ow as f32);
        let samples = |bin: f32| match ratio.int() {
            n if n > 0 => n as usize,
            _ => (bin.ceil().max(1.0) as usize).min(1 << 12),
        };
        let (sh, sw) = (samples(bin_h), samples(bin_w));
        for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
            for ch in 0..c {
                let plane = &xs[(batch * c + ch) * h * w..][..h * w];
                let (mut sum, mut best) = (0.0f32, f32::NEG_INFINITY);
                for (sy, sx) in (0..sh).flat_map(|sy| (0..sw).map(move |sx| (sy, sx))) {
                    let at_y = y1 + (oy as f32 + (sy as f32 + 0.5) / sh as f32) * bin_h;
                    let at_x = x1 + (ox as f32 + (sx as f32 + 0.5) / sw as f32) * bin_w;
                    let parts = bilinear(plane, h, w, at_y, at_x);
                    sum += parts.iter().sum::<f32>();
                    best = parts.iter().fold(best, |m, &v| m.max(v));
                }
                let out = &mut y[((r * c + ch) * oh + oy) * ow + ox];
                *out = if mode.choice() == 0 { sum / (sh * sw) as f32 } else { best };
            }
        }
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// The four weighted neighbours of a place; zeros beyond the border.
fn bilinear(plane: &[f32], h: usize, w: usize, y: f32, x: f32) -> [f32; 4] {
    if y < -1.0 || y > h as f32 || x < -1.0 || x > w as f32 || plane.is_empty() {
        return [0.0; 4];
    }
    let (y, x) = (y.max(0.0), x.max(0.0));
    let corner = |v: f32, size: usize| {
        let low = (v as usize).min(size - 1);
        if low == size - 1 { (low, low, 0.0) } else { (low, low + 1, v - low as f32) }
    };
    let ((y0, y1, fy), (x0, x1, fx)) = (corner(y, h), corner(x, w));
    [
        plane[y0 * w + x0] * (1.0 - fy) * (1.0 - fx),
        plane[y0 * w + x1] * (1.0 - fy) * fx,
        plane[y1 * w + x0] * fy * (1.0 - fx),
        plane[y1 * w + x1] * fy * fx,
    ]
}

/// Columns are windows over the image: each is added where it came from.
pub fn col2im(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::col2im, attr, inputs)?;
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let (x, xs, block) = (tensor(inputs, 0)?, f32s(inputs, 0)?, ints(tensor(inputs, 2)?)?);
    let mut window = *a;
    let mut positions = Vec::new();
    for d in 0..usize::from(a.rank) {
        window.kernel[d] = u32::try_from(block[d]).map_err(|_| "a block is too large".to_string())?;
        let reach = (block[d] - 1) * i64::from(a.dilation[d]) + 1;
        let room = dims[d + 2] as i64 + i64::from(a.before[d]) + i64::from(a.after[d]) - reach;
        positions.push(usize::try_from(room / i64::from(a.stride[d].max(1)) + 1).unwrap_or(0));
    }
    let count: usize = positions.iter().product();
    if count != x.dims[2] {
        return Err(format!("{} columns, the window has {count} places", x.dims[2]));
    }
    let (taps, to): (usize, usize) =
        (block.iter().map(|&b| b as usize).product(), dims[2..].iter().product());
    let mut y = vec![0.0f32; dims.iter().product()];
    super::spatial::windows(&window, &dims[2..], &positions, |at, seen| {
        for plane in 0..dims[0] * dims[1] {
            for &(k, i) in seen {
                y[plane * to + i] += xs[(plane * taps + k) * count + at];
            }
        }
    });
    Ok(vec![Tensor::from_f32(&dims, y)])
}
