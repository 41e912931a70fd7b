//! Optimisers' updates of one parameter tensor in a single pass over its memory, in place.
//!
//! Under a mask (0: masked) a masked weight and its state are exactly +0.0 afterwards, and an open weight that comes to
//! +0.0 becomes -0.0: the bits of +0.0 mean "masked" to the kernels for sparse weights.

use crate::activation::CHUNK;
use crate::by_isa;
use rayon::prelude::*;

/// Stochastic gradient descent in PyTorch's form: v = momentum · v + g + decay · w; w -= lr · v, or, with Nesterov's
/// momentum, w -= lr · (g + decay · w + momentum · v).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    pub lr: f64,
    pub momentum: f64,
    pub decay: f64,
    pub nesterov: bool,
}

/// AdamW (Loshchilov and Hutter, 2019) with the operations of PyTorch's: decay apart from the gradient, both moments
/// corrected for their start at zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub decay: f64,
}

/// Updates `w` and its momentum buffer `v`, which is zero before the first step, by the gradient `g`.
///
/// # Panics
/// If lengths differ.
pub fn sgd(w: &mut [f32], v: &mut [f32], g: &[f32], mask: Option<&[u8]>, rule: &Sgd) {
    let len = w.len();
    assert!(v.len() == len && g.len() == len, "w, v and g differ in length");
    assert!(mask.is_none_or(|m| m.len() == len), "the mask has another length than w");
    let rule = SgdStep {
        lr: rule.lr as f32,
        momentum: rule.momentum as f32,
        decay: rule.decay as f32,
        nesterov: rule.nesterov,
    };
    let parts = w.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK));
    parts.enumerate().for_each(|(i, ((w, v), g))| match mask {
        None => sgd_part(w, v, g, rule),
        Some(mask) => sgd_masked_part(w, v, g, &mask[i * CHUNK..][..w.len()], rule),
    });
}

/// Updates `w` and its moments `m` and `v`, which are zero before the first step, by the gradient `g`. `step` counts from 1.
///
/// # Panics
/// If lengths differ, or `step` is 0.
pub fn adamw(
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    g: &[f32],
    mask: Option<&[u8]>,
    step: u64,
    rule: &AdamW,
) {
    let len = w.len();
    assert!(m.len() == len && v.len() == len && g.len() == len, "w, m, v and g differ in length");
    assert!(mask.is_none_or(|m| m.len() == len), "the mask has another length than w");
    assert!(step > 0, "steps count from 1");
    let step = step as f64;
    let rule = AdamStep {
        keep: (1.0 - rule.lr * rule.decay) as f32,
        blend1: (1.0 - rule.beta1) as f32,
        beta2: rule.beta2 as f32,
        blend2: (1.0 - rule.beta2) as f32,
        correction: (1.0 - rule.beta2.powf(step)).sqrt() as f32,
        eps: rule.eps as f32,
        size: (rule.lr / (1.0 - rule.beta1.powf(step))) as f32,
    };
    let state = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
    let parts = w.par_chunks_mut(CHUNK).zip(state).zip(g.par_chunks(CHUNK));
    parts.enumerate().for_each(|(i, ((w, (m, v)), g))| match mask {
        None => adamw_part(w, m, v, g, rule),
        Some(mask) => adamw_masked_part(w, m, v, g, &mask[i * CHUNK..][..w.len()], rule),
    });
}

/// [`Sgd`] as the loops use it.
#[derive(Clone, Copy)]
struct SgdStep {
    lr: f32,
    momentum: f32,
    decay: f32,
    nesterov: bool,
}

impl SgdStep {
    /// New weight and momentum.
    #[inline(always)]
    fn step(self, w: f32, v: f32, g: f32) -> (f32, f32) {
        let g = g + self.decay * w;
        let v = self.momentum * v + g;
        let direction = if self.nesterov { g + self.momentum * v } else { v };
        (w - self.lr * direction, v)
    }
}

/// [`AdamW`] as the loops use it, at one step.
#[derive(Clone, Copy)]
struct AdamStep {
    /// Share of a weight that decay leaves.
    keep: f32,
    blend1: f32,
    beta2: f32,
    blend2: f32,
    /// What the root of the second moment is divided by.
    correction: f32,
    eps: f32,
    /// The learning rate, corrected for the first moment.
    size: f32,
}

impl AdamStep {
    /// New weight and moments.
    #[inline(always)]
    fn step(self, w: f32, m: f32, v: f32, g: f32) -> (f32, f32, f32) {
        let w = w * self.keep;
        let m = m + self.blend1 * (g - m);
        let v = v * self.beta2 + self.blend2 * g * g;
        let deviation = v.sqrt() / self.correction + self.eps;
        (w - self.size * m / deviation, m, v)
    }
}

/// An open weight never has the bits of a masked one.
#[inline(always)]
fn held(w: f32, open: bool) -> f32 {
    let w = if w.to_bits() == 0 { -0.0 } else { w };
    if open { w } else { 0.0 }
}

by_isa! {
    fn sgd_part(w: &mut [f32], v: &mut [f32], g: &[f32], rule: SgdStep) {
        for ((w, v), &g) in w.iter_mut().zip(v).zip(g) {
            (*w, *v) = rule.step(*w, *v, g);
        }
    }
}

by_isa! {
    fn sgd_masked_part(w: &mut [f32], v: &mut [f32], g: &[f32], mask: &[u8], rule: SgdStep) {
        for (((w, v), &g), &open) in w.iter_mut().zip(v).zip(g).zip(mask) {
            let (w_new, v_new) = rule.step(*w, *v, g);
            *w = held(w_new, open != 0);
            *v = if open != 0 { v_new } else { 0.0 };
        }
    }
}

by_isa! {
    fn adamw_part(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], rule: AdamStep) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            (*w, *m, *v) = rule.step(*w, *m, *v, g);
        }
    }
}

by_isa! {
    fn adamw_masked_part(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], mask: &[u8], rule: AdamStep) {
        for ((((w, m), v), &g), &open) in w.iter_mut().zip(m).zip(v).zip(g).zip(mask) {
            let (w_new, m_new, v_new) = rule.step(*w, *m, *v, g);
            *w = held(w_new, open != 0);
            *m = if open != 0 { m_new } else { 0.0 };
            *v = if open != 0 { v_new } else { 0.0 };
        }
    }
}
