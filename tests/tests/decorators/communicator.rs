//! A communicator that gets the messages of one group wrong.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xdit_comm::{Buffer, BufferSpec, Comm, Communicator, Group, Pending, Reduce, Result, Traffic, Wait};

/// What is wrong with what arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Nothing.
    Sound,
    /// The first half, where keys are, has its first number last.
    KeysMoved,
    /// The second half comes first: values stand for keys.
    ValuesFirst,
    /// It is what this rank sent.
    Returned,
    /// Parts are in another order of ranks.
    RanksMoved,
    /// It is what arrived so many messages of its size ago.
    Late(usize),
}

/// Messages of each size, oldest first.
type Kept = HashMap<usize, VecDeque<Vec<Buffer>>>;

/// Like the communicator inside, but for its sub-groups labelled `label`, where messages arrive as `wire` says.
#[derive(Debug)]
pub struct Tampered {
    inner: Comm,
    label: &'static str,
    wire: Wire,
    kept: Arc<Mutex<Kept>>,
}

impl Tampered {
    pub fn new(inner: Comm, label: &'static str, wire: Wire) -> Self {
        Self { inner, label, wire, kept: Arc::default() }
    }

    /// What is said to have arrived, where this rank sent `own`.
    fn arrive(&self, pending: Pending<Vec<Buffer>>, own: Vec<Buffer>) -> Pending<Vec<Buffer>> {
        if &**self.inner.group().label() != self.label {
            return pending;
        }
        let (wire, kept) = (self.wire, self.kept.clone());
        pending.map(move |mut parts| match wire {
            Wire::Sound => parts,
            Wire::KeysMoved => parts.iter().map(keys_moved).collect(),
            Wire::ValuesFirst => parts.iter().map(values_first).collect(),
            Wire::Returned => own,
            Wire::RanksMoved => {
                parts.rotate_left(1);
                parts
            }
            Wire::Late(messages) => {
                let mut kept = kept.lock().unwrap();
                let before = kept.entry(parts.iter().map(Buffer::len).sum()).or_default();
                before.push_back(parts.clone());
                if before.len() > messages { before.pop_front().unwrap() } else { parts }
            }
        })
    }

    /// The same for operations in which one buffer arrives.
    fn arrive_one(&self, pending: Pending<Buffer>, own: Buffer) -> Pending<Buffer> {
        self.arrive(pending.map(|part| vec![part]), vec![own]).map(|mut parts| parts.remove(0))
    }
}

fn keys_moved(part: &Buffer) -> Buffer {
    let half = part.len() / 2;
    Buffer::concat(&[part.slice(1..half), part.slice(0..1), part.slice(half..2 * half)])
}

fn values_first(part: &Buffer) -> Buffer {
    let half = part.len() / 2;
    Buffer::concat(&[part.slice(half..2 * half), part.slice(0..half)])
}

impl Communicator for Tampered {
    fn group(&self) -> &Group {
        self.inner.group()
    }

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn subgroup(&self, group: &Group) -> Result<Comm> {
        Ok(Arc::new(Self::new(self.inner.subgroup(group)?, self.label, self.wire)))
    }

    fn all_reduce(&self, buffer: Buffer, op: Reduce) -> Pending<Buffer> {
        self.arrive_one(self.inner.all_reduce(buffer.clone(), op), buffer)
    }

    fn all_gather(&self, part: Buffer, lens: &[usize]) -> Pending<Vec<Buffer>> {
        let own = vec![part.clone(); lens.len()];
        self.arrive(self.inner.all_gather(part, lens), own)
    }

    fn reduce_scatter(&self, parts: Vec<Buffer>, op: Reduce) -> Pending<Buffer> {
        self.inner.reduce_scatter(parts, op)
    }

    fn all_to_all(&self, parts: Vec<Buffer>, lens: &[usize]) -> Pending<Vec<Buffer>> {
        self.arrive(self.inner.all_to_all(parts.clone(), lens), parts)
    }

    fn broadcast(&self, root: usize, buffer: Option<Buffer>, spec: BufferSpec) -> Pending<Buffer> {
        self.inner.broadcast(root, buffer, spec)
    }

    fn send(&self, to: usize, buffer: Buffer) -> Pending<()> {
        self.inner.send(to, buffer)
    }

    fn recv(&self, from: usize, spec: BufferSpec) -> Pending<Buffer> {
        self.arrive_one(self.inner.recv(from, spec), Buffer::empty(spec.dtype))
    }

    fn send_recv(
        &self,
        sends: Vec<(usize, Buffer)>,
        recvs: Vec<(usize, BufferSpec)>,
    ) -> Pending<Vec<Buffer>> {
        let own = sends.iter().map(|(_, buffer)| buffer.clone()).collect();
        self.arrive(self.inner.send_recv(sends, recvs), own)
    }

    fn barrier(&self) -> Pending<()> {
        self.inner.barrier()
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }

    fn waits(&self) -> Vec<Wait> {
        self.inner.waits()
    }

    fn now(&self) -> Duration {
        self.inner.now()
    }
}
