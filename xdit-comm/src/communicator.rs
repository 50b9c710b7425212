//! The seam: what every transport offers.

use std::fmt;
use std::sync::Arc;

use crate::{Buffer, BufferSpec, Group, Operation, Pending, Result};

/// A communicator of any backend, shared by whoever needs it.
pub type Comm = Arc<dyn Communicator>;

/// One rank's end of a [`Group`].
///
/// Peers are named by their *position* in the group; errors name world ranks. Operations return at once; wrong
/// arguments come back as an error from [`Pending::wait`], like every other failure.
pub trait Communicator: fmt::Debug + Send + Sync {
    /// The ranks that talk here.
    fn group(&self) -> &Group;

    /// This rank's position in the group.
    fn rank(&self) -> usize;

    /// How many ranks talk here.
    fn size(&self) -> usize {
        self.group().size()
    }

    /// Creates a separate communicator for each of `groups`, which are disjoint lists of world ranks of this
    /// communicator. Returns the communicator of this rank's group, or `None` if the rank is in no group.
    ///
    /// Every rank of this communicator must call it with the same groups, including ranks that are in no group.
    /// Operations of different communicators are ordered independently, even if they join the same ranks.
    ///
    /// # Errors
    /// [`NotMember`](crate::Error::NotMember) if a rank is not in this communicator, or
    /// [`Overlap`](crate::Error::Overlap) if it is in two groups.
    fn split(&self, groups: &[Group]) -> Result<Option<Comm>>;

    /// Issues sends and receives as one operation: none waits for another, whatever their order. The received buffers
    /// are in the order of `recvs`.
    ///
    /// The k-th buffer that `a` sends to `b` is the k-th that `b` receives from `a`. Lengths may be zero. `operation`
    /// names the call in errors; both ends of a transfer must give [matching](Operation::matches) names.
    ///
    /// The transport owns a sent buffer until it has arrived; a backend may complete a send earlier.
    fn exchange(
        &self,
        operation: Operation,
        sends: Vec<(usize, Buffer)>,
        recvs: Vec<(usize, BufferSpec)>,
    ) -> Pending<Vec<Buffer>>;

    /// Fails once a peer has failed. Call it during long computations that make no transfer, and so no wait that
    /// would report the failure.
    ///
    /// # Errors
    /// [`PeerFailed`](crate::Error::PeerFailed) once this rank can know that another one has failed.
    fn check(&self) -> Result<()>;
}
