//! `xdit inspect`

use serde_json::Value;

use crate::workspace::Workspace;

#[test]
fn a_checkpoint_as_a_table() {
    let workspace = Workspace::with_demo();
    let table = workspace.ok(&["inspect", "demo"]);
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    insta::assert_snapshot!(table, @r"
    PixArtAlphaPipeline in demo

    component     class                        parameters  type     on disk
    scheduler     DPMSolverMultistepScheduler
    text_encoder  T5EncoderModel                    119 k  f32   466.25 KiB
    tokenizer     T5Tokenizer
    transformer   Transformer2DModel                191 k  f32   744.88 KiB
    vae           AutoencoderKL                     192 k  f32   751.81 KiB

    parameters   503 k on disk as 1.92 MiB
    memory       751.81 KiB as f32, 375.90 KiB as bf16 (the largest component)
    defaults     256x256 pixels, 20 steps, guidance 4.5, 120 tokens
    ");
}

#[test]
fn a_checkpoint_as_json() {
    let workspace = Workspace::with_demo();
    let inspection: Value = serde_json::from_str(&workspace.ok(&["inspect", "demo", "--json"])).unwrap();
    assert_eq!(inspection["class"], "PixArtAlphaPipeline");
    assert_eq!(inspection["defaults"]["height"], 256);
    assert_eq!(inspection["problem"], Value::Null);
    let components = inspection["components"].as_array().unwrap();
    let weights: Vec<&Value> = components.iter().map(|c| &c["weights"]).filter(|w| !w.is_null()).collect();
    assert_eq!((components.len(), weights.len()), (5, 3));
    for weights in weights {
        let parameters = weights["parameters"].as_u64().unwrap();
        assert_eq!(weights["bytes"], 4 * parameters);
        assert_eq!(weights["memory"]["bf16_bytes"], 2 * parameters);
        assert_eq!(weights["dtypes"], serde_json::json!(["f32"]));
        assert_eq!(weights["files"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_checkpoint_that_cannot_run_can_be_inspected() {
    let workspace = Workspace::with_demo();
    let index = workspace.path("demo/model_index.json");
    let text = std::fs::read_to_string(&index).unwrap().replace("PixArtAlphaPipeline", "CubismPipeline");
    std::fs::write(&index, text).unwrap();
    let table = workspace.ok(&["inspect", "demo"]);
    assert!(
        table.ends_with("cannot run   pipelines of class `CubismPipeline` are not supported\n"),
        "{table}"
    );
}

#[test]
fn a_picture_shows_how_it_was_made() {
    let workspace = Workspace::with_demo();
    workspace.generate(&["--prompt", "a\nb", "--seed", "7", "--negative-prompt", "c", "--output", "a.jpg"]);
    let table = workspace.ok(&["inspect", "a.jpg"]);
    for line in [
        "prompt                  a\\nb",
        "seed                    7",
        "negative-prompt         c",
        "model                   demo",
    ] {
        assert!(table.lines().any(|found| found == line), "{line} in {table}");
    }
    assert!(table.ends_with("\nagain: xdit generate --from a.jpg\n"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&workspace.ok(&["inspect", "a.jpg", "--json"])).unwrap();
    assert_eq!((&json["prompt"], &json["seed"]), (&"a\nb".into(), &7.into()));
}
