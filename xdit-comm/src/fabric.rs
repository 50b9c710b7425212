//! Mailboxes between the ranks of a world, and how failure spreads through them. A message to a rank of another process
//! goes to the mailbox in that process.
//!
//! Each end computes a message's [`Address`] by itself, so delivery is a lookup and never depends on the order in which
//! threads happen to run. All state is behind one lock, which is held only to move handles.

mod remote;
mod simulated;
mod state;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::processes::{MessageHead, Remote};
use crate::{Buffer, BufferSpec, Call, Error, LaunchOptions, Operation, Result, Sim};
pub(crate) use state::Address;
use state::{Exit, Failure, Letter, State, Waiting};

/// The connection between the ranks of one world.
pub(crate) struct Fabric {
    state: Mutex<State>,
    /// One per rank, notified when an event may end the rank's wait.
    changed: Vec<Condvar>,
    /// The limit on waits.
    limit: Duration,
    started: Instant,
    sim: Option<Sim>,
    /// Whether a rank has failed.
    failed: AtomicBool,
    /// The part of the world in other processes, if there is one.
    remote: Option<Remote>,
}

impl Fabric {
    pub(crate) fn new(size: usize, options: &LaunchOptions) -> Arc<Self> {
        Self::with(size, options, None)
    }

    /// As [`new`](Self::new), with a part of the world in other processes.
    pub(crate) fn with(size: usize, options: &LaunchOptions, remote: Option<Remote>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(size)),
            changed: (0..size).map(|_| Condvar::new()).collect(),
            limit: options.timeout,
            started: Instant::now(),
            sim: options.sim.clone(),
            failed: AtomicBool::new(false),
            remote,
        })
    }

    pub(crate) fn size(&self) -> usize {
        self.changed.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The deadline of a wait of `rank` that begins now, as time since the start: real time, or the rank's simulated
    /// time.
    pub(crate) fn deadline(&self, rank: usize) -> Duration {
        let now = if self.sim.is_some() { self.lock().ranks[rank].clock } else { self.started.elapsed() };
        now.saturating_add(self.limit)
    }

    /// Issues an operation: delivers its messages without waiting for any rank.
    pub(crate) fn post(&self, call: &Call, sends: Vec<(Address, Buffer)>) -> Result<()> {
        let mut state = self.lock();
        let killed_after = match &self.sim {
            Some(sim) => state.apply_fault(sim, call)?,
            None => state.check_failure(call).map(|()| None)?,
        };
        let mut awaited = Vec::new();
        let mut leaving = Vec::new();
        for (address, buffer) in sends.into_iter().take(killed_after.unwrap_or(usize::MAX)) {
            if self.remote.as_ref().is_some_and(|remote| !remote.is_local(address.to)) {
                leaving.push((address, buffer));
                continue;
            }
            let sent_at = state.ranks[call.rank].clock;
            let arrival = self.sim.as_ref().map_or(Some(sent_at), |sim| {
                sim.delay(&address, buffer.spec().size_bytes()).map(|delay| sent_at + delay)
            });
            if state.release_receiver_of(&address) {
                awaited.push(address.to);
            }
            let spec = buffer.spec();
            state.mail.insert(address, Letter { call: call.clone(), spec, buffer, arrival });
        }
        if killed_after.is_some() {
            self.leave(&mut state, call.rank, Exit::Killed);
        }
        // The woken ranks need the lock.
        drop(state);
        awaited.into_iter().for_each(|rank: usize| self.changed[rank].notify_all());
        self.send(call, leaving);
        if killed_after.is_some() { Err(Error::Killed { call: call.clone() }) } else { Ok(()) }
    }

    /// Fails once any rank has failed. In simulated time only waits report failures, so that runs are reproducible.
    pub(crate) fn check(&self, call: &Call) -> Result<()> {
        let must_end = self.failed.load(Ordering::Acquire) && self.sim.is_none();
        if must_end { self.lock().check_failure(call) } else { Ok(()) }
    }

    /// Waits for the message at `address` and takes it.
    pub(crate) fn take(
        &self,
        call: &Call,
        address: &Address,
        deadline: Duration,
    ) -> Result<(Operation, BufferSpec, Buffer)> {
        let mut state = self.lock();
        loop {
            let outcome = match self.sim {
                Some(_) => state.look_simulated(call, address, deadline, self.limit),
                None => self.look(&mut state, call, address, deadline),
            };
            if let Some(outcome) = outcome {
                return outcome.map(|letter| (letter.call.operation, letter.spec, letter.buffer));
            }
            state = match self.sim {
                Some(_) => self.block_simulated(state, address, deadline),
                None => {
                    state.ranks[address.to].waiting.push(Waiting { address: *address, deadline });
                    let left = deadline.saturating_sub(self.started.elapsed());
                    let woken = self.changed[address.to].wait_timeout(state, left);
                    let mut state = woken.unwrap_or_else(PoisonError::into_inner).0;
                    state.release_receiver_of(address);
                    state
                }
            };
        }
    }

    /// The outcome of a wait in real time, or `None` if it goes on.
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

    /// Records that `rank` has returned from its work, with the text of its failure if it failed.
    pub(crate) fn exit(&self, rank: usize, failure: Option<String>) {
        let mut state = self.lock();
        let exit = match failure {
            None => {
                if let Some(remote) = &self.remote {
                    remote.exit(rank, None);
                }
                Exit::Finished
            }
            Some(text) => {
                // A rank that stopped because another one failed passes on the original cause.
                let heard = state.ranks[rank].heard.take();
                let failure = heard.unwrap_or_else(|| Failure { rank, cause: text.into() });
                state.failures.push(rank);
                let first = state.first_failure.get_or_insert_with(|| failure.clone());
                if let Some(remote) = &self.remote {
                    remote.exit(rank, Some((first.rank, &first.cause)));
                }
                self.failed.store(true, Ordering::Release);
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

    /// The ranks that failed, the first cause first.
    pub(crate) fn failures(&self) -> Vec<usize> {
        let state = self.lock();
        let mut failures = state.failures.clone();
        if self.sim.is_some() {
            failures.sort_by_key(|&rank| (state.ranks[rank].exit.as_ref().map(|(_, at)| *at), rank));
        }
        failures
    }

    /// The error for a message that is still in its mailbox once all ranks have succeeded.
    pub(crate) fn unreceived(&self) -> Option<Error> {
        let state = self.lock();
        let (address, letter) = state.mail.iter().min_by_key(|(address, _)| **address)?;
        Some(Error::Unreceived { call: letter.call.clone(), peer: address.to })
    }

    /// The duration of the run so far: real time, or the simulated time of the slowest rank.
    pub(crate) fn elapsed(&self) -> Duration {
        match self.sim {
            Some(_) => self.lock().ranks.iter().map(|rank| rank.clock).max().unwrap_or_default(),
            None => self.started.elapsed(),
        }
    }
}
