//! Transfers of tensors between NVIDIA's GPUs by NCCL.
//!
//! NCCL reads and writes the memory of tensors. Each link has a stream of its own, which waits for the launches before an
//! operation; later launches wait for the operation once it is [waited](InFlight::wait) for. No thread waits.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{DType, Device, Tensor};
use xdit_comm::nccl::{Communicator, Part, UniqueId, Watch};
use xdit_comm::{Buffer, BufferSpec, Call, Comm, DType as WireType, Error, Group, Operation};
use xdit_kernels::{Done, Side};

use super::{HostLink, InFlight, Link, Place, Transfer};
use crate::device::nccl;

/// The limit on each operation, waits for other ranks included. A rank that fails or dies ends the others at once, so
/// only one that lives and is silent takes this long; it must exceed the time in which kernels are compiled.
const LIMIT: Duration = Duration::from_secs(600);

/// A link of ranks that have a GPU each.
#[derive(Debug)]
pub struct NcclLink {
    /// The same ranks over the host: for meeting, and for failures.
    host: Comm,
    raw: Arc<Communicator>,
    side: Arc<Side>,
    device: Device,
    watch: Arc<Watch>,
}

impl NcclLink {
    /// The link of the ranks of `host`, of which this one computes on `device`. Every rank must call it. The ranks meet
    /// over `host`, whatever that is.
    ///
    /// # Errors
    /// If NCCL is missing or fails, or a rank does not come.
    #[expect(clippy::new_ret_no_self, reason = "a link is always shared")]
    pub fn new(host: Comm, device: &Device) -> Result<Arc<dyn Link>, Error> {
        Self::with_limit(host, device, LIMIT)
    }

    /// As [`new`](Self::new), with a limit on each operation.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_limit(host: Comm, device: &Device, limit: Duration) -> Result<Arc<dyn Link>, Error> {
        let failed = |cause: String| fail(&host, Operation::Split, &cause);
        let (nccl, _) = nccl().map_err(failed)?;
        let side = Side::new(device).map_err(failed)?;
        let watch = Watch::start(host.clone(), limit).map_err(failed)?;
        let own = nccl.unique_id().map_err(failed)?;
        let first = meet(&host, own.bytes())?;
        let id = UniqueId::from_bytes(&first).expect("every rank sends an identity");
        side.enter().map_err(failed)?;
        let raw = Communicator::join(nccl, id, host.size(), host.rank()).map_err(failed)?;
        Self::connected(host.clone(), raw, side, device, watch)
    }

    /// The link over `raw`, once its ranks are connected. They connect at their first operation, which blocks more than
    /// its stream; so this is done here, where all ranks are at the same place.
    fn connected(
        host: Comm,
        raw: Arc<Communicator>,
        side: Arc<Side>,
        device: &Device,
        watch: Arc<Watch>,
    ) -> Result<Arc<dyn Link>, Error> {
        watch.add(&raw);
        let this = Self { host, raw, side, device: device.clone(), watch };
        let ones = || Tensor::<1>::ones([1], (device, DType::F32));
        let others = || (0..this.host.size()).filter(|&peer| peer != this.host.rank());
        let slot = Place { device: device.clone(), dtype: DType::F32 }.slot([1]);
        let mut exchange = this.transfer(Transfer {
            operation: Operation::Split,
            payload_bytes: 0,
            sends: others().map(|peer| (peer, ones())).collect(),
            receives: others().map(|peer| (peer, slot.clone())).collect(),
        });
        let mut sum = this.sum(ones());
        // The watch ends both if a rank does not come.
        while !(exchange.is_complete() && sum.is_complete()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        exchange.wait()?;
        sum.wait()?;
        Ok(Arc::new(this))
    }

    fn call(&self, operation: Operation) -> Call {
        call(&self.host, operation)
    }

    /// Issues `work` on the tensors, and watches it.
    fn issue(
        &self,
        operation: Operation,
        tensors: Vec<Tensor<1>>,
        work: impl FnOnce(&Communicator, &[u64], *mut std::ffi::c_void) -> Result<(), String> + Send + 'static,
    ) -> Done {
        let raw = self.raw.clone();
        let done = self.side.issue(tensors, move |addresses, stream| work(&raw, addresses, stream));
        let watched = done.watch();
        let pending = move || match (watched.is_over(), watched.failure()) {
            (false, _) => None,
            (true, None) => Some(Ok(())),
            (true, Some(error)) => Some(Err(error)),
        };
        self.watch.expect(self.call(operation).to_string().into(), Box::new(pending));
        done
    }
}

impl Link for NcclLink {
    fn group(&self) -> &Group {
        self.host.group()
    }

    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        let failed = |cause: String| fail(&self.host, Operation::Split, &cause);
        let host = self.host.split(groups)?;
        // NCCL blocks until all ranks have come, without a limit.
        meet(&self.host, &[0])?;
        let me = self.host.group().ranks()[self.host.rank()];
        let color = groups.iter().position(|group| group.position(me).is_some());
        let place = host.as_ref().map_or([0, 0], |host| [host.size(), host.rank()]);
        self.side.enter().map_err(failed)?;
        let raw = self.raw.split(color, place).map_err(failed)?;
        let (Some(host), Some(raw)) = (host, raw) else { return Ok(None) };
        let side = Side::new(&self.device).map_err(failed)?;
        Self::connected(host, raw, side, &self.device, self.watch.clone()).map(Some)
    }

    /// Links over the host. An operation of NCCL that waits for another rank holds up its own device as soon as a kernel
    /// is loaded or memory freed there, and so must not wait for something that this rank does later.
    fn channels(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        Ok(self.host.split(groups)?.map(HostLink::new))
    }

    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight> {
        let Transfer { operation, sends, receives, .. } = transfer;
        let room = |slot: &super::Slot<1>| Tensor::empty(slot.shape, (&slot.place.device, slot.place.dtype));
        let arriving: Vec<Tensor<1>> = receives.iter().map(|(_, slot)| room(slot)).collect();
        let part = |peer: usize, x: &Tensor<1>| Part {
            peer,
            address: 0,
            len: x.dims()[0],
            dtype: wire_type(x.dtype()),
        };
        // Tensors without elements need no memory, and do not travel.
        let sends: Vec<_> = sends.into_iter().filter(|(_, x)| x.dims()[0] > 0).collect();
        let mut sent: Vec<Part> = sends.iter().map(|(to, x)| part(*to, x)).collect();
        let received = receives.iter().zip(&arriving).map(|((from, _), x)| part(*from, x));
        let mut received: Vec<Part> = received.filter(|part| part.len > 0).collect();
        let memory = arriving.iter().filter(|x| x.dims()[0] > 0).cloned();
        let tensors: Vec<Tensor<1>> = sends.into_iter().map(|(_, x)| x).chain(memory).collect();
        let done = (!tensors.is_empty()).then(|| {
            self.issue(operation, tensors, move |raw, addresses, stream| {
                for (part, &address) in sent.iter_mut().chain(&mut received).zip(addresses) {
                    part.address = address;
                }
                // SAFETY: each part is the memory of a tensor on the device of the stream; it stays until the stream has
                // done the work, and the next launches that use it wait for that.
                unsafe { raw.exchange(&sent, &received, stream) }
            })
        });
        Box::new(Issued {
            done,
            arriving,
            dtype: None,
            call: self.call(operation),
            watch: self.watch.clone(),
        })
    }

    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight> {
        let dtype = x.dtype();
        // The sum of two halves is rounded once by NCCL as well. More of them are added in f32.
        let x = if self.raw.size() > 2 { x.cast(DType::F32) } else { x };
        let (len, wire) = (x.dims()[0], wire_type(x.dtype()));
        let sum = Tensor::empty([len], (&x.device(), x.dtype()));
        let done = (len > 0).then(|| {
            let work = move |raw: &Communicator, addresses: &[u64], stream| {
                // SAFETY: both are the memory of tensors of so many elements, as above.
                unsafe { raw.sum([addresses[0], addresses[1]], len, wire, stream) }
            };
            self.issue(Operation::AllReduce, vec![x, sum.clone()], work)
        });
        let (call, watch) = (self.call(Operation::AllReduce), self.watch.clone());
        Box::new(Issued { done, arriving: vec![sum], dtype: Some(dtype), call, watch })
    }

    fn check(&self) -> Result<(), Error> {
        self.host.check()?;
        ended(&self.watch, || self.call(Operation::Check))
    }
}

/// An operation on the link's stream.
struct Issued {
    done: Option<Done>,
    arriving: Vec<Tensor<1>>,
    /// The type of the result, if it may differ from the one that arrives.
    dtype: Option<DType>,
    call: Call,
    watch: Arc<Watch>,
}

impl InFlight for Issued {
    fn is_complete(&mut self) -> bool {
        self.done.as_ref().is_none_or(Done::is_over)
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        ended(&self.watch, || self.call.clone())?;
        if let Some(done) = self.done {
            done.wait();
        }
        let typed = |x: Tensor<1>| match self.dtype {
            Some(dtype) if dtype != x.dtype() => x.cast(dtype),
            _ => x,
        };
        Ok(self.arriving.into_iter().map(typed).collect())
    }
}

/// Fails once the watch has ended all communicators.
fn ended(watch: &Watch, call: impl FnOnce() -> Call) -> Result<(), Error> {
    match watch.failure() {
        None => Ok(()),
        Some(cause) => Err(Error::Transport { call: call(), cause }),
    }
}

/// Sends `own` to all ranks, and returns that of the first rank once all have sent theirs.
fn meet(host: &Comm, own: &[u8]) -> Result<Vec<u8>, Error> {
    let (rank, size) = (host.rank(), host.size());
    let others = || (0..size).filter(|&peer| peer != rank);
    let sends = others().map(|peer| (peer, Buffer::from_vec(own.to_vec()))).collect();
    let spec = BufferSpec::new(WireType::U8, own.len());
    let receives = others().map(|peer| (peer, spec)).collect();
    let arrived = host.exchange(Operation::Split, sends, receives).wait()?;
    Ok(match rank {
        0 => own.to_vec(),
        _ => arrived[0].elements::<u8>().into_owned(),
    })
}

fn call(host: &Comm, operation: Operation) -> Call {
    Call { operation, group: host.group().label().clone(), rank: host.group().ranks()[host.rank()] }
}

fn fail(host: &Comm, operation: Operation, cause: &str) -> Error {
    Error::Transport { call: call(host, operation), cause: cause.into() }
}

fn wire_type(dtype: DType) -> WireType {
    match dtype {
        DType::F32 => WireType::F32,
        DType::F16 => WireType::F16,
        DType::BF16 => WireType::Bf16,
        other => panic!("tensors of type {other:?} do not travel"),
    }
}
