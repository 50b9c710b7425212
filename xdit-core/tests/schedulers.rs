//! The schedulers against those of diffusers. The golden files' script is beside them.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use xdit_core::json::read_json;
use xdit_core::scheduler::{History, Scheduler, scheduler};

/// Relative to the norm of what diffusers computes. Its own square roots, logarithms and exponentials are off by up
/// to 0.9 units in the last place (6e-8), and a step divides differences of such logarithms by one another.
const TOLERANCE: f64 = 1e-6;

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
    let values = view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape.to_vec()), (&Device::default(), DType::F32))
}

fn to_vec(tensor: Tensor<3>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

/// The difference's norm over that of what is expected.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut expected.iter().map(|b| f64::from(*b)))
}

/// One run with the golden model outputs, and the sample it starts from.
struct Run {
    scheduler: Box<dyn Scheduler>,
    outputs: Vec<Tensor<3>>,
    start: Tensor<3>,
}

impl Run {
    fn new(file: &SafeTensors<'_>, config: &Value, steps: usize) -> Self {
        let scheduler = scheduler(config, steps).unwrap();
        let (shape, noise) = values(file, "noise");
        let (_, outputs) = values(file, "outputs");
        Self {
            start: tensor(&noise, &shape) * scheduler.init_noise_sigma(),
            outputs: outputs.chunks(noise.len()).map(|output| tensor(output, &shape)).collect(),
            scheduler,
        }
    }
}

#[test]
fn samples_are_those_of_diffusers() {
    let (goldens, mut runs, mut worst) = (Goldens::read(), 0, 0.0f64);
    let mut failures = Vec::new();
    let file = goldens.file();
    for (i, case) in cases().iter().enumerate() {
        for steps in case["steps"].as_array().unwrap() {
            let name = |part| format!("{i}/{steps}/{part}");
            let run = Run::new(&file, &case["config"], steps.as_u64().unwrap() as usize);
            if run.scheduler.timesteps() != values(&file, &name("timesteps")).1 {
                failures.push(format!("{}: timesteps {:?}", name(""), run.scheduler.timesteps()));
            }
            let (_, sigma) = values(&file, &name("init_noise_sigma"));
            assert!(relative_error(&[run.scheduler.init_noise_sigma()], &sigma) <= TOLERANCE, "{case}");

            let (shape, samples) = values(&file, &name("samples"));
            let inputs = file.tensor(&name("inputs")).ok().map(|_| values(&file, &name("inputs")).1);
            let (mut sample, mut history) = (run.start, History::default());
            for step in 0..shape[0] {
                let part = |all: &[f32]| all.chunks(all.len() / shape[0]).nth(step).unwrap().to_vec();
                let input = to_vec(run.scheduler.scale_model_input(sample.clone(), step));
                let expected = inputs.as_deref().map_or_else(|| to_vec(sample.clone()), part);
                let input_error = relative_error(&input, &expected);
                sample = run.scheduler.step(step, &mut history, run.outputs[step].clone(), sample);
                let error = relative_error(&to_vec(sample.clone()), &part(&samples)).max(input_error);
                worst = worst.max(error);
                if !(error <= TOLERANCE) {
                    failures.push(format!("{}{step}: {error:.2e}", name("")));
                }
            }
            runs += 1;
        }
    }
    println!("{runs} runs, largest relative error {worst:.2e}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(runs > 200);
}

#[test]
fn what_diffusers_has_no_numbers_for_is_refused() {
    for case in cases() {
        for steps in case["undefined_steps"].as_array().unwrap() {
            let steps = steps.as_u64().unwrap() as usize;
            let error = scheduler(&case["config"], steps).err();
            assert!(error.is_some(), "{steps} steps: {case}");
        }
    }
}

#[test]
fn patches_step_like_the_whole() {
    let goldens = Goldens::read();
    let file = goldens.file();
    for case in cases() {
        let Some(steps) = case["steps"].as_array().unwrap().iter().filter_map(Value::as_u64).max() else { continue };
        let run = Run::new(&file, &case["config"], steps as usize);
        let (mut whole, mut history) = (run.start.clone(), History::default());
        // Two steps of the whole image, then patches that take turns, one of them of one token.
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
            for (sample, history, span) in &mut patches {
                let output = run.outputs[step].clone().narrow(1, span.start, span.len());
                *sample = run.scheduler.step(step, history, output, sample.clone());
            }
            whole = run.scheduler.step(step, &mut history, run.outputs[step].clone(), whole);
        }
        let joined = Tensor::cat(patches.into_iter().map(|(sample, ..)| sample).collect(), 1);
        assert_eq!(to_vec(joined), to_vec(whole), "{case}");
    }
}

fn refusal(config: Value, steps: usize) -> String {
    scheduler(&config, steps).err().expect("the config is refused").to_string()
}

#[test]
fn refusals_name_the_option_and_the_value() {
    let dpm = |name: &str, value: Value| json!({"_class_name": "DPMSolverMultistepScheduler", name: value});
    for (name, value) in [
        ("algorithm_type", json!("sde-dpmsolver++")),
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
        ("thresholding", json!(true)),
        ("thresholding", json!("yes")),
        ("use_beta_sigmas", json!(true)),
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
fn refusals_read_well() {
    insta::assert_snapshot!(refusal(json!({"_class_name": "PNDMScheduler"}), 4), @"");
    insta::assert_snapshot!(refusal(json!({}), 4), @"");
    let ddim = |name: &str, value: Value| json!({"_class_name": "DDIMScheduler", name: value});
    insta::assert_snapshot!(refusal(ddim("timestep_spacing", json!("random")), 4), @"");
    insta::assert_snapshot!(refusal(ddim("thresholding", json!(true)), 4), @"");
    insta::assert_snapshot!(refusal(ddim("eta", json!(1.0)), 4), @"");
    insta::assert_snapshot!(refusal(ddim("steps_offset", json!(0)), 0), @"");
    insta::assert_snapshot!(refusal(ddim("steps_offset", json!(0)), 1001), @"");
    insta::assert_snapshot!(refusal(ddim("steps_offset", json!(1)), 1000), @"");
    let euler = |options: Value| {
        let mut config = json!({"_class_name": "EulerDiscreteScheduler"});
        config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        config
    };
    let both = euler(json!({"use_karras_sigmas": true, "use_exponential_sigmas": true}));
    insta::assert_snapshot!(refusal(both, 4), @"");
    insta::assert_snapshot!(refusal(euler(json!({"trained_betas": [0.1, 0.2]})), 4), @"");
}

#[test]
#[should_panic(expected = "the history ends with step 0, so step 0 cannot follow")]
fn a_history_serves_one_request() {
    let scheduler = scheduler(&json!({"_class_name": "DPMSolverMultistepScheduler"}), 4).unwrap();
    let mut history = History::default();
    let sample = || tensor(&[1.0], &[1, 1, 1]);
    for _ in 0..2 {
        scheduler.step(0, &mut history, sample(), sample());
    }
}
