//! A timeline of denoising: one lane for each rank, coloured by patch and labelled by step.

use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;

use xdit_core::plan::schedule::Action;
use xdit_core::run::record::{Activity, Kind, RankReport, Span};

use super::{Trace, name, place};

const WIDTH: f64 = 960.0;
const LANE: f64 = 30.0;
const GAP: f64 = 6.0;
const TOP: f64 = 46.0;
const LEFT: f64 = 14.0;
/// The width of a character in a lane's label.
const CHARACTER: f64 = 7.0;
/// Narrower boxes are not drawn, and narrower gaps are closed.
const MIN: f64 = 0.25;
/// The width of a box that can hold the number of a step.
const LABEL: f64 = 15.0;

/// Light enough for dark text, and distinguishable for most eyes.
const COLOURS: [&str; 8] =
    ["#7cb8f0", "#f6b26b", "#86d0a0", "#d9a6e8", "#f1dc70", "#f29191", "#84d6d6", "#b9b4f0"];

/// The style sheet. Colours that fit only one background are defined for light and for dark ones.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#24292f}.n{font-size:11px;fill:#161b22;text-anchor:middle}\
.t{text-anchor:middle}.s{fill:#fff}.l{fill:#eef1f4}.a{fill:#c4ccd6}.p{fill:#a7b2bf}.m{fill:#c2486a}\
.w{fill:url(#w)}.g{stroke:#d0d7de}.h{stroke:#6e7781;stroke-width:1.2}.b{fill:#d8dee4}\
@media(prefers-color-scheme:dark){text{fill:#d1d7e0}.n{fill:#161b22}.s{fill:#151b23}.l{fill:#262c36}\
.p{fill:#7d8590}.g{stroke:#3d444d}.h{stroke:#9198a1}.b{fill:#3d444d}}";

/// A box in a lane.
struct Box {
    class: String,
    label: Option<String>,
    title: String,
    begin: f64,
    end: f64,
}

/// The contents of an SVG file with the denoising part of `trace`.
pub fn encode(trace: &Trace) -> Vec<u8> {
    let acts = |span: &Span| matches!(span.activity, Activity::Action(_));
    let mut ranks: Vec<&RankReport> =
        trace.ranks.iter().filter(|report| report.spans.iter().any(acts)).collect();
    // Ranks report in the order in which they end.
    ranks.sort_by_key(|report| report.rank);
    let labels: Vec<String> = ranks.iter().map(|report| lane_label(trace, report.rank)).collect();
    let widest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let scale = Scale::new(&ranks, LEFT + CHARACTER * widest as f64 + 10.0);
    let bottom = TOP + ranks.len() as f64 * (LANE + GAP);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"Timeline of {count} ranks\"><style>{STYLE}{colours}</style><defs><pattern id=\"w\" width=\"6\" \
         height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" \
         class=\"b\"/><path d=\"M0 0V6\" class=\"h\"/></pattern></defs><rect width=\"{WIDTH}\" height=\"{height}\" \
         class=\"s\" rx=\"6\"/>\n",
        height = bottom + 34.0,
        count = ranks.len(),
        colours = colours(),
    );
    legend(&mut svg, &ranks);
    scale.axis(&mut svg, bottom);
    for (lane, (report, label)) in ranks.iter().zip(&labels).enumerate() {
        let y = TOP + lane as f64 * (LANE + GAP);
        let middle = y + LANE / 2.0 + 4.0;
        put(&mut svg, format_args!("<text x=\"{LEFT}\" y=\"{middle:.1}\">{label}</text>"));
        let [x, width] = [scale.left, scale.right - scale.left];
        let lane = format_args!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{LANE}\"");
        put(&mut svg, format_args!("{lane} class=\"l\"/>"));
        for part in boxes(report, &scale) {
            let Box { class, title, begin, end, .. } = &part;
            put(
                &mut svg,
                format_args!(
                    "<rect x=\"{begin:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{LANE}\" class=\"{class}\">\
                     <title>{title}</title></rect>",
                    end - begin
                ),
            );
            if let Some(label) = part.label.as_ref().filter(|_| end - begin >= LABEL) {
                let x = f64::midpoint(*begin, *end);
                put(
                    &mut svg,
                    format_args!("<text x=\"{x:.1}\" y=\"{middle:.1}\" class=\"n\">{label}</text>"),
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    svg.into_bytes()
}

/// Appends to the SVG; writing to a string cannot fail.
fn put(svg: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(what);
    svg.push('\n');
}

fn lane_label(trace: &Trace, rank: usize) -> String {
    let place = place(&trace.mesh, rank);
    if place.is_empty() { format!("rank {rank}") } else { format!("rank {rank} · {place}") }
}

fn colours() -> String {
    COLOURS.iter().enumerate().map(|(index, colour)| format!(".c{index}{{fill:{colour}}}")).collect()
}

/// The class of a box for `patches`.
fn class(patches: &Range<usize>) -> String {
    // A synchronous step processes several patches together.
    if patches.len() > 1 { "a".to_owned() } else { format!("c{}", patches.start % COLOURS.len()) }
}

/// The boxes of a lane: one for the computation of a step's patches, with waiting and sending drawn on top.
fn boxes(report: &RankReport, scale: &Scale) -> Vec<Box> {
    let guided = report
        .spans
        .iter()
        .any(|span| matches!(pass(span), Some((_, _, Some(branches))) if branches.end > 1));
    let mut boxes: Vec<(Option<Pass>, Box)> = Vec::new();
    for span in &report.spans {
        let (begin, end) = (scale.x(report, span.begin), scale.x(report, span.end));
        let pass = pass(span);
        let sum = |title: &str| format!("{title}, {:.1} ms", (span.end - span.begin).as_secs_f64() * 1e3);
        if let (Some((last, part)), Some(pass)) = (boxes.last_mut(), &pass) {
            // The step of the scheduler belongs to the pass before it.
            let same = last.as_ref().is_some_and(|(step, patches, branches)| {
                (step, patches) == (&pass.0, &pass.1) && (pass.2.is_none() || *branches == pass.2)
            });
            if same && begin - part.end < MIN {
                part.end = end;
                part.title = format!("{}; {}", part.title, sum(&name(&span.activity)));
                continue;
            }
        }
        let part = match &pass {
            Some((step, patches, branches)) => {
                let sign = match branches {
                    Some(branches) if branches.len() > 1 => "±",
                    Some(Range { start: 0, .. }) if guided => "−",
                    Some(Range { start: 1, .. }) => "+",
                    Some(_) if guided => "∖",
                    _ => "",
                };
                let title = format!("step {step}, patches {}..{}: ", patches.start, patches.end);
                let title = sum(&format!("{title}{}", name(&span.activity)));
                Box { class: class(patches), label: Some(format!("{step}{sign}")), title, begin, end }
            }
            None => {
                let class = match span.activity.kind() {
                    Kind::Communicate => "m",
                    Kind::Compute => "p",
                    Kind::Load | Kind::Decode => continue,
                };
                let title = sum(&name(&span.activity));
                Box { class: class.to_owned(), label: None, title, begin, end }
            }
        };
        boxes.push((pass, part));
    }
    let mut boxes: Vec<Box> = boxes.into_iter().map(|(_, part)| part).collect();
    let from = boxes.len();
    for wait in &report.waits {
        let (begin, end) = (scale.x(report, wait.begin), scale.x(report, wait.end));
        match boxes[from..].last_mut() {
            Some(last) if begin - last.end < MIN => last.end = end,
            _ => {
                let title = format!("wait: {} {}", wait.group, wait.operation);
                boxes.push(Box { class: "w".to_owned(), label: None, title, begin, end });
            }
        }
    }
    boxes.retain(|part| part.end - part.begin >= MIN);
    boxes
}

/// A step, its patches and, if it belongs to some, the branches of guidance.
type Pass = (usize, Range<usize>, Option<Range<usize>>);

/// The computation that a span is part of, if it is part of a step.
fn pass(span: &Span) -> Option<Pass> {
    let Activity::Action(action) = &span.activity else { return None };
    match action {
        Action::Embed { step, patches, branches }
        | Action::Blocks { step, patches, branches, .. }
        | Action::Finish { step, patches, branches } => {
            Some((*step, patches.clone(), Some(branches.clone())))
        }
        Action::Advance { step, patches } => Some((*step, patches.clone(), None)),
        _ => None,
    }
}

fn legend(svg: &mut String, ranks: &[&RankReport]) {
    let spans = || ranks.iter().flat_map(|report| report.spans.iter()).filter_map(pass);
    let mut entries = Vec::new();
    if spans().any(|(_, patches, _)| patches.len() > 1) {
        entries.push(("a".to_owned(), "all patches".to_owned()));
    }
    let patches = spans().map(|(_, patches, _)| patches.end).max().unwrap_or(0);
    for patch in (0..patches).filter(|&patch| spans().any(|(_, patches, _)| patches == (patch..patch + 1))) {
        // Further patches repeat the colours.
        match patch < COLOURS.len() {
            true => entries.push((format!("c{patch}"), format!("patch {patch}"))),
            false => break,
        }
    }
    for (class, label) in [("w", "waiting"), ("m", "messages"), ("p", "conditions")] {
        entries.push((class.to_owned(), label.to_owned()));
    }
    let mut x = LEFT;
    for (class, label) in entries {
        put(
            svg,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"14\" width=\"14\" height=\"14\" rx=\"2\" class=\"{class}\"/>"
            ),
        );
        put(svg, format_args!("<text x=\"{:.1}\" y=\"25\">{label}</text>", x + 19.0));
        x += 19.0 + CHARACTER * label.chars().count() as f64 + 14.0;
    }
    let any =
        |is: fn(&Range<usize>) -> bool| spans().any(|(_, _, branches)| branches.as_ref().is_some_and(is));
    let (guided, skips) = (any(|branches| branches.end == 2), any(|branches| branches.end == 3));
    let note = match (guided, skips, any(|branches| branches.len() > 1)) {
        (_, true, false) => "3−, 3+, 3∖: step 3, all branches",
        (_, true, true) => "3±, 3∖: step 3, both branches as one batch, and the third",
        (true, false, false) => "3−, 3+: step 3, both branches",
        (true, false, true) => "3±: step 3, both branches as one batch",
        (false, false, _) => "3: step 3",
    };
    put(svg, format_args!("<text x=\"{x:.1}\" y=\"25\">{note}</text>"));
}

/// Converts times to horizontal positions.
struct Scale {
    left: f64,
    right: f64,
    /// The first and the last time shown, in seconds of a common clock.
    begin: f64,
    end: f64,
    origin: std::time::Instant,
}

impl Scale {
    fn new(ranks: &[&RankReport], left: f64) -> Self {
        let origin = ranks.iter().map(|report| report.began).min().unwrap_or_else(std::time::Instant::now);
        let mut scale = Self { left, right: WIDTH - 16.0, begin: f64::INFINITY, end: 0.0, origin };
        for report in ranks {
            for span in report.spans.iter().filter(|span| span.activity.kind() != Kind::Load) {
                scale.begin = scale.begin.min(scale.seconds(report, span.begin));
                scale.end = scale.end.max(scale.seconds(report, span.end));
            }
        }
        scale
    }

    fn seconds(&self, report: &RankReport, time: Duration) -> f64 {
        (report.began.saturating_duration_since(self.origin) + time).as_secs_f64()
    }

    fn x(&self, report: &RankReport, time: Duration) -> f64 {
        let share = (self.seconds(report, time) - self.begin) / (self.end - self.begin);
        self.left + share * (self.right - self.left)
    }

    /// Draws four to ten grid lines with their times.
    fn axis(&self, svg: &mut String, bottom: f64) {
        let length = self.end - self.begin;
        let magnitude = 10f64.powf((length / 4.0).log10().floor());
        let step = [5.0, 2.0, 1.0].map(|m| m * magnitude).into_iter().find(|step| length / step >= 4.0);
        let step = step.unwrap_or(magnitude);
        let (unit, factor) = if length < 1.0 { ("ms", 1e3) } else { ("s", 1.0) };
        let decimals = (-(step * factor).log10().floor()).max(0.0) as usize;
        for tick in 0..=(length / step) as usize {
            let time = tick as f64 * step;
            let x = self.left + time / length * (self.right - self.left);
            put(
                svg,
                format_args!(
                    "<path d=\"M{x:.1} {:.1}V{:.1}\" class=\"g\"/><text x=\"{x:.1}\" y=\"{:.1}\" class=\"t\">\
                     {:.decimals$} {unit}</text>",
                    TOP - 4.0,
                    bottom,
                    bottom + 16.0,
                    time * factor
                ),
            );
        }
    }
}
