//! What the fabric's lock protects.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::{Buffer, Call, Error, Result};

/// Names one message of a run. Sender and receiver both know it without asking.
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
    /// The sending end.
    pub call: Call,
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
    /// Dead without a word: its peers find out only by waiting.
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
    /// What the rank is blocked on, while nothing has happened that could end the wait. In real time its threads may
    /// wait for several messages.
    pub waiting: Vec<Waiting>,
    /// The simulator has decided that the current wait runs into its limit.
    pub expired: bool,
    /// The failure of which a peer's exit told this rank.
    pub heard: Option<Failure>,
}

pub(super) struct State {
    pub mail: HashMap<Address, Letter>,
    pub ranks: Vec<RankState>,
    /// Ranks that failed, as it came.
    pub failures: Vec<usize>,
    /// What everybody is told, in real time.
    pub first_failure: Option<Failure>,
}

impl State {
    pub fn new(size: usize) -> Self {
        let ranks = (0..size).map(|_| RankState::default()).collect();
        Self { mail: HashMap::new(), ranks, failures: Vec::new(), first_failure: None }
    }

    /// A message for `address` is there. Says whether its receiver was blocked on it, which it no longer is.
    pub fn release_receiver_of(&mut self, address: &Address) -> bool {
        let waiting = &mut self.ranks[address.to].waiting;
        let before = waiting.len();
        waiting.retain(|waiting| waiting.address != *address);
        waiting.len() < before
    }

    /// An error once any rank has failed: real-time runs end everywhere, not only where somebody waits for that rank.
    pub fn check_failure(&self, call: &Call) -> Result<()> {
        match &self.first_failure {
            None => Ok(()),
            Some(Failure { rank, cause }) => {
                Err(Error::PeerFailed { call: call.clone(), peer: *rank, cause: cause.clone() })
            }
        }
    }
}
