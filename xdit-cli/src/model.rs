//! Finds the folder of a model by its path, id or name.

use std::path::PathBuf;

use xdit_core::Result;
use xdit_core::hub::{self, HubOptions};

use crate::checkpoints::built_in;
use crate::progress::Progress;

/// The folder of `model`, which is downloaded or unpacked if necessary.
///
/// # Errors
/// If it cannot be found, downloaded or unpacked.
pub fn locate(
    model: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    progress: &mut Progress,
) -> Result<PathBuf> {
    if model == built_in::NAME {
        return built_in::folder();
    }
    let mut options = HubOptions::from_vars(|name| std::env::var(name).ok());
    if let Some(revision) = revision {
        options.revision = revision.to_owned();
    }
    options.variant = variant.map(str::to_owned);
    hub::resolve(model, &options, &mut |download| progress.download(&download))
}
