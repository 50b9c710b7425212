//! Counts the traffic of one rank, and measures its waits.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use xdit_comm::{Error, Group, Operation};

use super::{Count, InFlight, Link, Traffic, Transfer, Wait, bytes_of};

/// A link with a [`Meter`], which counts its operations and those of all links split from it.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Link>,
    meter: Arc<Meter>,
}

impl Counted {
    /// `inner`, counted by `meter`.
    #[expect(clippy::new_ret_no_self, reason = "a link is always shared")]
    pub fn new(inner: Arc<dyn Link>, meter: &Arc<Meter>) -> Arc<dyn Link> {
        Arc::new(Self { inner, meter: meter.clone() })
    }

    fn issue(
        &self,
        operation: Operation,
        count: Count,
        received_bytes: Option<u64>,
        issue: impl FnOnce(&dyn Link) -> Box<dyn InFlight>,
    ) -> Box<dyn InFlight> {
        let group = self.group().label().clone();
        self.meter.add(&group, operation, count);
        let inner = issue(&*self.inner);
        match received_bytes {
            Some(received_bytes) => {
                Box::new(Timed { inner, meter: self.meter.clone(), group, operation, received_bytes })
            }
            None => inner,
        }
    }
}

impl Link for Counted {
    fn group(&self) -> &Group {
        self.inner.group()
    }

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        Ok(self.inner.split(groups)?.map(|inner| Self::new(inner, &self.meter)))
    }

    fn channels(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        Ok(self.inner.channels(groups)?.map(|inner| Self::new(inner, &self.meter)))
    }

    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight> {
        let travelling = transfer.sends.iter().filter(|(to, _)| *to != self.rank());
        let count = Count {
            calls: 1,
            payload_bytes: transfer.payload_bytes,
            messages: travelling.clone().count() as u64,
            sent_bytes: travelling.map(|(_, x)| bytes_of(x)).sum(),
        };
        let received_bytes = transfer.receives.iter().map(|(_, slot)| slot.bytes()).sum();
        let received_bytes = (!transfer.receives.is_empty()).then_some(received_bytes);
        self.issue(transfer.operation, count, received_bytes, |link| link.transfer(transfer))
    }

    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight> {
        let (bytes, others) = (bytes_of(&x), self.group().size() as u64 - 1);
        let count = Count { calls: 1, payload_bytes: bytes, messages: others, sent_bytes: others * bytes };
        self.issue(Operation::AllReduce, count, Some(others * bytes), |link| link.sum(x))
    }

    fn check(&self) -> Result<(), Error> {
        self.inner.check()
    }
}

/// A transfer whose wait is measured.
struct Timed {
    inner: Box<dyn InFlight>,
    meter: Arc<Meter>,
    group: Arc<str>,
    operation: Operation,
    received_bytes: u64,
}

impl InFlight for Timed {
    fn is_complete(&mut self) -> bool {
        self.inner.is_complete()
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        let Self { inner, meter, group, operation, received_bytes } = *self;
        let begin = meter.now();
        let arrived = inner.wait()?;
        meter.waited(Wait { group, operation, begin, end: meter.now(), received_bytes });
        Ok(arrived)
    }
}

/// Counts the traffic and waits of one rank in all its groups.
///
/// Times are host times; waits of a device that runs asynchronously are not measured.
pub struct Meter {
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    started: Instant,
    keeps_waits: bool,
    totals: Mutex<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    traffic: Traffic,
    waits: Vec<Wait>,
    waited: Duration,
    sent_bytes: u64,
}

impl Meter {
    /// A meter whose time starts now. It keeps each wait if `keeps_waits`, otherwise only sums.
    pub fn new(keeps_waits: bool) -> Arc<Self> {
        let started = Instant::now();
        Self::with_clock(keeps_waits, move || started.elapsed())
    }

    pub(super) fn with_clock(
        keeps_waits: bool,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (clock, started) = (Box::new(clock), Instant::now());
        Arc::new(Self { clock, started, keeps_waits, totals: Mutex::default() })
    }

    /// Resets all counts to zero. Its clock is not reset.
    pub fn restart(&self) {
        *self.lock() = Totals::default();
    }

    /// The origin of its times.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The time since its start.
    pub fn now(&self) -> Duration {
        (self.clock)()
    }

    /// The time waited and the bytes sent so far.
    pub fn totals(&self) -> (Duration, u64) {
        let totals = self.lock();
        (totals.waited, totals.sent_bytes)
    }

    /// The traffic so far.
    pub fn traffic(&self) -> Traffic {
        self.lock().traffic.clone()
    }

    /// All waits so far, if they are kept.
    pub fn waits(&self) -> Vec<Wait> {
        self.lock().waits.clone()
    }

    fn add(&self, group: &Arc<str>, operation: Operation, count: Count) {
        let mut totals = self.lock();
        totals.sent_bytes += count.sent_bytes;
        totals.traffic.add(group, operation, count);
    }

    fn waited(&self, wait: Wait) {
        let mut totals = self.lock();
        totals.waited += wait.duration();
        totals.traffic.add_wait(&wait.group, wait.operation, wait.duration());
        if self.keeps_waits {
            totals.waits.push(wait);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meter({:?})", self.totals())
    }
}
