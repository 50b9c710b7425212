//! What can go wrong, always naming the operation, the group and the rank.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::BufferSpec;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The name of a call to a [`Communicator`](crate::Communicator): for an exchange, the pattern that it is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// A sum over all ranks, which all ranks get.
    AllReduce,
    /// The part of each rank goes to all ranks.
    AllGather,
    /// Each rank has a part for each other rank.
    AllToAll,
    /// What one rank has goes to all ranks.
    Broadcast,
    /// To other ranks, which receive.
    Send,
    /// From other ranks, which send.
    Recv,
    /// To and from other ranks at once.
    SendRecv,
    /// [`split`](crate::Communicator::split)
    Split,
    /// [`check`](crate::Communicator::check)
    Check,
}

impl Operation {
    /// Whether what one rank sends under this name may be received by another under the name `other`.
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
    /// The ranks of a group issued their operations in different orders.
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
    /// A sub-group is made of ranks of its parent.
    #[error("{call}: rank {outsider} of `{group}` is not in it")]
    NotMember {
        /// Who asked, of which parent.
        call: Call,
        /// Label of the sub-group.
        group: Arc<str>,
        /// The rank that is not in the parent.
        outsider: usize,
    },
    /// A split puts no rank into two groups.
    #[error("{call}: rank {member} is in two of the groups")]
    Overlap {
        /// Who asked.
        call: Call,
        /// The rank.
        member: usize,
    },
}
