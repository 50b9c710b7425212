//! The built-in model, and `xdit demo-checkpoint`.

use std::fs;

use crate::workspace::{Workspace, pixels};

const PROMPT: [&str; 6] = ["--prompt", "a small cactus", "--num-inference-steps", "2", "--seed", "7"];

#[test]
fn a_picture_needs_a_prompt_only() {
    let workspace = Workspace::new();
    workspace.ok(&[&["generate", "--quiet", "--output", "built-in.png"], &PROMPT[..]].concat());
    let (width, height, built_in) = pixels(&workspace.path("built-in.png"));
    assert_eq!((width, height), (256, 256));
    // The picture can be made again from its metadata, and by the checkpoint that the model is written to.
    workspace.ok(&["generate", "--quiet", "--from", "built-in.png", "--output", "again.png"]);
    assert_eq!(pixels(&workspace.path("again.png")).2, built_in);
    assert_eq!(workspace.ok(&["demo-checkpoint", "emoji", "--quiet"]), "emoji\n");
    let from_folder = ["generate", "--quiet", "--model", "emoji", "--output", "folder.png"];
    workspace.ok(&[&from_folder, &PROMPT[..]].concat());
    assert_eq!(pixels(&workspace.path("folder.png")).2, built_in);
}

#[test]
fn damaged_files_in_the_cache_are_written_again() {
    let workspace = Workspace::new();
    let generate = [&["generate", "--quiet", "--output", "a.png"], &PROMPT[..]].concat();
    workspace.ok(&generate);
    let first = pixels(&workspace.path("a.png"));
    let weights = workspace.path("cache/xdit/built-in/transformer/diffusion_pytorch_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    for damaged in [&whole[..whole.len() / 2], &changed] {
        fs::write(&weights, damaged).unwrap();
        workspace.ok(&generate);
        assert_eq!(fs::read(&weights).unwrap(), whole);
        assert_eq!(pixels(&workspace.path("a.png")), first);
    }
    fs::remove_dir_all(workspace.path("cache/xdit/built-in/vae")).unwrap();
    workspace.ok(&generate);
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let workspace = Workspace::new();
    fs::write(workspace.path("cache"), "a file").unwrap();
    let run = workspace.run(&["generate", "--prompt", "a small cactus"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let hint = "hint: set `XDG_CACHE_HOME` to a folder that can be written";
    assert!(run.stderr.contains("cannot create the folder") && run.stderr.contains(hint), "{}", run.stderr);
}
