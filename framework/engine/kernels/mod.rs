//! The table of convolution kernels and the contract all of them keep.
//!
//! A kernel is a row of [`CONV_KERNELS`]: what it needs, how it packs weights, how it runs one tile. Names
//! follow `{op}_{dtype}_{pixels}x{channels}_{isa}[_variant]`. A matrix product is a convolution with
//! `kh = kw = 1`, one row and M columns. The planner picks a row, packs once, and hands disjoint tiles of
//! one output to its threads.
//!
//! What a kernel may touch:
//! * it reads `x` at every tap of every output of its tile (borders are part of the buffer and hold
//!   `x_zero` or 0.0), and up to [`READ_AFTER`] bytes past the buffer's end;
//! * channels of a pixel beyond `c` hold arbitrary bytes: they are multiplied by zero or never read;
//! * it writes the channels `tile.ocs` of the pixels of its tile and nothing else;
//! * an f32 kernel computes an output once and reads its residual before it writes it: both may be the same memory.
//!
//! Arithmetic is that of `lacuna_ir`'s `QConv`, `QGemm` and `FusedConv`. Integer kernels equal it bit for bit:
//! `f = acc as f32 * mult`, a residual is a separate multiplication and addition, `f` is clamped as a float,
//! rounded to nearest even, and gets its zero point; then come the table and the late residual, if there are such. Float kernels may sum in any order and fuse
//! multiplication and addition: `|y - exact| <= 1.01 * (K + 3) * 2^-24 * (Σ|x·w| + |bias| + |residual|)`
//! for K products, as for any order of summation (Higham, Accuracy and Stability, section 3.1). Rows by Winograd's algorithm
//! mix the windows of neighbours: for them the largest `Σ|x·w|` of all outputs takes the place of the output's own, and an
//! infinite input makes NaN of its neighbours.
//!
//! Rows of [`KernelType::Bf16`] round every x and w to bfloat16 before they are multiplied, which adds
//! `2.01 * 2^-8 * Σ|x·w|` to a bound whose first factor is 1.03. Numbers nearer to zero than 2^-126 count as zero, and what
//! is beyond the largest bfloat16, 3.39e38, as infinite.

// Other processors have fewer rows, or the portable ones only, and no use for all that the vector rows share.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

pub(crate) use packed::{count_nonzeros, each_nonzero, magnitude};

use crate::memory::AlignedBytes;
use crate::target::{Isa, has_bf16};
use lacuna_ir::op::{LateAdd, Requant};
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod dense_avx2;
#[cfg(target_arch = "x86_64")]
mod dense_avx512;
#[cfg(target_arch = "x86_64")]
mod dense_bf16;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod dense_f32;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod dense_i8;
#[cfg(target_arch = "aarch64")]
mod dense_neon;
mod depthwise;
#[cfg(target_arch = "x86_64")]
mod depthwise_avx2;
#[cfg(target_arch = "x86_64")]
mod depthwise_avx512;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod depthwise_f32;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod depthwise_i8;
#[cfg(target_arch = "aarch64")]
mod depthwise_neon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod interleave;
pub mod lane_gather;
#[cfg(target_arch = "x86_64")]
mod lookup;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
mod portable;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod sparse_f32;
pub mod steps;
#[cfg(all(test, unix))]
mod tests;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod winograd_f32;

/// Readable bytes that lie behind every activation buffer.
pub const READ_AFTER: usize = 128;
/// Readable bytes that lie before every activation buffer.
pub const READ_BEFORE: usize = 64;

/// Shape and strides of one convolution. Strides and origins count elements (u8 or f32) of their tensor, and so
/// does every offset made of them: all are below 2^32. All taps of all outputs are physically readable.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvGeom {
    /// Output rows of all images: n * oh.
    pub rows: u32,
    pub oh: u32,
    pub ow: u32,
    pub oc: u32,
    /// Input channels, of all groups.
    pub c: u32,
    pub group: u32,
    pub kh: u32,
    pub kw: u32,
    pub sh: u32,
    pub sw: u32,
    pub dh: u32,
    pub dw: u32,
    /// Where tap (0, 0) of output (0, 0) of image 0 lies in x.
    pub x_origin: u32,
    pub x_image: u32,
    pub x_row: u32,
    pub x_pixel: u32,
    pub y_origin: u32,
    pub y_image: u32,
    pub y_row: u32,
    pub y_pixel: u32,
    pub r_origin: u32,
    pub r_image: u32,
    pub r_row: u32,
    pub r_pixel: u32,
}

/// How accumulators become results. Integer kernels read all but `min` and `max`, f32 kernels read
/// `has_residual`, `min` and `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QEpilogue {
    /// Zero point of x. Kernels fold it into the bias when they pack; it stands here for whoever fills borders.
    pub x_zero: i32,
    /// Scale of the residual in units of the output's scale.
    pub residual_mult: f32,
    pub residual_zero: i32,
    pub zero: i32,
    pub lo: i32,
    pub hi: i32,
    pub has_residual: bool,
    /// y is f32 and gets `acc * mult`: no residual, no clamp, no table.
    pub out_f32: bool,
    /// What each rounded result becomes.
    pub table: Option<[u8; 256]>,
    /// The residual is added after the table, and the sum rounded again.
    pub late: Option<LateAdd>,
    pub min: f32,
    pub max: f32,
}

/// A part of an output: disjoint tiles may run at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    pub rows: Range<u32>,
    pub cols: Range<u32>,
    /// Starts at a multiple of the kernel's `oc_granule`.
    pub ocs: Range<u32>,
}

impl Tile {
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() || self.cols.is_empty() || self.ocs.is_empty()
    }

    /// That it lies in the output and starts at a multiple of `granule` channels, in debug builds.
    fn check(&self, g: &ConvGeom, granule: usize) {
        debug_assert!(self.rows.end <= g.rows && self.cols.end <= g.ow && self.ocs.end <= g.oc);
        debug_assert!((self.ocs.start as usize).is_multiple_of(granule));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelType {
    /// u8 activations, i8 weights, i32 sums.
    Int8,
    F32,
    /// The same tensors, multiplied as bfloat16; f32 sums. Only for who asks, where the processor can
    /// ([`Target::bf16`](crate::Target::bf16)).
    Bf16,
}

/// Weights as the graph has them: `w` is `[O, kh, kw, C / group]`, `bias` and `mult` are `[O]`.
#[derive(Clone, Copy, Debug)]
pub enum ConvWeights<'a> {
    Int8 { w: &'a [i8], bias: &'a [i32], mult: &'a [f32], x_zero: i32 },
    F32 { w: &'a [f32], bias: &'a [f32] },
}

/// Weights in a kernel's own order, on a 64-byte boundary.
#[derive(Clone, Debug)]
pub struct Packed {
    pub bytes: AlignedBytes,
    /// Trips of the innermost loop over all channels, per block of pixels.
    pub steps: u64,
    /// Weights that those steps multiply, zeros included.
    pub slots: u64,
    pub nonzeros: u64,
}

/// `pack` depends on the weights, `x_row`, `x_pixel` and the window only: a new batch needs no repacking.
pub type PackFn = fn(&ConvWeights<'_>, &ConvGeom) -> Packed;

/// What one call of a kernel works on. Pointers are the starts of whole buffers: it is the geometry that says, in elements, where
/// in them the tile lies.
///
/// Geometry, epilogue and tile are copies: the compiler knows that nobody changes what a kernel's argument points at. Behind further
/// references it would read them again, and divide by them again, after every store to y.
pub struct Operands<'a> {
    pub geom: ConvGeom,
    pub epilogue: QEpilogue,
    /// [`Packed::bytes`] of the same row.
    pub packed: &'a [u8],
    /// u8 for rows of [`KernelType::Int8`], f32 for all others.
    pub x: *const u8,
    /// The residual, of the type of x. Never read if the epilogue has none.
    pub r: *const u8,
    /// Of the type of x, or f32 if the epilogue says so.
    pub y: *mut u8,
    pub tile: Tile,
}

impl Operands<'_> {
    /// x, the residual and y of a row of floats.
    fn floats(&self) -> (*const f32, *const f32, *mut f32) {
        (self.x.cast(), self.r.cast(), self.y.cast())
    }
}

/// Computes one tile.
///
/// # Safety
/// The processor has what the row needs ([`ConvKernel::is_available`]). `packed` lies on a 64-byte boundary and is what `pack` of the same row
/// made for this geometry's window, channels, `x_row` and `x_pixel`. `x`, the residual (if there is one) and `y` are
/// the starts of buffers that hold all that the geometry addresses for this tile, with [`READ_BEFORE`] and
/// [`READ_AFTER`] readable bytes around x and the residual. Nobody else writes what this tile reads or writes.
pub type RunFn = unsafe fn(&Operands<'_>);

/// How a kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Every weight with every pixel under it.
    Direct,
    /// Transformed weights with transformed tiles of so many outputs along an axis.
    Winograd(usize),
    /// Nonzero weights only: its time falls with their number.
    Sparse,
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Method::Direct => "dense",
            Method::Winograd(_) => "winograd",
            Method::Sparse => "sparse",
        }
    }
}

pub struct ConvKernel {
    pub name: &'static str,
    pub isa: Isa,
    pub dtype: KernelType,
    pub method: Method,
    /// Tiles start at a multiple of so many output channels.
    pub oc_granule: u32,
    pub supports: fn(&ConvGeom) -> bool,
    pub pack: PackFn,
    pub run: RunFn,
}

impl ConvKernel {
    /// Whether this processor runs the row.
    pub fn is_available(&self) -> bool {
        self.isa.is_available() && (self.dtype != KernelType::Bf16 || has_bf16())
    }

    /// How it multiplies, in a word.
    pub fn kind(&self) -> &'static str {
        if self.dtype == KernelType::Bf16 { "bf16" } else { self.method.name() }
    }
}

/// All convolution kernels. For one type the first supported row is always right, later rows are faster.
pub const CONV_KERNELS: &[ConvKernel] = &[
    ConvKernel {
        name: "conv_i8_1x1_portable",
        isa: Isa::Portable,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 1,
        supports: any,
        pack: portable::pack,
        run: portable::run_i8,
    },
    ConvKernel {
        name: "conv_f32_1x1_portable",
        isa: Isa::Portable,
        dtype: KernelType::F32,
        method: Method::Direct,
        oc_granule: 1,
        supports: any,
        pack: portable::pack,
        run: portable::run_f32,
    },
    ConvKernel {
        name: "dwconv_i8_1x16_portable",
        isa: Isa::Portable,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 16,
        supports: depthwise,
        pack: depthwise::pack,
        run: depthwise::run_i8,
    },
    ConvKernel {
        name: "dwconv_f32_1x16_portable",
        isa: Isa::Portable,
        dtype: KernelType::F32,
        method: Method::Direct,
        oc_granule: 16,
        supports: depthwise,
        pack: depthwise::pack,
        run: depthwise::run_f32,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_4x16_avx2",
        isa: Isa::Avx2,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 16,
        supports: one_group,
        pack: dense_avx2::pack_i8,
        run: dense_avx2::run_i8,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "dwconv_i8_4x16_avx2",
        isa: Isa::Avx2,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 16,
        supports: depthwise_i8::supports,
        pack: depthwise::pack,
        run: depthwise_avx2::run,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_6x16_avxvnni",
        isa: Isa::AvxVnni,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 16,
        supports: one_group,
        pack: dense_avx2::pack_avxvnni,
        run: dense_avx2::run_avxvnni,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_6x16_avx2",
        isa: Isa::Avx2,
        dtype: KernelType::F32,
        method: Method::Direct,
        oc_granule: 16,
        supports: one_group,
        pack: dense_f32::pack_avx2,
        run: dense_f32::run_avx2,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_6x64_avx512vnni",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 64,
        supports: one_group,
        pack: dense_avx512::pack_i8,
        run: dense_avx512::run_i8,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "dwconv_i8_4x64_avx512vnni",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 64,
        supports: depthwise_avx512::supports,
        pack: depthwise_avx512::pack,
        run: depthwise_avx512::run,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "dwconv_i8_4x64_avx512vbmi",
        isa: Isa::Avx512Vbmi,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 64,
        supports: depthwise_avx512::supports,
        pack: depthwise_avx512::pack,
        run: depthwise_avx512::run_vbmi,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_6x64_avx512vbmi",
        isa: Isa::Avx512Vbmi,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 64,
        supports: one_group,
        pack: dense_avx512::pack_i8,
        run: dense_avx512::run_i8_vbmi,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_6x64_avx512vnni",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::F32,
        method: Method::Direct,
        oc_granule: 64,
        supports: one_group,
        pack: dense_f32::pack_avx512,
        run: dense_f32::run_avx512,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_6x64_avx512bf16",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::Bf16,
        method: Method::Direct,
        oc_granule: 64,
        supports: one_group,
        pack: dense_bf16::pack,
        run: dense_bf16::run,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_4x16_avx2_winograd",
        isa: Isa::Avx2,
        dtype: KernelType::F32,
        method: Method::Winograd(2),
        oc_granule: 16,
        supports: winograd_f32::supports,
        pack: winograd_f32::pack_two_avx2,
        run: winograd_f32::run_two_avx2,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_16x16_avx2_winograd",
        isa: Isa::Avx2,
        dtype: KernelType::F32,
        method: Method::Winograd(4),
        oc_granule: 16,
        supports: winograd_f32::supports,
        pack: winograd_f32::pack_four_avx2,
        run: winograd_f32::run_four_avx2,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_4x64_avx512vnni_winograd",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::F32,
        method: Method::Winograd(2),
        oc_granule: 64,
        supports: winograd_f32::supports,
        pack: winograd_f32::pack_two_avx512,
        run: winograd_f32::run_two_avx512,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_16x64_avx512vnni_winograd",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::F32,
        method: Method::Winograd(4),
        oc_granule: 64,
        supports: winograd_f32::supports,
        pack: winograd_f32::pack_four_avx512,
        run: winograd_f32::run_four_avx512,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_32x64_avx2_interleave",
        isa: Isa::Avx2,
        dtype: KernelType::Int8,
        method: Method::Sparse,
        oc_granule: 64,
        supports: one_group,
        pack: interleave::pack_avx2,
        run: interleave::run_avx2,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_32x64_avxvnni_interleave",
        isa: Isa::AvxVnni,
        dtype: KernelType::Int8,
        method: Method::Sparse,
        oc_granule: 64,
        supports: one_group,
        pack: interleave::pack_avxvnni,
        run: interleave::run_avxvnni,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_64x64_avx512vnni_interleave",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::Int8,
        method: Method::Sparse,
        oc_granule: 64,
        supports: one_group,
        pack: interleave::pack_avx512,
        run: interleave::run_avx512,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_32x32_amx",
        isa: Isa::Amx,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 32,
        supports: one_group,
        pack: amx::pack_i8,
        run: amx::run_i8,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_32x32_amx_expand",
        isa: Isa::Amx,
        dtype: KernelType::Int8,
        method: Method::Sparse,
        oc_granule: 32,
        supports: amx::expands,
        pack: amx::pack_i8_sparse,
        run: amx::run_i8_sparse,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_i8_16x16_avx512vbmi_lanegather",
        isa: Isa::Avx512Vbmi,
        dtype: KernelType::Int8,
        method: Method::Sparse,
        oc_granule: 16,
        supports: one_group,
        pack: lane_gather::pack,
        run: lane_gather::avx512::run,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_64x64_avx2_sparse",
        isa: Isa::Avx2,
        dtype: KernelType::F32,
        method: Method::Sparse,
        oc_granule: 64,
        supports: one_group,
        pack: sparse_f32::pack,
        run: sparse_f32::run_avx2,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "conv_f32_64x64_avx512vnni_sparse",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::F32,
        method: Method::Sparse,
        oc_granule: 64,
        supports: one_group,
        pack: sparse_f32::pack,
        run: sparse_f32::run_avx512,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "dwconv_f32_4x16_avx2",
        isa: Isa::Avx2,
        dtype: KernelType::F32,
        method: Method::Direct,
        oc_granule: 16,
        supports: depthwise,
        pack: depthwise::pack,
        run: depthwise_f32::run_avx2,
    },
    #[cfg(target_arch = "x86_64")]
    ConvKernel {
        name: "dwconv_f32_4x16_avx512vnni",
        isa: Isa::Avx512Vnni,
        dtype: KernelType::F32,
        method: Method::Direct,
        oc_granule: 16,
        supports: depthwise,
        pack: depthwise::pack,
        run: depthwise_f32::run_avx512,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_i8_4x16_neon",
        isa: Isa::Neon,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 16,
        supports: one_group,
        pack: dense_neon::pack_neon,
        run: dense_neon::run_neon,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "dwconv_i8_4x16_neon",
        isa: Isa::Neon,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 16,
        supports: depthwise_i8::supports,
        pack: depthwise::pack,
        run: depthwise_neon::run,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_i8_5x16_neondot",
        isa: Isa::NeonDot,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 16,
        supports: one_group,
        pack: dense_neon::pack_neondot,
        run: dense_neon::run_neondot,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_i8_6x16_neoni8mm",
        isa: Isa::NeonI8mm,
        dtype: KernelType::Int8,
        method: Method::Direct,
        oc_granule: 16,
        supports: one_group,
        pack: dense_neon::pack_neoni8mm,
        run: dense_neon::run_neoni8mm,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_i8_64x64_neondot_interleave",
        isa: Isa::NeonDot,
        dtype: KernelType::Int8,
        method: Method::Sparse,
        oc_granule: 64,
        supports: one_group,
        pack: interleave::pack_neondot,
        run: interleave::run_neondot,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_i8_64x64_neoni8mm_interleave",
        isa: Isa::NeonI8mm,
        dtype: KernelType::Int8,
        method: Method::Sparse,
        oc_granule: 64,
        supports: one_group,
        pack: interleave::pack_neoni8mm,
        run: interleave::run_neoni8mm,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_f32_6x16_neon",
        isa: Isa::Neon,
        dtype: KernelType::F32,
        method: Method::Direct,
        oc_granule: 16,
        supports: one_group,
        pack: dense_f32::pack_neon,
        run: dense_f32::run_neon,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_f32_4x16_neon_winograd",
        isa: Isa::Neon,
        dtype: KernelType::F32,
        method: Method::Winograd(2),
        oc_granule: 16,
        supports: winograd_f32::supports,
        pack: winograd_f32::pack_two_neon,
        run: winograd_f32::run_two_neon,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_f32_16x16_neon_winograd",
        isa: Isa::Neon,
        dtype: KernelType::F32,
        method: Method::Winograd(4),
        oc_granule: 16,
        supports: winograd_f32::supports,
        pack: winograd_f32::pack_four_neon,
        run: winograd_f32::run_four_neon,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "conv_f32_64x64_neon_sparse",
        isa: Isa::Neon,
        dtype: KernelType::F32,
        method: Method::Sparse,
        oc_granule: 64,
        supports: one_group,
        pack: sparse_f32::pack,
        run: sparse_f32::run_neon,
    },
    #[cfg(target_arch = "aarch64")]
    ConvKernel {
        name: "dwconv_f32_4x16_neon",
        isa: Isa::Neon,
        dtype: KernelType::F32,
        method: Method::Direct,
        oc_granule: 16,
        supports: depthwise,
        pack: depthwise::pack,
        run: depthwise_f32::run_neon,
    },
];

fn any(_: &ConvGeom) -> bool {
    true
}

fn one_group(g: &ConvGeom) -> bool {
    g.group == 1
}

fn depthwise(g: &ConvGeom) -> bool {
    g.group == g.c && g.group == g.oc
}

impl ConvGeom {
    /// A product of matrices, `m` x `k` by `k` x `n`: a convolution of one row with `m` columns. Places are left to say.
    pub fn product(m: u32, k: u32, n: u32) -> ConvGeom {
        ConvGeom {
            rows: 1,
            oh: 1,
            ow: m,
            oc: n,
            c: k,
            group: 1,
            kh: 1,
            kw: 1,
            sh: 1,
            sw: 1,
            dh: 1,
            dw: 1,
            ..ConvGeom::default()
        }
    }

    /// Products per output.
    pub fn depth(&self) -> usize {
        self.kh as usize * self.kw as usize * (self.c / self.group) as usize
    }

    /// Element of x under tap (0, 0) of an output, `row` counted over all images.
    pub(crate) fn x_at(&self, row: u32, col: u32) -> usize {
        self.pixel_at(self.x_origin, [self.x_image as usize, self.x_line(), self.x_step()], row, col)
    }

    /// Elements of x from one output row to the next. Wild where there is one row only, but never used then.
    fn x_line(&self) -> usize {
        self.sh as usize * self.x_row as usize
    }

    /// Elements of x from one output to the next of its row.
    fn x_step(&self) -> usize {
        self.sw as usize * self.x_pixel as usize
    }

    /// Element of y where channel 0 of an output lies, `row` counted over all images.
    pub(crate) fn y_at(&self, row: u32, col: u32) -> usize {
        self.pixel_at(self.y_origin, [self.y_image, self.y_row, self.y_pixel].map(|s| s as usize), row, col)
    }

    pub(crate) fn r_at(&self, row: u32, col: u32) -> usize {
        self.pixel_at(self.r_origin, [self.r_image, self.r_row, self.r_pixel].map(|s| s as usize), row, col)
    }

    fn pixel_at(&self, origin: u32, [image, line, pixel]: [usize; 3], row: u32, col: u32) -> usize {
        let (n, y) = ((row / self.oh) as usize, (row % self.oh) as usize);
        origin as usize + n * image + y * line + col as usize * pixel
    }

    /// Elements of x from tap (0, 0) to tap (ky, kx) of one output.
    pub(crate) fn tap_at(&self, ky: u32, kx: u32) -> usize {
        let (y, x) = (ky as usize * self.dh as usize, kx as usize * self.dw as usize);
        y * self.x_row as usize + x * self.x_pixel as usize
    }

    /// Calls `f(nth, x, y, residual)` with the elements where pixels `range` of a tile lie, counted row by row: tap (0, 0) and
    /// channel 0.
    fn each_pixel(
        &self,
        tile: &Tile,
        range: Range<u32>,
        residual: bool,
        mut f: impl FnMut(usize, usize, usize, usize),
    ) {
        let width = tile.cols.len() as u32;
        let mut at = range.start;
        while at < range.end {
            let (row, col) = (tile.rows.start + at / width, tile.cols.start + at % width);
            let (x, y) = (self.x_at(row, col), self.y_at(row, col));
            let r = if residual { self.r_at(row, col) } else { 0 };
            let in_row = (range.end - at).min(tile.cols.end - col) as usize;
            for i in 0..in_row {
                let x = x.wrapping_add(i.wrapping_mul(self.x_step()));
                let nth = (at - range.start) as usize + i;
                f(nth, x, y + i * self.y_pixel as usize, r + i * self.r_pixel as usize);
            }
            at += in_row as u32;
        }
    }

    /// The same pixels as one row, where a tile's rows lie back to back in x, y and residual: longer rows
    /// mean full blocks of pixels. Otherwise the geometry and tile as they are.
    fn flattened(&self, tile: &Tile, residual: bool) -> (ConvGeom, Tile) {
        let back_to_back = |image: u32, line: usize, pixel: usize| {
            let one_image =
                tile.rows.is_empty() || tile.rows.start / self.oh == (tile.rows.end - 1) / self.oh;
            line == self.ow as usize * pixel && (one_image || image as usize == self.oh as usize * line)
        };
        let joined = tile.rows.len() > 1
            && tile.cols == (0..self.ow)
            && back_to_back(self.x_image, self.x_line(), self.x_step())
            && back_to_back(self.y_image, self.y_row as usize, self.y_pixel as usize)
            && (!residual || back_to_back(self.r_image, self.r_row as usize, self.r_pixel as usize));
        if !joined {
            return (*self, tile.clone());
        }
        let ow = tile.rows.len() as u32 * self.ow;
        let flat = ConvGeom {
            rows: 1,
            oh: 1,
            ow,
            x_origin: self.x_at(tile.rows.start, 0) as u32,
            y_origin: self.y_at(tile.rows.start, 0) as u32,
            r_origin: if residual { self.r_at(tile.rows.start, 0) as u32 } else { 0 },
            ..*self
        };
        (flat, Tile { rows: 0..1, cols: 0..ow, ocs: tile.ocs.clone() })
    }
}

impl QEpilogue {
    /// The one definition of requantisation; vector code repeats it operation by operation.
    fn requant(&self, acc: i32, mult: f32, residual: Option<u8>) -> u8 {
        let addend = residual.map(|r| (r as i32 - self.residual_zero) as f32 * self.residual_mult);
        let f = acc as f32 * mult;
        let early = addend.filter(|_| self.late.is_none());
        let (lo, hi) = self.bounds();
        let mut q = round(early.map_or(f, |r| f + r), lo, hi, self.zero);
        if let Some(table) = &self.table {
            q = table[q as usize];
        }
        if let (Some(late), Some(r)) = (self.late, addend) {
            let f = (q as i32 - late.zero) as f32 * late.mult;
            let Requant { zero, lo, hi } = late.out;
            q = round(f + r, (lo - zero) as f32, (hi - zero) as f32, zero);
        }
        q
    }

    /// Bounds of a result before its zero point is added.
    fn bounds(&self) -> (f32, f32) {
        ((self.lo - self.zero) as f32, (self.hi - self.zero) as f32)
    }

    /// Clamp of an f32 result; NaN stays NaN.
    fn clip(&self, f: f32) -> f32 {
        let f = if f < self.min { self.min } else { f };
        if f > self.max { self.max } else { f }
    }
}

fn round(f: f32, lo: f32, hi: f32, zero: i32) -> u8 {
    (f.max(lo).min(hi).round_ties_even() as i32 + zero) as u8
}

/// Cuts `range` into the fewest blocks of at most `most`, as even as can be.
fn blocks(range: Range<u32>, most: u32) -> impl Iterator<Item = Range<u32>> {
    let len = range.end.saturating_sub(range.start);
    let count = len.div_ceil(most).max(1);
    let (size, longer) = (len / count, len % count);
    (0..if len == 0 { 0 } else { count }).map(move |i| {
        let start = range.start + i * size + i.min(longer);
        start..start + size + u32::from(i < longer)
    })
}
