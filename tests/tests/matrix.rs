//! Compares every mesh of up to eight ranks × patches × warm-up with the oracle, over links with the order of NCCL,
//! and shows that the likely mistakes would be detected.

use std::collections::HashSet;

use burn::tensor::Tensor;
use xdit_core::pipeline::{Cancel, Keep};
use xdit_core::plan::guidance::Branch;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::run::ranks::Ranks;
use xdit_core::tokens::Tokens;
use xdit_tests::oracle::{self, Fault, Turns};
use xdit_tests::toy::{Kind, Subject, Toy};
use xdit_tests::world::{meshes, pictures_in_order, run, run_on};
use xdit_tests::{assert_close, device, relative_l2};

/// The tolerance of the final latents, for other orders of f32 sums through all blocks and steps.
const TOLERANCE: f64 = 1e-5;
/// The minimum effect of a mistake, a hundred times the tolerance.
const VISIBLE: f64 = 1e-3;
const MAX_RANKS: usize = 8;
const PATCHES: [usize; 5] = [1, 2, 3, 4, 8];
/// All axes except data parallelism, which does not affect a picture.
const AXES: [Axis; 5] = [Axis::Cfg, Axis::Pipeline, Axis::Ring, Axis::Ulysses, Axis::Tensor];

/// The number of blocks of each stage, with the longest stage last: the opposite of an even split.
fn uneven(blocks: usize, stages: usize) -> Option<Vec<usize>> {
    let mut lengths = vec![1; stages];
    lengths[stages - 1] = blocks.checked_sub(stages - 1).filter(|&last| last > 0)?;
    Some(lengths)
}

fn latents(subject: &Subject, plan: &Plan) -> Tensor<3> {
    let [picture] = <[_; 1]>::try_from(pictures_in_order(subject.job(plan.clone()))).expect("one picture");
    picture
}

/// The latents over links that order only the messages between two ranks.
fn latents_out_of_order(subject: &Subject, plan: &Plan) -> Tensor<3> {
    let pictures = run(subject.job(plan.clone()), &mut ()).unwrap_or_else(|error| panic!("{plan}{error}"));
    let [picture] = <[_; 1]>::try_from(pictures).expect("one picture");
    picture.x
}

fn expected(subject: &Subject, patches: usize, warmup_steps: usize, fault: Option<Fault>) -> Tensor<3> {
    let (toy, turns) = (Toy::whole(subject), Turns { patches, warmup_steps, displaced: false });
    let (guidance, branches) = (subject.guidance(), subject.branches());
    oracle::denoise(&toy, &*subject.scheduler(), &guidance, &branches, &subject.noise(), turns, fault)
}

/// Compares every legal plan of `subject` once with the oracle, and prints the largest distance.
fn check_all(subject: &Subject) {
    let serial = expected(subject, 1, 0, None);
    let (mut ran, mut refused, mut repeated) = (0, 0, 0);
    let (mut worst, mut seen, mut wrong) = (0.0_f64, HashSet::new(), Vec::new());
    for patches in PATCHES {
        for warmup_steps in 0..=subject.steps {
            let oracle = expected(subject, patches, warmup_steps, None);
            let stale = relative_l2(&oracle, &serial);
            if patches == 1 || warmup_steps == subject.steps {
                assert!(stale <= TOLERANCE, "M = {patches}, W = {warmup_steps}: {stale:.1e} from serial");
            } else {
                println!("{:?}, M = {patches}, W = {warmup_steps}: {stale:.1e} from serial", subject.kind);
                assert!(
                    stale > VISIBLE,
                    "M = {patches}, W = {warmup_steps}: keys of an earlier step must show"
                );
            }
            for (index, mesh) in meshes(&AXES, MAX_RANKS).into_iter().enumerate() {
                let [pipeline, ulysses, tensor] =
                    [Axis::Pipeline, Axis::Ulysses, Axis::Tensor].map(|axis| mesh.degree(axis));
                let blocks = subject.spec.blocks;
                let stage_blocks = uneven(blocks, pipeline).filter(|_| (index + patches) % 2 == 0);
                let config = ParallelConfig {
                    mesh,
                    patches: Some(patches),
                    warmup_steps,
                    stage_blocks,
                    ..Default::default()
                };
                let plan = Plan::new(&config, &subject.work());
                let legal = pipeline <= blocks
                    && ulysses * tensor <= subject.spec.heads
                    && patches * mesh.sequence_degree() <= subject.tokens() / subject.frames;
                assert_eq!(plan.is_ok(), legal, "{mesh}, M = {patches}: {plan:?}");
                let Ok(plan) = plan else {
                    refused += 1;
                    continue;
                };
                // With one patch, the plan is the same for any warm-up.
                if !seen.insert(format!("{plan:?}")) {
                    continue;
                }
                ran += 1;
                let actual = latents(subject, &plan);
                let error = relative_l2(&actual, &oracle);
                worst = worst.max(error);
                if error > TOLERANCE {
                    wrong.push(format!("{mesh}, M = {patches}, W = {warmup_steps}: {error:.1e}"));
                }
                if ran % 40 == 0 {
                    repeated += 1;
                    let again = latents_out_of_order(subject, &plan).into_data();
                    assert_eq!(actual.into_data(), again, "{mesh}, M = {patches}: two runs differ");
                }
            }
        }
    }
    println!("{:?}: {ran} plans, worst {worst:.1e}; {refused} refused, {repeated} run twice", subject.kind);
    assert!(ran > 300, "only {ran} plans");
    assert!(wrong.is_empty(), "{} of {ran} plans are wrong:\n  {}", wrong.len(), wrong.join("\n  "));
}

#[test]
fn self_attention_on_every_mesh() {
    check_all(&Subject::new(Kind::Alone));
}

#[test]
fn cross_attention_on_every_mesh() {
    check_all(&Subject::new(Kind::Cross));
}

#[test]
fn joint_attention_on_every_mesh() {
    check_all(&Subject::new(Kind::Joint));
}

#[test]
fn long_skip_connections_on_every_mesh() {
    check_all(&Subject::new(Kind::UShaped));
}

#[test]
fn attention_within_frames_and_places_on_every_mesh() {
    check_all(&Subject::new(Kind::Clip));
}

/// A third branch begins later and ends earlier than the others, and skips blocks.
#[test]
fn a_branch_of_some_steps_on_every_mesh() {
    let steps = 4;
    let skipping = Some(Branch { steps: 1..3, skip_layers: vec![1, 3] });
    let subject = Subject { steps, skipping, ..Subject::new(Kind::Joint) };
    let without = Subject { steps, ..Subject::new(Kind::Joint) };
    let all_steps = Branch { steps: 0..4, ..subject.skipping.clone().unwrap() };
    let all_steps = Subject { skipping: Some(all_steps), ..subject.clone() };
    for (other, what) in [(without, "without the branch"), (all_steps, "with the branch in all steps")] {
        let distance = relative_l2(&expected(&subject, 1, 0, None), &expected(&other, 1, 0, None));
        println!("{what}: {distance:.1e} apart");
        assert!(distance > VISIBLE, "{what}: {distance:.1e} only");
    }
    check_all(&subject);
}

/// With guidance in one step only, the ranks of the positive branch are idle in the others.
#[test]
fn guidance_in_some_steps_on_every_mesh() {
    let subject = Subject::new(Kind::Joint);
    let branches = vec![Branch::whole(), Branch { steps: 1..2, skip_layers: Vec::new() }];
    let work = Work { branches: branches.clone(), ..subject.work() };
    let mut ran = 0;
    for (patches, warmup_steps) in [(1, 0), (3, 0), (2, 3)] {
        let (toy, turns) = (Toy::whole(&subject), Turns { patches, warmup_steps, displaced: false });
        let (scheduler, guidance) = (subject.scheduler(), subject.guidance());
        let oracle = oracle::denoise(&toy, &*scheduler, &guidance, &branches, &subject.noise(), turns, None);
        for mesh in meshes(&AXES, 4) {
            let config = ParallelConfig { mesh, patches: Some(patches), warmup_steps, ..Default::default() };
            let plan = Plan::new(&config, &work).unwrap();
            assert_close(&format!("{mesh}, M = {patches}"), &latents(&subject, &plan), &oracle, TOLERANCE);
            ran += 1;
        }
    }
    assert!(ran > 60, "only {ran} plans");
}

/// Both branches of guidance pass through the blocks as one batch, a third one by itself. Texts that blocks change have one
/// length.
#[test]
fn branches_as_one_batch_on_every_mesh() {
    let joint = Subject { text_tokens: vec![4, 4], steps: 4, ..Subject::new(Kind::Joint) };
    let skipping = Some(Branch { steps: 1..3, skip_layers: vec![1, 3] });
    let others = [Kind::Alone, Kind::Cross, Kind::UShaped, Kind::Clip].map(Subject::new);
    let subjects = others.into_iter().chain([joint.clone(), Subject { skipping, ..joint }]);
    let (mut ran, mut worst) = (0, 0.0_f64);
    for subject in subjects {
        for (patches, warmup_steps) in [(1, 0), (3, 0), (2, 3)] {
            let oracle = expected(&subject, patches, warmup_steps, None);
            for mesh in meshes(&AXES, 4) {
                let config = ParallelConfig {
                    mesh,
                    patches: Some(patches),
                    warmup_steps,
                    guidance_batch: Some(true),
                    ..Default::default()
                };
                let Ok(plan) = Plan::new(&config, &subject.work()) else { continue };
                assert_eq!(plan.passes_of(0)[0].len(), 2 / mesh.degree(Axis::Cfg), "{plan}");
                let error = relative_l2(&latents(&subject, &plan), &oracle);
                assert!(error <= TOLERANCE, "{:?}, {mesh}, M = {patches}: {error:.1e}", subject.kind);
                (ran, worst) = (ran + 1, worst.max(error));
            }
        }
    }
    println!("{ran} plans, worst {worst:.1e}");
    assert!(ran > 350, "only {ran} plans");
}

/// The comparisons above would detect these mistakes.
#[test]
fn mistakes_would_show() {
    let faults = [
        (Fault::TextTwice, vec![Kind::Joint]),
        (Fault::TextLost, vec![Kind::Joint]),
        (Fault::KeysMoved, vec![Kind::Alone, Kind::Cross, Kind::Joint, Kind::Clip]),
        (Fault::PaddingSeen, vec![Kind::Alone, Kind::Cross, Kind::Joint]),
        (Fault::CacheLost, vec![Kind::Alone, Kind::Cross, Kind::Joint, Kind::Clip]),
        (Fault::PositionsLost, vec![Kind::Alone, Kind::Cross, Kind::Joint, Kind::Clip]),
        (Fault::FramesMoved, vec![Kind::Clip]),
        (Fault::PlacesMixed, vec![Kind::Clip]),
    ];
    for (fault, kinds) in faults {
        for kind in kinds {
            let subject = Subject::new(kind);
            let error = relative_l2(&expected(&subject, 3, 1, Some(fault)), &expected(&subject, 3, 1, None));
            println!("{kind:?}, {fault:?}: relative L2 error {error:.1e}");
            assert!(error > VISIBLE, "{kind:?}: {fault:?} makes {error:.1e} only");
        }
    }
}

/// Four ranks run consecutive requests with different sizes, texts, warm-ups and meshes in one world, and keep their
/// shares as long as they fit.
#[test]
fn a_request_leaves_nothing_behind() {
    use Axis::{Cfg, Pipeline, Ring, Tensor, Ulysses};
    let request = |grid, text_tokens: &[usize], axes: [Axis; 2], patches, warmup_steps| {
        let text_tokens = text_tokens.to_vec();
        let subject = Subject { grid, text_tokens, ..Subject::new(Kind::Joint) };
        let mesh = axes.iter().fold(Mesh::default(), |mesh, &axis| mesh.with(axis, 2));
        let config = ParallelConfig { mesh, patches: Some(patches), warmup_steps, ..Default::default() };
        let plan = Plan::new(&config, &subject.work()).unwrap();
        (subject, plan)
    };
    let requests = [
        request([1, 37], &[3, 5], [Pipeline, Ulysses], 4, 0),
        request([5, 5], &[2, 2], [Ring, Tensor], 3, 1),
        request([1, 23], &[5, 3], [Cfg, Pipeline], 2, 0),
        // Without guidance.
        request([5, 5], &[4], [Pipeline, Ring], 3, 0),
        request([1, 37], &[3, 5], [Pipeline, Ulysses], 4, 0),
    ];
    let alone = requests.each_ref().map(|(subject, plan)| latents(subject, plan));
    let (model, _) = requests[0].0.job(requests[0].1.clone()).split();
    let mut ranks = Ranks::new(model, vec![device()], Keep::All);
    for (index, ((subject, plan), alone)) in requests.iter().zip(alone).enumerate() {
        let (_, job) = subject.job(plan.clone()).split();
        let pictures = run_on(&mut ranks, job, &Cancel::new(), &mut ()).unwrap();
        let [Tokens { x: picture, .. }] = <[_; 1]>::try_from(pictures).unwrap();
        assert_eq!(picture.clone().into_data(), alone.into_data(), "request {index} is not what it is alone");
        let oracle = expected(subject, plan.patches.len(), plan.synchronous_steps, None);
        assert_close(&format!("request {index}"), &picture, &oracle, TOLERANCE);
    }
}
