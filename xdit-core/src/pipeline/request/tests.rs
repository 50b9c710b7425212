//! Tests of requests and of their checks.

use super::*;

fn texts(prompts: &[&str]) -> Vec<String> {
    prompts.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn further_encoders_are_told_the_prompt_unless_something_else() {
    let mut request = Request { prompts: texts(&["a", "b"]), ..Request::new("") };
    request.negative_prompts = texts(&["n"]);
    assert_eq!((request.texts(1), request.negative_texts(0)), (["b"; 3], ["n"; 3]));
    request.prompts_2 = texts(&["all"]);
    request.prompts_3 = texts(&["", "d"]);
    request.negative_prompts_3 = texts(&["m"]);
    assert_eq!((request.texts(0), request.texts(1)), (["a", "all", ""], ["b", "all", "d"]));
    request.prompts_3 = texts(&[""]);
    assert_eq!(request.texts(1), ["b", "all", "b"]);
    request.negative_prompts_2 = texts(&[""]);
    assert_eq!((request.negatives(), request.negative_texts(0)), (1, ["n", "n", "m"]));
    // One for each prompt, beside one for all.
    request.negative_prompts_2 = texts(&["x", ""]);
    assert_eq!((request.negatives(), request.negative_of(1)), (2, 1));
    assert_eq!((request.negative_texts(0), request.negative_texts(1)), (["n", "x", "m"], ["n", "", "m"]));
    request.negative_prompts = Vec::new();
    assert_eq!(request.negative_texts(0), ["", "x", "m"]);
}

/// As in diffusers, with Python's floats: `i > n * start and i < n * stop`.
#[test]
fn layers_are_skipped_between_start_and_stop() {
    let window = |steps, start, stop| {
        SkipLayerGuidance { start, stop, ..SkipLayerGuidance::new(vec![0]) }.window(steps)
    };
    assert_eq!(window(28, 0.01, 0.2), 1..6);
    // A fifth of ten steps is two, which is not below two.
    assert_eq!(window(10, 0.01, 0.2), 1..2);
    assert_eq!(window(300, 0.01, 0.02), 4..6);
    assert_eq!(window(10, 0.0, 1.0), 1..10);
    assert_eq!(window(10, -0.1, 2.0), 0..10);
    for (steps, start, stop) in [(4, 0.01, 0.2), (10, 0.5, 0.5), (10, 0.8, 0.3), (10, 1.0, 2.0)] {
        assert!(window(steps, start, stop).is_empty(), "{steps} steps, {start} to {stop}");
    }
}

#[test]
fn absurd_numbers_are_refused_before_anything_is_made_of_them() {
    let steps = Request { num_inference_steps: Some(MAX_STEPS + 1), ..Request::new("a") };
    assert_eq!(
        check(&steps).unwrap_err().to_string(),
        "`10001` inference steps are more than 10000\nhint: 20 is a good start"
    );
    let images = Request { images_per_prompt: usize::MAX, prompts: texts(&["a", "b"]), ..Request::new("") };
    assert_eq!(images.images(), usize::MAX);
    let long = Request::new("é".repeat(40_000));
    assert!(
        check(&long).unwrap_err().message().ends_with("has 80000 bytes, more than the 65536 of a prompt")
    );
}

#[test]
fn seeds_follow_each_other_unless_they_are_given() {
    let mut request =
        Request { prompts: texts(&["a", "b"]), images_per_prompt: 3, seed: 7, ..Request::new("") };
    let seeds = |request: &Request| (0..6).map(|image| request.seed_of(image)).collect::<Vec<_>>();
    assert_eq!(seeds(&request), [7, 8, 9, 10, 11, 12]);
    request.seeds = vec![5, 1, 5];
    assert_eq!(seeds(&request), [5, 1, 5, 5, 1, 5]);
    assert!(check(&request).is_ok());
    request.seeds.pop();
    assert_eq!(check(&request).unwrap_err().message(), "`2` seeds are given for `3` images of each prompt");
}

#[test]
fn texts_of_another_number_than_prompts_are_refused() {
    let request = Request { prompts_3: texts(&["x", "y"]), ..Request::new("a") };
    assert_eq!(
        check(&request).unwrap_err().to_string(),
        "`prompt_3` is given 2 times for 1 prompts\nhint: give it once for all prompts, or once for each"
    );
    assert!(check(&Request { prompts: texts(&["a", "b"]), ..request }).is_ok());
    let request = Request { negative_prompts: texts(&["x", "y", "z"]), ..Request::new("a") };
    assert!(check(&request).unwrap_err().message().starts_with("`negative_prompt` is given 3 times"));
    let request = Request { negative_prompts_2: texts(&["x", "y"]), ..Request::new("a") };
    assert!(check(&request).unwrap_err().message().starts_with("`negative_prompt_2` is given 2 times"));
}

#[test]
fn each_extra_is_refused_by_a_pipeline_that_does_not_take_it() {
    let request = Request {
        negative_prompts: texts(&["x"]),
        max_sequence_length: Some(7),
        prompts_2: texts(&["x"]),
        prompts_3: texts(&["x"]),
        negative_prompts_2: texts(&["x"]),
        negative_prompts_3: texts(&["x"]),
        true_cfg_scale: Some(2.0),
        skip_layer_guidance: Some(SkipLayerGuidance::new(vec![1])),
        clip_skip: Some(1),
        clean_caption: Some(true),
        num_frames: Some(2),
        fps: Some(8.0),
        enable_temporal_attentions: false,
        decode_chunk_size: Some(2),
        guidance_rescale: 0.5,
        micro_conditions: MicroConditions {
            original_size: Some([0; 2]),
            crops_coords_top_left: Some([0; 2]),
            target_size: Some([0; 2]),
            negative_original_size: Some([0; 2]),
            negative_crops_coords_top_left: Some([0; 2]),
            negative_target_size: Some([0; 2]),
        },
        ..Request::new("a")
    };
    for extra in Extra::ALL {
        let others: Vec<_> = Extra::ALL.into_iter().filter(|&other| other != extra).collect();
        let error = check_extras(&request, "Toy", &others).unwrap_err();
        assert_eq!(error.message(), format!("Toy does not take `{}`", extra.name()));
    }
    assert!(check_extras(&request, "Toy", &Extra::ALL).is_ok());
    let skip = SkipLayerGuidance { scale: 0.0, ..SkipLayerGuidance::new(vec![1]) };
    let off = Request {
        negative_prompts: texts(&[""]),
        max_sequence_length: Some(0),
        prompts_2: texts(&[""]),
        prompts_3: texts(&[""]),
        negative_prompts_2: texts(&[""]),
        negative_prompts_3: texts(&[""]),
        true_cfg_scale: Some(1.0),
        skip_layer_guidance: Some(skip),
        clip_skip: Some(0),
        ..Request::new("a")
    };
    assert!(check_extras(&off, "Toy", &[]).is_ok());
}
