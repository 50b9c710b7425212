//! A job across processes: its events go to the first process, and it ends everywhere at once.

use xdit_comm::{Arrival, Ended, Processes, Topic};

use crate::error::{Error, ErrorKind, Result};
use crate::run::notes::{Note, decode, encode};
use crate::run::observer::Event;

/// The part of a job that processes owe each other.
pub struct Across {
    processes: Processes,
    size: usize,
    topic: Topic,
    /// For each process, whether its ranks are done. Only the first process knows of all; for the others, its own entry
    /// stands for all.
    done: Vec<bool>,
}

impl Across {
    /// The next job of `processes`, in a world of `size` ranks. `receive` is called by other threads.
    pub fn new(
        processes: &Processes,
        size: usize,
        receive: impl Fn(usize, Arrival) + Send + Sync + 'static,
    ) -> Self {
        let topic = processes.topic(receive);
        Self { processes: processes.clone(), size, topic, done: vec![false; processes.count()] }
    }

    /// Whether this is the first process, which has the observer.
    pub fn leads(&self) -> bool {
        self.processes.leads()
    }

    /// Whether nothing more is awaited from other processes.
    pub fn is_done(&self) -> bool {
        if self.leads() { self.done[1..].iter().all(|&done| done) } else { self.done[0] }
    }

    /// Sends an event to the first process.
    pub fn send(&self, event: &Event) {
        if let Some(note) = encode(&Note::Event(event.clone()), &self.processes) {
            self.topic.send(0, note);
        }
    }

    /// The ranks of this process are done, and have sent all their events.
    pub fn done(&self) {
        if let Some(note) = encode(&Note::Done, &self.processes).filter(|_| !self.leads()) {
            self.topic.send(0, note);
        }
    }

    /// The ranks of all processes are done.
    pub fn all_done(&self) {
        if let Some(note) = encode(&Note::Done, &self.processes) {
            self.topic.send_all(&note.into());
        }
    }

    /// Takes an arrival from another process, and returns its event, if it is one.
    ///
    /// # Errors
    /// If the job has ended elsewhere, or the process has left before its ranks were done.
    pub fn arrived(&mut self, from: usize, arrival: Arrival) -> Result<Option<Event>> {
        match arrival {
            Arrival::Note(note) => match decode(&note, &self.processes)? {
                Note::Event(event) => return Ok(Some(event)),
                Note::Done => self.done[from] = true,
            },
            Arrival::Left if !self.done[from] && (from == 0 || self.leads()) => {
                let host = self.processes.host(from);
                return Err(Error::failure(format!("process {from} on `{host}` has ended early")));
            }
            Arrival::Left => {}
            Arrival::Ended(ended) => return Err(followed_in(&self.processes, self.size, &ended)),
        }
        Ok(None)
    }
}

/// Ends all `processes` because of `error`, unless they have ended before.
pub fn end_all(processes: &Processes, error: &Error) {
    if processes.ended().is_none() {
        processes.abort(error.kind() == ErrorKind::Cancelled, error.message());
    }
}

/// The error of a process that stops because of another one.
pub fn followed(ended: &Ended) -> Error {
    // A hint is for the process that failed.
    let cause = ended.cause.lines().next().unwrap_or_default();
    let message = format!("stopped by {cause}");
    if ended.cancelled { Error::cancelled().reworded(message) } else { Error::failure(message) }
}

/// As [`followed`], with the ranks of the process in a world of `size` ranks.
pub fn followed_in(processes: &Processes, size: usize, ended: &Ended) -> Error {
    let error = followed(ended);
    let Some(ranks) = processes.ranks_of(ended.process, size) else { return error };
    let ranks = match ranks.len() {
        1 => format!("rank {}", ranks.start),
        _ => format!("ranks {} to {}", ranks.start, ranks.end - 1),
    };
    let message = format!("{} ({ranks})", error.message());
    error.reworded(message)
}
