//! Batches of plain numbers as what networks take.

use burn::tensor::{Device, Int, Tensor, TensorData};
use lacuna_data::{Batch, SetRef, TokenBatch};
use lacuna_nn::{Input, Tokens};

/// What a batch holds, on a device. The memory of images is lent to the tensors; [`give_back`] returns it.
pub fn input_of(batch: &mut Batch, device: &Device) -> Input {
    let Some(TokenBatch { ids, mask, dims }) = &batch.tokens else {
        let images = TensorData::new(std::mem::take(&mut batch.x), batch.dims);
        return Tensor::<4>::from_data(images, device).into();
    };
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids.clone(), *dims), device);
    let mask = Tensor::from_data(TensorData::new(mask.clone(), *dims), device);
    Tokens { ids, mask: Some(mask), types: None }.into()
}

/// Takes the memory of images back, where nothing else holds it.
pub fn give_back(input: Input, batch: &mut Batch) {
    if let Input::Images(x) = input {
        batch.x = x.without_autodiff().into_data().try_into_vec().unwrap_or_default();
    }
}

/// A small input of the kind that a set has, of zeros.
pub fn zeros(set: SetRef<'_>, device: &Device) -> Input {
    match set {
        SetRef::Images(set) => Tensor::<4>::zeros([1, set.c, set.h, set.w], device).into(),
        SetRef::Texts(_) => Tokens::of(Tensor::zeros([1, 2], device)).into(),
    }
}
