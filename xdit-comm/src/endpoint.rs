//! The one implementation of [`Communicator`] over mailboxes.
//!
//! All messages are delivered when the operation is issued; waiting only collects them. Messages inside a process
//! are handles, so no bytes are copied.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fabric::{Address, Fabric};
use crate::sim::mix;
use crate::{Buffer, BufferSpec, Call, Comm, Communicator, Error, Group, Operation, Pending, Result};

/// One rank's end of one group.
pub(crate) struct Endpoint {
    fabric: Arc<Fabric>,
    /// The identity of the communicator: equal on its members, different from every other communicator's.
    id: u64,
    group: Group,
    position: usize,
    /// The number of messages sent to each position.
    sent: Vec<AtomicU64>,
    /// The number of receives posted for each position.
    posted: Vec<AtomicU64>,
    /// The number of splits of this communicator.
    splits: AtomicU64,
}

impl Endpoint {
    /// The end of world rank `rank` in the group of all ranks.
    pub(crate) fn world(fabric: Arc<Fabric>, rank: usize) -> Comm {
        let group = Group::world(fabric.size());
        Arc::new(Self::new(fabric, 0, group, rank))
    }

    fn new(fabric: Arc<Fabric>, id: u64, group: Group, position: usize) -> Self {
        let counters = || group.ranks().iter().map(|_| AtomicU64::new(0)).collect();
        let (sent, posted) = (counters(), counters());
        Self { fabric, id, group, position, sent, posted, splits: AtomicU64::new(0) }
    }

    fn call(&self, operation: Operation) -> Call {
        Call { operation, group: self.group.label().clone(), rank: self.group.ranks()[self.position] }
    }

    fn address(&self, from: usize, to: usize, sequence: u64) -> Address {
        let ranks = self.group.ranks();
        Address { communicator: self.id, from: ranks[from], to: ranks[to], sequence }
    }
}

/// Takes one message and checks that both ends agree on it.
fn receive(
    fabric: &Fabric,
    call: &Call,
    address: &Address,
    expected: BufferSpec,
    deadline: Duration,
) -> Result<Buffer> {
    let (theirs, got, buffer) = fabric.take(call, address, deadline)?;
    let (call, peer) = (|| call.clone(), address.from);
    if !theirs.matches(call().operation) {
        return Err(Error::OutOfStep { call: call(), peer, theirs });
    }
    if expected != got {
        return Err(Error::Mismatch { call: call(), peer, expected, got });
    }
    Ok(buffer)
}

impl Communicator for Endpoint {
    fn group(&self) -> &Group {
        &self.group
    }

    fn rank(&self) -> usize {
        self.position
    }

    fn split(&self, groups: &[Group]) -> Result<Option<Comm>> {
        let call = || self.call(Operation::Split);
        let members: Vec<_> =
            groups.iter().flat_map(|group| group.ranks().iter().map(move |&rank| (group, rank))).collect();
        for (index, &(group, rank)) in members.iter().enumerate() {
            if self.group.position(rank).is_none() {
                return Err(Error::NotMember { call: call(), group: group.label().clone(), outsider: rank });
            }
            if members[..index].iter().any(|&(_, other)| other == rank) {
                return Err(Error::Overlap { call: call(), member: rank });
            }
        }
        let nth = self.splits.fetch_add(1, Ordering::Relaxed);
        let me = self.group.ranks()[self.position];
        let Some(group) = groups.iter().find(|group| group.position(me).is_some()) else { return Ok(None) };
        // Computed from values that are the same on all ranks, so that a split needs no message.
        let words = group.label().bytes().map(u64::from).chain(group.ranks().iter().map(|&rank| rank as u64));
        let id = mix([self.id, nth, group.size() as u64].into_iter().chain(words));
        let position = group.position(me).expect("found by its position");
        Ok(Some(Arc::new(Self::new(self.fabric.clone(), id, group.clone(), position))))
    }

    fn exchange(
        &self,
        operation: Operation,
        sends: Vec<(usize, Buffer)>,
        recvs: Vec<(usize, BufferSpec)>,
    ) -> Pending<Vec<Buffer>> {
        let (call, size) = (self.call(operation), self.size());
        let mut peers = sends.iter().map(|(to, _)| *to).chain(recvs.iter().map(|(from, _)| *from));
        if let Some(position) = peers.find(|&position| position >= size) {
            return Pending::ready(Err(Error::NoSuchPosition { call, position, size }));
        }
        let next = |counters: &[AtomicU64], peer: usize| counters[peer].fetch_add(1, Ordering::Relaxed);
        let sends =
            sends.into_iter().map(|(to, it)| (self.address(self.position, to, next(&self.sent, to)), it));
        let recvs: Vec<_> = recvs
            .into_iter()
            .map(|(from, it)| (self.address(from, self.position, next(&self.posted, from)), it))
            .collect();
        self.fabric.expect(&recvs);
        if let Err(error) = self.fabric.post(&call, sends.collect()) {
            return Pending::ready(Err(error));
        }
        if recvs.is_empty() {
            return Pending::ready(Ok(Vec::new()));
        }
        let fabric = self.fabric.clone();
        Pending::new(move || {
            let deadline = fabric.deadline(call.rank);
            let receive = |(address, spec): &(_, _)| receive(&fabric, &call, address, *spec, deadline);
            recvs.iter().map(receive).collect()
        })
    }

    fn check(&self) -> Result<()> {
        self.fabric.check(&self.call(Operation::Check))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator({} at {})", self.group, self.position)
    }
}
