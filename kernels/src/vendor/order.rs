//! Calls of NVIDIA's libraries between the launches of CubeCL.
//!
//! CubeCL submits the work of a device from one thread, the runner, to streams of its own in the device's primary
//! context. A call goes to the runner like a launch. There it is put on the stream on which this thread's launches run,
//! if that is known. Otherwise it is put on one more stream, which waits for an event that follows all earlier work of
//! the context, and all later work of the context waits for an event that follows the call. The two events cost the
//! device 3 µs a call, which is a tenth of a step of the smaller models.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn_cubecl::tensor::CubeTensor;
use cubecl::Device;
use cubecl::cuda::CudaRuntime;
use cubecl::device::RuntimeId;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Handle, ServerStorage};
use cubecl_runtime::runtime::Runtime;
use cudarc::driver::{result, sys};

type Server = <CudaRuntime as Runtime>::Server;

/// The driver of the first CUDA release that records events of a whole context.
const OLDEST_DRIVER: i32 = 12_050;

/// The stream for calls, and what orders it, of one device.
pub(super) struct Lane {
    context: Address,
    stream: Address,
    before: Address,
    after: Address,
    /// CubeCL's streams, by the number of the stream that threads know; `None` where it cannot be found.
    own: Mutex<HashMap<u64, Option<Address>>>,
    /// Why a call failed, until somebody asks.
    failure: Mutex<Option<String>>,
}

/// A pointer of the driver's, which is valid in every thread.
#[derive(Clone, Copy)]
struct Address(usize);

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
            // SAFETY: the context was retained just now.
            unsafe { result::ctx::set_current(context)? };
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
            let [context, stream] = [context as usize, stream as usize].map(Address);
            let [before, after] = [event()? as usize, event()? as usize].map(Address);
            Ok(Self { context, stream, before, after, own: Mutex::default(), failure: Mutex::default() })
        };
        let mut version = 0;
        // SAFETY: the driver writes its version to a number of ours.
        let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        if asked != sys::CUresult::CUDA_SUCCESS || version < OLDEST_DRIVER {
            return Err("the NVIDIA driver is older than CUDA 12.5".to_owned());
        }
        make().map_err(|error| format!("the driver fails: {error:?}"))
    }

    /// Makes the device's primary context that of this thread.
    pub(super) fn enter(&self) -> Result<(), String> {
        // SAFETY: the context is retained as long as the process lives.
        unsafe { result::ctx::set_current(self.context.0 as sys::CUcontext) }
            .map_err(|error| format!("{error:?}"))
    }

    /// Why a call failed since somebody asked last.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// CubeCL's stream `id`, on which the work that names it runs.
    fn own_stream(&self, server: &Server, id: u64) -> Option<sys::CUstream> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let find = || stream_in(&format!("{server:?}"), id).map(Address);
        (*own.entry(id).or_insert_with(find)).map(|address| address.0 as sys::CUstream)
    }

    /// Runs `work`, which puts calls on the stream that it is given, after all that CubeCL submitted before to the
    /// context, and before all that it submits later. `own` is the stream of the launches before and after, if it is
    /// known.
    fn in_order(
        &self,
        own: Option<sys::CUstream>,
        work: impl FnOnce(sys::CUstream) -> Result<(), String>,
    ) -> Result<(), String> {
        if let Some(own) = own {
            return work(own);
        }
        let (context, stream) = (self.context.0 as sys::CUcontext, self.stream.0 as sys::CUstream);
        let (before, after) = (self.before.0 as sys::CUevent, self.after.0 as sys::CUevent);
        let done = |status: sys::CUresult| status.result().map_err(|error| format!("{error:?}"));
        // SAFETY: context, stream and events belong together and are never destroyed. Only the runner uses them, so no
        // other thread records an event between these two calls.
        unsafe {
            done(sys::cuCtxRecordEvent(context, before))?;
            done(sys::cuStreamWaitEvent(stream, before, 0))?;
        }
        let end = work(stream);
        // SAFETY: as above.
        unsafe {
            done(sys::cuEventRecord(after, stream))?;
            done(sys::cuCtxWaitEvent(context, after))?;
        }
        end
    }
}

/// Runs `work` on the runner of `device`, after all that was submitted to it, and waits for it. `None`, if the runner
/// fails.
pub(super) fn on_runner<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> Option<R> {
    let runner = DeviceHandle::<Server>::new(RuntimeId::strip(device.to_id()));
    runner.submit_blocking(move |_: &mut Server| work()).ok()
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
    let runner = DeviceHandle::<Server>::new(RuntimeId::strip(last.device.to_id()));
    runner.submit(move |server: &mut Server| {
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
            lane.in_order(lane.own_stream(server, stream.value), |stream| {
                work(&addresses, stream).inspect_err(|_| {
                    // SAFETY: the tensor has so many bytes, and `held` keeps its memory.
                    let _ = unsafe { result::memset_d8_async(addresses[written], 0xff, bytes, stream) };
                })
            })
        });
        if let Err(error) = end {
            *lane.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
}

/// The address of stream `id` in a server of CubeCL that was printed for debugging: the server has no method for it.
///
/// The text has the streams in a list, and the number of regular ones. A stream's number, divided by that one, leaves its
/// place as the remainder. `None`, if the text is another than in CubeCL 0.11.3, to which this project is pinned.
fn stream_in(text: &str, id: u64) -> Option<usize> {
    const POOL: &str = "StreamPool { streams: [";
    const COUNT: &str = ", max_streams: ";
    let pool = &text[text.find(POOL)? + POOL.len()..];
    let count = &pool[pool.find(COUNT)? + COUNT.len()..];
    let count: u64 = count[..count.find(|letter: char| !letter.is_ascii_digit())?].parse().ok()?;
    let (mut depth, mut place, mut start) = (0_usize, 0, 0);
    for (at, letter) in pool.char_indices() {
        match letter {
            '[' | '{' | '(' => depth += 1,
            ']' | '}' | ')' if depth > 0 => depth -= 1,
            ',' | ']' if depth == 0 => {
                if place == id.checked_rem(count)? {
                    return address(&pool[start..at]);
                }
                if letter == ']' {
                    return None;
                }
                (place, start) = (place + 1, at + 1);
            }
            _ => {}
        }
    }
    None
}

/// The address in `Some(Stream { sys: 0x12ab, …`.
fn address(stream: &str) -> Option<usize> {
    let digits = stream.trim_start().strip_prefix("Some(Stream { sys: 0x")?;
    let end = digits.find(|letter: char| !letter.is_ascii_hexdigit())?;
    usize::from_str_radix(&digits[..end], 16).ok().filter(|&address| address != 0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Tensor};
    use burn_cubecl::CubeBackend;

    use super::*;

    const SIDE: usize = 2048;
    const BYTES: usize = SIDE * SIDE * size_of::<f32>();

    /// How a copy is put in line with CubeCL's launches.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Order {
        Own,
        Events,
        None,
    }

    /// Puts a copy of `from` into `to` on the lane.
    fn copy(lane: &Arc<Lane>, from: &CubeTensor, to: &CubeTensor, order: Order) {
        let work = |addresses: &[u64], stream: sys::CUstream| {
            // SAFETY: both tensors have so many bytes, and live until the stream has copied them.
            unsafe { result::memcpy_dtod_async(addresses[1], addresses[0], BYTES, stream) }
                .map_err(|error| format!("{error:?}"))
        };
        if order == Order::Events {
            // As if the stream could not be found.
            lane.own.lock().expect("no panic").insert(to.handle.stream.value, None);
        }
        if order != Order::None {
            return submit(lane.clone(), &[from, to], None, work);
        }
        let (lane, stream) = (lane.clone(), to.handle.stream);
        let bindings = [from, to].map(|tensor| tensor.handle.clone().binding());
        let runner = DeviceHandle::<Server>::new(RuntimeId::strip(to.device.to_id()));
        runner.submit(move |server: &mut Server| {
            let held = bindings.map(|binding| server.get_resource(binding, stream).expect("memory"));
            let addresses = held.each_ref().map(|resource| resource.resource().ptr);
            lane.enter().and_then(|()| work(&addresses, lane.stream.0 as sys::CUstream)).expect("a copy");
        });
    }

    /// Ten times: a number is written by a slow chain of launches, copied by a call, and read by a launch. Returns how
    /// many of the ten came out wrong.
    fn wrong(order: Order) -> usize {
        let device = burn::tensor::Device::cuda(0);
        let lane = Arc::new(Lane::new(0).expect("a lane"));
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
                copy(&lane, &primitive(&number), &primitive(&copied), order);
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
            assert_eq!([Order::Own, Order::Events].map(wrong), [0, 0]);
        }
        // The test has teeth: without the events, calls come too early or launches do.
        let without = wrong(Order::None);
        assert!(without > 0, "all 10 are right without order, too");
    }

    /// The launches of this thread and the calls between them are on one stream, so that no event is needed.
    #[test]
    #[ignore = "takes an NVIDIA GPU"]
    fn the_stream_of_launches_is_found() {
        let device = burn::tensor::Device::cuda(0);
        let x = Tensor::<1>::full([1000], 1.0, (&device, DType::F32));
        let primitive = x.try_into_primitive::<CubeBackend>().unwrap_or_else(|_| panic!("on the GPU"));
        let (lane, stream) = (lane(0).expect("a lane"), primitive.handle.stream);
        let runner = DeviceHandle::<Server>::new(RuntimeId::strip(primitive.device.to_id()));
        let found = runner
            .submit_blocking(move |server: &mut Server| lane.own_stream(server, stream.value).is_some())
            .expect("a runner");
        assert!(found);
    }

    #[test]
    fn a_stream_is_found_in_the_text_of_a_server() {
        let pool = |streams: &str| {
            format!("Server {{ x: [1], pool: StreamPool {{ streams: [{streams}], of: F, max_streams: 3 }} }}")
        };
        let stream = |address: &str| format!("Some(Stream {{ sys: {address}, of: [1, (2, 3)] }})");
        let text = pool(&format!("{}, None, {}", stream("0x1f0"), stream("0x2a0")));
        for (id, expected) in
            [(0, Some(0x1f0)), (1, None), (2, Some(0x2a0)), (3, Some(0x1f0)), (302, Some(0x2a0))]
        {
            assert_eq!(stream_in(&text, id), expected, "{id}");
        }
        assert_eq!(stream_in(&pool(&stream("0x0")), 0), None);
        assert_eq!(stream_in("Server { }", 0), None);
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
