//! The seam: what every transport offers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{Buffer, BufferSpec, Group, Pending, Reduce, Result, Traffic, Wait};

/// A communicator of any backend, shared by whoever needs it.
pub type Comm = Arc<dyn Communicator>;

/// One rank's end of a [`Group`].
///
/// Peers, roots and parts are named by their *position* in the group; errors name world ranks. Operations return at
/// once; wrong arguments come back as an error from [`Pending::wait`], like every other failure. Every rank of the
/// group issues the group's collectives in the same order. Lengths count elements; any of them may differ between
/// ranks, and may be zero.
pub trait Communicator: fmt::Debug + Send + Sync {
    /// The ranks that talk here.
    fn group(&self) -> &Group;

    /// This rank's position in the group.
    fn rank(&self) -> usize;

    /// How many ranks talk here.
    fn size(&self) -> usize {
        self.group().size()
    }

    /// A communicator of its own for `group`, a list of world ranks of this one.
    ///
    /// Each member calls this, and members that make several sub-groups make them in the same order; the other ranks
    /// need not know. Asking twice gives two communicators, whose operations are ordered independently.
    ///
    /// # Errors
    /// [`NotMember`](crate::Error::NotMember) if this rank is not in `group`, or `group` not in this communicator.
    fn subgroup(&self, group: &Group) -> Result<Comm>;

    /// Element-wise reduction of the buffers of all ranks, in rank order; all ranks get the same bits.
    ///
    /// # Shapes
    /// `len` elements on every rank → `len`.
    fn all_reduce(&self, buffer: Buffer, op: Reduce) -> Pending<Buffer>;

    /// The parts of all ranks, in rank order.
    ///
    /// # Shapes
    /// `lens[rank]` elements, `lens` being the same on all ranks → `size` buffers of `lens[..]`.
    fn all_gather(&self, part: Buffer, lens: &[usize]) -> Pending<Vec<Buffer>>;

    /// Part `i` of every rank, reduced in rank order, goes to rank `i`.
    ///
    /// # Shapes
    /// `size` parts, part `i` having the same length on all ranks → the length of part `rank`.
    fn reduce_scatter(&self, parts: Vec<Buffer>, op: Reduce) -> Pending<Buffer>;

    /// Part `i` goes to rank `i`; what arrives is ordered by the rank it came from.
    ///
    /// # Shapes
    /// `size` parts of one type → `size` buffers of `lens[..]`: rank `i` must send `lens[i]` elements to this rank.
    fn all_to_all(&self, parts: Vec<Buffer>, lens: &[usize]) -> Pending<Vec<Buffer>>;

    /// The root's buffer, on every rank. The root brings `Some`, the others `None`.
    ///
    /// # Shapes
    /// `spec` on the root → `spec` everywhere.
    fn broadcast(&self, root: usize, buffer: Option<Buffer>, spec: BufferSpec) -> Pending<Buffer>;

    /// Hands `buffer` to rank `to`. The transport owns it until it has arrived; a backend may complete this earlier.
    fn send(&self, to: usize, buffer: Buffer) -> Pending<()>;

    /// Posts a receive: the next message from rank `from` that no earlier receive has claimed.
    fn recv(&self, from: usize, spec: BufferSpec) -> Pending<Buffer>;

    /// Sends and receives that belong together: none waits for another, whatever their order, and all buffers are
    /// handed over as one operation. What arrives is ordered like `recvs`.
    fn send_recv(&self, sends: Vec<(usize, Buffer)>, recvs: Vec<(usize, BufferSpec)>)
    -> Pending<Vec<Buffer>>;

    /// Completes once every rank of the group has come here.
    fn barrier(&self) -> Pending<()>;

    /// Whether the world goes on: for a rank that computes for long without a transfer, which would tell it.
    ///
    /// # Errors
    /// [`PeerFailed`](crate::Error::PeerFailed) once this rank can know that another one has failed.
    fn check(&self) -> Result<()>;

    /// What this rank has sent and waited for so far, in all its groups.
    fn traffic(&self) -> Traffic;

    /// This rank's waits so far, one by one, in all its groups; none unless
    /// [they are recorded](crate::LaunchOptions::record_waits).
    fn waits(&self) -> Vec<Wait>;

    /// Time since this world began: real, or simulated as this rank sees it.
    fn now(&self) -> Duration;
}
