//! A picture on standard output.

use std::fs;

use crate::workspace::Workspace;

/// A run of two steps on the checkpoint in `demo`, with an output.
fn with<'a>(output: &[&'a str]) -> Vec<&'a str> {
    let run = ["generate", "--model", "demo", "--prompt", "a", "--num-inference-steps", "2", "--output"];
    [&run, output].concat()
}

#[test]
fn a_picture_can_go_to_standard_output() {
    let workspace = Workspace::with_demo();
    let piped = |args: &[&str]| {
        let output = workspace.command(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    workspace.ok(&with(&["a.webp"]));
    assert_eq!(piped(&with(&["-", "--output-type", "webp"])), fs::read(workspace.path("a.webp")).unwrap());
    workspace.ok(&with(&["a.safetensors"]));
    workspace.ok(&["decode", "a.safetensors", "--model", "demo", "--output", "decoded.png"]);
    let decoded = piped(&["decode", "a.safetensors", "--model", "demo", "--output", "-"]);
    assert_eq!(decoded, fs::read(workspace.path("decoded.png")).unwrap());
    assert!(!workspace.path("-").exists());
    let two = workspace.error(&with(&["-", "--num-images", "2"]));
    assert!(two.starts_with("2\nerror: `2` pictures do not fit into standard output\n"), "{two}");
}

/// The seed can be read, and typed again.
#[test]
fn a_random_seed_is_told() {
    let workspace = Workspace::with_demo();
    let with = |further: &[&str]| workspace.run(&with(further));
    let random = with(&["random.png", "--seed", "random", "--no-metadata"]);
    let seed = random.stderr.lines().find_map(|line| line.strip_prefix("seed ")).expect("the seed is told");
    with(&["again.png", "--seed", seed, "--no-metadata"]);
    assert_eq!(
        fs::read(workspace.path("random.png")).unwrap(),
        fs::read(workspace.path("again.png")).unwrap()
    );
    assert!(!with(&["a.png", "--seed", "7"]).stderr.contains("seed"));
}
