//! Transfers of tensors as bytes of host memory, over a [`Communicator`](xdit_comm::Communicator).

use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes, DType, Tensor, TensorData};
use xdit_comm::{Buffer, BufferSpec, Comm, DType as WireType, Error, Group, Operation, Pending};
use xdit_kernels::shared_memory;

use super::{InFlight, Link, Slot, Transfer};

/// A link of ranks that share a process, or host memory by other means. Waiting blocks the thread.
#[derive(Debug)]
pub struct HostLink {
    comm: Comm,
}

impl HostLink {
    /// The link of the ranks of `comm`.
    #[expect(clippy::new_ret_no_self, reason = "a link is always shared")]
    pub fn new(comm: Comm) -> Arc<dyn Link> {
        Arc::new(Self { comm })
    }

    /// The link of every rank in a world of `size` ranks, in rank order, without starting the ranks. This is enough to
    /// plan the shares of the ranks.
    pub fn ends(size: usize) -> Vec<Arc<dyn Link>> {
        xdit_comm::ends(size).into_iter().map(Self::new).collect()
    }
}

impl Link for HostLink {
    fn group(&self) -> &Group {
        self.comm.group()
    }

    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        Ok(self.comm.split(groups)?.map(Self::new))
    }

    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight> {
        let Transfer { operation, sends, receives, .. } = transfer;
        let sends = sends.into_iter().map(|(to, x)| (to, buffer(x))).collect();
        let specs = receives.iter().map(|(from, slot)| (*from, spec(slot))).collect();
        let arriving = self.comm.exchange(operation, sends, specs);
        let slots = receives.into_iter().map(|(_, slot)| slot).collect();
        Box::new(HostTransfer { arriving, slots })
    }

    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight> {
        let slot = super::Place::of(&x).slot(x.dims());
        let own = buffer(x);
        let (rank, size) = (self.comm.rank(), self.comm.size());
        let others = || (0..size).filter(|&peer| peer != rank);
        let sends = others().map(|to| (to, own.clone())).collect();
        let receives = others().map(|from| (from, own.spec())).collect();
        let arriving = self.comm.exchange(Operation::AllReduce, sends, receives);
        Box::new(HostSum { arriving, own: (rank, own), slot })
    }

    fn check(&self) -> Result<(), Error> {
        self.comm.check()
    }
}

struct HostTransfer {
    arriving: Pending<Vec<Buffer>>,
    slots: Vec<Slot<1>>,
}

impl InFlight for HostTransfer {
    fn is_complete(&mut self) -> bool {
        // The mailboxes accept sent buffers at once.
        self.slots.is_empty()
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        let arrived = self.arriving.wait()?;
        Ok(arrived.iter().zip(&self.slots).map(|(buffer, slot)| tensor(buffer, slot)).collect())
    }
}

struct HostSum {
    arriving: Pending<Vec<Buffer>>,
    /// The rank and summand of this rank.
    own: (usize, Buffer),
    slot: Slot<1>,
}

impl InFlight for HostSum {
    fn is_complete(&mut self) -> bool {
        false
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        let mut parts = self.arriving.wait()?;
        let (rank, own) = self.own;
        parts.insert(rank, own);
        // In rank order, so that every rank gets the same bits.
        let parts = parts.iter().map(|part| tensor(part, &self.slot).cast(DType::F32));
        let sum = parts.reduce(|sum, part| sum + part).expect("a group has at least one rank");
        Ok(vec![sum.cast(self.slot.place.dtype)])
    }
}

/// The elements of `tensor`. They share its memory, unless it is a view of a larger tensor.
fn buffer(tensor: Tensor<1>) -> Buffer {
    struct Copy(TensorData);
    impl AsRef<[u8]> for Copy {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    let dtype = wire_type(tensor.dtype());
    Buffer::from_bytes(
        dtype,
        match shared_memory(&tensor) {
            Some(memory) => bytes::Bytes::from_owner(memory),
            None => bytes::Bytes::from_owner(Copy(tensor.into_data())),
        },
    )
}

/// The tensor in `buffer`. It shares memory with the buffer; in-place writes copy first.
fn tensor(buffer: &Buffer, slot: &Slot<1>) -> Tensor<1> {
    let (bytes, dtype) = (buffer.bytes(), slot.place.dtype);
    let bytes = match bytes.as_ptr().align_offset(dtype.size()) {
        0 => Bytes::from_shared(bytes.clone(), AllocationProperty::Other),
        _ => Bytes::from_bytes_vec(bytes.to_vec()),
    };
    Tensor::from_data(TensorData::from_bytes(bytes, slot.shape, dtype), (&slot.place.device, dtype))
}

fn spec(slot: &Slot<1>) -> BufferSpec {
    BufferSpec::new(wire_type(slot.place.dtype), slot.shape[0])
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
    use burn::tensor::Device;

    use super::super::{Place, flat};
    use super::*;

    fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
        tensor.to_data().try_to_vec().expect("an f32 tensor")
    }

    fn counted() -> Tensor<1> {
        let data = TensorData::new((0..12).map(|i| i as f32).collect(), [12]);
        Tensor::from_data(data, (&Device::flex(), DType::F32))
    }

    fn arrived(sent: &Buffer) -> Tensor<1> {
        tensor(sent, &Place::of(&counted()).slot([sent.len()]))
    }

    #[test]
    fn nothing_is_copied_on_the_way() {
        let (sent, kept) = (counted(), counted());
        for (sent, _kept) in [(sent, None), (kept.clone(), Some(kept))] {
            let sent = buffer(sent);
            // A rank sends it on to the next one while it still uses it.
            let arrived = arrived(&sent);
            assert_eq!(buffer(arrived.clone()).bytes().as_ptr(), sent.bytes().as_ptr());
        }
    }

    #[test]
    fn what_the_sender_changes_later_does_not_travel() {
        let kept = counted();
        let sent = buffer(kept.clone());
        assert_eq!(buffer(kept.clone()).bytes().as_ptr(), sent.bytes().as_ptr());
        assert_eq!(values(&kept.mul_scalar(2.0))[3], 6.0);
        assert_eq!(values(&arrived(&sent)), values(&counted()));
    }

    #[test]
    fn what_one_rank_changes_in_place_no_other_sees() {
        let sent = buffer(counted());
        let [a, b] = [arrived(&sent), arrived(&sent)];
        let changed = a.mul_scalar(2.0).add_scalar(1.0);
        assert_eq!(values(&b), values(&counted()));
        assert_eq!(values(&changed)[3], 7.0);
        assert_eq!(sent, buffer(counted()));
    }

    #[test]
    fn views_travel_as_what_they_show() {
        assert_eq!(values(&arrived(&buffer(counted().narrow(0, 0, 5)))), [0.0, 1.0, 2.0, 3.0, 4.0]);
        let view = counted().reshape([3, 4]).narrow(1, 1, 2);
        let arrived = arrived(&buffer(flat(view.clone())));
        assert_eq!(values(&arrived), values(&view));
        assert_eq!(values(&arrived), [1.0, 2.0, 5.0, 6.0, 9.0, 10.0]);
    }

    #[test]
    fn misaligned_bytes_arrive_all_the_same() {
        let mut bytes = vec![0];
        bytes.extend_from_slice(buffer(counted()).bytes());
        let odd = Buffer::from_bytes(WireType::F32, bytes::Bytes::from(bytes).slice(1..));
        assert_eq!(values(&arrived(&odd)), values(&counted()));
    }
}
