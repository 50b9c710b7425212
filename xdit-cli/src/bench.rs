//! `xdit bench`: the speed of a model, by default of published size with random weights.

mod peak;
mod published;
mod work;

use std::time::Instant;

use burn::tensor::DType;
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;
use xdit_core::device::{hardware_name, memory};
use xdit_core::pipeline::{Cancel, Observer, Phase, Step};
use xdit_core::{Error, Result, profile};
use xdit_models::component::ModelIndex;

use crate::args::BenchArgs;
use crate::checkpoints::{built_in, put};
use crate::launcher;
use crate::parameters::Settings;
use crate::print;
use crate::progress::Progress;
use crate::report::{Stopwatch, peak_rss_bytes};
use crate::resolve::Invocation;
use crate::threads;
use work::Profile;

/// A BERT tokenizer of a few hundred tokens. The values of tokens do not change the time of a text encoder.
const BERT_TOKENIZER: [(&str, &[u8]); 3] = [
    ("special_tokens_map.json", include_bytes!("../published/bert-tokenizer/special_tokens_map.json")),
    ("tokenizer_config.json", include_bytes!("../published/bert-tokenizer/tokenizer_config.json")),
    ("vocab.txt", include_bytes!("../published/bert-tokenizer/vocab.txt")),
];

/// A CLIP tokenizer of a few hundred tokens.
const CLIP_TOKENIZER: [(&str, &[u8]); 4] = [
    ("merges.txt", include_bytes!("../published/clip-tokenizer/merges.txt")),
    ("special_tokens_map.json", include_bytes!("../published/clip-tokenizer/special_tokens_map.json")),
    ("tokenizer_config.json", include_bytes!("../published/clip-tokenizer/tokenizer_config.json")),
    ("vocab.json", include_bytes!("../published/clip-tokenizer/vocab.json")),
];

/// The output of `--report json`. Times are in seconds.
#[derive(Debug, Serialize)]
struct Report {
    /// The parameters of the pictures.
    parameters: Settings,
    /// Whether the weights are random.
    random_weights: bool,
    /// The number of ranks.
    ranks: usize,
    /// The number of denoising steps.
    steps: usize,
    /// The load times of the first picture, by component.
    load: Value,
    /// The time of the first picture, which includes loading.
    first_picture_s: f64,
    /// Text encoding.
    text_s: Spread,
    /// A denoising step: the time of all steps over their number.
    step_s: Spread,
    /// Decoding.
    decode_s: Spread,
    /// A picture, from the request to its pixels.
    picture_s: Spread,
    /// 10¹² additions and multiplications in the products, attention and convolutions of a step, on all ranks.
    step_tflop: f64,
    /// The speed of all ranks in the median step.
    tflops_per_s: f64,
    /// The speed relative to the peak of the ranks' GPUs for 16-bit numbers, where it is known.
    peak_share: Option<f64>,
    /// The peak memory use of the process; `None` if the system does not report it.
    peak_rss_bytes: Option<u64>,
    /// The devices whose memory is known.
    devices: Vec<Used>,
    /// The device time of another picture, with `--profile`.
    profile: Option<Profile>,
}

/// A device at the end.
#[derive(Debug, Serialize)]
struct Used {
    /// The driver's name for it.
    name: String,
    /// The memory that programs hold, which includes memory that this one keeps for reuse.
    used_bytes: u64,
}

/// The measured values of one quantity.
#[derive(Debug, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// # Panics
    /// If there are no values.
    fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Self { median: f64::midpoint(low, high), min: values[0], max: values[values.len() - 1] }
    }
}

/// Runs `xdit bench`.
///
/// # Errors
/// If the options are not valid, or the run fails.
pub fn run(args: BenchArgs) -> Result<()> {
    let BenchArgs { warmup, repeat, report, quiet, profile: profiled, .. } = args;
    if repeat == 0 {
        return Err(Error::usage("`--repeat 0` measures nothing").hint("the minimum is 1"));
    }
    let scratch = tempfile::tempdir()
        .map_err(|error| Error::failure(format!("cannot create a temporary folder: {error}")))?;
    let mut options = args.generate();
    threads::start(options.compute.threads)?;
    // The file is never written, but its path is checked.
    options.output = Some(scratch.path().join("bench.png"));
    let mut job = Invocation::resolve(&options, &launcher::Job::default())?;
    let mut progress = Progress::new(warmup + repeat, quiet);
    let random_weights = published::names().any(|name| name == job.model);
    let folder = if random_weights {
        job.load.random_weights = true;
        write(&job.model, &scratch)?;
        scratch.path().to_owned()
    } else {
        job.locate(&options, &mut progress).map_err(|error| match job.model.contains(['/', '\\']) {
            true => error,
            false => {
                let names: Vec<_> = published::names().map(|name| format!("`{name}`")).collect();
                error.hint(format!("models of published size are {}", names.join(", ")))
            }
        })?
    };
    if !ModelIndex::read(&folder)?.components.keys().any(|name| name.starts_with("tokenizer")) {
        // Without a tokenizer, a prompt is the number of a class.
        job.request.prompts = vec!["0".to_owned()];
    }
    let mut pipeline = xdit_models::open(&folder, &job.load)?;
    let resolved = pipeline.resolve(&job.request)?;
    let (mut pictures, mut flops) = (Vec::new(), 0.0);
    for index in 0..warmup + repeat {
        // Counting the work takes no time worth mentioning.
        if index == 0 {
            profile::start(profile::Detail::Work);
        }
        let begin = Instant::now();
        let mut watched = Watched { progress: &mut progress, stopwatch: Stopwatch::default() };
        pipeline.run(&resolved, &Cancel::new(), &mut watched)?;
        let seconds = watched.stopwatch.seconds();
        pictures.push((begin.elapsed().as_secs_f64(), seconds));
        if index == 0 {
            flops = work::denoising_flops(&profile::stop());
        }
        let kind = if index < warmup { "warm-up" } else { "measured" };
        progress.say(&format!(
            "picture {} of {}, {kind}: {:.3} s",
            index + 1,
            warmup + repeat,
            pictures[index].0
        ));
    }
    let profile = match profiled {
        true => {
            progress.say("another picture, with the times of operations");
            profile::start(profile::Detail::Times);
            let mut watched = Watched { progress: &mut progress, stopwatch: Stopwatch::default() };
            pipeline.run(&resolved, &Cancel::new(), &mut watched)?;
            Some(Profile::new(&profile::stop()))
        }
        false => None,
    };
    let steps = resolved.num_inference_steps;
    let measured = &pictures[warmup..];
    let phase = |name: &str| -> Vec<f64> {
        let value =
            |seconds: &Value| seconds[name].as_f64().or(seconds[name][0].as_f64()).unwrap_or_default();
        measured.iter().map(|(_, seconds)| value(seconds)).collect()
    };
    let step_s = Spread::new(phase("denoise").into_iter().map(|seconds| seconds / steps as f64));
    let (ranks, step_flops) = (resolved.plan.mesh.size(), flops / steps as f64);
    let names: Vec<_> = job.load.devices.iter().filter_map(hardware_name).collect();
    let is_half = job.load.dtype != DType::F32;
    let peak = names.first().filter(|_| is_half).and_then(|name| peak::peak(name));
    let on_devices = job.load.devices.iter().zip(&names).filter_map(|(device, name)| {
        let memory = memory(device)?;
        Some(Used { name: name.clone(), used_bytes: memory.total_bytes - memory.free_bytes })
    });
    let report_of = Report {
        parameters: job.settings(&resolved),
        random_weights,
        ranks,
        steps,
        load: pictures[0].1["load"].clone(),
        first_picture_s: pictures[0].0,
        text_s: Spread::new(phase("encode")),
        step_tflop: step_flops / 1e12,
        tflops_per_s: step_flops / step_s.median / 1e12,
        // Ranks that share a device share its peak.
        peak_share: peak.map(|peak| step_flops / step_s.median / (peak * ranks.min(names.len()) as f64)),
        step_s,
        decode_s: Spread::new(phase("decode")),
        picture_s: Spread::new(measured.iter().map(|(seconds, _)| *seconds)),
        peak_rss_bytes: peak_rss_bytes(),
        devices: on_devices.collect(),
        profile,
    };
    drop(scratch);
    match report {
        Some(_json) => {
            let json = serde_json::to_string_pretty(&report_of)
                .map_err(|error| Error::failure(format!("cannot write the report: {error}")))?;
            print(&format!("{json}\n"))
        }
        None => print(&table(&report_of)),
    }
}

/// The figures as a table.
fn table(report: &Report) -> String {
    let mut table = format!("{:<16}{:>12}{:>12}{:>12}\n", "seconds", "median", "min", "max");
    for (name, spread) in [
        ("text encoding", &report.text_s),
        ("step", &report.step_s),
        ("VAE decode", &report.decode_s),
        ("picture", &report.picture_s),
    ] {
        let Spread { median, min, max } = spread;
        table += &format!("{name:<16}{median:>12.4}{min:>12.4}{max:>12.4}\n");
    }
    table += &format!("first picture, with loading: {:.3} s\n", report.first_picture_s);
    table += &format!("denoising: {:.3} TFLOP a step, {:.3} TFLOP/s", report.step_tflop, report.tflops_per_s);
    table += &report
        .peak_share
        .map_or("\n".to_owned(), |share| format!(", {:.0} % of the GPUs' peak\n", share * 100.0));
    for Used { name, used_bytes } in &report.devices {
        table += &format!("memory in use on {name}: {}\n", HumanBytes(*used_bytes));
    }
    table + &report.profile.as_ref().map(Profile::table).unwrap_or_default()
}

/// Writes the model `name` of published size, with small tokenizers.
fn write(name: &str, folder: &TempDir) -> Result<()> {
    published::write(name, folder.path())
        .map_err(|error| Error::failure(format!("cannot write the model `{name}`: {error}")))?;
    let built_in = built_in::files()?;
    let t5: Vec<_> = built_in
        .iter()
        .filter_map(|(path, bytes)| Some((path.strip_prefix("tokenizer/")?, *bytes)))
        .collect();
    let index = published::described(name)["model_index"].clone();
    for (component, class) in index.as_object().expect("an object") {
        let files = match class[1].as_str() {
            Some("BertTokenizer") => &BERT_TOKENIZER[..],
            Some("CLIPTokenizer") => &CLIP_TOKENIZER[..],
            Some("T5Tokenizer" | "T5TokenizerFast") => &t5[..],
            _ => continue,
        };
        put(&folder.path().join(component), files)?;
    }
    Ok(())
}

/// Shows progress and measures times.
struct Watched<'a> {
    progress: &'a mut Progress,
    stopwatch: Stopwatch,
}

impl Observer for Watched<'_> {
    fn begin(&mut self, phase: Phase, at: Instant) {
        self.progress.begin(phase, at);
        self.stopwatch.begin(phase, at);
    }

    fn end(&mut self, phase: Phase, at: Instant) {
        self.stopwatch.end(phase, at);
        self.progress.end(phase, at);
    }

    fn step(&mut self, step: Step, at: Instant) {
        self.stopwatch.step(step, at);
        self.progress.step(step, at);
    }

    fn warn(&mut self, message: &str) {
        self.progress.warn(message);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};
    use xdit_core::{LoadOptions, Request};

    use super::*;

    /// Only headers are read, and nothing is computed.
    #[test]
    fn every_published_model_opens() {
        for name in published::names() {
            let folder = tempfile::tempdir().unwrap();
            write(name, &folder).unwrap();
            let options =
                LoadOptions { random_weights: true, ..LoadOptions::new(Device::flex(), DType::BF16) };
            let pipeline = xdit_models::open(folder.path(), &options).unwrap();
            let resolved = pipeline.resolve(&Request::new("")).unwrap();
            let side = if ["dit-xl", "latte"].contains(&name) { 512 } else { 1024 };
            assert_eq!(resolved.size, [side; 2], "{name}");
        }
    }

    #[test]
    fn a_spread_has_the_median() {
        let Spread { median, min, max } = Spread::new([3.0, 1.0, 2.0, 10.0]);
        assert_eq!((median, min, max), (2.5, 1.0, 10.0));
    }
}
