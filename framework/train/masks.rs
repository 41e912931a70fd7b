//! Masks by magnitude, with the exact rule of the reference: `k = round_half_even(n · sparsity)` elements become zero,
//! those of smallest magnitude. Among equal magnitudes at the threshold the first ones in memory order stay.

use lacuna_recipe::{MaskStructure, Scope};

/// One byte for each weight: 1 open, 0 masked.
pub type Mask = Vec<u8>;

/// How many of `n` weights are zero at this sparsity.
pub fn zeros(n: usize, sparsity: f64) -> usize {
    (n as f64 * sparsity).round_ties_even() as usize
}

/// Masks for `weights` so that each (or, globally, all together) has exactly [`zeros`] zeros.
///
/// Errors: a structure that this crate does not make yet.
pub fn by_magnitude(
    weights: &[&[f32]],
    sparsity: f64,
    structure: MaskStructure,
    scope: Scope,
) -> Result<Vec<Mask>, String> {
    if structure != MaskStructure::Unstructured {
        return Err(format!(
            "masks of structure {structure:?} are not made yet; use mask_type: unstructured"
        ));
    }
    let mut masks: Vec<Mask> = weights.iter().map(|w| vec![1; w.len()]).collect();
    match scope {
        Scope::Uniform => {
            for (w, mask) in weights.iter().zip(&mut masks) {
                let order = ascending(w.iter().copied());
                for &i in &order[..zeros(w.len(), sparsity)] {
                    mask[i as usize] = 0;
                }
            }
        }
        Scope::Global => {
            let order = ascending(weights.iter().flat_map(|w| w.iter().copied()));
            let mut all: Mask = vec![1; order.len()];
            for &i in &order[..zeros(order.len(), sparsity)] {
                all[i as usize] = 0;
            }
            let mut rest = all.as_slice();
            for mask in &mut masks {
                let (own, others) = rest.split_at(mask.len());
                mask.copy_from_slice(own);
                rest = others;
            }
        }
    }
    Ok(masks)
}

/// Places in order of magnitude; of equal ones the later place first, so that the earlier survives.
fn ascending(weights: impl Iterator<Item = f32>) -> Vec<u32> {
    let magnitude: Vec<f32> = weights.map(f32::abs).collect();
    let mut order: Vec<u32> = (0..magnitude.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| magnitude[a as usize].total_cmp(&magnitude[b as usize]).then(b.cmp(&a)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_round_half_to_even() {
        assert_eq!([zeros(5, 0.5), zeros(7, 0.5), zeros(10, 0.85), zeros(1000, 0.9)], [2, 4, 8, 900]);
    }

    #[test]
    fn smallest_go_first_and_of_equals_the_later() {
        let w = [0.5, -0.1, 0.1, 3.0, -0.1, 0.0];
        let mask = |s| by_magnitude(&[&w], s, MaskStructure::Unstructured, Scope::Uniform).unwrap().remove(0);
        assert_eq!(mask(0.5), [1, 1, 0, 1, 0, 0]);
        assert_eq!(mask(0.0), [1; 6]);
        assert_eq!(mask(2.0 / 3.0), [1, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn global_masks_take_the_smallest_anywhere() {
        let (a, b) = ([1.0f32, 2.0, 3.0], [0.1f32, 0.2, 9.0]);
        let masks = by_magnitude(&[&a, &b], 0.5, MaskStructure::Unstructured, Scope::Global).unwrap();
        assert_eq!(masks, [vec![0, 1, 1], vec![0, 0, 1]]);
    }

    #[test]
    fn other_structures_are_refused_by_name() {
        let refused = by_magnitude(&[&[1.0]], 0.5, MaskStructure::Block4, Scope::Uniform);
        assert!(refused.unwrap_err().contains("Block4"));
    }
}
