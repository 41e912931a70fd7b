//! Boxes and their names on a picture, and masks below them, as a PNG.

use crate::detector::Segment;
use crate::{Detection, Error, Result};
use lacuna_data::RgbImage8;
use std::path::Path;

/// Colours of classes, in turn: far apart in hue, dark enough for white text.
const COLOURS: [[u8; 3]; 10] = [
    [0xc0, 0x39, 0x2b],
    [0x21, 0x6c, 0xb0],
    [0x1e, 0x84, 0x49],
    [0x8e, 0x44, 0xad],
    [0xb9, 0x77, 0x0e],
    [0x11, 0x7a, 0x8b],
    [0xad, 0x14, 0x57],
    [0x5d, 0x40, 0x37],
    [0x3f, 0x51, 0xb5],
    [0x55, 0x6b, 0x2f],
];
const WHITE: [u8; 3] = [0xff; 3];

/// Draws every box with its class and score; the best lies on top.
pub fn draw(picture: &mut RgbImage8, found: &[Detection], classes: &[String]) {
    // One pixel of a letter for every 640 of the picture's longer side, at least.
    let unit = (picture.w.max(picture.h) / 640 + 1) as i64;
    let texts: Vec<String> = found
        .iter()
        .map(|d| format!("{} {:.2}", classes.get(d.class).map_or("?", String::as_str), d.score))
        .collect();
    let labels = labels(picture, found, &texts, unit);
    for ((d, text), label) in found.iter().zip(&texts).zip(&labels).rev() {
        let colour = COLOURS[d.class % COLOURS.len()];
        let [x0, y0, x1, y1] = d.corners.map(|v| v.round() as i64);
        let line = 2 * unit;
        fill(picture, [x0, y0, x1, y0 + line], colour);
        fill(picture, [x0, y1 - line, x1, y1], colour);
        fill(picture, [x0, y0, x0 + line, y1], colour);
        fill(picture, [x1 - line, y0, x1, y1], colour);
        fill(picture, *label, colour);
        write(picture, text, label[0] + unit, label[1] + unit, unit);
    }
}

/// Where the labels of boxes lie (left, top, right, bottom): above a box, or inside of it at the upper edge; never beyond the
/// right edge if it can be helped; and below those of better boxes that lie there already.
fn labels(picture: &RgbImage8, found: &[Detection], texts: &[String], unit: i64) -> Vec<[i64; 4]> {
    let height = 9 * unit;
    let mut placed: Vec<[i64; 4]> = Vec::with_capacity(found.len());
    for (d, text) in found.iter().zip(texts) {
        let [x0, y0, ..] = d.corners.map(|v| v.round() as i64);
        let width = (text.chars().count() as i64 * 6 + 1) * unit;
        let left = x0.min(picture.w as i64 - width).max(0);
        let mut top = if y0 >= height { y0 - height } else { y0 };
        let covers = |top: i64, other: &[i64; 4]| {
            left < other[2]
                && other[0] < left + width
                && top < other[3]
                && other[1] < top.saturating_add(height)
        };
        while top < picture.h as i64
            && let Some(other) = placed.iter().find(|other| covers(top, other))
        {
            top = other[3];
        }
        placed.push([left, top, left + width, top.saturating_add(height)]);
    }
    placed
}

/// Colours the pixels of every object, the best last, and draws the boxes.
pub fn draw_segments(picture: &mut RgbImage8, found: &[Segment], classes: &[String]) {
    for (i, segment) in found.iter().enumerate().rev() {
        // Objects of one class lie side by side: each has a colour of its own.
        let colour = COLOURS[(segment.detection.class + i) % COLOURS.len()];
        for (x, rows) in segment.mask.pixels() {
            for y in rows {
                let at = (y * picture.w + x) * 3;
                for (to, c) in picture.pixels[at..at + 3].iter_mut().zip(colour) {
                    *to = to.midpoint(c);
                }
            }
        }
    }
    let detections: Vec<Detection> = found.iter().map(|s| s.detection).collect();
    draw(picture, &detections, classes);
}

/// What of a rectangle lies on the picture.
fn fill(picture: &mut RgbImage8, [x0, y0, x1, y1]: [i64; 4], colour: [u8; 3]) {
    let clip = |v: i64, most: usize| v.clamp(0, most as i64) as usize;
    let (left, right) = (clip(x0, picture.w), clip(x1, picture.w));
    for y in clip(y0, picture.h)..clip(y1, picture.h) {
        for x in left..right {
            let at = (y * picture.w + x) * 3;
            picture.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }
}

fn write(picture: &mut RgbImage8, text: &str, left: i64, top: i64, unit: i64) {
    for (i, c) in text.chars().enumerate() {
        for (row, bits) in glyph(c).iter().enumerate() {
            for column in (0..5).filter(|column| bits >> (4 - column) & 1 == 1) {
                let x = left + (i as i64 * 6 + column) * unit;
                let y = top + row as i64 * unit;
                fill(picture, [x, y, x + unit, y + unit], WHITE);
            }
        }
    }
}

/// Five columns (the low bits) of seven rows; small letters look like capitals, and what is not known like a box.
fn glyph(c: char) -> [u8; 7] {
    let known = GLYPHS.iter().find(|(known, _)| *known == c.to_ascii_uppercase());
    known.map_or([31, 17, 17, 17, 17, 17, 31], |(_, rows)| *rows)
}

#[rustfmt::skip]
const GLYPHS: [(char, [u8; 7]); 43] = [
    (' ', [0, 0, 0, 0, 0, 0, 0]),
    ('.', [0, 0, 0, 0, 0, 12, 12]),
    ('-', [0, 0, 0, 31, 0, 0, 0]),
    ('_', [0, 0, 0, 0, 0, 0, 31]),
    ('/', [1, 2, 2, 4, 8, 8, 16]),
    (':', [0, 12, 12, 0, 12, 12, 0]),
    ('%', [24, 25, 2, 4, 8, 19, 3]),
    ('0', [14, 17, 19, 21, 25, 17, 14]),
    ('1', [4, 12, 4, 4, 4, 4, 14]),
    ('2', [14, 17, 1, 2, 4, 8, 31]),
    ('3', [30, 1, 1, 14, 1, 1, 30]),
    ('4', [2, 6, 10, 18, 31, 2, 2]),
    ('5', [31, 16, 30, 1, 1, 17, 14]),
    ('6', [6, 8, 16, 30, 17, 17, 14]),
    ('7', [31, 1, 2, 4, 8, 8, 8]),
    ('8', [14, 17, 17, 14, 17, 17, 14]),
    ('9', [14, 17, 17, 15, 1, 2, 12]),
    ('A', [14, 17, 17, 31, 17, 17, 17]),
    ('B', [30, 17, 17, 30, 17, 17, 30]),
    ('C', [14, 17, 16, 16, 16, 17, 14]),
    ('D', [28, 18, 17, 17, 17, 18, 28]),
    ('E', [31, 16, 16, 30, 16, 16, 31]),
    ('F', [31, 16, 16, 30, 16, 16, 16]),
    ('G', [14, 17, 16, 23, 17, 17, 15]),
    ('H', [17, 17, 17, 31, 17, 17, 17]),
    ('I', [14, 4, 4, 4, 4, 4, 14]),
    ('J', [7, 2, 2, 2, 2, 18, 12]),
    ('K', [17, 18, 20, 24, 20, 18, 17]),
    ('L', [16, 16, 16, 16, 16, 16, 31]),
    ('M', [17, 27, 21, 21, 17, 17, 17]),
    ('N', [17, 17, 25, 21, 19, 17, 17]),
    ('O', [14, 17, 17, 17, 17, 17, 14]),
    ('P', [30, 17, 17, 30, 16, 16, 16]),
    ('Q', [14, 17, 17, 17, 21, 18, 13]),
    ('R', [30, 17, 17, 30, 20, 18, 17]),
    ('S', [15, 16, 16, 14, 1, 1, 30]),
    ('T', [31, 4, 4, 4, 4, 4, 4]),
    ('U', [17, 17, 17, 17, 17, 17, 14]),
    ('V', [17, 17, 17, 17, 17, 10, 4]),
    ('W', [17, 17, 17, 21, 21, 21, 10]),
    ('X', [17, 17, 10, 4, 10, 17, 17]),
    ('Y', [17, 17, 10, 4, 4, 4, 4]),
    ('Z', [31, 1, 2, 4, 8, 16, 31]),
];

/// Writes a picture as a PNG.
pub fn save_png(picture: &RgbImage8, path: &Path) -> Result<()> {
    let side = |n: usize| u32::try_from(n).unwrap_or(0);
    let written =
        image::save_buffer(path, &picture.pixels, side(picture.w), side(picture.h), image::ColorType::Rgb8);
    written.map_err(|e| Error::Write { path: path.to_owned(), why: e.to_string() })
}
