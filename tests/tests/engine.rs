//! An engine with a checkpoint: consecutive requests, each with its own result.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::time::Instant;

use burn::tensor::DType;
use xdit_core::ErrorKind;
use xdit_core::pipeline::{Engine, Event, Keep, LoadOptions, Observer, Phase, Picture, Request, Running};
use xdit_tests::{device, goldens};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn request(prompt: &str, side: usize, steps: usize) -> Request {
    Request {
        height: Some(side),
        width: Some(side),
        num_inference_steps: Some(steps),
        use_resolution_binning: false,
        ..Request::new(prompt)
    }
}

/// Counts the components that are loaded.
#[derive(Default)]
struct Loads(Vec<&'static str>);

impl Observer for Loads {
    fn begin(&mut self, phase: Phase, _: Instant) {
        if let Phase::Load(component) = phase {
            self.0.push(component);
        }
    }
}

fn pictures(running: Running) -> xdit_core::Result<Vec<Picture>> {
    let pictures = running.filter_map(|event| match event {
        Ok(Event::Completed(completed)) => completed.frames.into_iter().next().map(Ok),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    });
    pictures.collect()
}

/// The number of read calls of this process, including those of this function.
fn reads() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

/// The only test of this file, because the reads of others would be counted, too.
#[test]
fn the_second_request_reads_no_file() {
    let checkpoint = tempfile::tempdir().unwrap();
    copy(&goldens().join("pixart-alpha-256"), checkpoint.path());
    let options = LoadOptions { keep: Keep::All, ..LoadOptions::new(device(), DType::F32) };
    let (first, second) = (request("a cat", 64, 2), request("a small cactus", 96, 3));
    let mut fresh = xdit_models::open(checkpoint.path(), &options).unwrap();
    let expected = fresh.generate(&second, &mut ()).unwrap().pictures;
    drop(fresh);

    let mut pipeline = xdit_models::open(checkpoint.path(), &options).unwrap();
    let mut loads = Loads::default();
    pipeline.generate(&first, &mut loads).unwrap();
    assert_eq!(loads.0, ["text_encoder", "transformer", "vae"]);
    checkpoint.close().unwrap();

    // A request is compared with the free memory, which the system shows as files.
    let own = reads();
    xdit_core::device::free_bytes(&device());
    let own = reads() - own;
    let (mut loads, before) = (Loads::default(), reads());
    let made = pipeline.generate(&second, &mut loads).unwrap();
    assert_eq!(reads() - before, own, "the second request reads");
    assert!(loads.0.is_empty(), "{:?}", loads.0);
    assert_eq!(made.pictures, expected);

    // The same pipeline on its own thread.
    let engine = Engine::start(pipeline).unwrap();
    let cancelled = engine.submit(Request { images_per_prompt: 1000, ..first.clone() });
    let refused = engine.submit(request("a cat", 65, 2));
    let sound = engine.submit(second);
    drop(cancelled);
    assert_eq!(pictures(refused).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(pictures(sound).unwrap(), expected);

    // The request is cancelled after its first pictures.
    let mut running = engine.submit(Request { images_per_prompt: 1000, ..first });
    let completed = |event: &xdit_core::Result<Event>| matches!(event, Ok(Event::Completed(_)));
    assert!(running.by_ref().filter(completed).take(2).count() == 2);
    running.cancel().cancel();
    assert_eq!(running.last().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
}
