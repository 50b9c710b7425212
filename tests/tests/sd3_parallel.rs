//! Compares Stable Diffusion 3 on many ranks with a single rank: serially, or with the same patches and warm-up.

use xdit_core::pipeline::{Request, SkipLayerGuidance};
use xdit_core::plan::ParallelConfig;
use xdit_tests::on_ranks::{OnRanks, verify};
use xdit_tests::relative_l2;

/// Four heads; six heads, and two attentions in half of the blocks; five heads, and no third text encoder.
const CHECKPOINTS: [&str; 3] = ["sd3-medium", "sd35-medium", "sd35-large"];

/// 35 image tokens, and 77 tokens of CLIP and 12 of T5, which are part of the first patch.
fn open(checkpoint: &str) -> OnRanks {
    OnRanks::open(checkpoint, &request(), true)
}

fn request() -> Request {
    Request {
        negative_prompts: vec!["blurry, low quality".into()],
        height: Some(112),
        width: Some(80),
        num_inference_steps: Some(4),
        max_sequence_length: Some(12),
        seed: 5,
        ..Request::new("a photo of a cat, sitting on the red sofa")
    }
}

/// A third branch in steps 1 and 2 of 4. In a pipeline of four stages, two of them only forward it.
fn skipping_layers() -> OnRanks {
    let skip = SkipLayerGuidance { stop: 0.75, ..SkipLayerGuidance::new(vec![1, 2]) };
    let request = Request { skip_layer_guidance: Some(skip), ..request() };
    OnRanks::open("sd35-medium", &request, true)
}

/// Both branches of guidance as one batch equal one after another.
#[test]
fn one_batch_equals_its_branches() {
    CHECKPOINTS.map(open).iter_mut().for_each(OnRanks::one_batch_equals_its_branches);
    // The third branch has other blocks.
    skipping_layers().one_batch_equals_its_branches();
}

#[test]
fn exact_methods_equal_serial() {
    verify(CHECKPOINTS.map(open), |subject| assert_eq!(subject.exact_methods_equal_serial(), 41));
}

#[test]
fn pipefusion_depends_on_patches_and_warmup_only() {
    verify(CHECKPOINTS.map(open), OnRanks::pipefusion_depends_on_patches_and_warmup_only);
}

/// Stages with and without a second attention, and one with only the last block, which does not update the text.
#[test]
fn synchronous_pipefusion_equals_serial() {
    for stages in [vec![2, 2], vec![1, 3], vec![3, 1], vec![1, 1, 1, 1]] {
        open("sd35-medium").synchronous_pipefusion_equals_serial(stages);
    }
}

#[test]
fn distrifusion_equals_one_rank_with_its_patches() {
    verify(CHECKPOINTS.map(open), OnRanks::distrifusion_equals_one_rank_with_its_patches);
}

#[test]
fn skipped_layers_are_the_same_on_many_ranks() {
    let mut skipping = skipping_layers();
    let latents = |on_ranks: &mut OnRanks| on_ranks.latents(ParallelConfig::default(), 1);
    let difference = relative_l2(&latents(&mut skipping), &latents(&mut open("sd35-medium")));
    assert!(difference > 1e-2, "the branch makes a difference of {difference:.1e} only");
    assert_eq!(skipping.exact_methods_equal_serial(), 41);
    skipping.pipefusion_depends_on_patches_and_warmup_only();
    skipping.distrifusion_equals_one_rank_with_its_patches();
}
