//! Batch norm and what is fused with it against f64, for channels that do and do not fill vectors.

use lacuna_kernels::activation::{self, Act};
use lacuna_kernels::batch_norm::{self, Skip};
use lacuna_kernels::fake_quant::{self, Grid};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const EPS: f64 = 1e-5;
const ACTS: [Act; 6] = [Act::None, Act::Relu, Act::Relu6, Act::Leaky, Act::Silu, Act::HardSwish];
const CHANNELS: [usize; 8] = [1, 3, 16, 24, 40, 64, 100, 1152];

fn random(len: usize, seed: u64, scale: f32, offset: f32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-scale..scale) + offset).collect()
}

fn value(act: Act, x: f64) -> f64 {
    match act {
        Act::None => x,
        Act::Relu => x.max(0.0),
        Act::Relu6 => x.clamp(0.0, 6.0),
        Act::Leaky => {
            if x < 0.0 {
                0.1 * x
            } else {
                x
            }
        }
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
        _ => unreachable!("not among those tested"),
    }
}

fn slope(act: Act, x: f64) -> f64 {
    match act {
        Act::None => 1.0,
        Act::Relu => (x > 0.0) as u8 as f64,
        Act::Relu6 => (x > 0.0 && x < 6.0) as u8 as f64,
        Act::Leaky => {
            if x < 0.0 {
                0.1
            } else {
                1.0
            }
        }
        Act::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            s * (1.0 + x * (1.0 - s))
        }
        Act::HardSwish if x <= -3.0 => 0.0,
        Act::HardSwish if x >= 3.0 => 1.0,
        Act::HardSwish => x / 3.0 + 0.5,
        _ => unreachable!("not among those tested"),
    }
}

struct Case {
    rows: usize,
    c: usize,
    x: Vec<f32>,
    residual: Option<Vec<f32>>,
    dy: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    act: Act,
}

impl Case {
    fn new(rows: usize, c: usize, with_residual: bool, act: Act) -> Case {
        let gamma: Vec<f32> =
            random(c, 3, 1.0, 0.0).iter().map(|g| g + 0.5f32.copysign(*g)).map(|g| 2.0 * g).collect();
        Case {
            rows,
            c,
            x: random(rows * c, 1, 2.0, 0.7),
            residual: with_residual.then(|| random(rows * c, 2, 1.0, 0.2)),
            dy: random(rows * c, 4, 1.0, 0.1),
            gamma,
            beta: random(c, 5, 1.0, 0.5),
            act,
        }
    }

    fn forward(&self, observer: Option<batch_norm::Observer>) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let mut y = vec![f32::NAN; self.x.len()];
        let (mut mean, mut var) = (vec![f32::NAN; self.c], vec![f32::NAN; self.c]);
        let residual = self.residual.as_deref();
        batch_norm::forward(
            &self.x,
            self.rows,
            self.c,
            &self.gamma,
            &self.beta,
            residual,
            EPS,
            self.act,
            observer,
            &mut y,
            &mut mean,
            &mut var,
        );
        (y, mean, var)
    }

    /// [dx, d_gamma, d_beta, d_residual].
    fn backward(
        &self,
        skip: Skip,
        grid: Option<Grid>,
        mean: &[f32],
        var: &[f32],
        with_d_residual: bool,
    ) -> [Vec<f32>; 4] {
        let mut dx = vec![f32::NAN; self.x.len()];
        let (mut d_gamma, mut d_beta) = (vec![f32::NAN; self.c], vec![f32::NAN; self.c]);
        let mut d_residual = vec![f32::NAN; if with_d_residual { self.x.len() } else { 0 }];
        batch_norm::backward(
            &self.x,
            skip,
            &self.dy,
            self.rows,
            self.c,
            &self.gamma,
            &self.beta,
            mean,
            var,
            EPS,
            self.act,
            grid,
            &mut dx,
            &mut d_gamma,
            &mut d_beta,
            with_d_residual.then_some(&mut d_residual[..]),
        );
        [dx, d_gamma, d_beta, d_residual]
    }

    fn column(&self, v: &[f32], i: usize) -> Vec<f64> {
        v[i..].iter().step_by(self.c).map(|&v| v as f64).collect()
    }

    /// Value before the activation of a column, with its mean and variance.
    fn column_before(&self, i: usize) -> (Vec<f64>, f64, f64) {
        let x = self.column(&self.x, i);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
        let scale = self.gamma[i] as f64 / (var + EPS).sqrt();
        let residual = self.residual.as_ref().map(|r| self.column(r, i));
        let z = x.iter().enumerate().map(|(row, x)| {
            (x - mean) * scale + self.beta[i] as f64 + residual.as_ref().map_or(0.0, |r| r[row])
        });
        (z.collect(), mean, var)
    }
}

fn close(a: f32, b: f64, tolerance: f64) -> bool {
    (a as f64 - b).abs() <= tolerance * (1.0 + b.abs())
}

#[test]
fn forward_agrees_with_f64() {
    for c in CHANNELS {
        for (rows, with_residual) in [(1, false), (7, true), (131, false), (300, true)] {
            for act in ACTS {
                let case = Case::new(rows, c, with_residual, act);
                let (y, mean, var) = case.forward(None);
                for i in 0..c {
                    let (z, expected_mean, expected_var) = case.column_before(i);
                    assert!(close(mean[i], expected_mean, 1e-6), "mean {i} of [{rows}][{c}]");
                    assert!(close(var[i], expected_var, 1e-6), "variance {i} of [{rows}][{c}]");
                    for (y, z) in case.column(&y, i).into_iter().zip(z) {
                        // A single row has no deviation: its normalised value is all rounding, times 1/sqrt(eps).
                        let tolerance = if rows == 1 { 1e-3 } else { 4e-6 };
                        assert!(
                            close(y as f32, value(act, z), tolerance),
                            "{act:?}({z}) = {y}, [{rows}][{c}]"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn statistics_survive_a_mean_far_from_zero() {
    let (rows, c) = (1_000_003, 3);
    let x: Vec<f32> = random(rows * c, 9, 1.0, 0.0)
        .iter()
        .enumerate()
        .map(|(i, v)| v * [1.0, 0.01, 3.0][i % 3] + [1000.0, -20.0, 0.0][i % 3])
        .collect();
    let case = Case { x, ..Case::new(rows, c, false, Act::None) };
    let (_, mean, var) = case.forward(None);
    for i in 0..c {
        let (_, expected_mean, expected_var) = case.column_before(i);
        let size = expected_mean.abs() + expected_var.sqrt();
        assert!((mean[i] as f64 - expected_mean).abs() < 1e-6 * size, "mean {i}");
        assert!((var[i] as f64 / expected_var - 1.0).abs() < 1e-6, "variance {i}: {} {expected_var}", var[i]);
    }
}

#[test]
fn gradients_agree_with_f64() {
    for c in CHANNELS {
        for (rows, with_residual) in [(7, true), (131, false), (300, true)] {
            for act in ACTS {
                let case = Case::new(rows, c, with_residual, act);
                let (y, mean, var) = case.forward(None);
                let residual = case.residual.as_deref().map_or(Skip::None, Skip::Residual);
                let found = case.backward(residual, None, &mean, &var, with_residual);
                let without = case.backward(residual, None, &mean, &var, false);
                assert_eq!(found[..3], without[..3], "the residual's gradient changes the others");
                if matches!(act, Act::None | Act::Relu | Act::Relu6) {
                    let by_output = case.backward(Skip::Output(&y), None, &mean, &var, with_residual);
                    assert_eq!(found, by_output, "{act:?} by the output, [{rows}][{c}]");
                }
                compare_gradients(&case, &found, |_, _| true);
            }
        }
    }
}

/// `open(row, channel)`: whether the grid passes the gradient.
fn compare_gradients(
    case: &Case,
    [dx, d_gamma, d_beta, d_residual]: &[Vec<f32>; 4],
    open: impl Fn(usize, usize) -> bool,
) {
    let (rows, c, act) = (case.rows, case.c, case.act);
    for i in 0..c {
        let (z, mean, var) = case.column_before(i);
        let (x, dy) = (case.column(&case.x, i), case.column(&case.dy, i));
        // A value at a corner may be on either side in f32.
        let corner = |z: f64| [0.0, 6.0, 3.0, -3.0].iter().any(|corner| (z - corner).abs() < 1e-5);
        if act != Act::None && z.iter().any(|&z| corner(z)) {
            continue;
        }
        let dz: Vec<f64> =
            (0..rows).map(|row| if open(row, i) { dy[row] * slope(act, z[row]) } else { 0.0 }).collect();
        let inverse = 1.0 / (var + EPS).sqrt();
        let normal: Vec<f64> = x.iter().map(|x| (x - mean) * inverse).collect();
        let beta: f64 = dz.iter().sum();
        let gamma: f64 = dz.iter().zip(&normal).map(|(d, n)| d * n).sum();
        let what = format!("{act:?} channel {i} of [{rows}][{c}]");
        assert!((d_beta[i] as f64 - beta).abs() < 2e-6 * rows as f64, "d_beta {what}");
        assert!((d_gamma[i] as f64 - gamma).abs() < 2e-6 * rows as f64, "d_gamma {what}");
        for row in 0..rows {
            let count = rows as f64;
            let expected =
                case.gamma[i] as f64 * inverse * (dz[row] - beta / count - normal[row] * gamma / count);
            assert!(
                close(dx[row * c + i], expected, 5e-6),
                "dx[{row}] {what}: {} {expected}",
                dx[row * c + i]
            );
            if !d_residual.is_empty() {
                assert!(close(d_residual[row * c + i], dz[row], 2e-6), "d_residual[{row}] {what}");
            }
        }
    }
}

#[test]
fn gradient_agrees_with_differences_of_the_forward_pass() {
    let case = Case::new(23, 5, false, Act::Silu);
    let (_, mean, var) = case.forward(None);
    let [dx, ..] = case.backward(Skip::None, None, &mean, &var, false);
    for i in [0, 7, 50, 114] {
        let loss = |step: f32| {
            let mut moved = Case::new(23, 5, false, Act::Silu);
            moved.x[i] += step;
            let (y, ..) = moved.forward(None);
            y.iter().zip(&case.dy).map(|(&y, &d)| y as f64 * d as f64).sum::<f64>()
        };
        let difference = (loss(0.01) - loss(-0.01)) / 0.02;
        assert!((dx[i] as f64 - difference).abs() < 1e-3, "dx[{i}] {} {difference}", dx[i]);
    }
}

#[test]
fn given_statistics_normalise_likewise() {
    for (rows, c) in [(131, 24), (40, 100)] {
        let case = Case::new(rows, c, true, Act::Relu);
        let (scale, shift) = (&case.gamma, &case.beta);
        let mut y = vec![f32::NAN; rows * c];
        let residual = case.residual.as_deref();
        batch_norm::forward_with(&case.x, rows, c, scale, shift, residual, Act::Relu, None, &mut y);
        for (i, &y) in y.iter().enumerate() {
            let r = residual.map_or(0.0, |r| r[i]);
            assert_eq!(y, (case.x[i] * scale[i % c] + shift[i % c] + r).max(0.0));
        }
    }
}

/// The unsigned 8-bit grid of a range, narrowed so that some values are clamped.
fn narrow_grid(min: f32, max: f32) -> Option<Grid> {
    let (min, max) = (0.6 * min.min(0.0), 0.6 * max.max(0.0));
    let scale = (max - min) / 255.0;
    Some(Grid { scale, zero: (-(min / scale)).round_ties_even() as i32, lo: 0, hi: 255 })
}

#[test]
fn fused_quantisation_is_quantisation_of_the_result() {
    for c in [1, 24, 64, 100] {
        for with_residual in [false, true] {
            for act in ACTS {
                let case = Case::new(500, c, with_residual, act);
                let (y, mean, var) = case.forward(None);
                let (lo, hi) = fake_quant::range(&y);
                let seen = std::cell::Cell::new(None);
                // The observer is called once, on the calling thread.
                let observer = |lo: f32, hi: f32| {
                    assert_eq!(seen.replace(Some((lo, hi))), None);
                    narrow_grid(lo, hi)
                };
                let (quantised, ..) = case.forward(Some(&observer));
                let (seen_lo, seen_hi) = seen.get().expect("the observer is asked");
                if with_residual || matches!(act, Act::None | Act::Relu | Act::Relu6) {
                    assert_eq!((seen_lo, seen_hi), (lo, hi), "{act:?}");
                } else {
                    assert_eq!(seen_hi, hi, "{act:?}");
                    assert!(seen_lo <= lo + 1e-6 && seen_lo > lo - 1e-3, "{act:?}: {seen_lo} for {lo}");
                }
                let grid = narrow_grid(seen_lo, seen_hi).unwrap();
                let mut expected = vec![f32::NAN; y.len()];
                fake_quant::quantize(&y, grid, &mut expected);
                assert_eq!(quantised, expected, "{act:?}");

                let skip = case.residual.as_deref().map_or(Skip::None, Skip::Residual);
                let found = case.backward(skip, Some(grid), &mean, &var, with_residual);
                let (least, most) = grid.inside();
                compare_gradients(&case, &found, |row, i| (least..=most).contains(&y[row * c + i]));
            }
        }
    }
}

#[test]
fn an_observer_that_answers_nothing_leaves_the_result() {
    let case = Case::new(50, 24, true, Act::Relu);
    assert_eq!(case.forward(Some(&|_, _| None)), case.forward(None));
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            [(20_000, 24), (3_000, 100), (400, 1152)].map(|(rows, c)| {
                let case = Case::new(rows, c, true, Act::Silu);
                let (y, mean, var) = case.forward(Some(&narrow_grid));
                let skip = Skip::Residual(case.residual.as_deref().unwrap());
                let gradients = case.backward(skip, None, &mean, &var, true);
                (y, mean, var, gradients)
            })
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn activation_alone_is_that_of_the_fused_form() {
    let case = Case::new(200, 40, false, Act::None);
    let (z, ..) = case.forward(None);
    for act in ACTS {
        let (y, ..) = Case::new(200, 40, false, act).forward(None);
        let mut expected = vec![f32::NAN; z.len()];
        activation::forward(act, &z, &mut expected);
        assert_eq!(y, expected, "{act:?}");
    }
}

/// Results of this size are written past the caches.
#[test]
fn large_images_are_like_small_ones() {
    let (rows, c) = (66_001, 64);
    let case = Case::new(rows, c, false, Act::Relu);
    let (y, mean, var) = case.forward(None);
    let [dx, ..] = case.backward(Skip::None, None, &mean, &var, false);
    // The same values in another order of channels and rows give the same sums but for rounding, in parts of y that
    // other tasks and lanes write.
    let turned = |v: &[f32]| v.iter().rev().copied().collect::<Vec<f32>>();
    let reversed = Case {
        x: turned(&case.x),
        dy: turned(&case.dy),
        gamma: turned(&case.gamma),
        beta: turned(&case.beta),
        residual: None,
        ..case
    };
    let (y_reversed, ..) = reversed.forward(None);
    let [dx_reversed, ..] = reversed.backward(Skip::None, None, &turned(&mean), &turned(&var), false);
    for (a, b) in y.iter().zip(turned(&y_reversed)).chain(dx.iter().zip(turned(&dx_reversed))) {
        assert!((a - b).abs() < 2e-6 * (1.0 + b.abs()), "{a} {b}");
    }
    let (z, ..) = reversed.column_before(5);
    for (y, z) in reversed.column(&y_reversed, 5).into_iter().zip(z) {
        assert!(close(y as f32, z.max(0.0), 4e-6));
    }
}
