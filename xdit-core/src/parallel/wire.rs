//! Tensors on their way between ranks.

use burn::tensor::{DType, Device, Tensor, TensorData};
use xdit_comm::{Buffer, DType as WireType, Pending, Spec};

use crate::parallel::failure::wait;

/// Where and as what received tensors are put.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device of this rank.
    pub device: Device,
    /// The type of what travels.
    pub dtype: DType,
}

impl Place {
    /// Where `tensor` is.
    pub fn of<const D: usize>(tensor: &Tensor<D>) -> Self {
        Self { device: tensor.device(), dtype: tensor.dtype() }
    }

    /// The buffer that a tensor of `shape` arrives in.
    pub fn spec<const D: usize>(&self, shape: [usize; D]) -> Spec {
        Spec::new(wire_type(self.dtype), shape.iter().product())
    }

    /// The tensor of `shape` in `buffer`.
    pub fn tensor<const D: usize>(&self, buffer: &Buffer, shape: [usize; D]) -> Tensor<D> {
        let data = TensorData::from_bytes_vec(buffer.bytes().to_vec(), shape, self.dtype);
        Tensor::from_data(data, (&self.device, self.dtype))
    }

    /// Waits for the tensor of `shape`.
    pub fn wait<const D: usize>(&self, pending: Pending<Buffer>, shape: [usize; D]) -> Tensor<D> {
        self.tensor(&wait(pending), shape)
    }
}

/// The elements of `tensor`, row by row.
pub fn buffer<const D: usize>(tensor: Tensor<D>) -> Buffer {
    let dtype = wire_type(tensor.dtype());
    let data = tensor.into_data();
    Buffer::from_bytes(dtype, data.as_bytes().to_vec())
}

fn wire_type(dtype: DType) -> WireType {
    match dtype {
        DType::F32 => WireType::F32,
        DType::F16 => WireType::F16,
        DType::BF16 => WireType::Bf16,
        other => panic!("tensors of type {other:?} do not travel"),
    }
}
