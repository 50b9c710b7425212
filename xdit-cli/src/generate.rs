//! `xdit generate`: a job, a pipeline, files.

use std::time::Instant;

use xdit_core::pipeline::{Generated, Observer, Phase};
use xdit_core::run::record::RankReport;
use xdit_core::{Error, Result};

use crate::args::{GenerateArgs, OutputType};
use crate::model::locate;
use crate::output::{encode_latents, encode_png};
use crate::parameters::Parameters;
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
    let mut observer = Watched {
        progress: Progress::new(job.request.images(), args.quiet),
        stopwatch: Stopwatch::default(),
        details: job.trace.is_some(),
    };
    let folder =
        locate(&job.model, job.revision.as_deref(), job.load.variant.as_deref(), &mut observer.progress)?;
    let mut pipeline = xdit_models::open(&folder, &job.load)?;
    let resolved = pipeline.resolve(&job.request)?;
    let settings = job.settings(&resolved);
    let parameters = job.parameters(&settings);
    let generated = pipeline.generate(&job.request, &mut observer)?;
    job.outputs.save(&contents(job.outputs.output_type, &generated, &parameters))?;

    let Watched { progress, stopwatch, .. } = observer;
    let mesh = resolved.plan.mesh;
    if let Some(file) = &job.trace {
        let (phases, ranks) = (stopwatch.phases.clone(), stopwatch.ranks.clone());
        file.save(&Trace { start, mesh, phases, ranks })?;
    }
    let seconds = start.elapsed().as_secs_f64();
    progress.say(&format!("done in {seconds:.2} s"));
    let outputs = parameters.into_iter().enumerate().map(|(index, Parameters { prompt, seed, .. })| {
        let paths = &job.outputs.paths;
        Output { path: paths[index.min(paths.len() - 1)].clone(), seed, prompt }
    });
    match args.report {
        None => job.outputs.paths.iter().try_for_each(|path| print(&format!("{}\n", path.display()))),
        Some(_json) => {
            let report = Report {
                parameters: settings,
                seconds: stopwatch.seconds(),
                it_per_s: stopwatch.it_per_s(),
                total_s: seconds,
                peak_rss_bytes: peak_rss_bytes(),
                ranks: ranks(&stopwatch.ranks, &mesh),
                warnings: stopwatch.warnings,
                outputs: outputs.collect(),
            };
            let json = serde_json::to_string_pretty(&report)
                .map_err(|error| Error::failure(format!("cannot write the report: {error}")))?;
            print(&format!("{json}\n"))
        }
    }
}

/// The bytes of each file.
fn contents(output_type: OutputType, generated: &Generated, parameters: &[Parameters]) -> Vec<Vec<u8>> {
    match output_type {
        OutputType::Latent => vec![encode_latents(&generated.latents)],
        OutputType::Png => generated
            .pictures
            .iter()
            .zip(parameters)
            .map(|(picture, parameters)| encode_png(picture, parameters))
            .collect(),
    }
}

/// Shows progress and takes the time.
struct Watched {
    progress: Progress,
    stopwatch: Stopwatch,
    /// Whether each activity of each rank is wanted.
    details: bool,
}

impl Observer for Watched {
    fn begin(&mut self, phase: Phase) {
        self.progress.begin(phase);
        self.stopwatch.begin(phase);
    }

    fn end(&mut self, phase: Phase) {
        self.stopwatch.end(phase);
        self.progress.end(phase);
    }

    fn step(&mut self, done: usize, of: usize) {
        self.stopwatch.step(done, of);
        self.progress.step(done, of);
    }

    fn warn(&mut self, message: &str) {
        self.stopwatch.warn(message);
        self.progress.warn(message);
    }

    fn rank(&mut self, report: RankReport) {
        self.stopwatch.rank(report);
    }

    fn wants_details(&self) -> bool {
        self.details
    }
}
