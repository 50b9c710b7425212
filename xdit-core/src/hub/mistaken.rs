//! What people give as a model that is none: the error says what it is, and what to give instead.

use super::select::MODEL_INDEX;
use super::{is_hub_id, is_revision};
use crate::{Error, files};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

const BOTH: &str = "give a folder in the diffusers layout, or an id on the hub like `owner/name`";
/// The most bytes of the header of a safetensors file, as in the format's own reader.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The error for a file given as a model.
pub(super) fn file(path: &Path) -> Error {
    let shown = path.display();
    let bytes = match files::open(path) {
        Ok((file, _)) => {
            let mut bytes = Vec::new();
            // An unreadable file is described by its name.
            let _ = file.take(512).read_to_end(&mut bytes);
            bytes
        }
        Err(error) => return error,
    };
    if files::is_lfs_pointer(&bytes) {
        return files::lfs_pointer(path);
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (what, hint) = match extension.as_str() {
        "safetensors" if is_lora(path) => (
            "a LoRA, an addition to a model",
            "give the folder of a whole model; merge the LoRA into it with diffusers' `fuse_lora` and `save_pretrained`",
        ),
        "safetensors" => (
            "a single file of weights",
            "give a folder in the diffusers layout: diffusers' `from_single_file` and `save_pretrained` convert the file",
        ),
        "ckpt" | "pt" | "pth" | "bin" => (
            "a pickled file of weights",
            "give a folder in the diffusers layout with safetensors files; pickled files can run any code and are not read",
        ),
        "gguf" => {
            ("a GGUF file of quantised weights", "give the original model, a folder in the diffusers layout")
        }
        "png" | "jpg" | "jpeg" | "webp" | "gif" | "mp4" => (
            "a picture or a clip",
            "add `--from` to generate it again, or look at its parameters with `xdit inspect`",
        ),
        "json" => ("a JSON file", "give the folder that contains `model_index.json`"),
        _ => ("a file, not a model folder", BOTH),
    };
    Error::usage(format!("`{shown}` is {what}")).hint(hint)
}

/// Whether the tensors of a safetensors file are those of a LoRA.
fn is_lora(path: &Path) -> bool {
    let names = || {
        let (mut file, _) = files::open(path).ok()?;
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let header = file.take(u64::from_le_bytes(length).min(MAX_HEADER_BYTES));
        serde_json::from_reader::<_, serde_json::Map<_, _>>(std::io::BufReader::new(header)).ok()
    };
    let is_of_lora = |name: &String| ["lora", "lokr_", "hada_"].iter().any(|part| name.contains(part));
    names().is_some_and(|names| names.keys().any(is_of_lora))
}

/// The error for a folder without `model_index.json`.
pub(super) fn folder(folder: &Path) -> Error {
    let shown = folder.display();
    let has = |name: &str| folder.join(name).exists();
    let mut inside: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    inside.sort();
    let missing = Error::usage(format!("the folder `{shown}` has no `{MODEL_INDEX}`"));
    if inside.is_empty() {
        return Error::usage(format!("the folder `{shown}` is empty")).hint(
            "give the folder that contains `model_index.json`; a hub id is used only if no folder has that name",
        );
    }
    // The folder of a repository in the cache of the hub, or one above the model.
    let snapshots = fs::read_dir(folder.join("snapshots")).into_iter().flatten();
    let snapshots = snapshots.filter_map(|entry| Some(entry.ok()?.path()));
    if let Some(model) = inside.iter().cloned().chain(snapshots).find(|path| path.join(MODEL_INDEX).exists())
    {
        return missing.hint(format!("give `{}`, which has one", model.display()));
    }
    if let Some(parent) =
        folder.parent().filter(|parent| has("config.json") && parent.join(MODEL_INDEX).exists())
    {
        return missing.hint(format!(
            "it is a component of the model `{}`: give that folder",
            if parent.as_os_str().is_empty() { Path::new(".") } else { parent }.display()
        ));
    }
    let is = |suffix: &str| inside.iter().any(|path| path.to_string_lossy().ends_with(suffix));
    let single = inside.iter().find(|path| path.extension().is_some_and(|found| found == "safetensors"));
    missing.hint(match single {
        Some(file) if is_lora(file) => {
            "it contains a LoRA, an addition to a model: give the folder of a whole model".to_owned()
        }
        _ if is(".gguf") => "quantised GGUF files are not read: give the original model in the diffusers layout".to_owned(),
        Some(_) if !has("config.json") => {
            "a single file of weights must be converted to the diffusers layout: `from_single_file` and `save_pretrained`"
                .to_owned()
        }
        _ if is(".ckpt") || is(".bin") => {
            "pickled weights are not read: give a model in the diffusers layout with safetensors files".to_owned()
        }
        _ => "give the folder that contains `model_index.json`; a hub id is used only if no folder has that name"
            .to_owned(),
    })
}

/// The error for a text that is neither a folder nor an id.
pub(super) fn name(model: &str) -> Error {
    let neither = Error::usage(format!("`{model}` is neither a folder nor a model id"));
    let address = ["https://", "http://", "hf://", "hf.co/", "huggingface.co/"]
        .iter()
        .any(|start| model.starts_with(start));
    if address {
        let rest = model.split_once("://").map_or(model, |(_, rest)| rest);
        let rest = ["huggingface.co/", "www.huggingface.co/", "hf.co/"]
            .iter()
            .find_map(|host| rest.strip_prefix(host))
            .unwrap_or(rest);
        let parts: Vec<&str> = rest.split(['/', '?', '#']).collect();
        let id = parts.iter().take(2).copied().collect::<Vec<_>>().join("/");
        let error = Error::usage(format!("`{}` is an address, not a model id", without_password(model)));
        return match (is_hub_id(&id), &parts[..]) {
            (true, [_, _, "tree" | "blob" | "resolve", revision, ..])
                if *revision != "main" && is_revision(revision) =>
            {
                error.hint(format!("give `{id}` with `--revision {revision}`"))
            }
            (true, _) => error.hint(format!("give `{id}`")),
            _ => error.hint(BOTH),
        };
    }
    if let Some((id, revision)) = model.rsplit_once(['@', ':'])
        && is_hub_id(id)
        && is_revision(revision)
    {
        return Error::usage(format!("`{model}` is not a model id"))
            .hint(format!("give `{id}` with `--revision {revision}`"));
    }
    let parts = model.split('/').count();
    if model.starts_with(['/', '.', '~']) || model.contains('\\') || model.ends_with('/') || parts > 2 {
        let hint = match model.strip_prefix("~/") {
            Some(_) => "the shell did not replace `~`, since it is in quotes: write the path in full",
            None => BOTH,
        };
        return Error::usage(format!("there is no folder `{model}`")).hint(hint);
    }
    if parts == 1 && is_hub_id(&format!("owner/{model}")) {
        return Error::usage(format!("there is no folder `{model}`")).hint(format!(
            "give the path of a folder in the diffusers layout, or an id on the hub like `owner/{model}`"
        ));
    }
    neither.hint(BOTH)
}

/// An address without the user's name and password.
pub(super) fn without_password(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let host = &url[start..start + url[start..].find(['/', '?', '#']).unwrap_or(url.len() - start)];
    match host.rfind('@') {
        Some(at) => format!("{}…{}", &url[..start], &url[start + at..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_ids() {
        let hint = |model| name(model).to_string().split_once("hint: ").unwrap().1.to_owned();
        assert_eq!(hint("https://huggingface.co/o/n"), "give `o/n`");
        assert_eq!(hint("hf.co/o/n?x=1"), "give `o/n`");
        assert_eq!(hint("https://huggingface.co/o/n/tree/v1.0"), "give `o/n` with `--revision v1.0`");
        assert_eq!(hint("o/n@refs/pr/1"), "give `o/n` with `--revision refs/pr/1`");
        assert_eq!(
            hint("pixart"),
            "give the path of a folder in the diffusers layout, or an id on the hub like `owner/pixart`"
        );
        assert_eq!(hint("./pixart"), BOTH);
        assert!(hint("~/pixart").starts_with("the shell did not replace `~`"));
        assert_eq!(name("/models/pixart").message(), "there is no folder `/models/pixart`");
        let secret = name("https://me:secret@example.org/x").to_string();
        assert!(secret.starts_with("`https://…@example.org/x` is an address"), "{secret}");
    }
}
