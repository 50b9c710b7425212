//! `--preview`

use std::fs;

use crate::workspace::{Workspace, pixels};

/// How far apart the mean colours of blocks are, in levels of 255: the root of the mean square.
fn apart(preview: &(u32, u32, Vec<u8>), picture: &(u32, u32, Vec<u8>)) -> f64 {
    const BLOCKS: u32 = 16;
    let mean = |(width, height, rgb): &(u32, u32, Vec<u8>), block: u32, channel: u32| {
        let (rows, columns) = (height / BLOCKS, width / BLOCKS);
        let (top, left) = (block / BLOCKS * rows, block % BLOCKS * columns);
        let at = |index: u32| ((top + index / columns) * width + left + index % columns) * 3 + channel;
        (0..rows * columns).map(|index| f64::from(rgb[at(index) as usize])).sum::<f64>()
            / f64::from(rows * columns)
    };
    let square = |index: u32| {
        let (block, channel) = (index / 3, index % 3);
        (mean(preview, block, channel) - mean(picture, block, channel)).powi(2)
    };
    let count = 3 * BLOCKS * BLOCKS;
    ((0..count).map(square).sum::<f64>() / f64::from(count)).sqrt()
}

/// A preview in the middle of a run looks like the picture, which takes its place. The picture does not change.
#[test]
fn a_preview_looks_like_the_picture() {
    let workspace = Workspace::new();
    let run = [
        "generate",
        "--prompt",
        "a cactus on a blue background",
        "--seed",
        "7",
        "--num-inference-steps",
        "10",
    ];
    let with = |further: &[&str]| workspace.ok(&[&run, further].concat());
    with(&["--quiet", "--output", "plain.png"]);
    // Latents have no decoded picture, so the preview stays.
    with(&["--quiet", "--preview", "9", "--output", "latents.safetensors"]);
    let preview = pixels(&workspace.path("latents.preview.png"));
    let picture = pixels(&workspace.path("plain.png"));
    assert_eq!((preview.0, preview.1), (picture.0 / 2, picture.1 / 2));
    let error = apart(&preview, &picture);
    assert!(error < 28.0, "{error}");
    // Earlier ones are less like it, so that the last one is not there for another reason.
    with(&["--quiet", "--preview", "5", "--output", "early.safetensors"]);
    let early = pixels(&workspace.path("early.preview.png"));
    assert!(apart(&early, &picture) > error);

    let out = with(&["--preview", "3", "--output", "shown.png"]);
    assert_eq!(out, "shown.png\n");
    assert!(!workspace.path("shown.preview.png").exists());
    assert_eq!(
        fs::read(workspace.path("shown.png")).unwrap(),
        fs::read(workspace.path("plain.png")).unwrap()
    );
}

/// Any plan has the same previews, up to rounding.
#[test]
fn previews_are_those_of_one_rank() {
    let workspace = Workspace::with_demo();
    let preview = |name: &str, further: &[&str]| {
        let output = format!("{name}.safetensors");
        let run = ["generate", "--model", "demo", "--prompt", "a", "--num-inference-steps", "4", "--quiet"];
        workspace.ok(&[&run, &["--preview", "3", "--output", &output][..], further].concat());
        pixels(&workspace.path(&format!("{name}.preview.png"))).2
    };
    let alone = preview("alone", &[]);
    for (name, further) in [
        ("ulysses", &["--ulysses-degree", "2"][..]),
        ("ring", &["--ring-degree", "2", "--use-cfg-parallel"]),
        ("tensor", &["--tensor-parallel-degree", "2"]),
        (
            "pipefusion",
            &["--pipefusion-parallel-degree", "2", "--warmup-steps", "4", "--ulysses-degree", "2"],
        ),
    ] {
        let many = preview(name, further);
        let apart = many.iter().zip(&alone).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(apart <= 1, "{name}: {apart}");
    }
    // Patches of different steps arrive in turns.
    preview(
        "stale",
        &["--pipefusion-parallel-degree", "2", "--num-pipeline-patch", "4", "--warmup-steps", "1"],
    );
    assert_eq!(
        workspace.error(&["generate", "--model", "demo", "--prompt", "a", "--preview", "0"]),
        "2\nerror: a preview every `0` steps is none\nhint: leave it out for no previews\n"
    );
}
