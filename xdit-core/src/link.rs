//! Transfers of tensors between ranks.
//!
//! A [`Link`] is one rank's end of a group of ranks. It has two operations on tensors: a grouped [exchange](Transfer),
//! of which all-to-all, all-gather, broadcast and messages between two ranks are made, and a [sum](Link::sum). Links
//! that depend on each other's order are made by [`split`](Link::split).
//!
//! # Order
//!
//! Operations on one link run one after the other, in the order in which they were issued, on each rank; a send may
//! wait for its receive. NCCL works like this. So an operation must never stand behind one that waits, through other
//! ranks, for it: whatever is issued ahead of its turn has a link of its own.
//!
//! # Waiting
//!
//! An operation returns at once. [Waiting](Arriving::wait) for it makes what arrives usable for this rank's next
//! operation. Over host memory that blocks this thread; a device transport makes the device's stream wait instead.

mod counted;
mod failure;
mod host;
#[cfg(test)]
mod tests;
mod traffic;

use std::fmt;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::{Error, Group, Operation};

pub use counted::{Counted, Meter};
pub use failure::catch;
pub(crate) use failure::{fail, first_cause, must};
pub use host::HostLink;
pub use traffic::{Count, Traffic, Wait};

/// One rank's end of a group of ranks that exchange tensors.
///
/// Peers are named by their position in the group. All ranks of the group issue its operations in the same order.
pub trait Link: fmt::Debug + Send + Sync {
    /// The ranks that talk here.
    fn group(&self) -> &Group;

    /// This rank's position in the group.
    fn rank(&self) -> usize;

    /// A link for each of `groups`, which are lists of world ranks of this one without a rank in common. Returns that
    /// of this rank's group, and `None` if it is in none of them.
    ///
    /// Every rank of this link calls it with the same groups, the ranks that are in none of them included.
    ///
    /// # Errors
    /// If the groups are not as they must be, or cannot be joined.
    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error>;

    /// Issues sends and receives as one operation: none of them waits for another.
    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight>;

    /// Issues the sum of the `x` of all ranks: one tensor, the same bits on every rank. It is added up in f32 and
    /// rounded once.
    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight>;

    /// Whether the run goes on. Call it during long computations without a transfer.
    ///
    /// # Errors
    /// If another rank has failed.
    fn check(&self) -> Result<(), Error>;
}

/// Sends and receives that belong together. The k-th tensor that `a` sends to `b` is the k-th that `b` receives from `a`.
#[derive(Debug)]
pub struct Transfer {
    /// The pattern it is a part of, for errors and counts.
    pub operation: Operation,
    /// Bytes that the caller brought, those that stay on this rank included.
    pub payload_bytes: u64,
    /// Position of the receiver, and the elements row by row. They may be a view of a larger tensor.
    pub sends: Vec<(usize, Tensor<1>)>,
    /// Position of the sender, and what arrives.
    pub receives: Vec<(usize, Slot<1>)>,
}

/// An operation that was issued. It owns what it sends until that has left.
pub trait InFlight: Send {
    /// Whether it is known to be over, without waiting for it.
    fn is_complete(&mut self) -> bool;

    /// Waits until what arrives, in the order of the receives, may be used by the next operation.
    ///
    /// # Errors
    /// What went wrong since the operation was issued.
    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error>;
}

/// Where and as what tensors are.
#[derive(Clone, Debug)]
pub struct Place {
    /// Their device.
    pub device: Device,
    /// Their type.
    pub dtype: DType,
}

impl Place {
    /// Where `tensor` is.
    pub fn of<const D: usize>(tensor: &Tensor<D>) -> Self {
        Self { device: tensor.device(), dtype: tensor.dtype() }
    }

    /// A tensor of `shape` that arrives here.
    pub fn slot<const D: usize>(&self, shape: [usize; D]) -> Slot<D> {
        Slot { shape, place: self.clone() }
    }
}

/// The destination of a receive: all that memory can be reserved from, without asking the sender.
#[derive(Clone, Debug)]
pub struct Slot<const D: usize> {
    /// The shape of the tensor.
    pub shape: [usize; D],
    /// Where it arrives.
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

/// Tensors on their way.
#[must_use = "a transfer is done, and its failure seen, only once it has been waited for"]
pub struct Arriving<const D: usize> {
    in_flight: Box<dyn InFlight>,
    shapes: Vec<[usize; D]>,
    /// This rank's own part, and its place among those that arrive.
    own: Option<(usize, Tensor<D>)>,
}

/// An operation that is over.
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
        Self { in_flight: Box::new(Here(tensors.into_iter().map(flat).collect())), shapes, own: None }
    }

    /// Whether it is known to be over, without waiting for it.
    pub fn is_complete(&mut self) -> bool {
        self.in_flight.is_complete()
    }

    /// The tensors, which the next operation may use. Unwinds to [`catch`] if they do not arrive, with an error that
    /// names operation, group and rank.
    pub fn wait(self) -> Vec<Tensor<D>> {
        let arrived = must(self.in_flight.wait());
        let mut tensors: Vec<_> =
            arrived.into_iter().zip(self.shapes).map(|(x, shape)| x.reshape(shape)).collect();
        if let Some((place, own)) = self.own {
            tensors.insert(place, own);
        }
        tensors
    }

    /// [`wait`](Self::wait) where one tensor arrives.
    ///
    /// # Panics
    /// If there are several, or none.
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
    /// How many ranks talk here.
    pub fn size(&self) -> usize {
        self.group().size()
    }

    /// Sends and receives as one operation. What arrives is ordered like `receives`.
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
        self.issue(operation, payload_bytes, sends, receives, None)
    }

    /// The parts of all ranks, in their order: each rank gives `part` to all others.
    ///
    /// # Shapes
    /// `shapes[rank]` is that of the rank's part.
    pub fn all_gather<const D: usize>(&self, part: Tensor<D>, shapes: &[[usize; D]]) -> Arriving<D> {
        let others = self.gather_others(part.clone(), shapes);
        Arriving { own: Some((self.rank(), part)), ..others }
    }

    /// As `all_gather`, without this rank's own part.
    pub fn gather_others<const D: usize>(&self, part: Tensor<D>, shapes: &[[usize; D]]) -> Arriving<D> {
        let sends = self.others().map(|to| (to, part.clone())).collect();
        self.issue(Operation::AllGather, bytes_of(&part), sends, self.slots(&part, shapes), None)
    }

    /// A part from each rank, in their order: each rank gives `parts[i]` to rank `i`.
    ///
    /// # Shapes
    /// `shapes[rank]` is that of what the rank gives to this one.
    pub fn all_to_all<const D: usize>(
        &self,
        mut parts: Vec<Tensor<D>>,
        shapes: &[[usize; D]],
    ) -> Arriving<D> {
        assert_eq!(parts.len(), self.size(), "a part for each rank");
        let payload_bytes = parts.iter().map(bytes_of).sum();
        let own = parts.remove(self.rank());
        let receives = self.slots(&own, shapes);
        self.issue(
            Operation::AllToAll,
            payload_bytes,
            self.others().zip(parts).collect(),
            receives,
            Some(own),
        )
    }

    /// The sum of the `x` of all ranks, as `sum` computes it.
    pub fn sum_of<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let shape = x.dims();
        Arriving { in_flight: self.sum(flat(x)), shapes: vec![shape], own: None }.wait_one()
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank();
        (0..self.size()).filter(move |&peer| peer != rank)
    }

    /// Where the parts of the other ranks arrive, beside `own`.
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
        own: Option<Tensor<D>>,
    ) -> Arriving<D> {
        let shapes = receives.iter().map(|(_, slot)| slot.shape).collect();
        let sends = sends.into_iter().map(|(to, x)| (to, flat(x))).collect();
        let receives = receives.iter().map(|(from, slot)| (*from, slot.flat())).collect();
        let in_flight = self.transfer(Transfer { operation, payload_bytes, sends, receives });
        Arriving { in_flight, shapes, own: own.map(|own| (self.rank(), own)) }
    }
}

/// The elements of `x`, row by row.
fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let elements = x.shape().num_elements();
    x.reshape([elements])
}
