//! GFLOP/s of dense convolutions and linear layers, forward and both gradients.
//!
//! `cargo run --release -p lacuna-kernels --example conv_bench -- [threads] [name part]`

use lacuna_kernels::gemm::{Matrix, product};
use lacuna_kernels::shape::Window;
use lacuna_kernels::{ConvShape, conv};
use std::time::Instant;

/// (name, x [n, c, h, w], w [o, c, k], stride)
type Layer = (&'static str, [usize; 4], [usize; 3], usize);

const LAYERS: &[Layer] = &[
    ("resnet18 stem", [32, 3, 32, 32], [64, 3, 3], 1),
    ("resnet18 64", [32, 64, 32, 32], [64, 64, 3], 1),
    ("resnet18 64-128 s2", [32, 64, 32, 32], [128, 64, 3], 2),
    ("resnet18 64-128 1x1 s2", [32, 64, 32, 32], [128, 64, 1], 2),
    ("resnet18 128", [32, 128, 16, 16], [128, 128, 3], 1),
    ("resnet18 256", [32, 256, 8, 8], [256, 256, 3], 1),
    ("resnet18 256-512 s2", [32, 256, 8, 8], [512, 256, 3], 2),
    ("resnet18 512", [32, 512, 4, 4], [512, 512, 3], 1),
    ("resnet20 stem s2", [64, 1, 28, 28], [16, 1, 3], 2),
    ("resnet20 16", [64, 16, 14, 14], [16, 16, 3], 1),
    ("resnet20 16-32 s2", [64, 16, 14, 14], [32, 16, 3], 2),
    ("resnet20 32", [64, 32, 7, 7], [32, 32, 3], 1),
    ("resnet20 64", [64, 64, 4, 4], [64, 64, 3], 1),
    ("mobilenet stem s2", [32, 3, 96, 96], [32, 3, 3], 2),
    ("mobilenet 32-64", [32, 32, 48, 48], [64, 32, 1], 1),
    ("mobilenet 64-128", [32, 64, 24, 24], [128, 64, 1], 1),
    ("mobilenet 128-128", [32, 128, 24, 24], [128, 128, 1], 1),
    ("mobilenet 256-256", [32, 256, 12, 12], [256, 256, 1], 1),
    ("mobilenet 512-512", [32, 512, 6, 6], [512, 512, 1], 1),
    ("mobilenet 1024-1024", [32, 1024, 3, 3], [1024, 1024, 1], 1),
    ("lite0 stem s2", [8, 3, 224, 224], [32, 3, 3], 2),
    ("lite0 32-16", [8, 32, 112, 112], [16, 32, 1], 1),
    ("lite0 16-96", [8, 16, 112, 112], [96, 16, 1], 1),
    ("lite0 96-24", [8, 96, 56, 56], [24, 96, 1], 1),
    ("lite0 24-144", [8, 24, 56, 56], [144, 24, 1], 1),
    ("lite0 40-240", [8, 40, 28, 28], [240, 40, 1], 1),
    ("lite0 480-80", [8, 480, 14, 14], [80, 480, 1], 1),
    ("lite0 1152-192", [8, 1152, 7, 7], [192, 1152, 1], 1),
    ("lite0 320-1280", [8, 320, 7, 7], [1280, 320, 1], 1),
    ("bert 256-256", [4096, 256, 1, 1], [256, 256, 1], 1),
    ("bert 256-1024", [4096, 256, 1, 1], [1024, 256, 1], 1),
    ("bert 1024-256", [4096, 1024, 1, 1], [256, 1024, 1], 1),
    ("minilm 384-1536", [2048, 384, 1, 1], [1536, 384, 1], 1),
    ("minilm 1536-384", [2048, 1536, 1, 1], [384, 1536, 1], 1),
    ("one image 512", [1, 512, 4, 4], [512, 512, 3], 1),
    ("one row 1536-384", [1, 1536, 1, 1], [384, 1536, 1], 1),
];

fn best(mut f: impl FnMut()) -> f64 {
    f();
    let begin = Instant::now();
    let mut best = f64::MAX;
    let mut runs = 0;
    while runs < 3 || begin.elapsed().as_secs_f64() < 0.12 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.first().and_then(|a| a.parse().ok()).unwrap_or(2);
    let part = args.get(1).cloned().unwrap_or_default();
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first pool");
    println!(
        "{:24} {:>8} {:>8} {:>8} {:>8}  GFLOP/s on {threads} threads",
        "layer", "GFLOP", "y", "dx", "dw"
    );
    for &(name, x, [o, c, k], stride) in LAYERS.iter().filter(|layer| layer.0.contains(&part)) {
        let s = ConvShape::new(x, [o, c, k, k], Window::new(stride, k / 2));
        let fill = |len: usize| (0..len).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect::<Vec<f32>>();
        let (x, w, dy) = (fill(s.x_len()), fill(s.w_len()), fill(s.y_len()));
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        let times = [
            best(|| conv::forward(&x, &w, None, &s, &mut y)),
            best(|| conv::input_gradient(&w, &dy, &s, &mut dx)),
            best(|| conv::weight_gradient(&x, &dy, &s, &mut dw)),
        ];
        let [y, dx, dw] = times.map(|t| s.flops() / t / 1e9);
        println!("{name:24} {:8.3} {y:8.1} {dx:8.1} {dw:8.1}", s.flops() / 1e9);
    }

    if part.is_empty() || part == "product" {
        // One head of attention: 128 places, heads of 32 or 64 inside rows of three times the width.
        for (width, head) in [(256, 64), (384, 32)] {
            let (places, ld) = (128, 3 * width);
            let qkv = vec![0.5f32; places * ld];
            let slice = |data| Matrix { data, rows: places, cols: head, row_stride: ld, col_stride: 1 };
            let (q, k, v) = (slice(&qkv), slice(&qkv[width..]), slice(&qkv[2 * width..]));
            let scores = vec![0.5f32; places * places];
            let p = Matrix::new(&scores, places, places);
            let (mut square, mut tall) = (scores.clone(), vec![0f32; places * ld]);
            let times = [
                best(|| product(q, k.transposed(), &mut square, places, false)),
                best(|| product(p, v, &mut tall, ld, false)),
                best(|| product(p.transposed(), v, &mut tall, ld, false)),
            ];
            let flops = (2 * places * places * head) as f64;
            let [scores, values, turned] = times.map(|t| flops / t / 1e9);
            println!("head of {head}: q kT {scores:.1}, p v {values:.1}, pT v {turned:.1}");
        }
    }
}
