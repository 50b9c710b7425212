//! Many ranks: the meshes there are, and a toy's run on the ranks of a world.

use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_comm::{Comm, LaunchOptions, Report, launch};
use xdit_core::error::Error;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::run::{Job, run_rank};
use xdit_core::tokens::Tokens;
use xdit_core::transformer::Transformer;

/// All meshes of up to `max_ranks` ranks along `axes`, on other axes one; two guidance branches at most.
pub fn meshes(axes: &[Axis], max_ranks: usize) -> Vec<Mesh> {
    axes.iter().fold(vec![Mesh::default()], |meshes, &axis| {
        let degrees = if axis == Axis::Cfg { 1..=2 } else { 1..=max_ranks };
        let longer = |mesh: &Mesh| degrees.clone().map(|degree| mesh.with(axis, degree)).collect::<Vec<_>>();
        meshes.iter().flat_map(longer).filter(|mesh| mesh.size() <= max_ranks).collect()
    })
}

/// Runs `job` on the ranks of a world, each of which sees it as `seen` makes it.
pub fn run_in<T>(
    job: Job<T>,
    options: &LaunchOptions,
    seen: impl Fn(Comm) -> Comm + Send + Sync + 'static,
) -> Report<Vec<Tokens>, Error>
where
    T: Transformer + 'static,
    T::Conditions: Send + Sync,
{
    let (size, job) = (job.plan.mesh.size(), Arc::new(job));
    launch(size, options, move |world| run_rank(&seen(world), &job, &mut ()))
}

/// The latents of all pictures of a run that went well, as [`run_in`] reports it.
///
/// # Panics
/// If it did not; with the first cause.
pub fn pictures(report: Report<Vec<Tokens>, Error>) -> Vec<Tensor<3>> {
    let ranks = report.into_result().unwrap_or_else(|error| panic!("{error}"));
    ranks.into_iter().flatten().map(|latents| latents.x).collect()
}
