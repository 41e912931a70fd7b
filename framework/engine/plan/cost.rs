//! What a convolution costs by each kernel row, before anything is run.
//!
//! Rates are products per cycle of the innermost loop, as measured on Zen 4 (they rank kernels; they are not a
//! promise of time). Sparse rows pay per packed slot, dense rows per padded weight, both once per pixel.

use crate::kernels::{ConvGeom, ConvKernel, KernelType, Method};
use crate::target::Isa;

/// Nominal clock that turns cycles into the estimates shown to people.
const CYCLES_PER_NS: f64 = 3.5;
/// Bytes per nanosecond of steps that only move data.
const MAP_BYTES_PER_NS: f64 = 12.0;
/// Bytes of weights that one thread reads in a cycle.
const BYTES_PER_CYCLE: f64 = 5.0;
/// The same, where they are in a cache.
const WEIGHT_BYTES_PER_CYCLE: f64 = 16.0;
/// Calling a step, and meeting the other threads.
const STEP_NS: f64 = 150.0;
/// Pixels that share one pass over packed sparse weights.
const PIXEL_BLOCK: f64 = 14.0;

/// Estimated nanoseconds on one thread of a kernel whose packed weights have so many slots.
pub fn conv_ns(kernel: &ConvKernel, geom: &ConvGeom, slots: u64) -> f64 {
    let pixels = geom.rows as f64 * geom.ow as f64;
    let channels = (geom.oc as f64 / 16.0).ceil();
    let epilogue = pixels * channels * epilogue_cycles(kernel.isa);
    let products = pixels * slots as f64;
    let sparse = kernel.method == Method::Sparse;
    let work = if let Method::Winograd(out) = kernel.method {
        winograd_cycles(geom, out, rate(kernel))
    } else if sparse && kernel.dtype == KernelType::F32 {
        sparse_f32_cycles(geom, slots, kernel.isa)
    } else if sparse && kernel.isa < Isa::Avx512Vbmi {
        interleave_cycles(geom, slots, kernel.isa)
    } else if kernel.isa == Isa::Amx {
        amx_cycles(geom, slots, sparse)
    } else if sparse {
        // A step of 64 slots feeds a block of pixels: 1.45 cycles each, but never faster than its 128 bytes of
        // indices and weights arrive.
        let block = pixels.clamp(1.0, PIXEL_BLOCK);
        let steps = slots as f64 / 64.0;
        (pixels / block).ceil() * steps * (1.45 * block).max(5.0)
    } else {
        products / rate(kernel) + pixels * geom.depth() as f64 * gather_cycles(kernel.dtype)
    };
    // Weights arrive from memory at this rate where few pixels share them.
    let arrival = match kernel.dtype {
        KernelType::F32 => (slots * if sparse { 6 } else { 4 }) as f64 / BYTES_PER_CYCLE,
        KernelType::Bf16 => (slots * 2) as f64 / BYTES_PER_CYCLE,
        KernelType::Int8 => 0.0,
    };
    STEP_NS + (work.max(arrival) + epilogue) / CYCLES_PER_NS
}

/// Measured on Granite Rapids, and with AVX2 on Zen 3. Whole vectors of 16 pixels are multiplied; in addition every element of every window is
/// turned into the tile once, and every result back.
fn sparse_f32_cycles(geom: &ConvGeom, slots: u64, isa: Isa) -> f64 {
    let vectors = (geom.rows as f64 * geom.ow as f64 / 16.0).ceil();
    let (of_slot, of_element) = match isa {
        // Guessed, as all of NEON's numbers.
        Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => (5.5, 20.0),
        isa if isa >= Isa::Avx512Vnni => (1.0, 5.0),
        _ => (2.6, 12.0),
    };
    let elements = geom.depth() as f64 + geom.oc as f64;
    vectors * (slots as f64 * of_slot + elements * of_element)
}

/// Of each tile of `out` x `out` outputs so many elements are multiplied, in short products, and transformed on both sides; all
/// weights arrive for each block of tiles. Measured on Zen 3.
fn winograd_cycles(geom: &ConvGeom, out: usize, rate: f64) -> f64 {
    let elements = ((out + 2) * (out + 2)) as f64;
    let along = |size: u32| (size as f64 / out as f64).ceil();
    let tiles = geom.rows as f64 / geom.oh as f64 * along(geom.oh) * along(geom.ow);
    let (c, oc) = (geom.c as f64, geom.oc.next_multiple_of(16) as f64);
    let of_element = if rate > 20.0 { 0.25 } else { 0.5 };
    let blocks = (tiles / (1e5 / elements / c).min(48.0)).ceil();
    let arrival = blocks * elements * 4.0 * c * oc / WEIGHT_BYTES_PER_CYCLE;
    tiles * elements * (c * oc / rate * 1.1 + of_element * (c + oc)) + arrival
}

/// Measured on Granite Rapids: products of two tiles with their loads, what it takes to begin and end 256 sums, and weights
/// that arrive from afar or are expanded at hand. `slots` are those of dense panels.
fn amx_cycles(geom: &ConvGeom, slots: u64, expand: bool) -> f64 {
    let tiles = (geom.rows as f64 * geom.ow as f64 / 16.0).ceil();
    let of_slot = if expand { 0.06 } else { 0.12 };
    tiles * (slots as f64 / 1024.0 * 19.0 + (geom.oc as f64 / 16.0).ceil() * 30.0) + slots as f64 * of_slot
}

/// Interleaved int8 steps. Whole blocks of pixels are multiplied; in addition every element of every window is turned into
/// the tile once, and every result back.
fn interleave_cycles(geom: &ConvGeom, slots: u64, isa: Isa) -> f64 {
    let (pixels, of_slot, of_element) = match isa {
        Isa::Avx512Vnni => (64.0, 2.2, 5.0),
        Isa::AvxVnni => (32.0, 1.65, 5.0),
        // Guessed, as all of NEON's numbers: no such processor was at hand. A step of 4 weights is 48 vector instructions, of
        // which two may begin in a cycle.
        Isa::NeonDot | Isa::NeonI8mm => (64.0, 6.5, 12.0),
        _ => (32.0, 2.4, 7.0),
    };
    let blocks = (geom.rows as f64 * geom.ow as f64 / pixels).ceil();
    blocks * (slots as f64 * of_slot + (geom.depth() as f64 + geom.oc as f64) * of_element)
}

fn rate(kernel: &ConvKernel) -> f64 {
    match (kernel.dtype, kernel.isa) {
        (_, Isa::Portable) if kernel.oc_granule > 1 => 6.0,
        (_, Isa::Portable) => 1.0,
        (KernelType::Int8, Isa::Avx2) => 13.0,
        (KernelType::Int8, Isa::AvxVnni) => 40.0,
        // Guessed: 4, 16 and 32 products an instruction, of which two may begin in a cycle, of the first rather one.
        (KernelType::Int8, Isa::Neon) => 6.0,
        (KernelType::Int8, Isa::NeonDot) => 28.0,
        (KernelType::Int8, Isa::NeonI8mm) => 52.0,
        (KernelType::Int8, _) => 62.0,
        (KernelType::F32, Isa::Avx2 | Isa::AvxVnni) => 15.5,
        (KernelType::F32, Isa::Neon | Isa::NeonDot | Isa::NeonI8mm) => 7.0,
        (KernelType::Bf16, _) => 52.0,
        // On Granite Rapids: two multiplications of 16 floats a cycle, nearly.
        (KernelType::F32, _) => 26.0,
    }
}

/// Of an element under an output, before it is multiplied.
fn gather_cycles(dtype: KernelType) -> f64 {
    if dtype == KernelType::Bf16 { 0.1 } else { 0.0 }
}

fn epilogue_cycles(isa: Isa) -> f64 {
    match isa {
        Isa::Portable => 60.0,
        Isa::Avx2 | Isa::AvxVnni => 8.0,
        Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => 14.0,
        _ => 3.0,
    }
}

/// Estimated nanoseconds of a step that moves `bytes`.
pub fn map_ns(bytes: usize) -> f64 {
    STEP_NS + bytes as f64 / MAP_BYTES_PER_NS
}

/// Slots that packing for a dense kernel is expected to give: whole registers of channels.
pub fn dense_slots(geom: &ConvGeom) -> u64 {
    geom.oc.next_multiple_of(16) as u64 * geom.depth() as u64
}

/// Slots that packing for a sparse kernel is expected to give: most of them hold a weight.
pub fn sparse_slots(geom: &ConvGeom, nonzeros: u64) -> u64 {
    const SLOT_EFFICIENCY: f64 = 0.8;
    ((nonzeros as f64 / SLOT_EFFICIENCY) as u64).min(dense_slots(geom))
}
