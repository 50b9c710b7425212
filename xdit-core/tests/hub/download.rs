//! Tests of downloads that succeed.

use crate::server::{COMMIT, MODEL, Reply, Server, content, etag};
use crate::{WEIGHT_FILE, WEIGHTS, files, get, hub, hub_but, options, repo};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tempfile::tempdir;
use xdit_core::hub::{HubOptions, resolve};

#[test]
fn needed_files_are_stored_in_the_layout_of_huggingface_hub() {
    let (cache, hub) = (tempdir().unwrap(), hub());
    let (mut finished, mut missing) = (Vec::new(), Vec::new());
    let folder = resolve(MODEL, &options(cache.path(), &hub), &mut |download| {
        assert!(download.done_bytes <= download.total_bytes.unwrap());
        if download.finished {
            finished.push((download.file.to_owned(), download.done_bytes));
            missing.push(download.missing);
        }
    })
    .unwrap();

    let repo = repo(cache.path());
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let needed = ["model_index.json", "tokenizer/spiece.model", "transformer/config.json", WEIGHT_FILE];
    for file in needed {
        let bytes = &files().0[file];
        let up = "../".repeat(file.matches('/').count() + 2);
        assert_eq!(fs::read(folder.join(file)).unwrap(), *bytes);
        let link = fs::read_link(folder.join(file)).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("{up}blobs/{}", etag(file, bytes)));
    }
    assert_eq!(fs::read_dir(repo.join("blobs")).unwrap().count(), needed.len());
    let expected: Vec<_> =
        needed.iter().map(|&file| (file.to_owned(), files().0[file].len() as u64)).collect();
    assert_eq!(finished, expected);
    // The list of components comes first, and tells which files follow.
    let weights = WEIGHTS.len() as u64;
    assert_eq!(missing, [(1, 0), (3, 8 + weights), (2, 2 + weights), (1, weights)]);
}

#[test]
fn a_second_run_requests_only_the_commit() {
    let (cache, hub) = (tempdir().unwrap(), hub());
    let first = get(&options(cache.path(), &hub)).unwrap();
    hub.requests();
    assert_eq!(get(&options(cache.path(), &hub)).unwrap(), first);
    assert_eq!(hub.lines(), [format!("GET /api/models/{MODEL}/revision/main?blobs=true")]);

    // A commit hash needs no request.
    let pinned = HubOptions { revision: COMMIT.to_owned(), ..options(cache.path(), &hub) };
    assert_eq!(get(&pinned).unwrap(), first);
    assert!(hub.lines().is_empty());
}

#[test]
fn only_missing_files_are_fetched_again() {
    let (cache, hub) = (tempdir().unwrap(), hub());
    let folder = get(&options(cache.path(), &hub)).unwrap();
    // A blob without its link, and a link without its blob.
    fs::remove_file(folder.join("transformer/config.json")).unwrap();
    fs::remove_file(folder.join("tokenizer/spiece.model").canonicalize().unwrap()).unwrap();
    hub.requests();
    get(&options(cache.path(), &hub)).unwrap();
    let gets: Vec<String> = hub.lines().into_iter().filter(|line| line.starts_with("GET /some")).collect();
    assert_eq!(gets, [format!("GET /{MODEL}/resolve/{COMMIT}/tokenizer/spiece.model")]);
    assert_eq!(fs::read(folder.join("tokenizer/spiece.model")).unwrap(), b"pieces");
    assert_eq!(fs::read(folder.join("transformer/config.json")).unwrap(), b"{}");
}

#[test]
fn a_variant_replaces_the_default_weights() {
    let (cache, hub) = (tempdir().unwrap(), hub());
    let options = HubOptions { variant: Some("fp16".to_owned()), ..options(cache.path(), &hub) };
    let folder = get(&options).unwrap();
    assert_eq!(
        fs::read(folder.join("transformer/diffusion_pytorch_model.fp16.safetensors")).unwrap(),
        b"half"
    );
    assert!(!folder.join(WEIGHT_FILE).exists());
}

#[test]
fn a_revision_with_slashes_has_its_own_ref() {
    let (cache, hub) = (tempdir().unwrap(), hub());
    let options = HubOptions { revision: "refs/pr/1".to_owned(), ..options(cache.path(), &hub) };
    get(&options).unwrap();
    assert_eq!(hub.lines()[0], format!("GET /api/models/{MODEL}/revision/refs%2Fpr%2F1?blobs=true"));
    assert_eq!(fs::read_to_string(repo(cache.path()).join("refs/refs/pr/1")).unwrap(), COMMIT);
    // Offline, the ref is used.
    get(&HubOptions { offline: true, ..options }).unwrap();
}

/// The ranges of the requests for the weights.
fn ranges(hub: &Server) -> Vec<Option<String>> {
    let asked =
        |request: &crate::server::Request| request.method == "GET" && request.path.ends_with(WEIGHT_FILE);
    hub.requests().into_iter().filter(asked).map(|request| request.headers.get("range").cloned()).collect()
}

#[test]
fn an_interrupted_download_is_resumed_at_the_break() {
    let cache = tempdir().unwrap();
    let hub = hub_but(|request| {
        let first = request.path.ends_with(WEIGHT_FILE) && !request.headers.contains_key("range");
        first.then(|| Reply { cut_after: Some(700_000), ..content(request, WEIGHT_FILE, &WEIGHTS) })
    });
    let folder = get(&options(cache.path(), &hub)).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHT_FILE)).unwrap(), *WEIGHTS);
    assert_eq!(ranges(&hub), [None, Some("bytes=700000-".to_owned())]);
}

fn leave_partial(cache: &std::path::Path, bytes: &[u8]) {
    let blobs = repo(cache).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", etag(WEIGHT_FILE, &WEIGHTS))), bytes).unwrap();
}

#[test]
fn a_partial_file_from_an_earlier_run_is_continued() {
    let (cache, hub) = (tempdir().unwrap(), hub());
    leave_partial(cache.path(), &WEIGHTS[..123_456]);
    let folder = get(&options(cache.path(), &hub)).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHT_FILE)).unwrap(), *WEIGHTS);
    assert_eq!(ranges(&hub), [Some("bytes=123456-".to_owned())]);
}

#[test]
fn a_partial_file_that_is_complete_or_too_long_is_handled() {
    for (left, expected) in [(WEIGHTS.clone(), vec![]), (vec![0; WEIGHTS.len() + 1], vec![None])] {
        let (cache, hub) = (tempdir().unwrap(), hub());
        leave_partial(cache.path(), &left);
        let folder = get(&options(cache.path(), &hub)).unwrap();
        assert_eq!(fs::read(folder.join(WEIGHT_FILE)).unwrap(), *WEIGHTS);
        assert_eq!(ranges(&hub), expected);
    }
}

#[test]
fn a_server_without_ranges_sends_the_whole_file() {
    let cache = tempdir().unwrap();
    let hub = hub_but(|request| {
        let ranged = request.headers.contains_key("range");
        ranged.then(|| Reply { status: 200, body: WEIGHTS.clone(), ..Reply::default() })
    });
    leave_partial(cache.path(), b"something else");
    let folder = get(&options(cache.path(), &hub)).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHT_FILE)).unwrap(), *WEIGHTS);
}

#[test]
fn the_token_is_sent_to_the_hub_but_not_to_a_redirect_target() {
    let cache = tempdir().unwrap();
    let cdn = Server::start(|request| Reply { headers: vec![], ..content(request, WEIGHT_FILE, &WEIGHTS) });
    let elsewhere = format!("{}/signed?key=1", cdn.url);
    let hub = hub_but(move |request| {
        let redirect = |location: &str| Reply {
            status: 302,
            headers: vec![("Location", location.to_owned())],
            body: b"moved".to_vec(),
            cut_after: None,
        };
        if request.path.ends_with("transformer/config.json") {
            return Some(redirect("/cache/config.json"));
        }
        if request.path == "/cache/config.json" {
            return Some(content(request, "config.json", b"{}"));
        }
        request.path.ends_with(WEIGHT_FILE).then(|| {
            let mut reply = redirect(&elsewhere);
            reply.headers.extend(content(request, WEIGHT_FILE, &WEIGHTS).headers);
            reply
        })
    });
    let options = HubOptions { token: Some("hf_secret".to_owned()), ..options(cache.path(), &hub) };
    let folder = get(&options).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHT_FILE)).unwrap(), *WEIGHTS);

    let at_hub = hub.requests();
    assert!(at_hub.iter().any(|request| request.path == "/cache/config.json"));
    for request in at_hub {
        assert_eq!(request.headers.get("authorization").map(String::as_str), Some("Bearer hf_secret"));
    }
    let at_cdn = cdn.requests();
    assert_eq!(at_cdn.len(), 1);
    assert_eq!(at_cdn[0].path, "/signed?key=1");
    assert!(!at_cdn[0].headers.contains_key("authorization"));
}

#[test]
fn concurrent_runs_fetch_each_file_once() {
    let cache = tempdir().unwrap();
    let hub = hub_but(|request| {
        // Long enough for the other threads to reach the same file.
        (request.method == "GET" && request.path.ends_with(WEIGHT_FILE)).then(|| {
            thread::sleep(Duration::from_millis(200));
            content(request, WEIGHT_FILE, &WEIGHTS)
        })
    });
    let options = options(cache.path(), &hub);
    let waited = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut watch = |download: xdit_core::hub::Download<'_>| {
                    waited.fetch_add(
                        usize::from(download.waits && download.file == WEIGHT_FILE),
                        Ordering::SeqCst,
                    );
                };
                let folder = resolve(MODEL, &options, &mut watch).unwrap();
                assert_eq!(fs::read(folder.join(WEIGHT_FILE)).unwrap(), *WEIGHTS);
            });
        }
    });
    assert_eq!(ranges(&hub), [None]);
    assert!(waited.into_inner() > 0, "those that wait say so");
}

#[test]
fn a_complete_cache_is_used_when_the_hub_fails() {
    let cache = tempdir().unwrap();
    let up = hub();
    let folder = get(&options(cache.path(), &up)).unwrap();
    up.requests();
    assert_eq!(get(&HubOptions { offline: true, ..options(cache.path(), &up) }).unwrap(), folder);
    assert!(up.requests().is_empty());

    // No server listens on port 9.
    let down = HubOptions { endpoint: "http://127.0.0.1:9".to_owned(), ..HubOptions::new(cache.path()) };
    assert_eq!(get(&down).unwrap(), folder);
    for status in [401, 403, 429, 503] {
        let refusing = Server::start(move |_| Reply::status(status));
        assert_eq!(get(&options(cache.path(), &refusing)).unwrap(), folder);
        assert_eq!(refusing.requests().len(), 1);
    }
}

/// A newer commit that cannot be fetched must not hide the older, complete one.
#[test]
fn the_ref_moves_only_when_its_snapshot_is_complete() {
    let cache = tempdir().unwrap();
    let folder = get(&options(cache.path(), &hub())).unwrap();
    let newer = hub_but(|request| match request.path.contains("/api/") {
        true => {
            let mut listing = files().listing();
            listing.body =
                String::from_utf8(listing.body).unwrap().replace(COMMIT, &"f".repeat(40)).into_bytes();
            Some(listing)
        }
        false => Some(Reply::status(503)),
    });
    get(&options(cache.path(), &newer)).unwrap_err();
    assert_eq!(get(&HubOptions { offline: true, ..options(cache.path(), &newer) }).unwrap(), folder);
}

/// Names in a listing become paths, which must stay inside the snapshot.
#[test]
fn names_that_lead_out_of_the_cache_are_ignored() {
    let cache = tempdir().unwrap();
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let seen = asked.clone();
    let mut hostile = files();
    let index = br#"{"..": ["diffusers", "EvilScheduler"], "tokenizer": ["transformers", "T5Tokenizer"]}"#;
    hostile.0.insert("model_index.json".to_owned(), index.to_vec());
    hostile.0.insert("../evil.json".to_owned(), b"evil".to_vec());
    let hub = Server::start(move |request| {
        seen.fetch_add(usize::from(request.path.contains("evil")), Ordering::SeqCst);
        hostile.answer(request)
    });
    let error = get(&options(cache.path(), &hub)).unwrap_err();
    assert_eq!(error.message(), format!("`{MODEL}` has no files for its component `..`"));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
