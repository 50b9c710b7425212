//! Compares the schedulers with those of diffusers. The script for the golden files is beside them.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use xdit_core::json::read_json;
use xdit_core::noise::Generator;
use xdit_core::scheduler::{
    History, Path as Trained, SHORT_NAMES, Scheduler, Steps, check, class_names, replaced, scheduler,
};

const GOLDENS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens");

fn cases() -> Vec<Value> {
    let cases = read_json(Path::new(GOLDENS).join("schedulers.json")).unwrap();
    cases.as_array().unwrap().clone()
}

/// Golden tensors by name.
struct Goldens(Vec<u8>);

impl Goldens {
    fn read() -> Self {
        Self(std::fs::read(Path::new(GOLDENS).join("schedulers.safetensors")).unwrap())
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }
}

/// The shape and the values of a golden tensor.
fn values(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f32>) {
    let view = file.tensor(name).unwrap();
    let values =
        view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape.to_vec()), (&Device::default(), DType::F32))
}

fn to_vec(tensor: Tensor<3>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// The norm of the difference, relative to the norm of the expected values.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    if found == expected {
        return 0.0;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut expected.iter().map(|b| f64::from(*b)))
}

/// The config of `case`, with the scheduler that it names.
fn config(case: &Value) -> Value {
    match case["class"].as_str() {
        Some(class) => {
            let flow = class.starts_with("FlowMatch") || case["options"]["use_flow_sigmas"] == true;
            let path = if flow { Trained::Flow } else { Trained::Diffusion };
            replaced(&case["config"], class, path).unwrap()
        }
        None => case["config"].clone(),
    }
}

/// `count` steps, placed as `case` specifies.
fn steps(case: &Value, count: usize) -> Steps {
    let mut steps = Steps::new(count);
    if case["even_sigmas"] == true {
        steps = steps.with_even_sigmas();
    }
    match case["image_tokens"].as_u64() {
        Some(tokens) => steps.of_image(tokens as usize),
        None => steps,
    }
}

/// One run with the golden model outputs, and its initial sample.
struct Run {
    scheduler: Box<dyn Scheduler>,
    outputs: Vec<Tensor<3>>,
    start: Tensor<3>,
    generator: Generator,
}

impl Run {
    fn new(file: &SafeTensors<'_>, case: &Value, count: usize) -> Self {
        let scheduler = scheduler(&config(case), steps(case, count)).unwrap();
        let (shape, noise) = values(file, "noise");
        let (_, outputs) = values(file, "outputs");
        Self {
            start: tensor(&noise, &shape) * scheduler.init_noise_sigma(),
            outputs: outputs.chunks(noise.len()).map(|output| tensor(output, &shape)).collect(),
            generator: Generator::from_seed(count as u64),
            scheduler,
        }
    }

    /// The next step's noise, if `step` adds some.
    fn noise(&mut self, step: usize) -> Option<Tensor<3>> {
        let shape = self.start.dims();
        let mut noise = || tensor(&self.generator.randn(shape.iter().product()), &shape);
        self.scheduler.adds_noise(step).then(&mut noise)
    }
}

/// Runs all cases that satisfy `wanted` and compares them with the goldens of `kind`, in relative norms.
fn compare(kind: &str, tolerance: f64, wanted: impl Fn(&Value) -> bool) {
    let goldens = Goldens::read();
    let file = goldens.file();
    let (mut compared, mut worst, mut failures) = (0, 0.0f64, Vec::new());
    let mut check = |what: String, found: &[f32], expected: &[f32]| {
        let error = relative_error(found, expected);
        (compared, worst) = (compared + 1, worst.max(error));
        if error > tolerance || error.is_nan() {
            failures.push(format!("{what}: {error:.2e}"));
        }
    };
    for (i, case) in cases().iter().enumerate().filter(|(_, case)| wanted(&case["config"])) {
        for count in case["steps"].as_array().unwrap() {
            let name = |part| format!("{i}/{count}/{kind}/{part}");
            let golden = |part| values(&file, &name(part));
            let mut run = Run::new(&file, case, count.as_u64().unwrap() as usize);
            check(name("timesteps"), run.scheduler.timesteps(), &golden("timesteps").1);
            check(
                name("init_noise_sigma"),
                &[run.scheduler.init_noise_sigma()],
                &golden("init_noise_sigma").1,
            );

            let (shape, samples) = golden("samples");
            let inputs = file.tensor(&name("inputs")).ok().map(|_| golden("inputs").1);
            let (mut sample, mut history) = (run.start.clone(), History::default());
            for step in 0..shape[0] {
                let at_step = |all: &[f32]| all.chunks(all.len() / shape[0]).nth(step).unwrap().to_vec();
                let input = to_vec(run.scheduler.scale_model_input(sample.clone(), step));
                let expected = inputs.as_deref().map_or_else(|| to_vec(sample.clone()), at_step);
                check(format!("{}/{step}", name("inputs")), &input, &expected);
                let noise = run.noise(step);
                sample = run.scheduler.step(step, &mut history, run.outputs[step].clone(), sample, noise);
                check(format!("{}/{step}", name("samples")), &to_vec(sample.clone()), &at_step(&samples));
            }
        }
    }
    println!("{kind}: {compared} tensors, largest relative error {worst:.2e}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared > 14000, "{compared}");
}

/// A step divides differences of logarithms by each other, so errors in the last place of PyTorch's functions are
/// visible.
#[test]
fn samples_equal_those_of_diffusers() {
    // With `rescale_betas_zero_snr` the last noise levels are differences of nearly equal roots, and PyTorch's
    // errors
    // grow to 1e-4. These configs are compared only with correctly rounded functions.
    let is_stable = |config: &Value| config["rescale_betas_zero_snr"] != true;
    compare("published", 1e-6, is_stable);
}

#[test]
fn samples_equal_those_of_diffusers_with_correctly_rounded_functions() {
    compare("rounded", 0.0, |_| true);
}

#[test]
fn configs_without_finite_numbers_in_diffusers_are_refused() {
    for case in cases() {
        for count in case["undefined_steps"].as_array().unwrap() {
            let count = count.as_u64().unwrap() as usize;
            let error = scheduler(&config(&case), steps(&case, count)).err();
            assert!(error.is_some(), "{count} steps: {case}");
        }
    }
}

/// A model that knows the picture: its output is what makes `data` the picture, at each step. If `data` is what a step works
/// with, the run arrives at the picture, with no more noise than that of the last level.
#[test]
fn a_model_that_knows_the_picture_arrives_at_it() {
    let goldens = Goldens::read();
    let (file, mut compared) = (goldens.file(), 0);
    // With inverted levels, noise is data and grows: there is nothing to arrive at.
    for case in cases().into_iter().filter(|case| case["config"]["invert_sigmas"] != true) {
        for count in
            case["steps"].as_array().unwrap().iter().filter_map(Value::as_u64).filter(|count| *count > 4)
        {
            let mut run = Run::new(&file, &case, count as usize);
            let (mut sample, mut history) = (run.start.clone(), History::default());
            let picture = run.start.clone() * (0.4 / run.scheduler.init_noise_sigma());
            let picture = picture.clamp(-0.9, 0.9);
            let zero = picture.clone() * 0.0;
            for step in 0..run.scheduler.timesteps().len() {
                // `data` is linear where nothing is clamped: small values never are.
                let of = |output: f32, sample: f32| {
                    let of = run.scheduler.data(step, zero.clone() + output, zero.clone() + sample);
                    to_vec(of)[0] / output.max(sample)
                };
                let (of_output, of_sample) = (of(1e-4, 0.0), of(0.0, 1e-4));
                let output = (picture.clone() - sample.clone() * of_sample) / of_output;
                let data = run.scheduler.data(step, output.clone(), sample.clone());
                let error = relative_error(&to_vec(data), &to_vec(picture.clone()));
                assert!(error < 1e-2, "step {step} of {count}: {error:.2e}: {case}");
                let noise = run.noise(step);
                sample = run.scheduler.step(step, &mut history, output, sample, noise);
            }
            let error = relative_error(&to_vec(sample), &to_vec(picture));
            // Some end at the last level of the run, not without noise.
            let ends = case["config"]["final_sigmas_type"] != "sigma_min";
            assert!(!ends || error < 0.15, "{count} steps: {error:.2e}: {case}");
            compared += usize::from(ends);
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn patches_give_the_same_result_as_the_whole() {
    let goldens = Goldens::read();
    let file = goldens.file();
    for case in cases() {
        let Some(count) = case["steps"].as_array().unwrap().iter().filter_map(Value::as_u64).max() else {
            continue;
        };
        let mut run = Run::new(&file, &case, count as usize);
        let (mut whole, mut history) = (run.start.clone(), History::default());
        // Two steps of the whole image, then the same steps patch by patch; one patch has a single token.
        let spans = [0..2, 2..3, 3..5];
        let mut patches = Vec::new();
        for step in 0..run.scheduler.timesteps().len() {
            if step == 2 {
                let cut = |span: &std::ops::Range<usize>| {
                    let sample = whole.clone().narrow(1, span.start, span.len());
                    (sample, history.narrow(span.clone()), span.clone())
                };
                patches = spans.iter().map(cut).collect();
            }
            let noise = run.noise(step);
            for (sample, history, span) in &mut patches {
                let of_patch = |whole: &Tensor<3>| whole.clone().narrow(1, span.start, span.len());
                let (output, noise) = (of_patch(&run.outputs[step]), noise.as_ref().map(of_patch));
                *sample = run.scheduler.step(step, history, output, sample.clone(), noise);
            }
            whole = run.scheduler.step(step, &mut history, run.outputs[step].clone(), whole, noise);
        }
        if patches.is_empty() {
            continue;
        }
        let joined = Tensor::cat(patches.into_iter().map(|(sample, ..)| sample).collect(), 1);
        assert_eq!(to_vec(joined), to_vec(whole), "{case}");
    }
}

fn refusal(config: Value, steps: impl Into<Steps>) -> String {
    scheduler(&config, steps).err().expect("the config is refused").to_string()
}

#[test]
fn refusals_name_the_option_and_the_value() {
    let dpm = |name: &str, value: Value| json!({"_class_name": "DPMSolverMultistepScheduler", name: value});
    for (name, value) in [
        ("algorithm_type", json!("sde-deis")),
        ("solver_type", json!("rk4")),
        ("solver_order", json!(4)),
        ("solver_order", json!(0)),
        ("solver_order", json!("two")),
        ("prediction_type", json!("score")),
        ("variance_type", json!("learned_range")),
        ("beta_schedule", json!("sigmoid")),
        ("beta_start", json!("small")),
        ("timestep_spacing", json!("random")),
        ("final_sigmas_type", json!("one")),
        ("thresholding", json!("yes")),
        ("use_beta_sigmas", json!(1)),
        ("use_dynamic_shifting", json!(true)),
        ("steps_offset", json!(-1)),
        ("num_train_timesteps", json!(1)),
        ("lambda_min_clipped", json!(1000)),
        ("lambda_min_clipped", json!("infinite")),
    ] {
        let text = value.to_string();
        let message = refusal(dpm(name, value), 4);
        assert!(message.contains(&format!("`{name}`")), "{message}");
        assert!(message.contains(&format!("`{}`", text.trim_matches('"'))), "{message}");
        assert!(message.contains("hint: "), "{message}");
    }
}

#[test]
fn refusal_messages() {
    let config = |class: &str, options: Value| {
        let mut config = json!({"_class_name": class});
        config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        config
    };
    let ddim = |options| config("DDIMScheduler", options);
    let dpm = |options| config("DPMSolverMultistepScheduler", options);
    let flow_match = |options| config("FlowMatchEulerDiscreteScheduler", options);
    let refusals = [
        refusal(json!({}), 4),
        refusal(config("PNDMScheduler", json!({})), 4),
        refusal(ddim(json!({"timestep_spacing": "random"})), 4),
        refusal(ddim(json!({"thresholding": true, "sample_max_value": 1.5})), 4),
        refusal(ddim(json!({"eta": 1.0, "gamma": 0})), 4),
        refusal(ddim(json!({"trained_betas": [0.1, 0.2]})), 4),
        refusal(ddim(json!({})), 0),
        refusal(ddim(json!({})), 1001),
        refusal(ddim(json!({"steps_offset": 1})), 1000),
        refusal(dpm(json!({"algorithm_type": "dpmsolver"})), 4),
        refusal(dpm(json!({"use_karras_sigmas": true, "use_lu_lambdas": true})), 4),
        refusal(dpm(json!({"num_train_timesteps": 4})), 4),
        refusal(dpm(json!({"variance_type": "learned_range"})), 4),
        refusal(ddim(json!({})), Steps::new(4).with_even_sigmas()),
        refusal(config("DDPMScheduler", json!({"variance_type": "learned_range"})), 4),
        refusal(config("DDPMScheduler", json!({"variance_type": "fixed_large_log"})), 4),
        refusal(flow_match(json!({"use_dynamic_shifting": true})), 4),
        refusal(flow_match(json!({"time_shift_type": "cubic"})), 4),
        refusal(flow_match(json!({"shift_terminal": 0.1})), 1),
        refusal(dpm(json!({"algorithm_type": "sde-dpmsolver", "solver_order": 3})), 4),
        refusal(config("UniPCMultistepScheduler", json!({"solver_type": "bh1"})), 4),
        refusal(config("UniPCMultistepScheduler", json!({"solver_p": {}})), 4),
        refusal(config("LCMScheduler", json!({})), 51),
        refusal(config("LCMScheduler", json!({"original_inference_steps": 0})), 4),
        refusal(config("EulerAncestralDiscreteScheduler", json!({"prediction_type": "sample"})), 4),
    ];
    insta::assert_snapshot!(refusals.join("\n\n"), @r"
    the scheduler config has no `_class_name`
    hint: set it to one of `DDIMScheduler`, `DDPMScheduler`, `DPMSolverMultistepScheduler`, `DPMSolverSDEScheduler`, `DPMSolverSinglestepScheduler`, `EulerAncestralDiscreteScheduler`, `EulerDiscreteScheduler`, `FlowMatchEulerDiscreteScheduler`, `FlowMatchHeunDiscreteScheduler`, `HeunDiscreteScheduler`, `KDPM2AncestralDiscreteScheduler`, `KDPM2DiscreteScheduler`, `LCMScheduler`, `UniPCMultistepScheduler`

    the scheduler `PNDMScheduler` is not supported
    hint: choose one of `DDIMScheduler`, `DDPMScheduler`, `DPMSolverMultistepScheduler`, `DPMSolverSDEScheduler`, `DPMSolverSinglestepScheduler`, `EulerAncestralDiscreteScheduler`, `EulerDiscreteScheduler`, `FlowMatchEulerDiscreteScheduler`, `FlowMatchHeunDiscreteScheduler`, `HeunDiscreteScheduler`, `KDPM2AncestralDiscreteScheduler`, `KDPM2DiscreteScheduler`, `LCMScheduler`, `UniPCMultistepScheduler`

    option `timestep_spacing` of `DDIMScheduler` is `random`
    hint: expected one of `linspace`, `leading`, `trailing`

    option `thresholding` is `true` with a `sample_max_value` of `1.5`: a patch cannot compute a quantile of the whole sample
    hint: set `thresholding` to `false` in the scheduler config, or `sample_max_value` to 1

    the config of `DDIMScheduler` has unknown options: `eta`, `gamma`
    hint: known options: `beta_end`, `beta_schedule`, `beta_start`, `clip_sample`, `clip_sample_range`, `dynamic_thresholding_ratio`, `num_train_timesteps`, `prediction_type`, `rescale_betas_zero_snr`, `sample_max_value`, `set_alpha_to_one`, `steps_offset`, `thresholding`, `timestep_spacing`, `trained_betas`

    option `trained_betas` has `2` values
    hint: give one for each of the `1000` timesteps of `num_train_timesteps`

    the number of inference steps is `0`
    hint: ask for at least one step

    the number of inference steps is `1001`
    hint: ask for at most `1000` steps, the number of timesteps that the model was trained on

    `1000` steps include timestep `1000`, which the model was not trained on
    hint: use another number of inference steps, or a smaller `steps_offset`

    option `final_sigmas_type` is `zero` with `algorithm_type` `dpmsolver`
    hint: set `final_sigmas_type` to `sigma_min`, or `algorithm_type` to `dpmsolver++`

    options `use_karras_sigmas` and `use_lu_lambdas` are both `true`
    hint: set all but one to `false`: a run has one spread of noise levels

    step `2` of `4` has length zero: its noise level equals that of an adjacent step
    hint: use fewer inference steps, or another spacing of timesteps or noise levels

    option `variance_type` is `learned_range`
    hint: remove the variance from the model's output and set `variance_type` to `null`

    `DDIMScheduler` does not accept noise levels from the model
    hint: use `flow-euler`, `unipc` or `dpm++2m` with a model that sets its own noise levels

    option `variance_type` of `DDPMScheduler` is a learned variance
    hint: set `variance_type` to `fixed_small`: models here return their prediction only

    option `variance_type` of `DDPMScheduler` is `fixed_large_log`
    hint: expected one of `fixed_small`, `fixed_small_log`, `fixed_large`, `learned`, `learned_range`

    option `use_dynamic_shifting` is `true`, but the size of the image is unknown
    hint: set `use_dynamic_shifting` to `false` in the scheduler config

    option `time_shift_type` of `FlowMatchEulerDiscreteScheduler` is `cubic`
    hint: expected one of `exponential`, `linear`

    the noise levels of `1` steps are not all finite: [NaN, 0.0]
    hint: use more inference steps, or correct the shifts in the scheduler config

    option `solver_order` is `3` with `algorithm_type` `sde-dpmsolver`
    hint: choose an order of 1 or 2, or set `algorithm_type` to `sde-dpmsolver++`

    option `solver_type` is `bh1` with `final_sigmas_type` `zero`
    hint: set `solver_type` to `bh2`, or `final_sigmas_type` to `sigma_min`

    option `solver_p` of `UniPCMultistepScheduler` is set: another scheduler cannot be the predictor
    hint: set `solver_p` to `null` in the scheduler config

    the number of inference steps is `51`
    hint: ask for at most `50` steps, the number that the model was distilled on

    option `original_inference_steps` is `0`
    hint: expected 1 to `1000`, the number of training timesteps

    option `prediction_type` of `EulerAncestralDiscreteScheduler` is `sample`
    hint: expected one of `epsilon`, `v_prediction`
    ");
}

#[test]
fn names_of_replacements() {
    let dpm = json!({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": true});
    let flow = json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0});
    for name in SHORT_NAMES.into_iter().chain(class_names()) {
        let is_flow = name.to_lowercase().starts_with("flow");
        // Solvers for diffusion that can follow a flow, too.
        let follows = ["unipc", "dpm++2", "UniPC", "DPMSolverMulti", "DPMSolverSingle"];
        let follows = follows.iter().any(|start| name.starts_with(start));
        for (config, path) in [(&dpm, Trained::Diffusion), (&flow, Trained::Flow)] {
            let new = replaced(config, name, path);
            assert_eq!(new.is_ok(), is_flow == (path == Trained::Flow) || follows, "{name}");
            new.map_or(Ok(()), |new| check(&new, path, Steps::new)).unwrap();
        }
    }
    // The shift of the checkpoint goes with the flow. The name may say that it is one.
    let follows = replaced(&flow, "flow-unipc", Trained::Flow).unwrap();
    assert_eq!(follows, replaced(&flow, "UniPC", Trained::Flow).unwrap());
    assert_eq!((&follows["use_flow_sigmas"], &follows["flow_shift"]), (&json!(true), &json!(3.0)));
    let diffusion = |config: &Value, name: &str| replaced(config, name, Trained::Diffusion);
    let karras = json!({
        "_class_name": "UniPCMultistepScheduler", "use_karras_sigmas": true, "use_exponential_sigmas": false,
        "use_beta_sigmas": false, "use_lu_lambdas": false,
    });
    assert_eq!(diffusion(&dpm, "UniPC-Karras").unwrap(), karras);
    let sde = json!({
        "_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": true, "algorithm_type": "sde-dpmsolver++",
    });
    assert_eq!(diffusion(&dpm, "DPM++ 2M SDE").unwrap(), sde);
    // The checkpoint's own scheduler need not be supported.
    let pndm = json!({"_class_name": "PNDMScheduler", "skip_prk_steps": true, "steps_offset": 1});
    check(&diffusion(&pndm, "ddim").unwrap(), Trained::Diffusion, Steps::new).unwrap();

    let refused = |name: &str, path| replaced(&dpm, name, path).unwrap_err().to_string();
    let refusals = [
        refused("unipcm", Trained::Diffusion),
        refused("flow-euler", Trained::Diffusion),
        refused("euler-a", Trained::Flow),
        refused("flow-unipc", Trained::Diffusion),
        refused("ddim-karras", Trained::Diffusion),
        refused("unipc-lu", Trained::Diffusion),
        check(&dpm, Trained::Flow, Steps::new).unwrap_err().to_string(),
    ];
    insta::assert_snapshot!(refusals.join("\n\n"), @r"
    there is no scheduler `unipcm`
    hint: the nearest names are `unipc`, `ddim`, `ddpm`; all short names: `ddim`, `ddpm`, `dpm2`, `dpm2-a`, `dpm++2m`, `dpm++2m-sde`, `dpm++2s`, `dpm++2s-sde`, `dpm++sde`, `euler`, `euler-a`, `flow-euler`, `flow-heun`, `heun`, `lcm`, `unipc`, each also with `-karras`, `-exponential`, `-beta` or `-lu` if it has such noise levels

    the scheduler `flow-euler` does not fit: it follows a flow, and this model was trained on diffusion
    hint: choose one of `ddim`, `ddpm`, `dpm2`, `dpm2-a`, `dpm++2m`, `dpm++2m-sde`, `dpm++2s`, `dpm++2s-sde`, `dpm++sde`, `euler`, `euler-a`, `heun`, `lcm`, `unipc`

    the scheduler `euler-a` does not fit: it is for diffusion, and this model was trained on a flow
    hint: choose one of `dpm++2m`, `dpm++2m-sde`, `dpm++2s`, `dpm++2s-sde`, `flow-euler`, `flow-heun`, `unipc`

    the scheduler `flow-unipc` does not fit: it follows a flow, and this model was trained on diffusion
    hint: choose one of `ddim`, `ddpm`, `dpm2`, `dpm2-a`, `dpm++2m`, `dpm++2m-sde`, `dpm++2s`, `dpm++2s-sde`, `dpm++sde`, `euler`, `euler-a`, `heun`, `lcm`, `unipc`

    scheduler `ddim-karras`: `DDIMScheduler` has no option `use_karras_sigmas`
    hint: choose the scheduler without this ending, or another one

    scheduler `unipc-lu`: `UniPCMultistepScheduler` has no option `use_lu_lambdas`
    hint: choose the scheduler without this ending, or another one

    the scheduler `DPMSolverMultistepScheduler` does not fit: it is for diffusion, and this model was trained on a flow
    hint: choose one of `dpm++2m`, `dpm++2m-sde`, `dpm++2s`, `dpm++2s-sde`, `flow-euler`, `flow-heun`, `unipc`
    ");
}

/// Options for which a single step is impossible.
#[test]
fn a_config_is_checked_with_numbers_of_steps_that_it_can_have() {
    let terminal = json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1});
    assert!(scheduler(&terminal, 1).is_err());
    check(&terminal, Trained::Flow, Steps::new).unwrap();
    let unknown = json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shifts": 0.1});
    assert!(check(&unknown, Trained::Flow, Steps::new).is_err());
}

#[test]
#[should_panic(expected = "step 0 does not follow step 0, the last one of the history")]
fn a_history_belongs_to_one_request() {
    let scheduler = scheduler(&json!({"_class_name": "DPMSolverMultistepScheduler"}), 4).unwrap();
    let mut history = History::default();
    let sample = || tensor(&[1.0], &[1, 1, 1]);
    for _ in 0..2 {
        scheduler.step(0, &mut history, sample(), sample(), None);
    }
}
