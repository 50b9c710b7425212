//! Reading a component's `config.json` so that nothing in it is silently ignored.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::read_json;

/// The options of one component, taken one by one; [`finish`](Self::finish) reports what nobody took.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    options: Map<String, Value>,
}

impl Config {
    /// Reads `path`, a JSON object.
    ///
    /// # Errors
    /// If it cannot be read or is not one.
    pub fn read(path: &Path) -> Result<Self> {
        match read_json(path)? {
            Value::Object(options) => Ok(Self { path: path.to_owned(), options }),
            _ => Err(Error::failure(format!("`{}` is not a JSON object", path.display()))),
        }
    }

    /// Takes the option `name`, or `default` where it is absent.
    ///
    /// # Errors
    /// If its value is of another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, default: T) -> Result<T> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// Takes the option `name`, which must be there.
    ///
    /// # Errors
    /// If it is absent or its value is of another type.
    pub fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        let path = self.path.display().to_string();
        self.optional(name)?.ok_or_else(|| Error::failure(format!("`{path}` has no option `{name}`")))
    }

    /// Takes the option `name`; `null` counts as absent.
    ///
    /// # Errors
    /// If its value is of another type.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        match self.options.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone()).map(Some).map_err(|error| {
                Error::failure(format!("option `{name}` = `{value}` in `{}`: {error}", self.path.display()))
            }),
        }
    }

    /// Takes the option `name` and insists on one of the values that are supported; absent is fine.
    ///
    /// # Errors
    /// If it has another value, which would change the numbers.
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

    /// Takes options that do not change what inference computes, whatever their values.
    pub fn inert(&mut self, names: &[&str]) {
        for name in names {
            self.options.remove(*name);
        }
    }

    /// Ends reading: every option must have been taken. Those that start with `_` are notes.
    ///
    /// # Errors
    /// If one is left over: it might change the numbers.
    pub fn finish(mut self) -> Result<()> {
        self.options.retain(|name, value| !name.starts_with('_') && !value.is_null());
        match self.options.into_iter().next() {
            None => Ok(()),
            Some((name, value)) => Err(Error::failure(format!(
                "unknown option `{name}` = `{value}` in `{}`",
                self.path.display()
            ))
            .hint("this version does not know it, so it cannot promise the right picture")),
        }
    }
}
