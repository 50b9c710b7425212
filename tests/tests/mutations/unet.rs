//! Mistakes in the rows of a UNet, and in its skip connections.

use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_comm::LaunchOptions;
use xdit_core::link::Link;
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::Axis::{self, Ring, Ulysses};
use xdit_models::unet::{Conditions, UNet};
use xdit_tests::on_ranks::mesh;
use xdit_tests::published::job;
use xdit_tests::relative_l2;
use xdit_tests::toy::random;
use xdit_tests::world::{Job, pictures, run_in};

use crate::decorators::{Mistake, Tampered, Wire, with_rows};
use crate::{TOLERANCE, VISIBLE};

/// The rows and columns of the latent. Three ranks have twelve rows each, and columns cannot be halved.
const GRID: [usize; 2] = [36, 7];
/// The exchanges of border rows in a step: those of the convolutions of 3×3 pixels, in two branches.
const BORDERS: usize = 2 * 40;

fn unet(degrees: &[(Axis, usize)], patches: usize, distrifusion: bool) -> Job<UNet> {
    let parallel = ParallelConfig {
        mesh: mesh(degrees),
        patches: Some(patches),
        warmup_steps: 0,
        distrifusion,
        ..ParallelConfig::default()
    };
    job("sdxl-base", GRID, &parallel, |branch| Conditions {
        text: random(&format!("text {branch}"), [1, 5, 28]),
        pooled: random(&format!("pooled {branch}"), [1, 16]),
        micro: [288.0, 56.0, 0.0, 8.0, 288.0, 56.0],
    })
}

/// The final latents of `job`, with mistakes in it and in the messages of a group.
fn latents(job: Job<UNet>, mistake: Option<Mistake>, wire: Option<(&'static str, Wire)>) -> Tensor<3> {
    let seen = move |world: Arc<dyn Link>| match wire {
        Some((group, wire)) => Tampered::new(world, group, wire),
        None => world,
    };
    let made = pictures(run_in(with_rows(job, mistake), &LaunchOptions::default(), seen));
    let [latents] = <[_; 1]>::try_from(made).expect("one picture");
    latents
}

#[test]
fn wrong_border_rows_show() {
    for (degrees, distrifusion, group) in [
        (vec![(Ring, 3)], false, "ringxulysses"),
        (vec![(Ulysses, 3)], false, "ringxulysses"),
        (vec![(Ring, 3)], true, "ring"),
    ] {
        // The strips of DistriFusion are those of a single rank.
        let patches = if distrifusion { 3 } else { 1 };
        let expected = latents(unet(&[], patches, distrifusion), None, None);
        let error = |wire| {
            let made = latents(unet(&degrees, 1, distrifusion), None, Some((group, wire)));
            relative_l2(&made, &expected)
        };
        let sound = error(Wire::Sound);
        assert!(sound <= TOLERANCE, "{degrees:?}: {sound:.1e} without a mistake");
        // In DistriFusion, they are of the step before already, and then of the one before that.
        for wire in [Wire::BordersLate(BORDERS), Wire::BordersSwapped] {
            let error = error(wire);
            println!(
                "{degrees:?}, distrifusion: {distrifusion}, {wire:?}: {error:.1e} ({sound:.0e} without)"
            );
            assert!(error > VISIBLE, "{degrees:?}: {wire:?} makes {error:.1e} only");
        }
    }
}

#[test]
fn wrong_rows_norms_and_skips_show() {
    let serial = latents(unet(&[], 1, false), None, None);
    // The first and the last convolution, those that halve and double the rows, and one in the middle.
    let rows = [0, 5, 17, 30, 50]
        .into_iter()
        .flat_map(|convolution| [Mistake::ZerosAtBorders(convolution), Mistake::RowsMoved(convolution)]);
    let norms = [0, 11, 25, 40].map(Mistake::OwnMoments);
    // The last skip connection is the first image.
    let skips = [Mistake::SkipOfFirstImage(0), Mistake::SkipOfFirstImage(1)]
        .into_iter()
        .chain([0, 1, 2].map(Mistake::SkipRowsMoved));
    let mistakes: Vec<_> = rows.chain(norms).chain(skips).collect();
    for degrees in [vec![(Ring, 3)], vec![(Ulysses, 3)], vec![(Ring, 2), (Ulysses, 2)]] {
        let sound = relative_l2(&latents(unet(&degrees, 1, false), None, None), &serial);
        assert!(sound <= TOLERANCE, "{degrees:?}: {sound:.1e} without a mistake");
        for &mistake in &mistakes {
            let error = relative_l2(&latents(unet(&degrees, 1, false), Some(mistake), None), &serial);
            println!("{degrees:?}, {mistake:?}: {error:.1e} ({sound:.0e} without)");
            assert!(error > VISIBLE, "{degrees:?}: {mistake:?} makes {error:.1e} only");
        }
    }
}
