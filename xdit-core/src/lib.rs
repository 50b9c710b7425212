//! The engine of xdit: weights, noise, schedulers, the seams of models, plans, parallel methods and their execution.
#![deny(unsafe_code)]

pub mod attention;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod error;
pub mod fatal;
pub mod files;
pub mod finite;
#[cfg(feature = "hub")]
pub mod hub;
pub mod json;
pub mod linear;
pub mod link;
pub mod methods;
pub mod noise;
pub mod picture;
pub mod pipeline;
pub mod placement;
pub mod plan;
pub mod rows;
pub mod run;
pub mod scheduler;
pub mod shared;
pub mod split;
pub mod tokens;
pub mod transformer;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
pub use pipeline::{
    Cancel, Engine, Event, Generated, Keep, LoadOptions, Observer, Pipeline, Request, Running,
};
pub use plan::mesh::{Axis, Mesh};
pub use plan::{ParallelConfig, Plan};
pub use xdit_kernels::profile;
