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
    let mesh = &plan.mesh;
    let rank = |(rank, cost): (usize, &Cost)| {
        let sequence = mesh.sequence_coordinate(rank);
        let sent = cost.step_bytes.iter().map(|(axis, sent)| (axis.name().to_owned(), (*sent).into()));
        json!({
            "rank": rank,
            "coordinates": by_axis(|axis| mesh.coordinate(rank, axis)),
            "pictures": range(&plan.images[mesh.coordinate(rank, Axis::Data)]),
            "blocks": range(&plan.stage(rank)),
            "tokens": plan.tokens(&(0..plan.patches.len()), sequence),
            "parameter_bytes": cost.parameter_bytes,
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
    })
}

/// First and end.
fn range(range: &Range<usize>) -> [usize; 2] {
    [range.start, range.end]
}

/// One line a rank.
fn table(costs: &[Cost]) -> String {
    let mut table = format!("{:>4}  {:>10}  {:>15}  sent a step\n", "rank", "parameters", "keys and values");
    for (rank, cost) in costs.iter().enumerate() {
        let bytes = |bytes| HumanBytes(bytes).to_string();
        let sent: Vec<_> =
            cost.step_bytes.iter().map(|(axis, sent)| format!("{} {}", axis.name(), bytes(*sent))).collect();
        let sent = if sent.is_empty() { "nothing".to_owned() } else { sent.join(", ") };
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "{rank:>4}  {:>10}  {:>15}  {sent}",
            bytes(cost.parameter_bytes),
            bytes(cost.peak_kv_bytes)
        );
    }
    table
}
