//! Mistakes inside the engine would be detected: the comparisons of other tests are repeated with a wrong message, or
//! with wrong keys at one site of one rank. The effect of each mistake is at least a hundred times the tolerance of
//! those tests.

mod decorators;
mod hunyuan;
mod unet;

use std::sync::Arc;

use burn::tensor::Tensor;
use decorators::{Keys, Skip, Tampered, Wire, with_keys, with_skip};
use xdit_comm::LaunchOptions;
use xdit_core::link::Link;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan};
use xdit_tests::oracle::{self, Turns};
use xdit_tests::relative_l2;
use xdit_tests::toy::{Kind, Subject, Toy};
use xdit_tests::world::{Job, pictures, run_in};
use xdit_tests::wrapped::{Batch, Wrapped, batched};

const TOLERANCE: f64 = 1e-5;
const VISIBLE: f64 = 1e-3;
/// The exchanges of DistriFusion in a step, with two branches and five blocks; a pipeline has fewer.
const STEP: usize = 10;

/// A run of a toy of `kind`. All messages have the same size on all ranks, so that mistakes affect only their numbers.
struct Run {
    subject: Subject,
    plan: Plan,
}

impl Run {
    fn new(kind: Kind, axis: Axis, patches: usize, distrifusion: bool) -> Self {
        let mut subject = Subject { grid: [4, 6], steps: 4, ..Subject::new(kind) };
        subject.spec.heads = 6;
        // With parts from two other ranks, their order can be wrong.
        let degree = if axis == Axis::Ulysses { 3 } else { 2 };
        let mesh = Mesh::default().with(axis, degree);
        let config = ParallelConfig {
            mesh,
            patches: Some(patches),
            warmup_steps: 0,
            distrifusion,
            ..ParallelConfig::default()
        };
        let plan = Plan::new(&config, &subject.work()).unwrap();
        Self { subject, plan }
    }

    /// The distance of the final latents from the oracle's, with the given mistakes in messages and keys.
    fn error(&self, wire: Option<(&'static str, Wire)>, keys: Option<Keys>) -> f64 {
        self.error_at(wire, keys, 1)
    }

    /// As [`error`](Self::error), with wrong keys in another block than the second one.
    fn error_at(&self, wire: Option<(&'static str, Wire)>, keys: Option<Keys>, block: usize) -> f64 {
        self.distance(wire, |job| with_keys(job, keys, block))
    }

    /// The distance of the final latents from the oracle's, with the given mistake in messages, in a job with mistakes.
    fn distance(
        &self,
        wire: Option<(&'static str, Wire)>,
        mistaken: impl FnOnce(Job<Toy>) -> Job<Wrapped<Toy>>,
    ) -> f64 {
        let Self { subject, plan } = self;
        let turns = Turns { patches: plan.stale_patches(), warmup_steps: 0, displaced: plan.distrifusion };
        let (toy, noise) = (Toy::whole(subject), subject.noise());
        let (guidance, branches) = (subject.guidance(), subject.branches());
        let expected =
            oracle::denoise(&toy, &*subject.scheduler(), &guidance, &branches, &noise, turns, None);
        let job = mistaken(subject.job(plan.clone()));
        let seen = move |world: Arc<dyn Link>| match wire {
            Some((group, wire)) => Tampered::new(world, group, wire),
            None => world,
        };
        let [actual] =
            <[Tensor<3>; 1]>::try_from(pictures(run_in(job, &LaunchOptions::default(), seen))).unwrap();
        relative_l2(&actual, &expected)
    }
}

/// For each method, one message is in the wrong place or of the wrong step.
#[test]
fn wrong_messages_show() {
    for (kind, axis, patches, distrifusion, group, wires) in [
        (Kind::Cross, Axis::Ring, 1, false, "ring", &[Wire::KeysMoved, Wire::PartsMoved, Wire::Returned][..]),
        (Kind::Joint, Axis::Ring, 1, true, "ring", &[Wire::KeysMoved, Wire::ValuesFirst, Wire::Late(STEP)]),
        (Kind::Joint, Axis::Ulysses, 1, false, "ulysses", &[Wire::PartsMoved, Wire::Returned]),
        (Kind::Alone, Axis::Tensor, 1, false, "tp", &[Wire::Returned]),
        (Kind::Joint, Axis::Cfg, 1, false, "cfg", &[Wire::Returned]),
        (Kind::Joint, Axis::Pipeline, 3, false, "pp", &[Wire::Late(STEP)]),
    ] {
        let run = Run::new(kind, axis, patches, distrifusion);
        let sound = run.error(Some((group, Wire::Sound)), None);
        assert!(sound <= TOLERANCE, "{}{sound:.1e} without a mistake", run.plan);
        for &wire in wires {
            let error = run.error(Some((group, wire)), None);
            println!(
                "{kind:?}, {group}, distrifusion: {distrifusion}, {wire:?}: {error:.1e} ({sound:.0e} without)"
            );
            assert!(error > VISIBLE, "{group}: {wire:?} makes {error:.1e} only");
        }
    }
}

/// The model passes wrong tensors to attention at one site, on all ranks or on one.
#[test]
fn wrong_keys_at_one_site_show() {
    let all = [Keys::Moved, Keys::TextTwice, Keys::PaddingSeen, Keys::HeadsMoved];
    for (axis, patches, distrifusion) in [
        (Axis::Pipeline, 3, false),
        (Axis::Ring, 1, false),
        (Axis::Ring, 1, true),
        (Axis::Ulysses, 2, false),
        (Axis::Cfg, 1, false),
    ] {
        let run = Run::new(Kind::Joint, axis, patches, distrifusion);
        let sound = run.error(None, None);
        assert!(sound <= TOLERANCE, "{}{sound:.1e} without a mistake", run.plan);
        for keys in all {
            let error = run.error(None, Some(keys));
            println!("{axis:?}, distrifusion: {distrifusion}, {keys:?}: {error:.1e} ({sound:.0e} without)");
            assert!(error > VISIBLE, "{axis:?}: {keys:?} makes {error:.1e} only");
        }
    }
}

/// The contexts of a batch are those of the branches in another order, or all of one branch.
#[test]
fn wrong_branches_of_a_batch_show() {
    for (kind, axis, patches, distrifusion) in [
        (Kind::Cross, Axis::Pipeline, 3, false),
        (Kind::Cross, Axis::Ring, 1, true),
        (Kind::Joint, Axis::Pipeline, 3, false),
        (Kind::Joint, Axis::Ulysses, 2, false),
        (Kind::Joint, Axis::Tensor, 1, false),
    ] {
        let mut run = Run::new(kind, axis, patches, distrifusion);
        run.subject.text_tokens = if kind == Kind::Joint { vec![4, 4] } else { vec![3, 5] };
        run.plan.guidance_batch = true;
        let error = |batch| run.distance(None, |job| batched(job, batch));
        let sound = error(Batch::Sound);
        assert!(sound <= TOLERANCE, "{}{sound:.1e} without a mistake", run.plan);
        for batch in [Batch::Reversed, Batch::FirstOnly] {
            let error = error(batch);
            println!("{kind:?}, {axis:?}, {batch:?}: {error:.1e} ({sound:.0e} without)");
            assert!(error > VISIBLE, "{axis:?}: {batch:?} makes {error:.1e} only");
        }
    }
}

/// In a clip, a block attends to another frame, or to another place.
#[test]
fn wrong_frames_and_places_show() {
    for (axis, patches, distrifusion) in [
        (Axis::Pipeline, 3, false),
        (Axis::Ring, 1, false),
        (Axis::Ring, 1, true),
        (Axis::Ulysses, 2, false),
        (Axis::Tensor, 1, false),
    ] {
        let run = Run::new(Kind::Clip, axis, patches, distrifusion);
        let sound = run.error(None, None);
        assert!(sound <= TOLERANCE, "{}{sound:.1e} without a mistake", run.plan);
        for (block, what) in [(0, "frames"), (1, "places")] {
            let error = run.error_at(None, Some(Keys::SpanMoved), block);
            println!("{axis:?}, distrifusion: {distrifusion}, {what}: {error:.1e} ({sound:.0e} without)");
            assert!(error > VISIBLE, "{axis:?}: other {what} make {error:.1e} only");
        }
    }
}

/// A block takes a skip connection that is another block's output, or another token's.
#[test]
fn wrong_skips_show() {
    for (axis, patches, distrifusion) in [
        (Axis::Pipeline, 3, false),
        (Axis::Ring, 1, false),
        (Axis::Ring, 1, true),
        (Axis::Ulysses, 2, false),
        (Axis::Tensor, 1, false),
    ] {
        let run = Run::new(Kind::UShaped, axis, patches, distrifusion);
        for &[from, to] in &run.subject.spec.skips {
            let sound = run.distance(None, |job| with_skip(job, None, to));
            assert!(sound <= TOLERANCE, "{}{sound:.1e} without a mistake", run.plan);
            for skip in [Skip::OfBlockBefore, Skip::TokensMoved] {
                let error = run.distance(None, |job| with_skip(job, Some(skip), to));
                println!(
                    "{axis:?}, distrifusion: {distrifusion}, {from} to {to}, {skip:?}: {error:.1e} ({sound:.0e} without)"
                );
                assert!(error > VISIBLE, "{axis:?}, {from} to {to}: {skip:?} makes {error:.1e} only");
            }
        }
    }
}
