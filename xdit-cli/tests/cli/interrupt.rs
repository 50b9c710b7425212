//! Signals.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use safetensors::SafeTensors;

use crate::workspace::{Workspace, pixels};

/// Far more work than is done before the signal.
const RUN: [&str; 7] = ["generate", "--model", "demo", "--prompt", "a", "--num-images", "1000"];

fn signal(child: &Child, name: &str) {
    let killed = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

/// Waits until a line of standard error begins with `start`.
fn wait_for(child: &mut Child, start: &str) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = lines.map(|line| line.unwrap());
    assert!(lines.any(|line| line.starts_with(start)), "nothing begins with `{start}`");
    lines
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let workspace = Workspace::with_demo();
    let mut child =
        workspace.command(&[&RUN[..], &["--num-inference-steps", "500"]].concat()).spawn().unwrap();
    let lines = wait_for(&mut child, "denoising");
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(lines.last().as_deref(), Some("interrupted"));
    assert_eq!(workspace.files(), ["demo"]);
}

#[test]
fn an_interrupt_keeps_the_pictures_that_are_done() {
    let workspace = Workspace::with_demo();
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut child =
            workspace.command(&[&RUN[..], &["--num-inference-steps", "1"]].concat()).spawn().unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        let mut paths: Vec<String> = printed.by_ref().take(2).collect();
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
        paths.extend(printed);
        assert_eq!(paths[..2], ["xdit-0.png", "xdit-1.png"]);
        // A picture that was saved last may not have been announced.
        let mut files = workspace.files();
        files.retain(|name| name != "demo");
        assert!(files.len() - paths.len() <= 1, "{files:?}, {paths:?}");
        for name in &files {
            assert_eq!(pixels(&workspace.path(name)).0, 256, "{name} is complete");
            std::fs::remove_file(workspace.path(name)).unwrap();
        }
    }
}

#[test]
fn an_interrupt_keeps_the_latents_that_are_done() {
    let workspace = Workspace::with_demo();
    let run = [&RUN[..], &["--num-inference-steps", "1", "--output-type", "latent"]].concat();
    let mut child = workspace.command(&run).spawn().unwrap();
    drop(wait_for(&mut child, "denoising picture 3 of 1000"));
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(workspace.files(), ["demo", "xdit.safetensors"]);
    let bytes = std::fs::read(workspace.path("xdit.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let images = file.tensor("latents").unwrap().shape()[0];
    assert!((1..1000).contains(&images), "{images} pictures");
}

/// Test programs may have been started with signals ignored; `env` sets them as the test needs them.
#[cfg(target_os = "linux")]
#[test]
fn a_hangup_ends_the_program_unless_it_is_ignored() {
    let workspace = Workspace::with_demo();
    for (setting, ended_by) in [("--default-signal=HUP", "HUP"), ("--ignore-signal=HUP", "TERM")] {
        let program = workspace.command(&[]);
        let mut command = Command::new("/usr/bin/env");
        command.arg(setting).arg(program.get_program()).args(RUN).args(["--num-inference-steps", "500"]);
        command.current_dir(workspace.path("")).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = wait_for(&mut child, "denoising");
        signal(&child, "HUP");
        if ended_by == "TERM" {
            assert!(child.try_wait().unwrap().is_none(), "a hangup that is ignored ends nothing");
            signal(&child, "TERM");
        }
        assert_eq!(child.wait().unwrap().code(), Some(143), "{setting}");
        assert_eq!(lines.last().as_deref(), Some("interrupted"));
    }
    assert_eq!(workspace.files(), ["demo"]);
}

/// A standard error that is closed, full or a broken pipe changes neither results nor exit codes.
#[cfg(target_os = "linux")]
#[test]
fn nobody_needs_to_listen() {
    let workspace = Workspace::with_demo();
    let shell = |script: &str| {
        let program = workspace.command(&[]);
        let script = script.replace("xdit", program.get_program().to_str().unwrap());
        let mut command = Command::new("bash");
        command.args(["-c", &script]).current_dir(workspace.path("")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
    };
    let generate = "xdit generate --model demo --prompt a --num-inference-steps 2 --output";
    for (number, target) in ["2>&-", "2>/dev/full", "2> >(exec true)", "2>&- >&-"].into_iter().enumerate() {
        assert_eq!(shell(&format!("{generate} {number}.png {target}")), Some(0), "{target}");
        assert_eq!(pixels(&workspace.path(&format!("{number}.png"))).0, 256);
        assert_eq!(shell(&format!("{generate} none/a.png {target}")), Some(1), "{target}");
        assert_eq!(shell(&format!("xdit generate --modle {target}")), Some(2), "{target}");
        let long = format!("{generate} a.png --num-images 1000 {target} & sleep 1; kill -INT $!; wait $!");
        // A shell starts background jobs with the signal ignored, unless it has job control.
        assert_eq!(shell(&format!("set -m; {long}")), Some(130), "{target}");
    }
}

/// No file stays open while pictures are made.
#[cfg(target_os = "linux")]
#[test]
fn few_files_are_open_at_a_time() {
    let workspace = Workspace::with_demo();
    let program = workspace.command(&[]);
    let script = format!(
        "ulimit -n 64; exec {} generate --model demo --prompt a --num-inference-steps 1 --num-images 100 --quiet --height 64 --width 64 --no-use-resolution-binning --output out-",
        program.get_program().to_str().unwrap()
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).current_dir(workspace.path("")).stdin(Stdio::null()).stdout(Stdio::null());
    assert!(shell.status().unwrap().success());
    assert_eq!(workspace.files().len(), 101);
}

/// Weights lie in mapped files. If one becomes shorter, reading its lost pages raises a signal.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_cut_during_a_run() {
    let workspace = Workspace::with_demo();
    let mut child =
        workspace.command(&[&RUN[..], &["--num-inference-steps", "500"]].concat()).spawn().unwrap();
    let lines = wait_for(&mut child, "denoising");
    let file = "demo/transformer/diffusion_pytorch_model.safetensors";
    std::fs::File::options().write(true).open(workspace.path(file)).unwrap().set_len(4096).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let lines: Vec<String> = lines.skip_while(|line| !line.starts_with("error: ")).collect();
    let [error, hint] = &lines[..] else { panic!("{lines:?}") };
    assert!(error.ends_with(&format!("{file}` became shorter while it was in use")), "{error}");
    assert!(hint.starts_with("hint: download the file again"), "{hint}");
    assert_eq!(workspace.files(), ["demo"]);
}

/// Whatever allocation or thread the system refuses, there is a sentence and exit code 1.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_cannot_be_had() {
    let workspace = Workspace::with_demo();
    let program = workspace.command(&[]);
    let mut refused = 0;
    for kib in [2_000_000, 1_000_000, 700_000, 500_000, 400_000, 300_000, 250_000, 200_000, 150_000, 120_000]
    {
        let script = format!(
            "ulimit -v {kib}; exec {} generate --model demo --prompt a --num-inference-steps 1 --threads 2 --height 1024 --width 1024 --quiet --output a.png",
            program.get_program().to_str().unwrap()
        );
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).current_dir(workspace.path("")).stdin(Stdio::null());
        let output = shell.output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        match output.status.code() {
            Some(0) => assert_eq!(error, ""),
            Some(1) => {
                let lines: Vec<&str> = error.lines().collect();
                assert!(lines[0].starts_with("error: ") && lines.len() <= 2, "{kib} KiB: {error}");
                refused += usize::from(lines[0].starts_with("error: the system has no memory for "));
            }
            code => panic!("{kib} KiB: {code:?} {error}"),
        }
    }
    assert!(refused > 0, "the limits are low enough");
}

/// A file above the limit on sizes is an error, not the end of the program, and leaves nothing behind.
#[test]
fn files_may_have_a_limited_size() {
    let workspace = Workspace::with_demo();
    let run = |limits: &str, options: &str| {
        let binary = env!("CARGO_BIN_EXE_xdit");
        let script = format!("{limits}; exec {binary} generate --model demo --prompt a --quiet {options}");
        Command::new("bash").args(["-c", &script]).current_dir(workspace.path("")).output().unwrap()
    };
    for options in
        ["--output a.png", "--output a.webp", "--output a.safetensors --num-images 4", "--output - > a.png"]
    {
        let output = run("ulimit -f 8", &format!("--num-inference-steps 1 {options}"));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{options}: {error}");
        assert!(error.contains("error: cannot write"), "{options}: {error}");
        if options.ends_with("> a.png") {
            std::fs::remove_file(workspace.path("a.png")).unwrap();
        } else {
            assert!(error.contains("hint: raise the limit on the size of files (`ulimit -f`)"), "{error}");
        }
        assert_eq!(workspace.files(), ["demo"], "{options}");
    }
    // Two seconds of CPU time do not suffice for a thousand pictures, of which some are kept.
    let output = run("ulimit -S -t 2", "--num-images 1000 --num-inference-steps 20");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("error: the limit on CPU time is reached\nhint: raise it (`ulimit -t`)"),
        "{error}"
    );
    for name in workspace.files().iter().filter(|name| *name != "demo") {
        assert_eq!(pixels(&workspace.path(name)).0, 256, "{name} is complete");
    }
}

/// The sentence on too many open files names the limit on them.
#[test]
fn few_open_files() {
    let workspace = Workspace::with_demo();
    for files in [5, 6, 8, 9, 10] {
        let script = format!(
            "ulimit -n {files}; exec {} generate --model demo --prompt a --num-inference-steps 1 --quiet",
            env!("CARGO_BIN_EXE_xdit")
        );
        let output =
            Command::new("bash").args(["-c", &script]).current_dir(workspace.path("")).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(0)
                || output.status.code() == Some(1) && error.contains("(`ulimit -n`)"),
            "{files}: {error}"
        );
    }
}
