//! How long a run took, part by part and rank by rank, and what came out.

mod ranks;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value, json};
use xdit_core::pipeline::{Observer, Phase, Step};
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
    /// Denoising steps a second, of all pictures.
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
    /// Each phase that is over: when it began and how long it took.
    pub phases: Vec<(Phase, Instant, Duration)>,
    /// What ranks told.
    pub ranks: Vec<RankReport>,
    /// Beginning and end of each step of each picture.
    steps: BTreeMap<usize, Vec<[Instant; 2]>>,
    /// What was warned of.
    pub warnings: Vec<String>,
}

impl Stopwatch {
    /// Seconds of each phase; those of pictures in the pictures' order.
    pub fn seconds(&self) -> Value {
        let mut load = Map::new();
        let mut encode = 0.0;
        let (mut denoise, mut decode) = (BTreeMap::new(), BTreeMap::new());
        for (phase, _, duration) in &self.phases {
            let seconds = duration.as_secs_f64();
            match phase {
                Phase::Load(component) => drop(load.insert((*component).to_owned(), json!(seconds))),
                Phase::Encode => encode += seconds,
                Phase::Denoise { image } => drop(denoise.insert(image, seconds)),
                Phase::Decode { image } => drop(decode.insert(image, seconds)),
            }
        }
        let in_order = |of_images: BTreeMap<_, f64>| of_images.into_values().collect::<Vec<_>>();
        let seconds = |steps: &Vec<[Instant; 2]>| -> Vec<f64> {
            steps.iter().map(|[begin, end]| (*end - *begin).as_secs_f64()).collect()
        };
        let steps: Vec<Vec<f64>> = self.steps.values().map(seconds).collect();
        json!({
            "load": load,
            "encode": encode,
            "denoise": in_order(denoise),
            "steps": steps,
            "decode": in_order(decode),
        })
    }

    /// Denoising steps a second, while there was any. Steps of several pictures at once count each.
    pub fn it_per_s(&self) -> Option<f64> {
        let mut steps: Vec<[Instant; 2]> = self.steps.values().flatten().copied().collect();
        steps.sort();
        let mut seconds = 0.0;
        let mut reached = steps.first()?[0];
        for &[begin, end] in &steps {
            seconds += end.saturating_duration_since(begin.max(reached)).as_secs_f64();
            reached = reached.max(end);
        }
        (seconds > 0.0).then(|| steps.len() as f64 / seconds)
    }
}

impl Observer for Stopwatch {
    fn begin(&mut self, phase: Phase, at: Instant) {
        self.running.insert(phase, at);
        if let Phase::Denoise { image } = phase {
            self.steps.insert(image, Vec::new());
        }
    }

    fn end(&mut self, phase: Phase, at: Instant) {
        if let Some(begin) = self.running.remove(&phase) {
            self.phases.push((phase, begin, at.saturating_duration_since(begin)));
        }
    }

    fn step(&mut self, Step { phase, .. }: Step, at: Instant) {
        let (Phase::Denoise { image }, Some(begin)) = (phase, self.running.get(&phase)) else { return };
        let steps = self.steps.entry(image).or_default();
        let begin = steps.last().map_or(*begin, |[_, end]| *end);
        steps.push([begin, at.max(begin)]);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pictures at once, and a pause before a third.
    #[test]
    fn steps_of_several_pictures_at_once_count_each() {
        let (start, mut stopwatch) = (Instant::now(), Stopwatch::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (image, begin, ends) in [(1, 0, [2, 4]), (0, 1, [3, 5]), (2, 15, [16, 20])] {
            let phase = Phase::Denoise { image };
            stopwatch.begin(phase, at(begin));
            for (index, end) in ends.into_iter().enumerate() {
                stopwatch.step(Step { phase, done: index + 1, of: 2 }, at(end));
            }
            stopwatch.end(phase, at(ends[1]));
        }
        let seconds = stopwatch.seconds();
        assert_eq!(seconds["denoise"], json!([4.0, 4.0, 5.0]));
        assert_eq!(seconds["steps"], json!([[2.0, 2.0], [2.0, 2.0], [1.0, 4.0]]));
        assert_eq!(stopwatch.it_per_s(), Some(0.6));
    }
}
