//! What a rank did, and for how long.

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::link::Meter;
pub use crate::link::{Traffic, Wait};
use crate::plan::schedule::Action;

/// What a rank does at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Loads its share of the model.
    Load,
    /// Sends the conditions of all pictures to the other ranks, or receives them.
    Broadcast,
    /// Makes the conditions of a picture ready.
    Prepare,
    /// Something of its schedule.
    Action(Action),
    /// Brings the latents of a picture together.
    Gather,
    /// Decodes its rows of a picture.
    Decode,
}

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reading weights.
    Load,
    /// Computing.
    Compute,
    /// Making messages of tensors, and tensors of messages.
    Communicate,
    /// Computing pictures of latents.
    Decode,
}

impl Activity {
    /// What its time is spent on, as far as it does not wait.
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

/// One activity. Times are those of the [`Meter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// What was done.
    pub activity: Activity,
    /// Index of the picture it was done for, if for one.
    pub image: Option<usize>,
    /// When it began.
    pub begin: Duration,
    /// When it ended.
    pub end: Duration,
    /// For how long nothing was done in it but wait for other ranks.
    pub waited: Duration,
    /// What was sent in it.
    pub sent_bytes: u64,
}

/// Where the time of a rank went. What is waited for inside a block counts as waiting and not as computing; tensors
/// that are packed and unpacked there count as computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Reading weights.
    pub load: Duration,
    /// Computing latents.
    pub compute: Duration,
    /// Waiting for what other ranks send.
    pub wait: Duration,
    /// Making messages of tensors, and tensors of messages.
    pub communication: Duration,
    /// Computing pictures of latents.
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

/// What a rank did.
#[derive(Clone, Debug)]
pub struct RankReport {
    /// The rank.
    pub rank: usize,
    /// When its time began.
    pub began: Instant,
    /// Where its time went.
    pub times: Times,
    /// What it sent and waited for.
    pub traffic: Traffic,
    /// Parameters of the transformer that it held, as they lie on its device. Those that are mapped from a file
    /// share their memory with the ranks of the same process.
    pub parameter_bytes: u64,
    /// The most keys and values that it kept from one call of attention to another.
    pub peak_kv_bytes: u64,
    /// Each activity, one after the other, if that was asked for.
    pub spans: Vec<Span>,
    /// Each wait inside them, if that was asked for.
    pub waits: Vec<Wait>,
}

/// Takes down what one rank does.
///
/// Time is the host's: where a device computes on after the host has gone on, a span ends too early, and what is
/// missing shows in the span that needs the result.
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
    /// Of `rank`, whose links are counted by `meter`: each activity if `detailed`, otherwise sums only.
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

    /// Says for which picture the next activities are.
    pub fn begin_image(&mut self, image: usize) {
        self.image = Some(image);
    }

    /// Says that parameters of so many bytes were loaded.
    pub fn hold_parameters(&mut self, bytes: u64) {
        self.parameter_bytes += bytes;
    }

    /// Says how many bytes of keys and values are kept now.
    pub fn keep_kv(&mut self, bytes: u64) {
        self.peak_kv_bytes = self.peak_kv_bytes.max(bytes);
    }

    /// Does `work` and takes down how long it took. Activities are not nested.
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

    /// All there is to say.
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
