//! `xdit plan`: who would do what, and what it would cost.

use std::fmt::Write;
use std::ops::Range;

use indicatif::HumanBytes;
use serde_json::{Map, Value, json};
use xdit_core::Result;
use xdit_core::plan::Plan;
use xdit_core::plan::cost::Cost;
use xdit_core::plan::mesh::Axis;

use crate::args::{GenerateArgs, ReportFormat};
use crate::model::locate;
use crate::print;
use crate::progress::Progress;
use crate::report::by_axis;
use crate::resolve::Invocation;

/// Carries `xdit plan` out: checks everything as a run would, and shows who would do what.
///
/// # Errors
/// If the run could not be carried out.
pub fn run(mut args: GenerateArgs) -> Result<()> {
    if args.prompt.is_empty() && args.prompt_file.is_none() && args.from.is_none() {
        // No plan depends on what is drawn, only on how many pictures.
        args.prompt.push(String::new());
    }
    let job = Invocation::resolve(&args)?;
    let mut progress = Progress::new(job.request.images(), args.quiet);
    let folder = locate(&job.model, job.revision.as_deref(), job.load.variant.as_deref(), &mut progress)?;
    let pipeline = xdit_models::open(&folder, &job.load)?;
    let resolved = pipeline.resolve(&job.request)?;
    let costs = pipeline.costs(&resolved)?;
    match args.report {
        Some(ReportFormat::Json) => print(&format!("{:#}\n", json(&resolved.plan, &costs))),
        None => print(&format!("{}\n{}", resolved.plan, table(&costs))),
    }
}

/// The same for programs. Bytes are what one rank sends in a steady step, by axis, and what it holds.
fn json(plan: &Plan, costs: &[Cost]) -> Value {
    let (mesh, process) = (&plan.mesh, of_process(costs));
    let rank = |(rank, cost): (usize, &Cost)| {
        let sequence = mesh.sequence_coordinate(rank);
        let sent = cost.step_bytes.iter().map(|(axis, sent)| (axis.name().to_owned(), (*sent).into()));
        json!({
            "rank": rank,
            "coordinates": by_axis(|axis| mesh.coordinate(rank, axis)),
            "pictures": range(&plan.images[mesh.coordinate(rank, Axis::Data)]),
            "blocks": range(&plan.stage(rank)),
            "tokens": plan.tokens(&(0..plan.patches.len()), sequence),
            "parameter_bytes": cost.share.parameters.steps,
            "once_parameter_bytes": cost.share.parameters.once,
            "context_bytes": cost.share.contexts,
            "peak_kv_bytes": cost.peak_kv_bytes,
            "step_bytes": sent.collect::<Map<_, _>>(),
        })
    };
    json!({
        "degrees": by_axis(|axis| mesh.degree(axis)),
        "patches": plan.patches.iter().map(range).collect::<Vec<_>>(),
        "steps": plan.steps,
        "synchronous_steps": plan.synchronous_steps,
        "ranks": costs.iter().enumerate().map(rank).collect::<Vec<_>>(),
        "process": {
            "parameter_bytes": process.share.parameters.steps,
            "once_parameter_bytes": process.share.parameters.once,
            "context_bytes": process.share.contexts,
            "peak_kv_bytes": process.peak_kv_bytes,
        },
    })
}

/// First and end.
fn range(range: &Range<usize>) -> [usize; 2] {
    [range.start, range.end]
}

/// What all ranks hold together: what several have in common, once.
fn of_process(costs: &[Cost]) -> Cost {
    let mut process = Cost::default();
    for cost in costs {
        process.share += cost.added;
        process.peak_kv_bytes += cost.peak_kv_bytes;
    }
    process
}

/// One line a rank, and one for all of them if there are several.
fn table(costs: &[Cost]) -> String {
    let mut table = format!(
        "{:>4}  {:>10}  {:>10}  {:>10}  {:>15}  sent a step\n",
        "rank", "parameters", "used once", "contexts", "keys and values"
    );
    let mut line = |name: &str, cost: &Cost, sent: &str| {
        let Cost { share, peak_kv_bytes, .. } = cost;
        let bytes = [share.parameters.steps, share.parameters.once, share.contexts, *peak_kv_bytes];
        let [parameters, once, contexts, kv] = bytes.map(|bytes| HumanBytes(bytes).to_string());
        let line = format!("{name:>4}  {parameters:>10}  {once:>10}  {contexts:>10}  {kv:>15}  {sent}");
        // Writing to a string does not fail.
        let _ = writeln!(table, "{}", line.trim_end());
    };
    for (rank, cost) in costs.iter().enumerate() {
        let sent: Vec<_> = cost
            .step_bytes
            .iter()
            .map(|(axis, sent)| format!("{} {}", axis.name(), HumanBytes(*sent)))
            .collect();
        let sent = if sent.is_empty() { "nothing".to_owned() } else { sent.join(", ") };
        line(&rank.to_string(), cost, &sent);
    }
    if costs.len() > 1 {
        line("all", &of_process(costs), "");
    }
    table
}
