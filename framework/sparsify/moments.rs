//! Second moments of what a layer multiplies: `H = Σ x xᵀ` over the windows that its weights meet.

use crate::layers::Layer;
use lacuna_ir::op::{Attr, Window};
use lacuna_ir::{Graph, Tensor};
use rayon::prelude::*;

/// Windows of one sample that take part, spread evenly over it: neighbours say much the same.
const WINDOWS_MAX: usize = 1024;
/// Longest window. The work on one layer grows with its cube.
pub const WINDOW_MAX: usize = 2304;

/// `H` of one layer, `length` x `length`, row-major. A window's elements go by position, then channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub length: usize,
    pub sums: Vec<f32>,
    window: Option<Window>,
}

impl Moments {
    /// `None` for layers in groups, and for those whose windows are too long.
    pub fn of(g: &Graph, layer: &Layer) -> Option<Moments> {
        let length = layer.dims.iter().product::<usize>() / layer.out_channels();
        if layer.group != 1 || length > WINDOW_MAX || !layer.prunable || !layer.kept.is_empty() {
            return None;
        }
        let window = match g.op_attr[layer.op] {
            Attr::Conv(conv) => Some(conv.window),
            _ => None,
        };
        Some(Moments { length, sums: vec![0.0; length * length], window })
    }

    /// Adds the windows of one sample.
    pub fn add(&mut self, t: &Tensor, x: &[f32]) {
        let columns = match (self.window, t.dims.as_slice()) {
            (Some(window), &[n, c, h, w]) if window_fits(&window, self.length, c) => (0..n)
                .flat_map(|i| image_windows(&x[i * c * h * w..][..c * h * w], [c, h, w], &window))
                .collect(),
            (None, dims) if dims.last() == Some(&self.length) => {
                let rows = x.len() / self.length;
                spread(rows).flat_map(|row| x[row * self.length..][..self.length].to_vec()).collect()
            }
            _ => Vec::new(),
        };
        self.add_rows(&columns);
    }

    /// `rows` are windows, back to back.
    fn add_rows(&mut self, rows: &[f32]) {
        let n = rows.len() / self.length;
        // By element, so that products are sums over contiguous memory.
        let mut by_element = vec![0.0f32; rows.len()];
        for (i, row) in rows.chunks_exact(self.length).enumerate() {
            row.iter().enumerate().for_each(|(k, &x)| by_element[k * n + i] = x);
        }
        let length = self.length;
        self.sums.par_chunks_exact_mut(length).enumerate().for_each(|(a, out)| {
            let x = &by_element[a * n..][..n];
            for b in 0..=a {
                out[b] += dot(x, &by_element[b * n..][..n]);
            }
        });
    }

    /// The whole matrix; only the lower half is summed.
    pub fn symmetric(&self) -> Vec<f64> {
        let n = self.length;
        (0..n * n)
            .map(|i| (i / n, i % n))
            .map(|(a, b)| f64::from(self.sums[a.max(b) * n + a.min(b)]))
            .collect()
    }
}

fn window_fits(window: &Window, length: usize, channels: usize) -> bool {
    window.kernel[0] as usize * window.kernel[1] as usize * channels == length
}

fn spread(n: usize) -> impl Iterator<Item = usize> {
    let take = n.min(WINDOWS_MAX);
    (0..take).map(move |i| i * n / take)
}

/// The windows of one image `[c, h, w]`, zeros where they reach over its edge.
fn image_windows(x: &[f32], [c, h, w]: [usize; 3], window: &Window) -> Vec<f32> {
    let [kh, kw] = window.kernel.map(|k| k as usize);
    let positions = |size: usize, d: usize| {
        let reach = (window.kernel[d] - 1) * window.dilation[d] + 1;
        let padded = size + (window.pads[d] + window.pads[d + 2]) as usize;
        (padded + 1).saturating_sub(reach as usize).div_ceil(window.stride[d] as usize)
    };
    let (rows, columns) = (positions(h, 0), positions(w, 1));
    let mut out = Vec::with_capacity(rows * columns * kh * kw * c);
    for at in spread(rows * columns) {
        for k in 0..kh * kw {
            let place = |which: usize, k: usize, d: usize, size: usize| {
                let i = which * window.stride[d] as usize + k * window.dilation[d] as usize;
                i.checked_sub(window.pads[d] as usize).filter(|&i| i < size)
            };
            let (y, x_at) = (place(at / columns, k / kw, 0, h), place(at % columns, k % kw, 1, w));
            for channel in 0..c {
                out.push(match (y, x_at) {
                    (Some(y), Some(x_at)) => x[(channel * h + y) * w + x_at],
                    _ => 0.0,
                });
            }
        }
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a8, b8) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    let mut lanes = [0.0f32; 16];
    for (a, b) in a8.zip(b8) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}
