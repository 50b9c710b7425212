//! Links as NCCL orders them: what a rank issues on one of them is done in that order, one operation after the other.
//!
//! Data travels through the links inside. On top of them, an [`Order`] that all ranks share says when an operation may
//! be done: it starts once the one before it is over, and is over once, for each of its receives, the operation that
//! sends has started. If sends need their receives ([`Rules::rendezvous`]), they hold it up in the same way.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use burn::tensor::Tensor;
use xdit_comm::{Call, Error, Group, Operation};
use xdit_core::link::{InFlight, Link, Transfer};

/// How strict the order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A send is over only once its receive has started.
    pub rendezvous: bool,
    /// Links of a rank that have the same label share one order.
    pub one_order_a_label: bool,
}

/// Nothing is sent before it is asked for. What is free of deadlocks under this rule is so without it, too: then
/// nothing is over later.
pub const RENDEZVOUS: Rules = Rules { rendezvous: true, one_order_a_label: false };

/// The operations of all ranks of a world, and how far they are.
#[derive(Debug)]
pub struct Order {
    rules: Rules,
    state: Mutex<State>,
    /// One for each rank.
    changed: Vec<Condvar>,
}

/// Which operations wait for each other: those of one rank on one link, or on several.
type Queue = (u64, usize);

/// A message: the link, who sends, who receives, and how many were between them before.
type Message = (u64, usize, usize, usize);

#[derive(Debug, Default)]
struct State {
    issued: usize,
    open: HashMap<usize, Issued>,
    queues: HashMap<Queue, VecDeque<usize>>,
    /// Messages of which one end has started: whether it is the sending one, and its operation.
    half: HashMap<Message, (bool, usize)>,
    /// What each rank waits for.
    awaited: Vec<Option<usize>>,
    /// Ranks that have not left.
    present: usize,
    stuck: bool,
}

/// An operation that is not over.
#[derive(Debug)]
struct Issued {
    queue: Queue,
    messages: Vec<(bool, Message)>,
    /// Messages that hold it up.
    missing: usize,
}

impl Order {
    /// For a world of `size` ranks.
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

    /// Takes an operation that sends (true) and receives (false) `messages`.
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
                    // What was started first is held up by this, unless it is a send that need not wait.
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

    /// Blocks `rank` until `operation` is over. Says whether it is: a failure elsewhere, which `failed` asks for, or a
    /// deadlock ends the wait, too.
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

    /// Notices if all ranks that are left wait: nobody will issue what would end a wait.
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

/// One rank's link in a world with an [`Order`].
#[derive(Debug)]
pub struct InOrder {
    inner: Arc<dyn Link>,
    order: Arc<Order>,
    /// The same on all ranks of the link, and another one for each link.
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

/// A rank that has not left: gone with the last of its links.
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
    /// `world`, all of whose ranks share `order`.
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

/// The turn of an operation in the order.
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

/// An operation that waits for its turn.
struct Waiting {
    inner: Box<dyn InFlight>,
    link: Arc<dyn Link>,
    turn: Turn,
    /// Kept until they are received, as the memory of a device would be.
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
        // Nobody is done with it before all have called it.
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
