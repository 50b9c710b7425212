//! `xdit plan`: shows the work of each rank, and its cost.

use std::fmt::Write;
use std::ops::Range;

use indicatif::HumanBytes;
use serde_json::{Map, Value, json};
use xdit_core::Result;
use xdit_core::pipeline::{Keep, Kept};
use xdit_core::plan::Plan;
use xdit_core::plan::cost::Cost;
use xdit_core::plan::mesh::Axis;
use xdit_core::weights::Residency;

use crate::args::{GenerateArgs, ReportFormat};
use crate::launcher;
use crate::print;
use crate::progress::Progress;
use crate::report::by_axis;
use crate::resolve::Invocation;

/// Runs `xdit plan`: checks everything as `xdit generate` does, and shows the work of each rank.
///
/// # Errors
/// If `xdit generate` with these options would be refused.
pub fn run(mut args: GenerateArgs) -> Result<()> {
    if args.prompt.is_empty() && args.prompt_file.is_none() && args.from.is_none() {
        // The plan depends on the number of prompts, but not on their text.
        args.prompt.push(String::new());
    }
    let job = Invocation::resolve(&args, &launcher::Job::default())?;
    let mut progress = Progress::new(job.request.images(), args.quiet);
    let outlined = job.outline(&args, &mut progress)?;
    let pipeline = xdit_models::open(&outlined.folder, &job.load)?;
    let resolved = pipeline.resolve(&job.request)?;
    let (costs, kept) = (pipeline.costs(&resolved)?, pipeline.kept());
    match args.report {
        Some(ReportFormat::Json) => {
            let mut json = json(&resolved.plan, &costs, kept);
            json["download_bytes"] = outlined.missing.1.into();
            print(&format!("{json:#}\n"))
        }
        None => {
            let download = outlined.download(&job.model).map(|line| line + "\n").unwrap_or_default();
            print(&format!("{}\n{}\n{}\n{download}", resolved.plan, table(&costs), residency(kept)))
        }
    }
}

/// The plan as JSON. Byte counts are those that a rank sends in a steady step, by axis and for rows, and those that it
/// has in memory.
fn json(plan: &Plan, costs: &[Cost], kept: Kept) -> Value {
    let (mesh, process) = (&plan.mesh, of_process(costs));
    let rank = |(rank, cost): (usize, &Cost)| {
        let sequence = mesh.sequence_coordinate(rank);
        let sent = sent(cost).map(|(name, bytes)| (name.to_owned(), bytes.into()));
        json!({
            "rank": rank,
            "coordinates": by_axis(|axis| mesh.coordinate(rank, axis)),
            "pictures": range(&plan.images[mesh.coordinate(rank, Axis::Data)]),
            "blocks": range(&plan.stage(rank)),
            "passes": plan.passes_of(rank).iter().map(range).collect::<Vec<_>>(),
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
        "residency": {
            "keep": policy(kept.keep),
            "once": if kept.once == Residency::Hold { "held" } else { "read again" },
            "transformer_bytes": kept.transformer_bytes,
            "free_bytes": kept.free_bytes,
        },
    })
}

/// The start and end of a range.
fn range(range: &Range<usize>) -> [usize; 2] {
    [range.start, range.end]
}

/// The memory of all ranks together, with shared memory counted once.
fn of_process(costs: &[Cost]) -> Cost {
    let mut process = Cost::default();
    for cost in costs {
        process.share += cost.added;
        process.peak_kv_bytes += cost.peak_kv_bytes;
    }
    process
}

/// The bytes that a rank sends in a steady step, by axis, and those for operations on rows.
fn sent(cost: &Cost) -> impl Iterator<Item = (&'static str, u64)> {
    let rows = Some(("rows", cost.row_bytes)).filter(|(_, bytes)| *bytes > 0);
    cost.step_bytes.iter().map(|(axis, bytes)| (axis.name(), *bytes)).chain(rows)
}

/// The table of costs: one line for each rank, and one for the process if there are several.
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
        let sent: Vec<_> = sent(cost).map(|(name, bytes)| format!("{name} {}", HumanBytes(bytes))).collect();
        let sent = if sent.is_empty() { "nothing".to_owned() } else { sent.join(", ") };
        line(&rank.to_string(), cost, &sent);
    }
    if costs.len() > 1 {
        line("all", &of_process(costs), "");
    }
    table
}

/// The name of a policy.
fn policy(keep: Keep) -> &'static str {
    match keep {
        Keep::Auto => "auto",
        Keep::All => "all",
        Keep::Transformer => "transformer",
        Keep::Request => "request",
        Keep::None => "none",
    }
}

/// A line with the components that stay in memory, and the reason.
fn residency(kept: Kept) -> String {
    let stay = match kept.keep {
        Keep::All => "text encoders, transformer and autoencoder stay in memory",
        Keep::Auto | Keep::Transformer => "transformer and autoencoder stay in memory",
        Keep::Request | Keep::None => "nothing stays in memory after the last picture",
    };
    let once = match kept.once {
        Residency::Hold => "layers used once stay as long as the transformer",
        Residency::Reread => "layers used once are read for each picture",
    };
    let transformer = HumanBytes(kept.transformer_bytes);
    let why = match kept.free_bytes {
        Some(free) => format!("transformer and autoencoder {transformer}, free memory {}", HumanBytes(free)),
        None => format!("transformer and autoencoder {transformer}, free memory unknown"),
    };
    format!("residency (`--keep {}`): {stay}; {once} ({why})", policy(kept.keep))
}
