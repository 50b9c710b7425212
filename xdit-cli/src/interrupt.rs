//! Ctrl-C and other signals that end the program: at once, but never while files are being written.

use std::sync::{Mutex, MutexGuard, PoisonError};

use xdit_core::pipeline::Processes;

use crate::output::finish_latents;
use crate::progress::say;

/// The exit code that a shell reports for a program ended by Ctrl-C.
pub const INTERRUPTED: u8 = 130;
/// The exit code of a failure.
pub const FAILURE: u8 = 1;
/// The exit code that a shell reports for a program that was asked to terminate.
#[cfg(unix)]
const TERMINATED: u8 = 143;

/// The other processes of the job, which an interrupt ends as well.
static OTHERS: Mutex<Option<Processes>> = Mutex::new(None);

/// Locked from the creation of a temporary file until all files have their final names.
static WRITING: Mutex<()> = Mutex::new(());

/// Makes Ctrl-C end the program with code 130, SIGTERM and SIGHUP with 143, and the limit on CPU time with 1. Finished pictures
/// are kept, and incomplete files are removed. Files above the limit on their size are errors of their writers.
///
/// # Errors
/// If the system has no thread that could wait for signals.
pub fn install() -> std::io::Result<()> {
    #[cfg(unix)]
    return unix::listen();
    #[cfg(not(unix))]
    return ctrlc::set_handler(|| end(INTERRUPTED, "interrupted")).map_err(std::io::Error::other);
}

/// Makes an interrupt end `processes`, too, from now on.
pub fn spread_to(processes: Option<Processes>) {
    *OTHERS.lock().unwrap_or_else(PoisonError::into_inner) = processes;
}

/// Ends the program, and says `why`.
pub fn end(code: u8, why: &str) -> ! {
    // Outside the critical section nothing incomplete can be left behind, so the program may end there.
    let _written = writing();
    // The error is ignored, because the program ends for another reason.
    let _ = finish_latents();
    if let Ok(others) = OTHERS.try_lock()
        && let Some(processes) = &*others
    {
        processes.abort(code != FAILURE, why);
    }
    match code {
        FAILURE => say(&format!("error: {why}")),
        // The terminal has shown `^C` on this line.
        _ => say(&format!("\n{why}")),
    }
    std::process::exit(code.into());
}

/// Postpones signals while the guard is alive.
pub fn writing() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::thread::Builder;

    use std::sync::Arc;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXCPU, SIGXFSZ};
    use signal_hook::iterator::Signals;

    use super::{FAILURE, INTERRUPTED, TERMINATED, end};

    /// The reason of an end by SIGXCPU.
    const NO_TIME: &str = "the limit on CPU time is reached\nhint: raise it (`ulimit -t`), or ask for fewer steps or a smaller picture";

    pub fn listen() -> io::Result<()> {
        // With any handler, writing beyond the limit fails, and does not end the program.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let mut wanted = vec![SIGINT, SIGTERM, SIGXCPU];
        // `nohup` starts the program with the signal ignored, which must stay so.
        if is_ignored(SIGHUP) == Some(false) {
            wanted.push(SIGHUP);
        }
        let mut signals = Signals::new(wanted)?;
        let listen = move || {
            if let Some(signal) = signals.forever().next() {
                match signal {
                    SIGXCPU => end(FAILURE, NO_TIME),
                    SIGINT => end(INTERRUPTED, "interrupted"),
                    _ => end(TERMINATED, "interrupted"),
                }
            }
        };
        Builder::new().name("signals".to_owned()).spawn(listen).map(drop)
    }

    /// Whether the program was started with `signal` ignored; `None` if the system does not report it.
    fn is_ignored(signal: i32) -> Option<bool> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
        Some(mask >> (signal - 1) & 1 == 1)
    }
}
