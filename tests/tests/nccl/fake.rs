//! NCCL for tests: the functions that xDiT uses, over the memory of the host.
//!
//! It keeps NCCL's rules. A communicator carries out its operations one after another, in the order of issue. The parts
//! of a group progress together, and a send is over only when its receive has taken it. Joining and splitting block
//! until all ranks have come. An abort ends the operations of one rank; the other ranks learn nothing of it.
//!
//! A stream is the address of an `AtomicU64`, which counts the operations that are over.

use std::collections::{HashMap, VecDeque};
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

type Id = [u8; 128];

/// `ncclInvalidArgument`.
const INVALID: c_int = 4;

static ORDER: OnceLock<Mutex<Vec<World>>> = OnceLock::new();

/// The ranks of one communicator.
#[derive(Clone)]
struct World(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    id: u64,
    size: usize,
    arrived: usize,
    /// By sender, receiver and the number among the sends of this pair.
    mail: HashMap<(usize, usize), VecDeque<(u64, Vec<u8>)>>,
    /// The number of messages taken by the receiver, by pair.
    taken: HashMap<(usize, usize), u64>,
    /// By the number of the sum: what each rank has given.
    sums: HashMap<u64, HashMap<usize, Vec<f32>>>,
    /// By the number of the split: color and key of each rank.
    splits: HashMap<u64, HashMap<usize, (c_int, c_int)>>,
    /// By the number of the split and color.
    parts: HashMap<(u64, c_int), World>,
}

impl World {
    fn new(id: u64, size: usize) -> Self {
        Self(Arc::new((Mutex::new(State { id, size, ..State::default() }), Condvar::new())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    /// Waits until `ready`, or until `ended`; then returns whether it is ready.
    fn wait(&self, ended: &AtomicBool, mut ready: impl FnMut(&mut State) -> bool) -> bool {
        let mut state = self.lock();
        loop {
            if ready(&mut state) {
                self.0.1.notify_all();
                return true;
            }
            if ended.load(Ordering::Acquire) {
                return false;
            }
            state = self.0.1.wait_timeout(state, Duration::from_millis(5)).unwrap().0;
        }
    }
}

#[derive(Clone, Copy)]
struct Part {
    address: usize,
    bytes: usize,
    peer: usize,
    is_send: bool,
}

enum Work {
    Exchange(Vec<Part>),
    Sum { from: usize, to: usize, len: usize },
}

/// What a worker shares with its communicator.
struct Shared {
    world: World,
    rank: usize,
    ended: AtomicBool,
    error: AtomicI32,
}

/// It is never freed, since a call may still use it when another thread aborts it.
struct Comm {
    shared: Arc<Shared>,
    work: Mutex<Option<Sender<(Work, usize)>>>,
    worker: Mutex<Option<JoinHandle<()>>>,
    splits: AtomicU64,
}

impl Comm {
    fn boxed(world: World, rank: usize) -> *mut Comm {
        let (ended, error) = (AtomicBool::new(false), AtomicI32::new(0));
        let shared = Arc::new(Shared { world, rank, ended, error });
        let (work, queue) = channel();
        let worker = std::thread::spawn({
            let shared = shared.clone();
            move || shared.carry_out(queue)
        });
        let (work, worker) = (Mutex::new(Some(work)), Mutex::new(Some(worker)));
        Box::into_raw(Box::new(Comm { shared, work, worker, splits: AtomicU64::new(0) }))
    }

    fn issue(&self, work: Work, stream: usize) {
        let queue = self.work.lock().unwrap();
        drop(queue.as_ref().unwrap().send((work, stream)));
    }

    fn end(&self) {
        *self.work.lock().unwrap() = None;
        if let Some(worker) = self.worker.lock().unwrap().take() {
            worker.join().unwrap();
        }
    }
}

impl Shared {
    fn carry_out(&self, queue: Receiver<(Work, usize)>) {
        let (mut sent, mut sums) = (HashMap::new(), 0);
        for (work, stream) in queue {
            let over = match work {
                Work::Exchange(parts) => self.exchange(&parts, &mut sent),
                Work::Sum { from, to, len } => {
                    sums += 1;
                    self.sum(sums, from, to, len)
                }
            };
            if !over {
                return;
            }
            // SAFETY: a stream outlives the work on it.
            unsafe { &*(stream as *const AtomicU64) }.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn exchange(&self, parts: &[Part], sent: &mut HashMap<usize, u64>) -> bool {
        let me = self.rank;
        for part in parts.iter().filter(|part| part.is_send) {
            // SAFETY: the caller of `ncclSend` promises that the memory stays.
            let bytes = unsafe { std::slice::from_raw_parts(part.address as *const u8, part.bytes) };
            let number = sent.entry(part.peer).or_insert(0);
            *number += 1;
            self.world.lock().mail.entry((me, part.peer)).or_default().push_back((*number, bytes.to_vec()));
        }
        for part in parts.iter().filter(|part| !part.is_send) {
            let pair = (part.peer, me);
            let mut message = Vec::new();
            let came = self.world.wait(&self.ended, |state| {
                let Some((number, bytes)) = state.mail.get_mut(&pair).and_then(VecDeque::pop_front) else {
                    return false;
                };
                state.taken.insert(pair, number);
                message = bytes;
                true
            });
            if !came {
                return false;
            }
            if message.len() != part.bytes {
                self.error.store(INVALID, Ordering::Release);
                return false;
            }
            // SAFETY: as above, for `ncclRecv`.
            unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), part.address as *mut u8, part.bytes) };
        }
        parts.iter().filter(|part| part.is_send).all(|part| {
            let (pair, number) = ((me, part.peer), sent[&part.peer]);
            self.world.wait(&self.ended, |state| state.taken.get(&pair).is_some_and(|&taken| taken >= number))
        })
    }

    fn sum(&self, number: u64, from: usize, to: usize, len: usize) -> bool {
        // SAFETY: the caller of `ncclAllReduce` promises that the memory stays.
        let own = unsafe { std::slice::from_raw_parts(from as *const f32, len) };
        self.world.lock().sums.entry(number).or_default().insert(self.rank, own.to_vec());
        let mut sum = vec![0.0_f32; len];
        let all = self.world.wait(&self.ended, |state| {
            let parts = &state.sums[&number];
            let all = parts.len() == state.size;
            for rank in (0..state.size).filter(|_| all) {
                sum.iter_mut().zip(&parts[&rank]).for_each(|(sum, x)| *sum += x);
            }
            all
        });
        if all {
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(sum.as_ptr(), to as *mut f32, len) };
        }
        all
    }
}

thread_local! {
    /// The parts of the open group, with communicator and stream.
    static GROUP: std::cell::RefCell<Vec<(Part, usize, usize)>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn size_of(dtype: c_int) -> usize {
    match dtype {
        1 => 1,
        6 | 9 => 2,
        _ => 4,
    }
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller gives a number to write to.
    unsafe { *version = if cfg!(old) { 21_703 } else { 22_804 } };
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(status: c_int) -> *const c_char {
    if status == INVALID { c"invalid argument".as_ptr() } else { c"unknown result code".as_ptr() }
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetUniqueId(id: *mut Id) -> c_int {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [7; 128];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    // SAFETY: the caller gives an identity to fill.
    unsafe { *id = bytes };
    0
}

#[repr(C)]
struct UniqueId(Id);

#[unsafe(no_mangle)]
extern "C" fn ncclCommInitRank(comm: *mut *mut Comm, size: c_int, id: UniqueId, rank: c_int) -> c_int {
    let id = u64::from_le_bytes(id.0[..8].try_into().unwrap());
    let world = {
        let mut worlds = ORDER.get_or_init(Mutex::default).lock().unwrap();
        let known = worlds.iter().find(|world| world.lock().id == id).cloned();
        known.unwrap_or_else(|| {
            let world = World::new(id, size as usize);
            worlds.push(world.clone());
            world
        })
    };
    world.lock().arrived += 1;
    world.wait(&AtomicBool::new(false), |state| state.arrived == state.size);
    // SAFETY: the caller gives a handle to write.
    unsafe { *comm = Comm::boxed(world, rank as usize) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommSplit(
    comm: *mut Comm,
    color: c_int,
    key: c_int,
    part: *mut *mut Comm,
    _config: *mut c_void,
) -> c_int {
    // SAFETY: handles are those of `Comm::boxed`, which are never freed.
    let comm = unsafe { &*comm };
    let number = comm.splits.fetch_add(1, Ordering::Relaxed);
    let Shared { world, rank, ended, .. } = &*comm.shared;
    world.lock().splits.entry(number).or_default().insert(*rank, (color, key));
    let mut found = None;
    let all = world.wait(ended, |state| {
        let ranks = &state.splits[&number];
        if ranks.len() < state.size {
            return false;
        }
        if color >= 0 {
            let mut members: Vec<_> = ranks.iter().filter(|(_, own)| own.0 == color).collect();
            members.sort_by_key(|(rank, (_, key))| (*key, **rank));
            let own = members.iter().position(|(member, _)| *member == rank).unwrap();
            let size = members.len();
            found = Some((
                state.parts.entry((number, color)).or_insert_with(|| World::new(0, size)).clone(),
                own,
            ));
        }
        true
    });
    let made = found.map_or(std::ptr::null_mut(), |(world, own)| Comm::boxed(world, own));
    // SAFETY: the caller gives a handle to write.
    unsafe { *part = made };
    if all { 0 } else { INVALID }
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> c_int {
    let parts = GROUP.take();
    if let Some(&(_, comm, stream)) = parts.first() {
        // SAFETY: as above.
        let comm = unsafe { &*(comm as *const Comm) };
        let parts = parts.into_iter().map(|(part, ..)| part).collect();
        comm.issue(Work::Exchange(parts), stream);
    }
    0
}

fn put(part: Part, comm: *mut Comm, stream: *mut c_void) -> c_int {
    // SAFETY: as above.
    let size = unsafe { &*comm }.shared.world.lock().size;
    if part.peer >= size {
        return INVALID;
    }
    GROUP.with_borrow_mut(|group| group.push((part, comm as usize, stream as usize)));
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclSend(
    from: *const c_void,
    len: usize,
    dtype: c_int,
    peer: c_int,
    comm: *mut Comm,
    stream: *mut c_void,
) -> c_int {
    let bytes = len * size_of(dtype);
    put(Part { address: from as usize, bytes, peer: peer as usize, is_send: true }, comm, stream)
}

#[unsafe(no_mangle)]
extern "C" fn ncclRecv(
    to: *mut c_void,
    len: usize,
    dtype: c_int,
    peer: c_int,
    comm: *mut Comm,
    stream: *mut c_void,
) -> c_int {
    let bytes = len * size_of(dtype);
    put(Part { address: to as usize, bytes, peer: peer as usize, is_send: false }, comm, stream)
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    from: *const c_void,
    to: *mut c_void,
    len: usize,
    dtype: c_int,
    operation: c_int,
    comm: *mut Comm,
    stream: *mut c_void,
) -> c_int {
    if dtype != 7 || operation != 0 {
        return INVALID;
    }
    let work = Work::Sum { from: from as usize, to: to as usize, len };
    // SAFETY: as above.
    unsafe { &*comm }.issue(work, stream as usize);
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommGetAsyncError(comm: *mut Comm, state: *mut c_int) -> c_int {
    // SAFETY: as above; the caller gives a number to write to.
    unsafe { *state = (&*comm).shared.error.load(Ordering::Acquire) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(comm: *mut Comm) -> c_int {
    // SAFETY: as above.
    unsafe { &*comm }.end();
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(comm: *mut Comm) -> c_int {
    // SAFETY: as above.
    let comm = unsafe { &*comm };
    comm.shared.ended.store(true, Ordering::Release);
    comm.end();
    0
}
