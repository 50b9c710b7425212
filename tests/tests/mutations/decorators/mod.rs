//! Decorators that add a mistake to one seam of the engine and leave everything else unchanged.

mod attention;
mod edges;
mod link;
mod rows;
mod skips;

pub use attention::{Keys, with_keys};
pub use edges::Crossed;
pub use link::{Tampered, Wire};
pub use rows::{Mistake, with_rows};
pub use skips::{Skip, with_skip};
