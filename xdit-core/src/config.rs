//! Reads a component's `config.json` without silently ignoring any option.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::read_json;

/// The options of one component, taken one at a time; [`finish`](Self::finish) rejects any that were not taken.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    options: Map<String, Value>,
}

impl Config {
    /// Reads the JSON object in `path`.
    ///
    /// # Errors
    /// If the file cannot be read or is not a JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        match read_json(path)? {
            Value::Object(options)
                if options.get("quantization_config").is_some_and(|value| !value.is_null()) =>
            {
                let shown = path.display();
                Err(Error::failure(format!("`{shown}` describes quantised weights, which are not supported"))
                    .hint("use the original checkpoint, whose config has no `quantization_config`"))
            }
            Value::Object(options) => Ok(Self { path: path.to_owned(), options }),
            _ => Err(Error::failure(format!("`{}` is not a JSON object", path.display()))),
        }
    }

    /// Takes the option `name`, or returns `default` if it is absent.
    ///
    /// # Errors
    /// If its value has another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, default: T) -> Result<T> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// Takes the option `name`, a number in `range`.
    ///
    /// # Errors
    /// If its value has another type or is outside.
    pub fn within(&mut self, name: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        let value = self.take(name, default)?;
        if !range.contains(&value) {
            return Err(Error::failure(format!(
                "option `{name}` = `{value}` in `{}` is not between {} and {}",
                self.path.display(),
                range.start(),
                range.end()
            ))
            .hint("download the file again: no model has such a value"));
        }
        Ok(value)
    }

    /// Takes the required option `name`.
    ///
    /// # Errors
    /// If it is absent or its value has another type.
    pub fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        let path = self.path.display().to_string();
        self.optional(name)?.ok_or_else(|| Error::failure(format!("`{path}` has no option `{name}`")))
    }

    /// Takes the option `name`; `null` counts as absent.
    ///
    /// # Errors
    /// If its value has another type.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        match self.options.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone()).map(Some).map_err(|error| {
                Error::failure(format!("option `{name}` = `{value}` in `{}`: {error}", self.path.display()))
            }),
        }
    }

    /// Takes the option `name`, which may be absent but must otherwise have one of the supported values.
    ///
    /// # Errors
    /// If it has another value, which would change the result.
    pub fn only(&mut self, name: &str, supported: &[Value]) -> Result<()> {
        match self.options.remove(name) {
            Some(value) if !value.is_null() && !supported.contains(&value) => {
                let list: Vec<_> = supported.iter().map(|value| format!("`{value}`")).collect();
                Err(Error::failure(format!(
                    "option `{name}` = `{value}` in `{}` is not supported",
                    self.path.display()
                ))
                .hint(format!(
                    "supported: {}",
                    if list.is_empty() { "none".into() } else { list.join(", ") }
                )))
            }
            _ => Ok(()),
        }
    }

    /// Takes options that never affect inference.
    pub fn inert(&mut self, names: &[&str]) {
        for name in names {
            self.options.remove(*name);
        }
    }

    /// Finishes reading: every option must have been taken. Names that start with `_` are ignored.
    ///
    /// # Errors
    /// If an option is left, since it might change the result.
    pub fn finish(mut self) -> Result<()> {
        self.options.retain(|name, value| !name.starts_with('_') && !value.is_null());
        match self.options.into_iter().next() {
            None => Ok(()),
            Some((name, value)) => Err(Error::failure(format!(
                "unknown option `{name}` = `{value}` in `{}`",
                self.path.display()
            ))
            .hint("this version does not support the option, so the picture might be wrong")),
        }
    }
}
