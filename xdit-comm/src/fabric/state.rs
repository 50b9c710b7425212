//! The state behind the fabric's lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::{Buffer, BufferSpec, Call, Error, Result};

/// The name of one message of a run. Sender and receiver each compute it by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    pub communicator: u64,
    /// World rank of the sender.
    pub from: usize,
    /// World rank of the receiver.
    pub to: usize,
    pub sequence: u64,
}

/// A message in its mailbox.
pub(super) struct Letter {
    /// The call that sent it.
    pub call: Call,
    /// Type and length of the buffer. The bytes of a buffer from another process that the receiver does not want are
    /// missing.
    pub spec: BufferSpec,
    pub buffer: Buffer,
    /// When it arrives in simulated time; `None` if it is lost.
    pub arrival: Option<Duration>,
}

/// The first cause of a failure.
#[derive(Clone)]
pub(super) struct Failure {
    pub rank: usize,
    pub cause: Arc<str>,
}

/// How a rank left.
pub(super) enum Exit {
    Finished,
    Failed(Failure),
    /// Died without notice: its peers find out only by waiting.
    Killed,
}

/// The message that a rank is blocked on.
pub(super) struct Waiting {
    pub address: Address,
    pub deadline: Duration,
}

#[derive(Default)]
pub(super) struct RankState {
    /// How and when the rank left.
    pub exit: Option<(Exit, Duration)>,
    /// Simulated time as this rank sees it.
    pub clock: Duration,
    /// Operations issued, for the simulator's faults.
    pub operations: u64,
    /// The messages the rank is blocked on. An event that may end a wait removes its entry. In real time, several
    /// threads of a rank may wait at once.
    pub waiting: Vec<Waiting>,
    /// Whether the simulator has decided that the current wait reaches its limit.
    pub expired: bool,
    /// The failure that this rank learned from a peer's exit.
    pub heard: Option<Failure>,
}

pub(super) struct State {
    pub mail: HashMap<Address, Letter>,
    /// The type and length of messages that local ranks await from other processes.
    pub expected: HashMap<Address, BufferSpec>,
    pub ranks: Vec<RankState>,
    /// The ranks that failed, in order of occurrence.
    pub failures: Vec<usize>,
    /// The failure that all ranks report in real time.
    pub first_failure: Option<Failure>,
}

impl State {
    pub fn new(size: usize) -> Self {
        let ranks = (0..size).map(|_| RankState::default()).collect();
        Self {
            mail: HashMap::new(),
            expected: HashMap::new(),
            ranks,
            failures: Vec::new(),
            first_failure: None,
        }
    }

    /// Unblocks the receiver of the message at `address`, which has arrived. Returns whether it was blocked on it.
    pub fn release_receiver_of(&mut self, address: &Address) -> bool {
        let waiting = &mut self.ranks[address.to].waiting;
        let before = waiting.len();
        waiting.retain(|waiting| waiting.address != *address);
        waiting.len() < before
    }

    /// Fails once any rank has failed: in real time, all ranks end, not only those that wait for the failed one.
    pub fn check_failure(&self, call: &Call) -> Result<()> {
        match &self.first_failure {
            None => Ok(()),
            Some(Failure { rank, cause }) => {
                Err(Error::PeerFailed { call: call.clone(), peer: *rank, cause: cause.clone() })
            }
        }
    }
}
