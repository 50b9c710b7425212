//! How long a run took, part by part and rank by rank, and what came out.

mod ranks;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value, json};
use xdit_core::pipeline::{Observer, Phase};
use xdit_core::run::record::RankReport;

use crate::parameters::Settings;

pub use ranks::{Rank, by_axis, ranks};

/// What `--report json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What all pictures were made with.
    pub parameters: Settings,
    /// Seconds of each phase.
    pub seconds: Value,
    /// Denoising steps a second, over all pictures.
    pub it_per_s: Option<f64>,
    /// Seconds from the start of the program to the last file.
    pub total_s: f64,
    /// The most memory that was in use; unknown on some systems.
    pub peak_rss_bytes: Option<u64>,
    /// What each rank did.
    pub ranks: Vec<Rank>,
    /// What the user was warned of.
    pub warnings: Vec<String>,
    /// The pictures.
    pub outputs: Vec<Output>,
}

/// One picture.
#[derive(Debug, Serialize)]
pub struct Output {
    /// The file that holds it; latents share one.
    pub path: PathBuf,
    /// Of its noise.
    pub seed: u64,
    /// What was drawn.
    pub prompt: String,
}

/// Takes the time of each phase and step.
#[derive(Debug, Default)]
pub struct Stopwatch {
    running: HashMap<Phase, Instant>,
    last_step: Option<Instant>,
    /// Each phase that is over: when it began and how long it took.
    pub phases: Vec<(Phase, Instant, Duration)>,
    /// What ranks told.
    pub ranks: Vec<RankReport>,
    /// Of each picture.
    steps: Vec<Vec<Duration>>,
    /// What was warned of.
    pub warnings: Vec<String>,
}

impl Stopwatch {
    /// Seconds of each phase.
    pub fn seconds(&self) -> Value {
        let mut load = Map::new();
        let mut encode = 0.0;
        let (mut denoise, mut decode) = (Vec::new(), Vec::new());
        for (phase, _, duration) in &self.phases {
            let seconds = duration.as_secs_f64();
            match phase {
                Phase::Load(component) => drop(load.insert((*component).to_owned(), json!(seconds))),
                Phase::Encode => encode += seconds,
                Phase::Denoise { .. } => denoise.push(seconds),
                Phase::Decode { .. } => decode.push(seconds),
            }
        }
        let steps: Vec<Vec<f64>> =
            self.steps.iter().map(|steps| steps.iter().map(Duration::as_secs_f64).collect()).collect();
        json!({ "load": load, "encode": encode, "denoise": denoise, "steps": steps, "decode": decode })
    }

    /// Denoising steps a second.
    pub fn it_per_s(&self) -> Option<f64> {
        let steps = self.steps.iter().flatten();
        let seconds = steps.clone().sum::<Duration>().as_secs_f64();
        (seconds > 0.0).then(|| steps.count() as f64 / seconds)
    }
}

impl Observer for Stopwatch {
    fn begin(&mut self, phase: Phase) {
        let now = Instant::now();
        self.running.insert(phase, now);
        self.last_step = matches!(phase, Phase::Denoise { .. }).then_some(now);
        if self.last_step.is_some() {
            self.steps.push(Vec::new());
        }
    }

    fn end(&mut self, phase: Phase) {
        if let Some(begin) = self.running.remove(&phase) {
            self.phases.push((phase, begin, begin.elapsed()));
        }
        self.last_step = None;
    }

    fn step(&mut self, _: usize, _: usize) {
        let now = Instant::now();
        if let (Some(last), Some(steps)) = (self.last_step, self.steps.last_mut()) {
            steps.push(now - last);
            self.last_step = Some(now);
        }
    }

    fn warn(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }

    fn rank(&mut self, report: RankReport) {
        self.ranks.push(report);
    }
}

/// The most memory that this process had in use so far, where the system tells.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
