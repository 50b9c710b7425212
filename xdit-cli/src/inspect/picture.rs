//! `xdit inspect PICTURE`: the parameters in a picture.

use std::path::Path;

use serde_json::Value;
use xdit_core::error::printable;
use xdit_core::{Error, Result};

use crate::output::read_parameters;
use crate::parameters::Parameters;

/// The parameters in the picture `path`, for people or, with `json`, for programs.
///
/// # Errors
/// If it has none, or cannot be read.
pub fn inspect(path: &Path, json: bool) -> Result<String> {
    let parameters = read_parameters(path)?;
    if json {
        let text = serde_json::to_string_pretty(&parameters);
        let text = text.map_err(|error| Error::failure(format!("cannot write the report: {error}")))?;
        return Ok(format!("{text}\n"));
    }
    Ok(table(path, &parameters))
}

/// One line for each parameter that has a value, named like its option, and a command that makes the picture again.
fn table(path: &Path, parameters: &Parameters) -> String {
    let Ok(Value::Object(all)) = serde_json::to_value(parameters) else { return String::new() };
    let shown = |value: &Value| match value {
        Value::Null | Value::Bool(false) => None,
        Value::String(text) => Some(printable(text)),
        Value::Array(values) => Some(values.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")),
        value => Some(value.to_string()),
    };
    let lines: Vec<(String, String)> =
        all.iter().filter_map(|(name, value)| Some((name.replace('_', "-"), shown(value)?))).collect();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: String = lines.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect();
    format!("{lines}\nagain: xdit generate --from {}\n", quoted(&path.to_string_lossy()))
}

/// `text` as a word of a command line: in quotes if it has characters with a meaning there.
fn quoted(text: &str) -> String {
    let is_plain = |char: char| char.is_alphanumeric() || "/._-+:,@%=~".contains(char);
    match text {
        _ if text.chars().all(is_plain) && !text.is_empty() => text.to_owned(),
        // Of the shells' forms of quotes, only this one can hold control characters.
        _ if text.chars().any(char::is_control) => {
            let escaped = |char: char| match char {
                '\'' | '\\' => format!("\\{char}"),
                _ if char.is_control() => format!("\\u{:04x}", u32::from(char)),
                _ => char.to_string(),
            };
            format!("$'{}'", text.chars().map(escaped).collect::<String>())
        }
        _ => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
