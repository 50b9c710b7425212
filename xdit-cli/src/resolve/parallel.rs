//! The options of the parallel engine, as far as one rank understands them.

use xdit_core::{Error, Result};

use crate::args::ParallelArgs;

/// Accepts what one rank does anyway.
///
/// # Errors
/// If more than one rank is asked for, or a result that only the parallel engine gives.
pub fn check_one_rank(args: &ParallelArgs) -> Result<()> {
    let ParallelArgs {
        data_parallel_degree,
        ulysses_degree,
        ring_degree,
        pipefusion_parallel_degree,
        num_pipeline_patch,
        // Without patches every step is synchronous.
        warmup_steps: _,
        attn_layer_num_for_pp,
        tensor_parallel_degree,
        split_scheme,
        use_cfg_parallel,
        use_parallel_vae,
        distrifusion,
    } = args;
    let numbers = [
        ("data-parallel-degree", *data_parallel_degree),
        ("ulysses-degree", *ulysses_degree),
        ("ring-degree", *ring_degree),
        ("pipefusion-parallel-degree", *pipefusion_parallel_degree),
        ("tensor-parallel-degree", *tensor_parallel_degree),
        ("num-pipeline-patch", num_pipeline_patch.unwrap_or(1)),
    ];
    if let Some((name, _)) = numbers.iter().find(|(_, number)| *number == 0) {
        return Err(Error::usage(format!("`--{name} 0` makes no sense")).hint("the least is 1"));
    }
    let flags = [
        ("use-cfg-parallel", *use_cfg_parallel),
        ("use-parallel-vae", *use_parallel_vae),
        ("distrifusion", *distrifusion),
    ];
    let number =
        numbers.iter().find(|(_, number)| *number > 1).map(|(name, number)| format!("--{name} {number}"));
    let flag = || flags.iter().find(|(_, on)| *on).map(|(name, _)| format!("--{name}"));
    let stages = || (attn_layer_num_for_pp.len() > 1).then(|| "--attn-layer-num-for-pp".to_owned());
    let scheme = || (split_scheme != "row").then(|| format!("--split-scheme {split_scheme}"));
    match number.or_else(flag).or_else(stages).or_else(scheme) {
        None => Ok(()),
        Some(option) => Err(Error::usage(format!("`{option}` is not available in this version"))
            .hint("this version runs on one rank: leave the options of parallelism out")),
    }
}
