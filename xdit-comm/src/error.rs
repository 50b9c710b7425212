//! What can go wrong, always naming the operation, the group and the rank.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{BufferSpec, Reduce};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation of a [`Communicator`](crate::Communicator).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// [`all_reduce`](crate::Communicator::all_reduce)
    AllReduce(Reduce),
    /// [`all_gather`](crate::Communicator::all_gather)
    AllGather,
    /// [`reduce_scatter`](crate::Communicator::reduce_scatter)
    ReduceScatter(Reduce),
    /// [`all_to_all`](crate::Communicator::all_to_all)
    AllToAll,
    /// [`broadcast`](crate::Communicator::broadcast)
    Broadcast,
    /// [`send`](crate::Communicator::send)
    Send,
    /// [`recv`](crate::Communicator::recv)
    Recv,
    /// [`send_recv`](crate::Communicator::send_recv)
    SendRecv,
    /// [`barrier`](crate::Communicator::barrier)
    Barrier,
    /// [`subgroup`](crate::Communicator::subgroup)
    Subgroup,
    /// [`check`](crate::Communicator::check)
    Check,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllReduce(op) => write!(f, "all_reduce({op})"),
            Self::AllGather => f.write_str("all_gather"),
            Self::ReduceScatter(op) => write!(f, "reduce_scatter({op})"),
            Self::AllToAll => f.write_str("all_to_all"),
            Self::Broadcast => f.write_str("broadcast"),
            Self::Send => f.write_str("send"),
            Self::Recv => f.write_str("recv"),
            Self::SendRecv => f.write_str("send_recv"),
            Self::Barrier => f.write_str("barrier"),
            Self::Subgroup => f.write_str("subgroup"),
            Self::Check => f.write_str("check"),
        }
    }
}

/// Which operation of which group on which rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What was called.
    pub operation: Operation,
    /// Label of the group.
    pub group: Arc<str>,
    /// World rank of the caller.
    pub rank: usize,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` over `{}` on rank {}", self.operation, self.group, self.rank)
    }
}

/// Why an operation failed. `peer` is a world rank, like [`Call::rank`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A message did not come in time: the peer is dead, stuck, or never sends it.
    #[error("{call}: nothing from rank {peer} within {limit:?}")]
    Timeout {
        /// Who waited.
        call: Call,
        /// Whose message is missing.
        peer: usize,
        /// The limit on waits.
        limit: Duration,
    },
    /// The run is over because another rank failed; `cause` is the first failure, not this rank's.
    #[error("{call}: stopped because rank {peer} failed: {cause}")]
    PeerFailed {
        /// What was stopped.
        call: Call,
        /// The rank that failed first.
        peer: usize,
        /// Its error or panic message.
        cause: Arc<str>,
    },
    /// The peer returned from its work without sending what is waited for.
    #[error("{call}: rank {peer} finished without sending")]
    PeerFinished {
        /// Who waited.
        call: Call,
        /// Who has left.
        peer: usize,
    },
    /// The two ends of a transfer disagree on what travels.
    #[error("{call}: expected {expected} from rank {peer}, which sent {got}")]
    Mismatch {
        /// The receiving end.
        call: Call,
        /// The sending end.
        peer: usize,
        /// What the receiver was told to expect.
        expected: BufferSpec,
        /// What the sender handed over.
        got: BufferSpec,
    },
    /// The ranks of a group issued their collectives in different orders.
    #[error("{call}: out of step with rank {peer}, which is in `{theirs}`")]
    OutOfStep {
        /// This end.
        call: Call,
        /// The other end.
        peer: usize,
        /// What the other end called at the same place in the order.
        theirs: Operation,
    },
    /// The run went well but for a message nobody received.
    #[error("{call}: rank {peer} finished without receiving this")]
    Unreceived {
        /// The sending end.
        call: Call,
        /// Who should have received.
        peer: usize,
    },
    /// The simulator ended this rank, as it was told to.
    #[error("{call}: killed by the simulator")]
    Killed {
        /// Where the rank died.
        call: Call,
    },
    /// The position is outside of the group.
    #[error("{call}: no position {position} in a group of {size}")]
    NoSuchPosition {
        /// Who asked.
        call: Call,
        /// What was asked for.
        position: usize,
        /// Ranks in the group.
        size: usize,
    },
    /// A collective needs one part (or length) for each rank of the group.
    #[error("{call}: {got} parts for a group of {size}")]
    PartCount {
        /// Who asked.
        call: Call,
        /// Parts given.
        got: usize,
        /// Ranks in the group.
        size: usize,
    },
    /// The root of a broadcast brings the buffer and no other rank does.
    #[error("{call}: the root alone must bring a buffer, and the root is rank {root}")]
    BroadcastSource {
        /// Who asked.
        call: Call,
        /// World rank of the root.
        root: usize,
    },
    /// A sub-group must be made by its members, out of the ranks of its parent.
    #[error("{call}: rank {outsider} is not in both `{group}` and its parent")]
    NotMember {
        /// Who asked, of which parent.
        call: Call,
        /// Label of the sub-group.
        group: Arc<str>,
        /// The rank that is missing.
        outsider: usize,
    },
}
