//! Odd requests: each is refused in one sentence with a hint, or carried out as it says.

use crate::workspace::Workspace;

/// A number that begins with a minus is a wrong number, not an unknown option.
#[test]
fn numbers_below_zero() {
    let workspace = Workspace::new();
    for option in ["--num-frames", "--height", "--num-images", "--threads", "--preview", "--ring-degree"] {
        assert_eq!(
            workspace.error(&["generate", "--prompt", "a", option, "-1"]),
            format!(
                "2\nerror: `-1` is not a valid value of `{option}`\n\
                 hint: give a whole number that is not negative\n"
            )
        );
    }
    let steps = workspace.error(&["generate", "--prompt", "a", "--steps", "-1"]);
    assert!(steps.contains("`-1` is not a valid value of `--num-inference-steps`"), "{steps}");
    let seed = workspace.error(&["generate", "--prompt", "a", "--seed", "-1"]);
    assert!(seed.contains("hint: seeds are not negative"), "{seed}");
}

/// Standard input is one prompt, or several lines of a file.
#[test]
fn standard_input_among_prompts() {
    let workspace = Workspace::new();
    for prompts in [["-", "-"], ["a", "-"]] {
        assert_eq!(
            workspace.error(&[&["generate", "--prompt"], &prompts[..]].concat()),
            "2\nerror: `-` is one of 2 prompts, and stands for standard input only alone\n\
             hint: `--prompt-file -` reads several prompts, one a line\n"
        );
    }
}

/// EXIF data of a JPEG file has at most 64 KiB, so a long prompt does not fit, which is said.
#[test]
fn parameters_that_do_not_fit() {
    let workspace = Workspace::with_demo();
    let long = "🦊".repeat(9000);
    let run = |prompt: &str, output: &str, further: &[&str]| {
        let options =
            ["generate", "--model", "demo", "--num-inference-steps", "1", "--quiet", "--no-clean-caption"];
        let run = workspace.run(&[&options[..], &["--prompt", prompt, "--output", output], further].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stderr.contains("the parameters are too long for the format")
    };
    assert!(run(&long, "a.jpg", &[]));
    assert!(workspace.error(&["inspect", "a.jpg"]).contains("contains no parameters"));
    assert!(!run(&long, "a.jpg", &["--no-metadata"]));
    assert!(!run("a", "a.jpg", &[]));
    for name in ["a.png", "a.webp"] {
        assert!(!run(&long, name, &[]), "{name}");
        assert!(workspace.ok(&["inspect", name]).contains("🦊"), "{name}");
    }
}

/// The command that makes a picture again can be pasted into a shell, whatever the name of the file.
#[cfg(unix)]
#[test]
fn names_of_files_are_quoted() {
    let workspace = Workspace::with_demo();
    for (name, quoted) in [
        ("plain-1_a.png", "plain-1_a.png"),
        ("two words.png", "'two words.png'"),
        ("it's.png", r"'it'\''s.png'"),
        ("$(date);.png", "'$(date);.png'"),
        ("a\nb'\u{1b}[1m.png", r"$'a\u000ab\'\u001b[1m.png'"),
    ] {
        workspace.generate(&["--prompt", "a", "--output", name]);
        let shown = workspace.ok(&["inspect", name]);
        assert_eq!(shown.lines().last(), Some(&*format!("again: xdit generate --from {quoted}")));
    }
}

/// Text that is not UTF-8 is named; a path may have it, unless a number has to be put in.
#[cfg(target_os = "linux")]
#[test]
fn texts_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;

    let workspace = Workspace::with_demo();
    let run = |arguments: &[&[u8]]| {
        let mut command = workspace.command(&["generate", "--model", "demo", "--num-inference-steps", "1"]);
        command.arg("--quiet").args(arguments.iter().map(|bytes| std::ffi::OsStr::from_bytes(bytes)));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    insta::assert_snapshot!(run(&[b"--prompt", b"caf\xe9"]).1, @r"
    error: `caf�` is not UTF-8
    hint: type it in the encoding UTF-8
    ");
    let several: [&[u8]; 6] = [b"--prompt", b"a", b"--output", b"\xe9.png", b"--num-images", b"2"];
    let (code, error) = run(&several);
    assert_eq!(
        (code, error.contains("is not UTF-8, so no numbers fit in\nhint: ")),
        (Some(2), true),
        "{error}"
    );
    let preview: [&[u8]; 6] = [b"--prompt", b"a", b"--output", b"\xe9.png", b"--preview", b"1"];
    assert_eq!(run(&preview), (Some(0), String::new()));
    let path = workspace.path("demo").with_file_name(std::ffi::OsStr::from_bytes(b"\xe9.png"));
    assert!(path.is_file());
}

/// `-seed 3` would be `-s eed`, and a dash made by a text processor a further prompt.
#[test]
fn wrong_dashes() {
    let workspace = Workspace::new();
    for (typed, name) in [
        ("-seed", "seed"),
        ("-steps", "steps"),
        ("-model", "model"),
        ("-height=3", "height"),
        ("-guidance_scale", "guidance-scale"),
        ("—num-frames", "num-frames"),
        ("–fps", "fps"),
        ("––fps", "fps"),
    ] {
        let error = workspace.error(&["generate", "--prompt", "a", typed, "3"]);
        assert!(error.starts_with("2\nerror: `"), "{error}");
        assert!(
            error.ends_with(&format!("hint: long options begin with two dashes: `--{name}`\n")),
            "{error}"
        );
    }
    // Values and short options stay what they are.
    let long_dash = ["generate", "--prompt", "— a cat —", "-s3", "-H", "64", "--model", "missing"];
    assert!(workspace.error(&long_dash).contains("`missing`"));
}

/// The fault is that of the files that a component has, and not of others that it might have.
#[test]
fn damaged_weights_are_inspected() {
    let workspace = Workspace::with_demo();
    let weights = workspace.path("demo/vae/diffusion_pytorch_model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let error = workspace.error(&["inspect", "demo"]);
    assert!(
        error.contains("`demo/vae/diffusion_pytorch_model.safetensors` is not a valid safetensors file"),
        "{error}"
    );
    std::fs::remove_file(&weights).unwrap();
    std::fs::create_dir(&weights).unwrap();
    assert!(workspace.error(&["inspect", "demo"]).contains("it is a folder\nhint: "));
}

#[test]
fn spellings_of_the_built_in_model() {
    let workspace = Workspace::new();
    for name in ["builtin", "Built-In", "built_in"] {
        for command in [&["inspect", name][..], &["generate", "--prompt", "a", "--model", name]] {
            assert_eq!(
                workspace.error(command),
                format!(
                    "2\nerror: there is no folder `{name}`\nhint: the model inside this program is called `built-in`\n"
                )
            );
        }
    }
}

/// The hint for options without a command shows where they belong, and only prompts are put in quotes.
#[test]
fn commands() {
    let workspace = Workspace::new();
    for arguments in [&["--prompt", "a"][..], &["-p", "a"]] {
        let error = workspace.error(arguments);
        assert!(error.contains("\nhint: options follow a command: `xdit generate --prompt"), "{error}");
    }
    assert!(
        workspace.error(&["generate", "a", "cat"]).contains("hint: put a text of several words in quotes")
    );
    assert!(!workspace.error(&["inspect", "a.png", "b.png"]).contains("in quotes"));
    let switch = workspace.error(&["generate", "--prompt", "a", "--vae-tiling", "false"]);
    assert!(switch.ends_with("hint: the value follows an equals sign: `--vae-tiling=false`\n"), "{switch}");
    let switch = workspace.error(&["generate", "--vae-tiling=maybe"]);
    assert!(switch.contains("error: `maybe` is not a valid value of `--vae-tiling`\n"), "{switch}");
    assert!(workspace.error(&["bench", "demo", "--steps", "0x"]).contains("`0x` is not a valid value"));
}
