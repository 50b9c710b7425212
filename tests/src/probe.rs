//! A toy that is watched: the test sees which blocks run, and when a rank drops its share.

use std::sync::Arc;

use xdit_core::plan::Plan;
use xdit_core::transformer::Transformer;

use crate::toy::{Subject, Toy};
use crate::world::Job;
use crate::wrapped::{Wrapped, wrapped};

/// Runs before each block, with the index of the block.
pub type BeforeBlock = Arc<dyn Fn(usize) + Send + Sync>;

/// The run of `plan` by a watched toy. Each share that is loaded holds a reference to `alive`.
pub fn job(subject: &Subject, plan: Plan, before_block: &BeforeBlock, alive: &Arc<()>) -> Job<Wrapped<Toy>> {
    let (before_block, alive) = (before_block.clone(), Arc::downgrade(alive));
    wrapped(subject.job(plan), move || {
        let (before_block, alive) = (before_block.clone(), alive.upgrade().expect("the test is not over"));
        Box::new(move |toy, index, hidden, context, attention| {
            let _share = &alive;
            before_block(index);
            toy.block(index, hidden, context, attention)
        })
    })
}
