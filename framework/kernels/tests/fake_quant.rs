//! Fake quantisation against the grid's definition in f64.

use lacuna_kernels::fake_quant::{self, Grid};

const GRIDS: [Grid; 4] = [
    Grid { scale: 0.1, zero: 0, lo: 0, hi: 255 },
    Grid { scale: 0.037, zero: 93, lo: 0, hi: 255 },
    Grid { scale: 1.0, zero: 128, lo: 0, hi: 255 },
    Grid { scale: 3e-39, zero: 0, lo: -128, hi: 127 },
];

/// Ties, values on both sides of every edge, zeros, and values far outside.
fn points(grid: Grid) -> Vec<f32> {
    let mut x = vec![0.0, -0.0, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY];
    for half_steps in -700..700 {
        let v = half_steps as f32 * 0.5 * grid.scale;
        x.extend([v, v.next_up(), v.next_down(), v + 0.3 * grid.scale]);
    }
    x
}

fn whole(x: f32, grid: Grid) -> f32 {
    (x / grid.scale).round_ties_even() + grid.zero as f32
}

#[test]
fn values_and_gradients_are_those_of_the_grid() {
    for grid in GRIDS {
        let x = points(grid);
        let dy: Vec<f32> = (0..x.len()).map(|i| i as f32 + 1.0).collect();
        let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        fake_quant::quantize(&x, grid, &mut y);
        fake_quant::backward(&x, &dy, grid, &mut dx);
        let (lo, hi) = (grid.lo as f32, grid.hi as f32);
        for i in 0..x.len() {
            let q = whole(x[i], grid);
            assert_eq!(y[i], (q.clamp(lo, hi) - grid.zero as f32) * grid.scale, "{} on {grid:?}", x[i]);
            assert_eq!(
                dx[i],
                if q >= lo && q <= hi { dy[i] } else { 0.0 },
                "gradient at {} on {grid:?}",
                x[i]
            );
        }
        let mut in_place = x.clone();
        fake_quant::quantize_in_place(&mut in_place, grid);
        assert_eq!(in_place, y);
    }
}

#[test]
fn not_a_number_is_seen_and_passes_no_gradient() {
    let mut y = [0.0];
    fake_quant::quantize(&[f32::NAN], GRIDS[0], &mut y);
    assert!(y[0].is_nan());
    fake_quant::backward(&[f32::NAN], &[1.0], GRIDS[0], &mut y);
    assert_eq!(y[0], 0.0);
}

#[test]
fn ranges_of_all_lengths() {
    assert_eq!(fake_quant::range(&[]), (f32::INFINITY, f32::NEG_INFINITY));
    for len in [1, 15, 64, 65, 40_000] {
        for least in [0, len / 2, len - 1] {
            let mut x: Vec<f32> = (0..len).map(|i| (i % 13) as f32).collect();
            x[least] = -3.0;
            x[len - 1 - least] += 50.0;
            if len > 3 {
                x[1 + (least == 1) as usize] = f32::NAN;
            }
            let fold = |f: fn(f32, f32) -> f32, start| x.iter().copied().fold(start, f);
            assert_eq!(
                fake_quant::range(&x),
                (fold(f32::min, f32::INFINITY), fold(f32::max, -f32::INFINITY))
            );
        }
    }
}

#[test]
fn row_ranges_are_of_the_folded_rows() {
    let w: Vec<f32> = (0..5 * 37).map(|i| ((i * 7919) % 101) as f32 - 40.0).collect();
    let fold = [1.5, -0.3, 0.0, 1.0, -2.0];
    for fold in [None, Some(&fold[..])] {
        let (mut min, mut max) = ([f32::NAN; 5], [f32::NAN; 5]);
        fake_quant::row_ranges(&w, fold, &mut min, &mut max);
        for row in 0..5 {
            let f = fold.map_or(1.0, |f| f[row]);
            let folded: Vec<f32> = w[row * 37..][..37].iter().map(|w| w * f).collect();
            assert_eq!((min[row], max[row]), fake_quant::range(&folded), "row {row}");
        }
    }
}

const ROWS: usize = 6;
const K: usize = 77;
const FOLD: [f32; ROWS] = [1.0, -1.0, 0.37, -2.9, 0.0, 11.0];
const SCALES: [f32; ROWS] = [0.01, 0.01, 0.004, 0.02, 0.01, 0.1];

/// With masked weights, negative zeros, and weights that round to zero from both sides.
fn weights() -> Vec<f32> {
    let mut w: Vec<f32> = (0..ROWS * K).map(|i| ((i * 7919) % 1001) as f32 / 300.0 - 1.6).collect();
    for row in w.chunks_mut(K) {
        row[..6].copy_from_slice(&[0.0, -0.0, 1e-5, -1e-5, 1e-30, 0.0]);
    }
    w
}

#[test]
fn folded_weights_come_back_on_the_grid_of_the_folded() {
    let w = weights();
    for fold in [None, Some(&FOLD[..])] {
        let mut out = vec![f32::NAN; w.len()];
        fake_quant::quantize_folded(&w, fold, &SCALES, &[[-128, 127]], &mut out);
        for (i, (&w, &out)) in w.iter().zip(&out).enumerate() {
            let (f, s) = (fold.map_or(1.0, |f| f[i / K]), SCALES[i / K]);
            let q = (w * f / s).round_ties_even().clamp(-128.0, 127.0);
            if w.to_bits() == 0 {
                assert_eq!(out.to_bits(), 0, "a masked weight, times {f}");
            } else if q == 0.0 {
                assert_eq!(out.to_bits(), (-0f32).to_bits(), "{w} times {f} rounds to zero");
            } else {
                assert_eq!(out, q * s / f, "{w} times {f}");
            }
        }
    }
}

#[test]
fn gradients_of_folded_weights() {
    let w = weights();
    let d_out: Vec<f32> = (0..w.len()).map(|i| ((i * 31) % 17) as f32 - 8.0).collect();
    let (mut dw, mut d_fold) = (vec![f32::NAN; w.len()], vec![f32::NAN; ROWS]);
    let (lo, hi) = (-128, 127);
    let gradient = fake_quant::quantize_folded_backward;
    gradient(&w, Some(&FOLD), &SCALES, &[[lo, hi]], &d_out, &mut dw, Some(&mut d_fold));
    let mut clamped = 0;
    for row in 0..ROWS {
        let (f, s) = (FOLD[row], SCALES[row]);
        let mut expected = 0f64;
        for i in row * K..(row + 1) * K {
            let q = (w[i] * f / s).round_ties_even();
            let inside = q >= lo as f32 && q <= hi as f32;
            clamped += !inside as usize;
            assert_eq!(dw[i], if inside { d_out[i] } else { 0.0 });
            if f != 0.0 {
                // out = s q / f with the derivative of q by f that of w f / s where not clamped.
                let (w, f, s) = (w[i] as f64, f as f64, s as f64);
                let q = q.clamp(lo as f32, hi as f32) as f64;
                let d_q = if inside { w / s } else { 0.0 };
                expected += d_out[i] as f64 * (s * d_q / f - s * q / (f * f));
            }
        }
        assert!((d_fold[row] as f64 - expected).abs() < 1e-4 * (1.0 + expected.abs()), "factor {row}");
    }
    assert!(clamped > 10, "the case has clamped weights");
    let mut alone = vec![f32::NAN; w.len()];
    gradient(&w, Some(&FOLD), &SCALES, &[[lo, hi]], &d_out, &mut alone, None);
    assert_eq!(alone, dw);
}

#[test]
fn a_bias_is_on_the_grid_of_a_wide_accumulator() {
    let w = [1e9, -3.3, 0.4e-3];
    let mut out = [f32::NAN; 3];
    fake_quant::quantize_folded(&w, None, &[1e-3; 3], &[[i32::MIN, i32::MAX]], &mut out);
    assert_eq!(out, [i32::MAX as f32 * 1e-3, (-3.3f32 / 1e-3).round_ties_even() * 1e-3, -0.0]);
}

#[test]
fn every_row_may_have_limits_of_its_own() {
    let w = weights();
    let limits = [[-3, 4], [-128, 127], [0, 15], [-15, 0], [-100, 155], [-2, 1]];
    let mut out = vec![f32::NAN; w.len()];
    fake_quant::quantize_folded(&w, None, &SCALES, &limits, &mut out);
    let d_out = vec![1.0; w.len()];
    let mut dw = vec![f32::NAN; w.len()];
    fake_quant::quantize_folded_backward(&w, None, &SCALES, &limits, &d_out, &mut dw, None);
    for (i, &w) in w.iter().enumerate().filter(|(_, w)| w.to_bits() != 0) {
        let ([lo, hi], s) = (limits[i / K].map(|l| l as f32), SCALES[i / K]);
        let q = (w / s).round_ties_even();
        assert_eq!(out[i], q.clamp(lo, hi) * s);
        assert_eq!(dw[i], if q >= lo && q <= hi { 1.0 } else { 0.0 });
    }
}
