//! NCCL: transfers between the memories of NVIDIA's GPUs.
//!
//! This module knows addresses and streams, not tensors. A [`Communicator`] puts exchanges and sums on a stream of the
//! caller's; [`Watch`] ends all communicators of a process when a rank fails, is stuck, or the library fails. A world of
//! NCCL starts from a [`Comm`](crate::Comm) of any kind: one rank makes the [`UniqueId`] and sends it to the others.

mod library;
mod watch;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use crate::DType;
use library::Handle;
pub use library::{NAMES, Nccl, OLDEST, UniqueId};
pub use watch::{Pending, Watch};

/// The color of a rank in no group, in a split.
const NO_COLOR: c_int = -1;
/// The operation of a sum.
const SUM: c_int = 0;
/// The time that an abort leaves to a call in progress.
const CALL_LIMIT: Duration = Duration::from_millis(500);

/// Elements in the memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The position of the other rank.
    pub peer: usize,
    /// The address of the first element.
    pub address: u64,
    /// The number of elements.
    pub len: usize,
    /// Their type.
    pub dtype: DType,
}

/// One rank's end of a group of ranks.
///
/// As everywhere in NCCL, its operations run in the order of issue, and all ranks of the group must issue the same.
#[derive(Debug)]
pub struct Communicator {
    nccl: Arc<Nccl>,
    handle: Address,
    size: usize,
    rank: usize,
    /// Held during calls, so that an abort does not free the handle under one.
    calls: Mutex<()>,
    ended: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Address(Handle);

// SAFETY: NCCL's communicators may be used from any thread, by one at a time.
unsafe impl Send for Address {}
// SAFETY: as above; `calls` lets in one thread at a time.
unsafe impl Sync for Address {}

impl Communicator {
    /// Joins the ranks `0..size` that have the same `id` as rank `rank`. The device's context must be that of this
    /// thread. Blocks until all ranks have come, so make sure of that before.
    ///
    /// # Errors
    /// If the library fails.
    pub fn join(nccl: &Arc<Nccl>, id: UniqueId, size: usize, rank: usize) -> Result<Arc<Self>, String> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library writes a handle of its own to a pointer of ours.
        let status = unsafe { (nccl.join)(&raw mut handle, size as c_int, id, rank as c_int) };
        nccl.check("ncclCommInitRank", status)?;
        Ok(Self::new(nccl, handle, size, rank))
    }

    fn new(nccl: &Arc<Nccl>, handle: Handle, size: usize, rank: usize) -> Arc<Self> {
        let (calls, ended) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { nccl: nccl.clone(), handle: Address(handle), size, rank, calls, ended })
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// This rank's position.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// A communicator of the ranks that give the same `color`, ordered by `key`; `size` of them, of which this one is
    /// number `rank`. `None` for a rank without a color. All ranks must call it, as [`join`](Self::join).
    ///
    /// # Errors
    /// If the library fails.
    pub fn split(&self, color: Option<usize>, [size, rank]: [usize; 2]) -> Result<Option<Arc<Self>>, String> {
        let mut handle = std::ptr::null_mut();
        let number = color.map_or(NO_COLOR, |color| color as c_int);
        // SAFETY: the handle is valid until the end, which `call` rules out. The last argument asks for the defaults.
        let status = self.call(|| unsafe {
            (self.nccl.split)(self.handle.0, number, rank as c_int, &raw mut handle, std::ptr::null_mut())
        })?;
        self.nccl.check("ncclCommSplit", status)?;
        Ok(color.map(|_| Self::new(&self.nccl, handle, size, rank)))
    }

    /// Puts all `sends` and `receives` on `stream` as one operation. Parts of no elements do not travel.
    ///
    /// # Errors
    /// If the library fails, or the communicator has been aborted.
    ///
    /// # Safety
    /// The parts must lie in the memory of the communicator's device, and stay there until `stream` has carried out
    /// the operation; nothing else may use the received parts before. `stream` must be one of that device.
    pub unsafe fn exchange(
        &self,
        sends: &[Part],
        receives: &[Part],
        stream: *mut c_void,
    ) -> Result<(), String> {
        let nccl = &self.nccl;
        let put = |function: &str, call, part: &Part| {
            let Part { peer, address, len, dtype } = *part;
            if len == 0 {
                return Ok(());
            }
            let call: unsafe extern "C" fn(_, _, _, _, _, _) -> c_int = call;
            // SAFETY: the caller's promise; the handle is valid inside `call`.
            let status = unsafe {
                call(address as *mut c_void, len, code(dtype), peer as c_int, self.handle.0, stream)
            };
            nccl.check(function, status)
        };
        self.call(|| {
            // SAFETY: groups have no arguments; each one that begins here ends here.
            nccl.check("ncclGroupStart", unsafe { (nccl.begin)() })?;
            let sends = sends.iter().try_for_each(|part| put("ncclSend", nccl.send, part));
            let all =
                sends.and_then(|()| receives.iter().try_for_each(|part| put("ncclRecv", nccl.receive, part)));
            // SAFETY: as above.
            let end = nccl.check("ncclGroupEnd", unsafe { (nccl.end)() });
            all.and(end)
        })?
    }

    /// Puts the sum of all ranks' `len` elements at `from` on `stream`; every rank gets the same bits at `to`, which
    /// may be the same place. Halves of more than two ranks would be rounded more than once.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    ///
    /// # Safety
    /// As [`exchange`](Self::exchange).
    pub unsafe fn sum(
        &self,
        [from, to]: [u64; 2],
        len: usize,
        dtype: DType,
        stream: *mut c_void,
    ) -> Result<(), String> {
        let (from, to) = (from as *const c_void, to as *mut c_void);
        // SAFETY: the caller's promise; the handle is valid inside `call`.
        let status = self.call(|| unsafe {
            (self.nccl.all_reduce)(from, to, len, code(dtype), SUM, self.handle.0, stream)
        })?;
        self.nccl.check("ncclAllReduce", status)
    }

    /// Fails if an operation has failed after its issue. Nothing is said of a rank that does not come.
    ///
    /// # Errors
    /// Why it failed.
    pub fn check(&self) -> Result<(), String> {
        // A call in progress reports for itself.
        let Ok(_call) = self.calls.try_lock() else { return Ok(()) };
        if self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = 0;
        // SAFETY: the handle is valid, and the library writes to a number of ours.
        let status = unsafe { (self.nccl.state)(self.handle.0, &raw mut state) };
        // 7 means that an operation goes on.
        self.nccl.check("ncclCommGetAsyncError", if status == 0 && state != 7 { state } else { status })
    }

    /// Ends all operations, also those that wait for other ranks. Their results are undefined.
    pub fn abort(&self) {
        let begin = Instant::now();
        // A call that does not return is one that waits for other ranks: the abort makes it return.
        let _call = loop {
            match self.calls.try_lock() {
                Ok(call) => break Some(call),
                Err(TryLockError::Poisoned(call)) => break Some(call.into_inner()),
                Err(TryLockError::WouldBlock) if begin.elapsed() > CALL_LIMIT => break None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        if !self.ended.swap(true, Ordering::AcqRel) {
            // SAFETY: nothing uses the handle after it has ended.
            unsafe { (self.nccl.abort)(self.handle.0) };
        }
    }

    /// Runs `work` with a handle that stays valid.
    fn call<R>(&self, work: impl FnOnce() -> R) -> Result<R, String> {
        let _call = self.calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match self.ended.load(Ordering::Acquire) {
            true => Err("the communicator has been aborted".to_owned()),
            false => Ok(work()),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            // SAFETY: nobody else has the handle any more. Destroying waits for operations on the device only.
            unsafe { (self.nccl.destroy)(self.handle.0) };
        }
    }
}

/// NCCL's number for a type.
fn code(dtype: DType) -> c_int {
    match dtype {
        DType::U8 => 1,
        DType::I32 => 2,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::Bf16 => 9,
    }
}
