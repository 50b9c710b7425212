//! Counts of messages and waits.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xdit_comm::Operation;

/// The operations of one kind on one rank, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Operations issued.
    pub calls: u64,
    /// Bytes of the caller's tensors. The traffic of any algorithm follows from them: a ring all-reduce over n ranks,
    /// for instance, sends 2(n − 1)/n times as many.
    pub payload_bytes: u64,
    /// Messages sent to other ranks.
    pub messages: u64,
    /// Bytes of those messages, if each goes directly from one rank to another. Sums are counted in this way, too,
    /// whatever their algorithm.
    pub sent_bytes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.payload_bytes += other.payload_bytes;
        self.messages += other.messages;
        self.sent_bytes += other.sent_bytes;
    }
}

/// One wait of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Label of the group.
    pub group: Arc<str>,
    /// The operation that was waited for.
    pub operation: Operation,
    /// The time of its start, on the clock of the [`Meter`](super::Meter).
    pub begin: Duration,
    /// The time of its end.
    pub end: Duration,
    /// Bytes received from other ranks.
    pub received_bytes: u64,
}

impl Wait {
    /// The duration of the wait.
    pub fn duration(&self) -> Duration {
        self.end - self.begin
    }
}

/// The messages and waits of one rank, by group label and operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    counts: BTreeMap<(Arc<str>, Operation), Count>,
    /// Separate from the counts, which are the same in every run.
    waited: BTreeMap<(Arc<str>, Operation), Duration>,
}

impl Traffic {
    /// The count of `operation` in groups labelled `label`; zeros if there were none.
    pub fn get(&self, label: &str, operation: Operation) -> Count {
        self.counts.get(&(label.into(), operation)).copied().unwrap_or_default()
    }

    /// The time spent waiting for messages of `operation` in groups labelled `label`.
    pub fn waited(&self, label: &str, operation: Operation) -> Duration {
        self.waited.get(&(label.into(), operation)).copied().unwrap_or_default()
    }

    /// The sum of all waits.
    pub fn total_waited(&self) -> Duration {
        self.waited.values().sum()
    }

    /// All rows, ordered by label and operation.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Operation, Count)> {
        self.counts.iter().map(|((label, operation), count)| (&**label, *operation, *count))
    }

    /// The sum of the rows of one label.
    pub fn of_label(&self, label: &str) -> Count {
        self.sum(|row| row == label)
    }

    /// The sum of all rows.
    pub fn total(&self) -> Count {
        self.sum(|_| true)
    }

    /// Adds the rows of another rank, or of a later run.
    pub fn merge(&mut self, other: &Self) {
        for ((label, operation), count) in &other.counts {
            self.add(label, *operation, *count);
        }
        for ((label, operation), duration) in &other.waited {
            self.add_wait(label, *operation, *duration);
        }
    }

    pub(crate) fn add(&mut self, label: &Arc<str>, operation: Operation, count: Count) {
        *self.counts.entry((label.clone(), operation)).or_default() += count;
    }

    pub(crate) fn add_wait(&mut self, label: &Arc<str>, operation: Operation, duration: Duration) {
        *self.waited.entry((label.clone(), operation)).or_default() += duration;
    }

    fn sum(&self, keep: impl Fn(&str) -> bool) -> Count {
        let mut sum = Count::default();
        self.iter().filter(|(label, ..)| keep(label)).for_each(|(.., count)| sum += count);
        sum
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:12} {:20} {:>8} {:>16} {:>9} {:>16} {:>10}",
            "group", "operation", "calls", "payload bytes", "messages", "sent bytes", "waited s"
        )?;
        for (label, operation, count) in self.iter() {
            let Count { calls, payload_bytes, messages, sent_bytes } = count;
            let waited_s = self.waited(label, operation).as_secs_f64();
            let operation = operation.to_string();
            write!(
                f,
                "\n{label:12} {operation:20} {calls:>8} {payload_bytes:>16} {messages:>9} {sent_bytes:>16} \
                 {waited_s:>10.3}"
            )?;
        }
        Ok(())
    }
}
