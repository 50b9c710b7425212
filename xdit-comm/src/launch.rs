//! Running a closure on every rank of a thread world.

use std::any::Any;
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::fabric::Fabric;
use crate::{Comm, Error, Sim};

/// As much as a main thread has on Linux: ranks run whole models, not worker tasks.
const STACK_BYTES: usize = 8 << 20;

/// Limits of a run, and its network.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// The limit on each wait. It is a last resort, for a peer that is alive and silent, and must exceed the longest
    /// time a rank computes between two operations. 10 minutes unless set.
    pub timeout: Duration,
    /// How long the other ranks may take to stop once one has failed, before the launcher leaves them behind.
    /// 2 s unless set.
    pub grace: Duration,
    /// Simulates time and trouble; limits on waits are then in simulated time.
    pub sim: Option<Sim>,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(600), grace: Duration::from_secs(2), sim: None }
    }
}

impl LaunchOptions {
    /// Sets the limit on waits.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets the time to stop after a failure.
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Runs in the simulator.
    pub fn sim(self, sim: Sim) -> Self {
        Self { sim: Some(sim), ..self }
    }
}

/// How one rank ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T, E> {
    /// It returned a value.
    Done(T),
    /// It returned an error.
    Failed(E),
    /// It panicked, with this message, or could not begin.
    Panicked(String),
    /// Another rank failed and this one had not stopped when the grace was over. Its thread is left running.
    Busy,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report<T, E> {
    /// How each rank ended, in rank order.
    pub outcomes: Vec<Outcome<T, E>>,
    /// How long it took, in simulated time if the run was simulated.
    pub elapsed: Duration,
    /// Ranks that failed, first cause first.
    pub failures: Vec<usize>,
    /// A message nobody received, if all ranks are done.
    pub unreceived: Option<Error>,
}

impl<T, E> Report<T, E> {
    /// The values in rank order, or the first cause of the failure.
    ///
    /// # Errors
    /// If a rank failed or panicked, or a message was left unreceived.
    pub fn into_result(self) -> Result<Vec<T>, RunError<E>> {
        let busy = self.outcomes.iter().enumerate().filter(|(_, outcome)| matches!(outcome, Outcome::Busy));
        let busy: Vec<usize> = busy.map(|(rank, _)| rank).collect();
        let first = self.failures.first().copied();
        let mut values = Vec::with_capacity(self.outcomes.len());
        for (rank, outcome) in self.outcomes.into_iter().enumerate() {
            match outcome {
                Outcome::Done(value) => values.push(value),
                Outcome::Failed(error) if first == Some(rank) => {
                    return Err(RunError { rank, cause: Cause::Failed(error), busy });
                }
                Outcome::Panicked(message) if first == Some(rank) => {
                    return Err(RunError { rank, cause: Cause::Panicked(message), busy });
                }
                // Not the first cause, which is at another rank.
                Outcome::Failed(_) | Outcome::Panicked(_) | Outcome::Busy => {}
            }
        }
        match self.unreceived {
            Some(Error::Unreceived { call, peer }) => {
                let (rank, cause) = (call.rank, Cause::Unreceived(Error::Unreceived { call, peer }));
                Err(RunError { rank, cause, busy })
            }
            _ => Ok(values),
        }
    }
}

/// Why a run failed: what went wrong first, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RunError<E> {
    /// The world rank that failed first.
    pub rank: usize,
    /// How it failed.
    pub cause: Cause<E>,
    /// Ranks that were still computing when the grace was over. Their threads are left running.
    pub busy: Vec<usize>,
}

/// How a rank made a run fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause<E> {
    /// Its closure returned this error.
    Failed(E),
    /// Its closure panicked with this message.
    Panicked(String),
    /// All closures returned, and a message it had sent was never received.
    Unreceived(Error),
}

impl<E: Display> Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Failed(error) => write!(f, "rank {} failed: {error}", self.rank)?,
            Cause::Panicked(message) => write!(f, "rank {} panicked: {message}", self.rank)?,
            Cause::Unreceived(error) => write!(f, "{error}")?,
        }
        if self.busy.is_empty() {
            Ok(())
        } else {
            write!(f, " (left behind, still busy: ranks {:?})", self.busy)
        }
    }
}

/// Runs `work` on `size` ranks, each a thread, and returns their values in rank order.
///
/// # Errors
/// The first cause, if a rank returns an error or panics, or if a message was never received. All ranks are told at
/// once; one that does not stop within [`LaunchOptions::grace`] is left behind, so this returns even then.
///
/// # Panics
/// If `size` is zero.
pub fn run_ranks<T, E, F>(size: usize, options: &LaunchOptions, work: F) -> Result<Vec<T>, RunError<E>>
where
    T: Send + 'static,
    E: Display + Send + 'static,
    F: Fn(Comm) -> Result<T, E> + Send + Sync + 'static,
{
    launch(size, options, work).into_result()
}

/// Like [`run_ranks`], and tells all there is to know about the run.
///
/// # Panics
/// If `size` is zero.
pub fn launch<T, E, F>(size: usize, options: &LaunchOptions, work: F) -> Report<T, E>
where
    T: Send + 'static,
    E: Display + Send + 'static,
    F: Fn(Comm) -> Result<T, E> + Send + Sync + 'static,
{
    assert!(size > 0, "a world has at least one rank");
    let fabric = Fabric::new(size, options);
    let work = Arc::new(work);
    let (report, reports) = mpsc::channel();
    let threads: Vec<_> = (0..size)
        .map(|rank| {
            let end = {
                let (fabric, report) = (fabric.clone(), report.clone());
                move |outcome, failure| {
                    fabric.exit(rank, failure);
                    // Fails only if the launcher has left this rank behind.
                    drop(report.send((rank, outcome)));
                }
            };
            let (fabric, work, tell) = (fabric.clone(), work.clone(), end.clone());
            let body = move || {
                let comm = Endpoint::world(fabric, rank);
                let (outcome, failure) = run_one(|| work(comm));
                // Its captures go before the launcher learns that this rank is done.
                drop(work);
                tell(outcome, failure);
            };
            let thread = thread::Builder::new().name(format!("rank {rank}")).stack_size(STACK_BYTES);
            // The ranks that have begun would wait for this one.
            thread.spawn(body).map_err(|error| {
                let message = format!("the system has no thread for it: {error}");
                end(Outcome::Panicked(message.clone()), Some(message));
            })
        })
        .collect();
    drop(report);

    let mut outcomes: Vec<Outcome<T, E>> = (0..size).map(|_| Outcome::Busy).collect();
    let mut stop_at = None;
    loop {
        let left = stop_at.map_or(Duration::MAX, |at: Instant| at.saturating_duration_since(Instant::now()));
        match reports.recv_timeout(left) {
            Ok((rank, outcome)) => {
                if stop_at.is_none() && !matches!(outcome, Outcome::Done(_)) {
                    stop_at = Instant::now().checked_add(options.grace);
                }
                outcomes[rank] = outcome;
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    for (thread, outcome) in threads.into_iter().zip(&outcomes) {
        if let Ok(thread) = thread
            && !matches!(outcome, Outcome::Busy)
        {
            // Panics of the closure are caught inside.
            thread.join().expect("a rank's thread ends well");
        }
    }
    // A rank that was left behind may fail at any time; the report is of what the launcher has seen.
    let failed = |outcome: &Outcome<T, E>| matches!(outcome, Outcome::Failed(_) | Outcome::Panicked(_));
    let done = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done(_)));
    Report {
        elapsed: fabric.elapsed(),
        failures: fabric.failures().into_iter().filter(|&rank| failed(&outcomes[rank])).collect(),
        unreceived: if done { fabric.unreceived() } else { None },
        outcomes,
    }
}

/// Runs one rank's closure; the second value is what its peers are told if it failed.
fn run_one<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> (Outcome<T, E>, Option<String>) {
    // What the closure captured is not used again once it has panicked.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => (Outcome::Done(value), None),
        Ok(Err(error)) => {
            let text = error.to_string();
            (Outcome::Failed(error), Some(text))
        }
        Err(payload) => {
            let message = panic_message(&*payload);
            (Outcome::Panicked(message.clone()), Some(message))
        }
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".to_owned(),
    }
}
