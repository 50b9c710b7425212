//! The part of a world in other processes: messages and exits that go there and come from there.

use bytes::Bytes;

use super::*;
use crate::processes::Head;

impl Fabric {
    /// Sends messages of a local rank to ranks of other processes.
    pub(super) fn send(&self, call: &Call, messages: Vec<(Address, Buffer)>) {
        let Some(remote) = &self.remote else { return };
        for (address, buffer) in messages {
            let Call { operation, group, .. } = call.clone();
            let spec = buffer.spec();
            remote.send(MessageHead { world: 0, address, operation, group, spec }, buffer.into_bytes());
        }
    }

    /// Notes what a local rank expects from ranks of other processes, so that nothing else takes memory.
    pub(crate) fn expect(&self, receives: &[(Address, BufferSpec)]) {
        let Some(remote) = &self.remote else { return };
        let mut state = self.lock();
        for (address, spec) in receives {
            if !remote.is_local(address.from) && !state.mail.contains_key(address) {
                state.expected.insert(*address, *spec);
            }
        }
    }

    /// The type and length that a local rank expects of a message, if it has said so.
    pub(crate) fn expected(&self, address: &Address) -> Option<BufferSpec> {
        self.lock().expected.get(address).copied()
    }

    /// A frame for this world has arrived from another process.
    pub(crate) fn deliver(&self, head: Head, body: Bytes) {
        match head {
            Head::Message(MessageHead { address, operation, group, spec, .. }) => {
                let call = Call { operation, group, rank: address.from };
                // The bytes are missing if the receiver expects something else.
                let buffer = match body.len() == spec.size_bytes() {
                    true => Buffer::from_bytes(spec.dtype, body),
                    false => Buffer::empty(spec.dtype),
                };
                let mut state = self.lock();
                state.expected.remove(&address);
                let awaited = state.release_receiver_of(&address);
                let arrival = Some(Duration::ZERO);
                state.mail.insert(address, Letter { call, spec, buffer, arrival });
                drop(state);
                if awaited {
                    self.changed[address.to].notify_all();
                }
            }
            Head::Exit { rank, cause: None, .. } => {
                let mut state = self.lock();
                self.leave(&mut state, rank, Exit::Finished);
            }
            Head::Exit { rank, cause: Some(first), .. } => {
                let place = self.remote.as_ref().map(|remote| remote.place(first)).unwrap_or_default();
                let text = String::from_utf8_lossy(&body);
                // A process that passes on the cause of another one has named its place already.
                let cause: Arc<str> = match text.contains(&place) {
                    true => text.into(),
                    false => format!("{place}: {text}").into(),
                };
                let failure = Failure { rank: first, cause };
                let mut state = self.lock();
                state.first_failure.get_or_insert_with(|| failure.clone());
                self.failed.store(true, Ordering::Release);
                self.leave(&mut state, rank, Exit::Failed(failure));
            }
            _ => {}
        }
    }

    /// Fails all ranks, because of `rank` in another process.
    pub(crate) fn fail(&self, rank: usize, cause: Arc<str>) {
        let mut state = self.lock();
        state.first_failure.get_or_insert(Failure { rank, cause });
        self.failed.store(true, Ordering::Release);
        drop(state);
        self.changed.iter().for_each(Condvar::notify_all);
    }

    /// The number of ranks of each process.
    pub(crate) fn local_ranks(&self) -> usize {
        self.remote.as_ref().map_or(self.size(), |remote| remote.local.len())
    }

    /// The rank of another process that failed first, with the cause.
    pub(crate) fn elsewhere(&self) -> Option<(usize, Arc<str>)> {
        let remote = self.remote.as_ref()?;
        let failure = self.lock().first_failure.clone()?;
        (!remote.is_local(failure.rank)).then_some((failure.rank, failure.cause))
    }
}
