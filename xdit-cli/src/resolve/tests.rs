//! Tests that a picture stores options that the demo checkpoint does not accept.

use std::path::Path;

use xdit_core::pipeline::{MicroConditions, Picture, Request, Resolved, SkipLayerGuidance};
use xdit_core::plan::guidance::Branch;
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::transformer::TransformerSpec;

use super::Invocation;
use crate::args::OutputType;
use crate::args::{Command, parse};
use crate::output::encode;

/// The run of `xdit generate --output DIR/ ARGS`.
fn job(dir: &Path, args: &[&str]) -> Invocation {
    let output = format!("{}/", dir.display());
    let argv = ["xdit", "generate", "--output", &output].into_iter().chain(args.iter().copied());
    let Command::Generate(args) = parse(argv.map(Into::into)).unwrap().command else { unreachable!() };
    Invocation::resolve(&args, &crate::launcher::Job::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// Writes picture `index` of `job` to `path`, like a model that accepts every option.
fn write(job: &Invocation, index: usize, path: &Path) {
    let spec = TransformerSpec {
        patch: 2,
        channels: 4,
        blocks: 2,
        heads: 2,
        head_dim: 8,
        skips: Vec::new(),
        block_parameters: Vec::new(),
    };
    let work = Work {
        spec,
        tokens: 64,
        grain: 1,
        steps: 4,
        branches: Branch::classifier_free(true),
        images: job.request.images(),
    };
    let resolved = Resolved {
        request: job.request.clone(),
        size: [16; 2],
        generated_size: [16; 2],
        num_inference_steps: 4,
        guidance_scale: 3.0,
        distilled_guidance: false,
        max_sequence_length: 77,
        frames: None,
        plan: Plan::new(&ParallelConfig::default(), &work).unwrap(),
    };
    let parameters = job.parameters(&job.settings(&resolved), index);
    let picture = Picture { width: 1, height: 1, rgb: vec![0; 3] };
    std::fs::write(path, encode(OutputType::Png, &[picture], 8.0, Some(&parameters))).unwrap();
}

/// All texts of a request with one prompt.
fn texts(request: &Request) -> [[&str; 3]; 2] {
    assert_eq!(request.prompts.len(), 1);
    [request.texts(0), request.negative_texts(0)]
}

#[test]
fn a_picture_remembers_what_further_encoders_were_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.png");
    let from = file.to_str().unwrap();
    let options =
        ["--prompt-2", "c", "d", "--prompt_3=e", "--negative-prompt", "n", "--negative-prompt-3", "l", "m"];
    let numbers = ["--clip-skip", "1", "--true_cfg_scale", "2.5", "--guidance-rescale", "0.7"];
    let sizes = ["--original-size", "512", "384", "--negative_crops_coords_top_left", "8", "16"];
    let first = ["--model", "m", "--prompt", "a", "b"];
    write(&job(dir.path(), &[&first, &options[..], &numbers, &sizes].concat()), 1, &file);

    let again = job(dir.path(), &["--from", from]).request;
    assert_eq!(texts(&again), [["b", "d", "e"], ["n", "n", "m"]]);
    assert_eq!((again.clip_skip, again.true_cfg_scale, again.guidance_rescale), (Some(1), Some(2.5), 0.7));
    let micro = MicroConditions {
        original_size: Some([512, 384]),
        negative_crops_coords_top_left: Some([8, 16]),
        ..MicroConditions::default()
    };
    assert_eq!(again.micro_conditions, micro);
    // A picture generated from that picture stores the same.
    write(&job(dir.path(), &["--from", from]), 0, &file);
    assert_eq!(texts(&job(dir.path(), &["--from", from]).request), texts(&again));

    let changed = ["--from", from, "--prompt-2", "z", "--negative-prompt-2", "y", "--clip-skip", "0"];
    let place = ["--crops-coords-top-left", "1", "2"];
    let changed = job(dir.path(), &[&changed[..], &place].concat()).request;
    assert_eq!(texts(&changed), [["b", "z", "e"], ["n", "y", "m"]]);
    assert_eq!(changed.clip_skip, Some(0));
    let moved = MicroConditions { crops_coords_top_left: Some([1, 2]), ..micro };
    assert_eq!(changed.micro_conditions, moved);
    // Texts that belong to the old prompts do not apply to new ones.
    let new = job(dir.path(), &["--from", from, "--prompt", "x", "--negative-prompt", "w"]).request;
    assert_eq!(texts(&new), [["x"; 3], ["w"; 3]]);
}

#[test]
fn a_picture_remembers_the_layers_that_were_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.png");
    let from = file.to_str().unwrap();
    let options = ["--skip-guidance-layers", "7", "8", "9", "--skip_layer_guidance_stop", "0.15"];
    write(&job(dir.path(), &[&["--model", "m", "--prompt", "a"], &options[..]].concat()), 0, &file);
    let expected = SkipLayerGuidance { stop: 0.15, ..SkipLayerGuidance::new(vec![7, 8, 9]) };
    assert_eq!(job(dir.path(), &["--from", from]).request.skip_layer_guidance, Some(expected.clone()));

    let changed = ["--from", from, "--skip-guidance-layers", "2,3", "--skip-layer-guidance-start=0.1"];
    assert_eq!(
        job(dir.path(), &changed).request.skip_layer_guidance,
        Some(SkipLayerGuidance { layers: vec![2, 3], start: 0.1, ..expected.clone() })
    );
    let off = job(dir.path(), &["--from", from, "--skip-layer-guidance-scale", "0"]).request;
    assert_eq!(off.skip_layer_guidance, Some(SkipLayerGuidance { scale: 0.0, ..expected }));
}

#[test]
fn a_picture_says_nothing_of_options_that_were_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.png");
    write(&job(dir.path(), &["--model", "m", "--prompt", "a"]), 0, &file);
    let request = job(dir.path(), &["--from", file.to_str().unwrap()]).request;
    assert!(request.prompts_2.is_empty() && request.prompts_3.is_empty());
    assert!(request.negative_prompts_2.is_empty() && request.negative_prompts_3.is_empty());
    assert_eq!((request.clip_skip, request.true_cfg_scale), (None, None));
    assert_eq!(request.skip_layer_guidance, None);
    let bytes = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
    assert!(
        bytes.contains("guidance_scale")
            && !bytes.contains("rescale")
            && !bytes.contains("_size")
            && !bytes.contains("skip")
            && !bytes.contains("prompt_2")
    );
}

/// A scheduler belongs to the model, so another model does not take it over.
#[test]
fn a_picture_remembers_its_scheduler() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.png");
    let from = file.to_str().unwrap();
    write(&job(dir.path(), &["--model", "m", "--prompt", "a", "--scheduler", "unipc-karras"]), 0, &file);
    let scheduler = |args: &[&str]| job(dir.path(), &[&["--from", from], args].concat()).load.scheduler;
    assert_eq!(scheduler(&[]).as_deref(), Some("unipc-karras"));
    assert_eq!(scheduler(&["--sampler", "euler"]).as_deref(), Some("euler"));
    assert_eq!(scheduler(&["--model", "n"]), None);
}
