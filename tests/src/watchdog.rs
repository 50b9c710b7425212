//! No test may hang: a thread that ends the process, naming what was under way.

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
    /// Kills the process once `limit` has passed since anything was [told](Self::watch).
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

    /// `what` begins, and what was under way has ended.
    pub fn watch(&self, what: impl Into<String>) {
        // Fails only while the process is being killed.
        drop(self.under_way.send(what.into()));
    }
}
