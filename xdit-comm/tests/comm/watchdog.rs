//! No test may hang: every world of these tests is launched from here.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::{self, Command};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use xdit_comm::{Comm, Error, LaunchOptions, Report, RunError};

/// A hundred times what the slowest test needs.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Ends the process, naming the test, unless dropped within `limit`.
pub fn guard(limit: Duration) -> Sender<()> {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let (alive, watch) = mpsc::channel();
    thread::spawn(move || {
        if watch.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            // Not `eprintln!`, which the test harness would capture and lose.
            drop(writeln!(io::stderr(), "`{test}` hangs: killed after {limit:?}"));
            process::abort();
        }
    });
    alive
}

/// [`xdit_comm::launch`], guarded.
pub fn launch<T, E, F>(size: usize, options: &LaunchOptions, work: F) -> Report<T, E>
where
    T: Send + 'static,
    E: Display + Send + 'static,
    F: Fn(Comm) -> Result<T, E> + Send + Sync + 'static,
{
    let _alive = guard(LIMIT);
    xdit_comm::launch(size, options, work)
}

/// [`xdit_comm::run_ranks`], guarded, with default options and this crate's error.
pub fn run<T, F>(size: usize, work: F) -> Result<Vec<T>, RunError<Error>>
where
    T: Send + 'static,
    F: Fn(Comm) -> Result<T, Error> + Send + Sync + 'static,
{
    launch(size, &LaunchOptions::default(), work).into_result()
}

#[test]
#[ignore = "hangs on purpose; the next test runs it in a process of its own"]
fn hangs() {
    let _alive = guard(Duration::from_millis(50));
    thread::sleep(Duration::from_secs(3_600));
}

#[test]
fn a_hanging_test_is_killed_and_named() {
    let _alive = guard(LIMIT);
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this).args(["--ignored", "--exact", "watchdog::hangs"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("`watchdog::hangs` hangs: killed after 50ms"), "{said}");
}
