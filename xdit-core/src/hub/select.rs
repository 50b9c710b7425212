//! The selection of files that a pipeline needs: a pure function of a repository's listing.

use crate::{Error, Result};
use serde_json::Value;

/// The file that lists the components of a pipeline.
pub const MODEL_INDEX: &str = "model_index.json";

/// The contents of `model_index.json`: the components of a pipeline, one folder each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIndex {
    components: Vec<Component>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Component {
    /// The folder, such as `text_encoder`.
    name: String,
    /// The Python class that diffusers loads the component with, such as `T5EncoderModel`.
    class: String,
}

impl ModelIndex {
    /// Parses the text of a `model_index.json`; `model` names its repository in errors.
    ///
    /// # Errors
    /// If the text is not a JSON object, or lists no component.
    pub fn parse(model: &str, text: &str) -> Result<Self> {
        let invalid = |why: String| {
            Error::failure(format!("the `{MODEL_INDEX}` of `{model}` is not usable: {why}"))
                .hint("choose a model in the diffusers layout")
        };
        let json: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let components: Vec<Component> = json.iter().filter_map(component).collect();
        if components.is_empty() {
            return Err(invalid("it names no component".to_owned()));
        }
        Ok(Self { components })
    }

    /// The same without the components in `without`, and with those of these names and classes.
    #[must_use]
    pub fn changed(mut self, without: &[String], with: &[(String, String)]) -> Self {
        self.components.retain(|component| !without.contains(&component.name));
        let new = with.iter().map(|(name, class)| Component { name: name.clone(), class: class.clone() });
        self.components.extend(new);
        self
    }
}

/// Parses one entry. A component has the form `"folder": ["library", "Class"]`; `[null, null]` stands for an
/// optional component that this checkpoint does not have.
fn component((name, entry): (&String, &Value)) -> Option<Component> {
    let class = entry.as_array()?.get(1)?.as_str()?;
    // The safety checker only judges finished pictures.
    (name != "safety_checker").then(|| Component { name: name.clone(), class: class.to_owned() })
}

impl Component {
    /// Whether the component has weights; the others consist of text files alone.
    fn has_weights(&self) -> bool {
        const TEXT_ONLY: [&str; 6] =
            ["Scheduler", "Tokenizer", "TokenizerFast", "Processor", "FeatureExtractor", "TokenizersBackend"];
        !TEXT_ONLY.iter().any(|suffix| self.class.ends_with(suffix))
    }
}

/// The files of `listing` that the pipeline needs, small ones first.
///
/// A component with weights needs its `config.json` and one set of safetensors files: those of the `variant` if the
/// component has it, and the default ones otherwise, as diffusers chooses. Other components (tokenizers, the
/// scheduler) need their text files. Single-file checkpoints in the root, other formats, images and README files
/// are left out.
///
/// Because all weights come after all small files, an interrupted download always lacks weights. This function can
/// therefore also test whether a cached snapshot is complete.
///
/// # Errors
/// If a component lacks its files, a set of shard files has gaps or no index, or no component has the `variant`.
///
/// # Source
/// `variant_compatible_siblings` and `DiffusionPipeline.download` of diffusers.
pub fn select(
    model: &str,
    index: &ModelIndex,
    listing: &[String],
    variant: Option<&str>,
) -> Result<Vec<String>> {
    let mut small = vec![MODEL_INDEX.to_owned()];
    let mut weights = Vec::new();
    let mut variant_found = variant.is_none();

    for component in &index.components {
        let folder = &component.name;
        let inside: Vec<&str> = listing
            .iter()
            .filter_map(|path| path.strip_prefix(folder.as_str())?.strip_prefix('/'))
            .filter(|name| !name.contains('/'))
            .collect();
        let path = |name: &str| format!("{folder}/{name}");
        // Of some components, only the text files are needed.
        if !inside.iter().any(|name| component.has_weights() || is_text(name)) {
            return Err(Error::failure(format!("`{model}` has no files for its component `{folder}`"))
                .hint("choose a repository in the full diffusers layout"));
        }
        if component.has_weights() {
            let set = WeightSet::choose(model, folder, &inside, variant)?;
            variant_found |= set.variant.is_some();
            small.extend(inside.iter().filter(|&&name| name == "config.json").map(|name| path(name)));
            small.extend(set.index.map(path));
            weights.extend(set.files.into_iter().map(path));
        } else {
            small.extend(inside.iter().filter(|name| is_text(name)).map(|name| path(name)));
        }
    }
    if let (false, Some(variant)) = (variant_found, variant) {
        return Err(no_variant(model, variant));
    }
    small.extend(weights);
    Ok(small)
}

/// Checks that some component in `listing`, the files of a folder, has weights of the `variant`.
///
/// # Errors
/// If none has: the plain weights would be taken without a word.
pub fn check_variant(model: &str, index: &ModelIndex, listing: &[String], variant: &str) -> Result<()> {
    let is_of_variant = |path: &String| {
        let Some((folder, name)) = path.split_once('/') else { return false };
        index.components.iter().any(|component| component.name == folder)
            && Weight::parse(name).is_some_and(|weight| weight.variant == Some(variant))
    };
    if listing.iter().any(is_of_variant) { Ok(()) } else { Err(no_variant(model, variant)) }
}

fn no_variant(model: &str, variant: &str) -> Error {
    Error::usage(format!("`{model}` has no weights of the variant `{variant}`"))
        .hint("omit the variant to use the default weights")
}

/// Vocabularies, merges, sentencepiece models, chat templates and configs.
fn is_text(name: &str) -> bool {
    [".json", ".txt", ".model", ".jinja"].iter().any(|suffix| name.ends_with(suffix))
}

/// The weight files of one component: a single file, or shards with their index.
struct WeightSet<'a> {
    variant: Option<&'a str>,
    files: Vec<&'a str>,
    index: Option<&'a str>,
}

impl<'a> WeightSet<'a> {
    fn choose(model: &str, folder: &str, names: &[&'a str], variant: Option<&str>) -> Result<Self> {
        let weights: Vec<Weight<'a>> = names.iter().filter_map(|name| Weight::parse(name)).collect();
        let wanted = variant.filter(|&v| weights.iter().any(|w| w.variant == Some(v)));
        let of_variant: Vec<&Weight<'a>> = weights.iter().filter(|w| w.variant == wanted).collect();

        let Some(first) = of_variant.first() else {
            let error =
                Error::failure(format!("the component `{folder}` of `{model}` has no safetensors weights"));
            return Err(match weights.iter().find_map(|w| w.variant) {
                Some(other) => error.hint(format!("ask for the variant `{other}`, which has them")),
                None => error.hint(
                    "save the model again with diffusers to convert it: other weight formats are not read",
                ),
            });
        };
        let found = first.variant;
        // As in diffusers, an index comes before a whole file beside it.
        let index = names.iter().copied().find(|name| index_variant(name) == Some(found));
        let whole = of_variant.iter().find(|w| w.shard.is_none());
        if let (Some(whole), None) = (whole, index) {
            return Ok(Self { variant: found, files: vec![whole.name], index: None });
        }
        // At least one: an index without shards lacks the first.
        let count = of_variant.iter().filter_map(|w| w.shard).map(|(_, of)| of).max().unwrap_or(1);
        let mut files = Vec::new();
        for number in 1..=count {
            match of_variant.iter().find(|w| w.shard == Some((number, count))) {
                Some(shard) => files.push(shard.name),
                None => {
                    return Err(Error::failure(format!(
                        "shard {number} of {count} of the component `{folder}` of `{model}` is missing"
                    ))
                    .hint("download the model again"));
                }
            }
        }
        if index.is_none() {
            let what = format!("the shard index of the component `{folder}` of `{model}` is missing");
            return Err(Error::failure(what).hint("download the model again"));
        }
        Ok(Self { variant: found, files, index })
    }
}

/// The parts of a weight file's name, such as `model.fp16-00001-of-00002.safetensors`.
struct Weight<'a> {
    name: &'a str,
    variant: Option<&'a str>,
    /// The shard's number, counted from one, and the number of shards.
    shard: Option<(u32, u32)>,
}

impl<'a> Weight<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let rest = without_stem(name.strip_suffix(".safetensors")?)?;
        // diffusers writes the variant before the shard number; its first sharded checkpoints have it after the
        // number.
        let (before, shard, after) = match rest.find("-of-") {
            None => (rest, None, ""),
            Some(of) => {
                let start = of.checked_sub(6)?;
                let number = rest.get(start..of)?.strip_prefix('-')?.parse().ok()?;
                let count = rest.get(of + 4..of + 9)?.parse().ok()?;
                (rest.get(..start)?, Some((number, count)), rest.get(of + 9..)?)
            }
        };
        let variant = match (before, after) {
            ("", "") => None,
            (word, "") | ("", word) => Some(word.strip_prefix('.')?),
            _ => return None,
        };
        Some(Self { name, variant, shard })
    }
}

/// The variant of a shard index: `model.safetensors.index.fp16.json`, or, in older checkpoints,
/// `model.safetensors.fp16.index.json`.
fn index_variant(name: &str) -> Option<Option<&str>> {
    let rest = without_stem(name.strip_suffix(".json")?)?.strip_prefix(".safetensors")?;
    match rest.strip_prefix(".index") {
        Some("") => Some(None),
        Some(word) => Some(Some(word.strip_prefix('.')?)),
        None => Some(Some(rest.strip_suffix(".index")?.strip_prefix('.')?)),
    }
}

/// The rest of a weight file's name after the stem that diffusers and transformers use; other names are not
/// weights.
fn without_stem(name: &str) -> Option<&str> {
    ["diffusion_pytorch_model", "model"].iter().find_map(|stem| name.strip_prefix(stem))
}
