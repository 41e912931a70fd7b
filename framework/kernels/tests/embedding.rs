//! Rows of a table and the gradient of the table.

mod support;

use lacuna_kernels::embedding::{RowId, backward, first_bad_id, forward};
use support::{garbage, numbers, on_threads};

/// Ids with many repeats of the first few rows, as words have.
fn ids(len: usize, vocabulary: usize) -> Vec<i64> {
    numbers(len, 5)
        .iter()
        .map(|x| ((x.abs() / 2.0).powi(4) * vocabulary as f32) as i64 % vocabulary as i64)
        .collect()
}

fn check<I: RowId>(ids: &[I], vocabulary: usize, width: usize) {
    let table = numbers(vocabulary * width, 1);
    let dy = numbers(ids.len() * width, 2);
    let out = on_threads(|| {
        let mut out = garbage(ids.len() * width);
        forward(&table, width, ids, &mut out);
        out
    });
    let mut expected = vec![0.0; table.len()];
    for (i, id) in ids.iter().enumerate() {
        let row = id.index() * width..(id.index() + 1) * width;
        assert_eq!(out[i * width..][..width], table[row.clone()]);
        for (sum, dy) in expected[row].iter_mut().zip(&dy[i * width..]) {
            *sum += dy;
        }
    }
    let gradient = on_threads(|| {
        let mut gradient = garbage(table.len());
        backward(ids, &dy, width, &mut gradient);
        gradient
    });
    // The sums are taken in the order of the ids, so they are exact.
    assert_eq!(gradient, expected);
}

#[test]
fn rows_and_their_gradient() {
    for (len, vocabulary, width) in [(1, 1, 1), (50, 10, 7), (4096, 3000, 64), (100, 40_000, 3), (0, 5, 4)] {
        let ids = ids(len, vocabulary);
        check(&ids, vocabulary, width);
        check(&ids.iter().map(|&id| id as i32).collect::<Vec<_>>(), vocabulary, width);
        check(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>(), vocabulary, width);
    }
}

#[test]
fn ids_outside_the_table_are_found() {
    assert_eq!(first_bad_id(&[0_i64, 4, 2], 5), None);
    assert_eq!(first_bad_id(&[0_i64, 5, 9], 5), Some(1));
    assert_eq!(first_bad_id(&[3_i64, 2, -1], 5), Some(2));
    assert_eq!(first_bad_id(&[-1_i32], 5), Some(0));
    assert_eq!(first_bad_id(&[u32::MAX], 5), Some(0));
}

#[test]
#[should_panic(expected = "id number 1 is not one of 5 rows")]
fn a_gradient_of_no_row_is_refused() {
    backward(&[0_i64, 5], &[1.0; 4], 2, &mut [0.0; 10]);
}
