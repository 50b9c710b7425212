//! NVIDIA's libraries, which are opened when the program runs and take the place of kernels where they are faster.
//!
//! A library that is missing, too old or fails to make a plan is no error: the operation runs as it does without it.

pub(crate) mod clock;
pub(crate) mod cublaslt;
pub(crate) mod cudnn;
mod library;
mod order;
pub(crate) mod side;

use crate::device::Library;
pub(crate) use library::candidates;

/// The libraries and what became of them. They are opened for this.
pub(crate) fn libraries() -> Vec<Library> {
    vec![
        Library { name: "cuBLASLt", purpose: "linear layers", state: cublaslt::version() },
        Library { name: "cuDNN", purpose: "attention and convolutions in 16 bits", state: cudnn::version() },
    ]
}
