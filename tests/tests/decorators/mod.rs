//! The seams of the engine with a mistake in them, and nothing else changed.

mod attention;
mod communicator;

pub use attention::{Keys, MutantToy};
pub use communicator::{Tampered, Wire};
