//! Waiting in simulated time.
//!
//! Each rank has a clock, which only its own waits move. A receive names its sender, so what a rank sees depends on
//! the program and the seed alone, not on which thread runs first: the outcome of every wait follows from the arrival
//! time of the message, or from how its sender left. One case is left, in which no message and no exit will ever
//! come because the ranks wait for each other. It shows when all ranks that are left are blocked; then the wait with
//! the earliest deadline runs into its limit.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::Fabric;
use super::state::{Address, Exit, Letter, State, Waiting};
use crate::sim::FaultKind;
use crate::{Call, Error, Result, Sim};

/// How long the news that a rank failed is under way, in simulated time; not zero, so that a consequence is always
/// later than its cause.
const NOTICE: Duration = Duration::from_micros(1);

/// Real time after which a blocked rank gives up: a peer that computes for ever keeps simulated time from passing.
const REAL_LIMIT: Duration = Duration::from_secs(60);

impl State {
    /// Counts the operation and does to the rank what was planned for it. Returns the number of messages that still
    /// leave if the rank dies in this operation.
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

    /// How a wait ends as things stand; `None` while it does not.
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

    /// Nothing more will come from `sender`.
    pub fn release_receivers_from(&mut self, sender: usize) {
        for rank in &mut self.ranks {
            rank.waiting.retain(|waiting| waiting.address.from != sender);
        }
    }

    /// If every rank that is left is blocked, the one with the earliest deadline waits in vain. Returns that rank.
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
    /// Blocks the rank until something has happened that may end its wait.
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
