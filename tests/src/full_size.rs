//! Checkpoints of published size in a few kilobytes: the files have real headers, and holes instead of values.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// The size of a value in bytes.
const BF16: u64 = 2;

/// Writes the checkpoint `name` of `goldens/full-size` to `dir`. All weights are zeros that take no space on disk. The
/// tokenizers are the small ones of the golden checkpoint of the same name.
pub fn write(name: &str, dir: &Path) {
    let json = described(name);
    write_json(&dir.join("model_index.json"), &json["model_index"]);
    write_json(&dir.join("scheduler/scheduler_config.json"), &json["scheduler"]);
    for tokenizer in
        json["model_index"].as_object().unwrap().keys().filter(|name| name.starts_with("tokenizer"))
    {
        copy_folder(&goldens().join(name).join(tokenizer), &dir.join(tokenizer));
    }
    for (component, described) in json["components"].as_object().unwrap() {
        let folder = dir.join(component);
        write_json(&folder.join("config.json"), &described["config"]);
        write_weights(&folder, described);
    }
}

/// Writes the tensors of one component whose names satisfy `keep` to the file `path`.
pub fn write_component(name: &str, component: &str, path: &Path, keep: impl Fn(&str) -> bool) {
    let json = described(name);
    let tensors = expand(json["components"][component]["tensors"].as_object().unwrap());
    write_shard(path, &tensors.iter().filter(|(name, _)| keep(name)).collect::<Vec<_>>());
}

fn described(name: &str) -> Value {
    let path = goldens().join("full-size").join(format!("{name}.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The folder of the golden data. It is repeated here because the tests of the command line include this file, too.
fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn write_weights(folder: &Path, described: &Value) {
    let tensors = expand(described["tensors"].as_object().unwrap());
    let stem = described["stem"].as_str().unwrap();
    let shards = described["shards"].as_u64().unwrap();
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
        write_shard(&folder.join(&file), tensors);
        index.extend(tensors.iter().map(|(name, _)| ((*name).clone(), json!(file))));
    }
    if shards > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": index });
        write_json(&folder.join(format!("{stem}.safetensors.index.json")), &index);
    }
}

fn write_shard(path: &Path, tensors: &[(&String, &Vec<u64>)]) {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += size(shape);
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert((*name).clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

/// Expands `blocks.{0..2}.x` to `blocks.0.x` and `blocks.1.x`.
fn expand(patterns: &Map<String, Value>) -> BTreeMap<String, Vec<u64>> {
    let mut tensors = BTreeMap::new();
    for (pattern, shape) in patterns {
        let shape: Vec<u64> = shape.as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).collect();
        let Some((before, rest)) = pattern.split_once('{') else {
            tensors.insert(pattern.clone(), shape);
            continue;
        };
        let (range, after) = rest.split_once('}').unwrap();
        let (first, end) = range.split_once("..").unwrap();
        for index in first.parse::<u64>().unwrap()..end.parse().unwrap() {
            tensors.insert(format!("{before}{index}{after}"), shape.clone());
        }
    }
    tensors
}

fn size(shape: &[u64]) -> u64 {
    BF16 * shape.iter().product::<u64>()
}

fn write_json(path: &Path, json: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_vec_pretty(json).unwrap()).unwrap();
}
