//! `xdit bench`

use serde_json::Value;

use crate::workspace::Workspace;

#[test]
fn the_figures_of_a_checkpoint() {
    let workspace = Workspace::with_demo();
    let bench = ["bench", "demo", "--num-inference-steps", "2", "--warmup", "1", "--repeat", "2"];
    let report =
        workspace.ok(&[&bench[..], &["--quiet", "--report", "json", "--ulysses-degree", "2"]].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["ranks"], &report["steps"]), (&2.into(), &2.into()));
    for name in ["step_s", "decode_s", "picture_s"] {
        let figure = |key: &str| report[name][key].as_f64().unwrap();
        assert!(0.0 < figure("min") && figure("min") <= figure("median"), "{name}");
        assert!(figure("median") <= figure("max"), "{name}");
    }
    let table = workspace.ok(&[&bench[..], &["--quiet"]].concat());
    let names: Vec<_> = table.lines().map(|line| line.split("  ").next().unwrap()).collect();
    let expected = ["seconds", "text encoding", "step", "VAE decode", "picture"];
    assert_eq!(names[..5], expected, "{table}");
    // Nothing is left behind.
    assert_eq!(workspace.files(), ["demo"]);
}

#[test]
fn a_model_that_is_not_there() {
    let workspace = Workspace::new();
    insta::assert_snapshot!(workspace.error(&["bench", "./none"]), @r"
    2
    error: there is no folder `./none`
    hint: give a folder in the diffusers layout, or an id on the hub like `owner/name`
    ");
    insta::assert_snapshot!(workspace.error(&["bench", "flux-dev", "--repeat", "0"]), @r"
    2
    error: `--repeat 0` measures nothing
    hint: the minimum is 1
    ");
}
