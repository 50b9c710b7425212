//! Calls of NVIDIA's libraries between the launches of CubeCL.
//!
//! CubeCL submits the work of a device from one thread, the runner, to streams of its own in the device's primary
//! context. A call goes to the runner like a launch, and there to the stream of the thread that submitted it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn_cubecl::tensor::CubeTensor;
use cubecl::Device;
use cubecl::cuda::CudaRuntime;
use cubecl::device::RuntimeId;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Handle, ServerStorage};
use cubecl_environment::stream::StreamId;
use cubecl_runtime::runtime::Runtime;
use cubecl_server::stream::WriteScoped;
use cudarc::driver::{result, sys};

pub(super) type Server = <CudaRuntime as Runtime>::Server;

/// Calls from one event to the next that paces them.
const PACE: u32 = 32;
/// Events that the device may be behind.
const BEHIND: usize = 4;

/// The context of one device.
pub(super) struct Lane {
    context: Address,
    pace: Mutex<Pace>,
    /// Why a call failed, until somebody asks.
    failure: Mutex<Option<String>>,
}

/// The calls since the last event, the events that the device may not have reached, and others to use again.
#[derive(Default)]
struct Pace {
    calls: u32,
    ahead: VecDeque<Address>,
    spare: Option<Address>,
}

/// A pointer of the driver's, which is valid in every thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address(pub(super) usize);

/// The lane of the device `index` of CUDA. It lives as long as the process.
///
/// # Errors
/// If the driver cannot make it.
pub(super) fn lane(index: usize) -> Result<Arc<Lane>, String> {
    type Made = Result<Arc<Lane>, String>;
    static LANES: OnceLock<Mutex<HashMap<usize, Made>>> = OnceLock::new();
    let mut lanes = LANES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    lanes.entry(index).or_insert_with(|| Lane::new(index).map(Arc::new)).clone()
}

impl Lane {
    fn new(index: usize) -> Result<Self, String> {
        let make = || -> Result<Self, result::DriverError> {
            result::init()?;
            let device = result::device::get(i32::try_from(index).unwrap_or(i32::MAX))?;
            // SAFETY: the driver found the device. The context is never released, so it stays valid.
            let context = unsafe { result::primary_ctx::retain(device)? };
            Ok(Self { context: Address(context as usize), pace: Mutex::default(), failure: Mutex::default() })
        };
        make().map_err(|error| format!("the driver fails: {error:?}"))
    }

    /// Makes the device's primary context that of this thread.
    pub(super) fn enter(&self) -> Result<(), String> {
        // SAFETY: the context is retained as long as the process lives.
        unsafe { result::ctx::set_current(self.context.0 as sys::CUcontext) }
            .map_err(|error| format!("{error:?}"))
    }

    /// Counts a call on `stream`, and waits if the device is far behind.
    ///
    /// The driver has room for about a thousand launches of a device. The next one waits inside the driver, and while it
    /// does, no other device of the process gets work. So this thread waits before, which holds up no other.
    fn pace(&self, stream: sys::CUstream) -> Result<(), result::DriverError> {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.calls += 1;
        if pace.calls < PACE {
            return Ok(());
        }
        pace.calls = 0;
        let event = match pace.spare.take() {
            Some(event) => event,
            None => {
                let flags = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32
                    | sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
                let mut event = std::ptr::null_mut();
                // SAFETY: the driver writes an event to a variable of ours; the context is current.
                unsafe { sys::cuEventCreate(&raw mut event, flags) }.result()?;
                Address(event as usize)
            }
        };
        // SAFETY: event and stream belong to this context, and are never destroyed.
        unsafe { result::event::record(event.0 as sys::CUevent, stream)? };
        pace.ahead.push_back(event);
        if pace.ahead.len() > BEHIND
            && let Some(oldest) = pace.ahead.pop_front()
        {
            // SAFETY: as above.
            unsafe { result::event::synchronize(oldest.0 as sys::CUevent)? };
            pace.spare = Some(oldest);
        }
        Ok(())
    }

    /// Why a call failed since somebody asked last.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The runner of `device`.
pub(super) fn runner(device: &Device) -> DeviceHandle<Server> {
    DeviceHandle::<Server>::new(RuntimeId::strip(device.to_id()))
}

/// The driver's stream behind CubeCL's `stream`, which exists once memory was asked for on it.
pub(super) fn stream_of(server: &mut Server, stream: StreamId) -> Result<sys::CUstream, String> {
    let stream = server.write_streams().try_stream_mut(&stream);
    stream.map(|stream| stream.sys).ok_or_else(|| "CubeCL has not made its stream yet".to_owned())
}

/// Runs `work` on the runner of `device`, after all that was submitted to it, and waits for it. `None`, if the runner
/// fails.
pub(super) fn on_runner<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> Option<R> {
    runner(device).submit_blocking(move |_: &mut Server| work()).ok()
}

/// Puts `work` in line with the launches that this thread submits to the device. It gets the addresses of `tensors`,
/// then of `scratch`, and the stream. `work` writes the whole of the last tensor: if it fails, that is filled with
/// values that are not numbers, and [`Lane::failure`] says why.
pub(super) fn submit(
    lane: Arc<Lane>,
    tensors: &[&CubeTensor],
    scratch: Option<Handle>,
    work: impl FnOnce(&[u64], sys::CUstream) -> Result<(), String> + Send + 'static,
) {
    let last = *tensors.last().expect("a tensor to write");
    // It was allocated by this thread, so it is on this thread's stream.
    let stream = last.handle.stream;
    let bytes = last.meta.num_elements() * last.dtype.size();
    let written = tensors.len() - 1;
    let handles = tensors.iter().map(|tensor| tensor.handle.clone()).chain(scratch);
    let bindings: Vec<_> = handles.map(Handle::binding).collect();
    runner(&last.device).submit(move |server: &mut Server| {
        let mut held = Vec::with_capacity(bindings.len());
        for binding in bindings {
            match server.get_resource(binding, stream) {
                Ok(resource) => held.push(resource),
                // The launch that should have filled the tensor failed, and reports it where a result is read.
                Err(error) => {
                    *lane.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                    return;
                }
            }
        }
        let addresses: Vec<u64> = held.iter().map(|resource| resource.resource().ptr).collect();
        let end = lane.enter().and_then(|()| {
            let stream = stream_of(server, stream)?;
            work(&addresses, stream).inspect_err(|_| {
                // SAFETY: the tensor has so many bytes, and `held` keeps its memory.
                let _ = unsafe { result::memset_d8_async(addresses[written], 0xff, bytes, stream) };
            })?;
            lane.pace(stream).map_err(|error| format!("{error:?}"))
        });
        if let Err(error) = end {
            *lane.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Tensor};
    use burn_cubecl::CubeBackend;

    use super::*;

    const SIDE: usize = 2048;
    const BYTES: usize = SIDE * SIDE * size_of::<f32>();

    /// Puts a copy of `from` into `to` in line with CubeCL's launches, or on a stream of its own.
    fn copy(lane: &Arc<Lane>, from: &CubeTensor, to: &CubeTensor, ordered: bool) {
        let work = |addresses: &[u64], stream: sys::CUstream| {
            // SAFETY: both tensors have so many bytes, and live until the stream has copied them.
            unsafe { result::memcpy_dtod_async(addresses[1], addresses[0], BYTES, stream) }
                .map_err(|error| format!("{error:?}"))
        };
        if ordered {
            return submit(lane.clone(), &[from, to], None, work);
        }
        let (lane, stream) = (lane.clone(), to.handle.stream);
        let bindings = [from, to].map(|tensor| tensor.handle.clone().binding());
        runner(&to.device).submit(move |server: &mut Server| {
            let held = bindings.map(|binding| server.get_resource(binding, stream).expect("memory"));
            let addresses = held.each_ref().map(|resource| resource.resource().ptr);
            lane.enter().expect("a context");
            let own = result::stream::create(result::stream::StreamKind::NonBlocking).expect("a stream");
            work(&addresses, own).expect("a copy");
        });
    }

    /// Ten times: a number is written by a slow chain of launches, copied by a call, and read by a launch. Returns how
    /// many of the ten came out wrong.
    fn wrong(ordered: bool) -> usize {
        let device = burn::tensor::Device::cuda(0);
        let lane = lane(0).expect("a lane");
        let options = (&device, DType::F32);
        let full = |value: f32| Tensor::<2>::full([SIDE, SIDE], value, options);
        let primitive = |x: &Tensor<2>| {
            x.clone().try_into_primitive::<CubeBackend>().unwrap_or_else(|_| panic!("a tensor on the GPU"))
        };
        let factor = full(1.0);
        device.sync().expect("a device that works");
        let results: Vec<Tensor<2>> = (0..10)
            .map(|round| {
                let mut slow = factor.clone();
                for _ in 0..4 {
                    slow = slow.matmul(factor.clone()).mul_scalar(1.0 / SIDE as f32);
                }
                let number = slow.mul_scalar(0.0).add_scalar(round as f32);
                let copied = full(-1.0);
                copy(&lane, &primitive(&number), &primitive(&copied), ordered);
                copied.add_scalar(1.0)
            })
            .collect();
        assert_eq!(lane.failure(), None);
        let is_wrong = |(round, result): (usize, Tensor<2>)| {
            let values = result.into_data().try_into_vec::<f32>().expect("f32");
            values.iter().any(|&value| value != round as f32 + 1.0)
        };
        results.into_iter().enumerate().filter_map(|pair| is_wrong(pair).then_some(())).count()
    }

    #[test]
    #[ignore = "takes an NVIDIA GPU"]
    fn calls_run_between_the_launches_around_them() {
        for _ in 0..3 {
            assert_eq!(wrong(true), 0);
        }
        // The test has teeth: on a stream of their own, calls come too early or launches do.
        let without = wrong(false);
        assert!(without > 0, "all 10 are right without order, too");
    }

    /// What a failed call should have written is not a number, and the reason is kept.
    #[test]
    #[ignore = "takes an NVIDIA GPU"]
    fn a_failed_call_leaves_no_numbers() {
        let device = burn::tensor::Device::cuda(0);
        // Another thread's failures are on another device's lane, so this test has one of its own.
        let lane = Arc::new(Lane::new(0).expect("a lane"));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = Tensor::<1>::full([1000], 1.0, (&device, dtype));
            let primitive =
                x.clone().try_into_primitive::<CubeBackend>().unwrap_or_else(|_| panic!("on the GPU"));
            submit(lane.clone(), &[&primitive], None, |_, _| Err("no such plan".to_owned()));
            let values = x.cast(DType::F32).into_data().try_into_vec::<f32>().expect("f32");
            assert!(values.len() == 1000 && values.iter().all(|value| value.is_nan()), "{dtype:?}");
            assert_eq!(lane.failure().as_deref(), Some("no such plan"));
        }
    }
}
