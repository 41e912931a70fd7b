use super::tile::Last;
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

#[test]
fn tiles_of_every_size_start_from_a_bias_and_end_with_residual_and_clamp() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (runs, run_len) = ([3u32, 40], 5);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        // 16 columns of operands that lie side by side have a tile of their own.
        let packed = [(16, 1, 0)].into_iter();
        let others = [1, 2, 3, 4, 8, 11, 15, 16, 17, 40, 48, 49, 64].map(|columns| (columns, 2, 1));
        for (columns, a_step, gap) in packed.chain(others) {
            for count in [1, 2, 5, 6, 7, 11, 12, 13, 25] {
                // Rows lie anywhere: here in reverse order, and those of c apart.
                let rows: Vec<Row> =
                    (0..count).map(|i| Row { a: (count - 1 - i) * 7, c: i * (columns + 2) }).collect();
                let mut a = random(&mut rng, count * 7 + 60);
                a[rows[0].a + 3] = f32::NAN;
                let (b_step, residual_step) = (columns + gap, columns + 4);
                let b = random(&mut rng, runs.len() * run_len * b_step);
                let (bias, residual) = (random(&mut rng, columns), random(&mut rng, count * residual_step));
                let residual_at: Vec<usize> = (0..count).map(|i| (count - 1 - i) * residual_step).collect();
                let mut c = vec![f32::INFINITY; count * (columns + 2)];
                let (first, last_bias) = match count % 2 {
                    0 => (First::Bias(bias.as_ptr()), None),
                    _ => (First::Zero, Some(bias.as_ptr())),
                };
                let product = Product {
                    ahead: None,
                    a: a.as_ptr(),
                    runs: &runs,
                    run_len,
                    a_step,
                    b: b.as_ptr(),
                    b_step,
                    c: c.as_mut_ptr(),
                    columns,
                    first,
                    last: Some(Last {
                        bias: last_bias,
                        residual: Some((residual.as_ptr(), &residual_at)),
                        min: -0.5,
                        max: 1.5,
                    }),
                };
                // SAFETY: the slices hold every element that rows, runs and columns address.
                unsafe { tile::run(isa, &product, &rows) };
                for (i, row) in rows.iter().enumerate() {
                    for j in 0..columns {
                        let mut sum = bias[j] as f64 + residual[residual_at[i] + j] as f64;
                        for step in 0..runs.len() * run_len {
                            let at = row.a + runs[step / run_len] as usize + step % run_len * a_step;
                            sum += a[at] as f64 * b[step * b_step + j] as f64;
                        }
                        let (got, expected) = (c[row.c + j] as f64, sum.clamp(-0.5, 1.5));
                        let same = (got - expected).abs() < 1e-5 || (got.is_nan() && expected.is_nan());
                        assert!(same, "{} {count} x {columns} ({i}, {j}): {got} for {expected}", isa.name());
                    }
                    assert_eq!(c[row.c + columns], f32::INFINITY, "a column beyond the tile's");
                }
            }
        }
    }
}
