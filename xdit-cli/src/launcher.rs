//! The place of this process in a job of several: from options, or from the environment of a launcher.

mod agreement;
mod place;

use std::time::Duration;

use xdit_core::pipeline::{MeetError, Meeting, Processes, end_all, followed};
use xdit_core::{Error, Result};

use crate::args::ProcessArgs;
use crate::interrupt;
pub use agreement::{agree, described};
pub use place::Place;

/// The processes of a job, and the place of this one among those of its host.
#[derive(Default)]
pub struct Job {
    /// All processes, if there are several.
    pub processes: Option<Processes>,
    /// The index of this process on its host, if a launcher gave one.
    pub local: Option<usize>,
}

impl Job {
    /// Meets the other processes that the options or the environment speak of.
    ///
    /// # Errors
    /// If they contradict each other, or the processes do not meet.
    pub fn meet(args: &ProcessArgs) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let Some(place) = Place::find(args, &variable)? else { return Ok(Self::default()) };
        let local = place.local;
        if place.processes == 1 {
            return Ok(Self { processes: None, local });
        }
        let meeting = Meeting {
            process: place.process,
            processes: place.processes,
            host: place.host,
            port: place.port,
            job: place.job,
            program: format!("xdit {}", env!("CARGO_PKG_VERSION")),
            own_host: own_host(&variable),
            limit: Duration::from_secs(args.rendezvous_timeout),
        };
        let processes = Processes::meet(&meeting).map_err(|error| refused(&error))?;
        interrupt::spread_to(Some(processes.clone()));
        Ok(Self { processes: Some(processes), local })
    }

    /// Whether this process prints and writes the files.
    pub fn leads(&self) -> bool {
        self.processes.as_ref().is_none_or(Processes::leads)
    }

    /// Waits until the first process comes here; it does not wait for the others. Until then they wait.
    ///
    /// # Errors
    /// If another process has failed.
    pub fn first_then_others<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(processes) = &self.processes else { return work() };
        let wait = || processes.share(&[]).map(drop).map_err(|ended| followed(&ended));
        if self.leads() {
            let done = work()?;
            wait()?;
            return Ok(done);
        }
        wait()?;
        work()
    }

    /// Ends this process's part of the job with `end`: an error ends all other processes.
    ///
    /// # Errors
    /// The error of `end`, or that of the process that failed first.
    pub fn finish(self, end: Result<()>) -> Result<()> {
        interrupt::spread_to(None);
        if let (Some(processes), Err(error)) = (&self.processes, &end) {
            end_all(processes, error);
        }
        end
    }
}

/// The error of a meeting, with a way out.
fn refused(error: &MeetError) -> Error {
    let hint = match error {
        MeetError::Listen { .. } => {
            "another program, or another process 0, listens there: choose another `--rendezvous-port`, the same in all \
             processes"
        }
        MeetError::Unreachable { .. } => {
            "check `--master-addr` and `--rendezvous-port`, that process 0 runs, and that no firewall is between"
        }
        MeetError::Missing { .. } => {
            "check that all processes were started; `--rendezvous-timeout` gives them more time"
        }
        MeetError::Unfit(_) => "start all processes with the same program, options and number of processes",
        MeetError::Lost { .. } => "its own message says why",
    };
    let message = error.to_string();
    match error {
        MeetError::Unfit(_) => Error::usage(message).hint(hint),
        _ => Error::failure(message).hint(hint),
    }
}

/// The name of this host.
fn own_host(variable: &dyn Fn(&str) -> Option<String>) -> String {
    let file = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let names = [variable("HOSTNAME"), file(), variable("COMPUTERNAME")];
    let name = names.into_iter().flatten().map(|name| name.trim().to_owned()).find(|name| !name.is_empty());
    name.unwrap_or_else(|| "unknown host".to_owned())
}
