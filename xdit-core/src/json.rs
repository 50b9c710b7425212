//! Placeholder until the scheduler branch lands: reads a JSON file.
use crate::error::{Error, Result};
use std::path::Path;
/// Reads `path`.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::failure(format!("cannot read `{}`: {e}", path.display())))?;
    serde_json::from_str(&text.replace("-Infinity", "-1e300"))
        .map_err(|e| Error::failure(format!("`{}` is not valid JSON: {e}", path.display())))
}
