//! Compares the tables of the README with the lists of models and methods.

use std::path::Path;

use xdit_core::methods::METHODS;
use xdit_models::{GAPS, MODELS};
use xdit_tests::verified;

/// A table in Markdown.
fn table(head: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    line(&head) + &rule + &rows.iter().map(|row| line(row)).collect::<String>()
}

fn assert_in_readme(what: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    assert!(readme.contains(table), "the README's table of {what} is to be\n\n{table}");
}

/// A model has a ✔ if its tests count comparisons: `tests/verified.json`. The reason for each missing one follows.
#[test]
fn models_and_methods() {
    let head = ["model", "serial"].into_iter().chain(METHODS.iter().map(|method| method.name));
    let verified = verified::read();
    let row = |name: &str| {
        let of = |method: &str| verified.get(name).and_then(|methods| methods.get(method)).copied();
        let mark = |method| {
            let (has, gap) =
                (of(method) > Some(0), GAPS.iter().any(|gap| (gap.model, gap.method) == (name, method)));
            assert!(has != gap, "{name} has comparisons for {method}, or a reason for their absence");
            if has { "✔" } else { "" }.to_owned()
        };
        let methods = [verified::SERIAL].into_iter().chain(METHODS.iter().map(|method| method.name));
        [name.to_owned()].into_iter().chain(methods.map(mark)).collect()
    };
    let rows = MODELS.iter().map(|model| row(model.name)).collect();
    let gaps = GAPS.iter().map(|gap| format!("- {}, {}: {}\n", gap.model, gap.method, gap.reason));
    let table = table(head.map(str::to_owned).collect(), rows) + "\n" + &gaps.collect::<String>();
    assert_in_readme("models", &table);
}

#[test]
fn methods() {
    let head = ["method", "option", "spreads over ranks", "source"].map(str::to_owned).to_vec();
    let row = |method: &xdit_core::methods::Method| {
        vec![
            method.name.to_owned(),
            format!("`{}`", method.option),
            method.spreads.to_owned(),
            method.source.to_owned(),
        ]
    };
    assert_in_readme("methods", &table(head, METHODS.iter().map(row).collect()));
}
