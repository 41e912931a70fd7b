//! Against sums in f64 on every instruction set, and the same bytes on one thread and on two.

use super::*;
use crate::shape::Window;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(len: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

/// Calls `f` with (input, weight, output) indices of every product of the convolution.
fn each_product(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    for n in 0..s.n {
        for oy in 0..s.oh {
            for ox in 0..s.ow {
                for ky in 0..s.kh {
                    for kx in 0..s.kw {
                        let y = (oy * s.stride[0] + ky * s.dilation[0]).wrapping_sub(s.pad_begin[0]);
                        let x = (ox * s.stride[1] + kx * s.dilation[1]).wrapping_sub(s.pad_begin[1]);
                        if y >= s.h || x >= s.w {
                            continue;
                        }
                        for c in 0..s.c {
                            let input = ((n * s.h + y) * s.w + x) * s.c + c;
                            f(input, (c * s.kh + ky) * s.kw + kx, ((n * s.oh + oy) * s.ow + ox) * s.c + c);
                        }
                    }
                }
            }
        }
    }
}

/// Sums of products, and of their absolute values.
struct Sums(Vec<f64>, Vec<f64>);

impl Sums {
    fn new(len: usize) -> Sums {
        Sums(vec![0.0; len], vec![0.0; len])
    }

    fn add(&mut self, at: usize, a: f32, b: f32) {
        let product = f64::from(a) * f64::from(b);
        self.0[at] += product;
        self.1[at] += product.abs();
    }

    fn assert_near(&self, found: &[f32], what: &str, s: &ConvShape) {
        assert_eq!(found.len(), self.0.len());
        for (i, found) in found.iter().enumerate() {
            let error = (f64::from(*found) - self.0[i]).abs();
            assert!(error <= 1e-6 * self.1[i] + 1e-30, "{what} {i}: {found}, not {} for {s:?}", self.0[i]);
        }
    }
}

struct Case {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
}

fn case(s: &ConvShape) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = |len| random(len, &mut rng);
    Case { x: random(s.x_len()), w: random(s.w_len()), bias: random(s.c), dy: random(s.y_len()) }
}

/// y with bias, y without, dx, dw; slices start as NaN, which must all be overwritten.
fn all(isa: Isa, s: &ConvShape, case: &Case) -> [Vec<f32>; 4] {
    let mut found = [s.y_len(), s.y_len(), s.x_len(), s.w_len()].map(|len| vec![f32::NAN; len]);
    let [biased, plain, dx, dw] = &mut found;
    forward_on(isa, &case.x, &case.w, Some(&case.bias), s, biased);
    forward_on(isa, &case.x, &case.w, None, s, plain);
    input_gradient_on(isa, &case.w, &case.dy, s, dx);
    weight_gradient_on(isa, &case.x, &case.dy, s, dw);
    found
}

fn assert_right(s: &ConvShape) {
    let case = case(s);
    let (mut y_sums, mut dx_sums, mut dw_sums) =
        (Sums::new(s.y_len()), Sums::new(s.x_len()), Sums::new(s.w_len()));
    each_product(s, |x, w, y| {
        y_sums.add(y, case.x[x], case.w[w]);
        dx_sums.add(x, case.dy[y], case.w[w]);
        dw_sums.add(w, case.x[x], case.dy[y]);
    });
    let mut biased_sums = Sums(y_sums.0.clone(), y_sums.1.clone());
    for i in 0..s.y_len() {
        biased_sums.add(i, case.bias[i % s.c], 1.0);
    }
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let [biased, plain, dx, dw] = all(isa, s, &case);
        y_sums.assert_near(&plain, "y", s);
        biased_sums.assert_near(&biased, "y with bias", s);
        dx_sums.assert_near(&dx, "dx", s);
        dw_sums.assert_near(&dw, "dw", s);
    }
}

fn shape(n: usize, c: usize, hw: [usize; 2], k: [usize; 2], window: Window) -> ConvShape {
    ConvShape::new([n, c, hw[0], hw[1]], [c, 1, k[0], k[1]], window.grouped(c))
}

#[test]
fn channels_of_every_register_and_tail() {
    for c in [1, 2, 3, 4, 5, 8, 11, 16, 17, 24, 40, 144] {
        assert_right(&shape(2, c, [9, 10], [3, 3], Window::new(1, 1)));
        assert_right(&shape(2, c, [9, 10], [5, 5], Window::new(2, 2)));
    }
}

#[test]
fn rows_of_every_width() {
    for width in 1..=34 {
        for (k, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)] {
            assert_right(&shape(1, 20, [4, width], [k, k], Window::new(stride, k / 2)));
        }
    }
}

#[test]
fn windows_of_every_kind() {
    for k in [[1, 1], [2, 2], [3, 3], [1, 5], [5, 1], [3, 7], [4, 6]] {
        for stride in [[1, 1], [2, 2], [3, 3], [1, 2], [3, 2]] {
            for dilation in [[1, 1], [2, 2], [3, 1], [2, 3]] {
                for (pad_begin, pad_end) in
                    [([0, 0], [0, 0]), ([0, 0], [1, 1]), ([2, 1], [1, 3]), ([5, 4], [4, 6])]
                {
                    let window = Window { stride, pad_begin, pad_end, dilation, groups: 1 };
                    assert_right(&shape(1, 19, [16, 19], k, window));
                }
            }
        }
    }
}

#[test]
fn images_smaller_than_the_window() {
    for hw in [[1, 1], [1, 2], [2, 1], [2, 3], [3, 3]] {
        for (k, stride, pad) in [(3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 2, 2), (7, 1, 3), (5, 3, 4)] {
            assert_right(&shape(3, 18, hw, [k, k], Window::new(stride, pad)));
        }
    }
}

#[test]
fn images_cut_into_bands_parts_and_groups() {
    assert_right(&shape(3, 48, [60, 61], [3, 3], Window::new(1, 1)));
    assert_right(&shape(9, 400, [7, 7], [5, 5], Window::new(1, 2)));
    let same = Window { stride: [2, 2], pad_begin: [1, 1], pad_end: [2, 2], dilation: [1, 1], groups: 1 };
    assert_right(&shape(2, 144, [56, 56], [5, 5], same));
}

#[test]
fn the_same_bytes_on_one_thread_and_on_two() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (one, two) = (pool(1), pool(2));
    for (c, hw, k, stride) in [(24, [33, 40], 3, 1), (300, [9, 9], 5, 1), (40, [30, 31], 5, 2)] {
        let s = shape(5, c, hw, [k, k], Window::new(stride, k / 2));
        let case = case(&s);
        let bits = |found: [Vec<f32>; 4]| found.map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        assert_eq!(
            bits(one.install(|| all(Isa::best(), &s, &case))),
            bits(two.install(|| all(Isa::best(), &s, &case))),
            "{s:?}"
        );
    }
}

#[test]
#[should_panic(expected = "weights for")]
fn a_weight_of_another_size_panics() {
    let s = shape(1, 16, [4, 4], [3, 3], Window::new(1, 1));
    forward(&vec![0.0; s.x_len()], &[0.0; 16], None, &s, &mut vec![0.0; s.y_len()]);
}
