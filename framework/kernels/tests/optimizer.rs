//! Optimisers against f64, and the zeros of masked weights.

use lacuna_kernels::optimizer::{self, AdamW, Sgd};

const LENS: [usize; 4] = [1, 17, 1000, 40_003];

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
}

fn mask(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 3 != 0) as u8).collect()
}

fn close(a: f32, b: f64) -> bool {
    (a as f64 - b).abs() < 1e-6 * (1.0 + b.abs())
}

#[test]
fn sgd_agrees_with_f64() {
    for len in LENS {
        for nesterov in [false, true] {
            let rule = Sgd { lr: 0.1, momentum: 0.9, decay: 1e-2, nesterov };
            let (mut w, mut v) = (values(len, 1), vec![0f32; len]);
            let mut expected: Vec<(f64, f64)> = w.iter().map(|&w| (w as f64, 0.0)).collect();
            for step in 0..4 {
                let g = values(len, 2 + step);
                optimizer::sgd(&mut w, &mut v, &g, None, &rule);
                for ((w, v), &g) in expected.iter_mut().zip(&g) {
                    let g = g as f64 + rule.decay * *w;
                    *v = rule.momentum * *v + g;
                    *w -= rule.lr * if nesterov { g + rule.momentum * *v } else { *v };
                }
            }
            for i in 0..len {
                assert!(close(w[i], expected[i].0) && close(v[i], expected[i].1), "{i} of {len}");
            }
        }
    }
}

#[test]
fn adamw_agrees_with_f64() {
    let rule = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1 };
    for len in LENS {
        let (mut w, mut m, mut v) = (values(len, 1), vec![0f32; len], vec![0f32; len]);
        let mut expected: Vec<[f64; 3]> = w.iter().map(|&w| [w as f64, 0.0, 0.0]).collect();
        for step in 1..6 {
            let g = values(len, 2 + step as usize);
            optimizer::adamw(&mut w, &mut m, &mut v, &g, None, step, &rule);
            for ([w, m, v], &g) in expected.iter_mut().zip(&g) {
                let g = g as f64;
                *w -= rule.lr * rule.decay * *w;
                *m = rule.beta1 * *m + (1.0 - rule.beta1) * g;
                *v = rule.beta2 * *v + (1.0 - rule.beta2) * g * g;
                let m = *m / (1.0 - rule.beta1.powi(step as i32));
                let v = *v / (1.0 - rule.beta2.powi(step as i32));
                *w -= rule.lr * m / (v.sqrt() + rule.eps);
            }
        }
        for i in 0..len {
            let [ew, em, ev] = expected[i];
            assert!(close(w[i], ew) && close(m[i], em) && close(v[i], ev), "{i} of {len}");
        }
    }
}

/// AdamW's known answers: `torch.optim.AdamW` of PyTorch 2.15 in f32, three steps.
#[test]
fn adamw_gives_the_values_of_pytorch() {
    let rule = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1 };
    let mut w = [0.5, -0.25, 1.5, 0.0];
    let (mut m, mut v) = ([0.0; 4], [0.0; 4]);
    let steps = [[0.1, -0.2, 0.3, 1e-3], [0.4, 0.2, -0.1, -2e-3], [-0.3, 0.05, 0.7, 1e-4]];
    for (i, g) in steps.iter().enumerate() {
        optimizer::adamw(&mut w, &mut m, &mut v, g, None, i as u64 + 1, &rule);
    }
    let expected: [f32; 4] = [0.477_919_52, -0.24131, 1.474_431_2, -0.003_780_988_3];
    for (w, e) in w.iter().zip(expected) {
        assert!((w - e).abs() <= 1e-7 * (1.0 + e.abs()), "{w} {e}");
    }
}

#[test]
fn masked_weights_and_their_state_are_zero() {
    for len in LENS {
        let mask = mask(len);
        let sgd_rule = Sgd { lr: 0.1, momentum: 0.9, decay: 1e-2, nesterov: false };
        let adam_rule = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1 };
        let g = values(len, 3);
        // What is under the mask before is of no account: -0.0, NaN and others.
        let start = |seed| {
            let mut w = values(len, seed);
            w[0] = f32::NAN;
            w
        };
        let (mut w, mut v) = (start(1), start(2));
        let (mut w_open, mut v_open) = (w.clone(), v.clone());
        optimizer::sgd(&mut w, &mut v, &g, Some(&mask), &sgd_rule);
        optimizer::sgd(&mut w_open, &mut v_open, &g, None, &sgd_rule);
        check(&mask, &[&w, &v], &[&w_open, &v_open]);

        let (mut w, mut m, mut v) = (start(1), start(2), vec![0.5; len]);
        let (mut w_open, mut m_open, mut v_open) = (w.clone(), m.clone(), v.clone());
        optimizer::adamw(&mut w, &mut m, &mut v, &g, Some(&mask), 3, &adam_rule);
        optimizer::adamw(&mut w_open, &mut m_open, &mut v_open, &g, None, 3, &adam_rule);
        check(&mask, &[&w, &m, &v], &[&w_open, &m_open, &v_open]);
    }
}

fn check(mask: &[u8], found: &[&[f32]], unmasked: &[&[f32]]) {
    for (found, unmasked) in found.iter().zip(unmasked) {
        for ((found, unmasked), &open) in found.iter().zip(*unmasked).zip(mask) {
            if open == 0 {
                assert_eq!(found.to_bits(), 0);
            } else {
                assert_eq!(found, unmasked);
            }
        }
    }
}

#[test]
fn an_open_weight_that_comes_to_zero_is_negative_zero() {
    let mut w = [1.0, 0.0, -0.0, 1.0];
    let rule = Sgd { lr: 1.0, momentum: 0.0, decay: 0.0, nesterov: false };
    optimizer::sgd(&mut w, &mut [0.0; 4], &[1.0, 0.0, 0.0, 1.0], Some(&[1, 1, 1, 0]), &rule);
    assert_eq!(w.map(f32::to_bits), [-0.0f32, -0.0, -0.0, 0.0].map(f32::to_bits));
    let rule = AdamW { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0 };
    let mut w = [0.0; 2];
    optimizer::adamw(&mut w, &mut [0.0; 2], &mut [0.0; 2], &[0.0; 2], Some(&[1, 0]), 1, &rule);
    assert_eq!(w.map(f32::to_bits), [-0.0f32, 0.0].map(f32::to_bits));
}
