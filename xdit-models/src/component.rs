//! The components of a checkpoint in the diffusers layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use serde_json::{Map, Value};
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::json::read_json;
use xdit_core::pipeline::LoadOptions;
use xdit_core::placement::{Placement, Share};
use xdit_core::plan::cost::Weighed;
use xdit_core::run::Loaded;
use xdit_core::transformer::Transformer;
use xdit_core::weights::{Residency, SharedLayers, Weights};
use xdit_core::{Error, Result};

use crate::autoencoder_kl::TEMPORAL;

/// The folder of the temporal decoder beside Latte's `vae`, and its class.
pub const TEMPORAL_DECODER: (&str, &str) = ("vae_temporal_decoder", TEMPORAL);

/// The contents of `model_index.json`: the class of the pipeline and of each of its components.
#[derive(Clone, Debug)]
pub struct ModelIndex {
    /// The folder that contains the components.
    pub dir: PathBuf,
    /// The class of the pipeline.
    pub class_name: String,
    /// The class of each component that is present, by the name of its folder.
    pub components: BTreeMap<String, String>,
    /// The names of a class-conditional model's classes, by number: `id2label`. Empty if there is none.
    pub id2label: Map<String, Value>,
    /// Whether an absent negative prompt is encoded as zeros: `force_zeros_for_empty_prompt`.
    pub force_zeros_for_empty_prompt: bool,
}

impl ModelIndex {
    /// Reads `dir/model_index.json`.
    ///
    /// # Errors
    /// If it is missing or malformed.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("model_index.json");
        let json = read_json(&path)?;
        let class_name = json.get("_class_name").and_then(Value::as_str).ok_or_else(|| {
            Error::failure(format!("`{}` does not name the pipeline in `_class_name`", path.display()))
                .hint("it may belong to another library, or be damaged: download the model again")
        })?;
        let mut components = BTreeMap::new();
        for (name, value) in json.as_object().into_iter().flatten() {
            // A component is a pair of library and class; an absent one is a pair of nulls.
            if let Some([_, Value::String(class)]) = value.as_array().map(Vec::as_slice) {
                components.insert(name.clone(), class.clone());
            }
        }
        let id2label = json.get("id2label").and_then(Value::as_object).cloned().unwrap_or_default();
        let zeros = json.get("force_zeros_for_empty_prompt").and_then(Value::as_bool);
        Ok(Self {
            dir: dir.to_owned(),
            class_name: class_name.to_owned(),
            components,
            id2label,
            force_zeros_for_empty_prompt: zeros.unwrap_or(true),
        })
    }

    /// Puts the autoencoder in [`TEMPORAL_DECODER`] in place of `vae`. As published, Latte-1 has that folder, and does not name
    /// it.
    ///
    /// # Errors
    /// If the pipeline makes no clips, or there is no such folder.
    pub fn use_temporal_decoder(&mut self) -> Result<()> {
        let (folder, class) = TEMPORAL_DECODER;
        if self.class_name != "LattePipeline" {
            return Err(Error::usage(format!(
                "`{}` makes no clips, so it has no temporal decoder",
                self.class_name
            ))
            .hint("leave out `--temporal-decoder`"));
        }
        if !self.dir.join(folder).is_dir() {
            let shown = self.dir.display();
            return Err(Error::usage(format!("`{shown}` has no folder `{folder}` with a temporal decoder"))
                .hint("leave out `--temporal-decoder`: the autoencoder in `vae` then decodes"));
        }
        self.components.remove("vae");
        self.components.insert(folder.to_owned(), class.to_owned());
        Ok(())
    }

    /// The folder of the component `name`, which must be of one of `classes`.
    ///
    /// # Errors
    /// If it is absent or of another class.
    pub fn folder(&self, name: &str, classes: &[&str]) -> Result<PathBuf> {
        let index = self.dir.join("model_index.json");
        let supported = || {
            format!("supported: {}", classes.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", "))
        };
        match self.components.get(name) {
            Some(class) if classes.contains(&class.as_str()) => {
                let folder = self.dir.join(name);
                if folder.is_dir() {
                    return Ok(folder);
                }
                let (shown, index) = (folder.display(), index.display());
                let error = Error::failure(format!("there is no folder `{shown}`, which `{index}` names"));
                let hint = "the download is incomplete: fetch the folder, or download the model again";
                Err(error.hint(match name {
                    "text_encoder_3" | "tokenizer_3" => {
                        format!("{hint}; `--text-encoder-3 none` does without it")
                    }
                    _ => hint.to_owned(),
                }))
            }
            Some(class) => Err(Error::failure(format!(
                "component `{name}` in `{}` is of class `{class}`, which is not supported here",
                index.display()
            ))
            .hint(supported())),
            None => {
                Err(Error::failure(format!("`{}` has no component `{name}`", index.display()))
                    .hint(supported()))
            }
        }
    }
}

/// A component whose configuration was read and whose weights were checked against it but not loaded.
#[derive(Clone, Debug)]
pub struct Component<C> {
    /// The options of the component.
    pub config: C,
    /// The type of its weights and activations.
    pub dtype: DType,
    /// The size of the parameters in bytes.
    pub bytes: u64,
    /// A sentence on tensors that the files have but the model does not use, if there are any.
    pub extra: Option<String>,
    checkpoint: Checkpoint,
    random_weights: bool,
    layers: SharedLayers,
}

impl<C> Component<C> {
    /// Reads the configuration in `folder`, opens the weights, and checks that they contain every tensor that `load`
    /// needs and no other.
    ///
    /// # Errors
    /// If anything is missing, malformed or inconsistent.
    pub fn open<M>(
        folder: &Path,
        stem: &str,
        options: &LoadOptions,
        read: impl FnOnce(Config) -> Result<C>,
        dtype: impl FnOnce(&C) -> DType,
        load: impl FnOnce(&C, &Weights) -> Result<M>,
    ) -> Result<Self> {
        let config = read(Config::read(&folder.join("config.json"))?)?;
        let checkpoint = Checkpoint::open(folder, stem, options.variant.as_deref())?;
        let dtype = dtype(&config);
        let weights = Weights::check_only(checkpoint.clone(), dtype);
        // diffusers saves fused projections beside the single ones, which it loads.
        weights.ignore_extra(&[".to_qkv.", ".to_kv.", ".to_added_qkv."]);
        load(&config, &weights)?;
        weights.finish()?;
        let (bytes, extra) = (weights.taken_bytes(), weights.extra());
        let random_weights = options.random_weights;
        Ok(Self { config, dtype, bytes, extra, checkpoint, random_weights, layers: SharedLayers::default() })
    }

    /// The weights, for loading the model onto `device`.
    pub fn weights(&self, device: &Device) -> Weights {
        let weights = Weights::new(self.checkpoint.clone(), device, self.dtype);
        if self.random_weights { weights.with_random_values() } else { weights }
    }

    /// Loads a share of the model onto `device`, with layers sharded according to `placements`. Linear layers and
    /// convolutions are shared with other shares of this component and of its clones.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn load_share<M>(
        &self,
        device: &Device,
        share: Share,
        placements: Vec<(String, Placement)>,
        residency: Residency,
        load: impl FnOnce(&C, &Weights) -> Result<M>,
    ) -> Result<Loaded<M>> {
        let weights = self.weights(device).of_share(share, placements);
        let weights = weights.sharing(&self.layers).with_residency(residency);
        let transformer = load(&self.config, &weights)?;
        Ok(Loaded { transformer, parameter_bytes: weights.taken_bytes() })
    }

    /// Computes the sizes of shares that would be [loaded](Self::load_share) together, without reading any weights.
    ///
    /// # Errors
    /// The returned function fails if `load` rejects a share.
    pub fn scales<M: Transformer>(
        &self,
        placements: Vec<(String, Placement)>,
        load: impl Fn(&C, &Weights) -> Result<M>,
    ) -> impl FnMut(Share) -> Result<Weighed> {
        let (layers, mut models) = (SharedLayers::default(), Vec::new());
        move |share| {
            let weights = Weights::check_only(self.checkpoint.clone(), self.dtype);
            let weights = weights.of_share(share, placements.clone()).sharing(&layers);
            let model = load(&self.config, &weights)?;
            let context_bytes = model.context_bytes();
            // From now on, the layers of this model count as loaded.
            models.push(model);
            Ok(Weighed { parameters: weights.taken(), added: weights.loaded(), context_bytes })
        }
    }
}
