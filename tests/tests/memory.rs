//! The memory of a rank: its share of the parameters, and the stale keys and values that its method needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use xdit_comm::{Comm, LaunchOptions, launch};
use xdit_core::Result;
use xdit_core::attention::{Attention, Qkv, Site};
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::link::{HostLink, Link, catch};
use xdit_core::methods::attention::{KeyExchange, ParallelAttention, Pass};
use xdit_core::methods::ring::Ring;
use xdit_core::methods::ulysses::Ulysses;
use xdit_core::placement::Share;
use xdit_core::plan::cost::{BlockExchanges, RowExchanges, Sizes, peak_kv_bytes};
use xdit_core::plan::guidance::Branch;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::schedule::{Action, schedule};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::run::execute::Groups;
use xdit_core::run::record::RankReport;
use xdit_core::transformer::TransformerSpec;
use xdit_core::weights::{Residency, Weights};
use xdit_kernels::shared_memory;
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::pixart::{PixArt, PixArtConfig};
use xdit_models::sharding::Sharded;
use xdit_tests::sparse::SparsePixArt;
use xdit_tests::toy::{Kind, Subject, random};
use xdit_tests::world::{Reports, run};

/// Allows for the parameters that every rank needs whole: biases of sums, modulation tables, the first and the last
/// layer.
const SLACK: f64 = 1.05;

/// PixArt-α with fewer blocks.
const MODEL: SparsePixArt = SparsePixArt { heads: 16, blocks: 8, caption: 4096, dtype: ("F32", 4) };

/// The size in bytes of the parameters of each rank of `mesh`.
fn parameter_bytes(checkpoint: &Checkpoint, config: &PixArtConfig, mesh: Mesh) -> Vec<u64> {
    let parallel = ParallelConfig { mesh, ..ParallelConfig::default() };
    let work = Work {
        spec: config.spec.clone(),
        tokens: 1024,
        grain: 1,
        steps: 20,
        branches: Branch::classifier_free(true),
        images: 1,
    };
    let plan = Plan::new(&parallel, &work).unwrap();
    let (checkpoint, config) = (checkpoint.clone(), config.clone());
    let ranks = launch(mesh.size(), &LaunchOptions::default(), move |world: Comm| -> Result<u64> {
        let groups = Groups::new(&HostLink::new(world.clone()), &plan)?;
        let share = Share { blocks: plan.stage(world.rank()), tensor: groups.tensor_share() };
        let weights = Weights::check_only(checkpoint.clone(), DType::F32);
        let weights = weights.of_share(share, config.all_placements()).with_residency(Residency::Reread);
        PixArt::load(&config, &weights)?;
        Ok(weights.taken_bytes())
    });
    ranks.into_result().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_rank_holds_its_share_of_the_parameters() {
    let dir = tempfile::tempdir().unwrap();
    MODEL.write(dir.path(), "model");
    let checkpoint = Checkpoint::open(dir.path(), "model", None).unwrap();
    let config = PixArtConfig::read(Config::read(&dir.path().join("config.json")).unwrap()).unwrap();
    let [whole] = parameter_bytes(&checkpoint, &config, Mesh::default())[..] else { panic!("one rank") };
    // Layers that are used only before the first step are not kept by any rank.
    let file = 4 * MODEL.parameters();
    println!("{} MiB of {} in the file", whole >> 20, file >> 20);
    assert!(whole > file as u64 * 8 / 10 && whole < file as u64);
    let mesh = |pipeline, tensor| Mesh::default().with(Axis::Pipeline, pipeline).with(Axis::Tensor, tensor);
    for mesh in [mesh(2, 1), mesh(4, 1), mesh(8, 1), mesh(1, 2), mesh(1, 4), mesh(2, 2)] {
        let ranks = parameter_bytes(&checkpoint, &config, mesh);
        let most = *ranks.iter().max().unwrap();
        let share = whole as f64 / mesh.size() as f64;
        println!("{mesh}: at most {} MiB, {:.4} of a share", most >> 20, most as f64 / share);
        assert!(most as f64 <= SLACK * share, "{mesh}: {ranks:?} of {whole}");
        assert!(ranks.iter().sum::<u64>() >= whole, "{mesh}: some parameters are on no rank");
    }
}

/// The memory columns of the table in PipeFusion's paper, in bytes for each rank and guidance branch.
///
/// # Source
/// PipeFusion (Fang et al. 2024), the table of communication and memory cost.
#[test]
fn a_rank_keeps_the_keys_that_its_method_needs() {
    let mut subject = Subject { grid: [12, 20], ..Subject::new(Kind::Alone) };
    (subject.spec.heads, subject.spec.blocks) = (8, 8);
    let all = (2 * subject.tokens() * subject.spec.dim() * subject.spec.blocks * 4) as u64;
    for degree in [2, 4, 8] {
        let n = degree as u64;
        for (method, axis, distrifusion, a_branch) in [
            // The keys of the rank's own blocks.
            ("pipefusion", Axis::Pipeline, false, all / n),
            // The keys of the other strips. The paper also counts the rank's own strip, which is of this step and not
            // kept.
            ("distrifusion", Axis::Ring, true, all - all / n),
            ("ring", Axis::Ring, false, 0),
            ("ulysses", Axis::Ulysses, false, 0),
            ("tensor", Axis::Tensor, false, 0),
        ] {
            let mesh = Mesh::default().with(axis, degree);
            let config = ParallelConfig { mesh, distrifusion, ..ParallelConfig::default() };
            let plan = Plan::new(&config, &subject.work()).unwrap();
            let mut reports = Reports::default();
            run(subject.job(plan), &mut reports).unwrap();
            assert_eq!(reports.ranks.len(), degree);
            for RankReport { rank, peak_kv_bytes, .. } in reports.ranks {
                assert_eq!(peak_kv_bytes, 2 * a_branch, "{method} on {degree}, rank {rank}");
            }
        }
    }
}

/// Queries, keys and values of `tokens` tokens, as views of one tensor, like the output of a layer that computes all
/// three.
fn qkv(spec: &TransformerSpec, tokens: usize) -> Qkv {
    let all: Tensor<4> = random("qkv", [1, tokens, 3 * spec.heads, spec.head_dim]);
    let part = |index: usize| all.clone().narrow(2, index * spec.heads, spec.heads);
    Qkv { q: part(0), k: part(1), v: part(2) }
}

/// The addresses and sizes of the memory of `tensors`.
///
/// # Panics
/// If a tensor is a view of a larger one.
fn allocations<'a>(tensors: impl Iterator<Item = &'a Tensor<3>>) -> BTreeMap<usize, u64> {
    let allocation = |tensor: &Tensor<3>| {
        let memory = shared_memory(tensor).expect("no view of a larger tensor is kept");
        (memory.as_ref().as_ptr() as usize, memory.as_ref().len() as u64)
    };
    tensors.map(allocation).collect()
}

/// Runs the attention of `rank` of `plan` for one picture, and returns the peak memory of the caches. Checks after
/// each pass that their memory has the size that they report.
fn most_cached(subject: &Subject, plan: &Plan, world: &Arc<dyn Link>) -> u64 {
    let (rank, spec) = (world.rank(), &subject.spec);
    let at = |axis| plan.mesh.coordinate(rank, axis);
    let along = |axis| {
        let link = world.split(&plan.mesh.groups(&[axis])).unwrap();
        link.filter(|_| plan.mesh.degree(axis) > 1)
    };
    let (ulysses, ring) = (along(Axis::Ulysses).map(Ulysses::new), along(Axis::Ring).map(Ring::new));
    let mut attention =
        ParallelAttention::new(plan.clone(), at(Axis::Ring), ulysses, ring.map(KeyExchange::Ring));
    let (mut most, mut last) = (0, BTreeMap::new());
    for action in schedule(plan, rank) {
        let Action::Blocks { step, blocks, patches, branches } = action else { continue };
        attention.begin(Pass { step, patches: patches.clone(), branches: branches.clone() });
        let tokens = plan.tokens(&patches, plan.mesh.sequence_coordinate(rank));
        let text = (subject.kind == Kind::Joint && plan.brings_text(&patches))
            .then(|| qkv(spec, subject.text_tokens[branches.start]));
        for block in plan.blocks_of(branches.start, blocks) {
            drop(attention.attend(Site::new(block, 0), qkv(spec, tokens), text.clone()));
        }
        let now = allocations(attention.cached());
        assert_eq!(now.values().sum::<u64>(), attention.kv_bytes(), "step {step}, {patches:?}");
        // Once the caches are complete, they are updated in place.
        if step > plan.synchronous_steps + 1 {
            assert_eq!(now, last, "step {step}, {patches:?}: memory was moved");
        }
        most = most.max(now.values().sum());
        last = now;
    }
    most
}

/// The caches take exactly the memory that the plan predicts, even if keys and values are views, or were also sent to
/// other ranks.
#[test]
fn caches_take_the_memory_that_the_plan_says() {
    use Axis::{Ring as R, Ulysses as U};
    let methods: [(&[(Axis, usize)], bool); 5] =
        [(&[], false), (&[], true), (&[(U, 2)], false), (&[(R, 2)], false), (&[(R, 2), (U, 2)], false)];
    for kind in [Kind::Alone, Kind::Joint] {
        for (degrees, distrifusion) in methods {
            for (patches, warmup_steps) in [(2, 0), (3, 1), (4, 2)] {
                let subject = Subject { steps: 6, ..Subject::new(kind) };
                let mesh =
                    degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree));
                let patches = Some(patches);
                let config =
                    ParallelConfig { mesh, patches, warmup_steps, distrifusion, ..Default::default() };
                let plan = Plan::new(&config, &subject.work()).unwrap();
                let exchange = BlockExchanges { attentions: 1, image_sums: 0, text_sums: 0 };
                let joint = usize::from(kind == Kind::Joint);
                let sizes = Sizes {
                    spec: subject.spec.clone(),
                    dtype: DType::F32,
                    text_tokens: subject.text_tokens.iter().map(|tokens| joint * tokens).collect(),
                    exchanges: vec![exchange; subject.spec.blocks],
                    frames: 1,
                    levels: Vec::new(),
                    rows: RowExchanges::default(),
                };
                let planned: Vec<_> =
                    (0..mesh.size()).map(|rank| peak_kv_bytes(&plan, &sizes, rank)).collect();
                let ranks =
                    launch(mesh.size(), &LaunchOptions::default(), move |world: Comm| -> Result<u64> {
                        catch(|| Ok(most_cached(&subject, &plan, &HostLink::new(world))))
                    });
                let held = ranks.into_result().unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(held, planned, "{kind:?}, {mesh}, {config:?}");
                assert!(held.iter().all(|&bytes| bytes > 0));
            }
        }
    }
}
