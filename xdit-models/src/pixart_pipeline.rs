//! PixArt-α and PixArt-Σ, from a prompt to a picture.
//!
//! Source: diffusers' `PixArtAlphaPipeline` and `PixArtSigmaPipeline`.

use burn::tensor::{DType, Tensor};
use serde_json::Value;
use xdit_core::json::read_json;
use xdit_core::noise;
use xdit_core::parallel::execute::Guidance;
use xdit_core::parallel::plan::{Plan, Work};
use xdit_core::parallel::run::{Job, run};
use xdit_core::parallel::vae::split_rows;
use xdit_core::picture::{resize_and_crop, to_picture};
use xdit_core::pipeline::{Generated, LoadOptions, Observer, Phase, Pipeline, Request, Resolved, check};
use xdit_core::scheduler::scheduler;
use xdit_core::tokens::{pack, unpack};
use xdit_core::{Error, Result};

use crate::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use crate::caption::{clean_caption, plain_caption};
use crate::component::{Component, ModelIndex};
use crate::pixart::{Conditions, PixArt, PixArtConfig};
use crate::resolution::nearest_size;
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::T5Tokenizer;

/// Steps of the noise scheduler where none are asked for.
const DEFAULT_STEPS: usize = 20;

/// Pixels of the longest side that is accepted.
const MAX_SIDE: usize = 16_384;

/// A PixArt checkpoint, ready to run.
///
/// Opening it checks all components; their weights are loaded when their phase of a run begins and released when
/// it ends, so that the text encoder and the transformer are never in memory together.
pub struct PixArtPipeline {
    options: LoadOptions,
    default_sequence_length: usize,
    tokenizer: T5Tokenizer,
    text_encoder: Component<T5Config>,
    transformer: Component<PixArtConfig>,
    vae: Component<AutoencoderKlConfig>,
    scheduler: Value,
}

impl PixArtPipeline {
    /// Opens an α checkpoint.
    ///
    /// # Errors
    /// If anything in it is missing, malformed, unknown, or does not fit together.
    pub fn open_alpha(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        Self::open(index, options, 120).map(|this| Box::new(this) as _)
    }

    /// Opens a Σ checkpoint.
    ///
    /// # Errors
    /// As [`open_alpha`](Self::open_alpha).
    pub fn open_sigma(index: &ModelIndex, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        Self::open(index, options, 300).map(|this| Box::new(this) as _)
    }

    fn open(index: &ModelIndex, options: &LoadOptions, default_sequence_length: usize) -> Result<Self> {
        let schedulers = ["DPMSolverMultistepScheduler", "DDIMScheduler", "EulerDiscreteScheduler"];
        let scheduler_config =
            read_json(index.folder("scheduler", &schedulers)?.join("scheduler_config.json"))?;
        // Whatever is wrong with it, the checkpoint is to blame.
        scheduler(&scheduler_config, DEFAULT_STEPS).map_err(Error::into_failure)?;
        let this = Self {
            options: options.clone(),
            default_sequence_length,
            text_encoder: Component::open(
                &index.folder("text_encoder", &["T5EncoderModel"])?,
                "model",
                options,
                T5Config::read,
                |_| options.dtype,
                T5Encoder::load,
            )?,
            transformer: Component::open(
                &index.folder("transformer", &["Transformer2DModel", "PixArtTransformer2DModel"])?,
                "diffusion_pytorch_model",
                options,
                PixArtConfig::read,
                |_| options.dtype,
                PixArt::load,
            )?,
            vae: Component::open(
                &index.folder("vae", &["AutoencoderKL"])?,
                "diffusion_pytorch_model",
                options,
                AutoencoderKlConfig::read,
                |config| if config.force_upcast { DType::F32 } else { options.dtype },
                AutoencoderKl::load,
            )?,
            tokenizer: T5Tokenizer::load(&index.folder("tokenizer", &["T5Tokenizer", "T5TokenizerFast"])?)?,
            scheduler: scheduler_config,
        };
        this.check_components()?;
        Ok(this)
    }

    /// The components must fit each other.
    fn check_components(&self) -> Result<()> {
        let (t5, pixart, vae) = (&self.text_encoder.config, &self.transformer.config, &self.vae.config);
        let misfit = |what: &str, left: usize, right: usize| match left == right {
            true => Ok(()),
            false => Err(Error::failure(format!("{what}: `{left}` and `{right}` do not fit"))
                .hint("the components of this checkpoint come from different models")),
        };
        misfit("text encoder's and transformer's text features", t5.d_model, pixart.caption_channels)?;
        misfit("transformer's and VAE's latent channels", pixart.spec.channels, vae.latent_channels)?;
        if self.tokenizer.vocab_size() > t5.vocab_size {
            misfit("tokenizer's and text encoder's vocabulary", self.tokenizer.vocab_size(), t5.vocab_size)?;
        }
        Ok(())
    }

    /// Embeddings `[1, n, d]` of each text, without padding. Equal texts are encoded once.
    fn encode(
        &self,
        texts: &[&str],
        request: &Request,
        resolved: &Resolved,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Tensor<3>>> {
        observer.begin(Phase::Load("text_encoder"));
        let encoder = T5Encoder::load(&self.text_encoder.config, &self.text_encoder.weights(&self.options))?;
        observer.end(Phase::Load("text_encoder"));
        observer.begin(Phase::Encode);
        let mut done: Vec<(&str, Tensor<3>)> = Vec::new();
        let mut embeddings = Vec::new();
        for (index, &text) in texts.iter().enumerate() {
            let embedding = match done.iter().find(|(other, _)| *other == text) {
                Some((_, embedding)) => embedding.clone(),
                None => {
                    let caption =
                        if request.clean_caption { clean_caption(text) } else { plain_caption(text) };
                    let encoding = self.tokenizer.encode(&caption, resolved.max_sequence_length);
                    if let Some(dropped) = encoding.dropped {
                        observer.warn(&format!(
                            "the prompt is longer than {} tokens, this part was cut off: `{dropped}`",
                            resolved.max_sequence_length
                        ));
                    }
                    let embedding = encoder.forward(&encoding.ids);
                    done.push((text, embedding.clone()));
                    embedding
                }
            };
            embeddings.push(embedding);
            observer.step(index + 1, texts.len());
        }
        observer.end(Phase::Encode);
        Ok(embeddings)
    }

    /// Height and width of the latents of a picture of `size`.
    fn latent_size(&self, size: [usize; 2]) -> [usize; 2] {
        size.map(|side| side / self.vae.config.scale())
    }

    /// Initial latents `[1, c, y, x]` of picture `image`.
    fn initial_latents(&self, request: &Request, resolved: &Resolved, image: usize) -> Tensor<4> {
        if let Some(latents) = &request.init_latents {
            return latents.clone().narrow(0, image, 1);
        }
        let [height, width] = self.latent_size(resolved.generated_size);
        let shape = [1, self.transformer.config.spec.channels, height, width];
        noise::latents(request.seed.wrapping_add(image as u64), shape, &self.options.device)
    }
}

impl Pipeline for PixArtPipeline {
    fn resolve(&self, request: &Request) -> Result<Resolved> {
        check(request)?;
        let PixArtConfig { sample_size, spec, .. } = &self.transformer.config;
        let unit = self.vae.config.scale() * spec.patch;
        let default = sample_size * self.vae.config.scale();
        let size = [request.height.unwrap_or(default), request.width.unwrap_or(default)];
        for (name, side) in [("height", size[0]), ("width", size[1])] {
            if side == 0 || side > MAX_SIDE {
                return Err(Error::usage(format!("{name} `{side}` is not between 1 and {MAX_SIDE}")));
            }
            if !request.use_resolution_binning && side % unit != 0 {
                let nearest = (side / unit).max(1) * unit;
                return Err(Error::usage(format!("{name} `{side}` is not a multiple of {unit}"))
                    .hint(format!("use `{nearest}`, or leave resolution binning on")));
            }
        }
        let generated_size = if request.use_resolution_binning {
            nearest_size(*sample_size, size[0], size[1]).ok_or_else(|| {
                Error::usage(format!("there is no table of sizes for `sample_size` {sample_size}"))
                    .hint("turn resolution binning off")
            })?
        } else {
            size
        };
        let max_sequence_length = request.max_sequence_length.unwrap_or(self.default_sequence_length);
        if max_sequence_length == 0 {
            return Err(Error::usage("a maximum sequence length of `0` leaves no prompt"));
        }
        let num_inference_steps = request.num_inference_steps.unwrap_or(DEFAULT_STEPS);
        let guidance_scale = request.guidance_scale.unwrap_or(4.5);
        let steps = scheduler(&self.scheduler, num_inference_steps)?.timesteps().len();
        let [rows, columns] = self.latent_size(generated_size).map(|side| side / spec.patch);
        let work = Work {
            spec: spec.clone(),
            tokens: rows * columns,
            steps,
            guided: guidance_scale > 1.0,
            images: request.images(),
        };
        let plan = Plan::new(&request.parallel, &work)?;
        let resolved =
            Resolved { size, generated_size, num_inference_steps, guidance_scale, max_sequence_length, plan };
        if let Some(latents) = &request.init_latents {
            let [height, width] = self.latent_size(generated_size);
            let expected = [request.images(), spec.channels, height, width];
            if latents.dims() != expected {
                return Err(Error::usage(format!(
                    "initial latents have shape {:?}, expected {expected:?}",
                    latents.dims()
                ))
                .hint("one latent for each picture, in the size at which it is generated"));
            }
        }
        Ok(resolved)
    }

    fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let resolved = self.resolve(request)?;
        let guided = resolved.guidance_scale > 1.0;
        let mut texts: Vec<&str> = request.prompts.iter().map(String::as_str).collect();
        if guided {
            texts.push(&request.negative_prompt);
        }
        let embeddings = self.encode(&texts, request, &resolved, observer)?;
        let conditions = |text: &Tensor<3>| Conditions {
            text: text.clone(),
            bias: None,
            size: self.transformer.config.micro_conditions.then_some(resolved.generated_size),
        };

        let patch = self.transformer.config.spec.patch;
        let scheduler = scheduler(&self.scheduler, resolved.num_inference_steps)?;
        let (transformer, options) = (self.transformer.clone(), self.options.clone());
        let job = Job {
            load: Box::new(move |share| {
                let placements = PixArt::placements(&transformer.config);
                PixArt::load(&transformer.config, &transformer.weights(&options).of_share(share, placements))
            }),
            guidance: (0..request.images())
                .map(|image| {
                    let prompt = &embeddings[image / request.images_per_prompt];
                    let negative = guided.then(|| &embeddings[request.prompts.len()]);
                    Guidance {
                        branches: negative.into_iter().chain([prompt]).map(conditions).collect(),
                        scale: resolved.guidance_scale,
                    }
                })
                .collect(),
            noise: (0..request.images())
                .map(|image| {
                    let noise = self.initial_latents(request, &resolved, image);
                    pack(noise.mul_scalar(scheduler.init_noise_sigma()), patch)
                })
                .collect(),
            plan: resolved.plan.clone(),
            scheduler,
        };
        let latents: Vec<_> = run(job, observer)?.into_iter().map(|tokens| unpack(tokens, patch)).collect();

        let mut pictures = Vec::new();
        if request.decode {
            if request.vae_tiling && resolved.plan.decoding_shares > 1 {
                observer.warn("tiles are decoded one after the other: the parallel VAE is left out");
            }
            observer.begin(Phase::Load("vae"));
            let vae = AutoencoderKl::load(&self.vae.config, &self.vae.weights(&self.options))?;
            observer.end(Phase::Load("vae"));
            for (image, latents) in latents.iter().enumerate() {
                observer.begin(Phase::Decode { image });
                let decoded = match request.vae_tiling {
                    true => vae.decode_scaled_tiled(latents.clone()),
                    false => {
                        let (z, vae) = (vae.unscale(latents.clone()), vae.clone());
                        split_rows(resolved.plan.decoding_shares, z, move |z, rows| vae.decode_rows(z, rows))?
                    }
                };
                pictures.push(to_picture(&resize_and_crop(decoded, resolved.size), 0));
                observer.end(Phase::Decode { image });
            }
        }
        Ok(Generated { latents: Tensor::cat(latents, 0), pictures })
    }
}
