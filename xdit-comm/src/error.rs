//! Errors, each of which names the operation, the group and the rank.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::BufferSpec;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The name of a call to a [`Communicator`](crate::Communicator). An exchange has the name of its pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// All ranks get the sum over all ranks.
    AllReduce,
    /// All ranks get the parts of all ranks.
    AllGather,
    /// Each rank sends a different part to each rank.
    AllToAll,
    /// All ranks get the data of one rank.
    Broadcast,
    /// Only sends.
    Send,
    /// Only receives.
    Recv,
    /// Sends and receives at once.
    SendRecv,
    /// [`split`](crate::Communicator::split)
    Split,
    /// [`check`](crate::Communicator::check)
    Check,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AllReduce,
        Self::AllGather,
        Self::AllToAll,
        Self::Broadcast,
        Self::Send,
        Self::Recv,
        Self::SendRecv,
        Self::Split,
        Self::Check,
    ];

    /// Whether a message sent under this name may be received under the name `other`.
    pub fn matches(self, other: Self) -> bool {
        let pairwise = |operation| matches!(operation, Self::Send | Self::Recv | Self::SendRecv);
        self == other || pairwise(self) && pairwise(other)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllReduce => "all_reduce(sum)",
            Self::AllGather => "all_gather",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::Send => "send",
            Self::Recv => "recv",
            Self::SendRecv => "send_recv",
            Self::Split => "split",
            Self::Check => "check",
        })
    }
}

/// A call of an operation in a group, on a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The operation.
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

/// The reason an operation failed. `peer` is a world rank, like [`Call::rank`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A message did not arrive in time: the peer is dead or stuck, or never sends it.
    #[error("{call}: nothing from rank {peer} within {limit:?}")]
    Timeout {
        /// The waiting call.
        call: Call,
        /// The sender of the missing message.
        peer: usize,
        /// The limit on waits.
        limit: Duration,
    },
    /// The run is over because another rank failed; `cause` is the first failure, not this rank's.
    #[error("{call}: stopped because rank {peer} failed: {cause}")]
    PeerFailed {
        /// The call that was stopped.
        call: Call,
        /// The rank that failed first.
        peer: usize,
        /// Its error or panic message.
        cause: Arc<str>,
    },
    /// The peer returned from its work without sending an expected message.
    #[error("{call}: rank {peer} finished without sending")]
    PeerFinished {
        /// The waiting call.
        call: Call,
        /// The rank that has finished.
        peer: usize,
    },
    /// The two ends of a transfer disagree on the type or length of a buffer.
    #[error("{call}: expected {expected} from rank {peer}, which sent {got}")]
    Mismatch {
        /// The receiving call.
        call: Call,
        /// The sender.
        peer: usize,
        /// The buffer that the receiver expects.
        expected: BufferSpec,
        /// The buffer that the sender sent.
        got: BufferSpec,
    },
    /// The ranks of a group issued their operations in different orders.
    #[error("{call}: out of step with rank {peer}, which is in `{theirs}`")]
    OutOfStep {
        /// The call on this rank.
        call: Call,
        /// The other rank.
        peer: usize,
        /// The operation that the other rank called at this position of the order.
        theirs: Operation,
    },
    /// All ranks succeeded, but a message was never received.
    #[error("{call}: rank {peer} finished without receiving this")]
    Unreceived {
        /// The sending call.
        call: Call,
        /// The receiver.
        peer: usize,
    },
    /// The simulator ended this rank, as planned.
    #[error("{call}: killed by the simulator")]
    Killed {
        /// The call at which the rank died.
        call: Call,
    },
    /// The transport under the call failed.
    #[error("{call}: {cause}")]
    Transport {
        /// The call that cannot go on.
        call: Call,
        /// The transport's words.
        cause: Arc<str>,
    },
    /// The position is outside the group.
    #[error("{call}: no position {position} in a group of {size}")]
    NoSuchPosition {
        /// The call with the position.
        call: Call,
        /// The position.
        position: usize,
        /// The number of ranks in the group.
        size: usize,
    },
    /// A rank of a sub-group is not in the parent group.
    #[error("{call}: rank {outsider} of `{group}` is not in it")]
    NotMember {
        /// The split of the parent.
        call: Call,
        /// Label of the sub-group.
        group: Arc<str>,
        /// The rank that is not in the parent.
        outsider: usize,
    },
    /// A split has a rank in two groups.
    #[error("{call}: rank {member} is in two of the groups")]
    Overlap {
        /// The split.
        call: Call,
        /// The rank that is in two groups.
        member: usize,
    },
}
