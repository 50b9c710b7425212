//! The record of a parallel run: the trace, the timeline and the report.

use std::fs;

use serde_json::Value;

use crate::workspace::Workspace;

const STAGES: [&str; 8] = [
    "--prompt",
    "a",
    "--pipefusion-parallel-degree",
    "2",
    "--ulysses-degree",
    "2",
    "--num-pipeline-patch",
    "3",
];

/// A complete event of a thread: name, category, begin and end in µs, and arguments.
struct Event<'a> {
    name: &'a str,
    category: &'a str,
    begin: f64,
    end: f64,
    arguments: &'a Value,
}

fn events(trace: &Value, thread: usize) -> Vec<Event<'_>> {
    let all = trace["traceEvents"].as_array().expect("a list").iter();
    let own = all.filter(|event| event["ph"] == "X" && event["tid"] == thread);
    own.map(|event| {
        let [begin, duration] = ["ts", "dur"].map(|key| event[key].as_f64().expect("a time"));
        Event {
            name: event["name"].as_str().expect("a name"),
            category: event["cat"].as_str().expect("a category"),
            begin,
            end: begin + duration,
            arguments: &event["args"],
        }
    })
    .collect()
}

#[test]
fn a_trace_contains_the_activity_of_every_rank() {
    let workspace = Workspace::with_demo();
    workspace.generate(&[&STAGES[..], &["--use-parallel-vae", "--trace", "trace.json"]].concat());
    let trace: Value = serde_json::from_slice(&fs::read(workspace.path("trace.json")).unwrap()).unwrap();
    let all = trace["traceEvents"].as_array().unwrap();
    let names: Vec<&str> = all
        .iter()
        .filter(|event| event["name"] == "thread_name")
        .map(|event| event["args"]["name"].as_str().unwrap())
        .collect();
    insta::assert_snapshot!(names.join("\n"), @r"
    program
    rank 0 pp 0, ulysses 0
    rank 1 pp 0, ulysses 1
    rank 2 pp 1, ulysses 0
    rank 3 pp 1, ulysses 1
    ");

    let phases: Vec<&str> = events(&trace, 0).iter().map(|event| event.name).collect();
    let expected = ["load text_encoder", "encode", "load transformer", "denoise 0", "load vae", "decode 0"];
    assert_eq!(phases, expected);

    for rank in 0..4 {
        let events = events(&trace, rank + 1);
        let (waits, spans): (Vec<_>, Vec<_>) = events.iter().partition(|event| event.category == "wait");
        // Times in µs are rounded to f64.
        let rounding = 0.01;
        assert!(spans.windows(2).all(|pair| pair[0].end <= pair[1].begin + rounding), "rank {rank}");
        assert!(!waits.is_empty(), "rank {rank} has no waits");
        for wait in &waits {
            let inside =
                |span: &&&Event<'_>| span.begin <= wait.begin + rounding && wait.end <= span.end + rounding;
            assert_eq!(
                spans.iter().filter(inside).count(),
                1,
                "rank {rank}: {} at {}",
                wait.name,
                wait.begin
            );
        }
        // Two steps with two branches of guidance each; the first step processes all patches together.
        let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
        let stage = rank / 2;
        assert_eq!(count(["blocks 0..1", "blocks 1..2"][stage]), 2 + 2 * 3, "rank {rank}");
        assert_eq!(count(["embed", "finish"][stage]), 2 + 2 * 3, "rank {rank}");
        assert_eq!(count(["send tokens", "receive tokens"][stage]), 2 + 2 * 3, "rank {rank}");
        assert_eq!(count("step"), stage * (1 + 3), "rank {rank}");
        // Transformer and autoencoder.
        assert_eq!((count("load"), count("prepare conditions"), count("decode")), (2, 1, 1), "rank {rank}");
        assert_eq!(count("broadcast conditions"), 1, "rank {rank}");
        let blocks = spans.iter().rfind(|span| span.name.starts_with("blocks")).unwrap();
        let arguments =
            ["image", "step", "patches", "branch", "blocks"].map(|key| blocks.arguments[key].clone());
        let own = format!("{stage}..{}", stage + 1);
        let expected = serde_json::json!([0, 1, "2..3", 1, own]);
        assert_eq!(Value::from(arguments.to_vec()), expected, "rank {rank}");
        assert!(blocks.arguments["sent_bytes"].as_u64().unwrap() > 0, "Ulysses sends nothing inside blocks");
    }
}

#[test]
fn branches_as_one_batch_are_one_pass() {
    let workspace = Workspace::with_demo();
    let batch = ["--device", "cpu", "--prompt", "a", "--guidance-batch", "on", "--trace"];
    workspace.generate(&[&batch[..], &["trace.json"]].concat());
    let trace: Value = serde_json::from_slice(&fs::read(workspace.path("trace.json")).unwrap()).unwrap();
    let events = events(&trace, 1);
    let blocks: Vec<_> = events.iter().filter(|event| event.name == "blocks 0..2").collect();
    assert_eq!(blocks.len(), 2, "one pass in each of two steps");
    assert!(blocks.iter().all(|event| event.arguments["branch"] == "0..2"));
    workspace.generate(&[&batch[..], &["trace.svg"]].concat());
    let svg = fs::read_to_string(workspace.path("trace.svg")).unwrap();
    assert!(svg.contains("3±: step 3, both branches as one batch"), "{svg}");
}

#[test]
fn a_run_on_one_rank_can_be_traced() {
    let workspace = Workspace::with_demo();
    workspace.generate(&["--prompt", "a", "--trace", "trace.json"]);
    let trace: Value = serde_json::from_slice(&fs::read(workspace.path("trace.json")).unwrap()).unwrap();
    let names: Vec<&str> = events(&trace, 1).iter().map(|event| event.name).collect();
    insta::assert_snapshot!(names.join("\n"), @r"
    load
    prepare conditions
    embed
    blocks 0..2
    finish
    embed
    blocks 0..2
    finish
    step
    embed
    blocks 0..2
    finish
    embed
    blocks 0..2
    finish
    step
    gather latents
    load
    decode
    ");
    assert!(events(&trace, 2).is_empty());
}

#[test]
fn a_timeline_has_a_lane_for_each_rank_and_a_colour_for_each_patch() {
    let workspace = Workspace::with_demo();
    workspace.generate(&[&STAGES[..], &["--trace", "timeline.SVG"]].concat());
    let svg = fs::read_to_string(workspace.path("timeline.SVG")).unwrap();
    assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && svg.ends_with("</svg>\n"));
    for text in ["rank 0 · pp 0, ulysses 0", "rank 3 · pp 1, ulysses 1", "all patches", "patch 2", "waiting"]
    {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}");
    }
    assert_eq!(svg.matches("class=\"l\"").count(), 4, "one lane for each rank");
    let places: Vec<_> = (0..4).map(|rank| svg.find(&format!(">rank {rank} "))).collect();
    assert!(places.is_sorted(), "lanes are not in the order of ranks");
    for class in ["a", "c0", "c1", "c2", "w"] {
        // One of the matches is in the legend.
        assert!(svg.matches(&format!("class=\"{class}\"")).count() > 1, "{class}");
    }
    assert!(
        !svg.contains("class=\"c3\"") && !svg.contains("href"),
        "there are three patches, and no external references"
    );
    assert_eq!(svg.matches("<rect").count(), svg.matches("<rect ").count());
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

/// Compares the structure of the report and all values that do not depend on time.
#[test]
fn the_report_covers_every_rank() {
    let workspace = Workspace::with_demo();
    let report = workspace.generate(&[&STAGES[..], &["--report", "json"]].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    let ranks = report["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 4);
    for (index, rank) in ranks.iter().enumerate() {
        assert_eq!(rank["rank"], index);
        assert!(rank["seconds"]["compute"].as_f64().unwrap() > 0.0);
        let rows = rank["traffic"].as_array().unwrap().iter();
        let waits: f64 = rows.map(|row| row["wait_s"].as_f64().unwrap()).sum();
        assert!((rank["seconds"]["wait"].as_f64().unwrap() - waits).abs() < 1e-6);
    }
    let mut last = ranks[3].clone();
    redact(&mut last);
    insta::assert_snapshot!(serde_json::to_string_pretty(&last).unwrap(), @r#"
    {
      "rank": 3,
      "coordinates": {
        "dp": 0,
        "cfg": 0,
        "pp": 1,
        "ring": 0,
        "ulysses": 1,
        "tp": 0
      },
      "seconds": {
        "load": "[seconds]",
        "compute": "[seconds]",
        "wait": "[seconds]",
        "communication": "[seconds]",
        "decode": "[seconds]"
      },
      "parameter_bytes": 491392,
      "peak_kv_bytes": 131072,
      "traffic": [
        {
          "group": "pp",
          "operation": "send",
          "calls": 4,
          "messages": 4,
          "sent_bytes": 16256,
          "wait_s": "[seconds]"
        },
        {
          "group": "pp",
          "operation": "recv",
          "calls": 8,
          "messages": 0,
          "sent_bytes": 0,
          "wait_s": "[seconds]"
        },
        {
          "group": "ulysses",
          "operation": "all_to_all",
          "calls": 16,
          "messages": 32,
          "sent_bytes": 261120,
          "wait_s": "[seconds]"
        },
        {
          "group": "world",
          "operation": "recv",
          "calls": 4,
          "messages": 0,
          "sent_bytes": 0,
          "wait_s": "[seconds]"
        }
      ]
    }
    "#);
}

/// Replaces values that differ from run to run.
fn redact(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => *value = "[seconds]".into(),
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::Object(map) => map.values_mut().for_each(redact),
        _ => {}
    }
}

#[test]
fn an_unwritable_trace_is_refused_before_the_run() {
    let workspace = Workspace::with_demo();
    let error =
        |file| workspace.error(&["generate", "--model", "demo", "--prompt", "a", "--quiet", "--trace", file]);
    insta::assert_snapshot!(error("trace.txt"), @r"
    2
    error: trace `trace.txt` does not end in `.json` or `.svg`
    hint: use `.json` for trace viewers such as Perfetto, or `.svg` for a picture
    ");
    insta::assert_snapshot!(error("nowhere/trace.json"), @r"
    1
    error: cannot write `nowhere/trace.json`: there is no folder `nowhere`
    hint: create the folder first
    ");
    fs::create_dir(workspace.path("folder.svg")).unwrap();
    insta::assert_snapshot!(error("folder.svg"), @r"
    2
    error: output `folder.svg` is a folder
    hint: choose the path of a file
    ");
}
