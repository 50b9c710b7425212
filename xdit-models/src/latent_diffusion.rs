//! What all pipelines do alike: a transformer denoises latents, an autoencoder makes pictures of them.

use burn::tensor::{DType, Tensor};
use serde_json::Value;
use xdit_core::config::Config;
use xdit_core::json::read_json;
use xdit_core::noise;
use xdit_core::picture::{resize_and_crop, to_picture};
use xdit_core::pipeline::{Generated, LoadOptions, Observer, Phase, Picture, Request, Resolved};
use xdit_core::plan::cost::{Cost, Sizes, costs};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::plan::{Plan, Work};
use xdit_core::run::contexts::SharedContexts;
use xdit_core::run::decode::split_rows;
use xdit_core::run::{Job, run};
use xdit_core::scheduler::{Scheduler, Steps, scheduler};
use xdit_core::tokens::{pack, unpack};
use xdit_core::transformer::{Transformer, TransformerSpec};
use xdit_core::weights::{Residency, Weights};
use xdit_core::{Error, Result};

use crate::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use crate::component::{Component, ModelIndex};
use crate::sharding::Sharded;

/// Pixels of the longest side that is accepted.
const MAX_SIDE: usize = 16_384;

/// The options of a transformer's `config.json`.
pub trait TransformerConfig: Sized {
    /// Takes the options from `config`.
    ///
    /// # Errors
    /// If one is missing, malformed, unknown, or has a value that is not supported.
    fn read(config: Config) -> Result<Self>;

    /// The sizes that the engine needs.
    fn spec(&self) -> &TransformerSpec;
}

/// A transformer that is published in the diffusers layout.
pub trait Published: Transformer + Sized + 'static {
    /// The options of its `config.json`.
    type Config: TransformerConfig + Sharded + Clone + Send + Sync + 'static;

    /// Takes the model from the weights of a `transformer/` folder.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    fn load(config: &Self::Config, weights: &Weights) -> Result<Self>;
}

/// What the checkpoints of a family have in common.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Classes of the transformer.
    pub transformer: &'static [&'static str],
    /// Classes of the noise scheduler.
    pub scheduler: &'static [&'static str],
    /// What so many steps ask of the scheduler.
    pub steps: fn(usize) -> Steps,
}

/// Transformer, noise scheduler and autoencoder of a checkpoint: checked, not loaded.
pub struct LatentDiffusion<T: Published> {
    /// Where and how they will run.
    pub options: LoadOptions,
    /// The transformer.
    pub transformer: Component<T::Config>,
    /// The autoencoder.
    pub vae: Component<AutoencoderKlConfig>,
    /// What `scheduler_config.json` says.
    pub scheduler: Value,
    family: Family,
}

impl<T: Published> LatentDiffusion<T>
where
    T::Conditions: Send + Sync,
{
    /// Opens the components of `index`.
    ///
    /// # Errors
    /// If anything in them is missing, malformed, unknown, or does not fit together.
    pub fn open(index: &ModelIndex, options: &LoadOptions, family: Family) -> Result<Self> {
        let folder = index.folder("scheduler", family.scheduler)?;
        let scheduler_config = read_json(folder.join("scheduler_config.json"))?;
        // Whatever is wrong with it, the checkpoint is to blame.
        let any_steps = (family.steps)(1).of_image(1);
        scheduler(&scheduler_config, any_steps).map_err(Error::into_failure)?;
        let this = Self {
            options: options.clone(),
            transformer: Component::open(
                &index.folder("transformer", family.transformer)?,
                "diffusion_pytorch_model",
                options,
                T::Config::read,
                |_| options.dtype,
                T::load,
            )?,
            vae: Component::open(
                &index.folder("vae", &["AutoencoderKL"])?,
                "diffusion_pytorch_model",
                options,
                AutoencoderKlConfig::read,
                |config| if config.force_upcast { DType::F32 } else { options.dtype },
                AutoencoderKl::load,
            )?,
            scheduler: scheduler_config,
            family,
        };
        let (latents, pixels) = (this.spec().channels, this.vae.config.latent_channels);
        must_fit("transformer's and VAE's latent channels", latents, pixels)?;
        Ok(this)
    }

    /// The transformer's sizes.
    pub fn spec(&self) -> &TransformerSpec {
        self.transformer.config.spec()
    }

    /// Pixels that a token stands for, along each side.
    pub fn pixels_per_token(&self) -> usize {
        self.vae.config.scale() * self.spec().patch
    }

    /// Shape of the latent of a picture of `size`.
    fn latent_shape(&self, size: [usize; 2]) -> [usize; 4] {
        let [height, width] = size.map(|side| side / self.vae.config.scale());
        [1, self.spec().channels, height, width]
    }

    /// Tokens of a picture of `size`.
    fn tokens(&self, size: [usize; 2]) -> usize {
        let [_, _, height, width] = self.latent_shape(size);
        (height / self.spec().patch) * (width / self.spec().patch)
    }

    /// The noise scheduler for a picture of `size`.
    fn scheduler(&self, size: [usize; 2], steps: usize) -> Result<Box<dyn Scheduler>> {
        scheduler(&self.scheduler, (self.family.steps)(steps).of_image(self.tokens(size)))
    }

    /// The plan for the pictures of `request`, generated at `size` with these branches of guidance.
    ///
    /// # Errors
    /// If there is none, or if the request brings latents of another shape.
    pub fn plan(
        &self,
        request: &Request,
        size: [usize; 2],
        steps: usize,
        branches: Vec<Branch>,
    ) -> Result<Plan> {
        let work = Work {
            spec: self.spec().clone(),
            tokens: self.tokens(size),
            steps: self.scheduler(size, steps)?.timesteps().len(),
            branches,
            images: request.images(),
        };
        let plan = Plan::new(&request.parallel, &work)?;
        let [_, channels, height, width] = self.latent_shape(size);
        let expected = [request.images(), channels, height, width];
        if let Some(latents) = request.init_latents.as_ref().filter(|latents| latents.dims() != expected) {
            return Err(Error::usage(format!(
                "initial latents have shape {:?}, expected {expected:?}",
                latents.dims()
            ))
            .hint("one latent for each picture, in the size at which it is generated"));
        }
        Ok(plan)
    }

    /// What each share of `resolved` sends and holds, where blocks change a text of `text_tokens` tokens, or none.
    /// Nothing is read.
    ///
    /// # Errors
    /// If a share of the checkpoint cannot be loaded.
    pub fn costs(&self, resolved: &Resolved, text_tokens: usize) -> Result<Vec<Cost>> {
        let (component, plan) = (&self.transformer, &resolved.plan);
        let sizes = Sizes {
            spec: self.spec().clone(),
            dtype: self.options.dtype,
            text_tokens: vec![text_tokens; plan.branches.len()],
            exchanges: component.config.exchanges(),
        };
        costs(plan, &sizes, component.scales(&self.options, component.config.placements(), T::load))
    }

    /// Initial latents of picture `image`: the request's own, or noise from its seed.
    fn initial_latents(&self, request: &Request, size: [usize; 2], image: usize) -> Tensor<4> {
        match &request.init_latents {
            Some(latents) => latents.clone().narrow(0, image, 1),
            None => {
                let seed = request.seed.wrapping_add(image as u64);
                noise::latents(seed, self.latent_shape(size), &self.options.device)
            }
        }
    }

    /// Denoises and decodes the pictures of `request`, each with its own guidance.
    ///
    /// # Errors
    /// If weights cannot be read, or a device fails.
    pub fn generate(
        &self,
        request: &Request,
        resolved: &Resolved,
        guidance: Vec<Guidance<T::Conditions>>,
        observer: &mut dyn Observer,
    ) -> Result<Generated> {
        let patch = self.spec().patch;
        let scheduler = self.scheduler(resolved.generated_size, resolved.num_inference_steps)?;
        let (transformer, options) = (self.transformer.clone(), self.options.clone());
        let job = Job {
            load: Box::new(move |share| {
                let placements = transformer.config.placements();
                transformer.load_share(&options, share, placements, Residency::Hold, T::load)
            }),
            guidance,
            noise: (0..request.images())
                .map(|image| {
                    let noise = self.initial_latents(request, resolved.generated_size, image);
                    pack(noise.mul_scalar(scheduler.init_noise_sigma()), patch)
                })
                .collect(),
            plan: resolved.plan.clone(),
            scheduler,
            contexts: SharedContexts::default(),
        };
        let latents: Vec<_> = run(job, observer)?.into_iter().map(|tokens| unpack(tokens, patch)).collect();
        let pictures = match request.decode {
            true => self.decode(request, resolved, &latents, observer)?,
            false => Vec::new(),
        };
        Ok(Generated { latents: Tensor::cat(latents, 0), pictures })
    }

    fn decode(
        &self,
        request: &Request,
        resolved: &Resolved,
        latents: &[Tensor<4>],
        observer: &mut dyn Observer,
    ) -> Result<Vec<Picture>> {
        let shares = resolved.plan.decoding_shares;
        if request.vae_tiling && shares > 1 {
            observer.warn("tiles are decoded one after the other: the parallel VAE is left out");
        }
        observer.begin(Phase::Load("vae"));
        let vae = AutoencoderKl::load(&self.vae.config, &self.vae.weights(&self.options))?;
        observer.end(Phase::Load("vae"));
        let mut pictures = Vec::new();
        for (image, latents) in latents.iter().enumerate() {
            observer.begin(Phase::Decode { image });
            let decoded = match request.vae_tiling {
                true => vae.decode_scaled_tiled(latents.clone()),
                false => {
                    let (z, vae) = (vae.unscale(latents.clone()), vae.clone());
                    split_rows(shares, z, observer, move |z, rows| vae.decode_rows(z, rows))?
                }
            };
            pictures.push(to_picture(&resize_and_crop(decoded, resolved.size), 0));
            observer.end(Phase::Decode { image });
        }
        Ok(pictures)
    }
}

/// Checks that two components of a checkpoint agree on `what`.
///
/// # Errors
/// If they do not.
pub fn must_fit(what: &str, left: usize, right: usize) -> Result<()> {
    if left == right {
        return Ok(());
    }
    Err(Error::failure(format!("{what}: `{left}` and `{right}` do not fit"))
        .hint("the components of this checkpoint come from different models"))
}

/// Checks the height and width of a picture whose sides must be multiples of `unit`; `otherwise` is what a user can do
/// but change them.
///
/// # Errors
/// If one is too large, zero, or no multiple.
pub fn check_size([height, width]: [usize; 2], unit: usize, otherwise: &str) -> Result<()> {
    for (name, side) in [("height", height), ("width", width)] {
        if side == 0 || side > MAX_SIDE {
            return Err(Error::usage(format!("{name} `{side}` is not between 1 and {MAX_SIDE}")));
        }
        if side % unit != 0 {
            let nearest = (side / unit).max(1) * unit;
            return Err(Error::usage(format!("{name} `{side}` is not a multiple of {unit}"))
                .hint(format!("use `{nearest}`{otherwise}")));
        }
    }
    Ok(())
}

/// The guidance of each picture of `request`, where `conditions` has what each prompt is to the transformer and, behind
/// them, what the negative prompt is, if one guides.
pub fn guidance<C: Clone>(request: &Request, scale: f32, conditions: &[C]) -> Vec<Guidance<C>> {
    let (prompts, negative) = conditions.split_at(request.prompts.len());
    let picture = |image: usize| {
        let prompt = &prompts[image / request.images_per_prompt];
        match negative {
            [negative] => Guidance::classifier_free(negative.clone(), prompt.clone(), scale),
            _ => Guidance::none(prompt.clone()),
        }
    };
    (0..request.images()).map(picture).collect()
}
