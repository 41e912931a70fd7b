//! What an output pixel reads of an image, and copies of images in which it never reads past an edge.
//!
//! A convolution, each phase of its input gradient and its weight gradient all read an image alike: output (i, j) reads,
//! for every tap, the pixel (i * stride + tap). Pixels outside of the image are zero. Where some are read, the part of the
//! image under a *band* of outputs is copied with its zeros, small enough to stay in L2.

use crate::shape::ConvShape;
use std::ops::Range;

/// Images `[n][h][w]` and the pixels that outputs `[n][rows][cols]` read of them.
#[derive(Clone, Debug)]
pub struct Reading {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub rows: usize,
    pub cols: usize,
    pub stride: [usize; 2],
    /// Ascending pairs (vertical, horizontal).
    pub taps: Vec<[isize; 2]>,
}

/// Consecutive outputs: whole images, or rows of one image.
#[derive(Clone, Copy, Debug)]
pub struct Band {
    pub image: usize,
    pub images: usize,
    pub row: usize,
    pub rows: usize,
}

/// Channels `first..first + count` of pixels of `pitch` elements.
#[derive(Clone, Copy, Debug)]
pub struct Channels {
    pub first: usize,
    pub count: usize,
    pub pitch: usize,
}

/// Where the pixels under a band lie in a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The element that output (0, 0) of the band's first image reads if its tap were the least of both axes.
    pub start: usize,
    pub image: usize,
    pub row: usize,
    pub pixel: usize,
}

impl Reading {
    /// What the outputs of a convolution read of its input.
    pub fn of_forward(s: &ConvShape) -> Reading {
        let tap = |ky: usize, kx: usize| {
            [0, 1].map(|axis| ([ky, kx][axis] * s.dilation[axis]) as isize - s.pad_begin[axis] as isize)
        };
        let taps = (0..s.kh).flat_map(|ky| (0..s.kw).map(move |kx| tap(ky, kx))).collect();
        Reading { n: s.n, h: s.h, w: s.w, rows: s.oh, cols: s.ow, stride: s.stride, taps }
    }

    /// Every pixel reads itself and nothing else: images are one long list of pixels.
    pub fn is_plain(&self) -> bool {
        self.taps == [[0, 0]] && self.stride == [1, 1] && (self.h, self.w) == (self.rows, self.cols)
    }

    /// The least and the greatest tap of an axis.
    fn span(&self, axis: usize) -> [isize; 2] {
        let along = || self.taps.iter().map(|tap| tap[axis]);
        [along().min().unwrap_or(0), along().max().unwrap_or(0)]
    }

    /// Whether every pixel read lies inside the image.
    pub fn is_inside(&self) -> bool {
        let inside = |axis: usize, places: usize, size: usize| {
            let [least, most] = self.span(axis);
            least >= 0 && ((places - 1) * self.stride[axis]) as isize + most < size as isize
        };
        inside(0, self.rows, self.h) && inside(1, self.cols, self.w)
    }

    /// Cuts outputs into bands of about `outputs` each, their number a multiple of 4 if that can be: two or four threads
    /// finish together.
    pub fn bands(&self, outputs: usize) -> Vec<Band> {
        let image = self.rows * self.cols;
        if outputs >= image {
            let parts = self.n.div_ceil((outputs / image).max(1)).next_multiple_of(4).min(self.n);
            let cut = |i: usize| i * self.n / parts;
            let band =
                |i: usize| Band { image: cut(i), images: cut(i + 1) - cut(i), row: 0, rows: self.rows };
            return (0..parts).map(band).collect();
        }
        let parts = self.rows.div_ceil((outputs / self.cols).max(1));
        let parts = if self.n.is_multiple_of(4) { parts } else { parts.next_multiple_of(4).min(self.rows) };
        let cut = |i: usize| i * self.rows / parts;
        let band = |image: usize, i: usize| Band { image, images: 1, row: cut(i), rows: cut(i + 1) - cut(i) };
        (0..self.n).flat_map(|image| (0..parts).map(move |i| band(image, i))).collect()
    }

    /// Rows and columns of pixels under `rows` rows of outputs.
    fn extent(&self, rows: usize) -> [usize; 2] {
        [(0, rows), (1, self.cols)].map(|(axis, places)| {
            let [least, most] = self.span(axis);
            (places - 1) * self.stride[axis] + (most - least) as usize + 1
        })
    }

    /// A band read where the image lies; only if [`Reading::is_inside`].
    pub fn in_place(&self, band: &Band, channels: &Channels) -> Layout {
        let (top, left) = (self.span(0)[0] as usize, self.span(1)[0] as usize);
        let pixel = (band.image * self.h + band.row * self.stride[0] + top) * self.w + left;
        Layout {
            start: pixel * channels.pitch + channels.first,
            image: self.h * self.w * channels.pitch,
            row: self.w * channels.pitch,
            pixel: channels.pitch,
        }
    }

    /// A band as [`Reading::copy`] leaves it: channels back to back.
    pub fn copied(&self, band: &Band, channels: usize) -> Layout {
        let [high, wide] = self.extent(band.rows);
        Layout { start: 0, image: high * wide * channels, row: wide * channels, pixel: channels }
    }

    /// Elements of the copy of a band.
    pub fn copied_len(&self, band: &Band, channels: usize) -> usize {
        band.images * self.copied(band, channels).image
    }

    /// Copies the pixels under a band into `out` of [`Reading::copied_len`].
    pub fn copy(&self, x: &[f32], band: &Band, channels: &Channels, out: &mut [f32]) {
        let Channels { first, count, pitch } = *channels;
        let [high, wide] = self.extent(band.rows);
        let top = self.span(0)[0] + (band.row * self.stride[0]) as isize;
        let left = self.span(1)[0];
        // Columns of the copy that are columns of the image.
        let inside: Range<usize> = {
            let begin = (-left).clamp(0, wide as isize);
            let end = (self.w as isize - left).clamp(begin, wide as isize);
            begin as usize..end as usize
        };
        if self.is_inside() {
            debug_assert_eq!(inside, 0..wide);
        } else {
            out.fill(0.0);
        }
        for (i, row) in out.chunks_exact_mut(wide * count).enumerate() {
            let (image, y) = (band.image + i / high, top + (i % high) as isize);
            if y < 0 || y >= self.h as isize || inside.is_empty() {
                continue;
            }
            let pixel = (image * self.h + y as usize) * self.w + (left + inside.start as isize) as usize;
            let from = &x[pixel * pitch..][..inside.len() * pitch];
            let to = &mut row[inside.start * count..inside.end * count];
            if count == pitch {
                to.copy_from_slice(from);
            } else {
                for (to, from) in to.chunks_exact_mut(count).zip(from.chunks_exact(pitch)) {
                    to.copy_from_slice(&from[first..first + count]);
                }
            }
        }
    }

    /// Copies what each output of a band reads into `out` `[output][channels]`; only for one tap.
    pub fn gather(&self, x: &[f32], band: &Band, channels: &Channels, out: &mut [f32]) {
        let [tap] = self.taps[..] else { panic!("{} taps", self.taps.len()) };
        let Channels { first, count, pitch } = *channels;
        let at = |place: usize, axis: usize| ((place * self.stride[axis]) as isize + tap[axis]) as usize;
        let mut outputs = out.chunks_exact_mut(count);
        for image in band.image..band.image + band.images {
            for row in band.row..band.row + band.rows {
                for (col, to) in outputs.by_ref().take(self.cols).enumerate() {
                    let (y, x_at) = (at(row, 0), at(col, 1));
                    if y < self.h && x_at < self.w {
                        let pixel = (image * self.h + y) * self.w + x_at;
                        to.copy_from_slice(&x[pixel * pitch + first..][..count]);
                    } else {
                        to.fill(0.0);
                    }
                }
            }
        }
    }

    /// From the element at [`Layout::start`] to that of each tap.
    pub fn tap_offsets<'a>(&'a self, layout: &Layout) -> impl Iterator<Item = usize> + 'a {
        let (top, left) = (self.span(0)[0], self.span(1)[0]);
        let (row, pixel) = (layout.row, layout.pixel);
        self.taps.iter().map(move |tap| (tap[0] - top) as usize * row + (tap[1] - left) as usize * pixel)
    }
}
