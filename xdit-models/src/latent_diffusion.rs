//! The common part of all pipelines: a transformer denoises latents, and an autoencoder decodes them to pictures.

mod shape;

use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde_json::Value;
use xdit_core::config::Config;
use xdit_core::device::free_bytes;
use xdit_core::json::read_json;
use xdit_core::noise::Generator;
use xdit_core::picture::{Picture, to_picture};
use xdit_core::pipeline::{
    Cancel, Extra, LoadOptions, Observer, Pipeline, Processes, Request, Resolved, check, check_extras,
};
use xdit_core::placement::Share;
use xdit_core::plan::cost::{Cost, Sizes, costs};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::rows::{Rows, Whole};
use xdit_core::run::noise::{Noise, PictureNoise};
use xdit_core::run::preview::{Parts, Previews};
use xdit_core::run::ranks::{Ranks, check_devices, local_ranks};
use xdit_core::run::residency::Kept;
use xdit_core::run::{Decoder, Decoding, Job, Loaded, Model};
use xdit_core::scheduler::{self, Path, Scheduler, Steps, scheduler};
use xdit_core::shared::Shared;
use xdit_core::tokens::pack;
use xdit_core::transformer::{IntoParts, Transformer, TransformerSpec};
use xdit_core::weights::{Residency, Weights};
use xdit_core::{Error, Result, finite};
use xdit_kernels::profile;

use crate::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use crate::component::{Component, ModelIndex};
use crate::memory;
use crate::preview::OnceColours;
use crate::sharding::Sharded;
use crate::text_encoder::Desk;
use shape::parts;

/// The longest side that is accepted, in pixels.
const MAX_SIDE: usize = 16_384;
/// The sides of latents that a model may have been trained on: an autoencoder enlarges them at most eightfold.
pub const SAMPLE_SIZES: RangeInclusive<usize> = 1..=MAX_SIDE / 8;

/// The options of a transformer's `config.json`.
pub trait TransformerConfig: Sized {
    /// Reads the options from `config`.
    ///
    /// # Errors
    /// If an option is missing, malformed, unknown, or has a value that is not supported.
    fn read(config: Config) -> Result<Self>;

    /// The sizes that the engine needs.
    fn spec(&self) -> &TransformerSpec;

    /// The number of consecutive tokens that stay together on a rank, for a picture or clip of `[frames, rows, columns]`
    /// tokens: by default the tokens of a place in all frames.
    fn grain(&self, [frames, ..]: [usize; 3]) -> usize {
        frames
    }
}

/// A transformer that is published in the diffusers layout.
pub trait Published:
    Transformer<Conditions: IntoParts + Send + Sync> + Sized + Send + Sync + 'static
{
    /// The name of its folder.
    const FOLDER: &'static str = "transformer";

    /// The options of its `config.json`.
    type Config: TransformerConfig + Sharded + Clone + Send + Sync + 'static;

    /// Loads the model from the weights of its folder.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape.
    fn load(config: &Self::Config, weights: &Weights) -> Result<Self>;
}

/// A family of checkpoints.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The common name of the family.
    pub name: &'static str,
    /// The supported classes of the transformer.
    pub transformer: &'static [&'static str],
    /// The supported classes of the autoencoder.
    pub vae: &'static [&'static str],
    /// The path that the transformer was trained on, which the noise scheduler must follow.
    pub path: Path,
    /// The scheduler's steps for a given number of steps.
    pub steps: fn(usize) -> Steps,
}

/// The part of a pipeline that differs between families: from a prompt to conditions and guidance.
pub trait Recipe: Send + Sized + 'static {
    /// The family's transformer.
    type Transformer: Published;

    /// The family.
    const FAMILY: Family;

    /// The optional parts of a request that this family supports.
    fn extras(&self) -> Vec<Extra>;

    /// Fills in the family's defaults.
    ///
    /// # Errors
    /// If the family does not support the request.
    fn choose(&self, request: &Request, model: &LatentModel<Self::Transformer>) -> Result<Choices>;

    /// The number of text tokens that blocks update; 0 if they leave the text unchanged.
    fn changed_text_tokens(&self, resolved: &Resolved) -> usize;

    /// Warnings about parts of the request that have no effect.
    fn warnings(&self, _resolved: &Resolved, _model: &LatentModel<Self::Transformer>) -> Vec<String> {
        Vec::new()
    }

    /// The conditions of each prompt, followed by those of each negative prompt if guidance needs them.
    ///
    /// # Errors
    /// If weights cannot be read, values are not finite, or the request is cancelled.
    fn encode(
        &mut self,
        resolved: &Resolved,
        model: &LatentModel<Self::Transformer>,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<<Self::Transformer as Transformer>::Conditions>>;

    /// The guidance of a picture of `prompt`. Branches are indices into the list of [conditions](Self::encode), and
    /// `negative` is that of its negative prompt.
    fn guidance(&self, resolved: &Resolved, prompt: usize, negative: usize) -> Guidance<usize> {
        Guidance::of_scale(negative, prompt, resolved.guidance_scale)
    }
}

/// The values of a request, with the family's defaults filled in.
pub struct Choices {
    /// The height and width of the pictures.
    pub size: [usize; 2],
    /// The height and width at which pictures are generated.
    pub generated_size: [usize; 2],
    /// The number of steps of the noise scheduler.
    pub num_inference_steps: usize,
    /// The strength of guidance.
    pub guidance_scale: f32,
    /// The number of text tokens, including the end token.
    pub max_sequence_length: usize,
    /// The guidance branches.
    pub branches: Vec<Branch>,
    /// The number of frames of a clip, or `None` for a picture.
    pub frames: Option<usize>,
}

/// The transformer and the autoencoder of a checkpoint, checked but not loaded.
pub struct LatentModel<T: Published> {
    /// The transformer.
    pub transformer: Component<T::Config>,
    /// The autoencoder.
    pub vae: Component<AutoencoderKlConfig>,
    residency: Residency,
    /// The autoencoders in use by ranks.
    decoders: Shared<OnDevice, AutoencoderKl>,
    colours: OnceColours,
}

#[derive(PartialEq, Eq)]
struct OnDevice(Device);

impl Hash for OnDevice {
    /// Does nothing: devices have no hash, so they are only compared.
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl<T: Published> LatentModel<T> {
    fn open(index: &ModelIndex, options: &LoadOptions, family: &Family) -> Result<Self> {
        let this = Self {
            residency: Residency::Hold,
            decoders: Shared::default(),
            colours: OnceColours::default(),
            transformer: Component::open(
                &index.folder(T::FOLDER, family.transformer)?,
                "diffusion_pytorch_model",
                options,
                T::Config::read,
                |_| options.dtype,
                T::load,
            )?,
            vae: AutoencoderKl::open(index, options, family.vae)?,
        };
        let (latents, pixels) = (this.spec().channels, this.vae.config.latent_channels);
        must_fit("transformer's and VAE's latent channels", latents, pixels)?;
        Ok(this)
    }

    /// The transformer's sizes.
    pub fn spec(&self) -> &TransformerSpec {
        self.transformer.config.spec()
    }

    /// The side of a token in pixels of the picture.
    pub fn pixels_per_token(&self) -> usize {
        self.vae.config.scale() * self.spec().patch
    }

    /// The size that `request` asks for. A missing side is `default` latent pixels long.
    pub fn size(&self, request: &Request, default: usize) -> [usize; 2] {
        let default = default * self.vae.config.scale();
        [request.height.unwrap_or(default), request.width.unwrap_or(default)]
    }

    /// The shape of the latents of one picture of `size`.
    fn latent_shape(&self, size: [usize; 2]) -> [usize; 4] {
        let [height, width] = size.map(|side| side / self.vae.config.scale());
        [1, self.spec().channels, height, width]
    }

    /// The shape of the latents of `images` pictures or, with `frames`, clips.
    fn shape_of_latents(&self, images: usize, size: [usize; 2], frames: Option<usize>) -> Vec<usize> {
        let [_, c, height, width] = self.latent_shape(size);
        [images, c].into_iter().chain(frames).chain([height, width]).collect()
    }

    /// The rows and columns of tokens of a picture of `size`, or of a frame.
    fn grid(&self, size: [usize; 2]) -> [usize; 2] {
        let [_, _, height, width] = self.latent_shape(size);
        [height, width].map(|side| side / self.spec().patch)
    }

    /// The number of tokens of a picture of `size`, or of a frame.
    fn tokens(&self, size: [usize; 2]) -> usize {
        self.grid(size).iter().product()
    }
}

impl<T: Published> Model for LatentModel<T> {
    type Transformer = T;
    type Decoder = AutoencoderKl;

    fn load(&self, share: Share, device: &Device) -> Result<Loaded<T>> {
        let placements = self.transformer.config.all_placements();
        self.transformer.load_share(device, share, placements, self.residency, T::load)
    }

    fn load_decoder(&self, device: &Device) -> Result<Arc<AutoencoderKl>> {
        let load = || AutoencoderKl::load(&self.vae.config, &self.vae.weights(device));
        self.decoders.get(OnDevice(device.clone()), load)
    }
}

impl Decoder for AutoencoderKl {
    fn decode(&self, latents: Tensor<4>, rows: &dyn Rows) -> Tensor<4> {
        self.decode_rows(self.unscale(latents), rows)
    }

    fn decode_tiled(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode_scaled_tiled(latents)
    }
}

/// A checkpoint of a family, ready to run.
///
/// Opening it checks all components. Weights are loaded on first use.
pub struct LatentPipeline<R: Recipe> {
    recipe: R,
    options: LoadOptions,
    kept: Kept,
    model: Arc<LatentModel<R::Transformer>>,
    /// The contents of `scheduler_config.json`, with the chosen scheduler.
    scheduler: Value,
    ranks: Ranks<LatentModel<R::Transformer>>,
}

/// The checked config of the scheduler `name`, or of the checkpoint's own.
fn scheduler_config(index: &ModelIndex, name: Option<&str>, family: &Family) -> Result<Value> {
    let mut classes = scheduler::class_names();
    if let (Some(_), Some(class)) = (name, index.components.get("scheduler")) {
        // Only its options are used.
        classes.push(class);
    }
    let own = read_json(index.folder("scheduler", &classes)?.join("scheduler_config.json"))?;
    let steps = |count| (family.steps)(count).of_image(1);
    let Some(name) = name else {
        // The fault of the checkpoint, not of the request.
        scheduler::check(&own, family.path, steps).map_err(Error::into_failure)?;
        return Ok(own);
    };
    let new = scheduler::replaced(&own, name, family.path)?;
    scheduler::check(&new, family.path, steps)?;
    Ok(new)
}

impl<R: Recipe> LatentPipeline<R> {
    /// Opens the components of `index`; `recipe` opens the text encoders.
    ///
    /// # Errors
    /// If anything in them is missing, malformed, unknown or inconsistent.
    pub fn open(
        index: &ModelIndex,
        options: &LoadOptions,
        recipe: impl FnOnce(&LatentModel<R::Transformer>) -> Result<R>,
    ) -> Result<Box<dyn Pipeline>> {
        let scheduler = scheduler_config(index, options.scheduler.as_deref(), &R::FAMILY)?;
        let mut model = LatentModel::open(index, options, &R::FAMILY)?;
        let recipe = recipe(&model)?;
        let transformer_bytes = model.transformer.bytes + model.vae.bytes;
        let kept = options.keep.decide(transformer_bytes, free_bytes(&options.devices[0]));
        model.residency = kept.once;
        let (options, model) = (options.clone(), Arc::new(model));
        let ranks =
            Ranks::new(model.clone(), options.devices.clone(), kept.keep).over(options.processes.clone());
        Ok(Box::new(Self { recipe, options, kept, model, scheduler, ranks }))
    }

    /// The noise scheduler for a picture of `size`.
    fn scheduler(&self, size: [usize; 2], steps: usize) -> Result<Box<dyn Scheduler>> {
        scheduler(&self.scheduler, (R::FAMILY.steps)(steps).of_image(self.model.tokens(size)))
    }

    /// Starts the random numbers of each picture, from its seed. Initial latents of the request replace the first ones.
    fn noise(&self, resolved: &Resolved, sigma: f32) -> Noise {
        let shape = self.model.shape_of_latents(1, resolved.generated_size, resolved.frames);
        let (patch, request) = (self.model.spec().patch, resolved.request.clone());
        let init = request.init_latents.clone();
        let init: Option<Vec<f32>> = init.map(|latents| latents.try_to_vec().expect("checked to be f32"));
        let len: usize = shape.iter().product();
        Box::new(move |image, device| {
            let (device, mut generator) = (device.clone(), Generator::from_seed(request.seed_of(image)));
            let shape = shape.clone();
            let packed = move |values: Vec<f32>, scale| {
                let latents = TensorData::new(values, [len]);
                let latents = Tensor::<1>::from_data(latents, (&device, DType::F32)).mul_scalar(scale);
                match shape[..] {
                    [b, c, y, x] => pack(latents.reshape([b, c, y, x]), patch),
                    [b, c, frames, y, x] => pack(latents.reshape([b, c, frames, y, x]), patch),
                    _ => unreachable!("latents have four dimensions, or five with frames"),
                }
            };
            let latents = match &init {
                Some(init) => init[image * len..][..len].to_vec(),
                None => generator.randn(len),
            };
            PictureNoise::new(packed(latents, sigma), move || packed(generator.randn(len), 1.0).x)
        })
    }
}

impl<R: Recipe> Pipeline for LatentPipeline<R> {
    fn resolve(&self, request: &Request) -> Result<Resolved> {
        check(request)?;
        check_extras(request, R::FAMILY.name, &self.recipe.extras())?;
        let Choices {
            size,
            generated_size,
            num_inference_steps,
            guidance_scale,
            max_sequence_length,
            branches,
            frames,
        } = self.recipe.choose(request, &self.model)?;
        let grid = self.model.grid(generated_size);
        let grain = self.model.transformer.config.grain([frames.unwrap_or(1), grid[0], grid[1]]);
        let work = Work {
            spec: self.model.spec().clone(),
            tokens: self.model.tokens(generated_size) * frames.unwrap_or(1),
            grain,
            steps: self.scheduler(generated_size, num_inference_steps)?.timesteps().len(),
            branches,
            images: request.images(),
        };
        let guidance_batch = request.parallel.guidance_batch.unwrap_or(*self.device() != Device::flex());
        let parallel = ParallelConfig { guidance_batch: Some(guidance_batch), ..request.parallel.clone() };
        let plan = Plan::new(&parallel, &work)?;
        let local = local_ranks(&plan.mesh, self.options.processes.as_ref())?;
        check_devices(local.len(), &self.options.devices)?;
        if request.guidance_rescale != 0.0 && plan.patches.len() > 1 && plan.synchronous_steps < plan.steps {
            return Err(Error::usage(
                "guidance rescale needs the deviation of the whole picture, which patches of different steps do not have",
            )
            .hint("leave `guidance_rescale` out, or use one patch"));
        }
        if request.decode && !request.vae_tiling {
            let vae = &self.model.vae;
            let layers = (vae.config.block_out_channels[0], vae.dtype.size());
            let chunk = request.decode_chunk_size.unwrap_or(vae.config.default_chunk());
            let chunk = chunk.min(frames.unwrap_or(1));
            let free = free_bytes(&self.options.devices[0]);
            memory::check_decoding((chunk, generated_size), layers, plan.decoding_shares, free)?;
        }
        let expected = self.model.shape_of_latents(request.images(), generated_size, frames);
        if let Some(latents) = &request.init_latents {
            let found = latents.shape().to_vec();
            if found != expected {
                return Err(Error::usage(format!(
                    "initial latents have shape {found:?}, expected {expected:?}"
                ))
                .hint("one latent for each picture, in the size at which it is generated"));
            }
            if latents.dtype() != DType::F32 {
                let dtype = latents.dtype();
                return Err(Error::usage(format!("initial latents have type {dtype:?}, expected F32")));
            }
        }
        Ok(Resolved {
            request: request.clone(),
            size,
            generated_size,
            num_inference_steps,
            guidance_scale,
            distilled_guidance: self.recipe.extras().contains(&Extra::TrueCfgScale),
            max_sequence_length,
            frames,
            plan,
        })
    }

    fn costs(&self, resolved: &Resolved) -> Result<Vec<Cost>> {
        let (component, plan) = (&self.model.transformer, &resolved.plan);
        let text_tokens = self.recipe.changed_text_tokens(resolved);
        let grid = self.model.grid(resolved.generated_size);
        let sizes = Sizes {
            spec: self.model.spec().clone(),
            dtype: component.dtype,
            text_tokens: vec![text_tokens; plan.branches.len()],
            exchanges: component.config.exchanges(),
            frames: resolved.frames.unwrap_or(1),
            levels: component.config.levels(grid),
            rows: component.config.rows(grid, component.dtype),
        };
        let scales = component.scales(component.config.all_placements(), R::Transformer::load);
        costs(plan, &sizes, scales)
    }

    fn run(&mut self, resolved: &Resolved, cancel: &Cancel, observer: &mut dyn Observer) -> Result<()> {
        let Resolved { request, plan, .. } = resolved;
        // The first process encodes the texts, and its first rank sends the conditions to all others.
        let leads = self.options.processes.as_ref().is_none_or(Processes::leads);
        let extra = [&self.model.transformer.extra, &self.model.vae.extra].into_iter().flatten().cloned();
        // Several ranks may have memory of their own.
        let scarce = (plan.mesh.size() == 1)
            .then(|| memory::warning(self.kept.transformer_bytes, self.kept.free_bytes));
        let further = resolved.unguided().into_iter().chain(extra).chain(scarce.flatten());
        for warning in self.recipe.warnings(resolved, &self.model).into_iter().chain(further) {
            observer.warn(&warning);
        }
        if request.vae_tiling && request.decode && plan.decoding_shares > 1 {
            observer.warn("the parallel VAE is not used: tiles are decoded one after another");
        }
        let keep = self.kept.keep;
        let mut desk = Desk { device: &self.options.devices[0], keep, cancel, observer: &mut *observer };
        let conditions = match leads {
            true => {
                let encode = || self.recipe.encode(resolved, &self.model, &mut desk);
                Some(profile::part("text encoders", None, &self.options.devices[0], encode)?)
            }
            false => None,
        };
        let scheduler = self.scheduler(resolved.generated_size, resolved.num_inference_steps)?;
        let guidance = |image: usize| {
            let prompt = image / request.images_per_prompt;
            let negative = request.prompts.len() + request.negative_of(prompt);
            self.recipe.guidance(resolved, prompt, negative)
        };
        let [_, c, height, width] = self.model.latent_shape(resolved.generated_size);
        let job = Job {
            plan: plan.clone(),
            conditions,
            guidance: (0..request.images()).map(guidance).collect(),
            noise: self.noise(resolved, scheduler.init_noise_sigma()),
            decoding: request.decode.then_some(Decoding {
                latents: [1, c, resolved.frames.unwrap_or(1), height, width],
                chunk: request.decode_chunk_size.unwrap_or(self.model.vae.config.default_chunk()),
                size: resolved.size,
                tiled: request.vae_tiling,
            }),
            scheduler,
            preview_every: request.preview_every,
        };
        let steps = plan.steps;
        if request.preview_every.is_none_or(|every| every >= steps) || !leads {
            return self.ranks.run(job, cancel, observer);
        }
        let shape = self.model.shape_of_latents(1, resolved.generated_size, resolved.frames);
        let parts = Parts::new(&shape, self.model.spec().patch);
        let colours = self.model.colours.fitted(self.device(), || self.model.load_decoder(self.device()))?;
        let colours = |latents| colours.of(latents);
        self.ranks.run(job, cancel, &mut Previews::new(observer, &colours, parts, resolved.size, steps))
    }

    fn decode(
        &self,
        latents: &TensorData,
        tiled: bool,
        chunk: Option<usize>,
        save: &mut dyn FnMut(usize, Vec<Picture>) -> Result<()>,
    ) -> Result<()> {
        let shape = latents.shape().to_vec();
        let (channels, scale) = (self.model.vae.config.latent_channels, self.model.vae.config.scale());
        let clips = self.recipe.extras().contains(&Extra::NumFrames);
        let (images, frames, side) = parts(&shape, channels, clips, R::FAMILY.name)?;
        check_size(side.map(|side| side.saturating_mul(scale)), scale, "")?;
        let decoder = self.model.load_decoder(self.device())?;
        let chunk = chunk.unwrap_or(self.model.vae.config.default_chunk());
        let values = latents.as_slice::<f32>().expect("latents are f32");
        for (image, values) in values.chunks_exact(values.len() / images).enumerate() {
            let values = TensorData::new(values.to_vec(), [channels, frames, side[0], side[1]]);
            let clip = Tensor::<4>::from_data(values, (self.device(), DType::F32)).swap_dims(0, 1);
            let mut pictures = Vec::with_capacity(frames);
            for start in (0..frames).step_by(chunk) {
                let latents = clip.clone().narrow(0, start, chunk.min(frames - start));
                let decoded = match tiled {
                    true => decoder.decode_tiled(latents),
                    false => Decoder::decode(&*decoder, latents, &Whole),
                };
                finite::check(&decoded, decoded.dtype(), || {
                    format!("the values of picture {} after decoding", image + 1)
                })?;
                pictures.extend((0..decoded.dims()[0]).map(|index| to_picture(&decoded, index)));
            }
            save(image, pictures)?;
        }
        Ok(())
    }

    fn kept(&self) -> Kept {
        self.kept
    }

    fn device(&self) -> &Device {
        &self.options.devices[0]
    }
}

/// The maximum length of texts in tokens, for `request`.
///
/// # Errors
/// If it is 0, or more than the model's `max`.
pub fn sequence_length(request: &Request, default: usize, max: Option<usize>) -> Result<usize> {
    let length = request.max_sequence_length.unwrap_or(default);
    match max {
        Some(max) if !(1..=max).contains(&length) => {
            Err(Error::usage(format!("a maximum sequence length of `{length}` is not between 1 and {max}"))
                .hint("leave it out for the model's default"))
        }
        None if length == 0 => Err(Error::usage("a maximum sequence length of `0` leaves no prompt")
            .hint("leave it out for the model's default")),
        _ => Ok(length),
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

/// Checks the height and width of a picture whose sides must be multiples of `unit`. `otherwise` continues the hint
/// with an alternative to another size.
///
/// # Errors
/// If a side is zero, too large, or not a multiple.
pub fn check_size([height, width]: [usize; 2], unit: usize, otherwise: &str) -> Result<()> {
    for (name, side) in [("height", height), ("width", width)] {
        if side == 0 || side > MAX_SIDE {
            return Err(Error::usage(format!("{name} `{side}` is not between 1 and {MAX_SIDE}"))
                .hint("leave it out for the model's default"));
        }
        if side % unit != 0 {
            let nearest = (side / unit).max(1) * unit;
            return Err(Error::usage(format!("{name} `{side}` is not a multiple of {unit}"))
                .hint(format!("use `{nearest}`{otherwise}")));
        }
    }
    Ok(())
}
