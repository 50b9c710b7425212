//! Tests of downloads that fail: the error is one sentence with a remedy, and no broken file is left behind.

use crate::server::{MODEL, Reply, Server, content, etag};
use crate::{WEIGHT_FILE, WEIGHTS, get, hub, hub_but, options, repo};
use std::fs;
use std::path::Path;
use tempfile::tempdir;
use xdit_core::ErrorKind;
use xdit_core::hub::{Download, HubOptions, resolve};

/// The error of a run with an empty cache, with the hub's address replaced by `HUB`.
fn error_of(hub: &Server) -> String {
    let cache = tempdir().unwrap();
    get(&options(cache.path(), hub)).unwrap_err().to_string().replace(&hub.url, "HUB")
}

#[test]
fn a_hub_refuses_access() {
    for (reply, expected) in [
        (
            Reply::refusal(401, "RepoNotFound"),
            "`HUB` does not show `someone/some-model` without a valid token (HTTP 401)\n\
             hint: check the spelling; for a gated or private model, accept its licence at `HUB/someone/some-model` and set `HF_TOKEN`",
        ),
        (
            Reply::refusal(403, "GatedRepo"),
            "access to `someone/some-model` is refused (HTTP 403)\n\
             hint: accept the model's licence at `HUB/someone/some-model` and set `HF_TOKEN` to a token of that account",
        ),
        (
            Reply::refusal(404, "RepoNotFound"),
            "there is no model `someone/some-model` on `HUB`\n\
             hint: check the spelling; a private model needs `HF_TOKEN`",
        ),
        (
            Reply::refusal(404, "RevisionNotFound"),
            "`someone/some-model` has no revision `main`\n\
             hint: give a branch, a tag or a full commit hash, or omit the revision",
        ),
        (
            Reply::status(404),
            "there is no model `someone/some-model` with revision `main` on `HUB`\n\
             hint: check the spelling of both; a private model needs `HF_TOKEN`",
        ),
        (
            Reply::status(429),
            "`HUB` temporarily refuses `someone/some-model`: too many requests (HTTP 429)\n\
             hint: wait a few minutes, or set `HF_TOKEN` for a higher limit",
        ),
        (
            Reply::status(503),
            "`HUB` failed to deliver `someone/some-model` (HTTP 503)\n\
             hint: try again later; the partial download is kept and resumed",
        ),
    ] {
        assert_eq!(error_of(&Server::start(move |_| reply.clone())), expected);
    }
}

/// The listing of a gated model is public; only its files are refused.
#[test]
fn a_refused_file_is_named() {
    let refused =
        |reply: Reply| hub_but(move |request| request.path.contains("/resolve/").then(|| reply.clone()));
    assert_eq!(
        error_of(&refused(Reply::refusal(403, "GatedRepo"))),
        "access to `model_index.json` of `someone/some-model` is refused (HTTP 403)\n\
         hint: accept the model's licence at `HUB/someone/some-model` and set `HF_TOKEN` to a token of that account"
    );
    assert_eq!(
        error_of(&refused(Reply::refusal(404, "EntryNotFound"))),
        "`someone/some-model` has no file `model_index.json` at revision `main`\n\
         hint: choose another revision, or a repository in the full diffusers layout"
    );
}

#[test]
fn a_response_that_does_not_follow_the_protocol() {
    let hint = "hint: check that `HF_ENDPOINT` is a Hugging Face hub or a mirror of it";
    for body in ["<html>", "{}", r#"{"sha": "../..", "siblings": []}"#] {
        let reply = Reply { status: 200, body: body.into(), ..Reply::default() };
        let error = error_of(&Server::start(move |_| reply.clone()));
        assert!(
            error.starts_with(&format!("the response of `HUB` for `{MODEL}` is not usable: ")),
            "{error}"
        );
        assert!(error.ends_with(hint), "{error}");
    }
    let forever = Reply { status: 302, headers: vec![("Location", "/again".to_owned())], ..Reply::default() };
    assert_eq!(
        error_of(&Server::start(move |_| forever.clone())),
        format!("the response of `HUB` for `{MODEL}` is not usable: more than 10 redirects\n{hint}")
    );
    for etag in ["\"../../evil\"", "\"\""] {
        let reply = Reply { status: 200, headers: vec![("ETag", etag.to_owned())], ..Reply::default() };
        let error =
            error_of(&hub_but(move |request| request.path.contains("/resolve/").then(|| reply.clone())));
        assert!(error.contains("is not a usable `ETag`"), "{error}");
    }
}

#[test]
fn a_model_that_is_not_in_the_diffusers_layout() {
    let mut files = crate::files();
    files.0.remove("model_index.json");
    assert_eq!(
        error_of(&Server::start(move |request| files.answer(request))),
        "`someone/some-model` has no `model_index.json`, so it is not in the diffusers layout\n\
         hint: look for a repository of the same model with a name that ends in `-diffusers`"
    );
}

fn blob(cache: &Path) -> std::path::PathBuf {
    repo(cache).join("blobs").join(etag(WEIGHT_FILE, &WEIGHTS))
}

#[test]
fn a_body_that_is_always_cut_short_is_kept_for_the_next_run() {
    let cache = tempdir().unwrap();
    let hub = hub_but(|request| {
        (request.method == "GET" && request.path.ends_with(WEIGHT_FILE)).then(|| {
            match request.headers.get("range") {
                None => Reply { cut_after: Some(600_000), ..content(request, WEIGHT_FILE, &WEIGHTS) },
                Some(_) => Reply { cut_after: Some(0), ..content(request, WEIGHT_FILE, &WEIGHTS) },
            }
        })
    });
    let error = get(&options(cache.path(), &hub)).unwrap_err();
    assert_eq!(
        error.message().replace(&hub.url, "HUB"),
        format!(
            "cannot get `{WEIGHT_FILE}` of `{MODEL}` from `HUB`: the connection was interrupted after 600000 of 1000003 bytes"
        )
    );
    assert!(!blob(cache.path()).exists());
    assert_eq!(fs::read(blob(cache.path()).with_extension("incomplete")).unwrap(), WEIGHTS[..600_000]);

    let offline = HubOptions {
        offline: true,
        revision: crate::server::COMMIT.to_owned(),
        ..options(cache.path(), &hub)
    };
    assert_eq!(
        get(&offline).unwrap_err().to_string(),
        "the cached copy of `someone/some-model` is incomplete: the component `transformer` of `someone/some-model` has no safetensors weights\n\
         hint: unset `HF_HUB_OFFLINE` to download it, or set `HF_HOME` to a cache that contains it"
    );
    let folder = get(&options(cache.path(), &crate::hub())).unwrap();
    assert_eq!(fs::read(folder.join(WEIGHT_FILE)).unwrap(), *WEIGHTS);
}

#[test]
fn altered_contents_are_deleted() {
    for (altered, why) in [
        (WEIGHTS.iter().map(|byte| !byte).collect(), "its SHA-256 is not"),
        (vec![0; WEIGHTS.len() + 1], "more than the announced 1000003 bytes were sent"),
    ] {
        let cache = tempdir().unwrap();
        let hub = hub_but(move |request| {
            let wanted = request.method == "GET" && request.path.ends_with(WEIGHT_FILE);
            let altered: &Vec<u8> = &altered;
            wanted.then(|| Reply { status: 200, body: altered.clone(), ..Reply::default() })
        });
        let error = get(&options(cache.path(), &hub)).unwrap_err();
        assert!(
            error.message().starts_with(&format!("the download of `{WEIGHT_FILE}` of `{MODEL}` is corrupt"))
        );
        assert!(error.message().contains(why), "{error}");
        assert!(!blob(cache.path()).exists());
        assert!(!blob(cache.path()).with_extension("incomplete").exists());
    }
}

#[test]
fn the_network_is_down_and_the_cache_is_empty() {
    let cache = tempdir().unwrap();
    let down = HubOptions { endpoint: "http://127.0.0.1:9".to_owned(), ..HubOptions::new(cache.path()) };
    assert_eq!(
        get(&down).unwrap_err().to_string(),
        "cannot get `someone/some-model` from `http://127.0.0.1:9`: the connection was refused\n\
         hint: check the network, or set `HF_ENDPOINT` to a mirror; a fully cached model needs neither"
    );
    let error = get(&HubOptions { offline: true, ..down.clone() }).unwrap_err();
    assert_eq!(
        error.message(),
        format!("`{MODEL}` at revision `main` is not in the cache `{}`", cache.path().display())
    );
    let nowhere = HubOptions { endpoint: "http://no-such-host.invalid".to_owned(), ..down };
    let error = get(&nowhere).unwrap_err();
    assert!(error.message().contains("from `http://no-such-host.invalid`: "), "{error}");
    assert_eq!(error.kind(), ErrorKind::Failure);
}

#[test]
fn the_cache_is_not_writable() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = get(&options(&file, &hub())).unwrap_err();
    assert!(
        error.message().starts_with(&format!("cannot store `{MODEL}` in the cache `{}`", file.display()))
    );
    assert!(error.to_string().ends_with("hint: set `HF_HOME` to a writable folder"), "{error}");
}

#[test]
fn an_invalid_proxy_or_certificate_file() {
    let hub = hub();
    let cache = tempdir().unwrap();
    let proxy = HubOptions { proxy: Some("gopher://:pass word".to_owned()), ..options(cache.path(), &hub) };
    assert_eq!(get(&proxy).unwrap_err().message(), "the proxy URL is not valid");
    let certificates = cache.path().join("ca.pem");
    fs::write(&certificates, "no certificate").unwrap();
    let trusting = HubOptions { ca_file: Some(certificates.clone()), ..options(cache.path(), &hub) };
    assert_eq!(
        get(&trusting).unwrap_err().message(),
        format!("cannot use the certificates in `{}`: it contains none", certificates.display())
    );
}

/// Small files are verified, too, and so is what an earlier run left of any file.
#[test]
fn every_file_is_verified() {
    let (cache, config) = (tempdir().unwrap(), "transformer/config.json");
    let altered = hub_but(move |request| {
        let wanted = request.method == "GET" && request.path.ends_with(config);
        wanted.then(|| Reply { status: 200, body: b"[]".to_vec(), ..Reply::default() })
    });
    let error = get(&options(cache.path(), &altered)).unwrap_err();
    let expected = format!("the download of `{config}` of `{MODEL}` is corrupt: its SHA-1 is not `");
    assert!(error.message().starts_with(&expected), "{error}");

    let blobs = repo(cache.path()).join("blobs");
    for (file, bytes) in [(config, &b"{}"[..]), (WEIGHT_FILE, &WEIGHTS)] {
        // The beginning of the file, but one byte differs.
        let mut left = bytes[..bytes.len() - 1].to_vec();
        left[0] ^= 1;
        fs::write(blobs.join(format!("{}.incomplete", etag(file, bytes))), left).unwrap();
        let error = get(&options(cache.path(), &hub())).unwrap_err();
        assert!(error.message().contains(&format!("`{file}` of `{MODEL}` is corrupt")), "{error}");
    }
    // What was wrong is gone.
    get(&options(cache.path(), &hub())).unwrap();
}

/// A server neither fills the disk nor keeps a run for ever.
#[test]
fn endless_answers_end() {
    let endless = |headers: Vec<(&'static str, String)>, body: Vec<u8>| {
        hub_but(move |request| {
            let wanted = request.path.ends_with("spiece.model");
            wanted.then(|| Reply {
                status: 200,
                headers: headers.clone(),
                body: body.clone(),
                ..Reply::default()
            })
        })
    };
    let name = |bytes: &str| vec![("ETag", "\"tag\"".to_owned()), ("Content-Length", bytes.to_owned())];
    let error = error_of(&endless(name("99999999999"), Vec::new()));
    assert!(error.contains("it has 99999999999 bytes, more than the 67108864 of such a file"), "{error}");

    // One byte for each connection.
    let drop_by_drop = hub_but(|request| {
        let wanted = request.method == "GET" && request.path.ends_with(WEIGHT_FILE);
        wanted.then(|| Reply { cut_after: Some(1), ..content(request, WEIGHT_FILE, &WEIGHTS) })
    });
    let error = error_of(&drop_by_drop);
    assert!(error.contains("the connection was interrupted after 3 of 1000003 bytes"), "{error}");
}

/// A server that is busy says when to come again.
#[test]
fn retry_after_is_obeyed_by_every_request() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    let hub = hub_but(move |request| {
        let first = seen.lock().unwrap().insert((request.method.clone(), request.path.clone()));
        let busy = if request.path.contains("config") { 503 } else { 429 };
        let wanted = request.path.contains("/api/") || request.path.ends_with("config.json");
        (first && wanted)
            .then(|| Reply { headers: vec![("Retry-After", "0".to_owned())], ..Reply::status(busy) })
    });
    let (cache, mut pauses) = (tempdir().unwrap(), Vec::new());
    let mut watch = |download: Download<'_>| pauses.extend(download.pause.map(|_| download.file.to_owned()));
    resolve(MODEL, &options(cache.path(), &hub), &mut watch).unwrap();
    // The listing, and the description and the contents of a file.
    assert_eq!(pauses, [MODEL, "transformer/config.json", "transformer/config.json"], "the user is told");
    let lines = hub.lines();
    for line in [
        "GET /api",
        "HEAD /someone/some-model/resolve/0123456789abcdef0123456789abcdef01234567/transformer/config.json",
    ] {
        assert_eq!(lines.iter().filter(|found| found.starts_with(line)).count(), 2, "{lines:?}");
    }
    // Longer than anybody wants to wait.
    let long =
        Server::start(|_| Reply { headers: vec![("Retry-After", "86400".to_owned())], ..Reply::status(429) });
    let error = error_of(&long);
    assert!(error.contains("too many requests (HTTP 429)\nhint: wait 86400 s, as it asks"), "{error}");
}

/// A hub that fails for a while, at any request, is asked again until the patience ends.
#[test]
fn a_hub_that_comes_back_is_waited_for() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashMap::new()));
    let hub = hub_but(move |request| {
        let mut seen = seen.lock().unwrap();
        let times = seen.entry((request.method.clone(), request.path.clone())).or_insert(0);
        *times += 1;
        let wanted = request.path.contains("/api/") || request.path.ends_with(WEIGHT_FILE);
        (wanted && *times < 3).then(|| Reply::status(502))
    });
    let cache = tempdir().unwrap();
    get(&options(cache.path(), &hub)).unwrap();
    assert_eq!(hub.lines().iter().filter(|line| line.ends_with(WEIGHT_FILE)).count(), 6);
}

/// Contents without an announced length might have no end.
#[test]
fn weights_have_an_announced_length() {
    let hub = |listed: bool| {
        hub_but(move |request| {
            if request.path.contains("/api/") {
                let listing = crate::files().listing();
                let body = String::from_utf8(listing.body).unwrap().replace("\"size\"", "\"bytes\"").into();
                return (!listed).then_some(Reply { status: 200, body, ..Reply::default() });
            }
            let endless = vec![
                ("ETag", "\"tag\"".to_owned()),
                ("Transfer-Encoding", "chunked".to_owned()),
                ("Content-Length", String::new()),
            ];
            let body = [&b"f423f\r\n"[..], &[0; 999_999], &b"\r\n"[..]].concat().repeat(9);
            let wanted = request.path.ends_with(WEIGHT_FILE);
            wanted.then_some(Reply { status: 200, headers: endless, body, cut_after: None })
        })
    };
    let error = error_of(&hub(false));
    assert!(error.contains("it does not announce its length"), "{error}");
    let error = error_of(&hub(true));
    assert!(error.contains("more than the announced 1000003 bytes were sent"), "{error}");
}

#[test]
fn passwords_in_addresses_are_not_shown() {
    let endpoint = "http://me:secret@127.0.0.1:9".to_owned();
    let error = get(&HubOptions { endpoint, ..HubOptions::new(tempdir().unwrap().path()) }).unwrap_err();
    assert!(
        error.message().contains("from `http://…@127.0.0.1:9`") && !error.to_string().contains("secret"),
        "{error}"
    );
}

/// In a cache that others can write to, a link could lead to a file of this user, which would be overwritten.
#[cfg(unix)]
#[test]
fn links_in_a_shared_cache_are_not_followed() {
    let (cache, hub) = (tempdir().unwrap(), hub());
    let (mine, blobs) = (cache.path().join("mine"), repo(cache.path()).join("blobs"));
    let locks = cache.path().join(".locks/models--someone--some-model");
    for folder in [&blobs, &locks] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(&mine, "precious").unwrap();
    let name = etag(WEIGHT_FILE, &WEIGHTS);
    for link in [blobs.join(format!("{name}.incomplete")), locks.join(format!("{name}.lock"))] {
        // The lock of an earlier run is a file that may be replaced.
        drop(fs::remove_file(&link));
        std::os::unix::fs::symlink(&mine, &link).unwrap();
        let error = get(&options(cache.path(), &hub)).unwrap_err();
        assert!(error.message().contains("is a link or a special file"), "{error}");
        assert_eq!(fs::read_to_string(&mine).unwrap(), "precious");
        fs::remove_file(link).unwrap();
    }
    get(&options(cache.path(), &hub)).unwrap();
}

#[test]
fn a_model_that_does_not_fit_on_the_disk() {
    let hub = hub_but(|request| {
        let mut listing = crate::files().listing();
        listing.body =
            String::from_utf8(listing.body).unwrap().replace("1000003", "1000000000000000000").into();
        request.path.contains("/api/").then_some(listing)
    });
    let error = error_of(&hub);
    assert!(error.starts_with(&format!("`{MODEL}` takes 1000000000.0 GB more, and ")), "{error}");
    assert!(!hub.lines().iter().any(|line| line.contains("safetensors")), "nothing is fetched");
}
