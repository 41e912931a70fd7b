//! Attention against f64, for tokens and widths with and without a remainder, masks, and packed projections.

mod support;

use lacuna_kernels::attention::{AttentionShape, Rows, RowsMut, backward, forward};
use support::{assert_close, garbage, numbers, on_threads, wide};

/// Out and the gradients of q, k and v, each [rows][heads * width].
struct Expected {
    out: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn expected(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    mask: Option<&[f32]>,
    dout: &[f64],
    shape: AttentionShape,
) -> Expected {
    let AttentionShape { batch, heads, queries, keys, width } = shape;
    let columns = heads * width;
    let scale = 1.0 / (width as f64).sqrt();
    let mut result = Expected {
        out: vec![0.0; q.len()],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; v.len()],
    };
    for (n, head, i) in each_query(batch, heads, queries) {
        let q_at = (n * queries + i) * columns + head * width;
        let k_at = |j: usize| (n * keys + j) * columns + head * width;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let scores: Vec<f64> = (0..keys)
            .map(|j| {
                let score = scale * dot(&q[q_at..][..width], &k[k_at(j)..][..width]);
                score + mask.map_or(0.0, |mask| f64::from(mask[n * keys + j]))
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            continue;
        }
        let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp() / sum).collect();
        let dp: Vec<f64> = (0..keys).map(|j| dot(&dout[q_at..][..width], &v[k_at(j)..][..width])).collect();
        let mean = dot(&p, &dp);
        for j in 0..keys {
            let ds = p[j] * (dp[j] - mean) * scale;
            for l in 0..width {
                result.out[q_at + l] += p[j] * v[k_at(j) + l];
                result.dq[q_at + l] += ds * k[k_at(j) + l];
                result.dk[k_at(j) + l] += ds * q[q_at + l];
                result.dv[k_at(j) + l] += p[j] * dout[q_at + l];
            }
        }
    }
    result
}

fn each_query(batch: usize, heads: usize, queries: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..batch).flat_map(move |n| (0..heads).flat_map(move |head| (0..queries).map(move |i| (n, head, i))))
}

fn check(shape: AttentionShape, mask: Option<&[f32]>) {
    let AttentionShape { batch, queries, keys, .. } = shape;
    let columns = shape.columns();
    let [q, k, v] =
        [(queries, 1), (keys, 2), (keys, 3)].map(|(rows, seed)| numbers(batch * rows * columns, seed));
    let dout = numbers(q.len(), 4);
    let rows = |data| Rows::whole(data, columns);
    let found = on_threads(|| {
        let (mut out, mut saved) = (garbage(q.len()), garbage(shape.saved_len()));
        forward(rows(&q), rows(&k), rows(&v), mask, shape, &mut out, &mut saved);
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| garbage(x.len()));
        let [to_q, to_k, to_v] = [&mut dq, &mut dk, &mut dv].map(|x| RowsMut::whole(x, columns));
        backward(rows(&q), rows(&k), rows(&v), mask, &saved, &dout, shape, to_q, to_k, to_v);
        [out, dq, dk, dv].concat()
    });
    let expected = expected(&wide(&q), &wide(&k), &wide(&v), mask, &wide(&dout), shape);
    assert_close(&found, &[expected.out, expected.dq, expected.dk, expected.dv].concat(), 2e-5);
}

#[test]
fn agrees_with_f64_at_every_remainder() {
    for tokens in [1, 5, 16, 63, 64, 65, 130] {
        for width in [1, 7, 32, 64, 80] {
            check(AttentionShape { batch: 2, heads: 2, queries: tokens, keys: tokens, width }, None);
        }
    }
    check(AttentionShape { batch: 1, heads: 4, queries: 128, keys: 128, width: 64 }, None);
    check(AttentionShape { batch: 1, heads: 1, queries: 512, keys: 512, width: 32 }, None);
}

#[test]
fn queries_and_keys_may_differ_in_number() {
    check(AttentionShape { batch: 2, heads: 3, queries: 3, keys: 77, width: 24 }, None);
    check(AttentionShape { batch: 2, heads: 3, queries: 77, keys: 3, width: 24 }, None);
}

#[test]
fn masked_keys_are_not_seen() {
    let shape = AttentionShape { batch: 3, heads: 2, queries: 70, keys: 70, width: 16 };
    let mut mask = vec![0.0; 3 * 70];
    for hidden in [3, 40, 68, 69] {
        mask[hidden] = f32::NEG_INFINITY;
    }
    // Of the second batch element all but one, of the third every key.
    mask[70..70 + 69].fill(f32::NEG_INFINITY);
    mask[140..].fill(f32::NEG_INFINITY);
    check(shape, Some(&mask));
    mask[140..].copy_from_slice(&numbers(70, 9));
    check(shape, Some(&mask));
}

/// Scores in the hundreds, where exponentials without a shift would overflow.
#[test]
fn large_scores_stay_finite() {
    let shape = AttentionShape { batch: 1, heads: 1, queries: 20, keys: 20, width: 8 };
    let q: Vec<f32> = numbers(160, 1).iter().map(|x| x * 200.0).collect();
    let v = numbers(160, 2);
    let rows = |data| Rows::whole(data, 8);
    let (mut out, mut saved) = (garbage(160), garbage(20));
    forward(rows(&q), rows(&q), rows(&v), None, shape, &mut out, &mut saved);
    let result = expected(&wide(&q), &wide(&q), &wide(&v), None, &[0.0; 160], shape);
    assert_close(&out, &result.out, 1e-3);
}

/// Slices of one packed projection give the bytes that separate matrices give, and nothing else is written.
#[test]
fn columns_of_a_packed_projection() {
    let shape = AttentionShape { batch: 2, heads: 3, queries: 33, keys: 33, width: 20 };
    let (rows, columns) = (66, shape.columns());
    let stride = 3 * columns + 5;
    let packed = numbers(rows * stride, 1);
    let dout = numbers(rows * columns, 2);
    let firsts = [0, columns + 2, 2 * columns + 4];
    let run = |q: Rows, k: Rows, v: Rows, gradients: [RowsMut; 3]| {
        let (mut out, mut saved) = (garbage(rows * columns), garbage(shape.saved_len()));
        forward(q, k, v, None, shape, &mut out, &mut saved);
        let [dq, dk, dv] = gradients;
        backward(q, k, v, None, &saved, &dout, shape, dq, dk, dv);
        out
    };

    let mut packed_gradients = vec![7.0; rows * stride];
    let [q, k, v] = firsts.map(|first| Rows { data: &packed, stride, first });
    let packed_out = run(q, k, v, RowsMut::split(&mut packed_gradients, stride, firsts, columns));

    let part = |from: &[f32], first: usize| -> Vec<f32> {
        from.chunks(stride).flat_map(|row| row[first..first + columns].to_vec()).collect()
    };
    let [q, k, v] = firsts.map(|first| part(&packed, first));
    let mut gradients = [(); 3].map(|()| garbage(rows * columns));
    let [dq, dk, dv] = gradients.each_mut().map(|x| RowsMut::whole(x, columns));
    let whole = |data| Rows::whole(data, columns);
    let out = run(whole(&q), whole(&k), whole(&v), [dq, dk, dv]);

    assert_eq!(packed_out, out);
    for (first, gradient) in firsts.into_iter().zip(&gradients) {
        assert_eq!(&part(&packed_gradients, first), gradient);
    }
    for row in packed_gradients.chunks(stride) {
        assert_eq!([row[columns], row[columns + 1], row[2 * columns + 2], row[stride - 1]], [7.0; 4]);
    }
}

#[test]
#[should_panic(expected = "overlap")]
fn overlapping_gradients_are_refused() {
    RowsMut::split(&mut [0.0; 30], 10, [0, 3], 4);
}
