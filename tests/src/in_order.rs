//! Links with the order of NCCL: the operations that a rank issues on one link are executed in that order, one after
//! another.
//!
//! The data travels through the inner links. An [`Order`], shared by all ranks, decides when an operation may be
//! executed: it starts when the previous one is complete, and it is complete when, for each of its receives, the
//! sending operation has started. If sends wait for their receives ([`Rules::rendezvous`]), the same holds for its
//! sends.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use burn::tensor::Tensor;
use xdit_comm::{Call, Error, Group, Operation};
use xdit_core::link::{InFlight, Link, Transfer};

/// The strictness of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether a send completes only after its receive has started.
    pub rendezvous: bool,
    /// Whether links of a rank with the same label share one order.
    pub one_order_a_label: bool,
}

/// Nothing is sent before its receive has started. A program without deadlocks under this rule has none without it,
/// because every operation then completes at the same time or earlier.
pub const RENDEZVOUS: Rules = Rules { rendezvous: true, one_order_a_label: false };

/// The operations of all ranks of a world, and their state.
#[derive(Debug)]
pub struct Order {
    rules: Rules,
    state: Mutex<State>,
    /// One for each rank.
    changed: Vec<Condvar>,
}

/// A queue of operations that wait for each other: those of one rank on one link, or on several.
type Queue = (u64, usize);

/// A message: the link, the sender, the receiver, and the number of earlier messages between them.
type Message = (u64, usize, usize, usize);

#[derive(Debug, Default)]
struct State {
    issued: usize,
    open: HashMap<usize, Issued>,
    queues: HashMap<Queue, VecDeque<usize>>,
    /// The messages of which one end has started: whether that is the sender, and its operation.
    half: HashMap<Message, (bool, usize)>,
    /// The operation that each rank waits for.
    awaited: Vec<Option<usize>>,
    /// The number of ranks that have not left.
    present: usize,
    stuck: bool,
}

/// An operation that is not complete.
#[derive(Debug)]
struct Issued {
    queue: Queue,
    messages: Vec<(bool, Message)>,
    /// The number of messages that it waits for.
    missing: usize,
}

impl Order {
    /// Creates the order for a world of `size` ranks.
    pub fn new(size: usize, rules: Rules) -> Arc<Self> {
        let state = State { awaited: vec![None; size], present: size, ..State::default() };
        Arc::new(Self {
            rules,
            state: Mutex::new(state),
            changed: (0..size).map(|_| Condvar::new()).collect(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no rank panics while it holds this")
    }

    /// Adds an operation that sends (`true`) and receives (`false`) `messages`.
    fn issue(&self, queue: Queue, messages: Vec<(bool, Message)>) -> usize {
        let mut state = self.lock();
        let operation = state.issued;
        state.issued += 1;
        state.open.insert(operation, Issued { queue, messages, missing: 0 });
        let queued = state.queues.entry(queue).or_default();
        queued.push_back(operation);
        if queued.len() == 1 {
            self.start(&mut state, operation);
        }
        operation
    }

    fn start(&self, state: &mut State, operation: usize) {
        let mut starting = vec![operation];
        while let Some(operation) = starting.pop() {
            let mut over = Vec::new();
            for (sends, message) in
                std::mem::take(&mut state.open.get_mut(&operation).expect("not over").messages)
            {
                if let Some((_, other)) = state.half.remove(&message) {
                    // The operation that started first waits for this one, unless it is a send that need not wait.
                    if sends || self.rules.rendezvous {
                        let held_up = state.open.get_mut(&other).expect("held up by this message");
                        held_up.missing -= 1;
                        over.extend((held_up.missing == 0).then_some(other));
                    }
                } else {
                    state.half.insert(message, (sends, operation));
                    if !sends || self.rules.rendezvous {
                        state.open.get_mut(&operation).expect("not over").missing += 1;
                    }
                }
            }
            if state.open[&operation].missing == 0 {
                over.push(operation);
            }
            for operation in over {
                let Issued { queue, .. } = state.open.remove(&operation).expect("over once");
                let queued = state.queues.get_mut(&queue).expect("its queue");
                assert_eq!(queued.pop_front(), Some(operation), "only what stands first can be over");
                starting.extend(queued.front());
                for (rank, awaited) in state.awaited.iter_mut().enumerate() {
                    if *awaited == Some(operation) {
                        *awaited = None;
                        self.changed[rank].notify_all();
                    }
                }
            }
        }
    }

    fn is_over(&self, operation: usize) -> bool {
        !self.lock().open.contains_key(&operation)
    }

    /// Blocks `rank` until `operation` is complete, and returns whether it is. A failure elsewhere, reported by
    /// `failed`, or a deadlock also ends the wait.
    fn wait(&self, rank: usize, operation: usize, failed: impl Fn() -> bool) -> bool {
        let mut state = self.lock();
        if !state.open.contains_key(&operation) {
            return true;
        }
        state.awaited[rank] = Some(operation);
        self.check(&mut state);
        while state.awaited[rank].is_some() && !state.stuck {
            let woken = self.changed[rank].wait_timeout(state, Duration::from_millis(100));
            state = woken.expect("no rank panics while it holds this").0;
            if failed() {
                break;
            }
        }
        state.awaited[rank] = None;
        !state.open.contains_key(&operation)
    }

    /// Detects a deadlock: if all remaining ranks wait, no rank can issue the operation that would end a wait.
    fn check(&self, state: &mut State) {
        let waiting = state.awaited.iter().flatten().count();
        if waiting > 0 && waiting == state.present {
            state.stuck = true;
            self.changed.iter().for_each(Condvar::notify_all);
        }
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.present -= 1;
        self.check(&mut state);
    }
}

/// A rank's link in a world with an [`Order`].
#[derive(Debug)]
pub struct InOrder {
    inner: Arc<dyn Link>,
    order: Arc<Order>,
    /// The same on all ranks of the link, and different for each link.
    id: u64,
    queue: Queue,
    counters: Mutex<Counters>,
    presence: Arc<Presence>,
}

#[derive(Debug)]
struct Counters {
    sent: Vec<usize>,
    received: Vec<usize>,
    splits: usize,
}

/// Represents a rank that has not left. It is dropped with the last link of the rank.
#[derive(Debug)]
struct Presence {
    order: Arc<Order>,
    rank: usize,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.order.leave();
    }
}

impl InOrder {
    /// Wraps `world`; its ranks must all share `order`.
    pub fn world(world: Arc<dyn Link>, order: &Arc<Order>) -> Arc<dyn Link> {
        let presence = Arc::new(Presence { order: order.clone(), rank: world.rank() });
        Self::join(world, 0, presence)
    }

    fn join(inner: Arc<dyn Link>, id: u64, presence: Arc<Presence>) -> Arc<dyn Link> {
        let order = presence.order.clone();
        let counters = vec![0; inner.size()];
        let counters = Counters { sent: counters.clone(), received: counters, splits: 0 };
        let shared = if order.rules.one_order_a_label { hash(inner.group().label()) } else { id };
        let queue = (shared, presence.rank);
        Arc::new(Self { inner, order, id, queue, counters: Mutex::new(counters), presence })
    }

    /// Issues an operation that sends to some ranks and receives from some.
    fn issue(
        &self,
        operation: Operation,
        to: impl IntoIterator<Item = usize>,
        from: impl IntoIterator<Item = usize>,
    ) -> Turn {
        let me = self.inner.rank();
        let next = |counter: &mut usize| std::mem::replace(counter, *counter + 1);
        let mut counters = self.counters.lock().expect("one thread a rank");
        let sends = to.into_iter().map(|to| (true, (self.id, me, to, next(&mut counters.sent[to]))));
        let mut messages: Vec<_> = sends.collect();
        messages.extend(
            from.into_iter().map(|from| (false, (self.id, from, me, next(&mut counters.received[from])))),
        );
        let call = Call { operation, group: self.inner.group().label().clone(), rank: self.presence.rank };
        Turn { order: self.order.clone(), operation: self.order.issue(self.queue, messages), call }
    }

    fn others(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let me = self.inner.rank();
        (0..self.inner.size()).filter(move |&peer| peer != me)
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The position of an operation in the order.
struct Turn {
    order: Arc<Order>,
    operation: usize,
    call: Call,
}

impl Turn {
    fn wait(self, link: &dyn Link) -> Result<(), Error> {
        let Self { order, operation, call } = self;
        if order.wait(call.rank, operation, || link.check().is_err()) {
            return Ok(());
        }
        link.check()?;
        let peer = call.rank;
        Err(Error::Timeout { call, peer, limit: Duration::ZERO })
    }
}

/// An operation that waits until it is complete.
struct Waiting {
    inner: Box<dyn InFlight>,
    link: Arc<dyn Link>,
    turn: Turn,
    /// Kept until they are received, like the memory of a device.
    _sends: Vec<Tensor<1>>,
}

impl InFlight for Waiting {
    fn is_complete(&mut self) -> bool {
        self.turn.order.is_over(self.turn.operation)
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        self.turn.wait(&*self.link)?;
        self.inner.wait()
    }
}

impl Link for InOrder {
    fn group(&self) -> &Group {
        self.inner.group()
    }

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        // The call completes on a rank only after all ranks have made it.
        self.issue(Operation::Split, self.others(), self.others()).wait(&*self.inner)?;
        let nth = {
            let mut counters = self.counters.lock().expect("one thread a rank");
            counters.splits += 1;
            counters.splits
        };
        let split = self.inner.split(groups)?;
        Ok(split.map(|inner| {
            let id = hash((self.id, nth, inner.group()));
            Self::join(inner, id, self.presence.clone())
        }))
    }

    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight> {
        let to = transfer.sends.iter().map(|(to, _)| *to);
        let turn = self.issue(transfer.operation, to, transfer.receives.iter().map(|(from, _)| *from));
        let sends = transfer.sends.iter().map(|(_, x)| x.clone()).collect();
        Box::new(Waiting {
            inner: self.inner.transfer(transfer),
            link: self.inner.clone(),
            turn,
            _sends: sends,
        })
    }

    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight> {
        let turn = self.issue(Operation::AllReduce, self.others(), self.others());
        let sends = vec![x.clone()];
        Box::new(Waiting { inner: self.inner.sum(x), link: self.inner.clone(), turn, _sends: sends })
    }

    fn check(&self) -> Result<(), Error> {
        self.inner.check()
    }
}
