//! Progress of a run: bars on a terminal, and a few plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressState, ProgressStyle};
use xdit_core::hub::Download;
use xdit_core::pipeline::{Observer, Phase};

/// The number of lines for the steps of one picture in a plain log.
const LINES_A_PICTURE: usize = 4;

/// Shows progress on standard error.
pub struct Progress {
    style: Style,
    images: usize,
    bar: Option<ProgressBar>,
    /// Whether the current phase is denoising, the only phase that reports its steps.
    denoising: bool,
    /// The start of the current phase.
    begin: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Bars,
    Lines,
    Quiet,
}

impl Progress {
    /// Shows the progress of a run with `images` pictures.
    pub fn new(images: usize, quiet: bool) -> Self {
        let style = match quiet {
            true => Style::Quiet,
            false if std::io::stderr().is_terminal() => Style::Bars,
            false => Style::Lines,
        };
        Self { style, images, bar: None, denoising: false, begin: Instant::now() }
    }

    /// Shows the progress of a download.
    pub fn download(&mut self, download: &Download<'_>) {
        match self.style {
            Style::Quiet => {}
            Style::Lines if download.finished => {
                eprintln!("downloaded {} ({})", download.file, HumanBytes(download.done_bytes));
            }
            Style::Lines => {}
            Style::Bars => {
                let bar = self.bar.get_or_insert_with(|| {
                    let template = "{msg} {bar:24} {bytes} of {total_bytes} · {bytes_per_sec} · {eta} left";
                    ProgressBar::new(0).with_style(style(template)).with_message(download.file.to_owned())
                });
                bar.set_length(download.total_bytes.unwrap_or(download.done_bytes));
                bar.set_position(download.done_bytes);
                if download.finished {
                    self.clear();
                }
            }
        }
    }

    /// Prints a line, unless the output is quiet.
    pub fn say(&self, line: &str) {
        if self.style != Style::Quiet {
            eprintln!("{line}");
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn label(&self, phase: Phase) -> String {
        let picture = |image: usize| match self.images {
            1 => String::new(),
            images => format!(" picture {} of {images}", image + 1),
        };
        match phase {
            Phase::Load(component) => format!("loading {component}"),
            Phase::Encode => "encoding".to_owned(),
            Phase::Denoise { image } => format!("denoising{}", picture(image)),
            Phase::Decode { image } => format!("decoding{}", picture(image)),
        }
    }
}

impl Observer for Progress {
    fn begin(&mut self, phase: Phase) {
        self.begin = Instant::now();
        self.denoising = matches!(phase, Phase::Denoise { .. });
        match self.style {
            Style::Quiet => {}
            Style::Lines => eprintln!("{}", self.label(phase)),
            Style::Bars => {
                let bar = ProgressBar::new_spinner().with_message(self.label(phase));
                bar.set_style(style("{msg} {spinner}"));
                bar.enable_steady_tick(Duration::from_millis(100));
                self.bar = Some(bar);
            }
        }
    }

    fn end(&mut self, phase: Phase) {
        match phase {
            // Finished bars of denoising stay visible as a record of the speed.
            Phase::Denoise { .. } => drop(self.bar.take().inspect(ProgressBar::abandon)),
            _ => self.clear(),
        }
    }

    fn step(&mut self, done: usize, of: usize) {
        let rate = done as f64 / self.begin.elapsed().as_secs_f64();
        if !self.denoising {
            return;
        }
        if let Some(bar) = &self.bar {
            if done == 1 {
                bar.disable_steady_tick();
                bar.set_style(style("{msg} {bar:24} {pos}/{len} · {rate} · {eta} left"));
                bar.set_length(of as u64);
            }
            bar.set_position(done as u64);
        } else if self.style == Style::Lines {
            let quarter = |step: usize| step * LINES_A_PICTURE / of;
            if quarter(done) > quarter(done - 1) {
                eprintln!("  {done} of {of}, {rate:.2} it/s");
            }
        }
    }

    fn warn(&mut self, message: &str) {
        let print = || eprintln!("warning: {message}");
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

/// A style from a template, which may contain `{rate}`.
fn style(template: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        // A failure to format the text leaves it out.
        let _ = write!(text, "{:.2} it/s", state.per_sec());
    };
    ProgressStyle::with_template(template).expect("templates are fixed and valid").with_key("rate", rate)
}
