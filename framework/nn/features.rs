//! Inputs and outputs of layers, taken out of a forward pass: what distillation compares and penalties add up. Nothing is
//! kept unless a pass runs inside [`tap`].

use burn::module::ParamId;
use burn::tensor::Tensor;
use std::cell::RefCell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// As the layer computes with it: on a grid, if it is quantised so.
    Input,
    /// Before a batch norm, an activation or a sum that is computed together with the layer.
    Output,
}

/// What a layer read or made.
#[derive(Clone, Debug)]
pub enum Feature {
    /// [n, c, h, w]
    Image(Tensor<4>),
    /// [rows, width]: tokens of all sequences, or vectors.
    Rows(Tensor<2>),
}

struct Taps {
    wanted: Vec<(ParamId, Side)>,
    found: Vec<Option<Feature>>,
}

thread_local! {
    static TAPS: RefCell<Option<Taps>> = const { RefCell::new(None) };
}

/// What `forward` gives, and the features of the layers in `wanted`, known by their weights; of a layer that runs several
/// times the last, of one that does not run `None`.
pub fn tap<T>(wanted: Vec<(ParamId, Side)>, forward: impl FnOnce() -> T) -> (T, Vec<Option<Feature>>) {
    let found = vec![None; wanted.len()];
    TAPS.with_borrow_mut(|taps| *taps = Some(Taps { wanted, found }));
    let result = forward();
    (result, TAPS.take().map_or_else(Vec::new, |taps| taps.found))
}

pub(crate) fn wanted(layer: ParamId, side: Side) -> bool {
    TAPS.with_borrow(|taps| taps.as_ref().is_some_and(|taps| taps.wanted.contains(&(layer, side))))
}

pub(crate) fn give_image(layer: ParamId, side: Side, x: &Tensor<4>) {
    give(layer, side, || Feature::Image(x.clone()));
}

pub(crate) fn give_rows<const D: usize>(layer: ParamId, side: Side, x: &Tensor<D>) {
    give(layer, side, || {
        let dims = x.dims();
        let width = dims[D - 1];
        Feature::Rows(x.clone().reshape([dims.iter().product::<usize>() / width.max(1), width]))
    });
}

fn give(layer: ParamId, side: Side, feature: impl FnOnce() -> Feature) {
    TAPS.with_borrow_mut(|taps| {
        let Some(taps) = taps else { return };
        if let Some(i) = taps.wanted.iter().position(|&wanted| wanted == (layer, side)) {
            taps.found[i] = Some(feature());
        }
    });
}
