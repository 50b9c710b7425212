//! Decorators that add a mistake to one seam of the engine and leave everything else unchanged.

mod attention;
mod link;
mod skips;

pub use attention::{Keys, with_keys};
pub use link::{Tampered, Wire};
pub use skips::{Skip, with_skip};
