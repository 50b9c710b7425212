//! `xdit plan`

use serde_json::{Value, json};

use crate::workspace::Workspace;

#[test]
fn a_plan_as_json_has_the_same_contents_as_the_table() {
    let workspace = Workspace::with_demo();
    let plan = workspace.ok(&["plan", "--model", "demo", "--ring-degree", "2", "--report", "json"]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["degrees"]["ring"], 2);
    assert_eq!((&plan["steps"], &plan["synchronous_steps"]), (&json!(20), &json!(20)));
    assert_eq!(plan["patches"], json!([[0, 256]]));
    let ranks = plan["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 2);
    assert_eq!(ranks[1]["coordinates"]["ring"], 1);
    assert_eq!((&ranks[1]["blocks"], &ranks[1]["tokens"]), (&json!([0, 2]), &json!(128)));
    // The keys and values of half the tokens, in both blocks and both branches of guidance.
    let config = std::fs::read_to_string(workspace.path("demo/transformer/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let side = |name: &str| config[name].as_u64().unwrap();
    let width = side("num_attention_heads") * side("attention_head_dim");
    assert_eq!(ranks[0]["step_bytes"], json!({ "ring": 2 * 2 * 2 * 128 * width * 4 }));
    assert_eq!(ranks[0]["peak_kv_bytes"], 0);
    // The timestep and six modulations in both branches, for all 20 steps.
    assert_eq!(ranks[0]["context_bytes"], json!(2 * 20 * 7 * width * 4));
    let bytes = |of: &Value, name: &str| of[name].as_u64().unwrap();
    let (rank, process) = (&ranks[0], &plan["process"]);
    assert!(bytes(rank, "parameter_bytes") > 0 && bytes(rank, "once_parameter_bytes") > 0);
    // Both ranks hold the same layers and contexts.
    assert!(bytes(process, "parameter_bytes") * 10 < bytes(rank, "parameter_bytes") * 11);
    for name in ["once_parameter_bytes", "context_bytes"] {
        assert_eq!(process[name], rank[name]);
    }
    let residency = &plan["residency"];
    assert_eq!((&residency["keep"], &residency["once"]), (&json!("request"), &json!("held")));
    assert!(bytes(residency, "free_bytes") > bytes(residency, "transformer_bytes"));
}

/// A rank computes both branches of guidance as one batch, unless they are on different ranks; by default, not on the CPU.
#[test]
fn a_plan_shows_which_branches_are_one_batch() {
    let workspace = Workspace::with_demo();
    let plan = |options: &[&str]| {
        let demo = ["plan", "--model", "demo", "--device", "cpu"];
        let all = |more: &[&'static str]| workspace.ok(&[&demo, options, more].concat());
        let json: Value = serde_json::from_str(&all(&["--report", "json"])).unwrap();
        let passes = json["ranks"].as_array().unwrap().iter().map(|rank| rank["passes"].clone()).collect();
        (all(&[]).contains("\n2 branches of guidance as one batch\n"), Value::Array(passes))
    };
    let on = ["--guidance-batch", "on"];
    assert_eq!(plan(&on), (true, json!([[[0, 2]]])));
    assert_eq!(plan(&[&on[..], &["--use-cfg-parallel"]].concat()), (false, json!([[[0, 1]], [[1, 2]]])));
    assert_eq!(plan(&[&on[..], &["--guidance-scale", "1"]].concat()), (false, json!([[[0, 1]]])));
    for off in [&[][..], &["--guidance-batch", "auto"], &["--guidance-batch", "off"]] {
        assert_eq!(plan(off), (false, json!([[[0, 1], [1, 2]]])));
    }
}

#[test]
fn a_plan_ends_with_the_reason_for_what_stays_in_memory() {
    let workspace = Workspace::with_demo();
    let residency = |keep: &str| {
        let plan = workspace.ok(&["plan", "--model", "demo", "--keep", keep]);
        let (line, free) = plan.lines().last().unwrap().rsplit_once(", free memory ").unwrap();
        assert!(free.ends_with("iB)"), "{free}");
        line.to_owned()
    };
    let lines = ["auto", "none", "transformer"].map(residency).join("\n");
    insta::assert_snapshot!(lines, @"
    residency (`--keep request`): nothing stays in memory after the last picture; layers used once stay as long as the transformer (transformer and autoencoder 1.46 MiB
    residency (`--keep none`): nothing stays in memory after the last picture; layers used once are read for each picture (transformer and autoencoder 1.46 MiB
    residency (`--keep transformer`): transformer and autoencoder stay in memory; layers used once stay as long as the transformer (transformer and autoencoder 1.46 MiB
    ");
}
