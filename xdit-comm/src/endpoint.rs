//! The one implementation of [`Communicator`] over in-process mailboxes.
//!
//! Every collective is a direct exchange: all messages leave when the operation is issued, waiting only collects. This
//! costs bytes that a ring would save, and buys that no operation needs a second phase, so none needs a thread to
//! drive it. Messages are handles, so the bytes are not in fact copied.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::fabric::{Address, Channel, Fabric};
use crate::sim::mix;
use crate::{
    Buffer, BufferSpec, Call, Comm, Communicator, DType, Error, Group, Operation, Pending, Reduce, Result,
    Traffic, Wait,
};

/// One rank's end of one group.
pub(crate) struct Endpoint {
    fabric: Arc<Fabric>,
    /// Identity of the communicator: equal on its members, different from that of every other one.
    id: u64,
    group: Group,
    position: usize,
    /// Collectives issued so far.
    collectives: AtomicU64,
    /// Messages sent to each position so far.
    sent: Vec<AtomicU64>,
    /// Receives posted for each position so far.
    posted: Vec<AtomicU64>,
    /// How often each sub-group was asked for.
    subgroups: Mutex<HashMap<Group, u64>>,
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
        Self {
            fabric,
            id,
            group,
            position,
            collectives: AtomicU64::new(0),
            sent,
            posted,
            subgroups: Mutex::default(),
        }
    }

    fn call(&self, operation: Operation) -> Call {
        Call { operation, group: self.group.label().clone(), rank: self.world_rank() }
    }

    fn world_rank(&self) -> usize {
        self.group.ranks()[self.position]
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let position = self.position;
        (0..self.size()).filter(move |&peer| peer != position)
    }

    fn check_position(&self, call: &Call, position: usize) -> Result<()> {
        let size = self.size();
        if position < size {
            Ok(())
        } else {
            Err(Error::NoSuchPosition { call: call.clone(), position, size })
        }
    }

    fn check_parts(&self, call: &Call, got: usize) -> Result<()> {
        let size = self.size();
        if got == size { Ok(()) } else { Err(Error::PartCount { call: call.clone(), got, size }) }
    }

    fn address(&self, channel: Channel, from: usize, to: usize, sequence: u64) -> Address {
        let ranks = self.group.ranks();
        Address { communicator: self.id, channel, from: ranks[from], to: ranks[to], sequence }
    }

    /// One step of a collective: `sends` go to the other ranks now, the `recvs` are collected by waiting.
    fn collective(
        &self,
        call: Call,
        payload_bytes: usize,
        sends: Vec<(usize, Buffer)>,
        recvs: Vec<(usize, BufferSpec)>,
    ) -> Pending<Vec<Buffer>> {
        let sequence = self.collectives.fetch_add(1, Ordering::Relaxed);
        let channel = Channel::Collective;
        let sends =
            sends.into_iter().map(|(to, it)| (self.address(channel, self.position, to, sequence), it));
        let recvs =
            recvs.into_iter().map(|(from, it)| (self.address(channel, from, self.position, sequence), it));
        self.transfer(call, payload_bytes, sends.collect(), recvs.collect())
    }

    /// Sends and receives between pairs; each pair counts for itself.
    fn direct(
        &self,
        call: Call,
        sends: Vec<(usize, Buffer)>,
        recvs: Vec<(usize, BufferSpec)>,
    ) -> Pending<Vec<Buffer>> {
        let mut peers = sends.iter().map(|(to, _)| *to).chain(recvs.iter().map(|(from, _)| *from));
        if let Err(error) = peers.try_for_each(|peer| self.check_position(&call, peer)) {
            return Pending::ready(Err(error));
        }
        let channel = Channel::Direct;
        let next = |counters: &[AtomicU64], peer: usize| counters[peer].fetch_add(1, Ordering::Relaxed);
        let payload_bytes = sends.iter().map(|(_, buffer)| buffer.spec().size_bytes()).sum();
        let sends = sends
            .into_iter()
            .map(|(to, it)| (self.address(channel, self.position, to, next(&self.sent, to)), it));
        let recvs = recvs
            .into_iter()
            .map(|(from, it)| (self.address(channel, from, self.position, next(&self.posted, from)), it));
        self.transfer(call, payload_bytes, sends.collect(), recvs.collect())
    }

    fn transfer(
        &self,
        call: Call,
        payload_bytes: usize,
        sends: Vec<(Address, Buffer)>,
        recvs: Vec<(Address, BufferSpec)>,
    ) -> Pending<Vec<Buffer>> {
        if let Err(error) = self.fabric.post(&call, payload_bytes, sends) {
            return Pending::ready(Err(error));
        }
        if recvs.is_empty() {
            return Pending::ready(Ok(Vec::new()));
        }
        let fabric = self.fabric.clone();
        Pending::new(move || {
            let begin = fabric.now(call.rank);
            let deadline = fabric.deadline(begin);
            let receive =
                |(address, spec): &(_, BufferSpec)| receive(&fabric, &call, address, *spec, deadline);
            let arrived = recvs.iter().map(receive).collect::<Result<_>>()?;
            let bytes = recvs.iter().map(|(_, spec)| spec.size_bytes()).sum();
            fabric.waited(&call, begin, bytes);
            Ok(arrived)
        })
    }

    /// The other ranks' parts, with this rank's own put in its place.
    fn with_own(&self, pending: Pending<Vec<Buffer>>, own: Buffer) -> Pending<Vec<Buffer>> {
        let position = self.position;
        pending.map(move |mut parts| {
            parts.insert(position, own);
            parts
        })
    }
}

/// Takes one message and asserts that both ends agree on it.
fn receive(
    fabric: &Fabric,
    call: &Call,
    address: &Address,
    expected: BufferSpec,
    deadline: Duration,
) -> Result<Buffer> {
    let (theirs, buffer) = fabric.take(call, address, deadline)?;
    if address.channel == Channel::Collective && theirs != call.operation {
        return Err(Error::OutOfStep { call: call.clone(), peer: address.from, theirs });
    }
    agree(call, address.from, expected, buffer.spec())?;
    Ok(buffer)
}

fn agree(call: &Call, peer: usize, expected: BufferSpec, got: BufferSpec) -> Result<()> {
    if expected == got { Ok(()) } else { Err(Error::Mismatch { call: call.clone(), peer, expected, got }) }
}

impl Communicator for Endpoint {
    fn group(&self) -> &Group {
        &self.group
    }

    fn rank(&self) -> usize {
        self.position
    }

    fn subgroup(&self, group: &Group) -> Result<Comm> {
        let call = self.call(Operation::Subgroup);
        let rank = call.rank;
        let outsider = group.ranks().iter().copied().find(|&member| self.group.position(member).is_none());
        let (Some(position), None) = (group.position(rank), outsider) else {
            let outsider = outsider.unwrap_or(rank);
            return Err(Error::NotMember { call, group: group.label().clone(), outsider });
        };
        let nth = {
            let mut subgroups = self.subgroups.lock().unwrap_or_else(PoisonError::into_inner);
            let count = subgroups.entry(group.clone()).or_default();
            *count += 1;
            *count
        };
        // Computed from what all members know, so that it needs no message.
        let words = group.label().bytes().map(u64::from).chain(group.ranks().iter().map(|&rank| rank as u64));
        let id = mix([self.id, nth, group.size() as u64].into_iter().chain(words));
        Ok(Arc::new(Self::new(self.fabric.clone(), id, group.clone(), position)))
    }

    fn all_reduce(&self, buffer: Buffer, op: Reduce) -> Pending<Buffer> {
        let spec = buffer.spec();
        let sends = self.others().map(|to| (to, buffer.clone())).collect();
        let recvs = self.others().map(|from| (from, spec)).collect();
        let others = self.collective(self.call(Operation::AllReduce(op)), spec.size_bytes(), sends, recvs);
        self.with_own(others, buffer).map(move |parts| op.fold(&parts))
    }

    fn all_gather(&self, part: Buffer, lens: &[usize]) -> Pending<Vec<Buffer>> {
        let call = self.call(Operation::AllGather);
        let spec = |from: usize| BufferSpec::new(part.dtype(), lens[from]);
        let own = || agree(&call, call.rank, spec(self.position), part.spec());
        if let Err(error) = self.check_parts(&call, lens.len()).and_then(|()| own()) {
            return Pending::ready(Err(error));
        }
        let sends = self.others().map(|to| (to, part.clone())).collect();
        let recvs = self.others().map(|from| (from, spec(from))).collect();
        let others = self.collective(call, part.spec().size_bytes(), sends, recvs);
        self.with_own(others, part)
    }

    fn reduce_scatter(&self, mut parts: Vec<Buffer>, op: Reduce) -> Pending<Buffer> {
        let call = self.call(Operation::ReduceScatter(op));
        if let Err(error) = self.check_parts(&call, parts.len()) {
            return Pending::ready(Err(error));
        }
        let payload_bytes = parts.iter().map(|part| part.spec().size_bytes()).sum();
        let own = parts.remove(self.position);
        let sends = self.others().zip(parts).collect();
        let recvs = self.others().map(|from| (from, own.spec())).collect();
        let others = self.collective(call, payload_bytes, sends, recvs);
        self.with_own(others, own).map(move |parts| op.fold(&parts))
    }

    fn all_to_all(&self, mut parts: Vec<Buffer>, lens: &[usize]) -> Pending<Vec<Buffer>> {
        let call = self.call(Operation::AllToAll);
        let counts = self.check_parts(&call, parts.len()).and_then(|()| self.check_parts(&call, lens.len()));
        if let Err(error) = counts {
            return Pending::ready(Err(error));
        }
        let payload_bytes = parts.iter().map(|part| part.spec().size_bytes()).sum();
        let own = parts.remove(self.position);
        let spec = |from: usize| BufferSpec::new(own.dtype(), lens[from]);
        if let Err(error) = agree(&call, call.rank, spec(self.position), own.spec()) {
            return Pending::ready(Err(error));
        }
        let sends = self.others().zip(parts).collect();
        let recvs = self.others().map(|from| (from, spec(from))).collect();
        let others = self.collective(call, payload_bytes, sends, recvs);
        self.with_own(others, own)
    }

    fn broadcast(&self, root: usize, buffer: Option<Buffer>, spec: BufferSpec) -> Pending<Buffer> {
        let call = self.call(Operation::Broadcast);
        if let Err(error) = self.check_position(&call, root) {
            return Pending::ready(Err(error));
        }
        match buffer {
            Some(buffer) if root == self.position => {
                if let Err(error) = agree(&call, call.rank, spec, buffer.spec()) {
                    return Pending::ready(Err(error));
                }
                let sends = self.others().map(|to| (to, buffer.clone())).collect();
                self.collective(call, spec.size_bytes(), sends, Vec::new()).map(|_| buffer)
            }
            None if root != self.position => self
                .collective(call, 0, Vec::new(), vec![(root, spec)])
                .map(|mut received| received.remove(0)),
            _ => Pending::ready(Err(Error::BroadcastSource { call, root: self.group.ranks()[root] })),
        }
    }

    fn send(&self, to: usize, buffer: Buffer) -> Pending<()> {
        self.direct(self.call(Operation::Send), vec![(to, buffer)], Vec::new()).map(drop)
    }

    fn recv(&self, from: usize, spec: BufferSpec) -> Pending<Buffer> {
        self.direct(self.call(Operation::Recv), Vec::new(), vec![(from, spec)])
            .map(|mut received| received.remove(0))
    }

    fn send_recv(
        &self,
        sends: Vec<(usize, Buffer)>,
        recvs: Vec<(usize, BufferSpec)>,
    ) -> Pending<Vec<Buffer>> {
        self.direct(self.call(Operation::SendRecv), sends, recvs)
    }

    fn barrier(&self) -> Pending<()> {
        let token = Buffer::empty(DType::U8);
        let recvs = self.others().map(|from| (from, token.spec())).collect();
        let sends = self.others().map(|to| (to, token.clone())).collect();
        self.collective(self.call(Operation::Barrier), 0, sends, recvs).map(drop)
    }

    fn check(&self) -> Result<()> {
        self.fabric.check(&self.call(Operation::Check))
    }

    fn traffic(&self) -> Traffic {
        self.fabric.traffic(self.world_rank())
    }

    fn waits(&self) -> Vec<Wait> {
        self.fabric.waits(self.world_rank())
    }

    fn now(&self) -> Duration {
        self.fabric.now(self.world_rank())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator({} at {})", self.group, self.position)
    }
}
