//! Tensors of the flex device as slices, in the memory order that a kernel wants, and results as tensors.

use super::pool;
use burn::backend::TensorMetadata;
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use lacuna_kernels::transpose;

/// The elements of a tensor in their order in memory.
///
/// # Panics
/// If they do not lie side by side, row-major or as an image.
pub fn values(x: &FlexTensor) -> &[f32] {
    assert!(x.is_contiguous() || is_image(x), "a kernel was given {x:?}");
    let at = x.layout().start_offset();
    &x.storage()[at..at + x.layout().num_elements()]
}

/// Memory for a result.
pub struct Buffer(Bytes);

impl Buffer {
    pub fn new(len: usize) -> Buffer {
        Buffer(pool::floats(len))
    }

    pub fn values(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    pub fn tensor(self, shape: &[usize]) -> FlexTensor {
        FlexTensor::new(self.0, Layout::contiguous(Shape::from(shape.to_vec())), DType::F32)
    }

    /// An image tensor [n,c,h,w] of memory that holds NHWC.
    pub fn image(self, dims: [usize; 4]) -> FlexTensor {
        FlexTensor::new(self.0, image_layout(dims), DType::F32)
    }

    /// A tensor with the shape and memory order of `x`, which is dense in some order.
    pub fn like(self, x: &FlexTensor) -> FlexTensor {
        let layout = Layout::new(x.shape(), x.layout().strides().to_vec(), 0);
        FlexTensor::new(self.0, layout, DType::F32)
    }
}

pub fn filled(len: usize, write: impl FnOnce(&mut [f32])) -> Buffer {
    let mut buffer = Buffer::new(len);
    write(buffer.values());
    buffer
}

fn image_strides([_, c, h, w]: [usize; 4]) -> [isize; 4] {
    [(h * w * c) as isize, 1, (w * c) as isize, c as isize]
}

fn image_layout(dims: [usize; 4]) -> Layout {
    Layout::new(Shape::from(dims.to_vec()), image_strides(dims).to_vec(), 0)
}

pub fn dims4(x: &FlexTensor) -> [usize; 4] {
    x.shape().dims()
}

/// Whether the tensor's memory is `strides`, looking at axes of more than one element only.
fn lies_as(x: &FlexTensor, strides: &[isize]) -> bool {
    let dims = x.shape();
    let own = x.layout().strides();
    (0..strides.len()).all(|axis| dims[axis] <= 1 || own[axis] == strides[axis])
}

fn is_image(x: &FlexTensor) -> bool {
    x.shape().num_dims() == 4 && lies_as(x, &image_strides(dims4(x)))
}

/// The image in NHWC memory order: itself, or a copy.
pub fn nhwc(x: FlexTensor) -> FlexTensor {
    let dims = dims4(&x);
    if lies_as(&x, &image_strides(dims)) {
        return x;
    }
    let x = x.to_contiguous();
    let [n, c, h, w] = dims;
    filled(n * c * h * w, |out| transpose::nchw_to_nhwc(values(&x), n, c, h * w, out)).image(dims)
}

/// In row-major order: itself, or a copy.
pub fn row_major(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() {
        return x;
    }
    if is_image(&x) {
        let [n, c, h, w] = dims4(&x);
        let copy = filled(n * c * h * w, |out| transpose::nhwc_to_nchw(values(&x), n, c, h * w, out));
        return copy.tensor(&[n, c, h, w]);
    }
    x.to_contiguous()
}

/// Dense in whatever order, for elementwise ops: itself, or a row-major copy.
pub fn dense(x: FlexTensor) -> FlexTensor {
    if is_image(&x) { x } else { row_major(x) }
}

/// `x` in the memory order of `model`, which has its shape.
pub fn ordered_like(x: FlexTensor, model: &FlexTensor) -> FlexTensor {
    if lies_as(&x, model.layout().strides()) {
        x
    } else if model.is_contiguous() {
        row_major(x)
    } else {
        nhwc(x)
    }
}

/// Rows and columns of a tensor seen as a matrix over its last axis.
pub fn matrix(x: &FlexTensor) -> (usize, usize) {
    let shape = x.shape();
    let columns = shape[shape.num_dims() - 1];
    (shape.num_elements() / columns.max(1), columns)
}

/// Pixels and channels of an image.
pub fn pixels(x: &FlexTensor) -> (usize, usize) {
    let [n, c, h, w] = dims4(x);
    (n * h * w, c)
}
