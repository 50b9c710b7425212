//! `xdit generate` in several processes.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::workspace::{Run, Workspace, pixels};

/// A port that nobody uses.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// The command of process `process` of `processes`.
fn command(workspace: &Workspace, [process, processes]: [usize; 2], port: &str, args: &[&str]) -> Command {
    let (process, processes) = (process.to_string(), processes.to_string());
    let place = ["--nnodes", &processes, "--node-rank", &process, "--master-addr", "127.0.0.1"];
    let run = ["generate", "--model", "demo", "--prompt", "a", "--device", "cpu", "--master-port", port];
    workspace.command(&[&run[..], &place, args].concat())
}

fn start(workspace: &Workspace, processes: usize, args: &[&str]) -> Vec<Child> {
    let port = free_port();
    let start = |process| command(workspace, [process, processes], &port, args).spawn().unwrap();
    (0..processes).map(start).collect()
}

fn end(child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn run(workspace: &Workspace, processes: usize, args: &[&str]) -> Vec<Run> {
    start(workspace, processes, args).into_iter().map(end).collect()
}

#[test]
fn processes_make_the_pictures_of_threads() {
    let workspace = Workspace::with_demo();
    let cases: [(usize, &[&str]); 11] = [
        (2, &["--use-cfg-parallel"]),
        (2, &["--ulysses-degree", "2"]),
        (2, &["--ring-degree", "2"]),
        (2, &["--pipefusion-parallel-degree", "2"]),
        (2, &["--tensor-parallel-degree", "2"]),
        (2, &["--ring-degree", "2", "--distrifusion"]),
        (2, &["--ulysses-degree", "2", "--use-parallel-vae"]),
        (2, &["--data-parallel-degree", "2", "--num-images", "3"]),
        (4, &["--pipefusion-parallel-degree", "2", "--use-cfg-parallel"]),
        (2, &["--ulysses-degree", "2", "--use-cfg-parallel"]),
        (2, &["--pipefusion-parallel-degree", "2", "--guidance-batch", "on"]),
    ];
    for (processes, args) in cases {
        let options = [args, &["--num-inference-steps", "3", "--quiet", "--output"]].concat();
        let images = if args.contains(&"3") { 3 } else { 1 };
        let names = |stem: &str| -> Vec<String> {
            (0..images)
                .map(|i| if images == 1 { format!("{stem}.png") } else { format!("{stem}-{i}.png") })
                .collect()
        };
        let alone = ["generate", "--model", "demo", "--prompt", "a", "--device", "cpu"];
        workspace.ok(&[&alone, &options[..], &["threads.png"]].concat());
        let runs = run(&workspace, processes, &[&options[..], &["processes.png"]].concat());
        for (process, run) in runs.iter().enumerate() {
            assert_eq!((run.code, &*run.stderr), (Some(0), ""), "process {process} with {args:?}");
            let mut printed: Vec<_> = run.stdout.lines().map(str::to_owned).collect();
            printed.sort();
            assert_eq!(printed, if process == 0 { names("processes") } else { Vec::new() }, "{args:?}");
        }
        for (threads, processes) in names("threads").iter().zip(names("processes")) {
            let bytes = |name: &str| std::fs::read(workspace.path(name)).unwrap();
            assert_eq!(bytes(threads), bytes(&processes), "{args:?}");
            [threads, &processes]
                .into_iter()
                .for_each(|name| std::fs::remove_file(workspace.path(name)).unwrap());
        }
    }
}

/// The last process has the parts of previews, and the first one puts them together.
#[test]
fn one_process_writes_previews() {
    let workspace = Workspace::with_demo();
    let options = [
        "--pipefusion-parallel-degree",
        "2",
        "--num-inference-steps",
        "4",
        "--preview",
        "3",
        "--quiet",
        "--output",
    ];
    let alone = ["generate", "--model", "demo", "--prompt", "a", "--device", "cpu"];
    workspace.ok(&[&alone, &options[..], &["threads.safetensors"]].concat());
    for run in run(&workspace, 2, &[&options[..], &["processes.safetensors"]].concat()) {
        assert_eq!((run.code, &*run.stderr), (Some(0), ""));
    }
    let preview = |name: &str| pixels(&workspace.path(&format!("{name}.preview.png")));
    assert_eq!(preview("processes"), preview("threads"));
}

#[test]
fn one_process_reports_all_ranks() {
    let workspace = Workspace::with_demo();
    let args = ["--data-parallel-degree", "2", "--num-images", "2", "--num-inference-steps", "2"];
    let files = ["--trace", "trace.json", "--output-type", "latent", "--report", "json"];
    let runs = run(&workspace, 2, &[&args[..], &files].concat());
    assert_eq!(runs[1].stdout, "");
    let report: serde_json::Value = serde_json::from_str(&runs[0].stdout).expect(&runs[0].stderr);
    let mut ranks: Vec<_> =
        report["ranks"].as_array().unwrap().iter().map(|rank| rank["rank"].as_u64()).collect();
    ranks.sort();
    assert_eq!(ranks, [Some(0), Some(1)]);
    assert_eq!(report["seconds"]["steps"].as_array().unwrap().len(), 2);
    assert_eq!(workspace.files(), ["demo", "trace.json", "xdit.safetensors"]);
}

#[test]
fn different_command_lines_are_refused_before_any_work() {
    let workspace = Workspace::with_demo();
    let port = free_port();
    let start = |process, seed| {
        let args = ["--seed", seed, "--ulysses-degree", "2", "--quiet"];
        command(&workspace, [process, 2], &port, &args).spawn().unwrap()
    };
    for run in [start(0, "1"), start(1, "2")].map(end) {
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains("`seed` is `1` in process 0 on"), "{}", run.stderr);
        assert!(run.stderr.contains("and `2` in process 1 on"), "{}", run.stderr);
    }
    assert_eq!(workspace.files(), ["demo"]);
}

#[test]
fn ranks_that_cannot_be_divided_are_refused() {
    let workspace = Workspace::with_demo();
    for run in run(&workspace, 2, &["--quiet"]) {
        // Each process finds the mistake, or stops because the other one has.
        assert!(matches!(run.code, Some(1 | 2)), "{}", run.stderr);
        assert!(run.stderr.contains("the plan has 1 rank for 2 processes"), "{}", run.stderr);
    }
    assert_eq!(workspace.files(), ["demo"]);
}

#[test]
fn a_missing_process_and_a_wrong_number_end_the_meeting() {
    let workspace = Workspace::with_demo();
    let port = free_port();
    let alone = ["--ulysses-degree", "2", "--rendezvous-timeout", "1"];
    let run = end(command(&workspace, [0, 2], &port, &alone).spawn().unwrap());
    assert_eq!(run.code, Some(1));
    let expected = format!("error: of 2 processes, [1] did not come to `127.0.0.1:{port}` within 1s\n");
    assert!(run.stderr.starts_with(&expected), "{}", run.stderr);

    let args = ["--ulysses-degree", "2"];
    let children = [[0, 2], [1, 3]].map(|place| command(&workspace, place, &port, &args).spawn().unwrap());
    for run in children.map(end) {
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.starts_with("error: different numbers of processes: process 1"), "{}", run.stderr);
    }
}

/// Waits until process 0 computes.
#[cfg(unix)]
fn denoising(children: &mut [Child]) {
    let lines = BufReader::new(children[0].stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.starts_with("denoising")));
}

#[cfg(unix)]
#[test]
fn a_killed_process_ends_all_others() {
    let workspace = Workspace::with_demo();
    let args = ["--ring-degree", "3", "--num-images", "1000", "--num-inference-steps", "500"];
    let mut children = start(&workspace, 3, &args);
    denoising(&mut children);
    let started = Instant::now();
    children[1].kill().unwrap();
    children.remove(1).wait().unwrap();
    for child in children {
        let run = end(child);
        assert_eq!(run.code, Some(1));
        // The pipe of process 0 was read above.
        let named = "error: stopped by lost process 1 on `";
        assert!(
            run.stderr.is_empty() || run.stderr.contains(named) && run.stderr.contains("(rank 1)"),
            "{}",
            run.stderr
        );
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(workspace.files(), ["demo"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_of_one_process_ends_all() {
    let workspace = Workspace::with_demo();
    let args = ["--ring-degree", "2", "--num-images", "1000", "--num-inference-steps", "500"];
    let mut children = start(&workspace, 2, &args);
    denoising(&mut children);
    let id = children[0].id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let started = Instant::now();
    let [first, second] = <[Child; 2]>::try_from(children).unwrap().map(end);
    assert_eq!((first.code, second.code), (Some(130), Some(130)), "{}", second.stderr);
    assert!(second.stderr.contains("stopped by process 0 on `"), "{}", second.stderr);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(workspace.files(), ["demo"]);
}

/// Runs the picture of two ranks with a real launcher.
fn launched(launcher: &[&str]) {
    let workspace = Workspace::with_demo();
    let args = ["generate", "--model", "demo", "--prompt", "a", "--device", "cpu", "--ulysses-degree", "2"];
    let args = [&args[..], &["--num-inference-steps", "2"]].concat();
    workspace.ok(&[&args[..], &["--output", "threads.png"]].concat());
    let program = workspace.command(&args);
    let mut command = Command::new(launcher[0]);
    command.args(&launcher[1..]).arg(program.get_program()).args(program.get_args());
    let output = command.current_dir(workspace.path("")).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stdout.matches("xdit.png").count(), 1, "{stdout}");
    assert_eq!(pixels(&workspace.path("xdit.png")), pixels(&workspace.path("threads.png")));
}

#[test]
#[ignore = "needs torchrun, which XDIT_TORCHRUN names; .ci/run runs it where it is"]
fn launcher_torchrun() {
    let torchrun = std::env::var("XDIT_TORCHRUN").unwrap_or_else(|_| "torchrun".to_owned());
    launched(&[&torchrun, "--standalone", "--nproc-per-node", "2", "--no-python"]);
}

#[test]
#[ignore = "needs Open MPI's mpirun; .ci/run installs it"]
fn launcher_mpirun() {
    launched(&["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]);
}
