//! The actions of one rank, as data: the executor walks them, and tests can walk them without a device.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::plan::mesh::Axis;

/// One action of a rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "each action names the step, the patches, the blocks and the guidance branches it is for"
)]
pub enum Action {
    /// Receive the latents of `patches` after the previous step from the last stage.
    ReceiveLatents { patches: Range<usize> },
    /// Receive the hidden states of `patches` from the previous stage.
    ReceiveHidden { patches: Range<usize>, branches: Range<usize> },
    /// Receive the output of block `from` for `patches` from another stage, as an input of block `to`.
    ReceiveSkip { patches: Range<usize>, branches: Range<usize>, from: usize, to: usize },
    /// Embed the latents as tokens.
    Embed { step: usize, patches: Range<usize>, branches: Range<usize> },
    /// Run the transformer's `blocks`.
    Blocks { step: usize, blocks: Range<usize>, patches: Range<usize>, branches: Range<usize> },
    /// Send the hidden states to the next stage.
    SendHidden { patches: Range<usize>, branches: Range<usize> },
    /// Send the output of block `from` directly to the stage of block `to`.
    SendSkip { patches: Range<usize>, branches: Range<usize>, from: usize, to: usize },
    /// Turn the hidden states into a prediction.
    Finish { step: usize, patches: Range<usize>, branches: Range<usize> },
    /// Combine the predictions of all guidance branches and take the noise scheduler's step.
    Advance { step: usize, patches: Range<usize> },
    /// Send the new latents to the first stage.
    SendLatents { patches: Range<usize> },
}

/// The actions of `rank` for one picture.
pub fn schedule(plan: &Plan, rank: usize) -> Vec<Action> {
    let stages = plan.stages.len();
    let stage = plan.mesh.coordinate(rank, Axis::Pipeline);
    let (first, last) = (stage == 0, stage + 1 == stages);
    let blocks = plan.stage(rank);
    let mut actions = Vec::new();
    for step in 0..plan.steps {
        for patches in passes(plan, step) {
            let of = || patches.clone();
            if first && stages > 1 && step > 0 {
                // Latents arrive in the pieces of the previous step: as a whole in the first asynchronous step.
                match (step == plan.synchronous_steps, patches.start) {
                    (false, _) => actions.push(Action::ReceiveLatents { patches: of() }),
                    (true, 0) => actions.push(Action::ReceiveLatents { patches: 0..plan.patches.len() }),
                    (true, _) => {}
                }
            }
            for pass in plan.passes_at(rank, step) {
                let branches = || pass.clone();
                actions.push(match first {
                    true => Action::Embed { step, patches: of(), branches: branches() },
                    false => Action::ReceiveHidden { patches: of(), branches: branches() },
                });
                for &[from, to] in plan.skips.iter().filter(|skip| enters(skip, &blocks)) {
                    actions.push(Action::ReceiveSkip { patches: of(), branches: branches(), from, to });
                }
                actions.push(Action::Blocks {
                    step,
                    blocks: blocks.clone(),
                    patches: of(),
                    branches: branches(),
                });
                actions.push(match last {
                    true => Action::Finish { step, patches: of(), branches: branches() },
                    false => Action::SendHidden { patches: of(), branches: branches() },
                });
                for &[from, to] in plan.skips.iter().filter(|skip| leaves(skip, &blocks)) {
                    actions.push(Action::SendSkip { patches: of(), branches: branches(), from, to });
                }
            }
            if last {
                actions.push(Action::Advance { step, patches: of() });
                if stages > 1 {
                    actions.push(Action::SendLatents { patches: of() });
                }
            }
        }
    }
    if first && stages > 1 {
        actions.extend(
            passes(plan, plan.steps - 1).into_iter().map(|patches| Action::ReceiveLatents { patches }),
        );
    }
    actions
}

/// The directed edges between stages that carry transfers: from each stage to the next, from the last to the first, and
/// along long skip connections. Transfers along one edge are received in the order in which they are sent.
pub fn edges(plan: &Plan) -> BTreeSet<[usize; 2]> {
    let last = plan.stages.len() - 1;
    let onwards = (0..last).map(|stage| [stage, stage + 1]);
    let skips = plan.skips.iter().map(|skip| skip.map(|block| plan.stage_of(block)));
    onwards.chain([[last, 0]]).chain(skips).filter(|[from, to]| from != to).collect()
}

/// Whether a skip connection comes from before `blocks` and ends in them.
fn enters([from, to]: &[usize; 2], blocks: &Range<usize>) -> bool {
    *from < blocks.start && blocks.contains(to)
}

/// Whether a skip connection starts in `blocks` and ends behind them.
fn leaves([from, to]: &[usize; 2], blocks: &Range<usize>) -> bool {
    blocks.contains(from) && *to >= blocks.end
}

/// The passes through the blocks at `step`: one with all patches, or one per patch.
fn passes(plan: &Plan, step: usize) -> Vec<Range<usize>> {
    let count = plan.patches.len();
    let together = if step < plan.synchronous_steps { count } else { 1 };
    (0..count).step_by(together).map(|first| first..first + together).collect()
}
