//! Maps of bytes on AVX-512: sums, products and look-ups, 64 elements at a time.
//!
//! They take maps whose innermost elements lie side by side in every operand; the plain loops do the others. A product
//! with one factor per channel of an image runs down the pixels, so that the factors stay in registers.

use super::{ARGS_MAX, MapStep};
use crate::target::Isa;

/// Runs one part of a map if this file has a loop for it, and says whether it had.
///
/// # Safety
/// As [`super::run_map`].
pub unsafe fn run_map(isa: Isa, s: &MapStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Vnni {
        // SAFETY: the caller's promise; the processor has AVX-512, and VBMI from that row on.
        return unsafe { avx512::run_map(isa >= Isa::Avx512Vbmi, s, p, part, parts) };
    }
    let _ = (isa, s, p, part, parts);
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{ARGS_MAX, MapStep};
    use crate::kernels::dense_avx512::{Rounding, in_order};
    use crate::kernels::lookup;
    use crate::kernels::steps::{MapOp, share};
    use lacuna_ir::op::{QAddAttr, QMulAttr};
    use std::arch::x86_64::*;

    /// # Safety
    /// As [`crate::kernels::steps::run_map`]; AVX-512 is there, and VBMI if `vbmi`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn run_map(
        vbmi: bool,
        s: &MapStep,
        p: [*mut u8; ARGS_MAX],
        part: usize,
        parts: usize,
    ) -> bool {
        let nd = &s.nd;
        let last = nd.rank - 1;
        let inner = |a: usize| nd.strides[a][last];
        // SAFETY: the caller's promise; each arm checked that its operands' elements lie side by side.
        unsafe {
            match s.op {
                MapOp::QLookup if (inner(0), inner(1)) == (1, 1) => {
                    let table = Table::new(p[2], vbmi);
                    nd.each(part, parts, |at, n| table.row(p[0].add(at[0]), p[1].add(at[1]), n));
                }
                MapOp::QAdd(q) if (inner(0), inner(1), inner(2)) == (1, 1, 1) => {
                    let add = Add::new(&q);
                    nd.each(part, parts, |at, n| {
                        add.row(p[0].add(at[0]), p[1].add(at[1]), p[2].add(at[2]), n)
                    });
                }
                MapOp::QMul(q) if (inner(0), inner(1), inner(2)) == (1, 1, 1) => {
                    let mul = Mul::new(&q);
                    if last == 0 {
                        nd.each(part, parts, |at, n| {
                            mul.plane([p[0].add(at[0]), p[1].add(at[1]), p[2].add(at[2])], n, 1, [0; 3])
                        });
                        return true;
                    }
                    // Planes of pixels and channels. Parts share the pixels of each.
                    let pixels = share(nd.dims[last - 1], part, parts);
                    let steps = [0, 1, 2].map(|a| nd.strides[a][last - 1]);
                    let (n, first) = (nd.dims[last], pixels.start);
                    let mut outer = *nd;
                    (outer.dims[last - 1], outer.dims[last]) = (1, 1);
                    let mul_plane = |at: [usize; ARGS_MAX]| {
                        let start = [0, 1, 2].map(|a| p[a].add(at[a] + first * steps[a]));
                        if steps[2] == 0 {
                            mul.plane(start, n, pixels.len(), steps);
                        } else {
                            (0..pixels.len()).for_each(|i| {
                                mul.plane([0, 1, 2].map(|a| start[a].add(i * steps[a])), n, 1, [0; 3])
                            });
                        }
                    };
                    outer.each(0, 1, |at, _| mul_plane(at));
                }
                _ => return false,
            }
        }
        true
    }

    /// Lanes of the 64 that start `done` elements into `n`.
    fn mask(n: usize, done: usize) -> __mmask64 {
        match n - done {
            left @ 0..64 => (1 << left) - 1,
            _ => u64::MAX,
        }
    }

    /// Bytes 16 * i.. of a register as 16 numbers without their zero point.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn quarter(q: __m512i, i: usize, zero: __m512i) -> __m512 {
        let bytes = match i {
            0 => _mm512_castsi512_si128(q),
            1 => _mm512_extracti32x4_epi32::<1>(q),
            2 => _mm512_extracti32x4_epi32::<2>(q),
            _ => _mm512_extracti32x4_epi32::<3>(q),
        };
        _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), zero))
    }

    struct Table {
        rows: [__m512i; 4],
        vbmi: bool,
    }

    impl Table {
        /// # Safety
        /// 256 bytes are readable; AVX-512 is there, and VBMI if `vbmi`.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn new(bytes: *const u8, vbmi: bool) -> Table {
            // SAFETY: the caller's promise.
            let rows = [0, 64, 128, 192].map(|at| unsafe { _mm512_loadu_si512(bytes.add(at).cast()) });
            Table { rows, vbmi }
        }

        /// # Safety
        /// `n` elements may be written at `y` and read at `x`.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn row(&self, y: *mut u8, x: *const u8, n: usize) {
            for at in (0..n).step_by(64) {
                let m = mask(n, at);
                // SAFETY: masked to the row's elements; VBMI as `new` was told.
                unsafe {
                    let q = _mm512_maskz_loadu_epi8(m, x.add(at).cast());
                    let q = match self.vbmi {
                        true => lookup::permute(&self.rows, q),
                        false => lookup::shuffle(&self.rows, q),
                    };
                    _mm512_mask_storeu_epi8(y.add(at).cast(), m, q);
                }
            }
        }
    }

    struct Add {
        a_zero: __m512i,
        a_mult: __m512,
        b_zero: __m512i,
        b_mult: __m512,
        out: Rounding,
    }

    impl Add {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn new(q: &QAddAttr) -> Add {
            Add {
                a_zero: _mm512_set1_epi32(q.a_zero),
                a_mult: _mm512_set1_ps(q.a_mult),
                b_zero: _mm512_set1_epi32(q.b_zero),
                b_mult: _mm512_set1_ps(q.b_mult),
                out: Rounding::new(q.out),
            }
        }

        /// # Safety
        /// `n` elements may be written at `y` and read at `a` and `b`.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn row(&self, y: *mut u8, a: *const u8, b: *const u8, n: usize) {
            for at in (0..n).step_by(64) {
                let m = mask(n, at);
                // SAFETY: masked to the row's elements.
                unsafe {
                    let a = _mm512_maskz_loadu_epi8(m, a.add(at).cast());
                    let b = _mm512_maskz_loadu_epi8(m, b.add(at).cast());
                    let mut f = [_mm512_setzero_ps(); 4];
                    for i in 0..4 {
                        let fa = _mm512_mul_ps(quarter(a, i, self.a_zero), self.a_mult);
                        let fb = _mm512_mul_ps(quarter(b, i, self.b_zero), self.b_mult);
                        f[i] = _mm512_add_ps(fa, fb);
                    }
                    _mm512_mask_storeu_epi8(y.add(at).cast(), m, in_order(self.out.four(f)));
                }
            }
        }
    }

    struct Mul {
        a_zero: __m512i,
        b_zero: __m512i,
        mult: __m512,
        out: Rounding,
    }

    impl Mul {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn new(q: &QMulAttr) -> Mul {
            Mul {
                a_zero: _mm512_set1_epi32(q.a_zero),
                b_zero: _mm512_set1_epi32(q.b_zero),
                mult: _mm512_set1_ps(q.mult),
                out: Rounding::new(q.out),
            }
        }

        /// `pixels` rows of `n` elements, all with the same row of b. `start` and `steps` are those of y, a, b.
        ///
        /// # Safety
        /// The rows may be written at y and read at a, `n` elements at b.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn plane(&self, [y, a, b]: [*mut u8; 3], n: usize, pixels: usize, steps: [usize; 3]) {
            for at in (0..n).step_by(64) {
                let m = mask(n, at);
                // SAFETY: masked to the rows' elements.
                unsafe {
                    let b = _mm512_maskz_loadu_epi8(m, b.add(at).cast());
                    let mut factors = [_mm512_setzero_ps(); 4];
                    for i in 0..4 {
                        factors[i] = _mm512_mul_ps(quarter(b, i, self.b_zero), self.mult);
                    }
                    for pixel in 0..pixels {
                        let a = _mm512_maskz_loadu_epi8(m, a.add(at + pixel * steps[1]).cast());
                        let mut f = [_mm512_setzero_ps(); 4];
                        for i in 0..4 {
                            f[i] = _mm512_mul_ps(quarter(a, i, self.a_zero), factors[i]);
                        }
                        let bytes = in_order(self.out.four(f));
                        _mm512_mask_storeu_epi8(y.add(at + pixel * steps[0]).cast(), m, bytes);
                    }
                }
            }
        }
    }
}
