//! `--help` and completions.

use crate::workspace::Workspace;

#[test]
fn every_option_is_in_the_help() {
    let workspace = Workspace::new();
    let help = workspace.ok(&["generate", "--help"]);
    // The completions are generated from the definition of the options.
    let completions = workspace.ok(&["completions", "fish"]);
    let options: Vec<&str> = completions
        .lines()
        .filter(|line| line.contains("__fish_xdit_using_subcommand generate"))
        .filter_map(|line| line.split(" -l ").nth(1)?.split(' ').next())
        .collect();
    assert!(options.len() > 35, "{options:?}");
    for option in options {
        assert!(help.contains(&format!("--{option}")), "{option}");
    }
    for heading in ["Picture", "Generation", "Output", "Model and device", "Parallelism", "Examples"] {
        assert!(help.contains(&format!("\n{heading}")), "{heading}");
    }
    assert!(!help.contains('_') || help.contains("PATH_OR_ID"), "options are shown with dashes");
}

#[test]
fn every_shell_has_completions() {
    let workspace = Workspace::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(workspace.ok(&["completions", shell]).contains("guidance-scale"), "{shell}");
    }
}

#[test]
fn the_first_page() {
    insta::assert_snapshot!(Workspace::new().ok(&["--help"]), @r#"
    Generate pictures with diffusion transformers, on Burn.

    Options may be written with dashes or underscores: `--guidance-scale` is the same as
    `--guidance_scale`.

    Usage: xdit <COMMAND>

    Commands:
      generate           Generate pictures from prompts
      plan               Show the work of each rank for `xdit generate` with the same options, without
                         loading weights
      decode             Decode latents that `xdit generate` wrote into pictures
      inspect            Show the components of a checkpoint and the memory that it needs, or the
                         parameters in a picture
      devices            Show the devices of this machine, and what is missing for others
      bench              Measure the speed of a model, by default of published size with random weights
      demo-checkpoint    Write the built-in model as a checkpoint in the diffusers layout
      random-checkpoint  Write a small checkpoint with random weights, for tests
      completions        Print a completion script, to be sourced by the shell
      help               Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Examples:
      xdit generate --prompt "a small cactus"
          Generate a picture with the built-in model, without a download.
      xdit generate --model PixArt-alpha/PixArt-XL-2-512x512 --prompt "a small cactus" --seed 7
          Generate a picture with a checkpoint from the Hugging Face hub.
      xdit inspect PixArt-alpha/PixArt-XL-2-512x512
          Show the components of a checkpoint, and the memory that it needs, before a download.
    "#);
}
