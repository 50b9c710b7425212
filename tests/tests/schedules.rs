//! Checks that the schedules of all ranks fit together, by running them with queues instead of devices.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use xdit_core::plan::guidance::Branch;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::schedule::{Action, schedule};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::transformer::TransformerSpec;

const BLOCKS: usize = 5;

/// The messages between ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    /// Tokens after all blocks before `block`.
    Hidden { step: usize, patches: Range<usize>, branches: Range<usize>, block: usize },
    /// The output of block `from` for block `to`.
    Skip { patches: Range<usize>, branches: Range<usize>, from: usize, to: usize },
    /// Samples after `steps` steps.
    Latents { patches: Range<usize>, steps: usize },
}

/// A rank, and its progress.
struct Rank {
    actions: VecDeque<Action>,
    /// The number of steps that the sample of each patch has taken.
    samples: Vec<usize>,
    hidden: Option<Message>,
    /// The skip connections that wait for their blocks.
    skips: BTreeSet<[usize; 2]>,
    finished: BTreeSet<usize>,
}

/// The step, patch, branch and block of each computation, and their number.
type Computed = BTreeMap<(usize, usize, usize, usize), usize>;

struct World<'a> {
    plan: &'a Plan,
    ranks: Vec<Rank>,
    queues: BTreeMap<(usize, usize), VecDeque<Message>>,
    /// The branches that ranks of a CFG group, identified by its first rank, have contributed to a step of some
    /// patches.
    combined: BTreeMap<(usize, usize, usize), BTreeSet<usize>>,
    computed: Vec<Computed>,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan) -> Self {
        let rank = |rank| Rank {
            actions: schedule(plan, rank).into(),
            samples: vec![0; plan.patches.len()],
            hidden: None,
            skips: BTreeSet::new(),
            finished: BTreeSet::new(),
        };
        let ranks: Vec<_> = (0..plan.mesh.size()).map(rank).collect();
        let computed = vec![Computed::new(); ranks.len()];
        Self { plan, ranks, queues: BTreeMap::new(), combined: BTreeMap::new(), computed }
    }

    /// The ranks of the pipeline of `rank`, stage by stage.
    fn pipeline(&self, rank: usize) -> Vec<usize> {
        self.plan.mesh.group(rank, &[Axis::Pipeline]).ranks().to_vec()
    }

    /// Runs the next action of `at`, and returns whether it could run.
    fn walk(&mut self, at: usize) -> bool {
        let Some(action) = self.ranks[at].actions.front().cloned() else { return false };
        let pipeline = self.pipeline(at);
        let stage = self.plan.mesh.coordinate(at, Axis::Pipeline);
        let first_block = self.plan.stage(at).start;
        match action {
            Action::ReceiveLatents { patches } => {
                let queue = self.queues.entry((*pipeline.last().unwrap(), at)).or_default();
                let Some(message) = queue.pop_front() else { return false };
                let steps = self.ranks[at].samples[patches.start] + 1;
                assert_eq!(message, Message::Latents { patches: patches.clone(), steps }, "rank {at}");
                self.ranks[at].samples[patches].fill(steps);
            }
            Action::ReceiveHidden { patches, branches } => {
                let queue = self.queues.entry((pipeline[stage - 1], at)).or_default();
                let Some(message) = queue.pop_front() else { return false };
                let Message::Hidden { step, .. } = message else { panic!("rank {at} gets {message:?}") };
                assert_eq!(
                    message,
                    Message::Hidden { step, patches, branches, block: first_block },
                    "rank {at}"
                );
                assert_eq!(self.ranks[at].hidden.replace(message), None);
            }
            Action::ReceiveSkip { patches, branches, from, to } => {
                let queue = self.queues.entry((pipeline[self.plan.stage_of(from)], at)).or_default();
                let Some(message) = queue.pop_front() else { return false };
                assert_eq!(message, Message::Skip { patches, branches, from, to }, "rank {at}");
                assert!(self.ranks[at].skips.insert([from, to]), "rank {at}");
            }
            Action::Embed { step, patches, branches } => {
                assert!(
                    self.ranks[at].samples[patches.clone()].iter().all(|&steps| steps == step),
                    "rank {at}"
                );
                let message = Message::Hidden { step, patches, branches, block: 0 };
                assert_eq!(self.ranks[at].hidden.replace(message), None);
            }
            Action::Blocks { step, blocks, patches, branches } => {
                let before = Message::Hidden {
                    step,
                    patches: patches.clone(),
                    branches: branches.clone(),
                    block: blocks.start,
                };
                assert_eq!(self.ranks[at].hidden, Some(before), "rank {at}");
                let each = patches.clone().flat_map(|patch| blocks.clone().map(move |block| (patch, block)));
                for ((patch, block), branch) in
                    each.flat_map(|each| branches.clone().map(move |branch| (each, branch)))
                {
                    *self.computed[at].entry((step, patch, branch, block)).or_default() += 1;
                }
                for block in blocks.clone() {
                    for skip in &self.plan.skips {
                        if skip[1] == block {
                            assert!(self.ranks[at].skips.remove(skip), "rank {at} has nothing of {skip:?}");
                        } else if skip[0] == block {
                            assert!(self.ranks[at].skips.insert(*skip), "rank {at}");
                        }
                    }
                }
                self.ranks[at].hidden = Some(Message::Hidden { step, patches, branches, block: blocks.end });
            }
            Action::SendHidden { patches, branches } => {
                let message = self.ranks[at].hidden.take().expect("something to send");
                let Message::Hidden { step, block, .. } = message else { unreachable!() };
                assert_eq!(message, Message::Hidden { step, patches, branches, block }, "rank {at}");
                self.queues.entry((at, pipeline[stage + 1])).or_default().push_back(message);
            }
            Action::SendSkip { patches, branches, from, to } => {
                assert!(self.ranks[at].skips.remove(&[from, to]), "rank {at}");
                let target = pipeline[self.plan.stage_of(to)];
                let message = Message::Skip { patches, branches, from, to };
                self.queues.entry((at, target)).or_default().push_back(message);
            }
            Action::Finish { step, patches, branches } => {
                let end = Message::Hidden { step, patches, branches: branches.clone(), block: BLOCKS };
                assert_eq!(self.ranks[at].hidden.take(), Some(end), "rank {at}");
                self.ranks[at].finished.extend(branches);
            }
            Action::Advance { step, patches } => {
                // An exchange between the ranks of the group: none continues before all have arrived.
                let group = self.plan.mesh.group(at, &[Axis::Cfg]).ranks()[0];
                let combined = self.combined.entry((group, step, patches.start)).or_default();
                combined.extend(&self.ranks[at].finished);
                let takes_part = |branch: &&Branch| branch.steps.contains(&step);
                if combined.len() < self.plan.branches.iter().filter(takes_part).count() {
                    return false;
                }
                self.ranks[at].finished.clear();
                for steps in &mut self.ranks[at].samples[patches] {
                    assert_eq!(*steps, step, "rank {at}");
                    *steps += 1;
                }
            }
            Action::SendLatents { patches } => {
                let steps = self.ranks[at].samples[patches.start];
                let message = Message::Latents { patches, steps };
                self.queues.entry((at, pipeline[0])).or_default().push_back(message);
            }
        }
        self.ranks[at].actions.pop_front();
        true
    }

    fn run(&mut self) {
        while (0..self.ranks.len()).any(|at| self.walk(at)) {}
    }

    fn check_end(&self) {
        let plan = self.plan;
        for (at, rank) in self.ranks.iter().enumerate() {
            assert!(rank.actions.is_empty(), "{plan}rank {at} waits for ever in {:?}", rank.actions[0]);
            assert_eq!(rank.hidden, None);
            assert!(rank.skips.is_empty(), "{plan}rank {at} kept {:?}", rank.skips);
            let stage = plan.mesh.coordinate(at, Axis::Pipeline);
            if stage == 0 || stage + 1 == plan.stages.len() {
                assert!(rank.samples.iter().all(|&steps| steps == plan.steps), "{plan}rank {at}");
            }
        }
        assert!(self.queues.values().all(VecDeque::is_empty), "{plan}messages are left over");
        // Each rank of the sequence and tensor axes computes its share of everything.
        let predictions: usize = plan.branches.iter().map(|branch| branch.steps.len()).sum();
        let count = predictions * plan.patches.len() * BLOCKS;
        for at in 0..self.ranks.len() {
            let members = plan.mesh.group(at, &[Axis::Cfg, Axis::Pipeline]);
            let mut together = Computed::new();
            for &member in members.ranks() {
                for (key, times) in &self.computed[member] {
                    *together.entry(*key).or_default() += times;
                }
            }
            assert_eq!(together.len(), count, "{plan}something is not computed");
            assert!(together.values().all(|&times| times == 1), "{plan}something is computed twice");
        }
    }
}

fn plans() -> Vec<Plan> {
    let skips = vec![[0, 4], [1, 3]];
    let spec = TransformerSpec {
        patch: 1,
        channels: 1,
        blocks: BLOCKS,
        heads: 6,
        head_dim: 1,
        skips,
        block_parameters: Vec::new(),
    };
    let mut plans = Vec::new();
    let stages = [vec![5], vec![3, 2], vec![1, 4], vec![2, 1, 2], vec![1, 1, 1, 2], vec![1; 5]];
    for (stage_blocks, cfg) in stages.iter().flat_map(|lengths| [1, 2].map(|cfg| (lengths, cfg))) {
        for (patches, warmup_steps) in [1, 2, 3, 4, 8].into_iter().flat_map(|m| (0..5).map(move |w| (m, w))) {
            let late = Branch { steps: 1..3, skip_layers: vec![2] };
            for (steps, guided, late) in
                [(1, true, None), (2, true, None), (4, cfg == 2, None), (4, true, Some(late))]
            {
                let inner = [Mesh::default(), Mesh::default().with(Axis::Ring, 2).with(Axis::Tensor, 2)];
                for (inner, batch) in inner.into_iter().flat_map(|inner| [false, true].map(|b| (inner, b))) {
                    let mesh = inner.with(Axis::Cfg, cfg).with(Axis::Pipeline, stage_blocks.len());
                    let stage_blocks = Some(stage_blocks.clone());
                    let config = ParallelConfig {
                        mesh,
                        patches: Some(patches),
                        warmup_steps,
                        stage_blocks,
                        guidance_batch: Some(batch),
                        ..Default::default()
                    };
                    let branches = Branch::classifier_free(guided).into_iter().chain(late.clone()).collect();
                    let work = Work { spec: spec.clone(), tokens: 23, grain: 1, steps, branches, images: 1 };
                    plans.push(Plan::new(&config, &work).unwrap());
                }
            }
        }
    }
    plans
}

#[test]
fn every_receive_has_its_send_and_everything_is_computed_once() {
    let plans = plans();
    for plan in &plans {
        let mut world = World::new(plan);
        world.run();
        world.check_end();
    }
    println!("{} plans", plans.len());
    assert_eq!(plans.len(), 4800);
}

/// The check above detects a deadlock.
#[test]
#[should_panic(expected = "waits for ever")]
fn a_lost_message_would_show() {
    let plan = plans().into_iter().find(|plan| plan.stages.len() == 3 && plan.patches.len() == 4).unwrap();
    let mut world = World::new(&plan);
    let lost = world.ranks[0].actions.iter().rposition(|action| matches!(action, Action::SendHidden { .. }));
    world.ranks[0].actions.remove(lost.unwrap());
    world.ranks[0].hidden = None;
    world.run();
    world.check_end();
}
