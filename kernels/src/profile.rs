//! The work and the times of operations, for benchmarks.
//!
//! A profile belongs to the process: it records the operations of all threads between [`start`] and [`stop`]. While none
//! is recorded, an operation costs one look at a number more.
//!
//! Times are those of the device. On NVIDIA's GPUs they lie between two events of the stream, and nothing waits; other
//! GPUs are waited for before and after each operation, which is slower than an ordinary run.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};

#[cfg(feature = "cuda")]
use crate::vendor::clock;

/// What is recorded of each operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Its work.
    Work,
    /// Its work and its time.
    Times,
}

/// A part of a model or a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Its name, such as `block`.
    pub name: &'static str,
    /// Its index, if there are several of the name.
    pub index: Option<usize>,
}

/// Calls that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// The part to which they belong, if any.
    pub part: Option<Part>,
    /// The operation; `None` is the whole part, with operations that are not recorded by themselves.
    pub operation: Option<&'static str>,
    /// The sizes that determine the work of a call. Their meaning depends on the operation.
    pub sizes: Vec<usize>,
}

/// The sum over the calls of a site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// The number of calls.
    pub calls: usize,
    /// Additions and multiplications of products, attention and convolutions; other operations count as none.
    pub flops: f64,
    /// The time on the device, if [`Detail::Times`] was recorded.
    pub time: Duration,
}

struct Record {
    site: Site,
    flops: f64,
    span: Option<[Stamp; 2]>,
}

/// A moment in the work of a device.
enum Stamp {
    Host(Instant),
    #[cfg(feature = "cuda")]
    Event(clock::Stamp),
}

static DETAIL: AtomicU8 = AtomicU8::new(OFF);
const OFF: u8 = 0;
const WORK: u8 = 1;
const TIMES: u8 = 2;

static RECORDS: Mutex<Vec<Record>> = Mutex::new(Vec::new());

thread_local! {
    /// The part that this thread is in.
    static PART: Cell<Option<Part>> = const { Cell::new(None) };
    /// Whether this thread is in an operation. Operations within another one belong to it.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn records() -> MutexGuard<'static, Vec<Record>> {
    RECORDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a profile. An earlier one that was not stopped is lost.
pub fn start(detail: Detail) {
    records().clear();
    let detail = match detail {
        Detail::Work => WORK,
        Detail::Times => TIMES,
    };
    DETAIL.store(detail, Ordering::Release);
}

/// Ends the profile, waits for the devices, and returns the sums of all sites.
pub fn stop() -> BTreeMap<Site, Sum> {
    DETAIL.store(OFF, Ordering::Release);
    let mut sums = BTreeMap::<Site, Sum>::new();
    for Record { site, flops, span } in std::mem::take(&mut *records()) {
        let sum = sums.entry(site).or_default();
        sum.calls += 1;
        sum.flops += flops;
        sum.time += span.and_then(between).unwrap_or_default();
    }
    sums
}

/// Runs `work`, which is the part `name` on `device`.
pub fn part<R>(name: &'static str, index: Option<usize>, device: &Device, work: impl FnOnce() -> R) -> R {
    if DETAIL.load(Ordering::Acquire) == OFF {
        return work();
    }
    let outer = PART.replace(Some(Part { name, index }));
    let call = Call::begin(None, device, (Vec::new(), 0.0));
    let result = work();
    drop(call);
    PART.set(outer);
    result
}

/// Begins the operation `name` on the device of `x`; it ends when the result is dropped. `describe` returns the sizes
/// that determine its work, and the additions and multiplications.
#[must_use = "the operation ends with it"]
pub(crate) fn operation<const D: usize>(
    name: &'static str,
    x: &Tensor<D>,
    describe: impl FnOnce() -> (Vec<usize>, f64),
) -> Option<Call> {
    if DETAIL.load(Ordering::Relaxed) == OFF || INSIDE.get() {
        return None;
    }
    INSIDE.set(true);
    Some(Call::begin(Some(name), &x.device(), describe()))
}

/// As [`operation`], of an operation that only moves the elements of `x`, or changes each.
pub(crate) fn light<const D: usize>(name: &'static str, x: &Tensor<D>) -> Option<Call> {
    operation(name, x, || (x.dims().to_vec(), 0.0))
}

/// A call in progress.
pub(crate) struct Call {
    site: Site,
    flops: f64,
    begin: Option<(Stamp, Device)>,
}

impl Call {
    fn begin(operation: Option<&'static str>, device: &Device, (sizes, flops): (Vec<usize>, f64)) -> Self {
        let timed = DETAIL.load(Ordering::Relaxed) == TIMES;
        let site = Site { part: PART.get(), operation, sizes };
        Self { site, flops, begin: timed.then(|| (Stamp::new(device), device.clone())) }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.site.operation.is_some() {
            INSIDE.set(false);
        }
        let span = self.begin.take().map(|(begin, device)| [begin, Stamp::new(&device)]);
        let site = Site { sizes: std::mem::take(&mut self.site.sizes), ..self.site };
        records().push(Record { site, flops: self.flops, span });
    }
}

impl Stamp {
    fn new(device: &Device) -> Self {
        #[cfg(feature = "cuda")]
        if let Some(stamp) = clock::Stamp::new(device) {
            return Self::Event(stamp);
        }
        // A device that fails says so where a result is read.
        drop(device.sync());
        Self::Host(Instant::now())
    }
}

fn between(span: [Stamp; 2]) -> Option<Duration> {
    match span {
        [Stamp::Host(begin), Stamp::Host(end)] => Some(end - begin),
        #[cfg(feature = "cuda")]
        [Stamp::Event(begin), Stamp::Event(end)] => begin.until(&end),
        #[cfg(feature = "cuda")]
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::{attention, linear};

    /// Other tests run operations at the same time, so only sites of a part of this test count.
    #[test]
    fn operations_are_recorded_by_part() {
        let device = Device::flex();
        let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, (&device, DType::F32));
        let run = || {
            part("tested", Some(3), &device, || {
                linear(ones([4, 8]), ones([2, 8]), None);
                linear(ones([4, 8]), ones([2, 8]), None);
                let x = Tensor::<4>::ones([1, 5, 2, 8], (&device, DType::F32));
                attention(x.clone(), x.clone(), x, None, 1.0)
            })
        };
        run();
        start(Detail::Times);
        run();
        let mut sums = stop();
        let tested = Part { name: "tested", index: Some(3) };
        sums.retain(|site, _| site.part == Some(tested));
        let found: Vec<_> = sums
            .iter()
            .map(|(site, sum)| (site.operation, site.sizes.clone(), sum.calls, sum.flops))
            .collect();
        let expected = [
            (None, vec![], 1, 0.0),
            (Some("attention"), vec![1, 5, 5, 2, 8], 1, (4 * 5 * 5 * 2 * 8) as f64),
            (Some("linear"), vec![4, 8, 2], 2, (2 * 2 * 4 * 8 * 2) as f64),
        ];
        assert_eq!(found, expected);
        let time = |operation: Option<&str>| -> Duration {
            sums.iter().filter(|(site, _)| site.operation == operation).map(|(_, sum)| sum.time).sum()
        };
        assert!(time(Some("linear")) > Duration::ZERO);
        assert!(time(None) >= time(Some("linear")) + time(Some("attention")));
    }
}
