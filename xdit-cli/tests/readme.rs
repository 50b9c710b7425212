//! Runs the commands of the README.
#![forbid(unsafe_code)]

use std::fs;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Owners of models that are available only on the hub.
const HUB_OWNERS: [&str; 6] =
    ["PixArt-alpha/", "stabilityai/", "black-forest-labs/", "facebook/", "Tencent-Hunyuan/", "maxin-cn/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is in the workspace")
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("the README exists")
}

/// The commands in the `sh` blocks of `text`, in order; commands joined by `&&` are separated.
fn commands(text: &str) -> Vec<String> {
    let blocks =
        text.split("\n```sh\n").skip(1).map(|rest| rest.split_once("\n```").expect("a closed block").0);
    let commands = blocks.flat_map(str::lines).flat_map(|line| line.split(" && "));
    commands.map(|command| command.trim().to_owned()).filter(|command| !command.is_empty()).collect()
}

/// Runs a command in `dir`, in a shell that finds the program but has neither a network nor the user's settings.
fn run(command: &str, dir: &Path) -> Output {
    let binary = Path::new(env!("CARGO_BIN_EXE_xdit"));
    let path = format!("{}:/usr/bin:/bin", binary.parent().expect("a folder").display());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-euc", command]).current_dir(dir).env_clear().env("PATH", path).stdin(Stdio::null());
    shell
        .envs([("HF_HUB_OFFLINE", "1"), ("HF_HOME", "hub")])
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .output()
        .expect("a shell")
}

#[cfg(unix)]
#[test]
fn every_command_works() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // One command uses a checkpoint of the tests.
    std::os::unix::fs::symlink(root().join("tests"), dir.path().join("tests")).expect("a link");
    let mut ran = 0;
    for command in commands(&readme()) {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            // These two run in continuous integration.
            ["cargo", "build", "--release"] | ["cargo", "test", "--release", "--workspace"] => {}
            // Continuous integration checks the code of these features.
            ["CUDARC_CUDA_VERSION=13000", "cargo", "build", "--release", "--features", _] => {}
            ["export", "PATH=\"$PWD/target/release:$PATH\""] => {}
            // These examples run in `tests/cli/examples.rs`.
            ["cargo", "run", "--release", "-p", package, "--example", example, "--", "demo"] => {
                let source = root().join(package).join("examples").join(format!("{example}.rs"));
                assert!(source.is_file(), "`{command}`: there is no `{}`", source.display());
            }
            // These need the reference implementation.
            ["python", script, ..] => {
                assert!(root().join(script).is_file(), "`{command}`: there is no `{script}`")
            }
            ["xdit" | "target/release/xdit", ..] => {
                let output = run(command.trim_start_matches("target/release/"), dir.path());
                let talk = String::from_utf8_lossy(&output.stderr);
                if HUB_OWNERS.iter().any(|owner| command.contains(owner)) {
                    // All options are valid, and the download would come next. What comes then, `tests/cli/hub.rs` does with
                    // a hub of its own.
                    assert_eq!(output.status.code(), Some(1), "`{command}`: {talk}");
                    assert!(talk.contains("is not in the cache"), "`{command}`: {talk}");
                } else if command.ends_with("--device cuda") && !output.status.success() {
                    // All options are valid, and this machine or this build has no such device.
                    assert!(talk.contains("`cuda`"), "`{command}`: {talk}");
                } else {
                    assert!(output.status.success(), "`{command}`: {talk}");
                }
                ran += 1;
            }
            _ => panic!("this test cannot check `{command}`"),
        }
    }
    assert!(ran >= 8, "the README has only {ran} commands");
    for file in ["cactus.png", "cactus-3.png", "more-steps.png", "latents.safetensors", "timeline.svg"] {
        assert!(dir.path().join(file).is_file(), "`{file}` was not written");
    }
    // Rounding differs between instruction sets, which can change a pixel on the border of two bytes.
    let ((width, shown), pictures) = (pixels(&root().join("docs/small-model.png")), 4);
    assert_eq!(width, pictures * 256);
    for picture in 0..pictures {
        let (width, made) = pixels(&dir.path().join(format!("picture-{picture}.png")));
        assert_eq!(width, 256);
        let shown =
            shown.chunks_exact(3 * pictures * width).flat_map(|row| &row[3 * picture * width..][..3 * width]);
        let apart = shown.zip(&made).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(
            apart <= Some(1),
            "picture {picture} of docs/small-model.png is not that of the README's command"
        );
    }
}

/// The commands in the `text` blocks of the README start several processes. Each is run with the variables that its launcher
/// sets, or with the other nodes' commands of its block.
#[cfg(unix)]
#[test]
fn every_command_of_several_processes_works() {
    let readme = readme();
    let blocks =
        readme.split("\n```text\n").skip(1).map(|rest| rest.split_once("\n```").expect("a closed block").0);
    let (mut nodes, mut launched) = (Vec::new(), 0);
    for line in blocks.flat_map(str::lines) {
        let line = line.split("  #").next().unwrap_or_default();
        let at = line.find("xdit ").unwrap_or_else(|| panic!("`{line}` does not run the program"));
        let (launcher, command) = line.split_at(at);
        let (port, job) = (free_port(), format!("readme-{}", std::process::id()));
        let variables = |process: usize| -> Vec<(&str, String)> {
            let (process, host) = (process.to_string(), "127.0.0.1".to_owned());
            match launcher.split(' ').next().unwrap_or_default() {
                "torchrun" => vec![
                    ("RANK", process.clone()),
                    ("WORLD_SIZE", "2".to_owned()),
                    ("LOCAL_RANK", process),
                    ("MASTER_ADDR", host),
                    ("MASTER_PORT", (port - 1000).to_string()),
                ],
                "mpirun" => vec![
                    ("OMPI_COMM_WORLD_RANK", process.clone()),
                    ("OMPI_COMM_WORLD_SIZE", "2".to_owned()),
                    ("OMPI_COMM_WORLD_LOCAL_RANK", process),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2".to_owned()),
                    ("PMIX_NAMESPACE", job.clone()),
                ],
                "srun" => vec![
                    ("SLURM_PROCID", process.clone()),
                    ("SLURM_STEP_NUM_TASKS", "2".to_owned()),
                    ("SLURM_LOCALID", process),
                    ("SLURM_STEP_NODELIST", host),
                    ("SLURM_JOB_ID", job.clone()),
                ],
                _ => panic!("this test cannot check `{line}`"),
            }
        };
        match launcher {
            "" => nodes.push((command.replace("node-a", "127.0.0.1"), Vec::new())),
            _ => {
                together([0, 1].map(|process| (command.to_owned(), variables(process))).into());
                launched += 1;
            }
        }
    }
    let port = free_port();
    nodes.iter_mut().for_each(|(command, _)| *command = format!("{command} --rendezvous-port {port}"));
    assert_eq!((launched, nodes.len()), (3, 2));
    together(nodes);
}

/// A port that nobody uses.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// Runs commands at the same time, each with some variables. All must succeed, and one picture be written.
fn together(commands: Vec<(String, Vec<(&str, String)>)>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let start = |(command, variables): &(String, Vec<(&str, String)>)| {
            let variables: String =
                variables.iter().map(|(name, value)| format!("export {name}={value}; ")).collect();
            let command = format!("{variables}{command} --num-inference-steps 2 --device cpu");
            let dir = dir.path();
            scope.spawn(move || run(&command, dir))
        };
        let running: Vec<_> = commands.iter().map(start).collect();
        running.into_iter().map(|run| run.join().expect("no panic")).collect()
    });
    for output in &outputs {
        assert!(output.status.success(), "{commands:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let printed: Vec<_> = outputs.iter().map(|output| String::from_utf8_lossy(&output.stdout)).collect();
    assert_eq!(printed.concat(), "xdit.png\n", "{commands:?}");
    assert!(dir.path().join("xdit.png").is_file());
}

/// The width and the pixels of a PNG file in RGB.
fn pixels(path: &Path) -> (usize, Vec<u8>) {
    let file = BufReader::new(fs::File::open(path).expect("the picture exists"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a picture that fits in memory")];
    let info = reader.next_frame(&mut pixels).expect("a whole picture");
    (info.width as usize, pixels)
}

/// Continuous integration runs the block under each of its markers, so markers and commands must match its script.
#[test]
fn the_markers_for_continuous_integration_exist() {
    let (readme, script) = (readme(), fs::read_to_string(root().join(".ci/run")).expect(".ci/run"));
    for (name, command) in
        [("picture", "cargo build --release"), ("test", "cargo test --release --workspace")]
    {
        let marker = format!("\n<!-- ci:{name} -->\n```sh\n{command}");
        assert_eq!(readme.matches(&marker).count(), 1, "{name}");
        assert!(script.lines().any(|line| line == format!("readme {name}")), "{name}");
    }
}

/// Every option quoted in the README must exist.
#[test]
fn every_option_exists() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let help = |command: &str| {
        let output = run(&format!("xdit {command} --help"), dir.path());
        String::from_utf8(output.stdout).expect("help is UTF-8")
    };
    let help = [help("generate"), help("inspect")].concat();
    let readme = readme();
    let quoted: Vec<&str> =
        readme.split('`').skip(1).step_by(2).filter(|text| text.starts_with("--")).collect();
    assert!(quoted.len() > 10, "{quoted:?}");
    for text in quoted {
        let option = text.split([' ', '=']).next().unwrap_or_default();
        let listed = help.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == option);
        // Options of other programs are not in the help.
        let known = || {
            let output = run(&format!("xdit plan {option}=1"), dir.path());
            !String::from_utf8_lossy(&output.stderr).contains("unknown option")
        };
        assert!(listed || known(), "`{text}` is not an option");
    }
}
