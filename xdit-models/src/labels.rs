//! The classes of a class-conditional model, by number and by name.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use xdit_core::{Error, Result};

/// The number of names that an error proposes.
const PROPOSED: usize = 3;

/// The names of classes.
#[derive(Clone, Debug)]
pub struct Labels {
    /// The number of classes, which also stands for no class.
    classes: usize,
    /// A class may have several names. Of several classes with the same name, the last one counts.
    by_name: BTreeMap<String, usize>,
}

impl Labels {
    /// Reads `id2label` of `model_index.json`: for each class its names, separated by commas.
    ///
    /// # Source
    /// diffusers' `DiTPipeline.__init__`.
    ///
    /// # Errors
    /// If it is malformed, or names a class beyond the model's `classes`.
    pub fn new(id2label: &Map<String, Value>, classes: usize) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        for (class, names) in id2label {
            let id = class.parse().ok().filter(|id| *id < classes);
            let (Some(id), Some(names)) = (id, names.as_str()) else {
                return Err(Error::failure(format!(
                    "`id2label` in `model_index.json` has `{class}`: {names}"
                ))
                .hint(format!("it maps the numbers of the model's {classes} classes to their names")));
            };
            by_name.extend(names.split(',').map(|name| (name.trim().to_owned(), id)));
        }
        Ok(Self { classes, by_name })
    }

    /// The number that stands for no class.
    pub fn none(&self) -> usize {
        self.classes
    }

    /// The class that `label` denotes: a number, a name, or no class if it is empty.
    ///
    /// # Errors
    /// If there is no such class. The hint has the nearest names.
    pub fn class(&self, label: &str) -> Result<usize> {
        let label = label.trim();
        if let Some(&class) = self.by_name.get(label) {
            return Ok(class);
        }
        if label.is_empty() {
            return Ok(self.none());
        }
        if label.bytes().all(|byte| byte.is_ascii_digit()) {
            let class = label.parse().ok().filter(|class| *class <= self.classes);
            return class.ok_or_else(|| {
                Error::usage(format!("there is no class `{label}`"))
                    .hint(format!("classes have the numbers 0 to {}; {0} is no class", self.classes))
            });
        }
        let hint = match &self.nearest(label)[..] {
            [] => {
                format!("this checkpoint has no names of classes: give a number from 0 to {}", self.classes)
            }
            names => {
                let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                format!("give a number, or a name such as {}", names.join(", "))
            }
        };
        Err(Error::usage(format!("there is no class called `{label}`")).hint(hint))
    }

    /// The names nearest to `label`: first those with a word in common, then by the number of different characters.
    fn nearest(&self, label: &str) -> Vec<&str> {
        let label = label.to_lowercase();
        let words: Vec<&str> = label.split_whitespace().collect();
        let distance = |name: &&String| {
            let name = name.to_lowercase();
            let shared = name.split_whitespace().any(|word| words.contains(&word));
            (!shared, edits(&label, &name))
        };
        let mut names: Vec<_> = self.by_name.keys().collect();
        names.sort_by_cached_key(distance);
        names.into_iter().take(PROPOSED).map(String::as_str).collect()
    }
}

/// The number of characters to insert, delete or replace to turn `from` into `to` (Levenshtein's distance).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, from) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels() -> Labels {
        let names = json!({
            "1": "goldfish, Carassius auratus",
            "134": "crane",
            "207": "golden retriever",
            "208": "Labrador retriever",
            "517": "crane",
        });
        Labels::new(names.as_object().unwrap(), 1000).unwrap()
    }

    #[test]
    fn a_class_has_a_number_and_names() {
        let labels = labels();
        let class = |label| labels.class(label).unwrap();
        assert_eq!(
            ["207", "golden retriever", " goldfish ", "Carassius auratus"].map(class),
            [207, 207, 1, 1]
        );
        assert_eq!(["crane", "0", "999", "1000", ""].map(class), [517, 0, 999, 1000, 1000]);
    }

    #[test]
    fn an_unknown_class_is_refused_with_the_nearest_names() {
        let error = |labels: &Labels, label| labels.class(label).unwrap_err().to_string();
        assert_eq!(
            error(&labels(), "Golden Retreiver"),
            "there is no class called `Golden Retreiver`\n\
             hint: give a number, or a name such as `golden retriever`, `Labrador retriever`, `goldfish`"
        );
        assert_eq!(
            error(&labels(), "1001"),
            "there is no class `1001`\nhint: classes have the numbers 0 to 1000; 1000 is no class"
        );
        assert_eq!(
            error(&Labels::new(&Map::new(), 10).unwrap(), "cat"),
            "there is no class called `cat`\n\
             hint: this checkpoint has no names of classes: give a number from 0 to 10"
        );
    }

    #[test]
    fn a_malformed_table_is_refused() {
        for names in [json!({"10": "a"}), json!({"x": "a"}), json!({"1": 2})] {
            assert!(Labels::new(names.as_object().unwrap(), 10).is_err(), "{names}");
        }
    }

    #[test]
    fn edits_are_counted() {
        for (from, to, count) in
            [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0), ("é", "e", 1)]
        {
            assert_eq!((edits(from, to), edits(to, from)), (count, count), "{from} {to}");
        }
    }
}
