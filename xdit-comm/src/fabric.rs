//! Mailboxes between the ranks of one process, and how failure spreads through them.
//!
//! A message has an [`Address`] that both ends compute alone, so delivery is a lookup and never depends on the order
//! in which threads happen to run. All state is behind one lock, held only to move handles.

mod simulated;
mod state;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::traffic::Count;
use crate::{Buffer, Call, Error, LaunchOptions, Operation, Result, Sim, Traffic, Wait};
pub(crate) use state::{Address, Channel};
use state::{Exit, Failure, Letter, State};

/// What connects the ranks of one world.
pub(crate) struct Fabric {
    state: Mutex<State>,
    /// One for each rank: something it may be waiting for has happened.
    changed: Vec<Condvar>,
    /// The limit on waits.
    limit: Duration,
    started: Instant,
    sim: Option<Sim>,
    /// Whether each wait is kept, not only their sums.
    record_waits: bool,
}

impl Fabric {
    pub(crate) fn new(size: usize, options: &LaunchOptions) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(size)),
            changed: (0..size).map(|_| Condvar::new()).collect(),
            limit: options.timeout,
            started: Instant::now(),
            sim: options.sim.clone(),
            record_waits: options.record_waits,
        })
    }

    pub(crate) fn size(&self) -> usize {
        self.changed.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the start: real, or simulated as `rank` sees it.
    pub(crate) fn now(&self, rank: usize) -> Duration {
        if self.sim.is_some() { self.lock().ranks[rank].clock } else { self.started.elapsed() }
    }

    /// When a wait that begins at `begin` is given up.
    pub(crate) fn deadline(&self, begin: Duration) -> Duration {
        begin.saturating_add(self.limit)
    }

    /// Counts the time from `begin` until now as a wait for `received_bytes`.
    pub(crate) fn waited(&self, call: &Call, begin: Duration, received_bytes: usize) {
        let end = self.now(call.rank);
        let (group, operation) = (&call.group, call.operation);
        let mut state = self.lock();
        let rank = &mut state.ranks[call.rank];
        rank.traffic.add_wait(group, operation, end - begin);
        if self.record_waits {
            let received_bytes = received_bytes as u64;
            rank.waits.push(Wait { group: group.clone(), operation, begin, end, received_bytes });
        }
    }

    /// Issues an operation: counts it, and hands over its messages without waiting for anybody.
    pub(crate) fn post(
        &self,
        call: &Call,
        payload_bytes: usize,
        sends: Vec<(Address, Buffer)>,
    ) -> Result<()> {
        let mut state = self.lock();
        let killed_after = match &self.sim {
            Some(sim) => state.apply_fault(sim, call)?,
            None => state.check_failure(call).map(|()| None)?,
        };
        let mut count = Count { calls: 1, payload_bytes: payload_bytes as u64, ..Count::default() };
        for (address, buffer) in sends.into_iter().take(killed_after.unwrap_or(usize::MAX)) {
            if address.to != address.from {
                count.messages += 1;
                count.sent_bytes += buffer.spec().size_bytes() as u64;
            }
            let sent_at = state.ranks[call.rank].clock;
            let arrival = self.sim.as_ref().map_or(Some(sent_at), |sim| {
                sim.delay(&address, buffer.spec().size_bytes()).map(|delay| sent_at + delay)
            });
            state.release_receiver_of(&address);
            self.changed[address.to].notify_all();
            state.mail.insert(address, Letter { call: call.clone(), buffer, arrival });
        }
        state.ranks[call.rank].traffic.add(&call.group, call.operation, count);
        if killed_after.is_some() {
            self.leave(&mut state, call.rank, Exit::Killed);
            return Err(Error::Killed { call: call.clone() });
        }
        Ok(())
    }

    /// An error once any rank has failed. In simulated time only waits tell of it, so that every run goes alike.
    pub(crate) fn check(&self, call: &Call) -> Result<()> {
        if self.sim.is_some() { Ok(()) } else { self.lock().check_failure(call) }
    }

    /// Waits for the message at `address` and takes it.
    pub(crate) fn take(
        &self,
        call: &Call,
        address: &Address,
        deadline: Duration,
    ) -> Result<(Operation, Buffer)> {
        let mut state = self.lock();
        loop {
            let outcome = match self.sim {
                Some(_) => state.look_simulated(call, address, deadline, self.limit),
                None => self.look(&mut state, call, address, deadline),
            };
            if let Some(outcome) = outcome {
                return outcome.map(|letter| (letter.call.operation, letter.buffer));
            }
            state = match self.sim {
                Some(_) => self.block_simulated(state, address, deadline),
                None => {
                    let left = deadline.saturating_sub(self.started.elapsed());
                    let woken = self.changed[address.to].wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// How a wait ends as things stand, in real time; `None` while it does not.
    fn look(
        &self,
        state: &mut State,
        call: &Call,
        address: &Address,
        deadline: Duration,
    ) -> Option<Result<Letter>> {
        if let Err(error) = state.check_failure(call) {
            return Some(Err(error));
        }
        if let Some(letter) = state.mail.remove(address) {
            return Some(Ok(letter));
        }
        let (call, peer) = (|| call.clone(), address.from);
        if state.ranks[peer].exit.is_some() {
            return Some(Err(Error::PeerFinished { call: call(), peer }));
        }
        let late = self.started.elapsed() >= deadline;
        late.then(|| Err(Error::Timeout { call: call(), peer, limit: self.limit }))
    }

    /// `rank` has returned from its work, with the text of its failure if it failed.
    pub(crate) fn exit(&self, rank: usize, failure: Option<String>) {
        let mut state = self.lock();
        let exit = match failure {
            None => Exit::Finished,
            Some(text) => {
                // A rank that stopped because another failed hands on that cause, not its own words for it.
                let heard = state.ranks[rank].heard.take();
                let failure = heard.unwrap_or_else(|| Failure { rank, cause: text.into() });
                state.failures.push(rank);
                state.first_failure.get_or_insert_with(|| failure.clone());
                Exit::Failed(failure)
            }
        };
        self.leave(&mut state, rank, exit);
    }

    fn leave(&self, state: &mut State, rank: usize, exit: Exit) {
        let at = if self.sim.is_some() { state.ranks[rank].clock } else { self.started.elapsed() };
        state.ranks[rank].exit.get_or_insert((exit, at));
        if self.sim.is_some() {
            state.release_receivers_from(rank);
            state.expire_if_stuck();
        }
        self.changed.iter().for_each(Condvar::notify_all);
    }

    /// Ranks that failed, first cause first.
    pub(crate) fn failures(&self) -> Vec<usize> {
        let state = self.lock();
        let mut failures = state.failures.clone();
        if self.sim.is_some() {
            failures.sort_by_key(|&rank| (state.ranks[rank].exit.as_ref().map(|(_, at)| *at), rank));
        }
        failures
    }

    /// A message that is still in its mailbox, as the error it is once all ranks have finished well.
    pub(crate) fn unreceived(&self) -> Option<Error> {
        let state = self.lock();
        let (address, letter) = state.mail.iter().min_by_key(|(address, _)| **address)?;
        Some(Error::Unreceived { call: letter.call.clone(), peer: address.to })
    }

    pub(crate) fn traffic(&self, rank: usize) -> Traffic {
        self.lock().ranks[rank].traffic.clone()
    }

    pub(crate) fn waits(&self, rank: usize) -> Vec<Wait> {
        self.lock().ranks[rank].waits.clone()
    }

    /// How long the run has taken: real time, or what the slowest rank saw of simulated time.
    pub(crate) fn elapsed(&self) -> Duration {
        match self.sim {
            Some(_) => self.lock().ranks.iter().map(|rank| rank.clock).max().unwrap_or_default(),
            None => self.started.elapsed(),
        }
    }
}
