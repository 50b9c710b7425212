//! `xdit plan`: who would do what, and what it would cost.

use std::fmt::Write;

use indicatif::HumanBytes;
use xdit_core::Result;
use xdit_core::parallel::cost::Cost;

use crate::args::GenerateArgs;
use crate::model::locate;
use crate::print;
use crate::progress::Progress;
use crate::resolve::Job;

/// Carries `xdit plan` out: checks everything as a run would, and shows who would do what.
///
/// # Errors
/// If the run could not be carried out.
pub fn run(mut args: GenerateArgs) -> Result<()> {
    if args.prompt.is_empty() && args.prompt_file.is_none() && args.from.is_none() {
        // No plan depends on what is drawn, only on how many pictures.
        args.prompt.push(String::new());
    }
    let job = Job::resolve(&args)?;
    let mut progress = Progress::new(job.request.images(), args.quiet);
    let folder = locate(&job.model, job.revision.as_deref(), job.load.variant.as_deref(), &mut progress)?;
    let pipeline = xdit_models::open(&folder, &job.load)?;
    let resolved = pipeline.resolve(&job.request)?;
    let costs = pipeline.costs(&resolved)?;
    print(&format!("{}\n{}", resolved.plan, table(&costs)))
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
