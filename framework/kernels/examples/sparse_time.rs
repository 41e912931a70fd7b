//! Times the sparse kernels on training layers against 118 GMAC/s, what two cores of a Zen 4 do densely at best.
use lacuna_kernels::{ConvShape, shape::Window, sparse::*};
use std::time::Instant;
unsafe extern "C" {
    fn clock_gettime(id: i32, to: *mut [i64; 2]) -> i32;
}
fn cpu() -> f64 {
    let mut t = [0i64; 2];
    unsafe {
        clock_gettime(2, &mut t);
    }
    t[0] as f64 + t[1] as f64 * 1e-9
}

fn best(mut f: impl FnMut()) -> f64 {
    f();
    let mut best = f64::MAX;
    let begin = Instant::now();
    let mut runs = 0;
    while runs < 3 || begin.elapsed().as_secs_f64() < 0.15 {
        let t = cpu();
        f();
        best = best.min(cpu() - t);
        runs += 1;
    }
    best
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let densities: Vec<f64> =
        args.first().map_or(vec![0.1], |a| a.split(',').map(|d| d.parse().unwrap()).collect());
    let only = args.get(1).cloned().unwrap_or_default();
    let conv =
        |n, c, h, o, k, stride, pad| ConvShape::new([n, c, h, h], [o, c, k, k], Window::new(stride, pad));
    let layers = [
        ("conv 64@32", conv(32, 64, 32, 64, 3, 1, 1)),
        ("conv 128@16", conv(32, 128, 16, 128, 3, 1, 1)),
        ("conv 256@8", conv(32, 256, 8, 256, 3, 1, 1)),
        ("conv 512@4", conv(32, 512, 4, 512, 3, 1, 1)),
        ("conv 64-128/2", conv(32, 64, 32, 128, 3, 2, 1)),
        ("conv 128-256/2", conv(32, 128, 16, 256, 3, 2, 1)),
        ("conv 256-512/2", conv(32, 256, 8, 512, 3, 2, 1)),
        ("short 64-128", conv(32, 64, 32, 128, 1, 2, 0)),
        ("short 256-512", conv(32, 256, 8, 512, 1, 2, 0)),
        ("lin 256-768", linear_shape(4096, 256, 768)),
        ("lin 256-256", linear_shape(4096, 256, 256)),
        ("lin 256-1024", linear_shape(4096, 256, 1024)),
        ("lin 1024-256", linear_shape(4096, 1024, 256)),
    ];
    println!("layer            open   dense ms | of ms | fwd ms  x   | dx ms   x   | dw ms   x   | all x");
    for (name, s) in layers.iter().filter(|l| l.0.contains(&only)) {
        for &density in &densities {
            let mut seed = 1u32;
            let mut next = || {
                seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                (seed >> 8) as f32 / (1 << 24) as f32
            };
            let x: Vec<f32> = (0..s.x_len()).map(|_| next() - 0.5).collect();
            let dy: Vec<f32> = (0..s.y_len()).map(|_| next() - 0.5).collect();
            let w: Vec<f32> =
                (0..s.w_len()).map(|_| if (next() as f64) < density { next() - 0.5 } else { 0.0 }).collect();
            let (mut y, mut dx, mut dw) = (vec![0.0; s.y_len()], vec![0.0; s.x_len()], vec![0.0; s.w_len()]);
            let pass = args.get(2).cloned().unwrap_or("ofbw".into());
            let best = |c: char, f: &mut dyn FnMut()| if pass.contains(c) { best(f) } else { f64::NAN };
            let of = best('o', &mut || drop(Pattern::of(&w, s)));
            let pattern = Pattern::of(&w, s);
            let fwd = best('f', &mut || conv_forward(&x, &pattern, None, s, &mut y));
            let back = best('b', &mut || conv_input_gradient(&dy, &pattern, s, &mut dx));
            let weight = best('w', &mut || conv_weight_gradient(&x, &dy, &pattern, s, &mut dw));
            let dense = s.flops() / 2.0 / 59e9;
            println!(
                "{name:15} {density:5.2} {:9.3} | {:5.2} | {:6.3} {:4.1} | {:6.3} {:4.1} | {:6.3} {:4.1} | {:4.1}",
                dense * 1e3,
                of * 1e3,
                fwd * 1e3,
                dense / fwd,
                back * 1e3,
                dense / back,
                weight * 1e3,
                dense / weight,
                3.0 * dense / (of + fwd + back + weight)
            );
        }
    }
}
