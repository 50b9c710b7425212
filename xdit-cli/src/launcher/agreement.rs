//! The check that all processes run the same job.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use serde_json::Value;
use xdit_core::pipeline::{Processes, Resolved, followed};
use xdit_core::{Error, Result};

use crate::parameters::Settings;

/// The files of a checkpoint that decide on the job; the weights are as large as these say.
const CONFIGS: [&str; 6] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "unet/config.json",
    "vae/config.json",
    "vae_temporal_decoder/config.json",
];

/// Everything that must be the same in all processes, by name.
pub fn described(
    resolved: &Resolved,
    settings: &Settings,
    folder: &Path,
    details: bool,
) -> BTreeMap<String, String> {
    let request = &resolved.request;
    let digest = |bytes: &[u8]| {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut job = BTreeMap::new();
    if let Ok(Value::Object(settings)) = serde_json::to_value(settings) {
        job.extend(settings.iter().map(|(name, value)| (name.replace('_', "-"), text(value))));
    }
    // The path of a model may differ between hosts, unlike its contents.
    job.remove("model");
    job.remove("init-latents");
    let init_latents = request.init_latents.as_ref().map(|latents| digest(latents.as_bytes()));
    let configs: Vec<u8> =
        CONFIGS.iter().flat_map(|file| fs::read(folder.join(file)).unwrap_or_default()).collect();
    job.extend(
        [
            ("prompt", format!("{:?}", request.prompts)),
            ("prompt-2", format!("{:?}", request.prompts_2)),
            ("prompt-3", format!("{:?}", request.prompts_3)),
            ("negative-prompt", format!("{:?}", request.negative_prompts)),
            ("negative-prompt-2", format!("{:?}", request.negative_prompts_2)),
            ("negative-prompt-3", format!("{:?}", request.negative_prompts_3)),
            ("preview", format!("{:?}", request.preview_every)),
            ("seed", request.seed.to_string()),
            ("list of seeds", format!("{:?}", request.seeds)),
            ("num-images", request.images_per_prompt.to_string()),
            ("output-type", if request.decode { "png" } else { "latent" }.to_owned()),
            ("contents of the initial latents", format!("{init_latents:?}")),
            ("guidance-batch", resolved.plan.guidance_batch.to_string()),
            ("options of parallelism", format!("{:?}", request.parallel)),
            ("configuration of the model", digest(&configs)),
            ("trace", details.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    job
}

/// Checks that all processes have the same `job`.
///
/// # Errors
/// If two differ; the error names the first difference. If another process has failed.
pub fn agree(processes: &Processes, job: &BTreeMap<String, String>) -> Result<()> {
    let bytes = serde_json::to_vec(job).map_err(|error| Error::failure(error.to_string()))?;
    let all = processes.share(&bytes).map_err(|ended| followed(&ended))?;
    let jobs = all.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_default());
    let jobs: Vec<BTreeMap<String, String>> = jobs.collect();
    let Some(other) = jobs.iter().position(|job| *job != jobs[0]) else { return Ok(()) };
    let names = jobs[0].keys().chain(jobs[other].keys());
    let Some(name) = names.into_iter().find(|&name| jobs[0].get(name) != jobs[other].get(name)) else {
        return Ok(());
    };
    let value = |process: usize| jobs[process].get(name).map_or("absent", String::as_str);
    let (first, second) = (processes.host(0), processes.host(other));
    Err(Error::usage(format!(
        "processes have different jobs: `{name}` is `{}` in process 0 on `{first}`, and `{}` in process {other} on \
         `{second}`",
        value(0),
        value(other),
    ))
    .hint("start all processes with the same options and the same model"))
}
