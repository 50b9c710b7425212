//! Progress of a run: bars on a terminal, and a few plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use xdit_core::error::printable;
use xdit_core::hub::Download;
use xdit_core::pipeline::{Observer, Phase, Picture, Step};

use crate::terminal::Graphics;

/// The number of lines for the steps of one picture in a plain log.
const LINES_A_PICTURE: usize = 4;
/// The time from which on the time of a run is estimated after its first step.
const LONG_RUN: Duration = Duration::from_secs(120);

/// Shorter pauses of a download are not mentioned.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// Shows progress on standard error.
pub struct Progress {
    style: Style,
    images: usize,
    /// The visible bars.
    bars: MultiProgress,
    download: Option<ProgressBar>,
    /// Whether the size of the whole download was shown.
    announced: bool,
    /// Whether the time of the run was estimated.
    estimated: bool,
    /// How the terminal shows pictures, if it can.
    graphics: Option<Graphics>,
    /// The phases that have begun. Data-parallel ranks work on several pictures at once.
    running: Vec<Running>,
}

/// A phase that has begun.
struct Running {
    phase: Phase,
    /// The start of the phase.
    begin: Instant,
    bar: Option<ProgressBar>,
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
        Self {
            style,
            images,
            bars: MultiProgress::new(),
            download: None,
            announced: false,
            estimated: false,
            graphics: Graphics::of(|name| std::env::var(name).ok()),
            running: Vec::new(),
        }
    }

    /// Shows the progress of a download.
    pub fn download(&mut self, download: &Download<'_>) {
        let (files, bytes) = download.missing;
        if files > 1 && !self.announced && self.style != Style::Quiet {
            self.announced = true;
            self.bars.suspend(|| say(&format!("downloading {files} files, {}", HumanBytes(bytes))));
        }
        match self.style {
            Style::Quiet => {}
            _ if let Some(pause) = download.pause.filter(|pause| *pause >= LONG_PAUSE) => {
                self.bars.suspend(|| {
                    let (what, seconds) = (printable(download.file), pause.as_secs());
                    say(&format!("the hub does not deliver {what}; trying again in {seconds} s"));
                });
            }
            _ if download.pause.is_some() => {}
            _ if download.waits => self.bars.suspend(|| {
                say(&format!("waiting for another process that downloads {}", printable(download.file)));
            }),
            Style::Lines if download.finished => {
                say(&format!(
                    "downloaded {} ({})",
                    printable(download.file),
                    HumanBytes(download.done_bytes)
                ));
            }
            Style::Lines => {}
            Style::Bars => {
                let bar = self.download.get_or_insert_with(|| {
                    let template = "{msg} {bar:24} {bytes} of {total_bytes} · {bytes_per_sec} · {eta} left";
                    ProgressBar::new(0).with_style(style(template)).with_message(printable(download.file))
                });
                bar.set_length(download.total_bytes.unwrap_or(download.done_bytes));
                bar.set_position(download.done_bytes);
                if download.finished {
                    bar.finish_and_clear();
                    self.download = None;
                }
            }
        }
    }

    /// Shows a picture above the bars, if the terminal can.
    pub fn picture(&self, picture: &Picture) {
        if let (Style::Bars, Some(graphics)) = (self.style, self.graphics) {
            self.bars.suspend(|| say(&graphics.show(picture)));
        }
    }

    /// Prints a line, unless the output is quiet.
    pub fn say(&self, line: &str) {
        if self.style != Style::Quiet {
            say(line);
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
    fn begin(&mut self, phase: Phase, at: Instant) {
        let bar = match self.style {
            Style::Quiet => None,
            Style::Lines => {
                say(&self.label(phase));
                None
            }
            Style::Bars => {
                let bar = ProgressBar::new_spinner().with_message(self.label(phase));
                let bar = self.bars.add(bar);
                bar.set_style(style("{msg} {spinner}"));
                bar.enable_steady_tick(Duration::from_millis(100));
                Some(bar)
            }
        };
        self.running.push(Running { phase, begin: at, bar });
    }

    fn end(&mut self, phase: Phase, _: Instant) {
        let Some(index) = self.running.iter().position(|running| running.phase == phase) else { return };
        if let Some(bar) = self.running.remove(index).bar {
            match phase {
                // The finished bars of the steps stay, as a record of the speed.
                Phase::Denoise { .. } => bar.abandon(),
                _ => bar.finish_and_clear(),
            }
        }
    }

    fn step(&mut self, Step { phase, done, of }: Step, at: Instant) {
        let Phase::Denoise { image } = phase else { return };
        let Some(running) = self.running.iter().find(|running| running.phase == phase) else { return };
        if !std::mem::replace(&mut self.estimated, true)
            && let Some(left) = estimate(at.duration_since(running.begin), of * self.images)
            && self.style != Style::Quiet
        {
            self.bars.suspend(|| say(&left));
        }
        if let Some(bar) = &running.bar {
            if done == 1 {
                bar.disable_steady_tick();
                bar.set_style(style("{msg} {bar:24} {pos}/{len} · {rate} · {eta} left"));
                bar.set_length(of as u64);
            }
            bar.set_position(done as u64);
        } else if self.style == Style::Lines {
            let quarter = |step: usize| step * LINES_A_PICTURE / of;
            if quarter(done) > quarter(done - 1) {
                let rate = done as f64 / at.duration_since(running.begin).as_secs_f64();
                let denoising = |running: &&Running| matches!(running.phase, Phase::Denoise { .. });
                let picture = match self.running.iter().filter(denoising).count() {
                    1 => String::new(),
                    _ => format!("picture {}: ", image + 1),
                };
                say(&format!("  {picture}{done} of {of}, {rate:.2} it/s"));
            }
        }
    }

    fn warn(&mut self, message: &str) {
        self.bars.suspend(|| say(&format!("warning: {}", printable(message))));
    }
}

/// An estimate of the time of a run of `steps` steps, of which the first one took `first`, if the run is long.
fn estimate(first: Duration, steps: usize) -> Option<String> {
    let left = first.checked_mul(u32::try_from(steps).ok()?.checked_sub(1)?)?;
    (left >= LONG_RUN).then(|| format!("  about {} for {steps} steps", HumanDuration(left)))
}

/// Writes a line to standard error. A run does not depend on a reader there.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A style from a template, which may contain `{rate}`.
fn style(template: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        // A failure to format the text leaves it out.
        let _ = write!(text, "{:.2} it/s", state.per_sec());
    };
    ProgressStyle::with_template(template).expect("templates are fixed and valid").with_key("rate", rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_estimated() {
        let estimate = |millis, steps| estimate(Duration::from_millis(millis), steps);
        assert_eq!(estimate(1000, 120), None);
        assert_eq!(estimate(1000, 181).unwrap(), "  about 3 minutes for 181 steps");
        assert_eq!(estimate(u64::MAX, usize::MAX), None);
    }
}
