//! `xdit inspect`: the components of a checkpoint, or the parameters in a picture.

mod picture;
mod table;

use std::fs::DirEntry;
use std::path::Path;

use burn::tensor::{DType, Device};
use serde::Serialize;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::pipeline::{LoadOptions, Request};
use xdit_core::{Error, Result};
use xdit_models::component::ModelIndex;

use crate::args::{InspectArgs, ModelArgs, OutputType};
use crate::model::{Place, outline};
use crate::output::is_picture;
use crate::print;
use crate::progress::Progress;

/// The output of `xdit inspect --json`.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The class of the pipeline.
    pub class: String,
    /// The folder, or the id of a model that is not downloaded yet.
    pub path: String,
    /// The size of the files that a run would download.
    pub download_bytes: u64,
    /// The number of parameters in all components.
    pub parameters: usize,
    /// The size of all weights.
    pub bytes: usize,
    /// The memory for weights during a run. Components are loaded one after another, so this is the size of the
    /// largest.
    pub memory: Memory,
    /// The settings of a run without options; absent for a model that cannot be run.
    pub defaults: Option<Defaults>,
    /// The reason why the model cannot be run.
    pub problem: Option<String>,
    /// The components.
    pub components: Vec<Component>,
}

/// The size of weights in memory, by the type they are loaded as.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// With `--dtype f32`.
    pub f32_bytes: usize,
    /// With `--dtype bf16` or `f16`.
    pub bf16_bytes: usize,
}

/// The settings of a run without options.
#[derive(Debug, Serialize)]
pub struct Defaults {
    /// The height in pixels.
    pub height: usize,
    /// The width in pixels.
    pub width: usize,
    /// The number of denoising steps.
    pub num_inference_steps: usize,
    /// The strength of classifier-free guidance.
    pub guidance_scale: f32,
    /// The maximum number of text tokens.
    pub max_sequence_length: usize,
}

/// One component of a checkpoint.
#[derive(Debug, Serialize)]
pub struct Component {
    /// Its folder.
    pub name: String,
    /// Its class.
    pub class: String,
    /// Its weights, if it has any.
    pub weights: Option<Weights>,
}

/// The weights of a component.
#[derive(Debug, Serialize)]
pub struct Weights {
    /// The number of parameters.
    pub parameters: usize,
    /// The element types in the files.
    pub dtypes: Vec<String>,
    /// The size in the files.
    pub bytes: usize,
    /// The size in memory.
    pub memory: Memory,
    /// The names of the files.
    pub files: Vec<String>,
}

/// Runs `xdit inspect`.
///
/// # Errors
/// If the checkpoint cannot be found or read.
pub fn run(args: &InspectArgs) -> Result<()> {
    let path = Path::new(&args.model);
    let named_so = OutputType::of(path).is_some_and(|output_type| output_type != OutputType::Latent);
    if is_picture(path) || named_so && path.is_file() {
        return print(&picture::inspect(path, args.json)?);
    }
    let mut progress = Progress::new(1, args.quiet);
    let outlined = outline(&args.model, Place::from(&args.files), &mut progress)?;
    let mut inspection = inspect(&outlined.folder, &args.files)?;
    inspection.download_bytes = outlined.missing.1;
    if outlined.missing.1 > 0 {
        // The folder is a temporary one.
        inspection.path.clone_from(&args.model);
    }
    if args.json {
        let json = serde_json::to_string_pretty(&inspection)
            .map_err(|error| Error::failure(format!("cannot write the report: {error}")))?;
        return print(&format!("{json}\n"));
    }
    print(&table::render(&inspection))
}

fn inspect(folder: &Path, files: &ModelArgs) -> Result<Inspection> {
    let variant = files.variant.as_deref();
    let options = LoadOptions {
        variant: files.variant.clone(),
        temporal_decoder: files.temporal_decoder.unwrap_or_default(),
        ..LoadOptions::new(Device::flex(), DType::F32)
    };
    let mut index = ModelIndex::read(folder)?;
    if options.temporal_decoder {
        index.use_temporal_decoder()?;
    }
    let mut components = Vec::new();
    for (name, class) in &index.components {
        let folder = folder.join(name);
        // Tokenizers and schedulers have configs with other names, and no weights.
        let weights = folder.join("config.json").is_file().then(|| weights(&folder, variant)).transpose()?;
        components.push(Component { name: name.clone(), class: class.clone(), weights });
    }
    let all = || components.iter().filter_map(|component| component.weights.as_ref());
    let defaults =
        xdit_models::open(folder, &options).and_then(|pipeline| pipeline.resolve(&Request::new("")));
    Ok(Inspection {
        class: index.class_name,
        path: folder.display().to_string(),
        download_bytes: 0,
        parameters: all().map(|weights| weights.parameters).sum(),
        bytes: all().map(|weights| weights.bytes).sum(),
        memory: Memory {
            f32_bytes: all().map(|weights| weights.memory.f32_bytes).max().unwrap_or(0),
            bf16_bytes: all().map(|weights| weights.memory.bf16_bytes).max().unwrap_or(0),
        },
        problem: defaults.as_ref().err().map(|error| error.message().to_owned()),
        defaults: defaults.ok().map(|resolved| Defaults {
            height: resolved.size[0],
            width: resolved.size[1],
            num_inference_steps: resolved.num_inference_steps,
            guidance_scale: resolved.guidance_scale,
            max_sequence_length: resolved.max_sequence_length,
        }),
        components,
    })
}

fn weights(folder: &Path, variant: Option<&str>) -> Result<Weights> {
    // diffusers and transformers use different file names.
    let stem = "diffusion_pytorch_model";
    let is_of_diffusers = |entry: std::io::Result<DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(stem))
    };
    let is_of_diffusers = std::fs::read_dir(folder).into_iter().flatten().any(is_of_diffusers);
    let checkpoint = Checkpoint::open(folder, if is_of_diffusers { stem } else { "model" }, variant)?;
    let mut dtypes: Vec<String> =
        checkpoint.entries().map(|(_, entry)| format!("{:?}", entry.dtype).to_lowercase()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    let parameters = checkpoint.parameters();
    let name =
        |path: &std::path::PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Weights {
        parameters,
        dtypes,
        bytes: checkpoint.bytes(),
        memory: Memory { f32_bytes: 4 * parameters, bf16_bytes: 2 * parameters },
        files: checkpoint.files().iter().map(name).collect(),
    })
}
