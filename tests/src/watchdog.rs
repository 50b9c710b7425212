//! Limits the time of tests: a thread ends the process if a test hangs, and names the operation in progress.

use std::io::{self, Write};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    under_way: Sender<String>,
}

impl Watchdog {
    /// Ends the process once `limit` has passed since the last call of [`watch`](Self::watch).
    pub fn new(limit: Duration) -> Self {
        let mut what = thread::current().name().unwrap_or("a test").to_owned();
        let (under_way, told) = mpsc::channel();
        thread::spawn(move || {
            loop {
                match told.recv_timeout(limit) {
                    Ok(next) => what = next,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        // Not `eprintln!`, which the test harness would capture and lose.
                        drop(writeln!(io::stderr(), "{what} hangs: killed after {limit:?}"));
                        process::abort();
                    }
                }
            }
        });
        Self { under_way }
    }

    /// Starts the operation `what`, which ends the previous one.
    pub fn watch(&self, what: impl Into<String>) {
        // Fails only while the process is being killed.
        drop(self.under_way.send(what.into()));
    }
}
