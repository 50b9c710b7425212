//! The machine of xdit: weights, noise, schedulers, the attention seam and the executor.
#![deny(unsafe_code)]

pub mod attention;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod json;
pub mod noise;
pub mod scheduler;

pub use error::{Error, ErrorKind, Result};
