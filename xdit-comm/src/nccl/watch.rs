//! The end of all communicators of a process once a rank fails or an operation takes too long.
//!
//! A rank of NCCL that waits for another one waits on its device: no call returns an error, and a thread that reads a
//! result hangs. Therefore a thread of its own looks after the communicators of a rank, and aborts them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::Communicator;
use crate::Comm;

/// The time between two looks.
const PERIOD: Duration = Duration::from_millis(20);

/// The end of an operation on a device, if it is over.
pub type Pending = Box<dyn Fn() -> Option<Result<(), String>> + Send>;

/// The watch over the communicators of one rank. It ends with its last owner.
pub struct Watch {
    /// Tells of the failures of other ranks.
    world: Comm,
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    communicators: Vec<Weak<Communicator>>,
    pending: Vec<(Instant, Arc<str>, Pending)>,
    failure: Option<Arc<str>>,
}

impl Watch {
    /// Starts the watch of a rank of `world`. An operation may take `limit`, waits for other ranks included.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn start(world: Comm, limit: Duration) -> Result<Arc<Self>, String> {
        let this = Arc::new(Self { world, limit, state: Mutex::default() });
        let watched = Arc::downgrade(&this);
        let look = move || {
            while let Some(this) = watched.upgrade() {
                if this.look() {
                    return;
                }
                drop(this);
                thread::sleep(PERIOD);
            }
        };
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(look);
        thread.map_err(|error| format!("the system has no thread for the watch: {error}"))?;
        Ok(this)
    }

    /// Adds `communicator` to those that end together.
    pub fn add(&self, communicator: &Arc<Communicator>) {
        let mut state = self.lock();
        state.communicators.retain(|other| other.strong_count() > 0);
        state.communicators.push(Arc::downgrade(communicator));
    }

    /// Watches an operation, which `name` names in an error, until it is over.
    pub fn expect(&self, name: Arc<str>, pending: Pending) {
        self.lock().pending.push((Instant::now(), name, pending));
    }

    /// Why the communicators have ended, if they have.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.lock().failure.clone()
    }

    /// Ends all communicators because of `reason`, unless they have ended already.
    pub fn fail(&self, reason: &str) {
        let communicators = {
            let mut state = self.lock();
            if state.failure.is_some() {
                return;
            }
            state.failure = Some(reason.into());
            state.pending.clear();
            std::mem::take(&mut state.communicators)
        };
        for communicator in communicators.iter().filter_map(Weak::upgrade) {
            communicator.abort();
        }
    }

    /// Looks for reasons to end, and returns whether all has ended.
    fn look(&self) -> bool {
        if let Some(reason) = self.reason() {
            self.fail(&reason);
        }
        self.lock().failure.is_some()
    }

    fn reason(&self) -> Option<String> {
        if let Err(error) = self.world.check() {
            return Some(error.to_string());
        }
        let communicators = {
            let mut state = self.lock();
            let mut wrong = None;
            state.pending.retain(|(since, name, pending)| match pending() {
                None if since.elapsed() > self.limit => {
                    wrong = Some(format!("{name}: not over within {:?}", self.limit));
                    false
                }
                None => true,
                Some(Ok(())) => false,
                Some(Err(error)) => {
                    wrong = Some(format!("{name}: {error}"));
                    false
                }
            });
            if wrong.is_some() {
                return wrong;
            }
            state.communicators.clone()
        };
        communicators.iter().filter_map(Weak::upgrade).find_map(|communicator| communicator.check().err())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({:?})", self.failure())
    }
}
