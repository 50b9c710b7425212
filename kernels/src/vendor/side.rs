//! Streams beside CubeCL's, for transfers between devices.
//!
//! A transfer waits for the launches before it, but no launch waits for the transfer until [`Done::wait`] says so.
//! Nothing here blocks the calling thread.

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::{Device, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::server::ServerStorage;
use cubecl_environment::stream::StreamId;
use cudarc::driver::{result, sys};

use super::order::{self, Address, Lane, Server, runner, stream_of};

/// A stream of its own on a device of CUDA.
pub struct Side {
    lane: Arc<Lane>,
    device: cubecl::Device,
    stream: Address,
    /// Events that nobody uses.
    events: Mutex<Vec<Address>>,
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Side({:?})", self.device)
    }
}

fn text(error: result::DriverError) -> String {
    format!("the CUDA driver fails: {error:?}")
}

impl Side {
    /// A new stream on `device`.
    ///
    /// # Errors
    /// If `device` is not one of CUDA, or its driver fails.
    pub fn new(device: &Device) -> Result<Arc<Self>, String> {
        let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() else {
            return Err(format!("{device:?} is no device of CUDA"));
        };
        let cubecl::Device::Cuda(cuda) = device else {
            return Err(format!("{device:?} is no device of CUDA"));
        };
        let lane = order::lane(cuda.index)?;
        lane.enter()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(text)?;
        let events = Mutex::default();
        Ok(Arc::new(Self { lane, device: device.clone(), stream: Address(stream as usize), events }))
    }

    /// Makes the device's primary context that of this thread, as libraries expect it that are called directly.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn enter(&self) -> Result<(), String> {
        self.lane.enter()
    }

    /// Puts `work` on this stream, after all that this thread has submitted to the device. `work` gets the addresses
    /// of `tensors`, whose elements are contiguous there, and the stream; it runs on another thread, with the device's
    /// context. The tensors stay until they are no longer used.
    ///
    /// # Panics
    /// If a tensor is on another kind of device.
    pub fn issue(
        self: &Arc<Self>,
        tensors: Vec<Tensor<1>>,
        work: impl FnOnce(&[u64], *mut c_void) -> Result<(), String> + Send + 'static,
    ) -> Done {
        let primitive = |x: Tensor<1>| {
            let x = x.try_into_primitive::<CubeBackend>().unwrap_or_else(|_| panic!("a tensor on a GPU"));
            into_contiguous(x)
        };
        let tensors: Vec<CubeTensor> = tensors.into_iter().map(primitive).collect();
        let bindings: Vec<_> = tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
        let (thread, state) = (StreamId::current(), Arc::new(OnceLock::new()));
        let (side, recorded) = (self.clone(), state.clone());
        let runner = runner(&self.device);
        runner.submit(move |server: &mut Server| {
            let put = || -> Result<Event, String> {
                let held: Result<Vec<_>, _> =
                    bindings.into_iter().map(|binding| server.get_resource(binding, thread)).collect();
                let held = held.map_err(|error| error.to_string())?;
                let addresses: Vec<u64> = held.iter().map(|resource| resource.resource().ptr).collect();
                let compute = stream_of(server, thread)?;
                side.lane.enter()?;
                let (event, own) = (side.event()?, side.stream.0 as sys::CUstream);
                event.follows(compute)?;
                event.precedes(own)?;
                let end = work(&addresses, own.cast());
                event.follows(own)?;
                end.map(|()| event)
            };
            // Nobody else sets it.
            drop(recorded.set(put()));
        });
        // Without this, the runner begins with it when 32 tasks are waiting, and other ranks wait for it.
        runner.flush_queue();
        Done { side: self.clone(), tensors, state }
    }

    fn event(self: &Arc<Self>) -> Result<Event, String> {
        let kept = self.events.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let event = match kept {
            Some(event) => event,
            None => {
                let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
                Address(result::event::create(flags).map_err(text)? as usize)
            }
        };
        Ok(Event { side: self.clone(), event })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let events = std::mem::take(self.events.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: stream and events were created by this value, and nothing else has them. The driver destroys them
        // once their work is done.
        unsafe {
            for event in events {
                let _ = result::event::destroy(event.0 as sys::CUevent);
            }
            let _ = result::stream::destroy(self.stream.0 as sys::CUstream);
        }
    }
}

/// An event that goes back to its stream's store.
struct Event {
    side: Arc<Side>,
    event: Address,
}

impl Event {
    fn raw(&self) -> sys::CUevent {
        self.event.0 as sys::CUevent
    }

    /// Records the event behind the work of `stream`.
    fn follows(&self, stream: sys::CUstream) -> Result<(), String> {
        // SAFETY: event and stream belong to one context and exist.
        unsafe { result::event::record(self.raw(), stream) }.map_err(text)
    }

    /// Lets later work of `stream` wait for the event as it was recorded last.
    fn precedes(&self, stream: sys::CUstream) -> Result<(), String> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream belong to one context and exist.
        unsafe { result::stream::wait_event(stream, self.raw(), flags) }.map_err(text)
    }

    fn is_over(&self) -> bool {
        if self.side.enter().is_err() {
            return true;
        }
        // SAFETY: the event exists, and its context is that of this thread.
        let state = unsafe { result::event::query(self.raw()) };
        state != Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_READY))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.side.events.lock().unwrap_or_else(PoisonError::into_inner).push(self.event);
    }
}

/// Work on a side stream. Dropping it lets later launches wait for the work, since these may reuse the memory.
pub struct Done {
    side: Arc<Side>,
    tensors: Vec<CubeTensor>,
    state: Arc<OnceLock<Result<Event, String>>>,
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Done({})", self.is_over())
    }
}

impl Done {
    /// Whether the work is known to be over, well or not.
    pub fn is_over(&self) -> bool {
        self.watch().is_over()
    }

    /// The state of the work, for other threads.
    pub fn watch(&self) -> Watched {
        Watched(self.state.clone())
    }

    /// Lets all that this thread submits from now on wait for the work.
    pub fn wait(self) {
        drop(self);
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        let (thread, state) = (StreamId::current(), self.state.clone());
        let tensors = std::mem::take(&mut self.tensors);
        runner(&self.side.device).submit(move |server: &mut Server| {
            if let Some(Ok(event)) = state.get()
                && let Ok(compute) = stream_of(server, thread)
                && event.side.enter().is_ok()
            {
                // If the driver fails, so does the next launch.
                drop(event.precedes(compute));
            }
            drop(tensors);
        });
    }
}

/// The state of work on a side stream.
#[derive(Clone)]
pub struct Watched(Arc<OnceLock<Result<Event, String>>>);

impl Watched {
    /// Whether the work is known to be over, well or not.
    pub fn is_over(&self) -> bool {
        match self.0.get() {
            None => false,
            Some(Ok(event)) => event.is_over(),
            Some(Err(_)) => true,
        }
    }

    /// Why the work could not be put on its stream.
    pub fn failure(&self) -> Option<String> {
        self.0.get().and_then(|state| state.as_ref().err().cloned())
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched({})", self.is_over())
    }
}
