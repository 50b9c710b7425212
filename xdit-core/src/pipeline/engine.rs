//! The engine: a pipeline on a thread of its own, which carries out requests one after another.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::pipeline::{Cancel, Completed, Event, Observer, Phase, Pipeline, Preview, Request, Step};
use crate::run::record::RankReport;

/// Carries out requests in the order of their submission. Ranks, communicators and weights stay between requests.
///
/// ```no_run
/// # fn main() -> xdit_core::Result<()> {
/// # let pipeline: Box<dyn xdit_core::pipeline::Pipeline> = unimplemented!();
/// use xdit_core::pipeline::{Engine, Event, Request};
///
/// let engine = Engine::start(pipeline)?;
/// let (cat, dog) = (engine.submit(Request::new("a cat")), engine.submit(Request::new("a dog")));
/// for event in cat.chain(dog) {
///     if let Event::Completed(completed) = event? {
///         println!("picture {}", completed.image);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Order {
    request: Box<Request>,
    cancel: Cancel,
    events: Sender<Result<Event>>,
}

impl Engine {
    /// Runs `pipeline` on a thread of its own.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn start(mut pipeline: Box<dyn Pipeline>) -> Result<Self> {
        let (orders, received) = channel::<Order>();
        let thread = Builder::new().name("engine".to_owned()).spawn(move || {
            for Order { request, cancel, events } in received {
                let mut forward = Forward { cancel: cancel.clone(), events };
                let end = catch_unwind(AssertUnwindSafe(|| {
                    cancel.check()?;
                    let resolved = pipeline.resolve(&request)?;
                    pipeline.run(&resolved, &cancel, &mut forward)
                }));
                if let Err(error) = end.unwrap_or_else(|panic| Err(panicked(&*panic))) {
                    // Sending fails if the caller has dropped the request.
                    drop(forward.events.send(Err(error)));
                }
            }
        });
        let thread = thread
            .map_err(|error| Error::failure(format!("the system has no thread for the engine: {error}")))?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Submits `request`, which is carried out after all earlier ones.
    pub fn submit(&self, request: Request) -> Running {
        let (events, received) = channel();
        let cancel = Cancel::new();
        let order = Order { request: Box::new(request), cancel: cancel.clone(), events };
        // Sending cannot fail: the thread runs as long as the engine exists.
        drop(self.orders.as_ref().map(|orders| orders.send(order)));
        Running { cancel, events: received }
    }
}

/// Waits for all submitted requests.
impl Drop for Engine {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches panics of the pipeline.
            drop(thread.join());
        }
    }
}

/// A submitted request, as an iterator over its events. If the request fails, the last item is the error.
///
/// Dropping it cancels the request.
#[derive(Debug)]
pub struct Running {
    cancel: Cancel,
    events: Receiver<Result<Event>>,
}

impl Running {
    /// The token that cancels the request.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

impl Iterator for Running {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        self.events.recv().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Passes all events on to the caller who submitted the request.
struct Forward {
    cancel: Cancel,
    events: Sender<Result<Event>>,
}

impl Forward {
    fn send(&self, event: Event) {
        if self.events.send(Ok(event)).is_err() {
            self.cancel.cancel();
        }
    }
}

impl Observer for Forward {
    fn begin(&mut self, phase: Phase, at: Instant) {
        self.send(Event::Begin(phase, at));
    }

    fn end(&mut self, phase: Phase, at: Instant) {
        self.send(Event::End(phase, at));
    }

    fn step(&mut self, step: Step, at: Instant) {
        self.send(Event::Step(step, at));
    }

    fn warn(&mut self, message: &str) {
        self.send(Event::Warning(message.to_owned()));
    }

    fn preview(&mut self, preview: Preview) {
        self.send(Event::Preview(preview));
    }

    fn completed(&mut self, completed: Completed) {
        self.send(Event::Completed(completed));
    }

    fn rank(&mut self, report: RankReport) {
        self.send(Event::Rank(Box::new(report)));
    }
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Error::failure(format!("the engine panicked: {}", message.unwrap_or("without a message")))
}
