//! Processes, on one host or several, that run one job together.
//!
//! The processes [meet](Processes::meet) at an address of the first one, and then have a TCP connection between each
//! pair. Over these, [worlds](crate::LaunchOptions::processes) reach across the processes: the ranks of a process are
//! threads, and a message to a rank of another process travels over the connection of the two. Beside worlds, processes
//! send each other notes of bytes, under a [`Topic`].
//!
//! A connection has one thread that writes and one that reads. Sending only queues a frame, and arrivals go to mailboxes
//! at once, so the two directions between a pair of processes cannot block each other.
//!
//! If a rank fails, or a process dies, falls silent or [ends the job](Processes::abort), the worlds and topics of all
//! other processes fail with an error that names it. The processes cannot be used again. Nothing is encrypted or authenticated: as with other launchers of jobs on many
//! hosts, the network between them must be trusted.

mod connection;
mod meet;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::BufferSpec;
use crate::fabric::Fabric;
use connection::Peer;
pub use meet::{MeetError, Meeting};
pub(crate) use wire::{Head, MessageHead};

/// The longest time that the end of this process waits for that of the others, so that its last words arrive.
const FAREWELL: Duration = Duration::from_secs(3);

/// The connections between this process and all others of its job. Clones share them; the last one closes them.
#[derive(Clone)]
pub struct Processes(Arc<Handle>);

struct Handle(Arc<Net>);

/// The end of a job, caused by another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The process that caused it.
    pub process: usize,
    /// Whether the job was cancelled, as opposed to a failure.
    pub cancelled: bool,
    /// The cause. It names the process and its host.
    pub cause: Arc<str>,
}

/// What arrives from another process under a [`Topic`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A note.
    Note(Bytes),
    /// The process has ended in order, so nothing more will come from it.
    Left,
    /// The job has ended.
    Ended(Ended),
}

/// Receives arrivals, with the sending process. It is called by the threads of connections and must not block.
type Receive = Box<dyn Fn(usize, Arrival) + Send + Sync>;

/// A subject of notes, for which all processes have the same number.
pub struct Topic {
    net: Arc<Net>,
    id: u64,
}

/// The connections, and what they lead to.
pub(crate) struct Net {
    process: usize,
    /// The host of each process.
    hosts: Vec<Arc<str>>,
    /// The connection to each process, except this one.
    peers: Vec<Option<Peer>>,
    origin: Instant,
    /// What to add to times of this process, in nanoseconds since the origin, to get those of process 0.
    offset_ns: i64,
    state: Mutex<State>,
    /// Whether another process has cancelled the job.
    cancelled: AtomicBool,
    /// The number of connections that are still read.
    reading: AtomicUsize,
}

#[derive(Default)]
struct State {
    worlds: Numbered<World>,
    topics: Numbered<Subject>,
    ended: Option<Ended>,
    /// The processes that have ended in order.
    left: Vec<usize>,
}

/// Things that all processes number in the same order. A message for one may arrive before it is opened here.
struct Numbered<T> {
    next: u64,
    known: HashMap<u64, T>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { next: 0, known: HashMap::new() }
    }
}

enum World {
    /// Frames for a world that this process has not opened yet.
    Early(Vec<(Head, Bytes)>),
    Open(Weak<Fabric>),
}

enum Subject {
    Early(Vec<(usize, Bytes)>),
    Open(Receive),
}

impl Processes {
    /// Meets the other processes, and returns once all are connected with each other.
    ///
    /// # Errors
    /// Within the time limit of `meeting`, if the address cannot be reached, a process is missing, or two processes do
    /// not fit together.
    pub fn meet(meeting: &Meeting) -> Result<Self, MeetError> {
        let net = meet::meet(meeting)?;
        Ok(Self(Arc::new(Handle(net))))
    }

    /// The index of this process.
    pub fn process(&self) -> usize {
        self.net().process
    }

    /// Whether this is the first process.
    pub fn leads(&self) -> bool {
        self.process() == 0
    }

    /// The number of processes.
    pub fn count(&self) -> usize {
        self.net().hosts.len()
    }

    /// The host of `process`.
    pub fn host(&self, process: usize) -> &str {
        &self.net().hosts[process]
    }

    /// The ranks of this process in a world of `size` ranks: each process has as many, one after the other. `None` if
    /// the ranks cannot be divided evenly.
    pub fn ranks(&self, size: usize) -> Option<Range<usize>> {
        self.ranks_of(self.process(), size)
    }

    /// The ranks of `process` in a world of `size` ranks, as in [`ranks`](Self::ranks).
    pub fn ranks_of(&self, process: usize, size: usize) -> Option<Range<usize>> {
        self.net().ranks(process, size)
    }

    /// The end of the job, if another process caused it.
    pub fn ended(&self) -> Option<Ended> {
        self.net().lock().ended.clone()
    }

    /// Opens the next topic. All processes must open their topics in the same order. `receive` is called by other
    /// threads and must not block.
    pub fn topic(&self, receive: impl Fn(usize, Arrival) + Send + Sync + 'static) -> Topic {
        let mut state = self.net().lock();
        let id = state.topics.next;
        state.topics.next += 1;
        if let Some(Subject::Early(notes)) = state.topics.known.remove(&id) {
            notes.into_iter().for_each(|(from, note)| receive(from, Arrival::Note(note)));
        }
        state.left.iter().for_each(|&process| receive(process, Arrival::Left));
        if let Some(ended) = &state.ended {
            receive(ended.process, Arrival::Ended(ended.clone()));
        }
        state.topics.known.insert(id, Subject::Open(Box::new(receive)));
        Topic { net: self.net().clone(), id }
    }

    /// Gives `mine` to all processes, and returns the bytes of each process. Waits for all, as long as they live.
    ///
    /// # Errors
    /// If a process has ended.
    pub fn share(&self, mine: &[u8]) -> Result<Vec<Bytes>, Ended> {
        let (tell, told) = channel();
        // Sending fails only if the receiver is gone, which then needs nothing.
        let topic = self.topic(move |from, arrival| drop(tell.send((from, arrival))));
        let mine = Bytes::copy_from_slice(mine);
        topic.send_all(&mine);
        let mut shared: Vec<Option<Bytes>> = vec![None; self.count()];
        shared[self.process()] = Some(mine);
        while shared.iter().any(Option::is_none) {
            let (from, arrival) = told.recv().expect("the topic holds the sender");
            match arrival {
                Arrival::Note(note) => shared[from] = Some(note),
                Arrival::Left if shared[from].is_some() => {}
                Arrival::Left => return Err(self.net().left_early(from)),
                Arrival::Ended(ended) => return Err(ended),
            }
        }
        Ok(shared.into_iter().flatten().collect())
    }

    /// Ends the job in all other processes, because of `cause` in this one, and waits up to a second until they know.
    pub fn abort(&self, cancelled: bool, cause: &str) {
        let net = self.net();
        net.others()
            .for_each(|peer| peer.send(&Head::Abort { cancelled }, wire::shortened(cause).to_owned()));
        let until = Instant::now() + Duration::from_secs(1);
        net.others().for_each(|peer| peer.flush(until));
    }

    /// The time `at` as nanoseconds on the clock that all processes share, that of the first one. Between hosts, it is
    /// as exact as half of a round trip of a message.
    pub fn shared_time(&self, at: Instant) -> i64 {
        let net = self.net();
        let since = |late: Instant, early: Instant| late.saturating_duration_since(early).as_nanos() as i64;
        since(at, net.origin) - since(net.origin, at) + net.offset_ns
    }

    /// The instant of [`shared_time`](Self::shared_time) `shared`.
    pub fn instant(&self, shared: i64) -> Instant {
        let net = self.net();
        let own = shared - net.offset_ns;
        let distance = Duration::from_nanos(own.unsigned_abs());
        let instant =
            if own < 0 { net.origin.checked_sub(distance) } else { net.origin.checked_add(distance) };
        instant.unwrap_or(net.origin)
    }

    fn net(&self) -> &Arc<Net> {
        &self.0.0
    }

    /// Joins the next world, of which `fabric` is this process's part.
    pub(crate) fn open_world(&self, fabric: impl FnOnce(Remote) -> Arc<Fabric>, size: usize) -> Arc<Fabric> {
        let net = self.net();
        let mut state = net.lock();
        let world = state.worlds.next;
        state.worlds.next += 1;
        let local = net.ranks(net.process, size).expect("checked by the launcher");
        let fabric = fabric(Remote { net: net.clone(), world, local });
        if let Some(World::Early(frames)) = state.worlds.known.remove(&world) {
            frames.into_iter().for_each(|(head, body)| fabric.deliver(head, body));
        }
        if let Some(ended) = &state.ended {
            fabric.fail(net.first_rank(ended.process, size), ended.cause.clone());
        }
        state.worlds.known.insert(world, World::Open(Arc::downgrade(&fabric)));
        fabric
    }
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Processes({} of {})", self.process(), self.count())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Topic {
    /// Sends `note` to `process`.
    ///
    /// # Panics
    /// If it is this process.
    pub fn send(&self, process: usize, note: impl Into<Bytes>) {
        let peer = self.net.peers[process].as_ref().expect("another process");
        peer.send(&Head::Note { topic: self.id }, note);
    }

    /// Sends `note` to all other processes.
    pub fn send_all(&self, note: &Bytes) {
        self.net.others().for_each(|peer| peer.send(&Head::Note { topic: self.id }, note.clone()));
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let subject = self.net.lock().topics.known.remove(&self.id);
        // Its captures are freed without the lock.
        drop(subject);
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic({})", self.id)
    }
}

/// The part of a world in other processes.
pub(crate) struct Remote {
    net: Arc<Net>,
    world: u64,
    /// The ranks of this process.
    pub local: Range<usize>,
}

impl Remote {
    pub fn is_local(&self, rank: usize) -> bool {
        self.local.contains(&rank)
    }

    /// The process and host of `rank`.
    pub fn place(&self, rank: usize) -> String {
        let process = rank / self.local.len();
        self.net.name(process)
    }

    /// Sends a message of a local rank to the process of its receiver.
    pub fn send(&self, mut message: MessageHead, bytes: Bytes) {
        message.world = self.world;
        let process = message.address.to / self.local.len();
        let peer = self.net.peers[process].as_ref().expect("the receiver is in another process");
        peer.send(&Head::Message(message), bytes);
    }

    /// Reports the exit of a local rank, with the rank and text of the first cause if it failed.
    pub fn exit(&self, rank: usize, failure: Option<(usize, &str)>) {
        let text = failure.map_or("", |(_, text)| wire::shortened(text));
        let cause = failure.map(|(rank, _)| rank);
        // This frame may come before that of the process that cancelled the job.
        let cancelled =
            cause.is_some_and(|cause| !self.is_local(cause)) && self.net.cancelled.load(Ordering::Acquire);
        let head = Head::Exit { world: self.world, rank, cause, cancelled };
        self.net.others().for_each(|peer| peer.send(&head, text.to_owned()));
    }
}

impl Net {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().flatten()
    }

    fn name(&self, process: usize) -> String {
        let host = self.hosts.get(process).map_or("?", |host| &**host);
        format!("process {process} on `{host}`")
    }

    fn ranks(&self, process: usize, size: usize) -> Option<Range<usize>> {
        let each = size / self.hosts.len();
        (each > 0 && size.is_multiple_of(self.hosts.len())).then(|| process * each..(process + 1) * each)
    }

    fn first_rank(&self, process: usize, size: usize) -> usize {
        self.ranks(process, size).map_or(0, |ranks| ranks.start)
    }

    fn left_early(&self, process: usize) -> Ended {
        let cause = format!("{} has ended early", self.name(process)).into();
        Ended { process, cancelled: false, cause }
    }

    /// The type and length that the receiver expects of the message, if it has asked for it already.
    fn expected(&self, message: &MessageHead) -> Option<BufferSpec> {
        let fabric = match self.lock().worlds.known.get(&message.world)? {
            World::Open(fabric) => fabric.upgrade()?,
            World::Early(_) => return None,
        };
        fabric.expected(&message.address)
    }

    /// Whether a frame from `process` about `rank`, and possibly to another rank, may be true.
    fn owns(&self, process: usize, world: u64, rank: usize, to: Option<usize>) -> bool {
        let size = match self.lock().worlds.known.get(&world) {
            Some(World::Open(fabric)) => fabric.upgrade().map(|fabric| fabric.size()),
            _ => None,
        };
        let Some(size) = size else { return true };
        let has = |process, rank| self.ranks(process, size).is_some_and(|ranks| ranks.contains(&rank));
        has(process, rank) && to.is_none_or(|to| has(self.process, to))
    }

    /// A frame from `process` has arrived.
    fn arrived(&self, process: usize, head: Head, body: Bytes) {
        match head {
            Head::Message(MessageHead { world, .. }) | Head::Exit { world, .. } => {
                let mut state = self.lock();
                let is_new = world >= state.worlds.next;
                match state.worlds.known.get_mut(&world) {
                    Some(World::Early(frames)) => frames.push((head, body)),
                    Some(World::Open(fabric)) => {
                        let fabric = fabric.upgrade();
                        // A frame for a world that has ended here is dropped.
                        match fabric {
                            Some(fabric) => {
                                drop(state);
                                let failed = match head {
                                    Head::Exit { cause: Some(_), cancelled, .. } => Some(cancelled),
                                    _ => None,
                                };
                                fabric.deliver(head, body);
                                if let (Some(cancelled), Some((rank, cause))) = (failed, fabric.elsewhere()) {
                                    self.end(rank / fabric.local_ranks(), cancelled, &cause);
                                }
                            }
                            None => drop(state.worlds.known.remove(&world)),
                        }
                    }
                    None if is_new => {
                        drop(state.worlds.known.insert(world, World::Early(vec![(head, body)])));
                    }
                    None => {}
                }
            }
            Head::Note { topic } => {
                let mut state = self.lock();
                let is_new = topic >= state.topics.next;
                match state.topics.known.get_mut(&topic) {
                    Some(Subject::Early(notes)) => notes.push((process, body)),
                    Some(Subject::Open(receive)) => receive(process, Arrival::Note(body)),
                    None if is_new => {
                        drop(state.topics.known.insert(topic, Subject::Early(vec![(process, body)])));
                    }
                    None => {}
                }
            }
            Head::Abort { cancelled } => {
                let text = String::from_utf8_lossy(&body);
                self.end(process, cancelled, &format!("{}: {text}", self.name(process)));
            }
            Head::Goodbye => {
                let mut state = self.lock();
                state.left.push(process);
                for subject in state.topics.known.values() {
                    if let Subject::Open(receive) = subject {
                        receive(process, Arrival::Left);
                    }
                }
            }
            Head::Heartbeat => {}
        }
    }

    /// The connection to `process` has failed, because of `why`.
    fn lost(&self, process: usize, why: &str) {
        self.end(process, false, &format!("lost {}: {why}", self.name(process)));
    }

    /// Ends the job because of `process`, unless it has ended already.
    fn end(&self, process: usize, cancelled: bool, cause: &str) {
        let mut state = self.lock();
        if state.ended.is_some() || state.left.contains(&process) {
            return;
        }
        let ended = Ended { process, cancelled, cause: cause.into() };
        state.ended = Some(ended.clone());
        self.cancelled.store(cancelled, Ordering::Release);
        let open = |world: &World| match world {
            World::Open(fabric) => fabric.upgrade(),
            World::Early(_) => None,
        };
        let fabrics: Vec<_> = state.worlds.known.values().filter_map(open).collect();
        for subject in state.topics.known.values() {
            if let Subject::Open(receive) = subject {
                receive(process, Arrival::Ended(ended.clone()));
            }
        }
        drop(state);
        for fabric in fabrics {
            fabric.fail(self.first_rank(process, fabric.size()), ended.cause.clone());
        }
    }

    /// Says goodbye to all, and waits a little for the goodbyes of the others. A connection that is closed before all
    /// has been read from it may lose what was last sent.
    fn close(&self) {
        self.others().for_each(Peer::say_goodbye);
        let until = Instant::now() + FAREWELL;
        self.others().for_each(|peer| peer.flush(until));
        let ended = self.lock().ended.is_some();
        while !ended && self.reading.load(Ordering::Acquire) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
