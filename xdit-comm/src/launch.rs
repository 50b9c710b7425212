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
use crate::{Comm, Error, Processes, Sim};

/// The stack of a main thread on Linux: ranks run whole models, not small tasks.
const STACK_BYTES: usize = 8 << 20;

/// Options of a run: its limits and its network.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// The limit on each wait, a last resort against a peer that is alive but silent. It must exceed the longest time
    /// that a rank computes between two operations. The default is 10 minutes.
    pub timeout: Duration,
    /// The time that the other ranks have to stop after a failure, before the launcher abandons them. The default is
    /// 2 s.
    pub grace: Duration,
    /// Simulates time and faults. Limits on waits are then in simulated time.
    pub sim: Option<Sim>,
    /// The processes that have the ranks. Every process must launch the same worlds in the same order; it runs its own
    /// [ranks](Processes::ranks) and returns their values. A run across processes is not simulated.
    pub processes: Option<Processes>,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(600), grace: Duration::from_secs(2), sim: None, processes: None }
    }
}

impl LaunchOptions {
    /// Sets the limit on waits.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets the time that ranks have to stop after a failure.
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Runs in the simulator.
    pub fn sim(self, sim: Sim) -> Self {
        Self { sim: Some(sim), ..self }
    }

    /// Divides the ranks among processes.
    pub fn processes(self, processes: Processes) -> Self {
        Self { processes: Some(processes), ..self }
    }
}

/// The outcome of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T, E> {
    /// It returned a value.
    Done(T),
    /// It returned an error.
    Failed(E),
    /// It panicked with this message, or could not start.
    Panicked(String),
    /// Another rank failed, and this one did not stop within the grace period. Its thread is left running.
    Busy,
}

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report<T, E> {
    /// The outcome of each rank of this process, in rank order.
    pub outcomes: Vec<Outcome<T, E>>,
    /// The duration, in simulated time if the run was simulated.
    pub elapsed: Duration,
    /// The ranks that failed, the first cause first.
    pub failures: Vec<usize>,
    /// A message that was never received, if all ranks are done.
    pub unreceived: Option<Error>,
    /// The first rank of this process.
    pub first_rank: usize,
    /// The failed rank of another process that made this one fail, with the cause.
    pub elsewhere: Option<(usize, Arc<str>)>,
}

impl<T, E> Report<T, E> {
    /// The values in rank order, or the first cause of the failure.
    ///
    /// # Errors
    /// If a rank failed or panicked, or a message was never received.
    pub fn into_result(self) -> Result<Vec<T>, RunError<E>> {
        let busy = self.outcomes.iter().enumerate().filter(|(_, outcome)| matches!(outcome, Outcome::Busy));
        let busy: Vec<usize> = busy.map(|(index, _)| self.first_rank + index).collect();
        if let Some((rank, cause)) = self.elsewhere {
            return Err(RunError { rank, cause: Cause::Elsewhere(cause), busy });
        }
        let first = self.failures.first().copied();
        let mut values = Vec::with_capacity(self.outcomes.len());
        for (index, outcome) in self.outcomes.into_iter().enumerate() {
            let rank = self.first_rank + index;
            match outcome {
                Outcome::Done(value) => values.push(value),
                Outcome::Failed(error) if first == Some(rank) => {
                    return Err(RunError { rank, cause: Cause::Failed(error), busy });
                }
                Outcome::Panicked(message) if first == Some(rank) => {
                    return Err(RunError { rank, cause: Cause::Panicked(message), busy });
                }
                // The first cause is at another rank.
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

/// The failure of a run: its first cause, and the rank where it occurred.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RunError<E> {
    /// The world rank that failed first.
    pub rank: usize,
    /// The cause.
    pub cause: Cause<E>,
    /// The ranks that were still computing after the grace period. Their threads are left running.
    pub busy: Vec<usize>,
}

/// The cause of a failed run, at one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause<E> {
    /// Its closure returned this error.
    Failed(E),
    /// Its closure panicked with this message.
    Panicked(String),
    /// All closures succeeded, but a message from this rank was never received.
    Unreceived(Error),
    /// It is a rank of another process, which failed with this message.
    Elsewhere(Arc<str>),
}

impl<E: Display> Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Failed(error) => write!(f, "rank {} failed: {error}", self.rank)?,
            Cause::Panicked(message) => write!(f, "rank {} panicked: {message}", self.rank)?,
            Cause::Unreceived(error) => write!(f, "{error}")?,
            Cause::Elsewhere(message) => write!(f, "rank {} failed: {message}", self.rank)?,
        }
        if self.busy.is_empty() {
            Ok(())
        } else {
            write!(f, " (left behind, still busy: ranks {:?})", self.busy)
        }
    }
}

/// Runs `work` on `size` ranks, each a thread, and returns their values in rank order. Across
/// [processes](LaunchOptions::processes), these are the ranks of this process.
///
/// # Errors
/// The first cause, if a rank returns an error or panics, or if a message was never received. After a failure all ranks
/// are notified at once. A rank that does not stop within [`LaunchOptions::grace`] is abandoned, so that this function
/// returns in any case.
///
/// # Panics
/// If `size` is zero, or no multiple of the number of processes.
pub fn run_ranks<T, E, F>(size: usize, options: &LaunchOptions, work: F) -> Result<Vec<T>, RunError<E>>
where
    T: Send + 'static,
    E: Display + Send + 'static,
    F: Fn(Comm) -> Result<T, E> + Send + Sync + 'static,
{
    launch(size, options, work).into_result()
}

/// Like [`run_ranks`], but returns a full report of the run.
///
/// # Panics
/// If `size` is zero, or no multiple of the number of processes.
pub fn launch<T, E, F>(size: usize, options: &LaunchOptions, work: F) -> Report<T, E>
where
    T: Send + 'static,
    E: Display + Send + 'static,
    F: Fn(Comm) -> Result<T, E> + Send + Sync + 'static,
{
    assert!(size > 0, "a world has at least one rank");
    let (fabric, local) = match &options.processes {
        None => (Fabric::new(size, options), 0..size),
        Some(processes) => {
            assert!(options.sim.is_none(), "a world across processes is not simulated");
            let local = processes.ranks(size).expect("each process has the same number of ranks");
            (processes.open_world(|remote| Fabric::with(size, options, Some(remote)), size), local)
        }
    };
    let work = Arc::new(work);
    let (report, reports) = mpsc::channel();
    let threads: Vec<_> = local
        .clone()
        .map(|rank| {
            let end = {
                let (fabric, report) = (fabric.clone(), report.clone());
                move |outcome, failure| {
                    fabric.exit(rank, failure);
                    // Fails only if the launcher has abandoned this rank.
                    drop(report.send((rank, outcome)));
                }
            };
            let (fabric, work, tell) = (fabric.clone(), work.clone(), end.clone());
            let body = move || {
                let comm = Endpoint::world(fabric, rank);
                let (outcome, failure) = run_one(|| work(comm));
                // The closure's captures are freed before the launcher learns that this rank is done.
                drop(work);
                tell(outcome, failure);
            };
            let thread = thread::Builder::new().name(format!("rank {rank}")).stack_size(STACK_BYTES);
            // The ranks that have started would wait for this one, so its failure to start is reported like a panic.
            thread.spawn(body).map_err(|error| {
                let message = format!("the system has no thread for it: {error}");
                end(Outcome::Panicked(message.clone()), Some(message));
            })
        })
        .collect();
    drop(report);

    let mut outcomes: Vec<Outcome<T, E>> = local.clone().map(|_| Outcome::Busy).collect();
    let mut stop_at = None;
    loop {
        let left = stop_at.map_or(Duration::MAX, |at: Instant| at.saturating_duration_since(Instant::now()));
        match reports.recv_timeout(left) {
            Ok((rank, outcome)) => {
                if stop_at.is_none() && !matches!(outcome, Outcome::Done(_)) {
                    stop_at = Instant::now().checked_add(options.grace);
                }
                outcomes[rank - local.start] = outcome;
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    for (thread, outcome) in threads.into_iter().zip(&outcomes) {
        if let Ok(thread) = thread
            && !matches!(outcome, Outcome::Busy)
        {
            // The thread catches panics of the closure.
            thread.join().expect("a rank's thread ends well");
        }
    }
    // An abandoned rank may fail at any time; the report has only the outcomes that the launcher has received.
    let failed = |outcome: &Outcome<T, E>| matches!(outcome, Outcome::Failed(_) | Outcome::Panicked(_));
    let done = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done(_)));
    Report {
        elapsed: fabric.elapsed(),
        failures: fabric
            .failures()
            .into_iter()
            .filter(|&rank| failed(&outcomes[rank - local.start]))
            .collect(),
        unreceived: if done { fabric.unreceived() } else { None },
        first_rank: local.start,
        elsewhere: if done { None } else { fabric.elsewhere() },
        outcomes,
    }
}

/// Runs one rank's closure. The second value is the cause that its peers report if it failed.
fn run_one<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> (Outcome<T, E>, Option<String>) {
    // Unwind safety: the captures of the closure are not used again after a panic.
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
