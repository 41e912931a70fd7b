//! Boxes, their overlap, and the best of those that overlap.

use std::collections::HashMap;

/// An object that was found.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Detection {
    /// Left, top, right, bottom, in pixels.
    #[serde(rename = "box")]
    pub corners: [f32; 4],
    pub class: usize,
    /// 0 to 1.
    pub score: f32,
}

/// Area of the intersection over area of the union; 0 where there is no union.
pub fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let side = |lo: f32, hi: f32| (hi - lo).max(0.0);
    let area = |c: &[f32; 4]| side(c[0], c[2]) * side(c[1], c[3]);
    let common = side(a[0].max(b[0]), a[2].min(b[2])) * side(a[1].max(b[1]), a[3].min(b[3]));
    let union = area(a) + area(b) - common;
    if union > 0.0 { common / union } else { 0.0 }
}

/// Most boxes that suppression looks at: the best ones.
const CANDIDATES_MAX: usize = 30_000;

/// Which of the boxes that overlap stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppression {
    /// From the best score down, every box that overlaps no better one of its class that stayed.
    Greedy,
    /// Every box that overlaps no better one of its class, whether that one stayed or not (Bolya et al., 2019,
    /// arXiv:1904.02689, section 3.3).
    Fast,
}

/// The places in `found` of at most `most` boxes that stay, best first: boxes overlap if they share more than `overlap` of
/// their union. Of equal scores the earlier counts as better.
pub fn suppress(found: &[Detection], by: Suppression, overlap: f32, most: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by(|&a, &b| found[b].score.total_cmp(&found[a].score));
    order.truncate(CANDIDATES_MAX);
    // Boxes of each class that hide others, best first.
    let mut hiding: HashMap<usize, Vec<[f32; 4]>> = HashMap::new();
    let mut kept = Vec::new();
    for i in order {
        if kept.len() == most {
            break;
        }
        let Detection { corners, class, .. } = &found[i];
        let hiding = hiding.entry(*class).or_default();
        let hidden = hiding.iter().any(|better| iou(better, corners) > overlap);
        if !hidden {
            kept.push(i);
        }
        if !hidden || by == Suppression::Fast {
            hiding.push(*corners);
        }
    }
    kept
}

/// The boxes that stay of greedy suppression, see [`suppress`].
pub fn nms(found: Vec<Detection>, overlap: f32, most: usize) -> Vec<Detection> {
    suppress(&found, Suppression::Greedy, overlap, most).into_iter().map(|i| found[i]).collect()
}
