//! Large pictures cut into tiles that a network can take, side by side; those at the right and the bottom are what is left.
//!
//! An object belongs to the tile in which its middle lies, cut at its edges. Tiles without an object are left out.

use super::{BoxSet, Object, Picture};
use crate::error::{Error, Result};

pub(super) fn cut(set: BoxSet, side: usize) -> Result<BoxSet> {
    if side == 0 {
        return Err(Error::argument("tile", "a tile has at least one pixel"));
    }
    let mut out = BoxSet { classes: set.classes.clone(), ..BoxSet::default() };
    for picture in &set.pictures {
        if picture.part.is_some() {
            return Err(Error::argument("tile", "the pictures are tiles already"));
        }
        let [w, h] = super::size_of(&picture.path)?;
        let all = &set.objects[picture.objects.clone()];
        for (y0, y1) in spans(h, side) {
            for (x0, x1) in spans(w, side) {
                let edges = [x0, y0, x1, y1].map(|v| v as f32);
                let first = out.objects.len();
                out.objects.extend(all.iter().filter(|o| is_middle_in(o, edges)).map(|o| moved(o, edges)));
                let objects = first..out.objects.len();
                if !objects.is_empty() {
                    out.pictures.push(Picture {
                        path: picture.path.clone(),
                        part: Some([x0, y0, x1, y1]),
                        objects,
                    });
                }
            }
        }
    }
    Ok(out)
}

fn spans(len: usize, side: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(side).map(move |start| (start, (start + side).min(len)))
}

fn is_middle_in(object: &Object, [x0, y0, x1, y1]: [f32; 4]) -> bool {
    let [left, top, right, bottom] = object.corners;
    let (x, y) = ((left + right) / 2.0, (top + bottom) / 2.0);
    x >= x0 && x < x1 && y >= y0 && y < y1
}

fn moved(object: &Object, [x0, y0, x1, y1]: [f32; 4]) -> Object {
    let [left, top, right, bottom] = object.corners;
    let corners = [left.max(x0) - x0, top.max(y0) - y0, right.min(x1) - x0, bottom.min(y1) - y0];
    let size = |c: [f32; 4]| f64::from(c[2] - c[0]) * f64::from(c[3] - c[1]);
    // As much less as the box is smaller.
    let area = object.area * (size(corners) / size(object.corners));
    Object { corners, area, ..*object }
}
