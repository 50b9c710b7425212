//! Records a rank's activities and their times.

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::link::Meter;
pub use crate::link::{Traffic, Wait};
use crate::plan::schedule::Action;

/// An activity of a rank. A rank has one activity at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Loads a component, or the rank's share of it.
    Load,
    /// Sends the conditions of all pictures to the other ranks, or receives them.
    Broadcast,
    /// Prepares contexts for the steps of a picture.
    Prepare,
    /// Carries out an action of its schedule.
    Action(Action),
    /// Gathers the final latents of a picture.
    Gather,
    /// Decodes its rows of a picture.
    Decode,
}

/// The purpose that time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reading weights.
    Load,
    /// Computing latents.
    Compute,
    /// Packing tensors into messages and unpacking them.
    Communicate,
    /// Decoding latents into pictures.
    Decode,
}

impl Activity {
    /// The purpose of its time, apart from waits.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Load => Kind::Load,
            Self::Prepare => Kind::Compute,
            Self::Decode => Kind::Decode,
            Self::Broadcast | Self::Gather => Kind::Communicate,
            Self::Action(action) => match action {
                Action::Embed { .. } | Action::Blocks { .. } => Kind::Compute,
                Action::Finish { .. } | Action::Advance { .. } => Kind::Compute,
                Action::ReceiveLatents { .. } | Action::ReceiveHidden { .. } => Kind::Communicate,
                Action::ReceiveSkip { .. } | Action::SendSkip { .. } => Kind::Communicate,
                Action::SendHidden { .. } | Action::SendLatents { .. } => Kind::Communicate,
            },
        }
    }
}

/// The time span of one activity. Times are those of the [`Meter`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The activity.
    pub activity: Activity,
    /// The index of its picture, if it belongs to one.
    pub image: Option<usize>,
    /// The time of its start.
    pub begin: Duration,
    /// The time of its end.
    pub end: Duration,
    /// The part of the span that was spent waiting for other ranks.
    pub waited: Duration,
    /// The bytes sent in it.
    pub sent_bytes: u64,
}

/// A rank's time by purpose. Waits inside a block count as waiting, not as computing; packing and unpacking of tensors
/// inside a block count as computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Reading weights.
    pub load: Duration,
    /// Computing latents.
    pub compute: Duration,
    /// Waiting for messages of other ranks.
    pub wait: Duration,
    /// Packing tensors into messages and unpacking them.
    pub communication: Duration,
    /// Decoding latents into pictures.
    pub decode: Duration,
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        self.load += other.load;
        self.compute += other.compute;
        self.wait += other.wait;
        self.communication += other.communication;
        self.decode += other.decode;
    }
}

/// The report of a rank on one job.
#[derive(Clone, Debug)]
pub struct RankReport {
    /// The rank.
    pub rank: usize,
    /// The origin of its times.
    pub began: Instant,
    /// Its time by purpose.
    pub times: Times,
    /// Its traffic and waits.
    pub traffic: Traffic,
    /// Bytes of the transformer parameters that it held on its device. Parameters that are mapped from a file share
    /// their memory with other ranks of the same process.
    pub parameter_bytes: u64,
    /// The most bytes of keys and values that it kept between calls of attention.
    pub peak_kv_bytes: u64,
    /// All activities in order, if details were requested.
    pub spans: Vec<Span>,
    /// All waits inside them, if details were requested.
    pub waits: Vec<Wait>,
}

/// Records the activities of one rank.
///
/// Times are host times. If a device still computes when the host continues, a span ends too early, and the rest of its
/// time appears in the span that needs the result.
#[derive(Debug)]
pub struct Recorder {
    rank: usize,
    meter: Arc<Meter>,
    detailed: bool,
    image: Option<usize>,
    times: Times,
    parameter_bytes: u64,
    peak_kv_bytes: u64,
    spans: Vec<Span>,
}

impl Recorder {
    /// A recorder of `rank`, whose links are counted by `meter`. It keeps each activity if `detailed`, otherwise only
    /// sums.
    pub fn new(rank: usize, meter: Arc<Meter>, detailed: bool) -> Self {
        Self {
            rank,
            meter,
            detailed,
            image: None,
            times: Times::default(),
            parameter_bytes: 0,
            peak_kv_bytes: 0,
            spans: Vec::new(),
        }
    }

    /// Sets the picture of the following activities.
    pub fn begin_image(&mut self, image: usize) {
        self.image = Some(image);
    }

    /// Adds `bytes` of parameters that the rank holds.
    pub fn hold_parameters(&mut self, bytes: u64) {
        self.parameter_bytes += bytes;
    }

    /// Records that `bytes` of keys and values are kept now.
    pub fn keep_kv(&mut self, bytes: u64) {
        self.peak_kv_bytes = self.peak_kv_bytes.max(bytes);
    }

    /// Runs `work` and records its time as `activity`. Activities must not be nested.
    pub fn time<R>(&mut self, activity: Activity, work: impl FnOnce() -> R) -> R {
        let begin = self.meter.now();
        let (waited_before, sent_before) = self.meter.totals();
        let result = work();
        let (waited, sent) = self.meter.totals();
        let (end, waited) = (self.meter.now(), waited - waited_before);
        let busy = (end - begin).saturating_sub(waited);
        self.times.wait += waited;
        match activity.kind() {
            Kind::Load => self.times.load += busy,
            Kind::Compute => self.times.compute += busy,
            Kind::Communicate => self.times.communication += busy,
            Kind::Decode => self.times.decode += busy,
        }
        if self.detailed {
            let sent_bytes = sent - sent_before;
            self.spans.push(Span { activity, image: self.image, begin, end, waited, sent_bytes });
        }
        result
    }

    /// Returns the report.
    pub fn report(self) -> RankReport {
        RankReport {
            rank: self.rank,
            began: self.meter.started(),
            times: self.times,
            traffic: self.meter.traffic(),
            parameter_bytes: self.parameter_bytes,
            peak_kv_bytes: self.peak_kv_bytes,
            spans: self.spans,
            waits: self.meter.waits(),
        }
    }
}
