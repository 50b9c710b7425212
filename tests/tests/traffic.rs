//! Compares the bytes that each method sends with its formula.
//!
//! There are `n` image tokens, `hs = heads · head_dim` features, `s` bytes an element (4 in f32), `P` stages, and `U`,
//! `R` and `T` ranks of Ulysses, ring and tensor parallelism. The totals of all ranks are:
//!
//! | method | bytes | for each |
//! |---|---|---|
//! | Ulysses | `4 · n · hs · s · (U − 1)/U` | self-attention, guidance branch and step: queries, keys, values; the result |
//! | ring | `2 · n · hs · s · (R − 1)` | self-attention, guidance branch and *pass*: keys and values, `R − 1` hops |
//! | DistriFusion | `2 · n · hs · s · (R − 1)` | self-attention, guidance branch and step: keys and values; nothing in the last step, whose keys are not used |
//! | PipeFusion | `(P − 1) · n · hs · s` | guidance branch and step: tokens between stages, for any number of blocks |
//! | PipeFusion | `n · channels · s` | step: latents from the last stage to the first |
//! | tensor | `2 · n · hs · s · T` | block, guidance branch and step: the contributions of ranks to the two sums |
//!
//! The last formula is the input of an all-reduce; a ring implementation sends `2(T − 1)/T` times as much, and the one
//! in memory `T − 1` times. A synchronous step is one pass, and any other step is one pass for each patch. Only the
//! traffic of the ring depends on passes: it sends stale keys around again for every patch. Patches do not change the
//! traffic of the others.

use xdit_core::link::{Count, Traffic};
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan};
use xdit_tests::toy::{Kind, Subject};
use xdit_tests::world::{Reports, run};

/// Allows for tokens and heads that do not divide evenly.
const TOLERANCE: f64 = 0.02;
/// The size of an f32 in bytes.
const S: f64 = 4.0;

/// 240 tokens, so that uneven division has little effect.
fn subject() -> Subject {
    let mut subject = Subject { grid: [12, 20], ..Subject::new(Kind::Alone) };
    subject.spec.heads = 6;
    subject
}

/// The traffic of each rank.
fn traffic_of(subject: &Subject, config: ParallelConfig) -> Vec<Traffic> {
    let plan = Plan::new(&config, &subject.work()).unwrap();
    let mut reports = Reports::default();
    run(subject.job(plan), &mut reports).unwrap_or_else(|error| panic!("{error}"));
    reports.ranks.into_iter().map(|report| report.traffic).collect()
}

/// The total traffic of all ranks in the groups labelled `label`.
fn traffic(subject: &Subject, mesh: Mesh, patches: usize, label: &str) -> Count {
    let config = ParallelConfig { mesh, patches: Some(patches), ..Default::default() };
    let mut total = Traffic::default();
    traffic_of(subject, config).iter().for_each(|rank| total.merge(rank));
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

/// For each patch, the keys of the whole image are sent around.
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

#[test]
fn distrifusion_sends_keys_that_will_be_seen() {
    let subject = subject();
    let (n, hs) = (subject.tokens() as f64, subject.spec.dim() as f64);
    let layers = subject.spec.blocks as f64 * 2.0;
    for degree in [2, 3, 4, 5] {
        for warmup_steps in 0..=subject.steps {
            let mesh = Mesh::default().with(Axis::Ring, degree);
            let config = ParallelConfig { mesh, warmup_steps, distrifusion: true, ..Default::default() };
            let sent: u64 =
                traffic_of(&subject, config).iter().map(|rank| rank.of_label("ring").sent_bytes).sum();
            // A synchronous last step exchanges the keys that it uses itself.
            let exchanges = if warmup_steps + 1 < subject.steps { subject.steps - 1 } else { subject.steps };
            let image = 2.0 * n * hs * S * (degree as f64 - 1.0);
            let what = format!("distrifusion {degree}, W = {warmup_steps}");
            assert_bytes(&what, sent, layers * exchanges as f64 * image);
        }
    }
}

/// A row of [`the_table_of_pipefusion`].
struct Row {
    method: &'static str,
    axis: Axis,
    label: &'static str,
    distrifusion: bool,
    /// The bytes for each rank, step and guidance branch, as in the paper.
    paper: f64,
    /// The fraction of it that a rank sends here.
    ours: f64,
}

/// Table 1 of PipeFusion's paper gives the cost of a step, with p tokens, hs features and L layers on N devices.
/// Factors that the paper omits are stated here.
///
/// # Source
/// PipeFusion (Fang et al. 2024), the table of communication and memory cost.
#[test]
fn the_table_of_pipefusion() {
    let mut subject = Subject { steps: 6, ..subject() };
    (subject.spec.heads, subject.spec.blocks) = (8, 8);
    let (p, hs, layers) = (subject.tokens() as f64, subject.spec.dim() as f64, subject.spec.blocks as f64);
    let (steps, branches) = (subject.steps as f64, 2.0);
    for degree in [2, 4, 8] {
        let n = degree as f64;
        // A rank does not send its own share of anything that it exchanges.
        let others = (n - 1.0) / n;
        let row = |method, axis: Axis, paper, ours| Row {
            method,
            axis,
            label: axis.name(),
            distrifusion: false,
            paper: paper * p * hs * S,
            ours,
        };
        let rows = [
            // Two sums a block. A ring all-reduce sends its input 2(N − 1)/N times. Here, each rank sends its whole
            // input to each other rank, N/2 times as much.
            row("tensor", Axis::Tensor, 4.0 * layers, others * n / 2.0),
            row("ring", Axis::Ring, 2.0 * layers, others),
            // The last step sends nothing.
            Row {
                distrifusion: true,
                ..row("distrifusion", Axis::Ring, 2.0 * layers, others * (steps - 1.0) / steps)
            },
            row("ulysses", Axis::Ulysses, 4.0 / n * layers, others),
            // The paper counts both the input and the output of a stage. The last stage sends latents, which have
            // `channels` features and serve all branches. So only N − 1 of the N ranks send as much as they receive.
            row("pipefusion", Axis::Pipeline, 2.0, 0.5 * others),
        ];
        for Row { method, axis, label, distrifusion, paper, ours } in rows {
            let mesh = Mesh::default().with(axis, degree);
            let config = ParallelConfig { mesh, distrifusion, ..Default::default() };
            let ranks = traffic_of(&subject, config);
            let mut sent: Vec<_> = ranks.iter().map(|rank| rank.of_label(label).sent_bytes as f64).collect();
            if axis == Axis::Pipeline {
                let latents = steps * p * subject.spec.channels as f64 * S;
                let last = sent.last_mut().expect("a last stage");
                assert_eq!(*last, latents, "the last stage gives nothing else");
                *last -= latents;
            }
            let a_step = sent.iter().sum::<f64>() / n / steps / branches;
            assert_bytes(&format!("{method} on {degree}, a rank and step"), a_step as u64, paper * ours);
        }
    }
}
