//! Compares the tables of the README with the lists of models and methods.

use std::path::Path;

use xdit_core::methods::METHODS;
use xdit_models::MODELS;
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

/// A model has a ✔ if its tests count comparisons: `tests/verified.json`.
#[test]
fn models_and_methods() {
    let head = ["model", "serial"].into_iter().chain(METHODS.iter().map(|method| method.name));
    let verified = verified::read();
    let row = |name: &str| {
        let of = |method: &str| verified.get(name).and_then(|methods| methods.get(method)).copied();
        let mark = |method| if of(method) > Some(0) { "✔" } else { "" }.to_owned();
        let methods = [verified::SERIAL].into_iter().chain(METHODS.iter().map(|method| method.name));
        [name.to_owned()].into_iter().chain(methods.map(mark)).collect()
    };
    let rows = MODELS.iter().map(|model| row(model.name)).collect();
    assert_in_readme("models", &table(head.map(str::to_owned).collect(), rows));
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
