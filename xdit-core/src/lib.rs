//! The machine of xdit: weights, noise, schedulers, the attention seam and the executor.
#![forbid(unsafe_code)]

pub mod error;
#[cfg(feature = "hub")]
pub mod hub;

pub use error::{Error, ErrorKind, Result};
