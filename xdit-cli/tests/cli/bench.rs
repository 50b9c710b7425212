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
    assert!(report["step_tflop"].as_f64().unwrap() > 0.0 && report["profile"].is_null());
    let table = workspace.ok(&[&bench[..], &["--quiet"]].concat());
    let names: Vec<_> = table.lines().map(|line| line.split("  ").next().unwrap()).collect();
    let expected = ["seconds", "text encoding", "step", "VAE decode", "picture"];
    assert_eq!(names[..5], expected, "{table}");
    // Nothing is left behind.
    assert_eq!(workspace.files(), ["demo"]);
}

/// Every rank counts, so two ranks do as much work as one.
#[test]
fn a_profile_of_operations_and_blocks() {
    let workspace = Workspace::with_demo();
    let bench =
        ["bench", "demo", "--num-inference-steps", "2", "--warmup", "0", "--repeat", "1", "--profile"];
    let report = |further: &[&str]| -> Value {
        let report = workspace.ok(&[&bench[..], &["--quiet", "--report", "json"], further].concat());
        serde_json::from_str(&report).unwrap()
    };
    let [one, two] = [&[][..], &["--ulysses-degree", "2"]].map(report);
    let tflop = |report: &Value| report["step_tflop"].as_f64().unwrap();
    assert!((tflop(&two) / tflop(&one) - 1.0).abs() < 0.1, "{} and {}", tflop(&two), tflop(&one));
    let rows = one["profile"]["parts"].as_array().unwrap();
    let row = |name: &str| {
        rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name}: {rows:?}"))
    };
    let blocks = row("block 0-1");
    // Two blocks, two steps, and two branches of guidance.
    assert_eq!(blocks["calls"], 8);
    assert!(blocks["seconds"].as_f64().unwrap() > 0.0 && row("VAE")["tflops_per_s"].as_f64().unwrap() > 0.0);
    let shares = |rows: &Value| -> f64 {
        rows.as_array().unwrap().iter().map(|row| row["share"].as_f64().unwrap()).sum()
    };
    for rows in ["parts", "operations"] {
        assert!((shares(&one["profile"][rows]) - 1.0).abs() < 1e-6, "{rows}");
    }
    let table = workspace.ok(&[&bench[..], &["--quiet"]].concat());
    for line in ["part ", "block 0-1", "text encoders", "operation ", "attention ", "everything else"] {
        assert!(table.lines().any(|found| found.starts_with(line)), "no `{line}` in:\n{table}");
    }
}

#[test]
fn a_model_that_is_not_there() {
    let workspace = Workspace::new();
    insta::assert_snapshot!(workspace.error(&["bench", "./none"]), @r"
    2
    error: there is no folder `./none`
    hint: give a folder in the diffusers layout, or an id on the hub like `owner/name`
    ");
    let unknown = workspace.error(&["bench", "flux"]);
    let hint =
        unknown.strip_prefix("2\nerror: there is no folder `flux`\nhint: models of published size are ");
    assert!(hint.is_some_and(|names| names.contains("`flux-dev`")), "{unknown}");
    insta::assert_snapshot!(workspace.error(&["bench", "flux-dev", "--repeat", "0"]), @r"
    2
    error: `--repeat 0` measures nothing
    hint: the minimum is 1
    ");
}
