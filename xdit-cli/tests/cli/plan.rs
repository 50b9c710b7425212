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
    assert!(ranks[0]["parameter_bytes"].as_u64().unwrap() > 0);
}
