//! Sums of tensors: where the gradients of a branch meet.

use crate::by_isa;
use rayon::prelude::*;

/// Elements per task.
const CHUNK: usize = 1 << 15;

/// sum += x
///
/// # Panics
/// If the lengths differ.
pub fn accumulate(sum: &mut [f32], x: &[f32]) {
    assert_eq!(sum.len(), x.len(), "tensors of different sizes");
    sum.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(sum, x)| accumulate_chunk(sum, x));
}

by_isa! {
    fn accumulate_chunk(sum: &mut [f32], x: &[f32]) {
        for (s, x) in sum.iter_mut().zip(x) {
            *s += x;
        }
    }
}

/// sum = a + b
///
/// # Panics
/// If the lengths differ.
pub fn sum(a: &[f32], b: &[f32], sum: &mut [f32]) {
    assert!(a.len() == b.len() && a.len() == sum.len(), "tensors of different sizes");
    let inputs = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    sum.par_chunks_mut(CHUNK).zip(inputs).for_each(|(sum, (a, b))| sum_chunk(a, b, sum));
}

by_isa! {
    fn sum_chunk(a: &[f32], b: &[f32], sum: &mut [f32]) {
        for ((s, a), b) in sum.iter_mut().zip(a).zip(b) {
            *s = a + b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_elementwise_over_chunks_and_tails() {
        let n = 3 * CHUNK + 7;
        let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..n).map(|i| (i % 13) as f32 - 4.0).collect();
        let (mut into, mut fresh) = (a.clone(), vec![f32::NAN; n]);
        accumulate(&mut into, &b);
        sum(&a, &b, &mut fresh);
        assert_eq!(into, fresh);
        assert!((0..n).all(|i| fresh[i] == a[i] + b[i]));
    }
}
