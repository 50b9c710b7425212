//! Waiting in simulated time.
//!
//! Each rank has a clock, which only its own waits and stalls advance. A receive names its sender, so a rank's results
//! depend on the program and the seed alone, not on thread scheduling: the outcome of every wait follows from the
//! arrival time of the message, or from the way its sender left. The one exception is a deadlock, in which ranks wait
//! for each other and neither a message nor an exit will come. It is detected when all remaining ranks are blocked;
//! then the wait with the earliest deadline reaches its limit.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::Fabric;
use super::state::{Address, Exit, Letter, State, Waiting};
use crate::sim::FaultKind;
use crate::{Call, Error, Result, Sim};

/// The simulated time after which peers learn that a rank has left. It is not zero, so that an effect is always later
/// than its cause.
const NOTICE: Duration = Duration::from_micros(1);

/// The real time after which a blocked rank gives up: a peer that computes forever would stop simulated time.
const REAL_LIMIT: Duration = Duration::from_secs(60);

impl State {
    /// Counts the operation and applies the rank's planned fault. If the rank dies in this operation, returns the
    /// number of messages that are still sent.
    pub fn apply_fault(&mut self, sim: &Sim, call: &Call) -> Result<Option<usize>> {
        let rank = &mut self.ranks[call.rank];
        if let Some((Exit::Killed, _)) = rank.exit {
            return Err(Error::Killed { call: call.clone() });
        }
        let operation = rank.operations;
        rank.operations += 1;
        match sim.fault(call.rank, operation) {
            Some(FaultKind::Stall(duration)) => {
                rank.clock += duration;
                Ok(None)
            }
            Some(FaultKind::Die { messages }) => Ok(Some(messages)),
            None => Ok(None),
        }
    }

    /// The outcome of a wait, or `None` if it goes on.
    pub fn look_simulated(
        &mut self,
        call: &Call,
        address: &Address,
        deadline: Duration,
        limit: Duration,
    ) -> Option<Result<Letter>> {
        let peer = address.from;
        let now = self.ranks[call.rank].clock;
        let expired = std::mem::take(&mut self.ranks[call.rank].expired);
        if let Some((Exit::Killed, _)) = self.ranks[call.rank].exit {
            return Some(Err(Error::Killed { call: call.clone() }));
        }
        let timeout = || (deadline, Err(Error::Timeout { call: call.clone(), peer, limit }));
        let (at, outcome) = if let Some(letter) = self.mail.remove(address) {
            match letter.arrival {
                Some(arrival) if arrival <= deadline => (arrival, Ok(letter)),
                _ => timeout(),
            }
        } else if expired {
            timeout()
        } else {
            match self.ranks[peer].exit.as_ref()? {
                (Exit::Killed, _) => timeout(),
                (_, at) if *at + NOTICE > deadline => timeout(),
                (Exit::Finished, at) => (*at + NOTICE, Err(Error::PeerFinished { call: call.clone(), peer })),
                (Exit::Failed(failure), at) => {
                    let (peer, cause) = (failure.rank, failure.cause.clone());
                    let at = *at + NOTICE;
                    self.ranks[call.rank].heard = Some(failure.clone());
                    (at, Err(Error::PeerFailed { call: call.clone(), peer, cause }))
                }
            }
        };
        self.ranks[call.rank].clock = now.max(at);
        Some(outcome)
    }

    /// Unblocks the ranks that wait for `sender`, which has left.
    pub fn release_receivers_from(&mut self, sender: usize) {
        for rank in &mut self.ranks {
            rank.waiting.retain(|waiting| waiting.address.from != sender);
        }
    }

    /// If all remaining ranks are blocked, expires the wait with the earliest deadline and returns its rank.
    pub fn expire_if_stuck(&mut self) -> Option<usize> {
        let present = || self.ranks.iter().enumerate().filter(|(_, rank)| rank.exit.is_none());
        if present().any(|(_, rank)| rank.waiting.is_empty()) {
            return None;
        }
        let deadlines = present().flat_map(|(rank, it)| it.waiting.iter().map(move |it| (it.deadline, rank)));
        let (_, rank) = deadlines.min()?;
        self.expire(rank);
        Some(rank)
    }

    fn expire(&mut self, rank: usize) {
        self.ranks[rank].waiting.clear();
        self.ranks[rank].expired = true;
    }
}

impl Fabric {
    /// Blocks the rank until an event may end its wait.
    pub(super) fn block_simulated<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        address: &Address,
        deadline: Duration,
    ) -> MutexGuard<'a, State> {
        let rank = address.to;
        state.ranks[rank].waiting.push(Waiting { address: *address, deadline });
        if let Some(stuck) = state.expire_if_stuck() {
            self.changed[stuck].notify_all();
        }
        let blocked = |state: &mut State| !state.ranks[rank].waiting.is_empty();
        let woken = self.changed[rank].wait_timeout_while(state, REAL_LIMIT, blocked);
        let (mut state, real) = woken.unwrap_or_else(PoisonError::into_inner);
        if real.timed_out() {
            state.expire(rank);
        }
        state
    }
}
