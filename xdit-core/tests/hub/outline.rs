//! Tests of models that are looked at without their weights.

use crate::server::{COMMIT, Files, MODEL, Reply, Server, content};
use crate::{options, repo};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::tempdir;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::hub::{HubOptions, outline, resolve};

const WEIGHT_FILE: &str = "transformer/diffusion_pytorch_model.safetensors";

/// A model with a tensor of `rows` rows and as many more names in its header as fill `padding` bytes.
fn files(rows: usize, padding: usize) -> Files {
    let bytes = vec![7; rows * 16];
    let view = TensorView::new(Dtype::F32, vec![rows, 4], &bytes).unwrap();
    let note = [("note".to_owned(), "x".repeat(padding))].into();
    let weights = safetensors::serialize([("weight", view)], Some(note)).unwrap();
    let index =
        br#"{"_class_name": "P", "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "T"]}"#;
    Files::new(&[
        ("model_index.json", index),
        ("tokenizer/spiece.model", b"pieces"),
        ("transformer/config.json", b"{}"),
        (WEIGHT_FILE, &weights),
    ])
}

fn hub(files: Files) -> Server {
    Server::start(move |request| files.answer(request))
}

#[test]
fn of_weights_only_headers_are_read() {
    for (padding, requests) in [(0, 1), (1 << 20, 2)] {
        let (cache, scratch) = (tempdir().unwrap(), tempdir().unwrap());
        let files = files(100_000, padding);
        let whole = files.0[WEIGHT_FILE].clone();
        let sizes: u64 = files.0.values().map(|bytes| bytes.len() as u64).sum();
        let index_bytes = files.0["model_index.json"].len() as u64;
        let hub = hub(files);
        let options = options(cache.path(), &hub);
        let outlined = outline(MODEL, &options, scratch.path(), &mut |_| {}).unwrap();
        assert_eq!(outlined.folder, scratch.path());
        assert_eq!(outlined.missing, (3, sizes - index_bytes));

        let seen = hub.requests();
        let of_weights: Vec<_> = seen.iter().filter(|request| request.path.ends_with(WEIGHT_FILE)).collect();
        assert_eq!(of_weights.len(), requests);
        for request in of_weights {
            let end = request.headers["range"].strip_prefix("bytes=0-").expect("a range from the start");
            assert!(end.parse::<usize>().unwrap() < padding + (256 << 10), "{end}");
        }
        // All names, types and shapes are there; no value is.
        let checkpoint =
            Checkpoint::open(&scratch.path().join("transformer"), "diffusion_pytorch_model", None).unwrap();
        let entry = checkpoint.get("weight").unwrap();
        assert_eq!((&entry.shape[..], entry.dtype), (&[100_000, 4][..], Dtype::F32));
        assert!(entry.bytes.iter().all(|byte| *byte == 0));
        assert_eq!(fs::metadata(scratch.path().join(WEIGHT_FILE)).unwrap().len(), whole.len() as u64);
        for file in ["model_index.json", "tokenizer/spiece.model", "transformer/config.json"] {
            assert!(scratch.path().join(file).is_file(), "{file}");
        }
        // The cache has the small files, but no snapshot that a run would take for whole.
        let snapshot = repo(cache.path()).join("snapshots").join(COMMIT);
        assert!(snapshot.join("transformer/config.json").is_file() && !snapshot.join(WEIGHT_FILE).exists());
        let offline = HubOptions { offline: true, ..options.clone() };
        resolve(MODEL, &offline, &mut |_| {}).unwrap_err();
        // A run downloads the rest, and then nothing is missing.
        let folder = resolve(MODEL, &options, &mut |_| {}).unwrap();
        assert_eq!(fs::read(folder.join(WEIGHT_FILE)).unwrap(), whole);
        let scratch = tempdir().unwrap();
        let outlined = outline(MODEL, &options, scratch.path(), &mut |_| {}).unwrap();
        assert_eq!((outlined.folder, outlined.missing), (folder, (0, 0)));
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

/// What the server answers to a request for weights, by its number, in place of the right answer.
type Answer = Box<dyn Fn(usize, &Files) -> Option<Reply> + Send + Sync>;

/// A server may ignore ranges, drop a connection, or send something else.
#[test]
fn servers_that_know_no_ranges_or_fail() {
    let files = files(100_000, 0);
    let outlined = |answer: Answer| {
        let (cache, scratch, count) = (tempdir().unwrap(), tempdir().unwrap(), AtomicUsize::new(0));
        let files = files.clone();
        let hub = Server::start(move |request| {
            let of_weights = request.path.ends_with(WEIGHT_FILE);
            let attempt = of_weights.then(|| count.fetch_add(1, Ordering::SeqCst));
            attempt.and_then(|attempt| answer(attempt, &files)).unwrap_or_else(|| files.answer(request))
        });
        outline(MODEL, &options(cache.path(), &hub), scratch.path(), &mut |_| {}).map(|outlined| {
            let folder = outlined.folder.join("transformer");
            let checkpoint = Checkpoint::open(&folder, "diffusion_pytorch_model", None);
            checkpoint.map(|checkpoint| checkpoint.get("weight").unwrap().shape.clone())
        })
    };
    let whole = |files: &Files| {
        let request =
            crate::server::Request { method: "GET".to_owned(), path: String::new(), headers: [].into() };
        content(&request, WEIGHT_FILE, &files.0[WEIGHT_FILE])
    };
    let shape = vec![100_000, 4];
    assert_eq!(outlined(Box::new(move |_, files| Some(whole(files)))).unwrap().unwrap(), shape);
    let cut = |attempt, _: &Files| {
        (attempt == 0).then(|| Reply {
            status: 200,
            body: vec![0; 999],
            cut_after: Some(9),
            ..Reply::default()
        })
    };
    assert_eq!(outlined(Box::new(cut)).unwrap().unwrap(), shape);
    let error = outlined(Box::new(|_, _| Some(Reply::status(403)))).unwrap_err().to_string();
    assert!(error.starts_with(&format!("access to `{WEIGHT_FILE}` of `{MODEL}` is refused")), "{error}");
    let range = ("Content-Range", "bytes 9-18/30".to_owned());
    let other = move |_, _: &Files| {
        Some(Reply { status: 206, headers: vec![range.clone()], body: vec![0; 10], cut_after: None })
    };
    let error = outlined(Box::new(other)).unwrap_err().to_string();
    assert!(error.contains("which was not requested"), "{error}");
    // A header that is longer than the file.
    let garbled = |_, _: &Files| Some(Reply { status: 200, body: vec![0x7f; 999], ..Reply::default() });
    let error = outlined(Box::new(garbled)).unwrap().unwrap_err().to_string();
    assert!(error.contains("is not a valid safetensors file"), "{error}");
}
