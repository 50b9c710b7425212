//! The parts of a checkpoint in the diffusers layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use serde_json::Value;
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

/// What `model_index.json` says: the class of the pipeline and of each of its components.
#[derive(Clone, Debug)]
pub struct ModelIndex {
    /// The folder that holds the components.
    pub dir: PathBuf,
    /// Class of the pipeline.
    pub class_name: String,
    /// Class of each component that is there, by its folder's name.
    pub components: BTreeMap<String, String>,
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
        })?;
        let mut components = BTreeMap::new();
        for (name, value) in json.as_object().into_iter().flatten() {
            // A component is a pair of library and class; an absent one is a pair of nulls.
            if let Some([_, Value::String(class)]) = value.as_array().map(Vec::as_slice) {
                components.insert(name.clone(), class.clone());
            }
        }
        Ok(Self { dir: dir.to_owned(), class_name: class_name.to_owned(), components })
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
            Some(class) if classes.contains(&class.as_str()) => Ok(self.dir.join(name)),
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

/// A component whose configuration was read and whose weights were checked against it, but not loaded.
#[derive(Clone, Debug)]
pub struct Component<C> {
    /// Its options.
    pub config: C,
    /// The type of its weights and activations.
    pub dtype: DType,
    /// Bytes of its parameters.
    pub bytes: u64,
    checkpoint: Checkpoint,
    layers: SharedLayers,
}

impl<C> Component<C> {
    /// Reads the configuration in `folder`, opens the weights, and makes sure that `load` will find everything
    /// it needs and leave nothing over.
    ///
    /// # Errors
    /// If anything is missing, malformed, or does not fit together.
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
        load(&config, &weights)?;
        weights.finish()?;
        let bytes = weights.taken_bytes();
        Ok(Self { config, dtype, bytes, checkpoint, layers: SharedLayers::default() })
    }

    /// The weights, from which the model can be loaded onto `device`.
    pub fn weights(&self, device: &Device) -> Weights {
        Weights::new(self.checkpoint.clone(), device, self.dtype)
    }

    /// Loads a share of the model onto `device`. Its layers are cut as `placements` says. Linear layers are held in common with other
    /// shares of this component and its clones.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn load_share<M>(
        &self,
        device: &Device,
        share: Share,
        placements: Vec<(&'static str, Placement)>,
        residency: Residency,
        load: impl FnOnce(&C, &Weights) -> Result<M>,
    ) -> Result<Loaded<M>> {
        let weights = self.weights(device).of_share(share, placements);
        let weights = weights.sharing(&self.layers).with_residency(residency);
        let transformer = load(&self.config, &weights)?;
        Ok(Loaded { transformer, parameter_bytes: weights.taken_bytes() })
    }

    /// Weighs shares of the model that would be [loaded](Self::load_share) together; nothing is read.
    ///
    /// # Errors
    /// The function fails if `load` finds a share to be wrong.
    pub fn scales<M: Transformer>(
        &self,
        placements: Vec<(&'static str, Placement)>,
        load: impl Fn(&C, &Weights) -> Result<M>,
    ) -> impl FnMut(Share) -> Result<Weighed> {
        let (layers, mut models) = (SharedLayers::default(), Vec::new());
        move |share| {
            let weights = Weights::check_only(self.checkpoint.clone(), self.dtype);
            let weights = weights.of_share(share, placements.clone()).sharing(&layers);
            let model = load(&self.config, &weights)?;
            let context_bytes = model.context_bytes();
            // Its layers count as held from now on.
            models.push(model);
            Ok(Weighed { parameters: weights.taken(), added: weights.loaded(), context_bytes })
        }
    }
}
