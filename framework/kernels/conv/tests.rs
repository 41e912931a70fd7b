use super::*;
use crate::shape::Window;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Calls `f` with the places in x, w and y of every multiplication of a convolution.
fn each_term(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let (c, o) = (s.c / s.groups, s.o / s.groups);
    for image in 0..s.n {
        for oy in 0..s.oh {
            for ox in 0..s.ow {
                for ky in 0..s.kh {
                    for kx in 0..s.kw {
                        let y = (oy * s.stride[0] + ky * s.dilation[0]).wrapping_sub(s.pad_begin[0]);
                        let x = (ox * s.stride[1] + kx * s.dilation[1]).wrapping_sub(s.pad_begin[1]);
                        if y >= s.h || x >= s.w {
                            continue;
                        }
                        for out in 0..s.o {
                            for i in 0..c {
                                f(
                                    ((image * s.h + y) * s.w + x) * s.c + out / o * c + i,
                                    ((out * c + i) * s.kh + ky) * s.kw + kx,
                                    ((image * s.oh + oy) * s.ow + ox) * s.o + out,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A sum and the sum of its terms' magnitudes.
type Sums = Vec<(f64, f64)>;

fn add(sums: &mut Sums, at: usize, term: f64) {
    sums[at].0 += term;
    sums[at].1 += term.abs();
}

fn assert_close(got: &[f32], expected: &Sums, what: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (&got, &(sum, size))) in got.iter().zip(expected).enumerate() {
        assert!((got as f64 - sum).abs() <= 1e-5 * size, "{what}, element {i}: {got} for {sum}");
    }
}

fn shapes() -> Vec<ConvShape> {
    let window = Window::new;
    let uneven = Window { pad_begin: [0, 2], pad_end: [1, 0], ..window(1, 0) };
    let oblong = Window { stride: [2, 1], dilation: [1, 2], pad_begin: [1, 2], pad_end: [0, 2], groups: 1 };
    [
        ([2, 3, 9, 7], [16, 3, 3, 3], window(1, 1)),
        ([1, 1, 1, 1], [1, 1, 1, 1], window(1, 0)),
        ([1, 5, 1, 1], [70, 5, 3, 3], window(1, 1)),
        ([3, 1, 12, 12], [16, 1, 3, 3], window(2, 1)),
        ([2, 16, 14, 14], [32, 16, 3, 3], window(2, 1)),
        ([2, 16, 13, 14], [17, 16, 1, 1], window(2, 0)),
        ([9, 64, 4, 4], [64, 64, 3, 3], window(1, 1)),
        ([2, 70, 5, 5], [130, 70, 1, 1], window(1, 0)),
        ([40, 130, 1, 1], [40, 130, 1, 1], window(1, 0)),
        ([2, 200, 3, 3], [65, 200, 3, 3], window(1, 1)),
        ([1, 600, 2, 2], [24, 600, 2, 2], window(1, 1)),
        ([2, 4, 10, 11], [6, 4, 3, 2], uneven),
        ([2, 4, 10, 11], [6, 4, 3, 2], oblong),
        ([1, 3, 23, 23], [8, 3, 7, 7], window(2, 3)),
        ([2, 6, 8, 8], [6, 6, 3, 3], window(3, 0)),
        ([2, 6, 8, 8], [6, 6, 1, 1], window(3, 1)),
        ([2, 5, 12, 12], [7, 5, 3, 3], Window { dilation: [2, 3], ..window(1, 2) }),
        ([2, 5, 12, 12], [7, 5, 3, 3], Window { dilation: [2, 2], ..window(2, 2) }),
        ([2, 12, 6, 6], [18, 4, 3, 3], window(1, 1).grouped(3)),
        ([2, 12, 6, 6], [24, 1, 3, 3], window(2, 1).grouped(12)),
        ([2, 40, 6, 6], [80, 20, 1, 1], window(1, 0).grouped(2)),
        ([33, 16, 14, 14], [16, 16, 3, 3], window(1, 1)),
        ([0, 3, 4, 4], [2, 3, 3, 3], window(1, 1)),
    ]
    .map(|(x, w, window)| ConvShape::new(x, w, window))
    .to_vec()
}

#[test]
fn every_geometry_and_instruction_set_equals_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for s in shapes() {
        let (x, w) = (random(&mut rng, s.x_len()), random(&mut rng, s.w_len()));
        let (dy, bias) = (random(&mut rng, s.y_len()), random(&mut rng, s.o));
        let mut y_sums: Sums =
            (0..s.y_len()).map(|i| (bias[i % s.o] as f64, bias[i % s.o].abs() as f64)).collect();
        let mut plain_sums: Sums = vec![(0.0, 0.0); s.y_len()];
        let mut dx_sums: Sums = vec![(0.0, 0.0); s.x_len()];
        let mut dw_sums: Sums = vec![(0.0, 0.0); s.w_len()];
        each_term(&s, |i, j, k| {
            let term = x[i] as f64 * w[j] as f64;
            add(&mut y_sums, k, term);
            add(&mut plain_sums, k, term);
            add(&mut dx_sums, i, w[j] as f64 * dy[k] as f64);
            add(&mut dw_sums, j, x[i] as f64 * dy[k] as f64);
        });
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let what = |result: &str| format!("{result} on {}, {s:?}", isa.name());
            let (mut y, mut dx) = (vec![f32::NAN; s.y_len()], vec![f32::NAN; s.x_len()]);
            let mut dw = vec![f32::NAN; s.w_len()];
            forward_on(isa, &x, &w, Some(&bias), &s, &mut y);
            assert_close(&y, &y_sums, &what("y with bias"));
            forward_on(isa, &x, &w, None, &s, &mut y);
            assert_close(&y, &plain_sums, &what("y"));
            input_gradient_on(isa, &w, &dy, &s, &mut dx);
            assert_close(&dx, &dx_sums, &what("dx"));
            weight_gradient_on(isa, &x, &dy, &s, &mut dw);
            assert_close(&dw, &dw_sums, &what("dw"));
        }
        let mut db = vec![f32::NAN; s.o];
        bias_gradient(&dy, s.o, &mut db);
        let mut db_sums: Sums = vec![(0.0, 0.0); s.o];
        dy.iter().enumerate().for_each(|(i, &v)| add(&mut db_sums, i % s.o, v as f64));
        assert_close(&db, &db_sums, "db");
    }
}

#[test]
fn results_are_the_same_bytes_on_any_number_of_threads() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for s in shapes() {
        let (x, w, dy) =
            (random(&mut rng, s.x_len()), random(&mut rng, s.w_len()), random(&mut rng, s.y_len()));
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut y, mut dx) = (vec![0f32; s.y_len()], vec![0f32; s.x_len()]);
                let (mut dw, mut db) = (vec![0f32; s.w_len()], vec![0f32; s.o]);
                forward(&x, &w, None, &s, &mut y);
                input_gradient(&w, &dy, &s, &mut dx);
                weight_gradient(&x, &dy, &s, &mut dw);
                bias_gradient(&dy, s.o, &mut db);
                [y, dx, dw, db].concat().iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
            })
        };
        let one = on(1);
        assert!(one == on(2) && one == on(3), "{s:?}");
    }
}
