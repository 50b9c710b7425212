//! `xdit generate`: a job, a pipeline, files.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::tensor::TensorData;
use xdit_core::pipeline::{Cancel, Completed, Observer, Phase, Step};
use xdit_core::run::record::RankReport;
use xdit_core::{Error, Result};

use crate::args::{GenerateArgs, OutputType};
use crate::model::locate;
use crate::output::{encode_latents, encode_png, write_file};
use crate::parameters::{Parameters, Settings};
use crate::print;
use crate::progress::Progress;
use crate::report::{Output, Report, Stopwatch, peak_rss_bytes, ranks};
use crate::resolve::Invocation;
use crate::trace::Trace;

/// Carries `xdit generate` out.
///
/// # Errors
/// If it cannot.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let start = Instant::now();
    let job = Invocation::resolve(args)?;
    let mut progress = Progress::new(job.request.images(), args.quiet);
    let folder = locate(&job.model, job.revision.as_deref(), job.load.variant.as_deref(), &mut progress)?;
    let mut pipeline = xdit_models::open(&folder, &job.load)?;
    let resolved = pipeline.resolve(&job.request)?;
    let settings = job.settings(&resolved);
    let cancel = Cancel::new();
    let mut watched = Watched {
        progress,
        stopwatch: Stopwatch::default(),
        details: job.trace.is_some(),
        saver: Saver {
            job: &job,
            settings: &settings,
            announces: args.report.is_none(),
            latents: BTreeMap::new(),
            cancel: &cancel,
            failure: None,
        },
    };
    let end = pipeline.run(&resolved, &cancel, &mut watched);
    let Watched { progress, stopwatch, saver, .. } = watched;
    saver.finish(end)?;

    let mesh = resolved.plan.mesh;
    if let Some(file) = &job.trace {
        let (phases, ranks) = (stopwatch.phases.clone(), stopwatch.ranks.clone());
        file.save(&Trace { start, mesh, phases, ranks })?;
    }
    let seconds = start.elapsed().as_secs_f64();
    progress.say(&format!("done in {seconds:.2} s"));
    let Some(_json) = args.report else { return Ok(()) };
    let outputs = (0..job.request.images()).map(|index| {
        let Parameters { prompt, seed, .. } = job.parameters(&settings, index);
        Output { path: job.outputs.path(index).to_owned(), seed, prompt }
    });
    let report = Report {
        seconds: stopwatch.seconds(),
        it_per_s: stopwatch.it_per_s(),
        total_s: seconds,
        peak_rss_bytes: peak_rss_bytes(),
        ranks: ranks(&stopwatch.ranks, &mesh),
        warnings: stopwatch.warnings,
        outputs: outputs.collect(),
        parameters: settings.clone(),
    };
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| Error::failure(format!("cannot write the report: {error}")))?;
    print(&format!("{json}\n"))
}

/// Writes each picture when it is done.
struct Saver<'a> {
    job: &'a Invocation,
    settings: &'a Settings,
    /// Whether the name of each file is printed.
    announces: bool,
    /// Latents of pictures that are done: all go into one file.
    latents: BTreeMap<usize, TensorData>,
    /// Ends the run if a file cannot be written.
    cancel: &'a Cancel,
    failure: Option<Error>,
}

impl Saver<'_> {
    fn save(&mut self, Completed { image, latents, picture }: Completed) -> Result<()> {
        match (self.job.outputs.output_type, picture) {
            (OutputType::Png, Some(picture)) => {
                let parameters = self.job.parameters(self.settings, image);
                self.write(image, &encode_png(&picture, &parameters))
            }
            _ => {
                self.latents.insert(image, latents);
                Ok(())
            }
        }
    }

    fn write(&self, image: usize, bytes: &[u8]) -> Result<()> {
        let path = self.job.outputs.path(image);
        write_file(path, bytes)?;
        if self.announces { print(&format!("{}\n", path.display())) } else { Ok(()) }
    }

    /// Writes what belongs into one file, if the run came to a good `end`.
    fn finish(mut self, end: Result<()>) -> Result<()> {
        // A file that could not be written ended the run, not the other way round.
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        end?;
        if self.latents.is_empty() {
            return Ok(());
        }
        let latents: Vec<TensorData> = std::mem::take(&mut self.latents).into_values().collect();
        self.write(0, &encode_latents(&latents))
    }
}

/// Shows progress, takes the time, and saves pictures.
struct Watched<'a> {
    progress: Progress,
    stopwatch: Stopwatch,
    /// Whether each activity of each rank is wanted.
    details: bool,
    saver: Saver<'a>,
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
        self.stopwatch.warn(message);
        self.progress.warn(message);
    }

    fn completed(&mut self, completed: Completed) {
        if let Err(error) = self.saver.save(completed) {
            self.saver.failure.get_or_insert(error);
            self.saver.cancel.cancel();
        }
    }

    fn rank(&mut self, report: RankReport) {
        self.stopwatch.rank(report);
    }

    fn wants_details(&self) -> bool {
        self.details
    }
}
