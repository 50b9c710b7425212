//! Ctrl-C: ends the program at once, but never while files are being written.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::progress::say;

/// The exit code that a shell reports for a program ended by Ctrl-C.
pub const EXIT_CODE: u8 = 130;

/// Locked from the creation of a temporary file until all files have their final names.
static WRITING: Mutex<()> = Mutex::new(());

/// Makes Ctrl-C end the program with code 130, without leaving incomplete files.
pub fn install() {
    let handler = || {
        // Nothing outside the critical section leaves a trace, so the program can end anywhere else.
        let _written = writing();
        say("\ninterrupted");
        std::process::exit(EXIT_CODE.into());
    };
    // Without the handler the signal still ends the program, though less tidily.
    let _ = ctrlc::set_handler(handler);
}

/// Postpones Ctrl-C while the guard is alive.
pub fn writing() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}
