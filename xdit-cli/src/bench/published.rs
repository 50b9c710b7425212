//! Checkpoints of published size in a few kilobytes: the files have real headers, and holes instead of values.
//!
//! `tests/goldens/make_full_size.py` writes the descriptions in `published/`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Result, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

/// The size of a value in bytes.
const BF16: u64 = 2;

/// The names of the described checkpoints, and their descriptions.
const DESCRIPTIONS: [(&str, &str); 12] = [
    ("dit-xl", include_str!("../../published/dit-xl.json")),
    ("flux-dev", include_str!("../../published/flux-dev.json")),
    ("flux-schnell", include_str!("../../published/flux-schnell.json")),
    ("hunyuan-11", include_str!("../../published/hunyuan-11.json")),
    ("hunyuan-12", include_str!("../../published/hunyuan-12.json")),
    ("latte", include_str!("../../published/latte.json")),
    ("pixart-alpha", include_str!("../../published/pixart-alpha.json")),
    ("pixart-sigma", include_str!("../../published/pixart-sigma.json")),
    ("sd3-medium", include_str!("../../published/sd3-medium.json")),
    ("sd35-large", include_str!("../../published/sd35-large.json")),
    ("sd35-medium", include_str!("../../published/sd35-medium.json")),
    ("sdxl-base", include_str!("../../published/sdxl-base.json")),
];

/// The names of the described checkpoints.
pub fn names() -> impl Iterator<Item = &'static str> {
    DESCRIPTIONS.iter().map(|(name, _)| *name)
}

/// The description of the checkpoint `name`.
///
/// # Panics
/// If there is no such checkpoint.
pub fn described(name: &str) -> Value {
    let (_, description) = DESCRIPTIONS.iter().find(|(known, _)| *known == name).expect("one of `names`");
    serde_json::from_str(description).expect("descriptions are valid JSON")
}

/// Writes the checkpoint `name` to `dir`, without tokenizers. All weights are zeros that take no space on disk.
///
/// # Errors
/// If a file cannot be written.
///
/// # Panics
/// If there is no such checkpoint.
pub fn write(name: &str, dir: &Path) -> Result<()> {
    let json = described(name);
    write_json(&dir.join("model_index.json"), &json["model_index"])?;
    write_json(&dir.join("scheduler/scheduler_config.json"), &json["scheduler"])?;
    for (component, described) in json["components"].as_object().expect("an object") {
        let folder = dir.join(component);
        write_json(&folder.join("config.json"), &described["config"])?;
        write_weights(&folder, described)?;
    }
    Ok(())
}

fn write_weights(folder: &Path, described: &Value) -> Result<()> {
    let tensors = expand(described["tensors"].as_object().expect("an object"));
    let stem = described["stem"].as_str().expect("a string");
    let shards = described["shards"].as_u64().expect("a number");
    let bytes: u64 = tensors.values().map(|shape| size(shape)).sum();
    let (mut done, mut files) = (0, BTreeMap::<u64, Vec<_>>::new());
    for tensor in &tensors {
        files.entry(done * shards / bytes).or_default().push(tensor);
        done += size(tensor.1);
    }
    let mut index = Map::new();
    for (shard, tensors) in &files {
        let file = match shards {
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        write_shard(&folder.join(&file), tensors)?;
        index.extend(tensors.iter().map(|(name, _)| ((*name).clone(), json!(file))));
    }
    if shards > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": index });
        write_json(&folder.join(format!("{stem}.safetensors.index.json")), &index)?;
    }
    Ok(())
}

/// Writes tensors of these names and shapes, whose values are zeros that take no space, to the file `path`.
///
/// # Errors
/// If the file cannot be written.
pub fn write_shard(path: &Path, tensors: &[(&String, &Vec<u64>)]) -> Result<()> {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += size(shape);
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert((*name).clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    file.set_len(8 + header.len() as u64 + end)
}

/// The names and shapes of a description: expands `blocks.{0..2}.x` to `blocks.0.x` and `blocks.1.x`.
pub fn expand(patterns: &Map<String, Value>) -> BTreeMap<String, Vec<u64>> {
    const VALID: &str = "a valid description";
    let mut tensors = BTreeMap::new();
    for (pattern, shape) in patterns {
        let shape: Vec<u64> =
            shape.as_array().expect(VALID).iter().map(|side| side.as_u64().expect(VALID)).collect();
        let Some((before, rest)) = pattern.split_once('{') else {
            tensors.insert(pattern.clone(), shape);
            continue;
        };
        let (range, after) = rest.split_once('}').expect(VALID);
        let (first, end) = range.split_once("..").expect(VALID);
        for index in first.parse::<u64>().expect(VALID)..end.parse().expect(VALID) {
            tensors.insert(format!("{before}{index}{after}"), shape.clone());
        }
    }
    tensors
}

fn size(shape: &[u64]) -> u64 {
    BF16 * shape.iter().product::<u64>()
}

fn write_json(path: &Path, json: &Value) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_vec_pretty(json)?)
}
