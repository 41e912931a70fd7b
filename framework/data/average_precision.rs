//! Average precision and recall of detectors as COCO defines them (Lin et al., 2014, arXiv:1405.0312; the numbers are
//! those of its reference program, pycocotools).
//!
//! Of each picture and class, guesses from the best score down take the truth they overlap most. All guesses of a class,
//! again from the best score down, give precision over recall; its envelope is read at 101 recalls. What is averaged: ten
//! overlaps from 0.5 to 0.95, and all classes that have truths.
//!
//! Boxes, masks or whatever else overlaps: the caller says how much (`overlap`).

use std::ops::Range;

/// An object that is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truth {
    pub image: u32,
    pub class: u32,
    /// In pixels: decides which range of sizes it belongs to.
    pub area: f64,
    /// A group of objects: it may be found any number of times, and counts neither for nor against.
    pub crowd: bool,
    /// Counts neither for nor against, but is found once only ("difficult" in Pascal VOC). A crowd is always ignored.
    pub ignored: bool,
}

/// An object that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    pub image: u32,
    pub class: u32,
    pub area: f64,
    pub score: f64,
}

/// Names of [`Scores::stats`], in the order in which COCO lists them.
pub const STATS: [&str; 12] = [
    "AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge", "AR1", "AR10", "AR100", "ARsmall", "ARmedium",
    "ARlarge",
];

/// What [`average_precision`] finds. `None` stands where there is no truth to find.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    pub stats: [Option<f64>; 12],
    /// AP and AP50 of each class.
    pub per_class: Vec<Option<[f64; 2]>>,
}

impl Scores {
    /// Mean over overlaps 0.5 to 0.95; 0 where there is nothing to find.
    pub fn map(&self) -> f64 {
        self.stats[0].unwrap_or(0.0)
    }

    /// At overlap 0.5; 0 where there is nothing to find.
    pub fn map50(&self) -> f64 {
        self.stats[1].unwrap_or(0.0)
    }
}

const OVERLAPS: usize = 10;
const RECALLS: usize = 101;
/// Guesses of one picture and class that are looked at.
const GUESSES_MAX: usize = 100;
/// All sizes, small, medium, large: areas in pixels.
const AREAS: [[f64; 2]; 4] =
    [[0.0, 1e10], [0.0, 32.0 * 32.0], [32.0 * 32.0, 96.0 * 96.0], [96.0 * 96.0, 1e10]];
/// Range of areas and number of guesses of each table that is needed: of all sizes with 1, 10 and 100, then by size.
const TABLES: [(usize, usize); 6] = [(0, 1), (0, 10), (0, 100), (1, 100), (2, 100), (3, 100)];

/// The i-th of the least overlaps that count as found.
fn least_overlap(i: usize) -> f64 {
    // As numpy's linspace rounds them.
    if i + 1 == OVERLAPS { 0.95 } else { i as f64 * ((0.95 - 0.5) / 9.0) + 0.5 }
}

/// The scores of all guesses of `classes` classes. `overlap(guess, truth)`, of indices, is 0 to 1: intersection over union,
/// or over the guess alone where the truth is a crowd.
pub fn average_precision(
    truths: &[Truth],
    guesses: &[Guess],
    classes: usize,
    overlap: &dyn Fn(usize, usize) -> f64,
) -> Scores {
    let truth_order = sorted(truths.len(), |i| (truths[i].class, truths[i].image));
    let guess_order = sorted(guesses.len(), |i| (guesses[i].class, guesses[i].image));
    let (mut truth_at, mut guess_at) = (0, 0);
    let mut curves: Vec<Option<[Curve; TABLES.len()]>> = Vec::with_capacity(classes);
    for class in 0..classes as u32 {
        let of_truths = next_group(&truth_order, &mut truth_at, |i| truths[i].class == class);
        let of_guesses = next_group(&guess_order, &mut guess_at, |i| guesses[i].class == class);
        curves.push(class_curves(truths, guesses, of_truths, of_guesses, overlap));
    }
    Scores { stats: stats(&curves), per_class: per_class(&curves) }
}

fn sorted<K: Ord>(n: usize, key: impl Fn(usize) -> K) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&i| key(i));
    order
}

/// The items from `at` on that belong together; `at` moves behind them.
fn next_group<'a>(order: &'a [usize], at: &mut usize, belongs: impl Fn(usize) -> bool) -> &'a [usize] {
    let len = order[*at..].iter().take_while(|&&i| belongs(i)).count();
    *at += len;
    &order[*at - len..*at]
}

/// Precision at each recall, and the last recall, for each least overlap.
#[derive(Clone, Debug)]
struct Curve {
    /// Of no use where there is no truth of these sizes.
    truths: usize,
    precision: Vec<[f64; RECALLS]>,
    recall: [f64; OVERLAPS],
}

/// A guess after matching: bit t of `found` and `ignored` is of the t-th least overlap.
#[derive(Clone, Copy, Debug)]
struct Matched {
    score: f64,
    /// Place among the guesses of its picture.
    rank: usize,
    found: u16,
    ignored: u16,
}

/// The curves of one class; none where nothing is there.
fn class_curves(
    truths: &[Truth],
    guesses: &[Guess],
    of_truths: &[usize],
    of_guesses: &[usize],
    overlap: &dyn Fn(usize, usize) -> f64,
) -> Option<[Curve; TABLES.len()]> {
    if of_truths.is_empty() {
        return None;
    }
    let mut images: Vec<u32> = of_truths
        .iter()
        .map(|&i| truths[i].image)
        .chain(of_guesses.iter().map(|&i| guesses[i].image))
        .collect();
    images.sort_unstable();
    images.dedup();
    let (mut truth_at, mut guess_at) = (0, 0);
    let mut matched: [Vec<Matched>; 4] = Default::default();
    let mut counted = [0; 4];
    for image in images {
        let here = next_group(of_truths, &mut truth_at, |i| truths[i].image == image);
        let mut found = next_group(of_guesses, &mut guess_at, |i| guesses[i].image == image).to_vec();
        found.sort_by(|&a, &b| guesses[b].score.total_cmp(&guesses[a].score));
        found.truncate(GUESSES_MAX);
        let table: Vec<f64> = found
            .iter()
            .flat_map(|&g| here.iter().map(move |&t| (g, t)))
            .map(|(g, t)| overlap(g, t))
            .collect();
        for (range, area) in AREAS.iter().enumerate() {
            counted[range] += match_image(truths, guesses, here, &found, &table, *area, &mut matched[range]);
        }
    }
    for range in &mut matched {
        range.sort_by(|a, b| b.score.total_cmp(&a.score));
    }
    Some(TABLES.map(|(range, most)| curve(&matched[range], counted[range], most)))
}

/// Matches the guesses of one picture to its truths for one range of areas; returns how many truths count.
fn match_image(
    truths: &[Truth],
    guesses: &[Guess],
    here: &[usize],
    found: &[usize],
    table: &[f64],
    area: [f64; 2],
    matched: &mut Vec<Matched>,
) -> usize {
    let outside = |a: f64| a < area[0] || a > area[1];
    let ignored = |t: usize| {
        let truth = &truths[here[t]];
        truth.crowd || truth.ignored || outside(truth.area)
    };
    // Truths that count come first: a guess takes another only where none of them will do.
    let mut order: Vec<usize> = (0..here.len()).collect();
    order.sort_by_key(|&t| ignored(t));
    let counted = order.partition_point(|&t| !ignored(t));
    let first = matched.len();
    matched.extend(found.iter().enumerate().map(|(rank, &g)| Matched {
        score: guesses[g].score,
        rank,
        found: 0,
        ignored: 0,
    }));
    let mut taken = vec![false; here.len()];
    for t in 0..OVERLAPS {
        taken.fill(false);
        for (rank, &g) in found.iter().enumerate() {
            let row = &table[rank * here.len()..][..here.len()];
            let free = |truth: usize| !taken[truth] || truths[here[truth]].crowd;
            let least = least_overlap(t);
            let best = best_of(row, order[..counted].iter().copied().filter(|&t| free(t)), least)
                .or_else(|| best_of(row, order[counted..].iter().copied().filter(|&t| free(t)), least));
            let result = &mut matched[first + rank];
            match best {
                Some(truth) => {
                    taken[truth] = true;
                    result.found |= 1 << t;
                    result.ignored |= u16::from(ignored(truth)) << t;
                }
                None => result.ignored |= u16::from(outside(guesses[g].area)) << t,
            }
        }
    }
    counted
}

/// The candidate with the largest overlap of at least `least`, the last of equals.
fn best_of(row: &[f64], candidates: impl Iterator<Item = usize>, least: f64) -> Option<usize> {
    let better = |best: Option<usize>, t: usize| {
        let bar = best.map_or(least, |best| row[best]);
        if row[t] < bar { best } else { Some(t) }
    };
    candidates.fold(None, better)
}

/// Precision over recall of guesses in order of their scores, of which the first `most` of each picture count.
fn curve(matched: &[Matched], truths: usize, most: usize) -> Curve {
    let mut curve = Curve { truths, precision: vec![[0.0; RECALLS]; OVERLAPS], recall: [0.0; OVERLAPS] };
    if truths == 0 {
        return curve;
    }
    let (mut recall, mut precision) = (Vec::new(), Vec::new());
    for t in 0..OVERLAPS {
        recall.clear();
        precision.clear();
        let (mut right, mut wrong) = (0.0, 0.0);
        for m in matched.iter().filter(|m| m.rank < most) {
            if m.ignored >> t & 1 == 0 {
                *(if m.found >> t & 1 == 1 { &mut right } else { &mut wrong }) += 1.0;
            }
            recall.push(right / truths as f64);
            precision.push(right / (right + wrong + f64::EPSILON));
        }
        curve.recall[t] = recall.last().copied().unwrap_or(0.0);
        for i in (1..precision.len()).rev() {
            precision[i - 1] = f64::max(precision[i - 1], precision[i]);
        }
        for (r, at) in curve.precision[t].iter_mut().enumerate() {
            let least = if r + 1 == RECALLS { 1.0 } else { r as f64 * 0.01 };
            *at = precision.get(recall.partition_point(|&have| have < least)).copied().unwrap_or(0.0);
        }
    }
    curve
}

fn stats(classes: &[Option<[Curve; TABLES.len()]>]) -> [Option<f64>; 12] {
    let precision = |table, overlaps: Range<usize>| {
        mean(classes, table, |c| {
            overlaps.clone().map(|t| mean_of(&c.precision[t])).sum::<f64>() / overlaps.len() as f64
        })
    };
    let recall = |table| mean(classes, table, |c| mean_of(&c.recall));
    [
        precision(2, 0..OVERLAPS),
        precision(2, 0..1),
        precision(2, 5..6),
        precision(3, 0..OVERLAPS),
        precision(4, 0..OVERLAPS),
        precision(5, 0..OVERLAPS),
        recall(0),
        recall(1),
        recall(2),
        recall(3),
        recall(4),
        recall(5),
    ]
}

fn mean_of(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Over the classes that have truths in a table.
fn mean(classes: &[Option<[Curve; TABLES.len()]>], table: usize, of: impl Fn(&Curve) -> f64) -> Option<f64> {
    let values: Vec<f64> =
        classes.iter().flatten().map(|curves| &curves[table]).filter(|c| c.truths > 0).map(of).collect();
    (!values.is_empty()).then(|| mean_of(&values))
}

fn per_class(classes: &[Option<[Curve; TABLES.len()]>]) -> Vec<Option<[f64; 2]>> {
    let one = |curves: &[Curve; TABLES.len()]| {
        let all = &curves[2];
        let by_overlap: Vec<f64> = all.precision.iter().map(|p| mean_of(p)).collect();
        (all.truths > 0).then(|| [mean_of(&by_overlap), by_overlap[0]])
    };
    classes.iter().map(|curves| curves.as_ref().and_then(one)).collect()
}
