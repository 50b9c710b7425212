//! Finds the folder of a model by its path, id or name.

use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use tempfile::TempDir;
use xdit_core::hub::{self, HubOptions};
use xdit_core::{Error, Result};
use xdit_models::component::TEMPORAL_DECODER;

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
    /// Whether the third text encoder is not needed.
    pub no_text_encoder_3: bool,
    /// Whether the temporal decoder is needed in place of the autoencoder in `vae`.
    pub temporal_decoder: bool,
    /// The folder for downloads, in place of the cache of `huggingface_hub`.
    pub download_dir: Option<&'a Path>,
}

impl<'a> From<&'a ModelArgs> for Place<'a> {
    /// The place that the options name, of all components.
    fn from(files: &'a ModelArgs) -> Self {
        Self {
            revision: files.revision.as_deref(),
            variant: files.variant.as_deref(),
            no_text_encoder_3: false,
            temporal_decoder: files.temporal_decoder.unwrap_or_default(),
            download_dir: files.download_dir.as_deref(),
        }
    }
}

/// The folder of `model`, which is downloaded or unpacked if necessary.
///
/// # Errors
/// If it cannot be found, downloaded or unpacked.
pub fn locate(model: &str, place: Place<'_>, progress: &mut Progress) -> Result<PathBuf> {
    check_name(model)?;
    match model {
        built_in::NAME => built_in(place),
        _ => hub::resolve(model, &place.options(), &mut |download| progress.download(&download)),
    }
}

/// A model whose weights are not needed.
pub struct Outlined {
    /// A folder with its configs and tokenizers, and at least the headers of its weight files.
    pub folder: PathBuf,
    /// The number and the size in bytes of the files that a run would download.
    pub missing: (usize, u64),
    /// The folder, unless it is that of the model.
    _scratch: TempDir,
}

impl Outlined {
    /// A sentence on the download that a run of `model` would begin with, if there is one.
    pub fn download(&self, model: &str) -> Option<String> {
        let (files, bytes) = self.missing;
        let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
        (bytes > 0).then(|| format!("`{model}` is not downloaded yet: {} in {files}", HumanBytes(bytes)))
    }
}

/// `model` without its weights: what is missing of a model on the hub is not downloaded, except for small files.
///
/// # Errors
/// As [`locate`].
pub fn outline(model: &str, place: Place<'_>, progress: &mut Progress) -> Result<Outlined> {
    check_name(model)?;
    let scratch = tempfile::tempdir()
        .map_err(|error| Error::failure(format!("cannot create a temporary folder: {error}")))?;
    let (folder, missing) = match model {
        built_in::NAME => (built_in(place)?, (0, 0)),
        _ => {
            let progress = &mut |download: hub::Download<'_>| progress.download(&download);
            let hub::Outline { folder, missing } =
                hub::outline(model, &place.options(), scratch.path(), progress)?;
            (folder, missing)
        }
    };
    Ok(Outlined { folder, missing, _scratch: scratch })
}

/// Checks that `model` is not the name of the built-in model in another spelling.
///
/// # Errors
/// If it is, and no folder has that name.
fn check_name(model: &str) -> Result<()> {
    let bare = |text: &str| text.replace(['-', '_', ' '], "").to_ascii_lowercase();
    if model == built_in::NAME || bare(model) != bare(built_in::NAME) || Path::new(model).exists() {
        return Ok(());
    }
    Err(Error::usage(format!("there is no folder `{model}`"))
        .hint(format!("the model inside this program is called `{}`", built_in::NAME)))
}

fn built_in(place: Place<'_>) -> Result<PathBuf> {
    let folder = built_in::folder()?;
    hub::check_folder(&folder, place.variant).map(|()| folder)
}

impl Place<'_> {
    /// The options for the hub, as the environment and this place set them.
    fn options(self) -> HubOptions {
        let Self { revision, variant, no_text_encoder_3, temporal_decoder, download_dir } = self;
        let mut options = HubOptions::from_vars(|name| std::env::var(name).ok());
        if let Some(revision) = revision {
            options.revision = revision.to_owned();
        }
        if let Some(folder) = download_dir {
            options.cache_dir = folder.to_owned();
        }
        options.variant = variant.map(str::to_owned);
        if no_text_encoder_3 {
            options.without = ["text_encoder_3", "tokenizer_3"].map(str::to_owned).to_vec();
        }
        if temporal_decoder {
            let (folder, class) = TEMPORAL_DECODER;
            options.without.push("vae".to_owned());
            options.with.push((folder.to_owned(), class.to_owned()));
        }
        options
    }
}
