//! Converts the parsed options to a run, which is checked before any weights are read.

mod guidance;
mod parallel;
mod prompts;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use xdit_core::device::{check_dtype, default_dtype, find, find_each};
use xdit_core::pipeline::{Keep, LoadOptions, Processes, Request, Resolved, check};
use xdit_core::{Error, ErrorKind, Result};

use crate::args::{Dtype, GenerateArgs, KeepPolicy, OutputType, Seed};
use crate::checkpoints::built_in;
use crate::launcher;
use crate::model::{Outlined, Place, locate, outline};
use crate::output::{FRAMES_PER_SECOND, Outputs, decode_latents, is_standard, read_parameters};
use crate::parameters::{Parameters, Settings};
use crate::progress::Progress;
use crate::trace::TraceFile;

/// The limit on the number of pictures in one run; a larger number is assumed to be a typing error.
const MAX_IMAGES: usize = 10_000;

/// A run of `xdit generate`.
pub struct Invocation {
    /// A folder, an id on the hub, or [`built_in::NAME`].
    pub model: String,
    /// The branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// How to load and run the model.
    pub load: LoadOptions,
    /// The request to the pipeline.
    pub request: Request,
    /// The files for the results.
    pub outputs: Outputs,
    /// Their type.
    pub output_type: OutputType,
    /// The file for the trace, if requested.
    pub trace: Option<TraceFile>,
    /// Warnings about the options.
    pub warnings: Vec<String>,
    dtype: Dtype,
    init_latents: Option<PathBuf>,
}

impl Invocation {
    /// Fills in the parameters of `--from` and the defaults that all models share, and reads the files given by
    /// options.
    ///
    /// # Errors
    /// If an option is not valid, a file cannot be read, or an output cannot be written.
    pub fn resolve(args: &GenerateArgs, processes: &launcher::Job) -> Result<Self> {
        let mut parallel = parallel::parallel(&args.parallel)?;
        let output_type =
            args.output_type.or_else(|| OutputType::of(args.output.as_deref()?)).unwrap_or_default();
        let devices = devices(&args.compute.device, parallel.mesh.size(), processes)?;
        let device = devices[0].clone();
        let stored = args.from.as_deref().map(read_parameters).transpose()?;
        let texts = prompts::texts(args, stored.as_ref())?;
        let (seed, settings) = match stored {
            Some(Parameters { seed, settings, .. }) => (seed, Some(settings)),
            None => (0, None),
        };
        let seeds = seeds(args, seed, processes)?;
        if let (Some(from), Some(latents), None) =
            (&args.from, settings.as_ref().and_then(|s| s.init_latents.as_ref()), &args.init_latents)
        {
            return Err(Error::usage(format!(
                "`{}` was made from the latents `{latents}`, which it does not carry",
                from.display()
            ))
            .hint("give them with `--init-latents`"));
        }
        let old = settings.as_ref();
        // Unlike the mesh, patches change the picture; a single rank can reproduce them.
        parallel.patches = parallel.patches.or(old.and_then(|s| s.num_pipeline_patch));
        if let (None, Some(steps)) = (args.parallel.warmup_steps, old.and_then(|s| s.warmup_steps)) {
            parallel.warmup_steps = steps;
        }
        parallel.distrifusion |= old.is_some_and(|s| s.distrifusion);
        let dtype =
            args.compute.dtype.or(old.map(|s| s.dtype)).unwrap_or_else(|| Dtype::of(default_dtype(&device)));
        check_dtype(&device, &args.compute.device, dtype.burn())?;
        // Revision, variant and scheduler belong to a model, so another model does not inherit them.
        let same_model = old.filter(|_| args.model.is_none());
        let load = LoadOptions {
            dtype: dtype.burn(),
            variant: args.files.variant.clone().or_else(|| same_model?.variant.clone()),
            scheduler: args.scheduler.clone().or_else(|| same_model?.scheduler.clone()),
            devices,
            no_text_encoder_3: args.text_encoder_3.is_some()
                || same_model.is_some_and(|s| s.text_encoder_3.is_some()),
            temporal_decoder: args
                .files
                .temporal_decoder
                .unwrap_or_else(|| same_model.is_some_and(|s| s.temporal_decoder)),
            keep: keep(args.keep.unwrap_or_default()),
            random_weights: false,
            processes: processes.processes.clone(),
        };
        let request = Request {
            height: args.height.or(old.map(|s| s.height)),
            width: args.width.or(old.map(|s| s.width)),
            num_inference_steps: args.num_inference_steps.or(old.map(|s| s.num_inference_steps)),
            guidance_scale: args.guidance_scale.or(old.map(|s| s.guidance_scale)),
            true_cfg_scale: args.true_cfg_scale.or(old.and_then(|s| s.true_cfg_scale)),
            skip_layer_guidance: guidance::skip_layers(args, old)?,
            guidance_rescale: args.guidance_rescale.or(old.map(|s| s.guidance_rescale)).unwrap_or_default(),
            micro_conditions: args.micro_conditions.or(old.map(|s| &s.micro_conditions))?,
            seed: seeds[0],
            images_per_prompt: args.num_images.unwrap_or(seeds.len()),
            seeds: if seeds.len() > 1 { seeds } else { Vec::new() },
            max_sequence_length: args.max_sequence_length.or(old.map(|s| s.max_sequence_length)),
            clip_skip: args.clip_skip.or(old.and_then(|s| s.clip_skip)),
            clean_caption: match args.no_clean_caption {
                true => Some(false),
                false => args.clean_caption.or(old.and_then(|s| s.clean_caption)),
            },
            use_resolution_binning: match args.no_use_resolution_binning {
                Some(no) => !no,
                None => old.is_none_or(|s| s.use_resolution_binning),
            },
            vae_tiling: args.vae_tiling.or(old.map(|s| s.vae_tiling)).unwrap_or(false),
            num_frames: args.clip.num_frames.or(old.and_then(|s| s.num_frames)),
            fps: args.clip.fps.or(old.and_then(|s| s.fps)),
            enable_temporal_attentions: match args.clip.no_enable_temporal_attentions {
                Some(no) => !no,
                None => old.is_none_or(|s| !s.no_enable_temporal_attentions),
            },
            decode_chunk_size: args.clip.decode_chunk_size.or(old.and_then(|s| s.decode_chunk_size)),
            init_latents: args.init_latents.as_deref().map(decode_latents).transpose()?,
            decode: output_type != OutputType::Latent,
            preview_every: args.preview,
            parallel,
            ..texts
        };
        check(&request)?;
        let images = request.prompts.len().saturating_mul(request.images_per_prompt);
        if images > MAX_IMAGES {
            return Err(Error::usage(format!(
                "`{images}` pictures are more than the {MAX_IMAGES} of one run"
            ))
            .hint("make them in several runs"));
        }
        // Files are written by one process; others may not even have the folder.
        let outputs = match processes.leads() {
            true => Outputs::plan(
                args.output.as_deref(),
                output_type,
                &(0..images).map(|image| request.seed_of(image)).collect::<Vec<_>>(),
            )?,
            false => Outputs { paths: vec![PathBuf::new()], replaced: None },
        };
        if args.report.is_some() && outputs.paths.iter().any(|path| is_standard(path)) {
            return Err(Error::usage("standard output cannot have both a picture and a report")
                .hint("name a file for the picture with `--output`"));
        }
        if request.preview_every.is_some() && processes.leads() {
            (0..images).try_for_each(|image| outputs.preview(image).map(drop))?;
        }
        Ok(Self {
            model: args
                .model
                .clone()
                .or_else(|| Some(old?.model.clone()))
                .unwrap_or_else(|| built_in::NAME.to_owned()),
            revision: args.files.revision.clone().or_else(|| same_model?.revision.clone()),
            output_type,
            trace: match &args.trace {
                Some(path) if processes.leads() => Some(TraceFile::plan(path)?),
                _ => None,
            },
            warnings: prompts::without_quotes(args).into_iter().chain(outputs.warning()).collect(),
            outputs,
            init_latents: args.init_latents.clone(),
            dtype,
            load,
            request,
        })
    }

    /// The folder of the model, which is downloaded or unpacked if necessary.
    ///
    /// # Errors
    /// If it cannot be found, downloaded or unpacked.
    pub fn locate(&self, args: &GenerateArgs, progress: &mut Progress) -> Result<PathBuf> {
        locate(&self.model, self.place(args), progress).map_err(|error| Self::with_hint(args, error))
    }

    /// The model without its weights.
    ///
    /// # Errors
    /// As [`locate`](Self::locate).
    pub fn outline(&self, args: &GenerateArgs, progress: &mut Progress) -> Result<Outlined> {
        outline(&self.model, self.place(args), progress).map_err(|error| Self::with_hint(args, error))
    }

    fn place<'a>(&'a self, args: &'a GenerateArgs) -> Place<'a> {
        Place {
            revision: self.revision.as_deref(),
            variant: self.load.variant.as_deref(),
            no_text_encoder_3: self.load.no_text_encoder_3,
            temporal_decoder: self.load.temporal_decoder,
            download_dir: args.files.download_dir.as_deref(),
        }
    }

    /// The error of a model that was not found, with a way out if its name comes from a picture.
    fn with_hint(args: &GenerateArgs, error: Error) -> Error {
        match (&args.from, &args.model) {
            (Some(picture), None) if error.kind() == ErrorKind::Usage => error.hint(format!(
                "`{}` contains only the name of its model: give the folder with `--model`",
                picture.display()
            )),
            _ => error,
        }
    }

    /// The parameters that all pictures share, with the model's defaults filled in.
    pub fn settings(&self, resolved: &Resolved) -> Settings {
        let plan = &resolved.plan;
        let stale = plan.synchronous_steps < plan.steps;
        let skip = self.request.skip_layer_guidance.as_ref();
        Settings {
            model: stored_name(&self.model),
            revision: self.revision.clone(),
            variant: self.load.variant.clone(),
            scheduler: self.load.scheduler.clone(),
            text_encoder_3: self.load.no_text_encoder_3.then(|| "none".to_owned()),
            temporal_decoder: self.load.temporal_decoder,
            dtype: self.dtype,
            negative_prompt: self.request.negative_prompts.first().cloned(),
            negative_prompt_2: self.request.negative_prompts_2.first().cloned(),
            negative_prompt_3: self.request.negative_prompts_3.first().cloned(),
            height: resolved.size[0],
            width: resolved.size[1],
            num_inference_steps: resolved.num_inference_steps,
            guidance_scale: resolved.guidance_scale,
            distilled_guidance: resolved.distilled_guidance,
            true_cfg_scale: self.request.true_cfg_scale,
            skip_guidance_layers: skip.map(|skip| skip.layers.clone()).unwrap_or_default(),
            skip_layer_guidance_scale: skip.map(|skip| skip.scale),
            skip_layer_guidance_start: skip.map(|skip| skip.start),
            skip_layer_guidance_stop: skip.map(|skip| skip.stop),
            guidance_rescale: self.request.guidance_rescale,
            micro_conditions: self.request.micro_conditions,
            max_sequence_length: resolved.max_sequence_length,
            clip_skip: self.request.clip_skip,
            clean_caption: self.request.clean_caption,
            use_resolution_binning: self.request.use_resolution_binning,
            vae_tiling: self.request.vae_tiling,
            num_frames: resolved.frames,
            fps: resolved.frames.map(|_| self.fps()),
            no_enable_temporal_attentions: !self.request.enable_temporal_attentions,
            decode_chunk_size: self.request.decode_chunk_size,
            init_latents: self.init_latents.as_ref().map(|path| file_name(path)),
            num_pipeline_patch: stale.then_some(plan.stale_patches()),
            warmup_steps: stale.then_some(self.request.parallel.warmup_steps),
            distrifusion: stale && plan.distrifusion,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The frames of a clip that are shown in a second.
    pub fn fps(&self) -> f32 {
        self.request.fps.unwrap_or(FRAMES_PER_SECOND)
    }

    /// The parameters of all pictures, in their order.
    pub fn all_parameters(&self, settings: &Settings) -> impl Iterator<Item = Parameters> {
        (0..self.request.images()).map(|index| self.parameters(settings, index))
    }

    /// The parameters of picture `index`.
    pub fn parameters(&self, settings: &Settings, index: usize) -> Parameters {
        let request = &self.request;
        let index_of_prompt = index / request.images_per_prompt;
        let [prompt, second, third] = request.texts(index_of_prompt).map(str::to_owned);
        let negative = |texts: &[String]| texts.get(index_of_prompt).or(texts.first()).cloned();
        Parameters {
            prompt_2: Some(second).filter(|text| *text != prompt),
            prompt_3: Some(third).filter(|text| *text != prompt),
            prompt,
            seed: request.seed_of(index),
            settings: Settings {
                negative_prompt: negative(&request.negative_prompts),
                negative_prompt_2: negative(&request.negative_prompts_2),
                negative_prompt_3: negative(&request.negative_prompts_3),
                ..settings.clone()
            },
        }
    }
}

/// The seeds that the options give, or `default`.
fn seeds(args: &GenerateArgs, default: u64, processes: &launcher::Job) -> Result<Vec<u64>> {
    if args.seed.contains(&Seed::Random) && processes.processes.is_some() {
        return Err(Error::usage("`--seed random` would be another seed in each process")
            .hint("give all processes the same number"));
    }
    // The hashers of the standard library start with random numbers of the system. 32 bits are enough, and easy to type.
    let random = || RandomState::new().build_hasher().finish() >> 32;
    let seeds = args.seed.iter().map(|seed| match seed {
        Seed::Random => random(),
        Seed::Of(seed) => *seed,
    });
    Ok(if args.seed.is_empty() { vec![default] } else { seeds.collect() })
}

/// The devices of the ranks of this process, of `ranks` in all, by their names as in [`find_each`]. If a launcher has
/// started several processes on this host, `cuda` stands for the GPUs after those of the earlier processes, unless the
/// launcher lets each process see only its own.
fn devices(name: &str, ranks: usize, processes: &launcher::Job) -> Result<Vec<Device>> {
    let cuda = name == "cuda" || name == "auto" && find("cuda").is_ok();
    let Some(local) = processes.local.filter(|_| cuda) else { return find_each(name, ranks) };
    let count = processes.processes.as_ref().map_or(1, Processes::count);
    let each = ranks.div_ceil(count);
    let sees_only_own = find(&format!("cuda:{each}")).is_err();
    let first = if sees_only_own { 0 } else { local * each };
    (first..first + each).map(|index| find(&format!("cuda:{index}"))).collect()
}

/// The model's name in the metadata of pictures: of a folder the last part only, since pictures are shared, and a path
/// contains the names of users.
fn stored_name(model: &str) -> String {
    let folder = std::fs::canonicalize(model).ok().filter(|path| path.is_dir());
    folder.map_or_else(|| model.to_owned(), |path| file_name(&path))
}

/// The last part of `path`.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The policy for a process with a single request.
fn keep(policy: KeepPolicy) -> Keep {
    match policy {
        KeepPolicy::Auto | KeepPolicy::Request => Keep::Request,
        KeepPolicy::All => Keep::All,
        KeepPolicy::Transformer => Keep::Transformer,
        KeepPolicy::None => Keep::None,
    }
}
