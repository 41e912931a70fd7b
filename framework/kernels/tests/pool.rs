//! Pooling against its definition, and gradients by what each window passes on.

use lacuna_kernels::pool;
use lacuna_kernels::shape::{ConvShape, Window};

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect()
}

fn shapes() -> Vec<ConvShape> {
    let mut shapes = Vec::new();
    for c in [1, 3, 16, 24, 40, 64] {
        shapes.push(pool::shape([2, c, 11, 9], [3, 3], Window::new(2, 1)));
        shapes.push(pool::shape([1, c, 8, 8], [2, 2], Window::new(2, 0)));
        let uneven =
            Window { stride: [1, 2], pad_begin: [0, 1], pad_end: [2, 0], dilation: [2, 1], groups: 1 };
        shapes.push(pool::shape([3, c, 7, 6], [3, 2], uneven));
    }
    shapes
}

/// (place in the window, index into x) of every place of a window that is in the image.
fn window(s: &ConvShape, y_index: usize) -> Vec<(u8, usize)> {
    let (ch, pixel) = (y_index % s.c, y_index / s.c);
    let (image, oy, ox) = (pixel / (s.oh * s.ow), pixel / s.ow % s.oh, pixel % s.ow);
    let mut places = Vec::new();
    for ky in 0..s.kh {
        for kx in 0..s.kw {
            let y = (oy * s.stride[0] + ky * s.dilation[0]) as isize - s.pad_begin[0] as isize;
            let x = (ox * s.stride[1] + kx * s.dilation[1]) as isize - s.pad_begin[1] as isize;
            if (0..s.h as isize).contains(&y) && (0..s.w as isize).contains(&x) {
                let at = ((image * s.h + y as usize) * s.w + x as usize) * s.c + ch;
                places.push(((ky * s.kw + kx) as u8, at));
            }
        }
    }
    places
}

#[test]
fn maxima_and_their_gradients() {
    for s in shapes() {
        let x = values(s.x_len());
        let (mut y, mut at) = (vec![f32::NAN; s.y_len()], vec![255; s.y_len()]);
        pool::max(&x, &s, &mut y, &mut at);
        let dy: Vec<f32> = (0..s.y_len()).map(|i| (i % 31) as f32).collect();
        let mut expected = vec![0f32; x.len()];
        for i in 0..y.len() {
            let places = window(&s, i);
            let best = places.iter().map(|&(_, at)| x[at]).fold(f32::NEG_INFINITY, f32::max);
            let &(place, from) = places.iter().find(|&&(_, at)| x[at] == best).unwrap();
            assert_eq!((y[i], at[i]), (best, place), "{s:?} at {i}");
            expected[from] += dy[i];
        }
        let mut dx = vec![f32::NAN; x.len()];
        pool::max_backward(&dy, &at, &s, &mut dx);
        assert_eq!(dx, expected, "{s:?}");
    }
}

#[test]
fn the_first_of_equals_and_any_nan_is_the_maximum() {
    let s = pool::shape([1, 17, 2, 2], [2, 2], Window::new(2, 0));
    let (mut y, mut at) = (vec![0.0; 17], vec![9; 17]);
    let mut x = vec![f32::NEG_INFINITY; s.x_len()];
    // A NaN in the second pixel, seen in whole vectors and in the rest.
    x[17] = f32::NAN;
    x[17 + 16] = f32::NAN;
    x[34] = 5.0;
    x[50] = 5.0;
    pool::max(&x, &s, &mut y, &mut at);
    assert!(y[0].is_nan() && y[16].is_nan());
    assert_eq!((y[1], at[1], at[0], at[16]), (f32::NEG_INFINITY, 0, 1, 1));
}

#[test]
fn the_average_of_an_image() {
    for c in [1, 3, 16, 24, 40, 64, 300, 1152] {
        for (n, pixels) in [(1, 1), (3, 49), (2, 200)] {
            let x: Vec<f32> = values(n * pixels * c).iter().map(|x| x + 1.0).collect();
            let mut y = vec![f32::NAN; n * c];
            pool::global_average(&x, [n, pixels, c], &mut y);
            for (i, y) in y.iter().enumerate() {
                let image = &x[i / c * pixels * c..][..pixels * c];
                let sum: f64 = image[i % c..].iter().step_by(c).map(|&x| x as f64).sum();
                assert!((*y as f64 - sum / pixels as f64).abs() < 1e-6, "[{n}][{pixels}][{c}]");
            }
            let mut dx = vec![f32::NAN; x.len()];
            pool::global_average_backward(&y, [n, pixels, c], &mut dx);
            for (i, &dx) in dx.iter().enumerate() {
                assert_eq!(dx, y[i / (pixels * c) * c + i % c] / pixels as f32);
            }
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let s = pool::shape([3, 24, 30, 30], [3, 3], Window::new(1, 1));
    let run = |threads: usize| {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        threads.install(|| {
            let (x, mut y, mut at) = (values(s.x_len()), vec![f32::NAN; s.y_len()], vec![0; s.y_len()]);
            pool::max(&x, &s, &mut y, &mut at);
            let mut dx = vec![f32::NAN; s.x_len()];
            pool::max_backward(&y, &at, &s, &mut dx);
            let mut mean = vec![f32::NAN; 3 * 24];
            pool::global_average(&dx, [3, 900, 24], &mut mean);
            (y, dx, mean)
        })
    };
    assert_eq!(run(1), run(2));
}
