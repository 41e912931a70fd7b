//! Fake quantisation on the capture device: instead of a dozen arithmetic ops, one custom op is recorded, which
//! [`capture`](crate::capture) turns into a QuantizeLinear / DequantizeLinear pair.

use crate::ops::Grid;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_capture::CaptureBackend;
use burn_ir::{CustomOpIr, OperationIr, ScalarIr, TensorIr};
use burn_router::{RouterClient, RouterTensor};

/// Custom op: one input x; scalars scale, zero, lo, hi.
pub const FAKE_QUANT: &str = "lacuna.fake_quant";
/// Custom op: inputs x, scales (axis 0); scalars lo, hi of all rows, or of one row after the other.
pub const FAKE_QUANT_CHANNELS: &str = "lacuna.fake_quant_channels";

/// Custom op: one input x; scalar threshold.
pub const ABOVE: &str = "lacuna.above";

pub fn is_capture(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Capture(_))
}

#[backend_extension(Capture)]
pub trait MarkOps: burn::backend::Backend {
    fn mark_fake_quant(x: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self>;
    fn mark_fake_quant_channels(
        x: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        limits: Vec<[i32; 2]>,
    ) -> FloatTensor<Self>;
    fn mark_above(x: FloatTensor<Self>, threshold: f32) -> FloatTensor<Self>;
}

impl MarkOps for CaptureBackend {
    fn mark_fake_quant(x: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self> {
        let client = x.client.clone();
        let x = x.into_ir();
        let scalars = vec![
            ScalarIr::Float(grid.scale as f64),
            ScalarIr::Int(grid.zero as i64),
            ScalarIr::Int(grid.lo as i64),
            ScalarIr::Int(grid.hi as i64),
        ];
        record(client, FAKE_QUANT, &[x], scalars)
    }

    fn mark_fake_quant_channels(
        x: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        limits: Vec<[i32; 2]>,
    ) -> FloatTensor<Self> {
        let client = x.client.clone();
        let inputs = [x.into_ir(), scales.into_ir()];
        let scalars = limits.into_iter().flatten().map(|l| ScalarIr::Int(l as i64)).collect();
        record(client, FAKE_QUANT_CHANNELS, &inputs, scalars)
    }

    fn mark_above(x: FloatTensor<Self>, threshold: f32) -> FloatTensor<Self> {
        let client = x.client.clone();
        record(client, ABOVE, &[x.into_ir()], vec![ScalarIr::Float(threshold as f64)])
    }
}

/// Records a custom op whose single output looks like its first input.
fn record<C: RouterClient>(
    client: C,
    id: &'static str,
    inputs: &[TensorIr],
    scalars: Vec<ScalarIr>,
) -> RouterTensor<C> {
    let shape: Shape = inputs[0].shape.clone();
    let out = TensorIr::uninit(client.create_empty_handle(), shape, DType::F32);
    let op = CustomOpIr::with_scalars(id, inputs, &[out], scalars);
    client.register(OperationIr::Custom(op)).remove(0)
}

pub fn fake_quant<const D: usize>(x: Tensor<D>, grid: Grid) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as MarkOps>::mark_fake_quant(x.into_dispatch(), grid))
}

pub fn above<const D: usize>(x: Tensor<D>, threshold: f32) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as MarkOps>::mark_above(x.into_dispatch(), threshold))
}

pub fn fake_quant_channels<const D: usize>(
    x: Tensor<D>,
    scales: Tensor<1>,
    limits: &[[i32; 2]],
) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as MarkOps>::mark_fake_quant_channels(
        x.into_dispatch(),
        scales.into_dispatch(),
        limits.to_vec(),
    ))
}
