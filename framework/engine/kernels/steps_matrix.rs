//! f32 reductions, softmax, and the matrix product for operands that are both made at run time.

use super::{ARGS_MAX, Nd, by_isa, share};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceKind {
    /// One result per outer index: the mean of the inner ones.
    Mean,
    /// As many results as inputs: softmax over the inner index.
    Softmax,
}

impl ReduceKind {
    pub fn name(self) -> &'static str {
        match self {
            ReduceKind::Mean => "mean_f32",
            ReduceKind::Softmax => "softmax_f32",
        }
    }
}

/// For every index of `outer`, all of `inner`; operands y, x in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReduceStep {
    pub kind: ReduceKind,
    pub outer: Nd,
    pub inner: Nd,
}

#[inline(always)]
pub unsafe fn reduce(s: &ReduceStep, y: *mut f32, x: *const f32, part: usize, parts: usize) {
    let (so, si) = (&s.outer, &s.inner);
    let outer_strides = [so.strides[0][so.rank - 1], so.strides[1][so.rank - 1]];
    let inner_strides = [si.strides[0][si.rank - 1], si.strides[1][si.rank - 1]];
    so.each(part, parts, |at, n| {
        for i in 0..n {
            // SAFETY: outer plus inner indices address elements of y and x (`super::run_reduce`).
            unsafe {
                let y = y.add(at[0] + i * outer_strides[0]);
                let x = x.add(at[1] + i * outer_strides[1]);
                match s.kind {
                    ReduceKind::Mean => {
                        let mut sum = 0.0f32;
                        si.each(0, 1, |at, n| {
                            (0..n).for_each(|j| sum += *x.add(at[1] + j * inner_strides[1]));
                        });
                        *y = sum / si.elements() as f32;
                    }
                    ReduceKind::Softmax => softmax(y, x, si.elements(), inner_strides),
                }
            }
        }
    });
}

/// `exp(x - max) / Σ exp(x - max)` over `n` elements.
#[inline(always)]
unsafe fn softmax(y: *mut f32, x: *const f32, n: usize, [sy, sx]: [usize; 2]) {
    // SAFETY: the caller's `n` elements at these strides.
    unsafe {
        let max = (0..n).fold(f32::NEG_INFINITY, |m, j| m.max(*x.add(j * sx)));
        let mut sum = 0.0f32;
        for j in 0..n {
            let e = (*x.add(j * sx) - max).exp();
            *y.add(j * sy) = e;
            sum += e;
        }
        (0..n).for_each(|j| *y.add(j * sy) /= sum);
    }
}

/// `y = alpha * a b + beta * c` for every index of `batch` (operands y, a, b, c).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatMulStep {
    pub batch: Nd,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Strides along m and n, m and k, k and n, m and n.
    pub y: [usize; 2],
    pub a: [usize; 2],
    pub b: [usize; 2],
    pub c: [usize; 2],
    pub alpha: f32,
    /// 0 if there is no c.
    pub beta: f32,
}

impl MatMulStep {
    pub fn units(&self) -> usize {
        self.batch.elements() * self.m
    }
}

by_isa! {
    /// # Safety
    /// As `super::run_matmul`.
    run_matmul, matmul, (s: &MatMulStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize)
}

#[inline(always)]
unsafe fn matmul(s: &MatMulStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize) {
    let rows = share(s.units(), part, parts);
    let last = s.batch.rank - 1;
    let mut first = 0;
    s.batch.each(0, 1, |at, len| {
        for i in 0..len {
            let at: [usize; ARGS_MAX] = std::array::from_fn(|a| at[a] + i * s.batch.strides[a][last]);
            let from = rows.start.max(first);
            let to = rows.end.min(first + s.m);
            for m in from..to.max(from) {
                // SAFETY: row `m - first` of this product; parts have disjoint rows (`super::run_matmul`).
                unsafe { matmul_row(s, p, at, m - first) };
            }
            first += s.m;
        }
    });
}

#[inline(always)]
unsafe fn matmul_row(s: &MatMulStep, p: [*mut u8; ARGS_MAX], at: [usize; ARGS_MAX], m: usize) {
    // SAFETY: row `m` of the operands at `at`.
    unsafe {
        let y = p[0].cast::<f32>().add(at[0] + m * s.y[0]);
        let a = p[1].cast::<f32>().add(at[1] + m * s.a[0]);
        let b = p[2].cast::<f32>().add(at[2]);
        (0..s.n).for_each(|n| *y.add(n * s.y[1]) = 0.0);
        for k in 0..s.k {
            let x = *a.add(k * s.a[1]);
            let b = b.add(k * s.b[0]);
            if s.y[1] == 1 && s.b[1] == 1 {
                let y = std::slice::from_raw_parts_mut(y, s.n);
                let b = std::slice::from_raw_parts(b, s.n);
                y.iter_mut().zip(b).for_each(|(y, &b)| *y += x * b);
            } else {
                (0..s.n).for_each(|n| *y.add(n * s.y[1]) += x * *b.add(n * s.b[1]));
            }
        }
        if s.alpha != 1.0 {
            (0..s.n).for_each(|n| *y.add(n * s.y[1]) *= s.alpha);
        }
        if s.beta != 0.0 {
            let c = p[3].cast::<f32>().add(at[3] + m * s.c[0]);
            (0..s.n).for_each(|n| *y.add(n * s.y[1]) += s.beta * *c.add(n * s.c[1]));
        }
    }
}
