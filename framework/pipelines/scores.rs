//! How well boxes were found: average precision of detections against labels.

use crate::Detection;
use crate::boxes::iou;
use lacuna_data::average_precision::{Guess, Scores, Truth, average_precision};
use lacuna_data::boxes::Label;

/// What is kept of a detector's boxes where precision is measured over all scores.
pub const SCORE_MIN: f32 = 0.001;
/// Most overlap with a better box of the class.
pub const OVERLAP_MAX: f32 = 0.6;
/// Most boxes of a picture.
pub const MOST: usize = 300;

/// The scores of what was found in each image; `labels` gives what is there.
pub fn scores_of(found: &[Vec<Detection>], labels: &dyn Fn(usize) -> Vec<Label>, classes: usize) -> Scores {
    let area = |c: &[f32; 4]| f64::from((c[2] - c[0]).max(0.0)) * f64::from((c[3] - c[1]).max(0.0));
    let (mut guesses, mut truths) = (Vec::new(), Vec::new());
    let (mut guessed, mut there) = (Vec::new(), Vec::new());
    for (image, detections) in (0u32..).zip(found) {
        for d in detections {
            let class = u32::try_from(d.class).unwrap_or(u32::MAX);
            guesses.push(Guess { image, class, area: area(&d.corners), score: f64::from(d.score) });
            guessed.push(d.corners);
        }
        for l in labels(image as usize) {
            truths.push(Truth { image, class: l.class, area: l.area, crowd: l.crowd, ignored: l.ignored });
            there.push(l.corners);
        }
    }
    average_precision(&truths, &guesses, classes, &|guess, truth| {
        let (a, b) = (&guessed[guess], &there[truth]);
        match truths[truth].crowd {
            false => f64::from(iou(a, b)),
            true => {
                let side = |lo: f32, hi: f32| (hi - lo).max(0.0);
                let common = side(a[0].max(b[0]), a[2].min(b[2])) * side(a[1].max(b[1]), a[3].min(b[3]));
                f64::from(common) / area(a).max(f64::MIN_POSITIVE)
            }
        }
    })
}
