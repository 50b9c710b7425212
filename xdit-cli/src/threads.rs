//! The threads that compute on the CPU.

use xdit_core::{Error, Result};

/// The most threads; a larger number is assumed to be a typing error.
const MAX_THREADS: usize = 1024;

/// Starts `count` threads, or one for each core.
///
/// # Errors
/// If the system has no thread for them, which would be a panic if they started on first use.
pub fn start(count: Option<usize>) -> Result<()> {
    if let Some(count) = count.filter(|count| !(1..=MAX_THREADS).contains(count)) {
        return Err(Error::usage(format!("`{count}` threads are not between 1 and {MAX_THREADS}"))
            .hint("leave it out for one for each core"));
    }
    // 0 stands for the number of cores.
    rayon::ThreadPoolBuilder::new().num_threads(count.unwrap_or(0)).build_global().map_err(|error| {
        Error::failure(format!("the system has no threads to compute with: {error}"))
            .hint("raise the limit on processes (`ulimit -u`), or ask for fewer with `--threads`")
    })
}
