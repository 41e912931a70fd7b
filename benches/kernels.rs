//! Times every convolution kernel on layers of ResNet-50 and BERT, one thread: `cargo bench -p lacuna-engine`.
//!
//! Prints CSV: kernel, layer, sparsity, best time in ns, dense-equivalent GMAC/s, part of the slots that hold a weight.
//! An argument keeps only the kernels whose name contains it, a second one only such layers. Portable rows run at no size worth waiting for; they are left out
//! unless named.

use lacuna_engine::kernels::{
    CONV_KERNELS, ConvGeom, ConvKernel, ConvWeights, KernelType, Method, Operands, QEpilogue, READ_AFTER,
    READ_BEFORE, Tile,
};
use lacuna_engine::{AlignedBytes, Isa};
use std::time::{Duration, Instant};

/// Name, output height and width, channels in and out, kernel.
const LAYERS: &[(&str, u32, u32, u32, u32, u32)] = &[
    ("r50_56_1x1_64_64", 56, 56, 64, 64, 1),
    ("r50_56_1x1_256_64", 56, 56, 256, 64, 1),
    ("r50_28_1x1_512_128", 28, 28, 512, 128, 1),
    ("r50_14_1x1_1024_256", 14, 14, 1024, 256, 1),
    ("r50_7_1x1_2048_512", 7, 7, 2048, 512, 1),
    ("r50_56_3x3_64_64", 56, 56, 64, 64, 3),
    ("r50_14_3x3_256_256", 14, 14, 256, 256, 3),
    ("r50_7_3x3_512_512", 7, 7, 512, 512, 3),
    ("bert_128_768_768", 1, 128, 768, 768, 1),
    ("bert_128_768_3072", 1, 128, 768, 3072, 1),
    ("r20_28_3x3_16_16", 28, 28, 16, 16, 3),
    ("r20_7_3x3_64_64", 7, 7, 64, 64, 3),
];
const BUDGET: Duration = Duration::from_millis(40);

fn main() {
    let mut words = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    let (wanted, layer) = (words.next(), words.next().unwrap_or_default());
    println!("kernel,layer,sparsity,ns,gmacs,slot_use");
    for kernel in CONV_KERNELS.iter().filter(|k| k.is_available() && !k.name.starts_with("dwconv")) {
        match &wanted {
            Some(part) if !kernel.name.contains(part.as_str()) => continue,
            None if kernel.isa == Isa::Portable => continue,
            _ => (),
        }
        for &(name, h, w, c, oc, k) in LAYERS.iter().filter(|l| l.0.contains(&layer)) {
            let sparsities: &[f64] =
                if kernel.method == Method::Sparse { &[0.0, 0.5, 0.8, 0.9, 0.95] } else { &[0.0] };
            for &sparsity in sparsities {
                time(kernel, name, [h, w, c, oc, k], sparsity);
            }
        }
    }
}

fn geometry([h, w, c, oc, k]: [u32; 5]) -> ConvGeom {
    let (x_pixel, y_pixel) = (c, oc);
    let x_row = (w + k - 1) * x_pixel;
    ConvGeom {
        rows: h,
        oh: h,
        ow: w,
        oc,
        c,
        group: 1,
        kh: k,
        kw: k,
        sh: 1,
        sw: 1,
        dh: 1,
        dw: 1,
        x_origin: 0,
        x_image: (h + k - 1) * x_row,
        x_row,
        x_pixel,
        y_origin: 0,
        y_image: h * w * y_pixel,
        y_row: w * y_pixel,
        y_pixel,
        r_origin: 0,
        r_image: 0,
        r_row: 0,
        r_pixel: 0,
    }
}

fn time(kernel: &ConvKernel, layer: &str, dims: [u32; 5], sparsity: f64) {
    let g = geometry(dims);
    if !(kernel.supports)(&g) {
        return;
    }
    let size = if kernel.dtype == KernelType::Int8 { 1 } else { 4 };
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 33
    };
    let keep = ((1.0 - sparsity) * (1u64 << 31) as f64) as u64;
    let w: Vec<i8> = (0..g.oc as usize * g.depth())
        .map(|_| if random() < keep { (random() % 127) as i8 + 1 } else { 0 })
        .collect();
    let floats: Vec<f32> = w.iter().map(|&v| v as f32).collect();
    let (bias, mult, zeros) = (vec![0; g.oc as usize], vec![1e-4; g.oc as usize], vec![0.0; g.oc as usize]);
    let weights = match kernel.dtype {
        KernelType::Int8 => ConvWeights::Int8 { w: &w, bias: &bias, mult: &mult, x_zero: 0 },
        KernelType::F32 | KernelType::Bf16 => ConvWeights::F32 { w: &floats, bias: &zeros },
    };
    let packed = (kernel.pack)(&weights, &g);
    let mut x = AlignedBytes::zeroed(READ_BEFORE + g.x_image as usize * size + READ_AFTER);
    match kernel.dtype {
        KernelType::Int8 => x.iter_mut().for_each(|b| *b = (random() % 64) as u8),
        // Bytes at random would be denormal numbers now and then, which take a hundred times as long.
        KernelType::F32 | KernelType::Bf16 => {
            let values = x.chunks_exact_mut(4);
            values.for_each(|v| v.copy_from_slice(&((random() % 64) as f32).to_le_bytes()));
        }
    }
    let mut y = AlignedBytes::zeroed(g.y_image as usize * size);
    let e = QEpilogue {
        x_zero: 0,
        residual_mult: 0.0,
        residual_zero: 0,
        zero: 0,
        lo: 0,
        hi: 255,
        has_residual: false,
        out_f32: false,
        table: None,
        late: None,
        min: 0.0,
        max: f32::INFINITY,
    };
    let tile = Tile { rows: 0..g.rows, cols: 0..g.ow, ocs: 0..g.oc };
    let (x, y) = (x.as_ptr().wrapping_add(READ_BEFORE), y.as_mut_ptr());
    let operands = Operands { geom: g, epilogue: e, packed: &packed.bytes, x, r: x, y, tile };
    let run = || {
        let start = Instant::now();
        // SAFETY: the processor has the row's instructions; x and y hold the geometry and the slack around x.
        unsafe { (kernel.run)(&operands) };
        start.elapsed()
    };
    run();
    let begin = Instant::now();
    let mut best = run();
    while begin.elapsed() < BUDGET {
        best = best.min(run());
    }
    let macs = g.rows as f64 * g.ow as f64 * g.oc as f64 * g.depth() as f64;
    let ns = best.as_nanos() as f64;
    let used = packed.nonzeros as f64 / packed.slots.max(1) as f64;
    println!("{},{layer},{sparsity},{ns:.0},{:.1},{used:.3}", kernel.name, macs / ns);
}
