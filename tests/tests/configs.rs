//! Configs with one wrong option: a checkpoint that cannot be run is reported as an error, never by a panic or an
//! abort.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use burn::tensor::DType;
use serde_json::{Value, json};
use xdit_core::Result;
use xdit_core::json::read_json;
use xdit_core::pipeline::{LoadOptions, Request};
use xdit_tests::{changed, device, goldens};

/// One checkpoint of each family, and other checkpoints whose option values are tried in it, too.
const FAMILIES: [(&str, &[&str]); 6] = [
    ("pixart-alpha-256", &["pixart-alpha-512", "pixart-alpha-1024", "pixart-sigma-512", "pixart-sigma-2k"]),
    ("sd3-medium", &["sd35-medium", "sd35-large"]),
    ("flux-dev", &["flux-schnell"]),
    ("dit-256", &["dit-512"]),
    ("hunyuan-11", &["hunyuan-12"]),
    ("latte-temporal", &["latte"]),
];

/// The values that an option is set to; `None` removes it.
fn values() -> Vec<Option<Value>> {
    let (large, huge) = (1_u64 << 31, 1_u64 << 62);
    let values =
        [json!(0), json!(-1), json!(large), json!(huge), json!(null), json!("a string"), json!(1e300)];
    values.into_iter().map(Some).chain([None]).collect()
}

/// The JSON configs of a checkpoint, relative to its folder.
fn configs(checkpoint: &Path) -> Vec<PathBuf> {
    let mut configs = vec![PathBuf::from("model_index.json")];
    for component in fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path()) {
        let names = ["config.json", "scheduler_config.json", "tokenizer_config.json"];
        let files = names.map(|name| component.join(name)).into_iter().filter(|path| path.is_file());
        configs.extend(files.map(|path| path.strip_prefix(checkpoint).unwrap().to_owned()));
    }
    configs.sort();
    configs
}

/// Every change of one option, or of the first element of a list, in every config of a family: the config, the place
/// in it as a JSON pointer, and the value.
fn mutations(checkpoint: &str, relatives: &[&str]) -> Vec<(PathBuf, String, Option<Value>)> {
    let mut mutations = Vec::new();
    for config in configs(&goldens().join(checkpoint)) {
        let paths = [&[checkpoint], relatives].concat();
        let paths = paths.iter().map(|name| goldens().join(name).join(&config)).filter(|path| path.is_file());
        let mut places = BTreeSet::new();
        for (name, value) in paths.flat_map(|path| read_json(path).unwrap().as_object().unwrap().clone()) {
            if value.as_array().is_some_and(|list| !list.is_empty()) {
                places.insert(format!("/{name}/0"));
            }
            places.insert(format!("/{name}"));
        }
        for place in places {
            mutations.extend(values().into_iter().map(|value| (config.clone(), place.clone(), value)));
        }
    }
    mutations
}

/// `config` with the value at `place` replaced or removed.
fn mutated(mut config: Value, place: &str, value: Option<Value>) -> Option<Value> {
    let (parent, name) = place.rsplit_once('/').expect("a pointer");
    match config.pointer_mut(parent)? {
        Value::Object(map) => match value {
            Some(value) => drop(map.insert(name.to_owned(), value)),
            None => drop(map.remove(name)?),
        },
        Value::Array(list) => match value {
            Some(value) => *list.first_mut()? = value,
            None => drop(list.remove(0)),
        },
        _ => return None,
    }
    Some(config)
}

/// Opens a checkpoint and, if that succeeds, requests a plan.
fn open(checkpoint: &Path) -> Result<()> {
    let options = LoadOptions::new(device(), DType::F32);
    let pipeline = xdit_models::open(checkpoint, &options)?;
    let resolved = pipeline.resolve(&Request::new(""))?;
    pipeline.costs(&resolved).map(drop)
}

#[test]
fn one_wrong_option_is_an_error() {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let (tried, opened) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = |worker: usize| {
        let mut offences = Vec::new();
        for (checkpoint, relatives) in FAMILIES {
            let copy = changed(checkpoint, "model_index.json", |_| {});
            open(copy.path()).unwrap_or_else(|error| panic!("{checkpoint}: {error}"));
            for (config, place, value) in
                mutations(checkpoint, relatives).into_iter().skip(worker).step_by(workers)
            {
                let path = copy.path().join(&config);
                let (sound, json) = (fs::read(&path).unwrap(), read_json(&path).unwrap());
                let Some(json) = mutated(json, &place, value.clone()) else {
                    continue;
                };
                fs::write(&path, json.to_string()).unwrap();
                match catch_unwind(AssertUnwindSafe(|| open(copy.path()))) {
                    Ok(Ok(())) => drop(opened.fetch_add(1, Ordering::Relaxed)),
                    Ok(Err(_)) => {}
                    Err(_) => offences.push(format!("{checkpoint}/{}, {place}: {value:?}", config.display())),
                }
                tried.fetch_add(1, Ordering::Relaxed);
                fs::write(&path, sound).unwrap();
            }
        }
        offences
    };
    let offences: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|worker| {
                let work = &work;
                scope.spawn(move || work(worker))
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let (tried, opened) = (tried.into_inner(), opened.into_inner());
    println!("{tried} changes, of which {opened} leave a checkpoint that can be planned");
    assert!(tried > 3000 && opened > tried / 10, "{opened} of {tried}: the changes do not reach the options");
    assert!(offences.is_empty(), "these panic:\n  {}", offences.join("\n  "));
}
