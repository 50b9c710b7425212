//! Compares FLUX on many ranks with a single rank: serially, or with the same patches and warm-up.

use xdit_core::pipeline::Request;
use xdit_tests::on_ranks::{OnRanks, verify};
use xdit_tests::verified::{Counts, check};

/// 35 image tokens, and 12 text tokens, which are part of the first patch.
fn request() -> Request {
    Request {
        height: Some(112),
        width: Some(80),
        num_inference_steps: Some(4),
        max_sequence_length: Some(12),
        seed: 5,
        ..Request::new("a photo of a cat, sitting on the red sofa")
    }
}

/// Four heads, one branch.
fn schnell() -> OnRanks {
    OnRanks::open("flux-schnell", &request(), false)
}

/// Six heads, two branches.
fn dev() -> OnRanks {
    let guided = Request {
        negative_prompts: vec!["blurry, low quality".into()],
        true_cfg_scale: Some(2.5),
        ..request()
    };
    OnRanks::open("flux-dev", &guided, true)
}

/// Both branches of guidance as one batch equal one after another.
#[test]
fn one_batch_equals_its_branches() {
    dev().one_batch_equals_its_branches();
}

#[test]
fn exact_methods_equal_serial() {
    let mut counts = Counts::new();
    for (mut subject, meshes) in [(schnell(), 28), (dev(), 41)] {
        assert_eq!(subject.exact_methods_equal_serial(), meshes);
        subject.add_to(&mut counts);
    }
    check(&counts);
}

#[test]
fn pipefusion_depends_on_patches_and_warmup_only() {
    verify([schnell(), dev()], OnRanks::pipefusion_depends_on_patches_and_warmup_only);
}

/// Some stages have blocks of one kind only, and others have both.
#[test]
fn synchronous_pipefusion_equals_serial() {
    for stages in [vec![2, 3], vec![1, 4], vec![1, 1, 1, 1, 1], vec![3, 1, 1]] {
        schnell().synchronous_pipefusion_equals_serial(stages.clone());
        dev().synchronous_pipefusion_equals_serial(stages);
    }
}

#[test]
fn distrifusion_equals_one_rank_with_its_patches() {
    verify([schnell(), dev()], OnRanks::distrifusion_equals_one_rank_with_its_patches);
}
