//! The options of parallelism.

use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::{Error, Result};

use crate::args::ParallelArgs;

/// The limit on the number of rank threads in one process; a larger number is assumed to be a typing error.
const MAX_RANKS: usize = 256;

/// The distribution of work over ranks. Conditions that depend on the model are checked by the plan.
///
/// # Errors
/// If a degree is not valid, or a method is not available.
pub fn parallel(args: &ParallelArgs) -> Result<ParallelConfig> {
    let degrees = [
        ("data-parallel-degree", Axis::Data, args.data_parallel_degree),
        ("pipefusion-parallel-degree", Axis::Pipeline, args.pipefusion_parallel_degree),
        ("ring-degree", Axis::Ring, args.ring_degree),
        ("ulysses-degree", Axis::Ulysses, args.ulysses_degree),
        ("tensor-parallel-degree", Axis::Tensor, args.tensor_parallel_degree),
    ];
    let mut ranks = 1usize;
    let mut mesh = Mesh::default().with(Axis::Cfg, if args.use_cfg_parallel { 2 } else { 1 });
    for (name, axis, degree) in degrees {
        if degree == 0 {
            return Err(Error::usage(format!("`--{name} 0` is not a valid degree")).hint("the minimum is 1"));
        }
        ranks = ranks.saturating_mul(degree);
        mesh = mesh.with(axis, degree);
    }
    ranks = ranks.saturating_mul(mesh.degree(Axis::Cfg));
    if let Some(gpus) = args.num_gpus {
        if ranks == 1 && gpus > 1 {
            // It divides the work of every model, whatever its guidance.
            (ranks, mesh) = (gpus, mesh.with(Axis::Ulysses, gpus));
        }
        if ranks != gpus {
            return Err(Error::usage(format!(
                "`--num-gpus {gpus}` does not fit the {ranks} ranks of the degrees"
            ))
            .hint("the number of ranks is the product of the degrees: leave one of both out"));
        }
    }
    if ranks > MAX_RANKS {
        return Err(Error::usage(format!("`{ranks}` ranks are more than the {MAX_RANKS} of one process"))
            .hint("the degrees multiply: lower one of them"));
    }
    if args.split_scheme != "row" {
        return Err(Error::usage(format!("`--split-scheme {}` is not available", args.split_scheme))
            .hint("patches are runs of rows: `row`"));
    }
    Ok(ParallelConfig {
        mesh,
        patches: args.num_pipeline_patch,
        warmup_steps: args.warmup_steps.unwrap_or(1),
        distrifusion: args.distrifusion,
        stage_blocks: (!args.attn_layer_num_for_pp.is_empty()).then(|| args.attn_layer_num_for_pp.clone()),
        parallel_vae: args.use_parallel_vae,
        guidance_batch: args.guidance_batch.unwrap_or_default().wanted(),
    })
}
