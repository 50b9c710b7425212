//! `xdit random-checkpoint`

use std::fs;

use crate::workspace::Workspace;

#[test]
fn equal_seeds_give_equal_files() {
    let workspace = Workspace::new();
    for (dir, seed) in [("a", "1"), ("b", "1"), ("c", "2")] {
        assert_eq!(workspace.ok(&["random-checkpoint", dir, "--seed", seed]), format!("{dir}\n"));
    }
    let file = |dir: &str, name: &str| fs::read(workspace.path(dir).join(name)).unwrap();
    for name in ["text_encoder/model", "transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model"] {
        let name = format!("{name}.safetensors");
        assert_eq!(file("a", &name), file("b", &name), "{name}");
        assert_ne!(file("a", &name), file("c", &name), "{name}");
    }
}

#[test]
fn a_message_states_that_the_model_is_untrained() {
    let workspace = Workspace::new();
    let message = workspace.run(&["random-checkpoint", "demo"]).stderr;
    insta::assert_snapshot!(message, @r#"
    The model in `demo` is untrained: it generates coloured noise.
    Try it: xdit generate --model demo --prompt "a small cactus"
    "#);
}

#[test]
fn existing_files_are_kept() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("full")).unwrap();
    fs::write(workspace.path("full/thesis.txt"), "42").unwrap();
    insta::assert_snapshot!(workspace.error(&["random-checkpoint", "full"]), @r"
    2
    error: the folder `full` is not empty
    hint: choose another folder, or add `--force` to replace the checkpoint in this one
    ");
    insta::assert_snapshot!(workspace.error(&["random-checkpoint", "full/thesis.txt"]), @r"
    2
    error: `full/thesis.txt` is not a folder
    hint: choose the path of a new folder
    ");
    // `--force` replaces a checkpoint of this command, and nothing else.
    insta::assert_snapshot!(workspace.error(&["random-checkpoint", "full", "--force"]), @r"
    2
    error: the folder `full` holds `thesis.txt`, which is not of this checkpoint
    hint: choose another folder: `--force` replaces only a checkpoint that the same command wrote
    ");
    assert_eq!(fs::read(workspace.path("full/thesis.txt")).unwrap(), b"42");
}
