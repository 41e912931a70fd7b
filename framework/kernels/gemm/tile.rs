//! The register tile: the innermost loop of every dense f32 product.
//!
//! A tile is a few rows by up to 64 columns of a result, all kept in registers: each step broadcasts one element of every
//! row of `a` and multiplies it with one row of `b`. Rows of `a` begin anywhere and are read in *runs*, so that an image
//! is multiplied where it lies: for a convolution a row is an output pixel and a run is a tap.
//!
//! ```text
//! sum = first + Σ_run Σ_k a[row.a + run + k * a_step] * b[(run number * run_len + k) * b_step + j]
//! c[row.c + j] = clamp(sum + residual)
//! ```
//! AVX-512 tiles are 6 x 64, 8 x 48, 12 x 32 or 12 x 16: 24 sums, the vectors of a row of `b` and a broadcast fit 32
//! registers. AVX2 tiles are 6 x 16, and 12 x 8 for products of so few columns; NEON's are 6 x 16, 8 x 12, 12 x 8 or 12 x 4:
//! 24 sums here too. Portable ones are 4 x 16.

use crate::isa::Isa;

/// Elements of a cache line.
const LINE: usize = 16;
/// Columns of the widest tile.
pub const MOST_COLUMNS: usize = 64;

/// Where a row of a tile begins, in elements of `a` and of `c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub a: usize,
    pub c: usize,
}

/// What the sums of a tile start from.
#[derive(Clone, Copy)]
pub enum First {
    Zero,
    /// One number a column.
    Bias(*const f32),
    /// What `c` holds.
    Sum,
}

/// What becomes of sums.
#[derive(Clone, Copy)]
pub struct Last<'a> {
    /// One number a column, added to the sums: rounding errors are smaller than if sums began with it.
    pub bias: Option<*const f32>,
    /// Added to the sums: elements of this, and for every row of the product where its elements begin.
    pub residual: Option<(*const f32, &'a [usize])>,
    /// Bounds of results; NaN stays NaN.
    pub min: f32,
    pub max: f32,
}

/// A product, but for its rows. Steps are elements.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub a: *const f32,
    /// From a row's beginning to each of its runs.
    pub runs: &'a [u32],
    pub run_len: usize,
    /// From one element of a run to the next.
    pub a_step: usize,
    pub b: *const f32,
    /// From one row of `b` to the next.
    pub b_step: usize,
    pub c: *mut f32,
    /// 1 to [`MOST_COLUMNS`].
    pub columns: usize,
    pub first: First,
    /// Sums as they are if there is none.
    pub last: Option<Last<'a>>,
    /// Elements that are multiplied after this product, fetched into the second-level cache meanwhile: a line a step, by tiles
    /// for x86.
    pub ahead: Option<(*const f32, usize)>,
}

/// Computes `rows` of a product.
///
/// # Panics
/// If the product has no columns or too many, or a residual for fewer rows.
///
/// # Safety
/// The processor has `isa`. Every element of `a`, `b`, `c`, bias and residual that the formula at the head of the file names is
/// inside its buffer, and no other thread uses those of `c`.
pub unsafe fn run(isa: Isa, product: &Product<'_>, rows: &[Row]) {
    assert!((1..=MOST_COLUMNS).contains(&product.columns), "a tile of {} columns", product.columns);
    #[cfg(target_arch = "x86_64")]
    let vectors = product.columns.div_ceil(16);
    let most = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if product.columns <= 8 => avx2::NARROW.len(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::TILES.len(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::TILES[vectors - 1].len(),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::most_rows(product.columns),
        _ => portable::MOST,
    };
    // Tiles as equal as can be: a short one at the end would wait for its own sums.
    let mut rest = rows;
    let mut product = *product;
    #[cfg(target_arch = "x86_64")]
    let avx2 = match (product.columns, product.a_step, product.b_step) {
        (16, 1, 16) => &avx2::WHOLE[..],
        (8, ..) => &avx2::NARROW,
        (..8, ..) => &avx2::NARROWER,
        _ => &avx2::TILES,
    };
    while !rest.is_empty() {
        let (tile, after) = rest.split_at(rest.len().div_ceil(rest.len().div_ceil(most)));
        rest = after;
        // SAFETY: as the caller promises.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512::TILES[vectors - 1][tile.len() - 1](&product, tile.as_ptr()),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2[tile.len() - 1](&product, tile.as_ptr()),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => neon::tile(&product, tile),
                _ => portable::tile(&product, tile),
            }
        }
        if let Some((ahead, elements)) = &mut product.ahead {
            let fetched = (product.runs.len() * product.run_len * LINE).min(*elements);
            (*ahead, *elements) = (ahead.wrapping_add(fetched), *elements - fetched);
        }
        if let Some(Last { residual: Some((_, at)), .. }) = &mut product.last {
            *at = &at[tile.len()..];
        }
    }
}

mod portable {
    use super::{First, Product, Row};

    pub const MOST: usize = 4;

    /// # Safety
    /// As of [`super::run`].
    pub unsafe fn tile(s: &Product<'_>, rows: &[Row]) {
        for j in (0..s.columns).step_by(16) {
            let lanes = (s.columns - j).min(16);
            let mut sums = [[0f32; 16]; MOST];
            // SAFETY: the promise of `run`, for the columns j..j + lanes.
            unsafe {
                for (sum, row) in sums.iter_mut().zip(rows) {
                    match s.first {
                        First::Zero => {}
                        First::Bias(bias) => {
                            std::ptr::copy_nonoverlapping(bias.add(j), sum.as_mut_ptr(), lanes)
                        }
                        First::Sum => {
                            std::ptr::copy_nonoverlapping(s.c.add(row.c + j), sum.as_mut_ptr(), lanes)
                        }
                    }
                }
                let mut b = s.b.add(j);
                let mut w = [0f32; 16];
                for &run in s.runs {
                    for k in 0..s.run_len {
                        std::ptr::copy_nonoverlapping(b, w.as_mut_ptr(), lanes);
                        for (sum, row) in sums.iter_mut().zip(rows) {
                            let x = *s.a.add(row.a + run as usize + k * s.a_step);
                            for (sum, w) in sum.iter_mut().zip(&w) {
                                *sum += x * w;
                            }
                        }
                        b = b.wrapping_add(s.b_step);
                    }
                }
                for (p, (sum, row)) in sums.iter_mut().zip(rows).enumerate() {
                    if let Some(last) = s.last {
                        for (l, sum) in sum[..lanes].iter_mut().enumerate() {
                            *sum += last.bias.map_or(0.0, |bias| *bias.add(j + l));
                            if let Some((residual, at)) = last.residual {
                                *sum += *residual.add(at[p] + j + l);
                            }
                            *sum = if *sum < last.min { last.min } else { *sum };
                            *sum = if *sum > last.max { last.max } else { *sum };
                        }
                    }
                    std::ptr::copy_nonoverlapping(sum.as_ptr(), s.c.add(row.c + j), lanes);
                }
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{First, Product, Row};
    use crate::lanes::{load_some, store_some};
    use std::arch::aarch64::*;

    /// Floats of a register.
    const LANES: usize = 4;
    /// Columns of the widest tile; more are taken in several.
    const COLUMNS: usize = 16;

    /// `columns` columns from `j` on of some rows.
    type Tile = unsafe fn(&Product<'_>, *const Row, usize, usize);

    macro_rules! by_rows {
        ($v:literal, $few:literal: $($p:literal)*) => { &[$(columns_of::<$p, $v, $few>),*] };
    }

    /// By registers of columns, then by rows.
    const TILES: [&[Tile]; COLUMNS / LANES] = [
        by_rows!(1, false: 1 2 3 4 5 6 7 8 9 10 11 12),
        by_rows!(2, false: 1 2 3 4 5 6 7 8 9 10 11 12),
        by_rows!(3, false: 1 2 3 4 5 6 7 8),
        by_rows!(4, false: 1 2 3 4 5 6),
    ];
    /// For columns that do not fill a register.
    const FEW: &[Tile] = by_rows!(1, true: 1 2 3 4 5 6 7 8 9 10 11 12);

    /// Of a tile of so many columns.
    pub fn most_rows(columns: usize) -> usize {
        TILES[columns.min(COLUMNS).div_ceil(LANES) - 1].len()
    }

    /// # Safety
    /// As of [`super::run`]; no more rows than [`most_rows`].
    pub unsafe fn tile(s: &Product<'_>, rows: &[Row]) {
        for j in (0..s.columns).step_by(COLUMNS) {
            let columns = (s.columns - j).min(COLUMNS);
            let tiles = if columns < LANES { FEW } else { TILES[columns.div_ceil(LANES) - 1] };
            // SAFETY: the promise of `run`, for the columns j..j + columns.
            unsafe { tiles[rows.len() - 1](s, rows.as_ptr(), j, columns) };
        }
    }

    /// # Safety
    /// NEON; `P` rows; `columns` of the product's, which `V` registers hold and `V - 1` do not, at least one register or `FEW`;
    /// otherwise as of [`super::run`].
    #[target_feature(enable = "neon")]
    unsafe fn columns_of<const P: usize, const V: usize, const FEW: bool>(
        s: &Product<'_>,
        rows: *const Row,
        j: usize,
        columns: usize,
    ) {
        // The last register ends with the last column: it may share columns with the one before, and computes the same.
        let last_at = columns.saturating_sub(LANES);
        // SAFETY: the promise of `run`; registers lie in the columns, or `FEW` of their lanes are read and written.
        unsafe {
            let load = |at: *const f32| {
                let mut w = [vdupq_n_f32(0.0); V];
                for v in 0..V - 1 {
                    w[v] = vld1q_f32(at.add(v * LANES));
                }
                w[V - 1] = if FEW { load_some(at, columns) } else { vld1q_f32(at.add(last_at)) };
                w
            };
            let mut x_rows = [s.a; P];
            let mut sums = [[vdupq_n_f32(0.0); V]; P];
            for p in 0..P {
                x_rows[p] = s.a.add((*rows.add(p)).a);
            }
            match s.first {
                First::Zero => {}
                First::Bias(bias) => sums = [load(bias.add(j)); P],
                First::Sum => {
                    for p in 0..P {
                        sums[p] = load(s.c.add((*rows.add(p)).c + j));
                    }
                }
            }
            let mut b = s.b.add(j);
            for &run in s.runs {
                let mut at = run as usize;
                for _ in 0..s.run_len {
                    let w = load(b);
                    for p in 0..P {
                        let x = *x_rows[p].add(at);
                        for v in 0..V {
                            sums[p][v] = vfmaq_n_f32(sums[p][v], w[v], x);
                        }
                    }
                    at += s.a_step;
                    b = b.wrapping_add(s.b_step);
                }
            }
            if let Some(last) = s.last {
                let (min, max) = (vdupq_n_f32(last.min), vdupq_n_f32(last.max));
                let bias = last.bias.map_or([vdupq_n_f32(0.0); V], |bias| load(bias.add(j)));
                for p in 0..P {
                    for v in 0..V {
                        sums[p][v] = vaddq_f32(sums[p][v], bias[v]);
                    }
                    if let Some((residual, at)) = last.residual {
                        let residual = load(residual.add(at[p] + j));
                        for v in 0..V {
                            sums[p][v] = vaddq_f32(sums[p][v], residual[v]);
                        }
                    }
                    for v in 0..V {
                        // These instructions keep a NaN.
                        sums[p][v] = vminq_f32(vmaxq_f32(sums[p][v], min), max);
                    }
                }
            }
            for p in 0..P {
                let c = s.c.add((*rows.add(p)).c + j);
                for v in 0..V - 1 {
                    vst1q_f32(c.add(v * LANES), sums[p][v]);
                }
                match FEW {
                    true => store_some(sums[p][V - 1], c, columns),
                    false => vst1q_f32(c.add(last_at), sums[p][V - 1]),
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{First, LINE, Product, Row};
    use std::arch::x86_64::*;

    type Tile = unsafe fn(&Product<'_>, *const Row);

    /// By rows of the tile.
    pub const TILES: [Tile; 6] = [tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>];

    /// The same for 16 columns whose weights and elements lie side by side, as packed layers have them: less to do before
    /// and after the sums.
    pub const WHOLE: [Tile; 6] = [whole::<1>, whole::<2>, whole::<3>, whole::<4>, whole::<5>, whole::<6>];

    /// # Safety
    /// AVX2 and FMA; `P` rows, 16 columns, `a_step` 1 and `b_step` 16; otherwise as of [`super::run`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn whole<const P: usize>(s: &Product<'_>, rows: *const Row) {
        // SAFETY: the promise of `run`.
        unsafe {
            let load = |at: *const f32| [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
            let mut x_rows = [s.a; P];
            for p in 0..P {
                x_rows[p] = s.a.add((*rows.add(p)).a);
            }
            let mut sums = [[_mm256_setzero_ps(); 2]; P];
            match s.first {
                First::Zero => {}
                First::Bias(bias) => sums = [load(bias); P],
                First::Sum => {
                    for p in 0..P {
                        sums[p] = load(s.c.add((*rows.add(p)).c));
                    }
                }
            }
            let mut b = s.b;
            // With nothing to fetch, a line that is there already.
            let (mut ahead, ahead_step) = match s.ahead {
                Some((ahead, 1..)) => (ahead, LINE),
                _ => (s.b, 0),
            };
            macro_rules! step {
                ($at:expr, $k:literal) => {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                    ahead = ahead.wrapping_add(ahead_step);
                    let w = load(b.add(16 * $k));
                    for p in 0..P {
                        let x = _mm256_set1_ps(*x_rows[p].add($at + $k));
                        sums[p][0] = _mm256_fmadd_ps(x, w[0], sums[p][0]);
                        sums[p][1] = _mm256_fmadd_ps(x, w[1], sums[p][1]);
                    }
                };
            }
            for &run in s.runs {
                let mut at = run as usize;
                for _ in 0..s.run_len / 2 {
                    step!(at, 0);
                    step!(at, 1);
                    at += 2;
                    b = b.wrapping_add(32);
                }
                if s.run_len % 2 == 1 {
                    step!(at, 0);
                    b = b.wrapping_add(16);
                }
            }
            if let Some(last) = s.last {
                let (min, max) = (_mm256_set1_ps(last.min), _mm256_set1_ps(last.max));
                let bias = last.bias.map_or([_mm256_setzero_ps(); 2], load);
                for p in 0..P {
                    sums[p] = [0, 1].map(|v| _mm256_add_ps(sums[p][v], bias[v]));
                    if let Some((residual, at)) = last.residual {
                        let residual = load(residual.add(at[p]));
                        sums[p] = [0, 1].map(|v| _mm256_add_ps(sums[p][v], residual[v]));
                    }
                    // Bounds come first: these instructions return their second operand when one is NaN.
                    sums[p] = sums[p].map(|sum| _mm256_min_ps(max, _mm256_max_ps(min, sum)));
                }
            }
            for p in 0..P {
                let c = s.c.add((*rows.add(p)).c);
                _mm256_storeu_ps(c, sums[p][0]);
                _mm256_storeu_ps(c.add(8), sums[p][1]);
            }
        }
    }

    macro_rules! by_rows {
        ($masked:literal: $($p:literal)*) => { [$(narrow::<$p, $masked>),*] };
    }

    /// The same for 8 columns: half as many sums a row, so twice as many rows.
    pub const NARROW: [Tile; 12] = by_rows!(false: 1 2 3 4 5 6 7 8 9 10 11 12);
    /// For fewer.
    pub const NARROWER: [Tile; 12] = by_rows!(true: 1 2 3 4 5 6 7 8 9 10 11 12);

    /// # Safety
    /// AVX2 and FMA; `P` rows and 8 columns, or fewer if `MASKED`; otherwise as of [`super::run`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn narrow<const P: usize, const MASKED: bool>(s: &Product<'_>, rows: *const Row) {
        let lanes = mask(0, s.columns);
        // SAFETY: the promise of `run`; the mask leaves out columns beyond the last.
        unsafe {
            let load = |at: *const f32| match MASKED {
                true => _mm256_maskload_ps(at, lanes),
                false => _mm256_loadu_ps(at),
            };
            let mut x_rows = [s.a; P];
            let mut sums = [_mm256_setzero_ps(); P];
            for p in 0..P {
                let row = *rows.add(p);
                x_rows[p] = s.a.add(row.a);
                match s.first {
                    First::Zero => {}
                    First::Bias(bias) => sums[p] = load(bias),
                    First::Sum => sums[p] = load(s.c.add(row.c)),
                }
            }
            let mut b = s.b;
            for &run in s.runs {
                let mut at = run as usize;
                for _ in 0..s.run_len {
                    let w = load(b);
                    for p in 0..P {
                        sums[p] = _mm256_fmadd_ps(_mm256_set1_ps(*x_rows[p].add(at)), w, sums[p]);
                    }
                    at += s.a_step;
                    b = b.wrapping_add(s.b_step);
                }
            }
            if let Some(last) = s.last {
                let (min, max) = (_mm256_set1_ps(last.min), _mm256_set1_ps(last.max));
                let bias = last.bias.map_or(_mm256_setzero_ps(), load);
                for p in 0..P {
                    sums[p] = _mm256_add_ps(sums[p], bias);
                    if let Some((residual, at)) = last.residual {
                        sums[p] = _mm256_add_ps(sums[p], load(residual.add(at[p])));
                    }
                    // Bounds come first: these instructions return their second operand when one is NaN.
                    sums[p] = _mm256_min_ps(max, _mm256_max_ps(min, sums[p]));
                }
            }
            for p in 0..P {
                let c = s.c.add((*rows.add(p)).c);
                match MASKED {
                    true => {
                        // A store with a mask takes some twenty cycles on AMD's processors.
                        let mut floats = [0.0f32; 8];
                        _mm256_storeu_ps(floats.as_mut_ptr(), sums[p]);
                        std::ptr::copy_nonoverlapping(floats.as_ptr(), c, s.columns);
                    }
                    false => _mm256_storeu_ps(c, sums[p]),
                }
            }
        }
    }

    /// Lanes `at..` of a vector of 8 that lie before column `end`.
    #[target_feature(enable = "avx2")]
    fn mask(at: usize, end: usize) -> __m256i {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(end as i32 - at as i32), lanes)
    }

    /// # Safety
    /// AVX2 and FMA; `P` rows; otherwise as of [`super::run`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const P: usize>(s: &Product<'_>, rows: *const Row) {
        // SAFETY: the promise of `run`; masks leave out columns beyond the last.
        unsafe {
            for j in (0..s.columns).step_by(16) {
                let masks = [mask(j, s.columns), mask(j + 8, s.columns)];
                let whole = j + 16 <= s.columns;
                let load = |at: *const f32| {
                    if whole {
                        [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]
                    } else {
                        [_mm256_maskload_ps(at, masks[0]), _mm256_maskload_ps(at.wrapping_add(8), masks[1])]
                    }
                };
                let mut x_rows = [s.a; P];
                let mut sums = [[_mm256_setzero_ps(); 2]; P];
                for p in 0..P {
                    let row = *rows.add(p);
                    x_rows[p] = s.a.add(row.a);
                    match s.first {
                        First::Zero => {}
                        First::Bias(bias) => sums[p] = load(bias.add(j)),
                        First::Sum => sums[p] = load(s.c.add(row.c + j)),
                    }
                }
                let mut b = s.b.add(j);
                for &run in s.runs {
                    let mut at = run as usize;
                    for _ in 0..s.run_len {
                        let w = load(b);
                        for p in 0..P {
                            let x = _mm256_set1_ps(*x_rows[p].add(at));
                            sums[p][0] = _mm256_fmadd_ps(x, w[0], sums[p][0]);
                            sums[p][1] = _mm256_fmadd_ps(x, w[1], sums[p][1]);
                        }
                        at += s.a_step;
                        b = b.wrapping_add(s.b_step);
                    }
                }
                if let Some(last) = s.last {
                    let (min, max) = (_mm256_set1_ps(last.min), _mm256_set1_ps(last.max));
                    let bias = last.bias.map_or([_mm256_setzero_ps(); 2], |bias| load(bias.add(j)));
                    for p in 0..P {
                        sums[p] = [0, 1].map(|v| _mm256_add_ps(sums[p][v], bias[v]));
                        if let Some((residual, at)) = last.residual {
                            let residual = load(residual.add(at[p] + j));
                            sums[p] = [0, 1].map(|v| _mm256_add_ps(sums[p][v], residual[v]));
                        }
                        // Bounds come first: these instructions return their second operand when one is NaN.
                        sums[p] = sums[p].map(|sum| _mm256_min_ps(max, _mm256_max_ps(min, sum)));
                    }
                }
                for p in 0..P {
                    let c = s.c.add((*rows.add(p)).c + j);
                    // A store with a mask takes some twenty cycles on AMD's processors.
                    if whole {
                        _mm256_storeu_ps(c, sums[p][0]);
                        _mm256_storeu_ps(c.add(8), sums[p][1]);
                    } else {
                        _mm256_maskstore_ps(c, masks[0], sums[p][0]);
                        _mm256_maskstore_ps(c.wrapping_add(8), masks[1], sums[p][1]);
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{First, LINE, Product, Row};
    use std::arch::x86_64::*;

    type Tile = unsafe fn(&Product<'_>, *const Row);

    macro_rules! by_rows {
        ($v:literal: $($p:literal)*) => { &[$(tile::<$p, $v>),*] };
    }

    /// By vectors of columns, then by rows.
    pub const TILES: [&[Tile]; 4] = [
        by_rows!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
        by_rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
        by_rows!(3: 1 2 3 4 5 6 7 8),
        by_rows!(4: 1 2 3 4 5 6),
    ];

    /// # Safety
    /// AVX-512 F; `P` rows and `V` vectors of columns; otherwise as of [`super::run`].
    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const P: usize, const V: usize>(s: &Product<'_>, rows: *const Row) {
        let last = s.columns - (V - 1) * 16;
        let mask = (0xffffu32 >> (16 - last)) as __mmask16;
        // SAFETY: the promise of `run`; the mask leaves out columns beyond the last.
        unsafe {
            let load = |at: *const f32| {
                let mut w = [_mm512_setzero_ps(); V];
                for v in 0..V - 1 {
                    w[v] = _mm512_loadu_ps(at.add(v * 16));
                }
                w[V - 1] = _mm512_maskz_loadu_ps(mask, at.add((V - 1) * 16));
                w
            };
            let mut x_rows = [s.a; P];
            let mut sums = [[_mm512_setzero_ps(); V]; P];
            for p in 0..P {
                x_rows[p] = s.a.add((*rows.add(p)).a);
            }
            match s.first {
                First::Zero => {}
                First::Bias(bias) => sums = [load(bias); P],
                First::Sum => {
                    for p in 0..P {
                        sums[p] = load(s.c.add((*rows.add(p)).c));
                    }
                }
            }
            let mut b = s.b;
            // What is here already, if there is nothing to fetch.
            let (mut ahead, ahead_step) = match s.ahead {
                Some((ahead, 1..)) => (ahead, LINE),
                _ => (s.b, 0),
            };
            for &run in s.runs {
                let mut at = run as usize;
                for _ in 0..s.run_len {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                    ahead = ahead.wrapping_add(ahead_step);
                    let w = load(b);
                    for p in 0..P {
                        let x = _mm512_set1_ps(*x_rows[p].add(at));
                        for v in 0..V {
                            sums[p][v] = _mm512_fmadd_ps(x, w[v], sums[p][v]);
                        }
                    }
                    at += s.a_step;
                    b = b.wrapping_add(s.b_step);
                }
            }
            if let Some(last) = s.last {
                let (min, max) = (_mm512_set1_ps(last.min), _mm512_set1_ps(last.max));
                let bias = last.bias.map_or([_mm512_setzero_ps(); V], load);
                for p in 0..P {
                    for v in 0..V {
                        sums[p][v] = _mm512_add_ps(sums[p][v], bias[v]);
                    }
                    if let Some((residual, at)) = last.residual {
                        let residual = load(residual.add(at[p]));
                        for v in 0..V {
                            sums[p][v] = _mm512_add_ps(sums[p][v], residual[v]);
                        }
                    }
                    for v in 0..V {
                        // Bounds come first: these instructions return their second operand when one is NaN.
                        sums[p][v] = _mm512_min_ps(max, _mm512_max_ps(min, sums[p][v]));
                    }
                }
            }
            for p in 0..P {
                let c = s.c.add((*rows.add(p)).c);
                for v in 0..V - 1 {
                    _mm512_storeu_ps(c.add(v * 16), sums[p][v]);
                }
                _mm512_mask_storeu_ps(c.add((V - 1) * 16), mask, sums[p][V - 1]);
            }
        }
    }
}
