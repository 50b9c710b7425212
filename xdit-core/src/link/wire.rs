//! Tensors on their way between ranks.

use burn::tensor::{AllocationProperty, Bytes, DType, Device, Tensor, TensorData};
use xdit_comm::{Buffer, BufferSpec, DType as WireType, Pending};

use super::failure::wait;

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
    pub fn spec<const D: usize>(&self, shape: [usize; D]) -> BufferSpec {
        BufferSpec::new(wire_type(self.dtype), shape.iter().product())
    }

    /// What is sent where there is nothing to send.
    pub fn nothing(&self) -> Buffer {
        Buffer::empty(wire_type(self.dtype))
    }

    /// The tensor of `shape` in `buffer`. They share their memory; who changes the tensor in place, changes a copy.
    pub fn tensor<const D: usize>(&self, buffer: &Buffer, shape: [usize; D]) -> Tensor<D> {
        let bytes = buffer.bytes();
        let bytes = match bytes.as_ptr().align_offset(self.dtype.size()) {
            0 => Bytes::from_shared(bytes.clone(), AllocationProperty::Other),
            _ => Bytes::from_bytes_vec(bytes.to_vec()),
        };
        Tensor::from_data(TensorData::from_bytes(bytes, shape, self.dtype), (&self.device, self.dtype))
    }

    /// Waits for the tensor of `shape`.
    pub fn wait<const D: usize>(&self, pending: Pending<Buffer>, shape: [usize; D]) -> Tensor<D> {
        self.tensor(&wait(pending), shape)
    }
}

/// The elements of `tensor`, row by row: in its own memory, if they lie there like that and nobody else holds it.
pub fn buffer<const D: usize>(tensor: Tensor<D>) -> Buffer {
    struct Owner(TensorData);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    let dtype = wire_type(tensor.dtype());
    Buffer::from_bytes(dtype, bytes::Bytes::from_owner(Owner(tensor.into_data())))
}

fn wire_type(dtype: DType) -> WireType {
    match dtype {
        DType::F32 => WireType::F32,
        DType::F16 => WireType::F16,
        DType::BF16 => WireType::Bf16,
        other => panic!("tensors of type {other:?} do not travel"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
        tensor.to_data().try_to_vec().expect("an f32 tensor")
    }

    fn counted() -> Tensor<2> {
        let data = TensorData::new((0..12).map(|i| i as f32).collect(), [3, 4]);
        Tensor::from_data(data, (&Device::flex(), DType::F32))
    }

    #[test]
    fn nothing_is_copied_on_the_way() {
        let place = Place::of(&counted());
        let sent = buffer(counted());
        let arrived: Tensor<2> = place.tensor(&sent, [3, 4]);
        assert_eq!(buffer(arrived).bytes().as_ptr(), sent.bytes().as_ptr());
    }

    #[test]
    fn what_one_rank_changes_in_place_no_other_sees() {
        let place = Place::of(&counted());
        let sent = buffer(counted());
        let [a, b]: [Tensor<2>; 2] = [place.tensor(&sent, [3, 4]), place.tensor(&sent, [3, 4])];
        let changed = a.mul_scalar(2.0).add_scalar(1.0);
        assert_eq!(values(&b), values(&counted()));
        assert_eq!(values(&changed)[3], 7.0);
        assert_eq!(sent, buffer(counted()));
    }

    #[test]
    fn views_travel_as_what_they_show() {
        let place = Place::of(&counted());
        let view = counted().narrow(1, 1, 2);
        let arrived: Tensor<2> = place.tensor(&buffer(view.clone()), [3, 2]);
        assert_eq!(values(&arrived), values(&view));
        assert_eq!(values(&arrived), [1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
    }

    #[test]
    fn misaligned_bytes_arrive_all_the_same() {
        let place = Place::of(&counted());
        let mut bytes = vec![0];
        bytes.extend_from_slice(buffer(counted()).bytes());
        let odd = Buffer::from_bytes(WireType::F32, bytes::Bytes::from(bytes).slice(1..));
        let arrived: Tensor<2> = place.tensor(&odd, [3, 4]);
        assert_eq!(values(&arrived), values(&counted()));
    }
}
