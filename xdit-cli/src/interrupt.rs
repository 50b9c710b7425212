//! Ctrl-C: ends the program at once, but never in the middle of writing files.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::progress::say;

/// What a shell reports of a program that ended by Ctrl-C.
pub const EXIT_CODE: u8 = 130;

/// Held from the first byte of a temporary file until all files have their names.
static WRITING: Mutex<()> = Mutex::new(());

/// Makes Ctrl-C end the program with code 130, leaving nothing half-done behind.
pub fn install() {
    let handler = || {
        // Everything before the writing leaves no trace, so it can be dropped where it is.
        let _written = writing();
        say("\ninterrupted");
        std::process::exit(EXIT_CODE.into());
    };
    // Without a handler the signal ends the program as well, only less tidily.
    let _ = ctrlc::set_handler(handler);
}

/// Puts Ctrl-C off for as long as the guard lives.
pub fn writing() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}
