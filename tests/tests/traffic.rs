//! What each method sends is what its formula says.
//!
//! `n` image tokens, `hs = heads · head_dim` features, `s` bytes an element (4 in f32), `P` stages, `U`, `R` and `T`
//! ranks of Ulysses, ring and tensor parallelism. Of all ranks together:
//!
//! | method | bytes | of each |
//! |---|---|---|
//! | Ulysses | `4 · n · hs · s · (U − 1)/U` | self-attention, guidance branch and step: queries, keys, values; the result |
//! | ring | `2 · n · hs · s · (R − 1)` | self-attention, guidance branch and *pass*: keys and values, `R − 1` hops |
//! | PipeFusion | `(P − 1) · n · hs · s` | guidance branch and step: tokens between stages, whatever the number of blocks |
//! | PipeFusion | `n · channels · s` | step: latents from the last stage to the first |
//! | tensor | `2 · n · hs · s · T` | block, guidance branch and step: what ranks bring to the two sums |
//!
//! The last one is what goes into an all-reduce; one in a ring sends `2(T − 1)/T` times as much, the one in memory
//! `T − 1` times. A synchronous step is one pass, another one a pass a patch. Only the ring counts passes: it takes
//! keys of earlier steps round again for every patch. Patches do not change what the others send.

use xdit_comm::{Comm, Count, Options, Traffic, launch};
use xdit_core::Result;
use xdit_core::parallel::execute::{Groups, denoise};
use xdit_core::parallel::mesh::{Axis, Mesh};
use xdit_core::parallel::plan::{ParallelConfig, Plan};
use xdit_core::parallel::run::Share;
use xdit_core::placement::TensorShare;
use xdit_tests::toy::{Kind, Subject};

/// For tokens and heads that do not divide.
const TOLERANCE: f64 = 0.02;
/// Bytes of an f32.
const S: f64 = 4.0;

/// 240 tokens, so that what does not divide is little beside what does.
fn subject() -> Subject {
    let mut subject = Subject { grid: [12, 20], ..Subject::new(Kind::Alone) };
    subject.spec.heads = 6;
    subject
}

/// What all ranks together sent in the groups labelled `label`.
fn traffic(subject: &Subject, mesh: Mesh, patches: usize, label: &str) -> Count {
    let config = ParallelConfig { mesh, patches: Some(patches), ..Default::default() };
    let plan = Plan::new(&config, &subject.work()).unwrap();
    let subject = subject.clone();
    let report = launch(mesh.size(), &Options::default(), move |world: Comm| -> Result<()> {
        let groups = Groups::new(&world, &plan)?;
        let tensor = (groups.tensor.size() > 1).then(|| TensorShare { comm: groups.tensor.clone() });
        let toy = subject.load(&Share { blocks: plan.stage(world.rank()), tensor });
        let (scheduler, guidance, noise) = (subject.scheduler(), subject.guidance(), subject.noise());
        denoise(&plan, &groups, &toy, &*scheduler, &guidance, &noise, &mut |_| {});
        Ok(())
    });
    let mut total = Traffic::default();
    report.traffic.iter().for_each(|rank| total.merge(rank));
    report.into_result().unwrap_or_else(|error| panic!("{error}"));
    total.of_label(label)
}

#[track_caller]
fn assert_bytes(what: &str, actual: u64, expected: f64) {
    let error = (actual as f64 - expected).abs() / expected;
    println!("{what}: {actual} bytes, by the formula {expected:.0} ({:.2} % off)", 100.0 * error);
    assert!(error <= TOLERANCE, "{what}: {actual} bytes, by the formula {expected:.0}");
}

#[test]
fn bytes_follow_the_formulas() {
    let subject = subject();
    let mesh = |axis, degree| Mesh::default().with(axis, degree);
    let (n, hs) = (subject.tokens() as f64, subject.spec.dim() as f64);
    let (channels, blocks) = (subject.spec.channels as f64, subject.spec.blocks as f64);
    let (steps, branches) = (subject.steps as f64, 2.0);
    for patches in [1, 4, 7] {
        for degree in [2, 3, 4, 5] {
            let d = degree as f64;
            let layers = blocks * branches * steps;
            let sent = traffic(&subject, mesh(Axis::Ulysses, degree), patches, "ulysses").sent_bytes;
            let ulysses = layers * 4.0 * n * hs * S * (d - 1.0) / d;
            assert_bytes(&format!("ulysses {degree}, M = {patches}"), sent, ulysses);

            let brought = traffic(&subject, mesh(Axis::Tensor, degree), patches, "tp").payload_bytes;
            assert_bytes(&format!("tensor {degree}, M = {patches}"), brought, layers * 2.0 * n * hs * S * d);
        }
        for degree in [2, 3, 4] {
            let between = branches * steps * (degree as f64 - 1.0) * n * hs * S;
            let sent = traffic(&subject, mesh(Axis::Pipeline, degree), patches, "pp").sent_bytes;
            let pipefusion = between + steps * n * channels * S;
            assert_bytes(&format!("pipefusion {degree}, M = {patches}"), sent, pipefusion);
        }
    }
}

/// For each patch, the keys of the whole image go round.
#[test]
fn a_ring_sends_the_keys_it_knows() {
    let subject = subject();
    let (n, hs) = (subject.tokens() as f64, subject.spec.dim() as f64);
    let layers = subject.spec.blocks as f64 * 2.0;
    for degree in [2, 3, 4, 5] {
        let mesh = Mesh::default().with(Axis::Ring, degree);
        let image = 2.0 * n * hs * S * (degree as f64 - 1.0);
        for patches in [1, 4, 7] {
            let passes = match patches {
                1 => subject.steps,
                _ => 1 + (subject.steps - 1) * patches,
            };
            let sent = traffic(&subject, mesh, patches, "ring").sent_bytes;
            assert_bytes(&format!("ring {degree}, M = {patches}"), sent, layers * passes as f64 * image);
        }
    }
}
