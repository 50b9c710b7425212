//! Models on a hub, which is a server in this process.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::hub_server::{Files, MODEL, Request, Server};
use crate::workspace::Workspace;

/// All files of a folder and its immediate folders, by path.
fn files_of(folder: &Path) -> Files {
    let mut files = BTreeMap::new();
    let entries =
        |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    for path in entries(folder) {
        if path.is_file() {
            files.insert(name(&path), fs::read(&path).unwrap());
        } else {
            files.extend(
                entries(&path)
                    .iter()
                    .map(|file| (format!("{}/{}", name(&path), name(file)), fs::read(file).unwrap())),
            );
        }
    }
    Files(files)
}

/// Runs the program with the hub at `server`; it must succeed. Returns its standard output and standard error.
fn run(workspace: &Workspace, server: &Server, args: &[&str]) -> [String; 2] {
    let mut command = workspace.command(args);
    let output = command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &server.url).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{args:?}: {err}");
    [out, err]
}

/// The requests for weights, each of which must ask for the beginning of a file only.
fn headers_of_weights(requests: &[Request]) -> usize {
    let weights = requests.iter().filter(|request| request.path.ends_with(".safetensors"));
    weights
        .inspect(|request| assert!(request.headers["range"].starts_with("bytes=0-"), "{request:?}"))
        .count()
}

#[test]
fn models_are_inspected_and_planned_by_their_headers() {
    let workspace = Workspace::with_demo();
    let files = files_of(&workspace.path("demo"));
    let server = Server::start(move |request| files.answer(request));
    let plan = ["--pipefusion-parallel-degree", "2", "--height", "512", "--width", "512"];
    let local = workspace.ok(&["inspect", "demo"]);

    let [remote, talk] = run(&workspace, &server, &["inspect", MODEL]);
    assert_eq!(headers_of_weights(&server.requests()), 3);
    assert!(!talk.contains(".safetensors"), "no weights are downloaded: {talk}");
    let download =
        remote.lines().find(|line| line.starts_with("download")).unwrap_or_else(|| panic!("{remote}"));
    assert_eq!(download, "download     1.95 MiB before a run");
    let rest = remote.replace(&format!("{download}\n"), "").replace(&format!("of {MODEL}"), "in demo");
    assert_eq!(rest, local);
    let [json, _] = run(&workspace, &server, &["inspect", MODEL, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["download_bytes"].as_u64().unwrap() > 1_900_000, "{json}");
    assert_eq!(json["path"], MODEL);

    server.requests();
    let [remote, _] = run(&workspace, &server, &[&["plan", "--model", MODEL], &plan[..]].concat());
    assert_eq!(headers_of_weights(&server.requests()), 3);
    let (remote, download) = remote.trim_end().rsplit_once('\n').unwrap();
    assert!(
        download.starts_with(&format!("`{MODEL}` is not downloaded yet: 1.94 MiB in 3 files")),
        "{download}"
    );
    let tables = |text: &str| text.rsplit_once("\n\n").unwrap().0.to_owned();
    assert_eq!(tables(remote), workspace.plan(&[&["--model", "demo"], &plan[..]].concat()));

    // A run downloads the weights, after which they are found.
    let steps = ["--num-inference-steps", "1", "--output", "remote.png"];
    run(&workspace, &server, &[&["generate", "--model", MODEL, "--prompt", "a"], &steps[..]].concat());
    server.requests();
    let [remote, _] = run(&workspace, &server, &["inspect", MODEL]);
    assert_eq!(headers_of_weights(&server.requests()), 0);
    assert_eq!(remote.split_once("\n\n").unwrap().1, local.split_once("\n\n").unwrap().1);
}

/// Of two autoencoders, only the one in use is downloaded, although `model_index.json` names the other.
#[test]
fn the_temporal_decoder_is_downloaded_in_place_of_the_plain_one() {
    let workspace = Workspace::new();
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    let mut files = files_of(&goldens.join("latte"));
    for (path, bytes) in files_of(&goldens.join("latte-temporal/vae")).0 {
        files.0.insert(format!("vae_temporal_decoder/{path}"), bytes);
    }
    let server = Server::start(move |request| files.answer(request));
    let decoder = ["--model", MODEL, "--temporal-decoder"];
    run(&workspace, &server, &[&["plan"], &decoder[..]].concat());
    let size = ["--height", "16", "--width", "16", "--num-inference-steps", "1", "--prompt", "a"];
    run(&workspace, &server, &[&["generate"], &decoder[..], &size].concat());
    let requests = server.requests();
    let downloads = |folder: &str| requests.iter().filter(|request| request.path.contains(folder)).count();
    assert_eq!(downloads("/vae/"), 0);
    assert!(downloads("/vae_temporal_decoder/") >= 2, "{requests:?}");
}
