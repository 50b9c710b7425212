//! `xdit generate`: successful runs.

use std::fs;
use std::io::{BufRead, BufReader};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::workspace::{Workspace, pixels};

#[test]
fn a_picture_is_written_and_named_on_stdout() {
    let workspace = Workspace::with_demo();
    assert_eq!(workspace.generate(&["--prompt", "a small cactus"]), "xdit.png\n");
    let (width, height, values) = pixels(&workspace.path("xdit.png"));
    assert_eq!((width, height), (256, 256));
    // The picture is neither grey nor saturated: every third of the range is well used.
    for third in [0..85u16, 85..170, 170..256] {
        let share = values.iter().filter(|&&value| third.contains(&value.into())).count();
        assert!(share > values.len() / 20, "{share} of {} in {third:?}", values.len());
    }
    assert_eq!(workspace.files(), ["demo", "xdit.png"]);
}

#[test]
fn a_picture_can_be_generated_again_from_its_file() {
    let workspace = Workspace::with_demo();
    let first = [
        "--prompt",
        "un café, \"noir\": 猫",
        "--negative-prompt",
        "gris",
        "--seed",
        "18446744073709551615",
        "--guidance-scale",
        "2.7",
        "--height",
        "192",
        "--width",
        "320",
        "--max-sequence-length",
        "9",
        "--output",
        "first.png",
    ];
    workspace.generate(&first);
    workspace.ok(&["generate", "--from", "first.png", "--output", "again.png", "--quiet"]);
    assert_eq!(
        fs::read(workspace.path("first.png")).unwrap(),
        fs::read(workspace.path("again.png")).unwrap()
    );

    // Options override the stored parameters.
    workspace.ok(&["generate", "--from", "again.png", "--seed", "1", "--output", "other.png", "--quiet"]);
    assert_ne!(pixels(&workspace.path("other.png")).2, pixels(&workspace.path("first.png")).2);
}

/// An empty text stands for the prompt with every model, so a picture of a model with more text encoders can be
/// generated again with a model that has fewer.
#[test]
fn an_empty_second_prompt_counts_as_absent() {
    let workspace = Workspace::with_demo();
    workspace.generate(&["--prompt", "a", "--prompt-2", "", "--negative-prompt-2", "", "--output", "a.png"]);
    workspace.ok(&["generate", "--from", "a.png", "--output", "again.png", "--quiet"]);
    workspace.generate(&["--prompt", "a", "--output", "plain.png"]);
    for name in ["again.png", "plain.png"] {
        assert_eq!(pixels(&workspace.path(name)), pixels(&workspace.path("a.png")), "{name}");
    }
}

#[test]
fn parameters_are_stored_for_other_programs() {
    let workspace = Workspace::with_demo();
    workspace.generate(&["--prompt", "a cactus", "--negative-prompt", "grey", "--seed", "3"]);
    let file = std::io::BufReader::new(fs::File::open(workspace.path("xdit.png")).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let chunks = &reader.info().uncompressed_latin1_text;
    let text = &chunks.iter().find(|chunk| chunk.keyword == "parameters").unwrap().text;
    insta::assert_snapshot!(text, @r"
    a cactus
    Negative prompt: grey
    Steps: 2, CFG scale: 4.5, Seed: 3, Size: 256x256, Model: demo, Version: xdit 0.1.0
    ");
}

/// The texts in the PNG file `name`, by keyword.
pub fn chunks(workspace: &Workspace, name: &str) -> Vec<(String, String)> {
    let file = std::io::BufReader::new(fs::File::open(workspace.path(name)).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let chunks = &reader.info().uncompressed_latin1_text;
    chunks.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect()
}

#[test]
fn pictures_reveal_no_path_and_nothing_without_metadata() {
    let workspace = Workspace::with_demo();
    let path = workspace.path("demo").display().to_string();
    let run = ["generate", "--model", &path, "--prompt", "a", "--num-inference-steps", "2", "--output"];
    workspace.ok(&[&run[..], &["a.png"]].concat());
    workspace.ok(&[&run[..], &["b.png", "--no-metadata"]].concat());
    let with = chunks(&workspace, "a.png");
    assert!(!with.is_empty() && with.iter().all(|(_, text)| !text.contains(&path)), "{with:?}");
    assert_eq!(chunks(&workspace, "b.png"), []);
    assert_eq!(pixels(&workspace.path("a.png")), pixels(&workspace.path("b.png")));
}

/// As in diffusers, PixArt's captions are cleaned by default.
#[test]
fn captions_are_cleaned_unless_turned_off() {
    let workspace = Workspace::with_demo();
    let marked = "<b>a cactus</b>";
    workspace.generate(&["--prompt", "a cactus", "--output", "a.png"]);
    workspace.generate(&["--prompt", marked, "--output", "b.png"]);
    workspace.generate(&["--prompt", marked, "--no-clean-caption", "--output", "c.png"]);
    workspace.generate(&["--from", "c.png", "--output", "d.png"]);
    let [a, b, c, d] = ["a.png", "b.png", "c.png", "d.png"].map(|name| pixels(&workspace.path(name)));
    assert!(a == b, "markup is removed");
    assert!(a != c, "markup is kept");
    assert!(c == d, "the picture remembers it");
}

/// Each picture is the one that its prompt and negative prompt make alone, and remembers both.
#[test]
fn each_prompt_has_its_negative_prompt() {
    let workspace = Workspace::with_demo();
    let both = ["--prompt", "a", "a", "--negative-prompt", "grey", "red", "--seed", "5", "--output", "m.png"];
    workspace.generate(&both);
    let alone = ["--prompt", "a", "--negative-prompt", "red", "--seed", "6", "--output", "one.png"];
    workspace.generate(&alone);
    workspace.generate(&["--from", "m-1.png", "--output", "again.png"]);
    let [first, second, one, again] =
        ["m-0.png", "m-1.png", "one.png", "again.png"].map(|name| pixels(&workspace.path(name)));
    assert!(second == one && second == again && first != second);
}

#[test]
fn picture_i_of_a_run_has_seed_plus_i() {
    let workspace = Workspace::with_demo();
    let paths = workspace.generate(&[
        "--prompt",
        "a",
        "b",
        "--num-images",
        "2",
        "--seed",
        "5",
        "--output",
        "many.png",
    ]);
    assert_eq!(paths, "many-0.png\nmany-1.png\nmany-2.png\nmany-3.png\n");
    workspace.generate(&["--prompt", "b", "--seed", "8", "--output", "one.png"]);
    let picture = |name: &str| pixels(&workspace.path(name));
    assert_eq!(picture("many-3.png"), picture("one.png"));
    assert_ne!(picture("many-2.png"), picture("one.png"));
    assert_ne!(picture("many-1.png"), picture("many-3.png"), "the prompt has no effect");
}

#[test]
fn prompts_can_be_read_from_a_file() {
    let workspace = Workspace::with_demo();
    fs::write(workspace.path("prompts.txt"), "\u{feff}a cactus\r\n\n  a ca\u{301}ctus \n").unwrap();
    let paths = workspace.generate(&["--prompt-file", "prompts.txt", "--output", "{i}-of-{seed}.png"]);
    assert_eq!(paths, "0-of-0.png\n1-of-1.png\n");
    workspace.generate(&["--prompt", "a cactus"]);
    assert_eq!(pixels(&workspace.path("xdit.png")), pixels(&workspace.path("0-of-0.png")));
}

#[test]
fn latents_are_read_and_written() {
    let workspace = Workspace::with_demo();
    let noise = xdit_core::noise::Generator::from_seed(7).randn(4 * 32 * 32);
    let bytes: Vec<u8> = noise.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![1, 4, 32, 32], &bytes).unwrap();
    fs::write(workspace.path("in.safetensors"), safetensors::serialize([("latents", view)], None).unwrap())
        .unwrap();

    let latents = ["--prompt", "a cactus", "--output-type", "latent"];
    workspace.generate(
        &[&latents[..], &["--init-latents", "in.safetensors", "--output", "given.safetensors"]].concat(),
    );
    assert_eq!(workspace.generate(&[&latents[..], &["--seed", "7"]].concat()), "xdit.safetensors\n");
    let given = fs::read(workspace.path("given.safetensors")).unwrap();
    assert_eq!(
        given,
        fs::read(workspace.path("xdit.safetensors")).unwrap(),
        "the latents differ from the noise of seed 7"
    );
    let file = SafeTensors::deserialize(&given).unwrap();
    let tensor = file.tensor("latents").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, [1, 4, 32, 32].as_slice()));
    assert_eq!(file.len(), 1);
}

#[test]
fn the_report_is_json() {
    let workspace = Workspace::with_demo();
    let long = "x ".repeat(200);
    let report = workspace.generate(&["--prompt", &long, "b", "--report", "json", "--guidance-scale", "3.1"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["parameters"]["guidance_scale"], 3.1);
    assert_eq!(report["parameters"]["model"], "demo");
    assert_eq!(report["outputs"][1], serde_json::json!({ "path": "xdit-1.png", "seed": 1, "prompt": "b" }));
    assert_eq!(report["warnings"].as_array().unwrap().len(), 1, "the only warning is about the cut prompt");
    let seconds = &report["seconds"];
    for component in ["text_encoder", "transformer", "vae"] {
        assert!(seconds["load"][component].as_f64().unwrap() > 0.0, "{component}");
    }
    assert!(seconds["encode"].as_f64().unwrap() > 0.0);
    for image in 0..2 {
        let steps = seconds["steps"][image].as_array().unwrap();
        let sum: f64 = steps.iter().map(|step| step.as_f64().unwrap()).sum();
        assert_eq!(steps.len(), 2);
        assert!(sum <= seconds["denoise"][image].as_f64().unwrap());
        assert!(seconds["decode"][image].as_f64().unwrap() > 0.0);
    }
    assert!(report["it_per_s"].as_f64().unwrap() > 0.0);
    assert!(report["total_s"].as_f64().unwrap() > seconds["denoise"][0].as_f64().unwrap());
    assert!(cfg!(not(target_os = "linux")) || report["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
}

#[test]
fn progress_is_plain_text_without_a_terminal() {
    let workspace = Workspace::with_demo();
    let run = ["generate", "--model", "demo", "--prompt", "a", "--num-inference-steps", "20"];
    let lines = workspace.run(&run).stderr;
    // Figures that differ from run to run are removed.
    let lines: Vec<&str> = lines
        .lines()
        .map(|line| line.split([',', '.']).next().unwrap())
        .filter(|l| !l.starts_with("done"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    loading text_encoder
    encoding
    loading transformer
    denoising
      5 of 20
      10 of 20
      15 of 20
      20 of 20
    loading vae
    decoding
    ");
    assert_eq!(workspace.run(&[&run[..], &["--quiet", "--output", "a.png"]].concat()).stderr, "");
}

#[test]
fn one_rank_is_the_default() {
    let workspace = Workspace::with_demo();
    let one = [
        "--ulysses_degree",
        "1",
        "--ring_degree=1",
        "--pipefusion_parallel_degree",
        "1",
        "--num_pipeline_patch",
        "1",
        "--warmup_steps",
        "3",
        "--data_parallel_degree",
        "1",
        "--tensor_parallel_degree",
        "1",
        "--split_scheme",
        "row",
        "--attn_layer_num_for_pp",
        "2",
    ];
    workspace.generate(&[&one[..], &["--prompt", "a"]].concat());
}

#[test]
fn many_ranks_generate_the_picture_of_one() {
    let workspace = Workspace::with_demo();
    let run = |name: &str, options: &[&str]| {
        let output = format!("{name}.png");
        workspace.generate(&[&["--prompt", "a small cactus", "--output", &output], options].concat());
        pixels(&workspace.path(&output))
    };
    let near = |a: &(u32, u32, Vec<u8>), b: &(u32, u32, Vec<u8>)| {
        a.2.len() == b.2.len() && a.2.iter().zip(&b.2).all(|(a, b)| a.abs_diff(*b) <= 1)
    };
    let one = run("one", &[]);
    let exact =
        ["--ulysses_degree", "2", "--ring_degree", "2", "--use_cfg_parallel", "--num_pipeline_patch", "1"];
    assert!(near(&one, &run("exact", &exact)));
    let decoded = [&exact[..], &["--use_parallel_vae"]].concat();
    assert!(near(&one, &run("decoded", &decoded)));

    let hybrid = ["--pipefusion_parallel_degree", "2", "--ulysses_degree", "2", "--use_cfg_parallel"];
    let hybrid = run("hybrid", &[&hybrid[..], &["--warmup_steps", "0"]].concat());
    assert!(!near(&one, &hybrid), "stale keys have no visible effect");
    let oracle = run("oracle", &["--num_pipeline_patch", "2", "--warmup_steps", "0"]);
    assert!(near(&hybrid, &oracle), "the mesh has a visible effect");
    workspace.ok(&["generate", "--from", "hybrid.png", "--output", "again.png", "--quiet"]);
    assert!(
        near(&hybrid, &pixels(&workspace.path("again.png"))),
        "the picture changes when generated again on one rank"
    );
}

/// A command from xDiT's documentation: eight ranks, and no warm-up steps.
#[test]
fn the_hybrid_command_of_xdit() {
    let workspace = Workspace::with_demo();
    let steps = ["--num_inference_steps", "20", "--warmup_steps", "0"];
    let run = |output: &str, degrees: &[&str]| {
        let picture = ["generate", "--model", "demo", "--prompt", "a small cactus", "--output", output];
        assert_eq!(
            workspace.ok(&[&picture[..], &steps, degrees, &["--quiet"]].concat()),
            format!("{output}\n")
        );
        pixels(&workspace.path(output))
    };
    let hybrid = ["--pipefusion_parallel_degree", "2", "--ulysses_degree", "2", "--use_cfg_parallel"];
    let (width, height, hybrid) = run("hybrid.png", &hybrid);
    // By default there are as many patches as stages.
    let (.., one_rank) = run("one.png", &["--num_pipeline_patch", "2"]);
    let (.., serial) = run("serial.png", &["--num_pipeline_patch", "1"]);
    assert_eq!((width, height), (256, 256));
    let apart = |other: &[u8]| hybrid.iter().zip(other).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    println!("{} from one rank, {} from the serial picture, of 255", apart(&one_rank), apart(&serial));
    assert!(apart(&one_rank) <= 1, "the mesh has a visible effect: {} of 255", apart(&one_rank));
    assert!(apart(&serial) > 1, "stale keys have no visible effect");
}

#[test]
fn a_plan_is_printed_and_no_file_is_written() {
    let workspace = Workspace::with_demo();
    let options = ["--pipefusion-parallel-degree", "2", "--ulysses-degree", "2", "--num-pipeline-patch", "3"];
    let plan = workspace.plan(&[&["--model", "demo", "--prompt", "a"], &options[..]].concat());
    insta::assert_snapshot!(plan, @r"
    pp 2 × ulysses 2: 3 patches, 1 of 20 steps synchronous
    rank   dp cfg  pp ring ulysses  tp  pictures    blocks    tokens
       0    0   0   0    0       0   0      0..1      0..1       129
       1    0   0   0    0       1   0      0..1      0..1       127
       2    0   0   1    0       0   0      0..1      1..2       129
       3    0   0   1    0       1   0      0..1      1..2       127

    rank  parameters   used once    contexts  keys and values  sent a step
       0  265.00 KiB  210.50 KiB   70.00 KiB       128.00 KiB  pp 64.50 KiB, ulysses 128.50 KiB
       1  265.00 KiB  210.50 KiB   70.00 KiB       128.00 KiB  pp 63.50 KiB, ulysses 127.50 KiB
       2  269.38 KiB  210.50 KiB   70.00 KiB       128.00 KiB  pp 8.06 KiB, ulysses 128.50 KiB
       3  269.38 KiB  210.50 KiB   70.00 KiB       128.00 KiB  pp 7.94 KiB, ulysses 127.50 KiB
     all  550.25 KiB  210.50 KiB  140.00 KiB       512.00 KiB
    ");
    assert_eq!(workspace.files(), ["demo"]);
}

/// Both shares of data parallelism count, in the order of their pictures.
#[test]
fn the_report_covers_all_shares() {
    let workspace = Workspace::with_demo();
    let run = ["--prompt", "a", "--num-images", "3", "--data-parallel-degree", "2", "--report", "json"];
    let report: Value = serde_json::from_str(&workspace.generate(&run)).unwrap();
    let seconds = &report["seconds"];
    for phase in ["denoise", "steps", "decode"] {
        assert_eq!(seconds[phase].as_array().unwrap().len(), 3, "{phase}");
    }
    let steps = seconds["steps"].as_array().unwrap();
    assert!(steps.iter().all(|steps| steps.as_array().unwrap().len() == 2), "{steps:?}");
    let slowest =
        steps.iter().map(|steps| steps.as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).sum());
    let slowest = slowest.fold(0.0, f64::max);
    let it_per_s = report["it_per_s"].as_f64().unwrap();
    assert!(it_per_s <= 6.0 / slowest, "{it_per_s} it/s, {slowest} s for one picture");

    let lines = workspace
        .run(&[
            "generate",
            "--model",
            "demo",
            "--num-inference-steps",
            "2",
            "--prompt",
            "a",
            "--num-images",
            "3",
            "--data-parallel-degree",
            "2",
        ])
        .stderr;
    for picture in 1..=3 {
        let line = format!("denoising picture {picture} of 3");
        assert_eq!(lines.lines().filter(|found| *found == line).count(), 1, "{lines}");
    }
}

/// A file that cannot be written ends the run; those before it stay.
#[test]
fn a_file_that_cannot_be_written_ends_the_run() {
    let workspace = Workspace::with_demo();
    let run =
        ["generate", "--model", "demo", "--prompt", "a", "--num-images", "50", "--num-inference-steps", "1"];
    let mut child = workspace.command(&run).spawn().unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    assert_eq!(printed.next().as_deref(), Some("xdit-0.png"));
    // Paths are checked before the run, so this one is taken after the check.
    fs::create_dir(workspace.path("xdit-49.png")).unwrap();
    assert_eq!(printed.last().as_deref(), Some("xdit-48.png"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let talk = String::from_utf8(output.stderr).unwrap();
    assert!(talk.contains("error: cannot write `xdit-49.png`"), "{talk}");
}

/// Nobody can read standard error: the disk it goes to is full.
#[cfg(target_os = "linux")]
#[test]
fn a_run_does_not_depend_on_its_talk() {
    let workspace = Workspace::with_demo();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let run = ["generate", "--model", "demo", "--num-inference-steps", "2", "--prompt", "a"];
    assert_eq!(workspace.command(&run).stderr(full()).status().unwrap().code(), Some(0));
    assert!(workspace.path("xdit.png").is_file());
    assert_eq!(workspace.command(&["generate"]).stderr(full()).status().unwrap().code(), Some(2));
    assert_eq!(workspace.command(&run).stdout(full()).status().unwrap().code(), Some(1));
}

/// The last component is freed or not: the picture is the same.
#[test]
fn memory_changes_no_picture() {
    let workspace = Workspace::with_demo();
    let run = |keep: &str| {
        let options = ["--prompt", "a", "--num-images", "2", "--keep", keep, "--output", "{i}.png"];
        workspace.generate(&options);
        ["0.png", "1.png"].map(|name| pixels(&workspace.path(name)))
    };
    let expected = run("auto");
    for keep in ["all", "transformer", "request", "none"] {
        assert_eq!(run(keep), expected, "{keep}");
    }
}

/// Several seeds give the pictures that each seed gives alone.
#[test]
fn several_seeds() {
    let workspace = Workspace::with_demo();
    workspace.generate(&["--prompt", "a", "b", "--seed", "9", "4", "--output", "{i}-{seed}.png"]);
    for (name, prompt, seed) in [("0-9", "a", "9"), ("1-4", "a", "4"), ("2-9", "b", "9"), ("3-4", "b", "4")] {
        workspace.generate(&["--prompt", prompt, "--seed", seed, "--output", "one.png"]);
        assert_eq!(
            pixels(&workspace.path(&format!("{name}.png"))),
            pixels(&workspace.path("one.png")),
            "{name}"
        );
    }
}

#[test]
fn a_random_seed_is_stored() {
    let workspace = Workspace::with_demo();
    let seeds: Vec<String> = (0..2)
        .map(|_| workspace.generate(&["--prompt", "a", "--seed", "random", "--output", "{seed}.png"]))
        .collect();
    assert_ne!(seeds[0], seeds[1]);
    let file = seeds[0].trim();
    workspace.generate(&["--from", file, "--output", "again.png"]);
    assert_eq!(pixels(&workspace.path("again.png")), pixels(&workspace.path(file)));
    let seed = file.strip_suffix(".png").unwrap();
    workspace.generate(&["--prompt", "a", "--seed", seed, "--output", "again.png"]);
    assert_eq!(pixels(&workspace.path("again.png")), pixels(&workspace.path(file)));
}

/// Prompts come from a pipe as from the command line.
#[test]
fn prompts_from_standard_input() {
    let workspace = Workspace::with_demo();
    let run = |args: &[&str], text: &str| {
        let mut command =
            workspace.command(&["generate", "--model", "demo", "--num-inference-steps", "1", "--quiet"]);
        let mut child = command.args(args).stdin(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&["--prompt", "-"], "a small\ncactus\n").0, "xdit.png\n");
    let bytes = fs::read(workspace.path("xdit.png")).unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains(r#""prompt":"a small\ncactus""#));
    assert_eq!(run(&["--prompt-file", "-"], "a\n\nb\n").0, "xdit-0.png\nxdit-1.png\n");
    let (_, error) = run(&["--prompt", "-"], " \n");
    assert!(error.starts_with("error: standard input contains no prompt\nhint: "), "{error}");
}

/// The number of threads changes no picture.
#[test]
fn threads() {
    let workspace = Workspace::with_demo();
    for threads in ["1", "3"] {
        workspace.generate(&["--prompt", "a", "--threads", threads, "--output", &format!("{threads}.png")]);
    }
    assert_eq!(pixels(&workspace.path("1.png")), pixels(&workspace.path("3.png")));
}

/// What a person may not have meant is said, but does not end the run.
#[test]
fn warnings_about_options() {
    let workspace = Workspace::with_demo();
    let warnings = |args: &[&str]| {
        let run = ["generate", "--model", "demo", "--num-inference-steps", "1", "--quiet"];
        let run = workspace.run(&[&run, args].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stderr
    };
    assert_eq!(warnings(&["--prompt", "a small cactus"]), "");
    assert_eq!(
        warnings(&["--prompt", "a small cactus"]),
        "warning: `xdit.png` exists and will be replaced; `--output` names another file\n"
    );
    // A file that the options name is meant.
    assert_eq!(warnings(&["--prompt", "a small cactus", "--output", "xdit.png"]), "");
    assert_eq!(
        warnings(&[
            "--prompt",
            "a b",
            "--output",
            "x.png",
            "--negative-prompt",
            "c",
            "--guidance-scale",
            "1"
        ]),
        "warning: the negative prompt changes nothing: guidance is off at a guidance scale of 1, and on above 1\n"
    );
    let words = warnings(&["--prompt", "small", "cactus"]);
    assert!(words.starts_with("warning: `--prompt` has 2 values of one word each"), "{words}");
    assert_eq!(
        warnings(&["--prompt", "a b", "--output", "x.png", "--use_torch_compile"]),
        "note: `--use-torch-compile` changes nothing: nothing is compiled by PyTorch\n"
    );
}

/// JPEG and WebP files have the picture, and the parameters to make it again.
#[test]
fn other_formats() {
    let workspace = Workspace::with_demo();
    let options = ["--prompt", "ein größerer 🌵", "--seed", "5"];
    workspace.generate(&[&options[..], &["--output", "a.png"]].concat());
    for (name, signature) in
        [("a.jpg", &b"\xff\xd8\xff"[..]), ("a.JPEG", b"\xff\xd8\xff"), ("a.webp", b"RIFF")]
    {
        assert_eq!(workspace.generate(&[&options[..], &["--output", name]].concat()), format!("{name}\n"));
        assert!(fs::read(workspace.path(name)).unwrap().starts_with(signature), "{name}");
        workspace.generate(&["--from", name, "--output", "again.png"]);
        assert_eq!(
            fs::read(workspace.path("again.png")).unwrap(),
            fs::read(workspace.path("a.png")).unwrap()
        );
    }
    let bytes = fs::read(workspace.path("a.webp")).unwrap();
    let mut decoder = image_webp::WebPDecoder::new(std::io::Cursor::new(bytes)).unwrap();
    let mut rgb = vec![0; decoder.output_buffer_size().unwrap()];
    decoder.read_image(&mut rgb).unwrap();
    assert_eq!((decoder.dimensions().0, decoder.dimensions().1, rgb), pixels(&workspace.path("a.png")));
    assert_eq!(workspace.generate(&["--prompt", "a", "--output-type", "webp"]), "xdit.webp\n");
    workspace.generate(&["--prompt", "a", "--output", "plain.jpg", "--no-metadata"]);
    let bare = workspace.error(&["generate", "--from", "plain.jpg"]);
    assert!(bare.contains("`plain.jpg` contains no parameters of this program"), "{bare}");
}

/// Latents that are decoded later give the pictures that the same run gives at once.
#[test]
fn latents_are_decoded() {
    let workspace = Workspace::with_demo();
    let run = ["--prompt", "a", "b", "--seed", "3"];
    workspace.generate(&run);
    workspace.generate(&[&run[..], &["--output", "two.safetensors"]].concat());
    let decode = ["decode", "two.safetensors", "--model", "demo", "--output", "later.png"];
    assert_eq!(workspace.ok(&decode), "later-0.png\nlater-1.png\n");
    for index in 0..2 {
        let [at_once, later] =
            ["xdit", "later"].map(|name| pixels(&workspace.path(&format!("{name}-{index}.png"))));
        assert_eq!(at_once, later);
    }
    let error =
        workspace.error(&["decode", "two.safetensors", "--model", "demo", "--output", "a.safetensors"]);
    assert!(error.starts_with("2\nerror: decoded latents are pictures\n"), "{error}");
    let view = TensorView::new(Dtype::F32, vec![1, 3, 2, 2], &[0; 48]).unwrap();
    fs::write(workspace.path("rgb"), safetensors::serialize([("latents", view)], None).unwrap()).unwrap();
    insta::assert_snapshot!(workspace.error(&["decode", "rgb", "--model", "demo"]), @r"
    2
    error: latents of shape `[1, 3, 2, 2]` do not fit this model
    hint: it decodes [n, 4, height, width], or [n, 4, frames, height, width]
    ");
}
