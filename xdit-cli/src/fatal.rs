//! Ends of the program that no function returns: signals, memory that the system refuses, and files that were cut.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use xdit_core::fatal::{Allocator, on_lost_page};
use xdit_core::{Error, Result};

use crate::interrupt::{self, FAILURE};
use crate::output::finish_latents;

/// The time that the thread which ends the program has for it, if others fail meanwhile or it fails itself.
const GRACE: Duration = Duration::from_secs(1);

#[global_allocator]
static MEMORY: Allocator = Allocator::new(no_memory);

/// Makes signals and lost pages of mapped files end the program with a sentence.
///
/// # Errors
/// If the system has no threads that could wait for them.
pub fn install() -> Result<()> {
    let lost = |error: Error| interrupt::end(FAILURE, &error.to_string());
    interrupt::install().and_then(|()| on_lost_page(lost)).map_err(|error| {
        Error::failure(format!("the system has no thread to wait for signals: {error}"))
            .hint("raise the limit on open files (`ulimit -n`), on processes (`ulimit -u`) or on memory (`ulimit -v`)")
    })
}

/// Ends the program when the system refuses `bytes` of memory. The latents that are done are kept.
fn no_memory(bytes: usize) -> ! {
    static ENDS: AtomicBool = AtomicBool::new(false);
    if ENDS.swap(true, Ordering::Relaxed) {
        sleep(GRACE);
        exit_now();
    }
    // Nothing here allocates: the text is written piece by piece.
    let _ = writeln!(
        std::io::stderr(),
        "error: the system has no memory for {bytes} bytes more\n\
         hint: free some memory, raise its limit (`ulimit -v`), or need less by `--dtype bf16`, a smaller picture or \
         `--vae-tiling`"
    );
    let _ = finish_latents();
    exit_now()
}

/// Ends the program without its clean-up, which might need memory.
fn exit_now() -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(FAILURE.into());
    #[cfg(not(unix))]
    std::process::exit(FAILURE.into())
}
