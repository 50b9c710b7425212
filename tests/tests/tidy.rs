//! Rules for all sources that no compiler checks: permitted dependencies, and words that are restricted to certain
//! places.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The permitted dependencies between the crates of the workspace. Foreign crates are in [`FOREIGN`].
const CRATES: [(&str, &[&str]); 7] = [
    ("xdit-comm", &[]),
    ("xdit-features", &[]),
    ("xdit-kernels", &["xdit-features"]),
    ("xdit-core", &["xdit-comm", "xdit-features", "xdit-kernels"]),
    ("xdit-models", &["xdit-core", "xdit-features", "xdit-kernels"]),
    ("xdit-cli", &["xdit-comm", "xdit-core", "xdit-models"]),
    ("xdit-tests", &["xdit-comm", "xdit-core", "xdit-features", "xdit-kernels", "xdit-models"]),
];

/// Foreign crates that a crate of the workspace must not use, and the reason.
const FOREIGN: [(&str, &str, &str); 4] = [
    ("xdit-comm", "burn", "a transport moves bytes, not tensors"),
    ("xdit-comm", "rayon", "ranks are threads: one that waits inside a pool blocks the others"),
    (
        "xdit-models",
        "burn-flex",
        "models run on every backend; code for a single backend belongs in the kernels",
    ),
    ("xdit-core", "clap", "only the command line reads options"),
];

/// The layers of xdit-core from the lowest up. A module may use modules of its own layer and of lower ones.
const CORE_LAYERS: [&[&str]; 8] = [
    &["device", "error", "fatal", "files", "finite", "json", "shared", "split"],
    &["checkpoint", "config", "hub", "noise", "picture", "tokens"],
    &["attention", "link", "rows", "transformer"],
    &["placement"],
    &["linear", "scheduler", "weights"],
    &["plan"],
    &["methods"],
    &["pipeline", "run"],
];

/// The modules of xdit-core that a model must not use, because they deal with ranks.
const PARALLEL_MODULES: [&str; 5] = ["link", "methods", "placement", "plan", "run"];

/// The files of xdit-models that are not models, but connect models to the engine.
const GLUE: [&str; 5] = ["sharding", "_pipeline", "latent_diffusion", "component", "lib"];

/// The maximum number of lines of a source file.
const MAX_LINES: usize = 600;
/// The maximum number of lines of ARCHITECTURE.md.
const MAX_ARCHITECTURE_LINES: usize = 250;

/// A text file of the project.
struct File {
    /// The path relative to the root, with `/`.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the file contains only tests.
    fn is_test(&self) -> bool {
        let parts = ["/tests/", "/tests.rs", "/testing.rs"];
        self.path.starts_with("tests/") || parts.iter().any(|part| self.path.contains(part))
    }

    /// The number and text of each line.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace")
}

/// All hand-written text files.
fn files() -> Vec<File> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().expect("names are UTF-8");
            let hidden = name.starts_with('.') && name != ".ci" && name != ".cargo";
            if path.is_dir() && !hidden && !["target", "__pycache__"].contains(&name) {
                walk(&path, found);
            } else if path.is_file() && (is_text(name) || dir.file_name().is_some_and(|dir| dir == ".ci")) {
                found.push(path);
            }
        }
    }
    fn is_text(name: &str) -> bool {
        let extension = name.rsplit('.').next().unwrap_or_default();
        ["rs", "toml", "md", "py", "sh", "yml", "yaml"].contains(&extension)
    }
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    paths.sort();
    let read = |path: PathBuf| File {
        text: fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        path: path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/"),
    };
    let files: Vec<File> = paths.into_iter().map(read).collect();
    assert!(files.iter().filter(|file| file.is_rust()).count() > 100, "the sources were not found");
    files
}

/// Fails with all `offences`, each of which is a place and its problem.
#[track_caller]
fn none(rule: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

/// The places of lines for which `is_bad` holds.
fn places(files: &[File], is_bad: impl Fn(&File, &str) -> bool) -> Vec<String> {
    let in_file = |file: &File| -> Vec<String> {
        let bad = file.lines().filter(|(_, line)| is_bad(file, line));
        bad.map(|(number, line)| format!("{}:{number}: {}", file.path, line.trim())).collect()
    };
    files.iter().flat_map(in_file).collect()
}

#[test]
fn crates_depend_only_downwards() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let mut members: Vec<_> = packages.iter().map(name).collect();
    let mut known: Vec<_> = CRATES.iter().map(|(name, _)| *name).collect();
    members.sort();
    known.sort_unstable();
    assert_eq!(members, known, "`CRATES` lists the dependencies of every crate");

    let mut offences = Vec::new();
    for package in packages {
        let this = name(package);
        let allowed = CRATES.iter().find(|(name, _)| *name == this).expect("compared above").1;
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let other = name(dependency);
            if known.contains(&other.as_str()) && !allowed.contains(&other.as_str()) {
                offences.push(format!("{this} depends on {other}"));
            }
            // Tests may use any crate.
            let foreign = FOREIGN.iter().find(|(a, b, _)| *a == this && *b == other);
            if let (Some((_, _, why)), Value::Null) = (foreign, &dependency["kind"]) {
                offences.push(format!("{this} depends on {other}, but {why}"));
            }
        }
    }
    none("dependencies go from the command line to the kernels, and nothing uses the tests", offences);
}

/// The features of Burn and of the crates below it, as selected by the tests of `package` or of the whole workspace.
fn features(package: &[&str]) -> BTreeSet<String> {
    let tree = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--prefix", "none"])
            .args(arguments)
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // A crate that was printed before has a star; it is listed without one as well.
        String::from_utf8(output.stdout).expect("names are UTF-8").replace(" (*)", "")
    };
    let below = tree(&["-p", "burn", "-p", "burn-flex", "-e", "normal,no-proc-macro", "-f", "{p}"]);
    let below: BTreeSet<&str> = below.lines().collect();
    let all = tree(&[package, &["-e", "normal,dev,no-proc-macro", "-f", "{p}|{f}"]].concat());
    let of_burn = |line: &&str| below.contains(line.split('|').next().unwrap_or_default());
    all.lines().filter(of_burn).map(str::to_owned).collect()
}

/// Ensures that `cargo test -p CRATE` uses the Burn that `cargo test --workspace` compiled.
#[test]
fn burn_is_compiled_once() {
    let workspace = features(&["--workspace"]);
    assert!(workspace.len() > 100, "{} crates below Burn", workspace.len());
    for package in ["xdit-kernels", "xdit-core", "xdit-models", "xdit-cli", "xdit-tests"] {
        let other: Vec<_> = features(&["-p", package]).difference(&workspace).cloned().collect();
        none(&format!("tests of {package} select the features of the workspace: tests/features"), other);
    }
}

/// The modules of `krate` that a line of code uses, as in `use xdit_core::plan::Plan;`.
fn used_modules<'a>(line: &'a str, krate: &'a str) -> impl Iterator<Item = &'a str> {
    let code = line.split("//").next().unwrap_or_default();
    let after = move |(start, _): (usize, &str)| &code[start + krate.len() + 2..];
    let name = |rest: &'a str| rest.split(|char: char| !char.is_alphanumeric() && char != '_').next();
    code.match_indices(krate)
        .filter(move |(start, _)| code[start + krate.len()..].starts_with("::"))
        .map(after)
        .filter_map(name)
}

#[test]
fn a_model_is_single_device_code() {
    let files = files();
    let is_model = |file: &File| {
        let glue = GLUE.iter().any(|part| file.path.contains(part));
        file.path.starts_with("xdit-models/src/") && file.is_rust() && !file.is_test() && !glue
    };
    assert!(files.iter().filter(|file| is_model(file)).count() > 20);
    let bad = |file: &File, line: &str| {
        is_model(file) && used_modules(line, "xdit_core").any(|module| PARALLEL_MODULES.contains(&module))
    };
    none("models use no module that deals with ranks", places(&files, bad));
}

#[test]
fn layers_of_the_core_use_lower_ones_only() {
    let layer = |module: &str| CORE_LAYERS.iter().position(|layer| layer.contains(&module));
    let mut offences = Vec::new();
    for file in files().iter().filter(|file| file.is_rust() && !file.is_test()) {
        let Some(path) = file.path.strip_prefix("xdit-core/src/") else { continue };
        let module = path.split(['/', '.']).next().unwrap_or_default();
        if module == "lib" {
            continue;
        }
        let Some(own) = layer(module) else {
            offences.push(format!("`{module}` is in no layer"));
            continue;
        };
        for (number, line) in file.lines() {
            let higher = |used: &&str| layer(used).is_some_and(|used| used > own);
            let used = used_modules(line, "crate").filter(higher);
            offences.extend(used.map(|used| format!("{}:{number}: `{module}` uses `{used}`", file.path)));
        }
    }
    none("modules of xdit-core form layers", offences);
}

#[test]
fn unsafe_code_stays_where_it_is() {
    let keyword = concat!("un", "safe");
    let bad = |file: &File, line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        let allowed = [
            "kernels/",
            "xdit-comm/src/nccl",
            "xdit-core/src/link/nccl.rs",
            "tests/tests/nccl/",
            "xdit-core/src/checkpoint.rs",
            "xdit-core/src/fatal.rs",
        ]
        .iter()
        .any(|path| file.path.starts_with(path));
        let word = |char: char| !char.is_alphanumeric() && char != '_';
        file.is_rust() && !allowed && code.split(word).any(|word| word == keyword)
    };
    let files = files();
    none(
        "kernels compute in place, NCCL has addresses, a checkpoint maps a file, and `fatal` handles its loss",
        places(&files, bad),
    );
    let checkpoint =
        files.iter().find(|file| file.path == "xdit-core/src/checkpoint.rs").expect("checkpoint.rs");
    let blocks = checkpoint.text.matches(&format!("{keyword} {{")).count();
    assert_eq!(blocks, 1, "one line of checkpoint.rs maps a file");
}

#[test]
fn libraries_neither_print_nor_read_the_environment() {
    let taboo = ["print!(", "println!(", "dbg!(", "env::var", "env::args"];
    let bad = |file: &File, line: &str| {
        let library = file.path.contains("/src/")
            && !file.path.starts_with("xdit-cli/")
            && !file.path.starts_with("tests/")
            // NVIDIA's libraries are looked for where the system's loader and Python look.
            && file.path != "kernels/src/vendor/library.rs";
        let code = line.split("//").next().unwrap_or_default();
        library && file.is_rust() && !file.is_test() && taboo.iter().any(|call| code.contains(call))
    };
    none("only the command line prints and reads the environment", places(&files(), bad));
}

#[test]
fn files_are_small_and_say_what_they_are_for() {
    let mut offences = Vec::new();
    for file in files().iter().filter(|file| file.is_rust()) {
        let lines = file.text.lines().count();
        if lines > MAX_LINES {
            offences.push(format!("{}: {lines} lines are more than {MAX_LINES}", file.path));
        }
        let needs_doc = file.path.contains("/src/") && !file.is_test();
        if needs_doc && !file.text.starts_with("//! ") {
            offences.push(format!("{}: does not begin with its purpose (`//!`)", file.path));
        }
    }
    none("files are short and begin with their purpose", offences);
}

#[test]
fn nothing_is_left_over() {
    let reminders = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];
    let bad = |_: &File, line: &str| reminders.iter().any(|reminder| line.contains(reminder));
    none("open work belongs in an issue, not in a file", places(&files(), bad));
}

#[test]
fn lints_are_expected_for_a_reason() {
    let allowed = places(&files(), |file, line| file.is_rust() && line.contains(concat!("[", "allow(")));
    none("use `expect`, which warns when it is no longer needed, instead of `allow`", allowed);
    let mut offences = Vec::new();
    for file in files().iter().filter(|file| file.is_rust()) {
        for (start, _) in file.text.match_indices(concat!("[", "expect(")) {
            let rest = &file.text[start..];
            let attribute = &rest[..rest.find(")]").unwrap_or(rest.len())];
            if !attribute.contains("reason = \"") {
                offences.push(format!("{}: {attribute}", file.path));
            }
        }
    }
    none("an expected lint has a reason", offences);
}

#[test]
fn no_path_leads_out_of_the_project() {
    let outside = [concat!("/wo", "rk/"), concat!("sha", "red/")];
    let bad = |file: &File, line: &str| {
        // Tests may use data outside the project if an environment variable enables it.
        let asks = file.is_test() && file.text.contains("std::env::var_os(\"XDIT_");
        !asks && outside.iter().any(|path| line.contains(path))
    };
    none("the project refers to nothing outside it", places(&files(), bad));
}

#[test]
fn documents_point_at_what_is_there() {
    let mut offences = Vec::new();
    for file in files().iter().filter(|file| file.path.ends_with(".md")) {
        let folder = root().join(&file.path).parent().expect("a folder").to_owned();
        for (start, _) in file.text.match_indices("](") {
            let target = file.text[start + 2..].split([')', '#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                offences.push(format!("{}: `{target}` does not exist", file.path));
            }
        }
    }
    none("links have existing targets", offences);
}

#[test]
fn architecture_maps_the_code() {
    let files = files();
    let document = files.iter().find(|file| file.path == "ARCHITECTURE.md").expect("ARCHITECTURE.md");
    let lines = document.text.lines().count();
    assert!(lines <= MAX_ARCHITECTURE_LINES, "{lines} lines are more than {MAX_ARCHITECTURE_LINES}");
    let mut offences = Vec::new();
    for source in files.iter().filter(|file| !file.is_test()) {
        let krate = source.path.split('/').next().unwrap_or_default();
        // The files of a module are described at the module.
        let Some(module) = source.path.strip_prefix(&format!("{krate}/src/")) else { continue };
        let module = module.trim_end_matches(".rs").trim_end_matches("/mod");
        let section =
            document.text.split("\n### ").find(|section| section.starts_with(&format!("`{krate}`")));
        let Some(section) = section else {
            offences.push(format!("`{krate}` has no section in the code map"));
            continue;
        };
        let is_root = ["lib", "main"].contains(&module);
        if !is_root && !module.contains('/') && !section.contains(&format!("`{module}`")) {
            offences.push(format!("`{krate}`: module `{module}` is not in the code map"));
        }
    }
    // The first column may only name modules that exist.
    for section in document.text.split("\n### ").skip(1) {
        let krate = section.split('`').nth(1).unwrap_or_default();
        for cell in section.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next()) {
            for module in cell.split('`').step_by(2).filter(|_| section.contains("| file | what |")) {
                let exists = |file: &File| {
                    let path = file.path.strip_prefix(&format!("{krate}/src/{module}"));
                    path.is_some_and(|rest| rest == ".rs" || rest == "/mod.rs")
                };
                if !files.iter().any(exists) {
                    offences.push(format!("`{krate}`: there is no module `{module}`"));
                }
            }
        }
    }
    none("ARCHITECTURE.md changes with the code", offences);
}
