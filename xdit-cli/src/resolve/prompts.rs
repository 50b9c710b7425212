//! The sources of prompts and of the other texts of a request.

use std::path::Path;

use xdit_core::pipeline::Request;
use xdit_core::{Error, Result, files};

use crate::args::GenerateArgs;
use crate::parameters::Parameters;

/// The most bytes of a file with prompts.
const MAX_BYTES: u64 = 64 << 20;

/// A request with all its texts: those given as options, or those of the picture in `--from`.
///
/// Texts for further text encoders belong to the prompt that they were given with, so a new prompt does not inherit
/// them. The same holds for negative prompts.
///
/// # Errors
/// If there is no prompt, or the file with prompts cannot be read.
pub fn texts(args: &GenerateArgs, stored: Option<&Parameters>) -> Result<Request> {
    let same_prompt = stored.filter(|_| args.prompt.is_empty() && args.prompt_file.is_none());
    let same_negative = stored.map(|p| &p.settings).filter(|_| args.negative_prompt.is_empty());
    let or = |given: &[String], old: Option<&String>| match given {
        [] => old.into_iter().cloned().collect(),
        given => given.to_vec(),
    };
    Ok(Request {
        prompts: prompts(args, stored)?,
        prompts_2: or(&args.prompt_2, same_prompt.and_then(|p| p.prompt_2.as_ref())),
        prompts_3: or(&args.prompt_3, same_prompt.and_then(|p| p.prompt_3.as_ref())),
        negative_prompts: or(
            &args.negative_prompt,
            same_negative.and_then(|settings| settings.negative_prompt.as_ref()),
        ),
        negative_prompts_2: or(
            &args.negative_prompt_2,
            same_negative.and_then(|settings| settings.negative_prompt_2.as_ref()),
        ),
        negative_prompts_3: or(
            &args.negative_prompt_3,
            same_negative.and_then(|settings| settings.negative_prompt_3.as_ref()),
        ),
        ..Request::new("")
    })
}

fn prompts(args: &GenerateArgs, stored: Option<&Parameters>) -> Result<Vec<String>> {
    if let Some(path) = &args.prompt_file {
        return read_prompts(path);
    }
    match stored {
        _ if args.prompt == ["-"] => {
            let bytes = from_standard_input()?;
            match text(&bytes, "standard input")?.trim() {
                "" => Err(Error::usage("standard input contains no prompt").hint(
                    "write it into a pipe, as in `echo \"a small cactus\" | xdit generate --prompt -`",
                )),
                prompt => Ok(vec![prompt.to_owned()]),
            }
        }
        _ if args.prompt.iter().any(|prompt| prompt == "-") => Err(Error::usage(format!(
            "`-` is one of {} prompts, and stands for standard input only alone",
            args.prompt.len()
        ))
        .hint("`--prompt-file -` reads several prompts, one a line")),
        _ if !args.prompt.is_empty() => Ok(args.prompt.clone()),
        Some(parameters) => Ok(vec![parameters.prompt.clone()]),
        None => Err(Error::usage("there is no prompt")
            .hint("describe the picture with `--prompt` or `--prompt-file`")),
    }
}

/// Reads one prompt a line; blank lines are ignored.
fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let is_input = path == Path::new("-");
    let (bytes, name) = match is_input {
        true => (from_standard_input()?, "standard input".to_owned()),
        false => {
            let read = files::read(path, MAX_BYTES);
            (
                read.map_err(|error| error.hint("give a text file with one prompt a line"))?,
                format!("`{}`", path.display()),
            )
        }
    };
    let text = text(&bytes, &name)?;
    let prompts: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() {
        return Err(Error::usage(format!("{name} contains no prompt")).hint("write one prompt a line"));
    }
    Ok(prompts)
}

fn from_standard_input() -> Result<Vec<u8>> {
    files::read_to_end(&mut std::io::stdin(), "standard input", MAX_BYTES)
}

/// The text in `bytes`, which are called `name`.
fn text<'a>(bytes: &'a [u8], name: &str) -> Result<&'a str> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        Error::usage(format!("line {line} of {name} is not UTF-8"))
            .hint("save the file in the encoding UTF-8")
    })?;
    // Editors on Windows mark UTF-8 with a character that is not part of the prompt.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A warning for prompts that are surely one prompt of several words without quotes.
pub fn without_quotes(args: &GenerateArgs) -> Option<String> {
    let is_word = |text: &String| {
        text.chars().any(char::is_alphabetic)
            && !text.contains(|char: char| char.is_whitespace() || char == '_')
    };
    let all_words = args.prompt.len() > 1 && args.prompt.iter().all(is_word);
    all_words.then(|| {
        format!(
            "`--prompt` has {} values of one word each, and each gives a picture of its own: put a prompt of several words in quotes",
            args.prompt.len()
        )
    })
}
