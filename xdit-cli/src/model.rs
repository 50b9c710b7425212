//! Finds the folder of a model by its path or id.

use std::path::PathBuf;

use xdit_core::Result;
use xdit_core::hub::{self, HubOptions};

use crate::progress::Progress;

/// The folder of `model`, which is downloaded if necessary.
///
/// # Errors
/// If it cannot be found or downloaded.
pub fn locate(
    model: &str,
    revision: Option<&str>,
    variant: Option<&str>,
    progress: &mut Progress,
) -> Result<PathBuf> {
    let mut options = HubOptions::from_vars(|name| std::env::var(name).ok());
    if let Some(revision) = revision {
        options.revision = revision.to_owned();
    }
    options.variant = variant.map(str::to_owned);
    hub::resolve(model, &options, &mut |download| progress.download(&download))
}
