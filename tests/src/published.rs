//! Jobs for the transformers of golden checkpoints, without a pipeline, so that a test can reach between their parts.

use burn::tensor::DType;
use xdit_core::pipeline::LoadOptions;
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::weights::Residency;
use xdit_models::component::Component;
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::sharding::Sharded;

use crate::toy::{large_steps, random};
use crate::world::Job;
use crate::{device, goldens};

/// The number of steps of a job.
pub const STEPS: usize = 3;

/// A picture of `grid` tokens by the transformer of the golden checkpoint `checkpoint`, on the ranks of `parallel`.
/// `branch` makes the conditions of each of the two branches.
///
/// # Panics
/// If the checkpoint cannot be opened, or there is no such plan.
pub fn job<T: Published>(
    checkpoint: &str,
    grid: [usize; 2],
    parallel: &ParallelConfig,
    branch: impl Fn(usize) -> T::Conditions,
) -> Job<T> {
    let folder = goldens().join(checkpoint).join(T::FOLDER);
    let options = LoadOptions::new(device(), DType::F32);
    let read = T::Config::read;
    let opened = Component::open(&folder, "diffusion_pytorch_model", &options, read, |_| DType::F32, T::load);
    let component = opened.unwrap_or_else(|error| panic!("{error}"));
    let spec = component.config.spec().clone();
    let [rows, columns] = grid;
    let features = spec.channels * spec.patch * spec.patch;
    let work = Work {
        tokens: rows * columns,
        grain: component.config.grain([1, rows, columns]),
        steps: STEPS,
        branches: Branch::classifier_free(true),
        images: 1,
        spec,
    };
    Job {
        plan: Plan::new(parallel, &work).unwrap_or_else(|error| panic!("{error}")),
        load: Box::new(move |share| {
            let placements = component.config.all_placements();
            component.load_share(&device(), share, placements, Residency::Hold, T::load)
        }),
        scheduler: large_steps(STEPS),
        guidance: vec![Guidance::classifier_free(branch(0), branch(1), 2.5)],
        noise: vec![Tokens {
            x: random("noise", [1, rows * columns, features]),
            positions: Positions::grid(rows, columns),
        }],
    }
}
