//! Metrics of classification: top-k accuracy, confusion matrix, running mean.

use crate::error::{Error, Result};

/// Index of the largest value, the first of equals; NaN counts as smallest, an empty row gives 0.
pub fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &v) in row.iter().enumerate() {
        if v > row[best] || (row[best].is_nan() && !v.is_nan()) {
            best = i;
        }
    }
    best
}

/// How many rows of `logits` (`[n, classes]`, row-major) have their label among the `k` largest.
/// Of equal values the lower class comes first, as in [`argmax`]; a NaN label is never a hit.
pub fn top_k_correct(logits: &[f32], classes: usize, labels: &[i64], k: usize) -> Result<usize> {
    check(logits, classes, labels)?;
    let hit = |row: &[f32], label: i64| {
        let label = label as usize;
        let own = row[label];
        let ahead = |(i, &v): (usize, &f32)| v > own || (v == own && i < label);
        !own.is_nan() && row.iter().enumerate().filter(|&x| ahead(x)).count() < k
    };
    Ok(logits.chunks_exact(classes).zip(labels).filter(|&(row, &label)| hit(row, label)).count())
}

/// Share of rows whose largest logit is the label, 0..=1; 0 for no rows.
pub fn top1(logits: &[f32], classes: usize, labels: &[i64]) -> Result<f64> {
    Ok(top_k_correct(logits, classes, labels, 1)? as f64 / labels.len().max(1) as f64)
}

fn check(logits: &[f32], classes: usize, labels: &[i64]) -> Result<()> {
    if classes == 0 || labels.len().checked_mul(classes) != Some(logits.len()) {
        let (have, n) = (logits.len(), labels.len());
        return Err(Error::argument(
            "logits",
            format!("{have} values are not {n} rows of {classes} classes"),
        ));
    }
    match labels.iter().find(|&&l| usize::try_from(l).map_or(true, |l| l >= classes)) {
        Some(label) => Err(Error::argument("labels", format!("label {label}, of {classes} classes"))),
        None => Ok(()),
    }
}

/// Counts of (true class, predicted class).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    pub classes: usize,
    /// `[true, predicted]`, row-major.
    pub counts: Vec<u64>,
}

impl Confusion {
    /// An empty matrix; `classes` is 1 to 65,536.
    pub fn new(classes: usize) -> Result<Self> {
        if !(1..=1 << 16).contains(&classes) {
            return Err(Error::argument("classes", format!("{classes} is not between 1 and 65536")));
        }
        Ok(Confusion { classes, counts: vec![0; classes * classes] })
    }

    /// Adds `[n, classes]` logits and their labels.
    pub fn add(&mut self, logits: &[f32], labels: &[i64]) -> Result<()> {
        check(logits, self.classes, labels)?;
        for (row, &label) in logits.chunks_exact(self.classes).zip(labels) {
            self.counts[label as usize * self.classes + argmax(row)] += 1;
        }
        Ok(())
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share on the diagonal, 0..=1; 0 when empty.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|i| self.counts[i * self.classes + i]).sum();
        ratio(right, self.total())
    }

    /// Share of class `class` that was recognised.
    pub fn recall(&self, class: usize) -> f64 {
        let row = &self.counts[class * self.classes..][..self.classes];
        ratio(row[class], row.iter().sum())
    }

    /// Share of the predictions of `class` that were right.
    pub fn precision(&self, class: usize) -> f64 {
        let column = self.counts.iter().skip(class).step_by(self.classes);
        ratio(self.counts[class * self.classes + class], column.sum())
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A mean weighted by counts, as of a loss over batches of different sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    pub sum: f64,
    pub count: u64,
}

impl Mean {
    /// Adds `count` values whose mean is `value`.
    pub fn add(&mut self, value: f64, count: u64) {
        self.sum += value * count as f64;
        self.count += count;
    }

    /// 0 when empty.
    pub fn get(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    #[test]
    fn ties_and_nan_have_one_answer() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[NAN, -1.0, NAN]), 1);
        assert_eq!(argmax(&[NAN, NAN]), 0);
        assert_eq!(argmax(&[]), 0);
        assert_eq!(top_k_correct(&[3.0, 3.0, NAN, 1.0], 2, &[1, 0], 1).unwrap(), 0);
        assert_eq!(top_k_correct(&[3.0, 3.0, NAN, 1.0], 2, &[0, 1], 1).unwrap(), 2);
    }

    #[test]
    fn top_k_counts_labels_among_the_k_largest() {
        let logits = [0.1, 0.7, 0.2, 0.5, 0.3, 0.2, 0.0, 0.1, 0.9];
        let labels = [2, 0, 0];
        assert_eq!(top_k_correct(&logits, 3, &labels, 1).unwrap(), 1);
        assert_eq!(top_k_correct(&logits, 3, &labels, 2).unwrap(), 2);
        assert_eq!(top_k_correct(&logits, 3, &labels, 3).unwrap(), 3);
        assert_eq!(top1(&logits, 3, &labels).unwrap(), 1.0 / 3.0);
        assert_eq!(top1(&[], 3, &[]).unwrap(), 0.0);
        for (classes, labels) in [(0, &[][..]), (3, &[0, 1]), (3, &[0, 1, 3]), (3, &[0, 1, -1])] {
            assert!(matches!(top1(&logits, classes, labels), Err(Error::Argument { .. })));
        }
    }

    #[test]
    fn confusion_and_mean() {
        let mut m = Confusion::new(2).unwrap();
        m.add(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0], &[0, 1, 1]).unwrap();
        assert_eq!(m.counts, [1, 0, 1, 1]);
        assert_eq!((m.accuracy(), m.recall(1), m.precision(0), m.recall(0)), (2.0 / 3.0, 0.5, 0.5, 1.0));
        assert!(Confusion::new(0).is_err() && Confusion::new(1 << 17).is_err());
        assert!(m.add(&[1.0], &[0]).is_err());

        let mut mean = Mean::default();
        assert_eq!(mean.get(), 0.0);
        mean.add(2.0, 3);
        mean.add(6.0, 1);
        assert_eq!(mean.get(), 3.0);
    }
}
