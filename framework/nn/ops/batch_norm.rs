//! Batch normalisation for training (Ioffe and Szegedy, 2015) fused with the residual sum and ReLU behind it.
//!
//! NCHW f32 slices. One task per channel; sums in f64 in a fixed order, so the bytes do not depend on threads.

use rayon::prelude::*;

/// y[n,c,p] with the batch mean and biased variance [c] of each channel.
pub struct Normalized {
    pub y: Vec<f32>,
    pub mean: Vec<f32>,
    pub var: Vec<f32>,
}

/// Gradients of x, gamma, beta, and of the residual when there was one.
pub struct Gradients {
    pub x: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub residual: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: tasks write disjoint channels of the buffer behind the pointer.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `at..at + len` is inside the buffer and no other task touches it.
    unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

const LANES: usize = 16;

/// Σ a[i], Σ b(i) in f32 lanes per plane, joined in f64.
fn sums(len: usize, f: impl Fn(usize) -> (f32, f32)) -> (f64, f64) {
    let (mut a, mut b) = ([0f32; LANES], [0f32; LANES]);
    let whole = len / LANES * LANES;
    for base in (0..whole).step_by(LANES) {
        for l in 0..LANES {
            let (u, v) = f(base + l);
            a[l] += u;
            b[l] += v;
        }
    }
    for i in whole..len {
        let (u, v) = f(i);
        a[i - whole] += u;
        b[i - whole] += v;
    }
    (a.iter().map(|&v| v as f64).sum(), b.iter().map(|&v| v as f64).sum())
}

/// `y = act(gamma · (x - mean) / sqrt(var + eps) + beta [+ residual])`, `act` = ReLU or nothing.
pub fn forward(
    x: &[f32],
    [n, c, pixels]: [usize; 3],
    gamma: &[f32],
    beta: &[f32],
    residual: Option<&[f32]>,
    eps: f64,
    relu: bool,
) -> Normalized {
    assert_eq!(x.len(), n * c * pixels, "x does not fill its shape");
    assert!(residual.is_none_or(|r| r.len() == x.len()), "the residual has another shape than x");
    let mut y = vec![0f32; x.len()];
    let out = Shared(y.as_mut_ptr());
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    let stats: Vec<(f32, f32)> = (0..c)
        .into_par_iter()
        .map(|ch| {
            let plane = |i: usize| (i * c + ch) * pixels;
            let (mut sum, mut square) = (0f64, 0f64);
            for i in 0..n {
                let v = &x[plane(i)..][..pixels];
                let (s, q) = sums(pixels, |p| (v[p], v[p] * v[p]));
                sum += s;
                square += q;
            }
            let count = (n * pixels) as f64;
            let mean = sum / count;
            let var = (square / count - mean * mean).max(0.0);
            let scale = gamma[ch] as f64 / (var + eps).sqrt();
            let (scale, shift) = (scale as f32, (beta[ch] as f64 - mean * scale) as f32);
            for i in 0..n {
                let v = &x[plane(i)..][..pixels];
                // SAFETY: plane (i, ch) belongs to this task alone and lies inside y.
                let out = unsafe { out.slice(plane(i), pixels) };
                match residual {
                    None => out.iter_mut().zip(v).for_each(|(o, v)| *o = (v * scale + shift).max(floor)),
                    Some(r) => {
                        let r = &r[plane(i)..][..pixels];
                        for ((o, v), r) in out.iter_mut().zip(v).zip(r) {
                            *o = (v * scale + shift + r).max(floor);
                        }
                    }
                }
            }
            (mean as f32, var as f32)
        })
        .collect();
    let (mean, var) = stats.into_iter().unzip();
    Normalized { y, mean, var }
}

/// Gradients from dy; `y` is the forward result (its zeros say where ReLU was closed).
pub fn backward(
    x: &[f32],
    y: &[f32],
    dy: &[f32],
    [n, c, pixels]: [usize; 3],
    gamma: &[f32],
    mean: &[f32],
    var: &[f32],
    eps: f64,
    relu: bool,
    with_residual: bool,
) -> Gradients {
    assert!(x.len() == n * c * pixels && y.len() == x.len() && dy.len() == x.len(), "shapes differ");
    let mut dx = vec![0f32; x.len()];
    let mut dr = vec![0f32; if with_residual { x.len() } else { 0 }];
    let (dx_out, dr_out) = (Shared(dx.as_mut_ptr()), Shared(dr.as_mut_ptr()));
    let grads: Vec<(f32, f32)> = (0..c)
        .into_par_iter()
        .map(|ch| {
            let plane = |i: usize| (i * c + ch) * pixels;
            let inv = 1.0 / (var[ch] as f64 + eps).sqrt();
            let m = mean[ch];
            let open = |y: f32, d: f32| if !relu || y > 0.0 { d } else { 0.0 };
            let (mut sum, mut sum_x) = (0f64, 0f64);
            for i in 0..n {
                let (v, d, y) =
                    (&x[plane(i)..][..pixels], &dy[plane(i)..][..pixels], &y[plane(i)..][..pixels]);
                let (a, b) = sums(pixels, |p| {
                    let d = open(y[p], d[p]);
                    (d, d * (v[p] - m))
                });
                sum += a;
                sum_x += b;
            }
            let count = (n * pixels) as f64;
            let (d_gamma, d_beta) = (sum_x * inv, sum);
            let scale = (gamma[ch] as f64 * inv) as f32;
            let shift = (sum / count) as f32;
            let slope = (d_gamma / count * inv) as f32;
            for i in 0..n {
                let (v, d, y) =
                    (&x[plane(i)..][..pixels], &dy[plane(i)..][..pixels], &y[plane(i)..][..pixels]);
                // SAFETY: plane (i, ch) belongs to this task alone and lies inside dx (and dr, when asked for).
                let out = unsafe { dx_out.slice(plane(i), pixels) };
                for p in 0..pixels {
                    out[p] = scale * (open(y[p], d[p]) - shift - (v[p] - m) * slope);
                }
                if with_residual {
                    // SAFETY: as above.
                    let out = unsafe { dr_out.slice(plane(i), pixels) };
                    for p in 0..pixels {
                        out[p] = open(y[p], d[p]);
                    }
                }
            }
            (d_gamma as f32, d_beta as f32)
        })
        .collect();
    let (gamma, beta) = grads.into_iter().unzip();
    Gradients { x: dx, gamma, beta, residual: dr }
}
