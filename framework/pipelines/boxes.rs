//! Boxes, their overlap, and the best of those that overlap.

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

/// Most boxes that [`nms`] looks at: the best ones.
const CANDIDATES_MAX: usize = 30_000;

/// Non-maximum suppression: from the best score down, every box that overlaps no better one of its class by more than
/// `overlap`; at most `most`. Of equal scores the earlier counts as better.
pub fn nms(mut found: Vec<Detection>, overlap: f32, most: usize) -> Vec<Detection> {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(CANDIDATES_MAX);
    let mut kept: Vec<Detection> = Vec::new();
    for d in found {
        if kept.len() == most {
            break;
        }
        let hidden = kept.iter().any(|k| k.class == d.class && iou(&k.corners, &d.corners) > overlap);
        if !hidden {
            kept.push(d);
        }
    }
    kept
}
