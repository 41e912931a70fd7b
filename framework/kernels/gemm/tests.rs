use super::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

#[test]
fn products_of_any_strides_equal_their_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let sizes =
        [(1, 1, 1), (5, 3, 17), (24, 70, 64), (37, 513, 65), (128, 64, 128), (13, 1100, 130), (7, 0, 20)];
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for (m, k, n) in sizes {
            for (a_turned, b_turned, accumulate) in
                [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
            {
                let (a_data, b_data) = (random(&mut rng, m * k + 9), random(&mut rng, (k + 2) * (n + 3)));
                let a = Matrix::new(&a_data, m, k);
                let a = if a_turned { Matrix::new(&a_data, k, m).transposed() } else { a };
                let b = Matrix { data: &b_data, rows: k, cols: n, row_stride: n + 3, col_stride: 1 };
                let turned = Matrix { data: &b_data, rows: k, cols: n, row_stride: 1, col_stride: k + 2 };
                let b = if b_turned { turned } else { b };
                let ldc = n + 5;
                let before = random(&mut rng, m * ldc);
                let mut c = before.clone();
                product_on(isa, a, b, &mut c, ldc, accumulate);
                for (at, &got) in c.iter().enumerate() {
                    let (i, j) = (at / ldc, at % ldc);
                    if j >= n {
                        assert_eq!(got, before[at], "column {j} is not the product's");
                        continue;
                    }
                    let first = if accumulate { before[at] as f64 } else { 0.0 };
                    let (mut sum, mut size) = (first, first.abs());
                    for p in 0..k {
                        let term = a.data[i * a.row_stride + p * a.col_stride] as f64
                            * b.data[p * b.row_stride + j * b.col_stride] as f64;
                        sum += term;
                        size += term.abs();
                    }
                    let context = format!("{} {m} x {k} x {n}, ({i}, {j}): {got} for {sum}", isa.name());
                    assert!((got as f64 - sum).abs() <= 1e-5 * size, "{context}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "a 3 x 4 matrix in 11 elements")]
fn a_matrix_outside_its_slice_is_refused() {
    product(Matrix::new(&[0.0; 11], 3, 4), Matrix::new(&[0.0; 4], 4, 1), &mut [0.0; 3], 1, false);
}
