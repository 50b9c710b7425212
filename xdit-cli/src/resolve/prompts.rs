//! Where prompts come from.

use std::path::Path;

use xdit_core::{Error, Result};

use crate::args::GenerateArgs;
use crate::parameters::Parameters;

/// The prompts that were given, or that of the picture to be made again.
///
/// # Errors
/// If there is none, or the file cannot be read.
pub fn prompts(args: &GenerateArgs, stored: Option<&Parameters>) -> Result<Vec<String>> {
    if let Some(path) = &args.prompt_file {
        return read_prompts(path);
    }
    match stored {
        _ if !args.prompt.is_empty() => Ok(args.prompt.clone()),
        Some(parameters) => Ok(vec![parameters.prompt.clone()]),
        None => {
            Err(Error::usage("there is no prompt")
                .hint("say what to draw with `--prompt` or `--prompt-file`"))
        }
    }
}

/// One prompt a line; blank lines separate.
fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| {
        Error::failure(format!("cannot read `{shown}`: {error}"))
            .hint("give a text file with one prompt a line")
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        Error::usage(format!("line {line} of `{shown}` is not UTF-8"))
            .hint("save the file in the encoding UTF-8")
    })?;
    // Editors on Windows mark UTF-8 with a character that belongs to no prompt.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let prompts: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() {
        return Err(Error::usage(format!("`{shown}` holds no prompt")).hint("write one prompt a line"));
    }
    Ok(prompts)
}
