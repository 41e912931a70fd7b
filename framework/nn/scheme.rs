//! How layers are quantised: bits, symmetry and granularity of inputs, weights and outputs, for each layer on its own.
//!
//! A scheme is a row of the parameter table like the ranges it goes with, so that it is saved, restored and exported with
//! the weights: `conv1.weight_quantizer.scheme` holds a [`LayerScheme`], `act1.scheme` an [`Args`] or nothing.
//!
//! Numbers follow PyTorch's observers. An asymmetric grid of b bits has 2^b steps of `(max - min) / (2^b - 1)` and a zero
//! point; a symmetric one is signed, with steps of `max(|min|, |max|) / ((2^b - 1) / 2)`. Both contain zero.

use crate::buffer::Buffer;
use crate::ops::Grid;
use burn::tensor::{Device, Tensor};

/// Smallest scale, so that an all-zero tensor has a grid (f32 epsilon, as in PyTorch).
const SCALE_MIN: f32 = f32::EPSILON;

/// How a range becomes a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Args {
    /// 2 to 8.
    pub bits: u8,
    /// Signed around zero; else unsigned with a zero point.
    pub symmetric: bool,
    /// A grid for each output channel; of weights only.
    pub per_channel: bool,
}

impl Args {
    /// Eight bits with a zero point.
    pub const ACTIVATION: Args = Args { bits: 8, symmetric: false, per_channel: false };
    /// Eight signed bits for each output channel.
    pub const WEIGHT: Args = Args { bits: 8, symmetric: true, per_channel: true };

    /// The grid of values from `min` to `max`.
    pub fn grid(self, min: f32, max: f32) -> Grid {
        let (min, max) = (min.min(0.0), max.max(0.0));
        let steps = ((1u32 << self.bits) - 1) as f32;
        if self.symmetric {
            let scale = (max.max(-min) / (steps / 2.0)).max(SCALE_MIN);
            let half = 1 << (self.bits - 1);
            return Grid { scale, zero: 0, lo: -half, hi: half - 1 };
        }
        let scale = ((max - min) / steps).max(SCALE_MIN);
        let zero = (-(min / scale).round_ties_even()).clamp(0.0, steps) as i32;
        Grid { scale, zero, lo: 0, hi: steps as i32 }
    }

    fn write(args: Option<Args>) -> [f32; 3] {
        args.map_or([0.0; 3], |a| [a.bits.into(), flag(a.symmetric), flag(a.per_channel)])
    }

    /// Reads what [`Args::write`] wrote; anything else is no quantisation.
    fn read(values: &[f32]) -> Option<Args> {
        match *values {
            [bits, symmetric, per_channel] if (2.0..=8.0).contains(&bits) => {
                Some(Args { bits: bits as u8, symmetric: symmetric != 0.0, per_channel: per_channel != 0.0 })
            }
            _ => None,
        }
    }
}

/// How one layer is quantised; what is `None` stays f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerScheme {
    pub input: Option<Args>,
    pub weight: Option<Args>,
    pub output: Option<Args>,
    /// The weight is quantised as the batch norm behind it scales it, so that the two are one integer layer.
    pub folded: bool,
}

impl LayerScheme {
    pub const OFF: LayerScheme = LayerScheme { input: None, weight: None, output: None, folded: true };
    /// Inputs and weights in eight bits, what layers do unless they are told otherwise.
    pub const INT8: LayerScheme =
        LayerScheme { input: Some(Args::ACTIVATION), weight: Some(Args::WEIGHT), ..LayerScheme::OFF };

    /// As a row of the parameter table.
    pub fn write(self) -> Vec<f32> {
        let parts = [self.input, self.weight, self.output].map(Args::write);
        parts.into_iter().flatten().chain([flag(self.folded)]).collect()
    }

    /// What [`LayerScheme::write`] wrote; what is damaged stays f32.
    pub fn read(values: &[f32]) -> LayerScheme {
        let part = |i: usize| values.get(3 * i..3 * i + 3).and_then(Args::read);
        let folded = values.get(9).is_none_or(|&f| f != 0.0);
        LayerScheme { input: part(0), weight: part(1), output: part(2), folded }
    }

    pub(crate) fn buffer(self, device: &Device) -> Buffer<1> {
        Buffer::new(Tensor::from_floats(self.write().as_slice(), device))
    }

    pub(crate) fn of(buffer: &Buffer<1>) -> LayerScheme {
        LayerScheme::read(&crate::quant::host(buffer.get()))
    }
}

/// The grid of a place in the network as a row of the parameter table.
pub fn write_site(args: Option<Args>) -> Vec<f32> {
    Args::write(args).into()
}

pub(crate) fn site_buffer(args: Option<Args>, device: &Device) -> Buffer<1> {
    Buffer::new(Tensor::from_floats(Args::write(args), device))
}

pub(crate) fn of_site(buffer: &Buffer<1>) -> Option<Args> {
    Args::read(&crate::quant::host(buffer.get()))
}

fn flag(on: bool) -> f32 {
    if on { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_survive_their_rows() {
        let four = Args { bits: 4, symmetric: true, per_channel: false };
        for scheme in [
            LayerScheme::OFF,
            LayerScheme::INT8,
            LayerScheme { output: Some(four), weight: None, folded: false, ..LayerScheme::INT8 },
        ] {
            assert_eq!(LayerScheme::read(&scheme.write()), scheme);
        }
        assert_eq!(LayerScheme::read(&[f32::NAN; 10]), LayerScheme::OFF, "damaged rows quantise nothing");
        assert_eq!(LayerScheme::read(&[]), LayerScheme::OFF);
    }

    #[test]
    fn grids_by_the_formulas() {
        let args = |bits, symmetric| Args { bits, symmetric, per_channel: false };
        assert_eq!(args(8, false).grid(-1.0, 2.0), Grid { scale: 3.0 / 255.0, zero: 85, lo: 0, hi: 255 });
        assert_eq!(args(4, false).grid(0.5, 3.0), Grid { scale: 0.2, zero: 0, lo: 0, hi: 15 });
        assert_eq!(args(8, true).grid(-1.0, 0.5), Grid { scale: 1.0 / 127.5, zero: 0, lo: -128, hi: 127 });
        assert_eq!(args(2, true).grid(-1.0, 3.0), Grid { scale: 2.0, zero: 0, lo: -2, hi: 1 });
        assert_eq!(args(3, false).grid(0.0, 0.0).scale, f32::EPSILON);
    }
}
