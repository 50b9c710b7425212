//! `xdit generate`: resolves the options, runs the pipeline and writes the files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::Instant;

use rayon::prelude::*;
use xdit_core::pipeline::{Cancel, Completed, Observer, Phase, Picture, Preview, Step};
use xdit_core::run::record::RankReport;
use xdit_core::{Error, Result};

use crate::args::{GenerateArgs, OutputType, Seed};
use crate::launcher;
use crate::output::{
    check_format, encode, finish_latents, holds_parameters, is_standard, put_latents, write_file, write_files,
};
use crate::parameters::{Parameters, Settings};
use crate::progress::{Progress, say};
use crate::report::{Output, Report, Stopwatch, peak_rss_bytes, ranks};
use crate::resolve::Invocation;
use crate::threads;
use crate::trace::Trace;
use crate::{print, print_bytes};

/// Runs `xdit generate`.
///
/// # Errors
/// If the options are not valid, the run fails, or a file cannot be written.
pub fn run(args: &GenerateArgs) -> Result<()> {
    threads::start(args.compute.threads)?;
    let processes = launcher::Job::meet(&args.processes)?;
    let end = generate(args, &processes);
    processes.finish(end)
}

/// The part of this process.
fn generate(args: &GenerateArgs, processes: &launcher::Job) -> Result<()> {
    let (start, leads) = (Instant::now(), processes.leads());
    let job = Invocation::resolve(args, processes)?;
    let mut progress = Progress::new(job.request.images(), args.quiet || !leads);
    let mut folder = || job.locate(args, &mut progress);
    // One process downloads the model; the others of its host find it.
    let folder = processes.first_then_others(&mut folder)?;
    let mut pipeline = xdit_models::open(&folder, &job.load)?;
    let resolved = pipeline.resolve(&job.request)?;
    let frames = resolved.frames.unwrap_or(1);
    let together = if job.outputs.splits_clips() { 1 } else { frames };
    // Only the first process has the paths.
    if leads {
        check_format(job.output_type, resolved.size, together, job.fps())?;
        job.outputs.check(frames)?;
    }
    let settings = job.settings(&resolved);
    let details = args.trace.is_some();
    if let Some(all) = &processes.processes {
        launcher::agree(all, &launcher::described(&resolved, &settings, &folder, details))?;
    }
    if args.seed.contains(&Seed::Random) {
        progress.say(&format!("seed {}", job.request.seed));
    }
    let cancel = Cancel::new();
    for warning in job.warnings.iter().filter(|_| leads) {
        progress.warn(warning);
    }
    if leads
        && !args.no_metadata
        && !job.all_parameters(&settings).all(|all| holds_parameters(job.output_type, &all))
    {
        progress
            .warn("the parameters are too long for the format, so files will be without them; PNG has room");
    }
    let mut watched = Watched {
        progress,
        stopwatch: Stopwatch::default(),
        details,
        warned: false,
        saver: Saver {
            job: &job,
            settings: &settings,
            metadata: !args.no_metadata,
            announces: args.report.is_none(),
            cancel: &cancel,
            failure: None,
            previews: BTreeSet::new(),
        },
    };
    let end = pipeline.run(&resolved, &cancel, &mut watched);
    let Watched { progress, stopwatch, saver, .. } = watched;
    saver.finish(end)?;

    let mesh = resolved.plan.mesh;
    if let Some(file) = job.trace.as_ref().filter(|_| leads) {
        let (phases, ranks) = (stopwatch.phases.clone(), stopwatch.ranks.clone());
        file.save(&Trace { start, mesh, phases, ranks })?;
    }
    if !leads {
        return Ok(());
    }
    let seconds = start.elapsed().as_secs_f64();
    progress.say(&format!("done in {seconds:.2} s"));
    let Some(_json) = args.report else { return Ok(()) };
    let mut outputs = Vec::new();
    for (index, Parameters { prompt, seed, .. }) in job.all_parameters(&settings).enumerate() {
        let files = job.outputs.files(index, frames)?;
        outputs.extend(files.into_iter().map(|path| Output { path, seed, prompt: prompt.clone() }));
    }
    let report = Report {
        seconds: stopwatch.seconds(),
        it_per_s: stopwatch.it_per_s(),
        total_s: seconds,
        peak_rss_bytes: peak_rss_bytes(),
        ranks: ranks(&stopwatch.ranks, &mesh),
        warnings: stopwatch.warnings,
        outputs,
        parameters: settings.clone(),
    };
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| Error::failure(format!("cannot write the report: {error}")))?;
    print(&format!("{json}\n"))
}

/// Writes each picture as soon as it is completed.
struct Saver<'a> {
    job: &'a Invocation,
    settings: &'a Settings,
    /// Whether pictures contain their parameters.
    metadata: bool,
    /// Whether the path of each file is printed.
    announces: bool,
    /// Cancels the run if a file cannot be written.
    cancel: &'a Cancel,
    failure: Option<Error>,
    /// The previews of pictures that are not there yet.
    previews: BTreeSet<PathBuf>,
}

impl Saver<'_> {
    fn save(&mut self, Completed { image, latents, frames }: Completed) -> Result<()> {
        let path = self.job.outputs.path(image);
        if frames.is_empty() {
            return put_latents(path, &latents, image, self.job.request.images());
        }
        // The picture takes the place of its preview.
        if let Some(preview) = self.job.outputs.preview(image).ok().and_then(|path| self.previews.take(&path))
        {
            let _ = std::fs::remove_file(preview);
        }
        let parameters = self.metadata.then(|| self.job.parameters(self.settings, image));
        let file =
            |frames: &[Picture]| encode(self.job.output_type, frames, self.job.fps(), parameters.as_ref());
        if self.job.outputs.splits_clips() {
            let paths = self.job.outputs.files(image, frames.len())?;
            let files: Vec<Vec<u8>> = frames.par_iter().map(|frame| file(slice::from_ref(frame))).collect();
            write_files(paths.iter().map(PathBuf::as_path).zip(files.iter().map(Vec::as_slice)))?;
            return paths.iter().try_for_each(|path| self.announce(path));
        }
        let bytes = file(&frames);
        if is_standard(path) {
            return print_bytes(&bytes);
        }
        write_file(path, &bytes)?;
        self.announce(path)
    }

    /// Writes a preview.
    fn preview(&mut self, preview: &Preview) -> Result<()> {
        let path = self.job.outputs.preview(preview.image)?;
        write_file(&path, &encode(OutputType::Png, &preview.frames, self.job.fps(), None))?;
        self.previews.insert(path);
        Ok(())
    }

    fn announce(&self, path: &Path) -> Result<()> {
        if self.announces { print(&format!("{}\n", path.display())) } else { Ok(()) }
    }

    /// Completes the file of latents, which is kept even if the run failed (`end`).
    fn finish(self, end: Result<()>) -> Result<()> {
        let path = self.job.outputs.path(0);
        let latents = finish_latents();
        // If a file could not be written, that error is the cause of the cancellation.
        let end = self.failure.clone().map_or(end, Err);
        match (latents?, end) {
            (0, end) => end,
            (_, Ok(())) => self.announce(path),
            (images, Err(error)) => {
                let of = self.job.request.images();
                say(&format!("the latents of {images} of {of} pictures are in `{}`", path.display()));
                Err(error)
            }
        }
    }
}

/// Shows progress, measures times, and saves pictures.
struct Watched<'a> {
    progress: Progress,
    stopwatch: Stopwatch,
    /// Whether ranks record each of their activities.
    details: bool,
    /// Whether there was a warning that a preview cannot be written.
    warned: bool,
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

    fn preview(&mut self, preview: Preview) {
        // A run does not end for want of a preview.
        if let Err(error) = self.saver.preview(&preview)
            && !std::mem::replace(&mut self.warned, true)
        {
            self.warn(error.message());
        }
        self.progress.picture(&preview.frames[0]);
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
