//! Moments in the work of a stream of CUDA.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use burn::tensor::Device;
use cubecl_environment::stream::StreamId;
use cudarc::driver::{result, sys};

use super::order::{self, Address, Lane, Server, runner, stream_of};

/// The end of all that a thread has submitted to a device so far.
pub(crate) struct Stamp {
    lane: Arc<Lane>,
    event: Arc<OnceLock<Address>>,
    device: cubecl::Device,
}

impl Stamp {
    /// The present of this thread's stream; `None` if `device` is none of CUDA's.
    pub(crate) fn new(device: &Device) -> Option<Self> {
        let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() else { return None };
        let cubecl::Device::Cuda(cuda) = device else { return None };
        let lane = order::lane(cuda.index).ok()?;
        let (thread, event) = (StreamId::current(), Arc::new(OnceLock::new()));
        let (at, recorded) = (lane.clone(), event.clone());
        runner(device).submit(move |server: &mut Server| {
            let mut record = || -> Result<Address, String> {
                let stream = stream_of(server, thread)?;
                at.enter()?;
                let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
                    .map_err(|error| format!("{error:?}"))?;
                // SAFETY: event and stream belong to the context that is current.
                unsafe { result::event::record(event, stream) }.map_err(|error| format!("{error:?}"))?;
                Ok(Address(event as usize))
            };
            // A stream that does not exist yet has no work to measure.
            if let Ok(event) = record() {
                let _ = recorded.set(event);
            }
        });
        Some(Self { lane, event, device: device.clone() })
    }

    /// The time from here to `end`, once the device has reached it; `None` if either was not recorded.
    pub(crate) fn until(&self, end: &Self) -> Option<Duration> {
        // Both have been submitted before.
        order::on_runner(&self.device, || ())?;
        self.lane.enter().ok()?;
        let [begin, end] = [self, end].map(|stamp| stamp.event.get().map(|event| event.0 as sys::CUevent));
        let (begin, end) = (begin?, end?);
        // SAFETY: both events exist, and their context is current.
        let milliseconds = unsafe {
            result::event::synchronize(end).ok()?;
            result::event::elapsed(begin, end).ok()?
        };
        Some(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Stamp {
    fn drop(&mut self) {
        if let Some(event) = self.event.get()
            && self.lane.enter().is_ok()
        {
            // SAFETY: nobody else has the event. The driver destroys it once the stream has passed it.
            let _ = unsafe { result::event::destroy(event.0 as sys::CUevent) };
        }
    }
}
