//! Mistakes in the long skip connections of HunyuanDiT, which cross stages.

use burn::tensor::Tensor;
use xdit_comm::{LaunchOptions, Report};
use xdit_core::Error;
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::Axis::{self, Pipeline, Ring};
use xdit_core::tokens::Tokens;
use xdit_models::hunyuan::{Conditions, Hunyuan};
use xdit_tests::on_ranks::mesh;
use xdit_tests::published::job;
use xdit_tests::relative_l2;
use xdit_tests::toy::random;
use xdit_tests::world::{Job, pictures, run_in};

use crate::decorators::{Crossed, Skip, with_skip};
use crate::{TOLERANCE, VISIBLE};

/// The skip connections of the checkpoint's eight blocks.
const SKIPS: [[usize; 2]; 3] = [[0, 7], [1, 6], [2, 5]];

fn hunyuan(degrees: &[(Axis, usize)], stage_blocks: Option<Vec<usize>>, patches: usize) -> Job<Hunyuan> {
    let parallel = ParallelConfig {
        mesh: mesh(degrees),
        stage_blocks,
        patches: Some(patches),
        ..ParallelConfig::default()
    };
    let made: Job<Hunyuan> = job("hunyuan-11", [6, 4], &parallel, |branch| Conditions {
        bert: random(&format!("bert {branch}"), [1, 7, 32]),
        t5: random(&format!("t5 {branch}"), [1, 256, 32]),
        t5_tokens: 11,
        sizes: Some([96, 64, 96, 64, 0, 0]),
    });
    assert_eq!(made.plan.skips, SKIPS);
    made
}

fn latents(report: Report<Vec<Tokens>, Error>) -> Tensor<3> {
    let [latents] = <[_; 1]>::try_from(pictures(report)).expect("one picture");
    latents
}

#[test]
fn wrong_long_skips_show() {
    for (degrees, stages, patches) in [
        (vec![(Pipeline, 3)], Some(vec![1, 6, 1]), 2),
        (vec![(Pipeline, 2)], None, 1),
        (vec![(Ring, 2)], None, 1),
    ] {
        let run = |job, skip, to| {
            latents(run_in(with_skip(job, skip, to), &LaunchOptions::default(), |world| world))
        };
        let expected = run(hunyuan(&[], None, patches), None, 0);
        let error =
            |skip, to| relative_l2(&run(hunyuan(&degrees, stages.clone(), patches), skip, to), &expected);
        let sound = error(None, 0);
        assert!(sound <= TOLERANCE, "{degrees:?}: {sound:.1e} without a mistake");
        for [from, to] in SKIPS {
            for skip in [Skip::OfBlockBefore, Skip::TokensMoved] {
                let error = error(Some(skip), to);
                println!("{degrees:?}, {from} to {to}, {skip:?}: {error:.1e} ({sound:.0e} without)");
                assert!(error > VISIBLE, "{degrees:?}, {from} to {to}: {skip:?} makes {error:.1e} only");
            }
        }
    }
}

/// Two skip connections arrive at each other's stages. The stages between have nothing to do with them.
#[test]
fn skips_sent_to_the_wrong_stage_show() {
    for patches in [1, 2] {
        let on_ranks = || hunyuan(&[(Pipeline, 8)], Some(vec![1; 8]), patches);
        let options = LaunchOptions::default();
        let expected = latents(run_in(hunyuan(&[], None, patches), &options, |world| world));
        let sound = relative_l2(&latents(run_in(on_ranks(), &options, |world| world)), &expected);
        assert!(sound <= TOLERANCE, "{patches} patches: {sound:.1e} without a mistake");
        for edges in [[[0, 7], [1, 6]], [[1, 6], [2, 5]], [[0, 7], [2, 5]]] {
            let error = relative_l2(&latents(run_in(on_ranks(), &options, Crossed::all(edges))), &expected);
            println!("{patches} patches, {edges:?}: {error:.1e} ({sound:.0e} without)");
            assert!(error > VISIBLE, "{patches} patches: crossing {edges:?} makes {error:.1e} only");
        }
    }
}
