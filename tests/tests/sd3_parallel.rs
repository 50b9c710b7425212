//! Stable Diffusion 3 on many ranks equals itself on one: serially, or with the same patches and warm-up.

use xdit_core::pipeline::Request;
use xdit_tests::on_ranks::OnRanks;

/// Four heads; six heads and two attentions in half of the blocks; five heads and no third text encoder.
const CHECKPOINTS: [&str; 3] = ["sd3-medium", "sd35-medium", "sd35-large"];

/// 35 image tokens beside 77 of CLIP and 12 of T5, which travel with the first patch.
fn open(checkpoint: &str) -> OnRanks {
    let request = Request {
        negative_prompt: "blurry, low quality".into(),
        height: Some(112),
        width: Some(80),
        num_inference_steps: Some(4),
        max_sequence_length: Some(12),
        seed: 5,
        ..Request::new("a photo of a cat, sitting on the red sofa")
    };
    OnRanks::open(checkpoint, &request, true)
}

#[test]
fn exact_methods_equal_serial() {
    for checkpoint in CHECKPOINTS {
        assert_eq!(open(checkpoint).exact_methods_equal_serial(), 41);
    }
}

#[test]
fn pipefusion_depends_on_patches_and_warmup_only() {
    for checkpoint in CHECKPOINTS {
        open(checkpoint).pipefusion_depends_on_patches_and_warmup_only();
    }
}

/// Stages with and without a second attention, and one of the last block alone, which ends the text.
#[test]
fn synchronous_pipefusion_equals_serial() {
    for stages in [vec![2, 2], vec![1, 3], vec![3, 1], vec![1, 1, 1, 1]] {
        open("sd35-medium").synchronous_pipefusion_equals_serial(stages);
    }
}

#[test]
fn distrifusion_equals_one_rank_with_its_patches() {
    for checkpoint in CHECKPOINTS {
        open(checkpoint).distrifusion_equals_one_rank_with_its_patches();
    }
}
