//! The report of a run: the times of its parts and ranks, and its outputs.

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

/// The output of `--report json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The parameters that all pictures share.
    pub parameters: Settings,
    /// The duration of each phase in seconds.
    pub seconds: Value,
    /// The number of denoising steps a second, over all pictures.
    pub it_per_s: Option<f64>,
    /// The time in seconds from the start of the program to the last file.
    pub total_s: f64,
    /// The peak memory use; `None` if the system does not report it.
    pub peak_rss_bytes: Option<u64>,
    /// The activity of each rank.
    pub ranks: Vec<Rank>,
    /// The warnings that the user was shown.
    pub warnings: Vec<String>,
    /// The pictures.
    pub outputs: Vec<Output>,
}

/// One picture, or one frame of a clip if frames have files of their own.
#[derive(Debug, Serialize)]
pub struct Output {
    /// The file with the picture, or with one of a clip's frames; all latents share one file.
    pub path: PathBuf,
    /// The seed of its noise.
    pub seed: u64,
    /// The prompt.
    pub prompt: String,
}

/// Measures the times of phases and steps.
#[derive(Debug, Default)]
pub struct Stopwatch {
    running: HashMap<Phase, Instant>,
    /// The completed phases, each with its start and duration.
    pub phases: Vec<(Phase, Instant, Duration)>,
    /// The reports of the ranks.
    pub ranks: Vec<RankReport>,
    /// The start and end of each step, by picture.
    steps: BTreeMap<usize, Vec<[Instant; 2]>>,
    /// The warnings so far.
    pub warnings: Vec<String>,
}

impl Stopwatch {
    /// The duration of each phase in seconds; phases of pictures are in the order of the pictures.
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

    /// The number of denoising steps a second during denoising. Simultaneous steps of several pictures are all
    /// counted.
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

/// The peak memory use of this process so far; `None` if the system does not report it.
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
