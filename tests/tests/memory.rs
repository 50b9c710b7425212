//! What a rank holds: its share of the parameters, and of the keys and values of earlier steps what its method needs.

use burn::tensor::DType;
use xdit_comm::{Comm, LaunchOptions, launch};
use xdit_core::Result;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::link::HostLink;
use xdit_core::placement::Share;
use xdit_core::plan::guidance::Branch;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::run::execute::Groups;
use xdit_core::run::record::RankReport;
use xdit_core::weights::{Residency, Weights};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::pixart::{PixArt, PixArtConfig};
use xdit_models::sharding::Sharded;
use xdit_tests::device;
use xdit_tests::sparse::SparsePixArt;
use xdit_tests::toy::{Kind, Subject};
use xdit_tests::world::{Reports, run};

/// For what every rank needs whole: biases of sums, tables of modulation, the first and the last layer.
const SLACK: f64 = 1.05;

/// PixArt-α with fewer blocks.
const MODEL: SparsePixArt = SparsePixArt { heads: 16, blocks: 8, caption: 4096, dtype: ("F32", 4) };

/// Bytes of the parameters that each rank of `mesh` holds.
fn parameter_bytes(checkpoint: &Checkpoint, config: &PixArtConfig, mesh: Mesh) -> Vec<u64> {
    let parallel = ParallelConfig { mesh, ..ParallelConfig::default() };
    let work = Work {
        spec: config.spec.clone(),
        tokens: 1024,
        steps: 20,
        branches: Branch::classifier_free(true),
        images: 1,
    };
    let plan = Plan::new(&parallel, &work).unwrap();
    let (checkpoint, config) = (checkpoint.clone(), config.clone());
    let ranks = launch(mesh.size(), &LaunchOptions::default(), move |world: Comm| -> Result<u64> {
        let groups = Groups::new(&HostLink::new(world.clone()), &plan)?;
        let share = Share { blocks: plan.stage(world.rank()), tensor: groups.tensor_share() };
        let weights = Weights::check_only(checkpoint.clone(), &device(), DType::F32);
        let weights = weights.of_share(share, config.placements()).with_residency(Residency::Reread);
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
    // Layers that are used before the first step only are held by nobody.
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
        assert!(ranks.iter().sum::<u64>() >= whole, "{mesh}: something is held by nobody");
    }
}

/// The memory columns of the table in PipeFusion's paper, in bytes a rank and guidance branch.
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
            // Of its own blocks.
            ("pipefusion", Axis::Pipeline, false, all / n),
            ("distrifusion", Axis::Ring, true, all),
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
