//! A picture inside a rectangle of another shape: scaled to fit, one colour around it.

use lacuna_data::RgbImage8;
use lacuna_data::images::resize;
use serde::{Deserialize, Serialize};

/// Where the picture lies in the rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    Centre,
    TopLeft,
    /// It fills the rectangle, whatever becomes of its shape.
    Stretch,
}

/// How a rectangle is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    pub placement: Placement,
    /// All channels of what is not the picture.
    pub fill: u8,
}

/// The grey of all channels that YOLO networks were trained with.
pub const GREY: u8 = 114;

impl From<Placement> for Frame {
    /// With YOLO's grey.
    fn from(placement: Placement) -> Frame {
        Frame { placement, fill: GREY }
    }
}

/// How a picture was put into its rectangle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Letterbox {
    /// Pixels of the rectangle for one of the picture, along each axis (rounding makes them differ).
    pub scale: [f32; 2],
    /// Column and row of the rectangle where the picture begins.
    pub origin: [f32; 2],
    /// Width and height of the picture.
    pub picture: [f32; 2],
}

/// The picture in `h` x `w` pixels.
///
/// # Errors
/// A side that is 0 or too large.
pub fn letterbox(
    picture: &RgbImage8,
    h: usize,
    w: usize,
    frame: impl Into<Frame>,
) -> lacuna_data::Result<(RgbImage8, Letterbox)> {
    let frame = frame.into();
    let factor = (h as f64 / picture.h.max(1) as f64).min(w as f64 / picture.w.max(1) as f64);
    let fitted = |size: usize, most: usize| ((size as f64 * factor).round() as usize).clamp(1, most.max(1));
    let (inner_h, inner_w) = match frame.placement {
        Placement::Stretch => (h, w),
        Placement::Centre | Placement::TopLeft => (fitted(picture.h, h), fitted(picture.w, w)),
    };
    let inner = resize(picture, inner_h, inner_w)?;
    let (top, left) = match frame.placement {
        Placement::Centre => ((h - inner_h) / 2, (w - inner_w) / 2),
        Placement::TopLeft | Placement::Stretch => (0, 0),
    };
    let mut pixels = vec![frame.fill; h * w * 3];
    for (row, from) in inner.pixels.chunks_exact(inner_w * 3).enumerate() {
        let at = ((top + row) * w + left) * 3;
        pixels[at..at + from.len()].copy_from_slice(from);
    }
    let letterbox = Letterbox {
        scale: [inner_w as f32 / picture.w as f32, inner_h as f32 / picture.h as f32],
        origin: [left as f32, top as f32],
        picture: [picture.w as f32, picture.h as f32],
    };
    Ok((RgbImage8 { h, w, pixels }, letterbox))
}

impl Letterbox {
    /// Where a place of the picture (column, row) lies in the rectangle.
    pub fn place(&self, at: [f32; 2]) -> [f32; 2] {
        [at[0] * self.scale[0] + self.origin[0], at[1] * self.scale[1] + self.origin[1]]
    }

    /// A box (left, top, right, bottom) of the rectangle as one of the picture, cut at its edges.
    pub fn undo(&self, corners: [f32; 4]) -> [f32; 4] {
        let back = |i: usize| {
            let axis = i % 2;
            ((corners[i] - self.origin[axis]) / self.scale[axis]).clamp(0.0, self.picture[axis])
        };
        [back(0), back(1), back(2), back(3)]
    }
}
