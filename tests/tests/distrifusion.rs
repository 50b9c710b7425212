//! Compares DistriFusion, on every mesh of up to eight ranks and on a single rank with the same patches, with the
//! oracle.

use burn::tensor::Tensor;
use xdit_core::plan::guidance::Branch;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::tokens::Tokens;
use xdit_tests::oracle::{self, Turns};
use xdit_tests::toy::{Kind, Subject, Toy};
use xdit_tests::world::{meshes, pictures_in_order};
use xdit_tests::{bits, relative_l2};

/// The tolerance of the final latents, for other orders of f32 sums through all blocks and steps.
const TOLERANCE: f64 = 1e-5;
/// The minimum effect of keys from another step, a hundred times the tolerance.
const VISIBLE: f64 = 1e-3;
const MAX_RANKS: usize = 8;
const AXES: [Axis; 5] = [Axis::Data, Axis::Cfg, Axis::Ring, Axis::Ulysses, Axis::Tensor];

/// Has one step more than elsewhere, because the first step after the warm-up is synchronous, too.
fn subject(kind: Kind) -> Subject {
    Subject { steps: 4, ..Subject::new(kind) }
}

/// Different noise for each picture.
fn noise(subject: &Subject, picture: usize) -> Tokens {
    let noise = subject.noise();
    let x = noise.x.clone().mul_scalar(1.0 - 0.3 * picture as f32);
    noise.with(x)
}

fn expected(subject: &Subject, picture: usize, turns: Turns) -> Tensor<3> {
    let (toy, noise) = (Toy::whole(subject), noise(subject, picture));
    let (guidance, branches) = (subject.guidance(), subject.branches());
    oracle::denoise(&toy, &*subject.scheduler(), &guidance, &branches, &noise, turns, None)
}

/// The plan for `mesh`, with one picture for each rank of data parallelism.
fn plan(subject: &Subject, mesh: Mesh, patches: usize, warmup_steps: usize) -> xdit_core::Result<Plan> {
    let config = ParallelConfig {
        mesh,
        patches: Some(patches),
        warmup_steps,
        distrifusion: true,
        ..ParallelConfig::default()
    };
    Plan::new(&config, &Work { images: mesh.degree(Axis::Data), ..subject.work() })
}

fn latents(subject: &Subject, plan: &Plan) -> Vec<Tensor<3>> {
    let mut job = subject.job(plan.clone());
    let images = plan.mesh.degree(Axis::Data);
    job.guidance = vec![subject.guidance(); images];
    job.noise = (0..images).map(|picture| noise(subject, picture)).collect();
    pictures_in_order(job)
}

/// Compares every legal plan of `subject` with the oracle, and prints the largest distance.
fn check_all(subject: &Subject) {
    let (mut ran, mut refused, mut repeated, mut worst) = (0, 0, 0, 0.0_f64);
    let mut wrong = Vec::new();
    let mut check = |strips: usize, warmup_steps, oracles: &[Tensor<3>], mesh: Mesh, patches| {
        let legal = mesh.degree(Axis::Ulysses) * mesh.degree(Axis::Tensor) <= subject.spec.heads
            && strips * mesh.degree(Axis::Ulysses) <= subject.tokens() / subject.frames;
        let plan = plan(subject, mesh, patches, warmup_steps);
        assert_eq!(plan.is_ok(), legal, "{mesh}, M = {patches}: {plan:?}");
        let Ok(plan) = plan else {
            refused += 1;
            return;
        };
        ran += 1;
        let actual = latents(subject, &plan);
        assert_eq!(actual.len(), mesh.degree(Axis::Data));
        for (actual, oracle) in actual.iter().zip(oracles) {
            let error = relative_l2(actual, oracle);
            worst = worst.max(error);
            if error > TOLERANCE {
                wrong.push(format!("{mesh}, M = {patches}, W = {warmup_steps}: {error:.1e}"));
            }
        }
        if ran % 20 == 0 {
            repeated += 1;
            let again = latents(subject, &plan);
            assert_eq!(
                actual.iter().map(bits).collect::<Vec<_>>(),
                again.iter().map(bits).collect::<Vec<_>>()
            );
        }
    };
    for strips in 2..=MAX_RANKS {
        for warmup_steps in [0, 1, 2, subject.steps] {
            let turns = Turns { patches: strips, warmup_steps, displaced: true };
            let oracles: Vec<_> = (0..4).map(|picture| expected(subject, picture, turns)).collect();
            for mesh in meshes(&AXES, MAX_RANKS) {
                let alone = mesh.degree(Axis::Ring) == 1;
                if mesh.degree(Axis::Ring) == strips
                    || alone && mesh.degree(Axis::Data) == 1 && strips % 3 == 2
                {
                    check(strips, warmup_steps, &oracles, mesh, if alone { strips } else { 1 });
                }
            }
        }
    }
    println!("{:?}: {ran} plans, worst {worst:.1e}; {refused} refused, {repeated} run twice", subject.kind);
    assert!(ran > 150, "only {ran} plans");
    assert!(wrong.is_empty(), "{} of {ran} plans are wrong:\n  {}", wrong.len(), wrong.join("\n  "));
}

#[test]
fn self_attention_on_every_mesh() {
    check_all(&subject(Kind::Alone));
}

#[test]
fn cross_attention_on_every_mesh() {
    check_all(&subject(Kind::Cross));
}

#[test]
fn joint_attention_on_every_mesh() {
    check_all(&subject(Kind::Joint));
}

#[test]
fn skip_connections_on_every_mesh() {
    check_all(&subject(Kind::UShaped));
}

#[test]
fn attention_within_frames_and_places_on_every_mesh() {
    check_all(&subject(Kind::Clip));
}

/// A third branch begins in the first step that would be asynchronous without it.
#[test]
fn a_branch_of_some_steps_on_every_mesh() {
    let skipping = Some(Branch { steps: 1..3, skip_layers: vec![1, 3] });
    check_all(&Subject { skipping, ..subject(Kind::Joint) });
}

/// Both branches of guidance are one batch, with keys of its own.
#[test]
fn branches_as_one_batch() {
    let joint = Subject { text_tokens: vec![4, 4], ..subject(Kind::Joint) };
    for subject in
        [Kind::Alone, Kind::Cross, Kind::UShaped, Kind::Clip].map(subject).into_iter().chain([joint])
    {
        let turns = Turns { patches: 3, warmup_steps: 0, displaced: true };
        let oracle = expected(&subject, 0, turns);
        for (mesh, patches) in [
            (Mesh::default(), 3),
            (Mesh::default().with(Axis::Ring, 3), 1),
            (Mesh::default().with(Axis::Ring, 3).with(Axis::Ulysses, 2), 1),
        ] {
            let plan = Plan { guidance_batch: true, ..plan(&subject, mesh, patches, 0).unwrap() };
            assert_eq!(plan.passes_of(0).len(), 1);
            let [latents] = <[_; 1]>::try_from(latents(&subject, &plan)).unwrap();
            let error = relative_l2(&latents, &oracle);
            assert!(error <= TOLERANCE, "{:?}, {mesh}: {error:.1e}", subject.kind);
        }
    }
}

/// Stale keys have an effect, which differs from that of PipeFusion and disappears with enough warm-up.
#[test]
fn keys_of_the_step_before_show() {
    for kind in [Kind::Alone, Kind::Cross, Kind::Joint, Kind::UShaped, Kind::Clip] {
        let subject = subject(kind);
        let serial = expected(&subject, 0, Turns { patches: 1, warmup_steps: 0, displaced: false });
        for patches in 2..=MAX_RANKS {
            for warmup_steps in 0..=subject.steps {
                let turns = Turns { patches, warmup_steps, displaced: true };
                let displaced = expected(&subject, 0, turns);
                let stale = relative_l2(&displaced, &serial);
                if warmup_steps + 1 >= subject.steps {
                    assert!(stale <= TOLERANCE, "{kind:?}, {patches} strips: {stale:.1e} from serial");
                    continue;
                }
                // Gives both the same synchronous steps.
                let pipefusion = Turns { warmup_steps: warmup_steps + 1, displaced: false, ..turns };
                let other = relative_l2(&displaced, &expected(&subject, 0, pipefusion));
                println!(
                    "{kind:?}, {patches} strips, W = {warmup_steps}: {stale:.1e} from serial, {other:.1e} from PipeFusion"
                );
                assert!(stale > VISIBLE && other > VISIBLE);
            }
        }
    }
}
