//! Finds the folder of a model by its path, id or name.

use std::path::{Path, PathBuf};

use xdit_core::Result;
use xdit_core::hub::{self, HubOptions};

use crate::args::ModelArgs;
use crate::checkpoints::built_in;
use crate::progress::Progress;

/// Where to find a model on the hub, and which of its weights.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The branch, tag or commit.
    pub revision: Option<&'a str>,
    /// The variant of the weight files.
    pub variant: Option<&'a str>,
    /// Components that are not needed.
    pub without: &'a [&'a str],
    /// The folder for downloads, in place of the cache of `huggingface_hub`.
    pub download_dir: Option<&'a Path>,
}

impl<'a> From<&'a ModelArgs> for Place<'a> {
    /// The place that the options name, of all components.
    fn from(files: &'a ModelArgs) -> Self {
        Self {
            revision: files.revision.as_deref(),
            variant: files.variant.as_deref(),
            without: &[],
            download_dir: files.download_dir.as_deref(),
        }
    }
}

/// The folder of `model`, which is downloaded or unpacked if necessary.
///
/// # Errors
/// If it cannot be found, downloaded or unpacked.
pub fn locate(model: &str, place: Place<'_>, progress: &mut Progress) -> Result<PathBuf> {
    let Place { revision, variant, without, download_dir } = place;
    if model == built_in::NAME {
        let folder = built_in::folder()?;
        return hub::check_folder(&folder, variant).map(|()| folder);
    }
    let mut options = HubOptions::from_vars(|name| std::env::var(name).ok());
    if let Some(revision) = revision {
        options.revision = revision.to_owned();
    }
    if let Some(folder) = download_dir {
        options.cache_dir = folder.to_owned();
    }
    options.variant = variant.map(str::to_owned);
    options.without = without.iter().map(|&name| name.to_owned()).collect();
    hub::resolve(model, &options, &mut |download| progress.download(&download))
}
