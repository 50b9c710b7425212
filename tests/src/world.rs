//! Many ranks: the meshes there are, and a toy's run on the ranks of a world.

use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_comm::{LaunchOptions, Report, launch};
use xdit_core::error::Error;
use xdit_core::link::{HostLink, Link};
use xdit_core::pipeline::Observer;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::run::record::RankReport;
use xdit_core::run::{Job, run_rank};
use xdit_core::tokens::Tokens;
use xdit_core::transformer::Transformer;

use crate::in_order::{InOrder, Order, RENDEZVOUS};

/// All meshes of up to `max_ranks` ranks along `axes`, on other axes one; two guidance branches at most.
pub fn meshes(axes: &[Axis], max_ranks: usize) -> Vec<Mesh> {
    axes.iter().fold(vec![Mesh::default()], |meshes, &axis| {
        let degrees = if axis == Axis::Cfg { 1..=2 } else { 1..=max_ranks };
        let longer = |mesh: &Mesh| degrees.clone().map(|degree| mesh.with(axis, degree)).collect::<Vec<_>>();
        meshes.iter().flat_map(longer).filter(|mesh| mesh.size() <= max_ranks).collect()
    })
}

/// Keeps what ranks report, in rank order.
#[derive(Default)]
pub struct Reports {
    /// Whether they are to hold each activity and each wait.
    pub details: bool,
    /// Of each rank.
    pub ranks: Vec<RankReport>,
}

impl Observer for Reports {
    fn rank(&mut self, report: RankReport) {
        self.ranks.push(report);
        self.ranks.sort_by_key(|report| report.rank);
    }

    fn wants_details(&self) -> bool {
        self.details
    }
}

/// Runs `job` on the ranks of a world, each of which sees it as `seen` makes it.
pub fn run_in<T>(
    job: Job<T>,
    options: &LaunchOptions,
    seen: impl Fn(Arc<dyn Link>) -> Arc<dyn Link> + Send + Sync + 'static,
) -> Report<Vec<Tokens>, Error>
where
    T: Transformer + 'static,
    T::Conditions: Send + Sync,
{
    let (size, job) = (job.plan.mesh.size(), Arc::new(job));
    launch(size, options, move |world| run_rank(&seen(HostLink::new(world)), &job, &mut ()))
}

/// The latents of all pictures of `job`, on ranks whose links are [as NCCL orders them](crate::in_order), with sends that wait
/// for their receives.
///
/// # Panics
/// If a rank fails, or all wait for each other.
pub fn pictures_in_order<T>(job: Job<T>) -> Vec<Tensor<3>>
where
    T: Transformer + 'static,
    T::Conditions: Send + Sync,
{
    let order = Order::new(job.plan.mesh.size(), RENDEZVOUS);
    pictures(run_in(job, &LaunchOptions::default(), move |world| InOrder::world(world, &order)))
}

/// The latents of all pictures of a run that went well, as [`run_in`] reports it.
///
/// # Panics
/// If it did not; with the first cause.
pub fn pictures(report: Report<Vec<Tokens>, Error>) -> Vec<Tensor<3>> {
    let ranks = report.into_result().unwrap_or_else(|error| panic!("{error}"));
    ranks.into_iter().flatten().map(|latents| latents.x).collect()
}
