//! Ctrl-C.

use std::io::{BufRead, BufReader};
use std::process::Command;

use crate::workspace::Workspace;

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let workspace = Workspace::with_demo();
    // Far more steps than run before the interrupt.
    let run = [
        "generate",
        "--model",
        "demo",
        "--prompt",
        "a",
        "--num-inference-steps",
        "500",
        "--num-images",
        "100",
    ];
    let mut child = workspace.command(&run).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = lines.map(|line| line.unwrap());
    assert!(lines.any(|line| line.starts_with("denoising")), "denoising did not begin");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(lines.last().as_deref(), Some("interrupted"));
    assert_eq!(workspace.files(), ["demo"]);
}
