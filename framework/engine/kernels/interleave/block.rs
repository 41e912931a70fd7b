//! The vector code of interleaved steps, once for each width and kind of step.
//!
//! Registers are seen as 128-bit lanes: lane `l` of a turned register holds pixels `16 * l..16 * l + 16`. Unpacking
//! stays within lanes, so lane `l` of sum `i` holds pixels `16 * l + 4 * i..`, and packing puts them in order again.

use super::{Blocks, Form, GROUP, Layer, PAIRS, Pixels, QUADS, STRIP, Scratch, WIDE_QUADS, offset};
use crate::kernels::QEpilogue;
use lacuna_ir::op::Requant;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Instructions by width: `ymm` and `zmm` offer the same names.
mod ymm {
    use std::arch::x86_64::*;
    pub use std::arch::x86_64::{
        __m256 as Floats, __m256i as Ints, _mm256_add_epi32 as add_dwords, _mm256_add_ps as add_floats,
        _mm256_cvtepi32_ps as to_floats, _mm256_cvtps_epi32 as to_dwords, _mm256_load_si256 as load,
        _mm256_max_ps as max, _mm256_min_ps as min, _mm256_mul_ps as mul, _mm256_packs_epi32 as pack_dwords,
        _mm256_packus_epi16 as pack_words, _mm256_set1_epi32 as set_dwords, _mm256_set1_ps as set_floats,
        _mm256_setzero_si256 as zero, _mm256_store_si256 as store, _mm256_sub_epi32 as sub_dwords,
        _mm256_unpackhi_epi8 as high_bytes, _mm256_unpackhi_epi16 as high_words,
        _mm256_unpacklo_epi8 as low_bytes, _mm256_unpacklo_epi16 as low_words,
    };

    pub(super) use crate::kernels::lookup::shuffle_avx2 as looked_up;

    pub const LANES: usize = 2;

    /// Lane `l` from the 16 bytes at `at(l)`.
    ///
    /// # Safety
    /// They are readable.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn gather(at: impl Fn(usize) -> *const u8) -> Ints {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_castsi128_si256(_mm_loadu_si128(at(0).cast()));
            _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(at(1).cast()))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn lanes(v: Ints) -> [__m128i; LANES] {
        [_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)]
    }
}

mod zmm {
    use std::arch::x86_64::*;
    pub use std::arch::x86_64::{
        __m512 as Floats, __m512i as Ints, _mm512_add_epi32 as add_dwords, _mm512_add_ps as add_floats,
        _mm512_cvtepi32_ps as to_floats, _mm512_cvtps_epi32 as to_dwords, _mm512_load_si512 as load,
        _mm512_max_ps as max, _mm512_min_ps as min, _mm512_mul_ps as mul, _mm512_packs_epi32 as pack_dwords,
        _mm512_packus_epi16 as pack_words, _mm512_set1_epi32 as set_dwords, _mm512_set1_ps as set_floats,
        _mm512_setzero_si512 as zero, _mm512_store_si512 as store, _mm512_sub_epi32 as sub_dwords,
        _mm512_unpackhi_epi8 as high_bytes, _mm512_unpackhi_epi16 as high_words,
        _mm512_unpacklo_epi8 as low_bytes, _mm512_unpacklo_epi16 as low_words,
    };

    pub(super) use crate::kernels::lookup::shuffle_bytes as looked_up;

    pub const LANES: usize = 4;

    /// Lane `l` from the 16 bytes at `at(l)`.
    ///
    /// # Safety
    /// They are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn gather(at: impl Fn(usize) -> *const u8) -> Ints {
        // SAFETY: the caller's promise.
        unsafe {
            let v = _mm512_castsi128_si512(_mm_loadu_si128(at(0).cast()));
            let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(at(1).cast()));
            let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(at(2).cast()));
            _mm512_inserti32x4::<3>(v, _mm_loadu_si128(at(3).cast()))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn lanes(v: Ints) -> [__m128i; LANES] {
        [
            _mm512_castsi512_si128(v),
            _mm512_extracti32x4_epi32::<1>(v),
            _mm512_extracti32x4_epi32::<2>(v),
            _mm512_extracti32x4_epi32::<3>(v),
        ]
    }
}

/// Defines `mod name` and its [`Blocks`] `row`. `step` adds one step to four sums.
macro_rules! blocks {
    ($row:ident, $name:ident, $width:ident, $form:ident, $features:literal, $step:ident) => {
        pub(super) const $row: Blocks = Blocks { fill: $name::fill, add: $name::add, finish: $name::finish };

        mod $name {
            use super::$width::*;
            use super::*;

            const FORM: Form = $form;
            const PIXELS: usize = 16 * LANES;

            turning!(Ints, $features, low_bytes, high_bytes);

            /// Puts 16 bytes of each pixel from `offset` on, turned, into 16 registers: `i` holds byte `i` of all pixels.
            ///
            /// # Safety
            /// They are readable.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn turned(from: *const u8, pixels: &[usize], offset: usize, to: &mut [Ints; 16]) {
                let from = from.wrapping_add(offset);
                // SAFETY: the caller's promise.
                let v = |p: usize| unsafe { gather(|lane| from.wrapping_add(pixels[p + 16 * lane])) };
                *to = turn([
                    v(0),
                    v(1),
                    v(2),
                    v(3),
                    v(4),
                    v(5),
                    v(6),
                    v(7),
                    v(8),
                    v(9),
                    v(10),
                    v(11),
                    v(12),
                    v(13),
                    v(14),
                    v(15),
                ]);
            }

            /// # Safety
            /// As [`Blocks::fill`]: the processor has the features, and the pixels belong to the tile.
            #[target_feature(enable = $features)]
            pub unsafe fn fill(
                layer: &Layer<'_>,
                pixels: &Pixels,
                part: usize,
                scratch: &mut MaybeUninit<Scratch>,
            ) {
                let first = part * FORM.strips();
                let strips = &layer.strips[first..layer.strips.len().min(first + FORM.strips())];
                let x = &pixels.x[..PIXELS];
                let mut v = [zero(); 16];
                for (nth, &offset) in strips.iter().enumerate() {
                    // SAFETY: a strip starts at a channel of a tap of every pixel and ends at most 15 bytes after
                    // the last one; a part has no more strips than a tile has rows for.
                    unsafe {
                        let tile: *mut u8 = scratch.as_mut_ptr().cast();
                        let mut row: *mut Ints = tile.add(nth * STRIP * FORM.row()).cast();
                        turned(layer.x, x, offset as usize, &mut v);
                        for &v in &v {
                            if FORM.element == 2 {
                                store(row, low_bytes(v, zero()));
                                store(row.add(1), high_bytes(v, zero()));
                            } else {
                                store(row, v);
                            }
                            row = row.add(FORM.element);
                        }
                    }
                }
            }

            /// # Safety
            /// As [`Blocks::add`]: the processor has the features, the tile holds the block's part of the window.
            #[target_feature(enable = $features)]
            pub unsafe fn add(
                layer: &Layer<'_>,
                block: usize,
                channels: usize,
                scratch: &mut MaybeUninit<Scratch>,
            ) {
                let group = block / layer.parts;
                let start = block.is_multiple_of(layer.parts);
                let steps = layer.first[block] as usize..layer.first[block + 1] as usize;
                let mut step = layer.data[steps.start * FORM.step()..steps.end * FORM.step()].as_ptr();
                for &entry in &layer.order[block * GROUP..(block + 1) * GROUP] {
                    let (lane, count) = (entry as usize % 256, entry as usize / 256);
                    if group * GROUP + lane >= layer.end {
                        // Beyond the tile, or beyond the last channel.
                        // SAFETY: within the block's steps.
                        step = unsafe { step.add(count * FORM.step()) };
                        continue;
                    }
                    // SAFETY: the scratch holds sums of `FORM.channels()` channels; the packer's offsets are rows
                    // of the tile, and `count` steps follow.
                    unsafe {
                        let scratch = scratch.as_mut_ptr();
                        let tile: *const u8 = (&raw const (*scratch).tile).cast();
                        let sums: *mut Ints =
                            (&raw mut (*scratch).sums).cast::<Ints>().add((channels + lane) * 4);
                        let mut acc = if start {
                            [set_dwords(layer.bias[group * GROUP + lane]); 4]
                        } else {
                            [load(sums), load(sums.add(1)), load(sums.add(2)), load(sums.add(3))]
                        };
                        for _ in 0..count {
                            $step(tile, step, &mut acc);
                            step = step.add(FORM.step());
                        }
                        acc.into_iter().enumerate().for_each(|(i, v)| store(sums.add(i), v));
                    }
                }
            }

            /// # Safety
            /// As [`Blocks::finish`]: the processor has the features, all parts of these channels have been added.
            #[target_feature(enable = $features)]
            pub unsafe fn finish(
                layer: &Layer<'_>,
                pixels: &Pixels,
                channel: usize,
                at: usize,
                scratch: &mut MaybeUninit<Scratch>,
            ) {
                let e = layer.epilogue;
                let channels = (layer.end - channel).min(16);
                // SAFETY: the scratch holds sums of these channels.
                let sums = unsafe {
                    let sums: *mut Ints = (&raw mut (*scratch.as_mut_ptr()).sums).cast();
                    std::slice::from_raw_parts(sums.add(at * 4), channels * 4)
                };
                if e.out_f32 {
                    // SAFETY: only channels of the tile are written.
                    unsafe { floats(layer, pixels, channel, sums) };
                    return;
                }
                let mut residual = [zero(); 16];
                if e.has_residual {
                    // SAFETY: 16 bytes from a channel of the residual are readable.
                    unsafe { turned(layer.r, &pixels.r[..PIXELS], channel, &mut residual) };
                }
                let mut v = [zero(); 16];
                for (o, sums) in sums.chunks_exact(4).enumerate() {
                    v[o] = requant(e, sums, layer.mult[channel + o], residual[o]);
                }
                let v = turn(v);
                for (p, &v) in v.iter().enumerate() {
                    for (lane, bytes) in
                        lanes(v).into_iter().enumerate().filter(|(l, _)| p + 16 * l < pixels.count)
                    {
                        // SAFETY: the channels belong to the tile.
                        unsafe {
                            let y = layer.y.add(pixels.y[p + 16 * lane] + channel);
                            if channels == 16 {
                                _mm_storeu_si128(y.cast(), bytes);
                            } else {
                                y.copy_from_nonoverlapping((&raw const bytes).cast(), channels);
                            }
                        }
                    }
                }
            }

            /// [`crate::kernels::QEpilogue::requant`] of one channel of all pixels.
            #[inline]
            #[target_feature(enable = $features)]
            fn requant(e: &QEpilogue, sums: &[Ints], mult: f32, residual: Ints) -> Ints {
                let mut f = [set_floats(mult); 4];
                for i in 0..4 {
                    f[i] = mul(to_floats(sums[i]), f[i]);
                }
                if e.has_residual && e.late.is_none() {
                    f = plus_residual(e, f, residual);
                }
                let mut q = rounded(f, Requant { zero: e.zero, lo: e.lo, hi: e.hi });
                if let Some(table) = &e.table {
                    q = looked_up(table, q);
                }
                if let (true, Some(late)) = (e.has_residual, e.late) {
                    let own = scaled(q, late.zero, late.mult);
                    q = rounded(plus_residual(e, own, residual), late.out);
                }
                q
            }

            /// `(q - zero) * mult` of bytes.
            #[inline]
            #[target_feature(enable = $features)]
            fn scaled(q: Ints, zero_point: i32, mult: f32) -> [Floats; 4] {
                let words = [low_bytes(q, zero()), high_bytes(q, zero())];
                let mut f = [set_floats(mult); 4];
                for i in 0..4 {
                    let half = words[i / 2];
                    let q = if i % 2 == 0 { low_words(half, zero()) } else { high_words(half, zero()) };
                    f[i] = mul(to_floats(sub_dwords(q, set_dwords(zero_point))), f[i]);
                }
                f
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn plus_residual(e: &QEpilogue, mut f: [Floats; 4], residual: Ints) -> [Floats; 4] {
                let r = scaled(residual, e.residual_zero, e.residual_mult);
                for i in 0..4 {
                    f[i] = add_floats(f[i], r[i]);
                }
                f
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn rounded(f: [Floats; 4], out: Requant) -> Ints {
                let (lo, hi) = ((out.lo - out.zero) as f32, (out.hi - out.zero) as f32);
                let mut q = [zero(); 4];
                for i in 0..4 {
                    let f = min(max(f[i], set_floats(lo)), set_floats(hi));
                    q[i] = add_dwords(to_dwords(f), set_dwords(out.zero));
                }
                pack_words(pack_dwords(q[0], q[1]), pack_dwords(q[2], q[3]))
            }

            /// Writes `acc * mult`.
            ///
            /// # Safety
            /// The processor has the features; the channels from `channel` on, 4 sums each, belong to the tile.
            #[cold]
            #[target_feature(enable = $features)]
            unsafe fn floats(layer: &Layer<'_>, pixels: &Pixels, channel: usize, sums: &[Ints]) {
                for (o, sums) in sums.chunks_exact(4).enumerate() {
                    for (i, &sum) in sums.iter().enumerate() {
                        let f: Floats = mul(to_floats(sum), set_floats(layer.mult[channel + o]));
                        // SAFETY: any bits are floats.
                        let f: [f32; 4 * LANES] = unsafe { std::mem::transmute(f) };
                        for (j, &f) in f.iter().enumerate() {
                            let p = j / 4 * 16 + i * 4 + j % 4;
                            if p < pixels.count {
                                // SAFETY: the channel belongs to the tile.
                                unsafe { layer.y.cast::<f32>().add(pixels.y[p] + channel + o).write(f) };
                            }
                        }
                    }
                }
            }
        }
    };
}

/// # Safety
/// AVX2 is there; the step's offsets are rows of the tile.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pair(tile: *const u8, step: *const u8, acc: &mut [__m256i; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        let w = _mm256_set1_epi32(step.add(4).cast::<i32>().read_unaligned());
        let [a, b]: [*const __m256i; 2] =
            [tile.add(offset(step, 0)).cast(), tile.add(offset(step, 1)).cast()];
        for i in 0..2 {
            let (a, b) = (_mm256_load_si256(a.add(i)), _mm256_load_si256(b.add(i)));
            let low = _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), w);
            let high = _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), w);
            acc[2 * i] = _mm256_add_epi32(acc[2 * i], low);
            acc[2 * i + 1] = _mm256_add_epi32(acc[2 * i + 1], high);
        }
    }
}

/// Defines a step of four weights.
macro_rules! quad {
    ($name:ident, $width:ident, $features:literal, $dot:ident) => {
        /// # Safety
        /// The processor has the features; the step's offsets are rows of the tile.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $name(tile: *const u8, step: *const u8, acc: &mut [$width::Ints; 4]) {
            use $width::*;
            // SAFETY: the caller's promise.
            unsafe {
                let w = set_dwords(step.add(8).cast::<i32>().read_unaligned());
                let [a, b, c, d] = [0, 1, 2, 3].map(|i| load(tile.add(offset(step, i)).cast()));
                let (ab, cd) = (low_bytes(a, b), low_bytes(c, d));
                acc[0] = $dot(acc[0], low_words(ab, cd), w);
                acc[1] = $dot(acc[1], high_words(ab, cd), w);
                let (ab, cd) = (high_bytes(a, b), high_bytes(c, d));
                acc[2] = $dot(acc[2], low_words(ab, cd), w);
                acc[3] = $dot(acc[3], high_words(ab, cd), w);
            }
        }
    };
}

quad!(quad_avxvnni, ymm, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);
quad!(quad_avx512vl, ymm, "avx2,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
quad!(quad_avx512, zmm, "avx512f,avx512bw,avx512vnni", _mm512_dpbusd_epi32);

blocks!(AVX2, avx2, ymm, PAIRS, "avx2", pair);
blocks!(AVX_VNNI, avxvnni, ymm, QUADS, "avx2,avxvnni", quad_avxvnni);
blocks!(AVX512_VL, avx512vl, ymm, QUADS, "avx2,avx512vl,avx512vnni", quad_avx512vl);
blocks!(AVX512, avx512, zmm, WIDE_QUADS, "avx512f,avx512bw,avx512vnni", quad_avx512);
