//! The parts of a checkpoint in the diffusers layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use serde_json::Value;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::json::read_json;
use xdit_core::pipeline::LoadOptions;
use xdit_core::placement::Placement;
use xdit_core::placement::Share;
use xdit_core::run::Loaded;
use xdit_core::weights::Weights;
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
    /// Bytes of its parameters, without layers that are read when they are used.
    pub bytes: u64,
    checkpoint: Checkpoint,
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
        let weights = Weights::check_only(checkpoint.clone(), &options.devices[0], dtype);
        load(&config, &weights)?;
        weights.finish()?;
        Ok(Self { config, checkpoint, dtype, bytes: weights.taken_bytes() })
    }

    /// The weights, from which the model can be loaded onto `device`.
    pub fn weights(&self, device: &Device) -> Weights {
        Weights::new(self.checkpoint.clone(), device, self.dtype)
    }

    /// Loads a share of the model onto `device`. Its layers are cut as `placements` says.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn load_share<M>(
        &self,
        device: &Device,
        share: Share,
        placements: Vec<(&'static str, Placement)>,
        load: impl FnOnce(&C, &Weights) -> Result<M>,
    ) -> Result<Loaded<M>> {
        let weights = self.weights(device).of_share(share, placements);
        let transformer = load(&self.config, &weights)?;
        Ok(Loaded { transformer, parameter_bytes: weights.taken_bytes() })
    }

    /// Bytes of the parameters that [`load_share`](Self::load_share) would load; nothing is read.
    ///
    /// # Errors
    /// If `load` finds the share to be wrong.
    pub fn share_bytes<M>(
        &self,
        device: &Device,
        share: Share,
        placements: Vec<(&'static str, Placement)>,
        load: impl FnOnce(&C, &Weights) -> Result<M>,
    ) -> Result<u64> {
        let weights = Weights::check_only(self.checkpoint.clone(), device, self.dtype);
        let weights = weights.of_share(share, placements);
        load(&self.config, &weights)?;
        Ok(weights.taken_bytes())
    }
}
