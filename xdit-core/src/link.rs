//! Transfers of tensors between ranks.
//!
//! A [`Link`] is one rank's end of a group of ranks. It has two operations on tensors: a grouped [exchange](Transfer),
//! from which all-to-all, all-gather, broadcast and messages between two ranks are made, and a [sum](Link::sum).
//! [`split`](Link::split) makes links of sub-groups, each with an order of its own.
//!
//! # Order
//!
//! As in NCCL, the operations of a link run one after another on each rank, in the order of issue, and a send may wait
//! for its receive. Therefore an operation must never be queued behind one that waits for it through other ranks:
//! operations that are issued ahead of their turn need a link of their own.
//!
//! # Waiting
//!
//! An operation returns at once. After [waiting](Arriving::wait) for it, this rank's next operation may use the
//! received tensors. Over host memory, waiting blocks the thread; a device transport makes the device's stream wait
//! instead.

mod counted;
mod failure;
mod host;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "gives a library addresses of tensors")]
mod nccl;
#[cfg(test)]
mod tests;
mod traffic;

use std::fmt;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::{Comm, Error, Group, Operation};
use xdit_kernels::contiguous;

pub use counted::{Counted, Meter};
pub use failure::catch;
pub(crate) use failure::{fail, first_cause, must};
pub use host::HostLink;
#[cfg(feature = "cuda")]
pub use nccl::NcclLink;
pub use traffic::{Count, Traffic, Wait};

/// The way of tensors between the ranks of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Over the memory of the host.
    Host,
    /// From GPU to GPU.
    #[cfg(feature = "cuda")]
    Nccl,
}

impl Transport {
    /// The best way between `ranks` ranks, of which those of this process compute on `devices`. If there should be a
    /// better one, returns the reason why it is not used.
    pub fn between(devices: &[Device], ranks: usize) -> (Self, Option<String>) {
        #[cfg(feature = "cuda")]
        {
            let gpus: Option<Vec<usize>> = devices.iter().map(xdit_kernels::device::cuda_index).collect();
            let apart =
                |gpus: &Vec<usize>| gpus.iter().enumerate().all(|(at, gpu)| !gpus[..at].contains(gpu));
            if ranks > 1 && gpus.is_some_and(|gpus| apart(&gpus)) {
                return match crate::device::nccl() {
                    Ok(_) => (Self::Nccl, None),
                    Err(reason) => (
                        Self::Host,
                        Some(format!(
                            "GPUs exchange data through the host's memory, which is slow: {reason}"
                        )),
                    ),
                };
            }
        }
        let _ = (devices, ranks);
        (Self::Host, None)
    }

    /// The link of a rank that computes on `device`. Every rank of `comm` must call it.
    ///
    /// # Errors
    /// If the ranks cannot be joined.
    pub fn link(self, comm: Comm, device: &Device) -> Result<Arc<dyn Link>, Error> {
        match self {
            Self::Host => {
                let _ = device;
                Ok(HostLink::new(comm))
            }
            #[cfg(feature = "cuda")]
            Self::Nccl => NcclLink::new(comm, device),
        }
    }
}

/// One rank's end of a group of ranks that exchange tensors.
///
/// Peers are named by their position in the group. All ranks of the group must issue its operations in the same order.
pub trait Link: fmt::Debug + Send + Sync {
    /// The ranks of this link.
    fn group(&self) -> &Group;

    /// This rank's position in the group.
    fn rank(&self) -> usize;

    /// Creates a separate link for each of `groups`, which are disjoint lists of world ranks of this link. Returns the
    /// link of this rank's group, or `None` if the rank is in no group.
    ///
    /// Every rank of this link must call it with the same groups, including ranks that are in no group.
    ///
    /// # Errors
    /// If the groups are invalid, or cannot be joined.
    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error>;

    /// As [`split`](Self::split), for links whose ranks do not issue their operations at the same place in their
    /// programs: sends and receives between stages, which may be issued ahead of their turn.
    ///
    /// # Errors
    /// As [`split`](Self::split).
    fn channels(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        self.split(groups)
    }

    /// Issues sends and receives as one operation: none waits for another.
    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight>;

    /// Issues the sum of the `x` of all ranks, which has the same bits on every rank. Summands are added in f32, and
    /// the sum is rounded once.
    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight>;

    /// Fails once another rank has failed. Call it during long computations that make no transfer.
    ///
    /// # Errors
    /// If another rank has failed.
    fn check(&self) -> Result<(), Error>;
}

/// A group of sends and receives. The k-th tensor that `a` sends to `b` is the k-th that `b` receives from `a`.
#[derive(Debug)]
pub struct Transfer {
    /// The pattern of the transfer, for errors and counts.
    pub operation: Operation,
    /// Bytes of the caller's tensors, including those that stay on this rank.
    pub payload_bytes: u64,
    /// Positions of receivers, with the elements for each, row by row. A tensor may be a view of a larger one.
    pub sends: Vec<(usize, Tensor<1>)>,
    /// Positions of senders, with the slot for each tensor.
    pub receives: Vec<(usize, Slot<1>)>,
}

/// An issued operation. It owns the tensors it sends until they have been sent.
pub trait InFlight: Send {
    /// Whether the operation is known to be complete. Does not wait.
    fn is_complete(&mut self) -> bool;

    /// Waits until the next operation may use the received tensors, which are in the order of the receives.
    ///
    /// # Errors
    /// Any failure since the operation was issued.
    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error>;
}

/// The device and type of tensors.
#[derive(Clone, Debug)]
pub struct Place {
    /// Their device.
    pub device: Device,
    /// Their type.
    pub dtype: DType,
}

impl Place {
    /// The place of `tensor`.
    pub fn of<const D: usize>(tensor: &Tensor<D>) -> Self {
        Self { device: tensor.device(), dtype: tensor.dtype() }
    }

    /// A slot of `shape` at this place.
    pub fn slot<const D: usize>(&self, shape: [usize; D]) -> Slot<D> {
        Slot { shape, place: self.clone() }
    }
}

/// The destination of a receive. It suffices to reserve memory without asking the sender.
#[derive(Clone, Debug)]
pub struct Slot<const D: usize> {
    /// The shape of the tensor.
    pub shape: [usize; D],
    /// The place of the tensor.
    pub place: Place,
}

impl<const D: usize> Slot<D> {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.place.dtype.size()) as u64
    }

    fn flat(&self) -> Slot<1> {
        self.place.slot([self.shape.iter().product()])
    }
}

/// Bytes of the elements of `tensor`.
pub(crate) fn bytes_of<const D: usize>(tensor: &Tensor<D>) -> u64 {
    Place::of(tensor).slot(tensor.dims()).bytes()
}

/// Tensors in flight.
#[must_use = "a transfer is done, and its failure seen, only once it has been waited for"]
pub struct Arriving<const D: usize> {
    in_flight: Box<dyn InFlight>,
    shapes: Vec<[usize; D]>,
    /// This rank's own parts, and their indices among all parts.
    own: Vec<(usize, Tensor<D>)>,
}

/// A completed operation.
struct Here(Vec<Tensor<1>>);

impl InFlight for Here {
    fn is_complete(&mut self) -> bool {
        true
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        Ok(self.0)
    }
}

impl<const D: usize> Arriving<D> {
    /// Tensors that have arrived.
    pub fn here(tensors: Vec<Tensor<D>>) -> Self {
        let shapes = tensors.iter().map(Tensor::dims).collect();
        Self { in_flight: Box::new(Here(tensors.into_iter().map(flat).collect())), shapes, own: Vec::new() }
    }

    /// Whether the transfer is known to be complete. Does not wait.
    pub fn is_complete(&mut self) -> bool {
        self.in_flight.is_complete()
    }

    /// Returns the tensors, which the next operation may use. If the transfer failed, unwinds to [`catch`] with an
    /// error that names operation, group and rank.
    pub fn wait(self) -> Vec<Tensor<D>> {
        let arrived = must(self.in_flight.wait());
        let mut tensors: Vec<_> =
            arrived.into_iter().zip(self.shapes).map(|(x, shape)| x.reshape(shape)).collect();
        for (place, own) in self.own {
            tensors.insert(place, own);
        }
        tensors
    }

    /// As [`wait`](Self::wait), for a single tensor.
    ///
    /// # Panics
    /// If there are several tensors, or none.
    pub fn wait_one(self) -> Tensor<D> {
        let [tensor] = <[_; 1]>::try_from(self.wait()).expect("one tensor arrives");
        tensor
    }
}

impl<const D: usize> fmt::Debug for Arriving<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arriving({:?})", self.shapes)
    }
}

impl dyn Link + '_ {
    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.group().size()
    }

    /// Sends and receives as one operation. The received tensors are in the order of `receives`.
    pub fn exchange<const D: usize>(
        &self,
        sends: Vec<(usize, Tensor<D>)>,
        receives: Vec<(usize, Slot<D>)>,
    ) -> Arriving<D> {
        let operation = match (sends.is_empty(), receives.is_empty()) {
            (false, true) => Operation::Send,
            (true, false) => Operation::Recv,
            _ => Operation::SendRecv,
        };
        let payload_bytes = sends.iter().map(|(_, x)| bytes_of(x)).sum();
        self.issue(operation, payload_bytes, sends, receives, Vec::new())
    }

    /// Sends `part` to all other ranks, and returns the parts of all ranks in rank order.
    ///
    /// # Shapes
    /// `shapes[rank]` is the shape of the rank's part.
    pub fn all_gather<const D: usize>(&self, part: Tensor<D>, shapes: &[[usize; D]]) -> Arriving<D> {
        let others = self.gather_others(part.clone(), shapes);
        Arriving { own: vec![(self.rank(), part)], ..others }
    }

    /// As `all_gather`, without this rank's own part.
    pub fn gather_others<const D: usize>(&self, part: Tensor<D>, shapes: &[[usize; D]]) -> Arriving<D> {
        let sends = self.others().map(|to| (to, part.clone())).collect();
        self.issue(Operation::AllGather, bytes_of(&part), sends, self.slots(&part, shapes), Vec::new())
    }

    /// Sends `parts[i]` to rank `i`, and returns the parts from all ranks in rank order.
    ///
    /// # Shapes
    /// `shapes[rank]` is the shape of the part that this rank gets from `rank`.
    pub fn all_to_all<const D: usize>(&self, parts: Vec<Tensor<D>>, shapes: &[[usize; D]]) -> Arriving<D> {
        self.all_to_all_of(vec![parts], shapes)
    }

    /// As `all_to_all`, for several tensors whose parts travel as one operation. The parts of the
    /// first tensor come first.
    ///
    /// # Shapes
    /// The parts of all tensors have the shapes of the first one's.
    pub fn all_to_all_of<const D: usize>(
        &self,
        tensors: Vec<Vec<Tensor<D>>>,
        shapes: &[[usize; D]],
    ) -> Arriving<D> {
        let (rank, size) = (self.rank(), self.size());
        let payload_bytes = tensors.iter().flatten().map(bytes_of).sum();
        let (mut sends, mut receives, mut owned) = (Vec::new(), Vec::new(), Vec::new());
        for (index, mut parts) in tensors.into_iter().enumerate() {
            assert_eq!(parts.len(), size, "a part for each rank");
            let own = parts.remove(rank);
            receives.extend(self.slots(&own, shapes));
            sends.extend(self.others().zip(parts));
            owned.push((index * size + rank, own));
        }
        self.issue(Operation::AllToAll, payload_bytes, sends, receives, owned)
    }

    /// Returns the [`sum`](Link::sum) of the `x` of all ranks.
    pub fn sum_of<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let shape = x.dims();
        Arriving { in_flight: self.sum(flat(x)), shapes: vec![shape], own: Vec::new() }.wait_one()
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank();
        (0..self.size()).filter(move |&peer| peer != rank)
    }

    /// The slots for the parts of the other ranks, at the place of `own`.
    fn slots<const D: usize>(&self, own: &Tensor<D>, shapes: &[[usize; D]]) -> Vec<(usize, Slot<D>)> {
        assert_eq!(shapes.len(), self.size(), "a shape for each rank");
        assert_eq!(own.dims(), shapes[self.rank()], "this rank's part");
        let place = Place::of(own);
        self.others().map(|from| (from, place.slot(shapes[from]))).collect()
    }

    fn issue<const D: usize>(
        &self,
        operation: Operation,
        payload_bytes: u64,
        sends: Vec<(usize, Tensor<D>)>,
        receives: Vec<(usize, Slot<D>)>,
        own: Vec<(usize, Tensor<D>)>,
    ) -> Arriving<D> {
        let shapes = receives.iter().map(|(_, slot)| slot.shape).collect();
        let sends = sends.into_iter().map(|(to, x)| (to, flat(x))).collect();
        let receives = receives.iter().map(|(from, slot)| (*from, slot.flat())).collect();
        let in_flight = self.transfer(Transfer { operation, payload_bytes, sends, receives });
        Arriving { in_flight, shapes, own }
    }
}

/// The elements of `x`, row by row.
fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let elements = x.shape().num_elements();
    contiguous(x).reshape([elements])
}
