//! Numbers and comparisons that tests of kernels share; not every test uses all of them.
#![allow(dead_code)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `len` numbers in -2..2, the same ones for the same seed.
pub fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// What kernels get as results to write: garbage, so that an element left out is seen.
pub fn garbage(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(found) - expected).abs();
        assert!(off <= tolerance * (1.0 + expected.abs()), "element {i}: {found}, expected {expected}");
    }
}

/// Runs `compute` on 1 and on 2 threads and asserts that the bytes are the same; returns them.
#[track_caller]
pub fn on_threads(compute: impl Fn() -> Vec<f32> + Sync) -> Vec<f32> {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(&compute)
    };
    let (one, two) = (on(1), on(2));
    assert!(one.iter().map(|x| x.to_bits()).eq(two.iter().map(|x| x.to_bits())), "results depend on threads");
    one
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}
