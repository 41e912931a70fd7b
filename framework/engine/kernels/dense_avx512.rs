//! Dense int8 convolutions on AVX-512 with VNNI.
//!
//! One tile of registers is up to 6 pixels x 64 channels (24 sums, 4 weights, one broadcast): each step
//! broadcasts 4 bytes of every pixel and multiplies them with the weights of 16, 32, 48 or 64 channels. Panels of up to
//! 32 channels take 12 pixels. Steps run over the runs of x that [`Panels`] lists,
//! so one loop serves every window, stride and dilation.
//!
//! ```text
//! format "D64i", data: panels of 64 channels, see [`Panels`]
//! step: 4 neighbours of a run, [vectors][16 lanes][4] i8
//! ```

use super::packed::{Panels, Sections, expect, read};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, QEpilogue, blocks, lookup};
use lacuna_ir::op;
use std::arch::x86_64::*;

const PANEL: usize = 64;

pub(super) fn pack_i8(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    Panels::new(g, 4, 1).pack::<1>(b"D64i", weights, g, PANEL, |slot| slot)
}

/// How f32 results become bytes: bounds and zero point, one register each.
#[derive(Clone, Copy)]
pub(super) struct Rounding {
    zero: __m512i,
    lo: __m512,
    hi: __m512,
    zero_words: __m512i,
    lo_bytes: __m512i,
    hi_bytes: __m512i,
    /// What is rounded fits an i32, whatever it is.
    bounded: bool,
    /// Zero point 0 and bounds 0 and 255: saturation is all it takes.
    saturates: bool,
}

impl Rounding {
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn new(out: op::Requant) -> Rounding {
        Rounding {
            zero: _mm512_set1_epi32(out.zero),
            lo: _mm512_set1_ps((out.lo - out.zero) as f32),
            hi: _mm512_set1_ps((out.hi - out.zero) as f32),
            zero_words: _mm512_set1_epi16(out.zero as i16),
            lo_bytes: _mm512_set1_epi8(out.lo as i8),
            hi_bytes: _mm512_set1_epi8(out.hi as i8),
            bounded: false,
            saturates: out.zero == 0 && out.lo == 0 && out.hi == 255,
        }
    }

    /// Clamped, without the zero point.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn clamp(&self, f: __m512) -> __m512 {
        _mm512_min_ps(_mm512_max_ps(f, self.lo), self.hi)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn bytes(&self, f: __m512) -> __m128i {
        _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(self.clamp(f)), self.zero))
    }

    /// Clamped and rounded to an integer that stays an f32, without the zero point.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn whole(&self, f: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.clamp(f))
    }

    /// Packing works within 128 bits: dword 4 * k + i of the result holds lanes 4 * k.. of vector i.
    ///
    /// Clamping after rounding is the same, because bounds are integers; only what does not fit an i32 must be clamped before
    /// the conversion, which would turn what is too large into the smallest number. Packing saturates.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn four(&self, f: [__m512; 4]) -> __m512i {
        let mut q = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            q[i] = _mm512_cvtps_epi32(if self.bounded { f[i] } else { _mm512_min_ps(f[i], self.hi) });
        }
        if self.saturates {
            return _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
        }
        let low = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), self.zero_words);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), self.zero_words);
        _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(low, high), self.lo_bytes), self.hi_bytes)
    }
}

/// How bytes are looked up in a table of 256.
#[derive(Clone, Copy, PartialEq)]
enum Lookup {
    None,
    /// `vpshufb`, 16 entries at a time.
    Shuffle,
    /// `vpermi2b` (VBMI), 128 entries at a time.
    Permute,
}

/// Constants of an integer epilogue, one register each.
#[derive(Clone, Copy)]
pub(super) struct Requant {
    out: Rounding,
    /// The residual is added before the rounding, or to the rounded result.
    early: bool,
    late: bool,
    residual_zero: __m512i,
    residual_mult: __m512,
    /// No residual adds more.
    residual_most: f32,
    late_zero: __m512i,
    late_mult: __m512,
    /// What turns a result without its zero point into one without `late_zero`.
    late_shift: __m512,
    /// Whether that is anything.
    shifts: bool,
    sum: Rounding,
    lookup: Lookup,
    table: [__m512i; 4],
    pub out_f32: bool,
}

impl Requant {
    /// For any row of AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn new(e: &QEpilogue) -> Requant {
        Requant::with(e, Lookup::Shuffle)
    }

    /// For rows that ask for VBMI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    pub fn new_vbmi(e: &QEpilogue) -> Requant {
        Requant::with(e, Lookup::Permute)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn with(e: &QEpilogue, lookup: Lookup) -> Requant {
        let out = op::Requant { zero: e.zero, lo: e.lo, hi: e.hi };
        let late = e.late.unwrap_or(op::LateAdd { mult: 0.0, zero: 0, out });
        let mut table = [_mm512_setzero_si512(); 4];
        if let Some(bytes) = &e.table {
            // SAFETY: 256 bytes are four registers.
            table = [0, 64, 128, 192].map(|at| unsafe { _mm512_loadu_si512(bytes.as_ptr().add(at).cast()) });
        }
        Requant {
            out: Rounding::new(out),
            early: e.has_residual && e.late.is_none(),
            late: e.has_residual && e.late.is_some(),
            residual_zero: _mm512_set1_epi32(e.residual_zero),
            residual_mult: _mm512_set1_ps(e.residual_mult),
            residual_most: if e.has_residual { 511.0 * e.residual_mult.abs() } else { 0.0 },
            late_zero: _mm512_set1_epi32(late.zero),
            late_mult: _mm512_set1_ps(late.mult),
            late_shift: _mm512_set1_ps((e.zero - late.zero) as f32),
            shifts: e.zero != late.zero,
            sum: Rounding {
                // Neither of the two bytes adds more than 511 times its scale.
                bounded: 511.0 * (e.residual_mult.abs() + late.mult.abs()) < (1 << 30) as f32,
                ..Rounding::new(late.out)
            },
            lookup: if e.table.is_some() { lookup } else { Lookup::None },
            table,
            out_f32: e.out_f32,
        }
    }

    /// The same for weights whose results stay below 2^30 before a residual is added ([`super::packed::bounded`]).
    pub fn bounded(mut self, weights: bool) -> Requant {
        self.out.bounded = weights && self.residual_most < (1 << 30) as f32;
        self
    }

    /// Bytes of an element of y.
    pub fn y_size(&self) -> usize {
        if self.out_f32 { 4 } else { 1 }
    }

    /// `f` and the residual's bytes, one per lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn plus_residual(&self, f: __m512, r: __m512i) -> __m512 {
        let r = _mm512_cvtepi32_ps(_mm512_sub_epi32(r, self.residual_zero));
        _mm512_add_ps(f, _mm512_mul_ps(r, self.residual_mult))
    }

    /// The sum of rounded results, without `late_zero`, and the residual's bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn late_sum(&self, q: __m512, r: __m512i) -> __m512 {
        self.plus_residual(_mm512_mul_ps(q, self.late_mult), r)
    }

    /// `table[q]` for every byte.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn looked_up(&self, q: __m512i) -> __m512i {
        match self.lookup {
            Lookup::None => q,
            Lookup::Shuffle => lookup::shuffle(&self.table, q),
            // SAFETY: only rows that ask for VBMI set this.
            Lookup::Permute => unsafe { lookup::permute(&self.table, q) },
        }
    }

    /// Writes the channels in `mask` of one pixel; `y` and `r` point at the first of 16 channels.
    ///
    /// # Safety
    /// The channels in `mask` may be written at `y` and, with a residual, read at `r`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store(&self, acc: __m512i, mult: __m512, mask: __mmask16, y: *mut u8, r: *const u8) {
        // SAFETY: masked accesses touch only the channels in `mask`; whole ones are made only for a full mask.
        unsafe {
            let mut f = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), mult);
            if self.out_f32 {
                _mm512_mask_storeu_ps(y.cast(), mask, f);
                return;
            }
            let mut residual = _mm512_setzero_si512();
            if self.has_residual() {
                residual = _mm512_cvtepu8_epi32(match mask {
                    0xffff => _mm_loadu_si128(r.cast()),
                    mask => _mm_maskz_loadu_epi8(mask, r.cast()),
                });
            }
            if self.early {
                f = self.plus_residual(f, residual);
            }
            let mut bytes = self.out.bytes(f);
            if self.lookup != Lookup::None {
                bytes = _mm512_castsi512_si128(self.looked_up(_mm512_castsi128_si512(bytes)));
            }
            if self.late {
                let q = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), self.late_zero);
                bytes = self.sum.bytes(self.late_sum(_mm512_cvtepi32_ps(q), residual));
            }
            if mask == 0xffff {
                _mm_storeu_si128(y.cast(), bytes);
            } else {
                _mm_mask_storeu_epi8(y.cast(), mask, bytes);
            }
        }
    }

    /// Whether a residual is added, before or after rounding.
    pub fn has_residual(&self) -> bool {
        self.early || self.late
    }

    /// Whether results are bytes that need no more than their residual: what [`Requant::store_four_plain`] does.
    pub fn is_plain(&self) -> bool {
        !self.out_f32 && !self.late && self.lookup == Lookup::None
    }

    /// Writes 16 channels of each of four pixels, or 64 of one (then they are `JOINED`): `rows` are the four sums, their
    /// multipliers, and where y and the residual of each begin. For plain results only: kernels inline this where registers are few.
    ///
    /// # Safety
    /// All 16 channels may be written at each y and, with a residual, read at each r; `is_plain` is true.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store_four_plain<const JOINED: bool>(
        &self,
        rows: [(__m512i, __m512, *mut u8, *const u8); 4],
    ) {
        let mut f = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            let (acc, mult, _, r) = rows[i];
            f[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), mult);
            if self.early {
                // SAFETY: 16 channels are readable at `r`.
                let r = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(r.cast())) };
                f[i] = self.plus_residual(f[i], r);
            }
        }
        // SAFETY: 16 channels may be written at each y.
        unsafe {
            write_four::<JOINED>(in_order(self.out.four(f)), [rows[0].2, rows[1].2, rows[2].2, rows[3].2])
        };
    }

    /// Whether a residual is added to the rounded result, which has one zero point before and after and is not looked up in a
    /// table: what [`Requant::store_four_late`] does.
    pub fn is_late(&self) -> bool {
        !self.out_f32 && self.late && self.lookup == Lookup::None && !self.shifts
    }

    /// As [`Requant::store_four_plain`], if `is_late` is true.
    ///
    /// # Safety
    /// As [`Requant::store_four_plain`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store_four_late<const JOINED: bool>(
        &self,
        rows: [(__m512i, __m512, *mut u8, *const u8); 4],
    ) {
        let mut f = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            let (acc, mult, _, r) = rows[i];
            let q = self.out.whole(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), mult));
            // SAFETY: 16 channels are readable at `r`.
            let r = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(r.cast())) };
            f[i] = self.late_sum(q, r);
        }
        // SAFETY: 16 channels may be written at each y.
        unsafe {
            write_four::<JOINED>(in_order(self.sum.four(f)), [rows[0].2, rows[1].2, rows[2].2, rows[3].2])
        };
    }

    /// Whether results without a residual are looked up in a table, with VBMI: what [`Requant::store_four_table`] does.
    pub fn is_table(&self) -> bool {
        !self.out_f32 && !self.has_residual() && self.lookup == Lookup::Permute
    }

    /// As [`Requant::store_four_plain`], if `is_table` is true.
    ///
    /// # Safety
    /// As [`Requant::store_four_plain`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store_four_table<const JOINED: bool>(
        &self,
        rows: [(__m512i, __m512, *mut u8, *const u8); 4],
    ) {
        let sums =
            [(rows[0].0, rows[0].1), (rows[1].0, rows[1].1), (rows[2].0, rows[2].1), (rows[3].0, rows[3].1)];
        // SAFETY: only rows that ask for VBMI look up so.
        let bytes = in_order(unsafe { lookup::permute(&self.table, self.four_bare(sums)) });
        // SAFETY: 16 channels may be written at each y.
        unsafe { write_four::<JOINED>(bytes, [rows[0].2, rows[1].2, rows[2].2, rows[3].2]) };
    }

    /// As [`Requant::store_four_plain`], for all results that are bytes.
    ///
    /// # Safety
    /// All 16 channels may be written at each y and, with a residual, read at each r; `out_f32` is false.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store_four(&self, rows: [(__m512i, __m512, *mut u8, *const u8); 4]) {
        let mut residual = [_mm512_setzero_si512(); 4];
        if self.has_residual() {
            for i in 0..4 {
                // SAFETY: 16 channels are readable at r.
                residual[i] = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(rows[i].3.cast())) };
            }
        }
        let sums =
            [(rows[0].0, rows[0].1), (rows[1].0, rows[1].1), (rows[2].0, rows[2].1), (rows[3].0, rows[3].1)];
        let bytes = in_order(self.four_as_bytes(sums, residual));
        // SAFETY: 16 channels may be written at each y.
        unsafe { write_four::<false>(bytes, [rows[0].2, rows[1].2, rows[2].2, rows[3].2]) };
    }

    /// Writes the channels in `mask` of any number of pixels, whatever the epilogue: `row(i)` is the multiplier of sum
    /// `i`, and where its y and residual begin.
    ///
    /// # Safety
    /// The channels in `mask` may be written at each y and, with a residual, read at each r.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store_all(
        &self,
        sums: &[__m512i],
        mask: __mmask16,
        row: impl Fn(usize) -> (__m512, *mut u8, *const u8),
    ) {
        let mut i = 0;
        // SAFETY: the caller's promise; whole vectors are touched only for a full mask.
        unsafe {
            while mask == 0xffff && !self.out_f32 && i + 4 <= sums.len() {
                let mut rows =
                    [(_mm512_setzero_si512(), _mm512_setzero_ps(), std::ptr::null_mut(), std::ptr::null());
                        4];
                for k in 0..4 {
                    let (mult, y, r) = row(i + k);
                    rows[k] = (sums[i + k], mult, y, r);
                }
                self.store_four(rows);
                i += 4;
            }
            for (k, &sum) in sums.iter().enumerate().skip(i) {
                let (mult, y, r) = row(k);
                self.store(sum, mult, mask, y, r);
            }
        }
    }

    /// Whether results are their sums alone: what [`Requant::four_bare`] makes.
    pub fn is_bare(&self) -> bool {
        self.is_plain() && !self.early
    }

    /// As [`Requant::four_as_bytes`] where `is_bare` is true: few registers, no branches.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn four_bare(&self, sums: [(__m512i, __m512); 4]) -> __m512i {
        let mut f = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            f[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i].0), sums[i].1);
        }
        self.out.four(f)
    }

    /// Results of four vectors of sums and multipliers as bytes: dword 4 * k + i of the result holds lanes 4 * k.. of
    /// vector i. `residual` has the residual's bytes, one per lane, if there is one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn four_as_bytes(&self, sums: [(__m512i, __m512); 4], residual: [__m512i; 4]) -> __m512i {
        let mut f = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            f[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i].0), sums[i].1);
            if self.early {
                f[i] = self.plus_residual(f[i], residual[i]);
            }
        }
        if !self.late {
            return self.looked_up(self.out.four(f));
        }
        let mut q = [_mm512_setzero_ps(); 4];
        if self.lookup == Lookup::None {
            for i in 0..4 {
                q[i] = _mm512_add_ps(self.out.whole(f[i]), self.late_shift);
            }
        } else {
            let bytes = in_order(self.looked_up(self.out.four(f)));
            let rows = [
                _mm512_castsi512_si128(bytes),
                _mm512_extracti32x4_epi32::<1>(bytes),
                _mm512_extracti32x4_epi32::<2>(bytes),
                _mm512_extracti32x4_epi32::<3>(bytes),
            ];
            for i in 0..4 {
                q[i] = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(rows[i]), self.late_zero));
            }
        }
        for i in 0..4 {
            f[i] = self.late_sum(q[i], residual[i]);
        }
        self.sum.four(f)
    }
}

/// If `JOINED`, the four addresses lie 16 bytes after each other.
///
/// # Safety
/// 16 bytes may be written at each address.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write_four<const JOINED: bool>(bytes: __m512i, y: [*mut u8; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        if JOINED {
            return _mm512_storeu_si512(y[0].cast(), bytes);
        }
        _mm_storeu_si128(y[0].cast(), _mm512_castsi512_si128(bytes));
        _mm_storeu_si128(y[1].cast(), _mm512_extracti32x4_epi32::<1>(bytes));
        _mm_storeu_si128(y[2].cast(), _mm512_extracti32x4_epi32::<2>(bytes));
        _mm_storeu_si128(y[3].cast(), _mm512_extracti32x4_epi32::<3>(bytes));
    }
}

/// Dword 4 * k + i goes to 4 * i + k: the bytes of four vectors one vector after another.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn in_order(bytes: __m512i) -> __m512i {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, bytes)
}

/// Lanes of the vector that starts at channel `first` and lie before `end`.
pub(super) fn lanes_before(first: usize, end: usize) -> __mmask16 {
    match end.saturating_sub(first) {
        n @ 0..16 => (1 << n) - 1,
        _ => 0xffff,
    }
}

/// Stores the sums of the listed indices four at a time, the last ones twice: `row(i, sum)` says what and where. A method of
/// [`Requant`] loads what it needs of all four before it writes, so that what is stored twice is the same.
macro_rules! store_fours {
    ($q:ident.$four:ident<$joined:tt>, $row:ident, $acc:ident, $a:literal $b:literal $c:literal $d:literal $($rest:literal)*) => {
        $q.$four::<$joined>([$row($a, $acc[$a]), $row($b, $acc[$b]), $row($c, $acc[$c]), $row($d, $acc[$d])]);
        store_fours!($q.$four<$joined>, $row, $acc, $($rest)*);
    };
    ($q:ident.$four:ident<$joined:tt>, $row:ident, $acc:ident, $a:literal $b:literal $c:literal) => {
        store_fours!($q.$four<$joined>, $row, $acc, $a $b $c $c);
    };
    ($q:ident.$four:ident<$joined:tt>, $row:ident, $acc:ident, $a:literal $b:literal) => {
        store_fours!($q.$four<$joined>, $row, $acc, $a $b $b $b);
    };
    ($q:ident.$four:ident<$joined:tt>, $row:ident, $acc:ident, $a:literal) => {
        store_fours!($q.$four<$joined>, $row, $acc, $a $a $a $a);
    };
    ($q:ident.$four:ident<$joined:tt>, $row:ident, $acc:ident,) => {};
}
pub(super) use store_fours;

/// What all blocks of pixels of one panel share. Strides and offsets are bytes.
struct Panel<'a> {
    sections: &'a Sections<'a>,
    weights: *const u8,
    first: usize,
    /// First channel that is not the tile's.
    end: usize,
    x_stride: usize,
    y_stride: usize,
    r_stride: usize,
}

mod int8;

/// Where a block of pixels starts.
#[derive(Clone, Copy)]
struct Pixels {
    x: *const u8,
    y: *mut u8,
    r: *const u8,
}

/// Panels outside, pixels inside: a panel's weights stay in the nearest caches while pixels stream by.
///
/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_i8(o: &Operands<'_>) {
    // SAFETY: the caller's promise, which includes the processor.
    unsafe { run(&Requant::new(&o.epilogue), o) }
}

/// The same with a faster look-up of bytes.
///
/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_i8_vbmi(o: &Operands<'_>) {
    // SAFETY: the caller's promise, which includes the processor.
    unsafe { run(&Requant::new_vbmi(&o.epilogue), o) }
}

unsafe fn run(q: &Requant, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    tile.check(g, PANEL);
    let s = read(b"D64i", g, packed);
    let y_size = if e.out_f32 { 4 } else { 1 };
    let (flat, tile) = g.flattened(tile, e.has_residual);
    let steps = s.table.len() * s.args[0] as usize;
    for first in tile.ocs.clone().step_by(PANEL) {
        let first = first as usize;
        let vectors = (g.oc as usize - first).div_ceil(16).min(4);
        let data = &s.data[first * steps * 4..][..vectors * 16 * steps * 4];
        let panel = Panel {
            sections: &s,
            weights: data.as_ptr(),
            first,
            end: tile.ocs.end as usize,
            x_stride: flat.x_step(),
            y_stride: flat.y_pixel as usize * y_size,
            r_stride: flat.r_pixel as usize,
        };
        let most = if vectors <= 2 { 12 } else { 6 };
        for row in tile.rows.clone() {
            for cols in blocks(tile.cols.clone(), most) {
                // SAFETY: the offsets of pixels of the tile, inside the caller's buffers; blocks are of the panel's
                // vectors and as many pixels.
                unsafe {
                    let at = Pixels {
                        x: x.add(flat.x_at(row, cols.start)),
                        y: y.add((flat.y_at(row, cols.start) + first) * y_size),
                        r: if e.has_residual { r.add(flat.r_at(row, cols.start) + first) } else { r },
                    };
                    int8::BLOCKS[vectors - 1][cols.len() - 1](&panel, q, at);
                }
            }
        }
    }
}
