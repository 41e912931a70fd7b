use super::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Results in f64, each with the sum of absolute products that its rounding is measured by.
struct Naive {
    y: Vec<[f64; 2]>,
    dx: Vec<[f64; 2]>,
    dw: Vec<[f64; 2]>,
}

fn naive(x: &[f32], w: &[f32], bias: Option<&[f32]>, dy: &[f32], s: &ConvShape) -> Naive {
    let zeros = |len| vec![[0f64; 2]; len];
    let (mut y, mut dx, mut dw) = (zeros(s.y_len()), zeros(s.x_len()), zeros(s.w_len()));
    if let Some(bias) = bias {
        for (y, &b) in y.iter_mut().zip(bias.iter().cycle()) {
            *y = [b as f64, b.abs() as f64];
        }
    }
    let add = |to: &mut [f64; 2], a: f32, b: f32| {
        to[0] += a as f64 * b as f64;
        to[1] += (a as f64 * b as f64).abs();
    };
    for i in 0..s.y_len() * s.kh * s.kw {
        let (tap, at) = (i % (s.kh * s.kw), i / (s.kh * s.kw));
        let (o, ox, oy, n) = (at % s.o, at / s.o % s.ow, at / s.o / s.ow % s.oh, at / s.o / s.ow / s.oh);
        let iy = (oy * s.stride[0] + tap / s.kw * s.dilation[0]).wrapping_sub(s.pad_begin[0]);
        let ix = (ox * s.stride[1] + tap % s.kw * s.dilation[1]).wrapping_sub(s.pad_begin[1]);
        if iy >= s.h || ix >= s.w {
            continue;
        }
        for c in 0..s.c {
            let (from, weight) = (((n * s.h + iy) * s.w + ix) * s.c + c, (o * s.c + c) * s.kh * s.kw + tap);
            add(&mut y[at], x[from], w[weight]);
            add(&mut dx[from], dy[at], w[weight]);
            add(&mut dw[weight], dy[at], x[from]);
        }
    }
    Naive { y, dx, dw }
}

fn close(what: &str, got: &[f32], want: &[[f64; 2]], s: &ConvShape) {
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let allowed = 1e-4 * want[1];
        assert!((got as f64 - want[0]).abs() <= allowed, "{what}[{i}] is {got}, not {}, for {s:?}", want[0]);
    }
}

struct Case {
    s: ConvShape,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
}

fn case(s: ConvShape, density: f64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(s.w_len() as u64 ^ (density * 100.0) as u64);
    let mut draw = |len: usize| (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
    let (x, mut w, bias, dy) = (draw(s.x_len()), draw(s.w_len()), draw(s.o), draw(s.y_len()));
    let row = s.c * s.kh * s.kw;
    for (i, v) in w.iter_mut().enumerate() {
        // The first row is full and the second empty, whatever the density of the others.
        let open = match i / row {
            0 if density > 0.0 => true,
            1 => false,
            _ => rng.random_bool(density),
        };
        *v = if open { *v } else { 0.0 };
    }
    if density > 0.0 {
        // An open weight may be a zero, of the other sign.
        w[row - 1] = -0.0;
    }
    Case { s, x, w, bias, dy }
}

fn results(isa: Isa, Case { s, x, w, bias, dy }: &Case) -> [Vec<f32>; 3] {
    let pattern = Pattern::with(isa, w, s);
    let [mut y, mut dx, mut dw] = [s.y_len(), s.x_len(), s.w_len()].map(|len| vec![f32::NAN; len]);
    forward(isa, x, &pattern, Some(bias), s, &mut y);
    input_gradient(isa, dy, &pattern, s, &mut dx);
    weight_gradient(isa, x, dy, &pattern, s, &mut dw);
    [y, dx, dw]
}

fn shapes() -> Vec<ConvShape> {
    let conv = |n, h, w, c, o, k: [usize; 2], stride, pad| {
        ConvShape::new([n, c, h, w], [o, c, k[0], k[1]], Window::new(stride, pad))
    };
    let mut shapes = vec![
        conv(16, 8, 8, 16, 32, [3, 3], 1, 1),
        conv(18, 7, 5, 5, 19, [3, 3], 1, 1),
        conv(3, 9, 6, 17, 6, [3, 3], 2, 1),
        conv(5, 8, 8, 6, 7, [3, 3], 2, 1),
        conv(5, 8, 9, 20, 7, [1, 1], 2, 0),
        conv(2, 7, 11, 3, 4, [5, 5], 3, 2),
        conv(2, 7, 11, 3, 4, [2, 3], 2, 0),
        conv(3, 5, 5, 18, 33, [1, 1], 1, 0),
        conv(17, 1, 1, 40, 21, [1, 1], 1, 0),
        conv(200, 1, 1, 70, 40, [1, 1], 1, 0),
        conv(4, 9, 4, 130, 3, [3, 3], 1, 1),
        // More channels than are copied at once.
        conv(150, 1, 1, 300, 280, [1, 1], 1, 0),
        conv(3, 3, 3, 300, 280, [1, 1], 2, 0),
        conv(1, 6, 6, 3, 2, [1, 1], 1, 1),
    ];
    let window = Window { dilation: [2, 3], pad_begin: [0, 3], pad_end: [3, 1], ..Window::new(1, 0) };
    shapes.push(ConvShape::new([2, 5, 9, 10], [6, 5, 3, 3], window));
    let window = Window { stride: [2, 3], dilation: [3, 2], ..Window::new(1, 2) };
    shapes.push(ConvShape::new([2, 5, 12, 13], [6, 5, 3, 3], window));
    shapes
}

#[test]
fn products_and_gradients_are_those_of_the_masked_weight() {
    for s in shapes() {
        for density in [0.0, 0.02, 0.1, 0.3, 1.0] {
            let case = case(s, density);
            let want = naive(&case.x, &case.w, Some(&case.bias), &case.dy, &s);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                let [y, dx, dw] = results(isa, &case);
                close("y", &y, &want.y, &s);
                close("dx", &dx, &want.dx, &s);
                let masked = |v: &f32| v.to_bits() == 0;
                for ((&got, want), w) in dw.iter().zip(&want.dw).zip(&case.w) {
                    if masked(w) {
                        assert!(masked(&got), "the gradient of a masked weight is {got}");
                    } else {
                        close("dw", &[got], &[*want], &s);
                    }
                }
            }
        }
    }
}

#[test]
fn a_pattern_counts_the_weights_that_are_not_plus_zero() {
    let s = linear_shape(7, 3, 2);
    let pattern = Pattern::of(&[0.0, -0.0, 1.0, 0.0, f32::NAN, 0.0], &s);
    assert_eq!(pattern.open(), 3);
    assert_eq!(pattern.density(), 0.5);
}

#[test]
fn one_and_two_threads_give_the_same_bytes() {
    let on = |threads: usize, case: &Case| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        pool.install(|| results(Isa::best(), case).map(bits))
    };
    for s in shapes() {
        let case = case(s, 0.1);
        assert_eq!(on(1, &case), on(2, &case), "{s:?}");
    }
}

#[test]
fn linear_layers_are_pointwise_convolutions() {
    let case = case(linear_shape(100, 24, 18), 0.2);
    let pattern = Pattern::of(&case.w, &case.s);
    let mut y = vec![f32::NAN; 100 * 18];
    linear_forward(&case.x, &pattern, None, 100, &mut y);
    let (mut dx, mut dw) = (vec![f32::NAN; 100 * 24], vec![f32::NAN; 18 * 24]);
    linear_input_gradient(&case.dy, &pattern, 100, &mut dx);
    linear_weight_gradient(&case.x, &case.dy, &pattern, 100, &mut dw);
    let want = naive(&case.x, &case.w, None, &case.dy, &case.s);
    close("y", &y, &want.y, &case.s);
    close("dx", &dx, &want.dx, &case.s);
    for (got, (want, w)) in dw.iter().zip(want.dw.iter().zip(&case.w)) {
        close("dw", &[*got], &[if w.to_bits() == 0 { [0.0; 2] } else { *want }], &case.s);
    }
}

#[test]
fn sparse_kernels_pay_for_few_open_weights_and_many_items() {
    let conv = |n, groups, stride, k| {
        ConvShape::new([n, 256, 8, 8], [256, 256 / groups, k, k], Window::new(stride, k / 2).grouped(groups))
    };
    assert!(pays(&conv(32, 1, 1, 3), 0.1) && pays(&linear_shape(4096, 256, 1024), 0.1));
    assert!(!pays(&conv(32, 1, 1, 3), 0.9) && !pays(&linear_shape(4096, 256, 1024), 0.9));
    // Fifteen of sixteen lanes would be empty.
    assert!(!pays(&conv(1, 1, 1, 3), 0.1));
    assert!(!pays(&conv(32, 2, 1, 3), 0.1));
}
