//! Against sums in f64 on every instruction set, and the same bytes on one thread and on two.

use super::*;
use crate::shape;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Case {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
}

fn case(s: &ConvShape) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = |len| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect();
    Case { x: random(s.x_len()), w: random(s.w_len()), bias: random(s.o), dy: random(s.y_len()) }
}

/// y and dx; slices start as NaN, which must all be overwritten.
fn both<S: Scheme>(isa: Isa, s: &ConvShape, case: &Case) -> [Vec<f32>; 2] {
    let mut found = [s.y_len(), s.x_len()].map(|len| vec![f32::NAN; len]);
    let [y, dx] = &mut found;
    forward_by::<S>(isa, &case.x, &case.w, Some(&case.bias), s, y);
    input_gradient_by::<S>(isa, &case.w, &case.dy, s, dx);
    found
}

/// (Σ, Σ of magnitudes) of y and dx.
fn expected(s: &ConvShape, case: &Case) -> [Vec<(f64, f64)>; 2] {
    let mut y: Vec<(f64, f64)> =
        (0..s.y_len()).map(|i| case.bias[i % s.o] as f64).map(|b| (b, b.abs())).collect();
    let mut dx = vec![(0.0, 0.0); s.x_len()];
    for pixel in 0..s.n * s.oh * s.ow {
        let (image, oy, ox) = (pixel / (s.oh * s.ow), pixel / s.ow % s.oh, pixel % s.ow);
        for tap in 0..9 {
            let (iy, ix) =
                ((oy + tap / 3).wrapping_sub(s.pad_begin[0]), (ox + tap % 3).wrapping_sub(s.pad_begin[1]));
            if iy >= s.h || ix >= s.w {
                continue;
            }
            for o in 0..s.o {
                for c in 0..s.c {
                    let (xi, yi) = (((image * s.h + iy) * s.w + ix) * s.c + c, pixel * s.o + o);
                    let w = case.w[(o * s.c + c) * 9 + tap] as f64;
                    for (sum, term) in
                        [(&mut y[yi], case.x[xi] as f64 * w), (&mut dx[xi], case.dy[yi] as f64 * w)]
                    {
                        sum.0 += term;
                        sum.1 += term.abs();
                    }
                }
            }
        }
    }
    [y, dx]
}

fn assert_right(s: &ConvShape) {
    let case = case(s);
    let expected = expected(s, &case);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        assert_near(&both::<Two>(isa, s, &case), &expected, 1e-6, s);
        assert_near(&both::<Four>(isa, s, &case), &expected, 5e-6, s);
    }
}

/// Errors relative to the largest sum of magnitudes: a sum of few products has the rounding of its tile's others.
fn assert_near(found: &[Vec<f32>], expected: &[Vec<(f64, f64)>], tolerance: f64, s: &ConvShape) {
    for (found, expected) in found.iter().zip(expected) {
        let largest = expected.iter().map(|(_, size)| *size).fold(0.0, f64::max);
        for (found, (sum, _)) in found.iter().zip(expected) {
            assert!((*found as f64 - sum).abs() <= tolerance * largest, "{found} for {sum}, {s:?}");
        }
    }
}

fn shape(n: usize, c: usize, o: usize, hw: [usize; 2], begin: [usize; 2], end: [usize; 2]) -> ConvShape {
    let window = shape::Window { pad_begin: begin, pad_end: end, ..shape::Window::new(1, 0) };
    ConvShape::new([n, c, hw[0], hw[1]], [o, c, 3, 3], window)
}

#[test]
fn images_of_every_size() {
    for h in 1..=7 {
        for w in 1..=9 {
            assert_right(&shape(2, 16, 17, [h, w], [1, 1], [1, 1]));
        }
    }
}

#[test]
fn channels_of_every_register_and_panel() {
    for (c, o) in [(1, 1), (3, 5), (8, 40), (24, 65), (70, 130), (130, 16), (64, 64)] {
        assert_right(&shape(3, c, o, [6, 5], [1, 1], [1, 1]));
    }
}

#[test]
fn any_padding() {
    for begin in [[0, 0], [2, 1], [0, 4], [5, 3]] {
        for end in [[0, 0], [1, 2], [3, 0]] {
            assert_right(&shape(1, 20, 18, [5, 6], begin, end));
        }
    }
}

#[test]
fn blocks_of_tiles() {
    assert_right(&shape(5, 64, 64, [16, 17], [1, 1], [1, 1]));
}

#[test]
fn the_same_bytes_on_one_thread_and_on_two() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let s = shape(4, 48, 80, [15, 14], [1, 1], [1, 1]);
    let case = case(&s);
    let bits = |threads| {
        let found = pool(threads).install(|| both::<Four>(Isa::best(), &s, &case));
        found.map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    assert_eq!(bits(1), bits(2));
}

#[test]
fn pays_where_it_was_measured_to() {
    let of = |n, channels, size| shape(n, channels, channels, [size; 2], [1, 1], [1, 1]);
    assert!(pays(&of(32, 64, 32)) && pays(&of(32, 512, 4)) && pays(&of(8, 16, 8)));
    assert!(!pays(&of(1, 512, 7)) && !pays(&of(2, 512, 4)) && !pays(&of(8, 3, 32)));
    assert!(!pays(&ConvShape { stride: [2, 2], ..of(32, 64, 32) }));
}
