//! Chrome's trace event format, for Perfetto and other viewers.
//!
//! Source: "Trace Event Format" of the Chromium project: complete events (`X`) and metadata (`M`), times in µs.

use std::ops::Range;
use std::time::Duration;

use serde_json::{Map, Value, json};
use xdit_core::pipeline::Phase;
use xdit_core::plan::schedule::Action;
use xdit_core::run::record::{Activity, Kind, RankReport, Span};

use super::{Trace, name, place};

/// The process id of all events.
const PROCESS: u32 = 1;
/// The thread id of the program itself; rank `r` has the thread id `r + 1`.
const PROGRAM: usize = 0;

/// The contents of a JSON file with `trace`.
pub fn encode(trace: &Trace) -> Vec<u8> {
    let mut events = vec![metadata("process_name", PROGRAM, json!({ "name": "xdit" }))];
    let mut lane = |thread: usize, name: String| {
        events.push(metadata("thread_name", thread, json!({ "name": name })));
        events.push(metadata("thread_sort_index", thread, json!({ "sort_index": thread })));
    };
    lane(PROGRAM, "program".to_owned());
    for rank in 0..trace.mesh.size() {
        let name = format!("rank {rank} {}", place(&trace.mesh, rank));
        lane(rank + 1, name.trim_end().to_owned());
    }
    for &(phase, begin, duration) in &trace.phases {
        let begin = begin.saturating_duration_since(trace.start);
        events.push(event(PROGRAM, &phase_name(phase), "phase", begin, duration, json!({})));
    }
    for report in &trace.ranks {
        let offset = report.began.saturating_duration_since(trace.start);
        let spans = report.spans.iter().map(|span| span_event(report, span, offset));
        let waits = report.waits.iter().map(|wait| {
            let name = format!("wait: {} {}", wait.group, wait.operation);
            let arguments = json!({
                "group": &*wait.group,
                "operation": wait.operation.to_string(),
                "received_bytes": wait.received_bytes,
            });
            event(report.rank + 1, &name, "wait", offset + wait.begin, wait.duration(), arguments)
        });
        events.extend(spans.chain(waits));
    }
    let trace = json!({ "displayTimeUnit": "ms", "traceEvents": events });
    serde_json::to_vec(&trace).expect("strings and finite numbers can be serialized")
}

fn span_event(report: &RankReport, span: &Span, offset: Duration) -> Value {
    let category = match span.activity.kind() {
        Kind::Load => "load",
        Kind::Compute | Kind::Decode => "compute",
        Kind::Communicate => "communication",
    };
    let mut arguments = arguments(&span.activity);
    if let Some(image) = span.image {
        arguments.insert("image".to_owned(), json!(image));
    }
    if !span.waited.is_zero() {
        arguments.insert("waited_us".to_owned(), json!(micros(span.waited)));
    }
    if span.sent_bytes > 0 {
        arguments.insert("sent_bytes".to_owned(), json!(span.sent_bytes));
    }
    let (begin, duration) = (offset + span.begin, span.end - span.begin);
    event(report.rank + 1, &name(&span.activity), category, begin, duration, Value::Object(arguments))
}

/// The step, patches, branches and blocks that the activity belongs to.
fn arguments(activity: &Activity) -> Map<String, Value> {
    let range = |range: &Range<usize>| json!(format!("{}..{}", range.start, range.end));
    let (step, patches, branches, blocks) = match activity {
        Activity::Load | Activity::Broadcast | Activity::Prepare | Activity::Gather | Activity::Decode => {
            (None, None, None, None)
        }
        Activity::Action(action) => match action {
            Action::ReceiveLatents { patches } | Action::SendLatents { patches } => {
                (None, Some(patches), None, None)
            }
            Action::ReceiveHidden { patches, branches }
            | Action::ReceiveSkip { patches, branches, .. }
            | Action::SendHidden { patches, branches }
            | Action::SendSkip { patches, branches, .. } => (None, Some(patches), Some(branches), None),
            Action::Embed { step, patches, branches } | Action::Finish { step, patches, branches } => {
                (Some(step), Some(patches), Some(branches), None)
            }
            Action::Blocks { step, blocks, patches, branches } => {
                (Some(step), Some(patches), Some(branches), Some(blocks))
            }
            Action::Advance { step, patches } => (Some(step), Some(patches), None, None),
        },
    };
    let arguments = [
        ("step", step.map(|step| json!(step))),
        ("patches", patches.map(range)),
        // A number, or the range of several that are one batch.
        ("branch", branches.map(|of| if of.len() == 1 { json!(of.start) } else { range(of) })),
        ("blocks", blocks.map(range)),
    ];
    arguments.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn phase_name(phase: Phase) -> String {
    match phase {
        Phase::Load(component) => format!("load {component}"),
        Phase::Encode => "encode".to_owned(),
        Phase::Denoise { image } => format!("denoise {image}"),
        Phase::Decode { image } => format!("decode {image}"),
    }
}

fn event(
    thread: usize,
    name: &str,
    category: &str,
    begin: Duration,
    duration: Duration,
    arguments: Value,
) -> Value {
    json!({
        "ph": "X",
        "pid": PROCESS,
        "tid": thread,
        "name": name,
        "cat": category,
        "ts": micros(begin),
        "dur": micros(duration),
        "args": arguments,
    })
}

fn metadata(name: &str, thread: usize, arguments: Value) -> Value {
    json!({ "ph": "M", "pid": PROCESS, "tid": thread, "name": name, "args": arguments })
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}
