//! Ranks as threads of this process, or of several processes. They stay alive between jobs.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use burn::tensor::Device;
use xdit_comm::{Arrival, Comm, LaunchOptions, Processes, run_ranks};

use crate::error::{Error, Result};
use crate::link::{Transport, first_cause};
use crate::plan::mesh::Mesh;
use crate::run::across::{Across, end_all, followed_in};
use crate::run::cancel::Cancel;
use crate::run::contexts::SharedContexts;
use crate::run::observer::{Event, Observer};
use crate::run::rank::{Conditions, Held, JobContexts, Rank};
use crate::run::residency::Keep;
use crate::run::{Job, Model};

/// The limit on each wait. A rank that fails or ends notifies the others at once, so only a rank that is alive can make
/// them wait this long, and a stage of a large model takes many minutes on a slow machine.
const WAIT_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// The ranks of an engine. Their threads, communicators and components stay from one job to the next.
///
/// Jobs may differ in their mesh: ranks then load the shares that they do not hold. After a failed or cancelled job,
/// the next job has new threads and communicators, but the old components. Only shares of tensor parallelism are loaded
/// again, since they are bound to a communicator.
pub struct Ranks<M: Model> {
    model: Arc<M>,
    devices: Vec<Device>,
    keep: Keep,
    /// The processes that have the ranks, if there are several.
    processes: Option<Processes>,
    /// The components of each rank of this process.
    held: Vec<Arc<Mutex<Held<M>>>>,
    world: Option<World<M>>,
}

impl<M: Model> Ranks<M> {
    /// Creates ranks that load their shares from `model`. Nothing is loaded and no thread starts before the first job.
    ///
    /// `devices` has one device for each rank, or a single one for all.
    ///
    /// # Panics
    /// If there is no device.
    pub fn new(model: Arc<M>, devices: Vec<Device>, keep: Keep) -> Self {
        assert!(!devices.is_empty(), "ranks compute on devices");
        Self { model, devices, keep, processes: None, held: Vec::new(), world: None }
    }

    /// The same ranks, divided among `processes`, if there are several. `devices` are those of this process's ranks.
    ///
    /// All processes must run the same jobs. The observer of the first one receives the events of all. The failure of a
    /// job ends the processes: no other job can follow.
    #[must_use]
    pub fn over(self, processes: Option<Processes>) -> Self {
        Self { processes, ..self }
    }

    /// Runs `job`.
    ///
    /// # Errors
    /// The first cause, if a rank fails, or an error of kind [`Cancelled`](crate::ErrorKind::Cancelled). All ranks have
    /// stopped by then, except a rank that is inside a long block: it stops after the block.
    pub fn run(
        &mut self,
        job: Job<Conditions<M>>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let end = self.try_run(job, cancel, observer);
        if let (Err(error), Some(processes)) = (&end, &self.processes) {
            end_all(processes, error);
        }
        end
    }

    fn try_run(
        &mut self,
        job: Job<Conditions<M>>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let local = local_ranks(&job.plan.mesh, self.processes.as_ref())?;
        check_devices(local.len(), &self.devices)?;
        cancel.check()?;
        let (size, detailed) = (job.plan.mesh.size(), observer.wants_details());
        self.held.resize_with(local.len(), Arc::default);
        if self.world.as_ref().is_some_and(|world| world.size != size || world.detailed != detailed) {
            self.world = None;
        }
        let world = match self.world.take() {
            Some(world) => world,
            None => self.start(size, local, detailed, observer)?,
        };
        let order = Order { job, contexts: SharedContexts::default(), cancel: cancel.clone() };
        world.carry_out(Arc::new(order), self.processes.as_ref(), observer)?;
        self.world = Some(world);
        Ok(())
    }

    /// Starts the ranks `local` of a world of `size` ranks.
    fn start(
        &self,
        size: usize,
        local: Range<usize>,
        detailed: bool,
        observer: &mut dyn Observer,
    ) -> Result<World<M>> {
        let (orders, inboxes): (Vec<_>, Vec<_>) = local.clone().map(|_| channel()).unzip();
        let inboxes = Mutex::new(inboxes.into_iter().map(Some).collect::<Vec<_>>());
        let (tell, told) = channel();
        let (model, held, keeps) = (self.model.clone(), self.held.clone(), self.keep.keeps_transformer());
        let devices: Vec<Device> =
            (0..local.len()).map(|index| device(&self.devices, index).clone()).collect();
        let (transport, note) = Transport::between(&devices, size);
        if let Some(note) = note {
            observer.warn(&note);
        }
        let to_engine = tell.clone();
        let work = move |world: Comm| -> Result<()> {
            let at = world.rank() - local.start;
            let inbox: Option<Receiver<Arc<Order<M>>>> =
                inboxes.lock().unwrap_or_else(PoisonError::into_inner)[at].take();
            let link = transport.link(world, &devices[at]);
            let link = link.map_err(|error| Error::failure(error.to_string()))?;
            let rank = Rank::new(link, model.clone(), devices[at].clone(), detailed);
            let mut rank = rank.holding(held[at].clone(), keeps);
            // Sending fails only if the engine is gone, which then needs no message.
            let tell = |message| drop(to_engine.send(message));
            for order in inbox.into_iter().flatten() {
                let Order { job, contexts, cancel } = &*order;
                rank.carry_out(job, contexts, cancel, &mut |event| tell(Message::Event(event)))?;
                tell(Message::Done);
            }
            Ok(())
        };
        let processes = self.processes.clone();
        let options = LaunchOptions { processes, ..LaunchOptions::default().timeout(WAIT_LIMIT) };
        let to_engine = tell.clone();
        let launcher = std::thread::Builder::new().name("launcher".to_owned()).spawn(move || {
            let end = catch_unwind(AssertUnwindSafe(|| run_ranks(size, &options, work)));
            let end = match end {
                Ok(end) => end.map(drop).map_err(first_cause),
                Err(_) => Err(Error::failure("the launcher of the ranks panicked")),
            };
            drop(to_engine.send(Message::Ended(end)));
        });
        let launcher = launcher
            .map_err(|error| Error::failure(format!("the system has no thread for the ranks: {error}")))?;
        Ok(World { size, orders, tell, told, detailed, launcher: Some(launcher) })
    }
}

/// A job with its shared contexts and its cancellation token.
struct Order<M: Model> {
    job: Job<Conditions<M>>,
    contexts: JobContexts<M>,
    cancel: Cancel,
}

/// A message from the ranks to the engine.
enum Message {
    Event(Event),
    /// A rank has finished its part of the job.
    Done,
    /// Something has come from another process.
    Arrived(usize, Arrival),
    /// All ranks have ended; the error is the first cause.
    Ended(Result<()>),
}

/// The threads of the ranks, which wait for orders.
struct World<M: Model> {
    /// The number of ranks in all processes.
    size: usize,
    /// One per rank of this process.
    orders: Vec<Sender<Arc<Order<M>>>>,
    /// For messages that do not come from ranks.
    tell: Sender<Message>,
    told: Receiver<Message>,
    detailed: bool,
    launcher: Option<JoinHandle<()>>,
}

impl<M: Model> World<M> {
    fn carry_out(
        &self,
        order: Arc<Order<M>>,
        processes: Option<&Processes>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let mut across = processes.map(|processes| {
            let tell = self.tell.clone();
            // Sending fails only if the world is gone, which then needs nothing.
            Across::new(processes, self.size, move |from, arrival| {
                drop(tell.send(Message::Arrived(from, arrival)))
            })
        });
        for rank in &self.orders {
            // Sending fails only if the rank has ended, which a message reports below.
            drop(rank.send(order.clone()));
        }
        drop(order);
        let mut busy = self.orders.len();
        while busy > 0 || across.as_ref().is_some_and(|across| !across.is_done()) {
            match self.told.recv().expect("the world holds a sender") {
                Message::Event(event) => match &across {
                    Some(across) if !across.leads() => across.send(&event),
                    _ => event.tell(observer),
                },
                Message::Done => {
                    busy -= 1;
                    if let (0, Some(across)) = (busy, &across) {
                        across.done();
                    }
                }
                Message::Arrived(from, arrival) => {
                    if let Some(across) = &mut across {
                        across.arrived(from, arrival)?.into_iter().for_each(|event| event.tell(observer));
                    }
                }
                Message::Ended(end) => {
                    let ended = processes.and_then(|processes| Some((processes, processes.ended()?)));
                    let end = match ended {
                        Some((processes, ended)) => Err(followed_in(processes, self.size, &ended)),
                        None => end,
                    };
                    return end.and_then(|()| Err(Error::failure("the ranks ended before their job")));
                }
            }
        }
        if let Some(across) = across.filter(Across::leads) {
            across.all_done();
        }
        Ok(())
    }
}

impl<M: Model> Drop for World<M> {
    fn drop(&mut self) {
        // Ranks end when their channel of orders closes.
        self.orders.clear();
        if let Some(launcher) = self.launcher.take() {
            // A panic of the launcher no longer matters here.
            drop(launcher.join());
        }
    }
}

/// The device of `rank`.
fn device(devices: &[Device], rank: usize) -> &Device {
    devices.get(rank).unwrap_or(&devices[0])
}

/// The ranks of this process: all of `mesh`, or an equal share of them in each of `processes`.
///
/// # Errors
/// If the ranks cannot be divided evenly.
pub fn local_ranks(mesh: &Mesh, processes: Option<&Processes>) -> Result<Range<usize>> {
    let Some(processes) = processes else { return Ok(0..mesh.size()) };
    processes.ranks(mesh.size()).ok_or_else(|| {
        let (ranks, count) = (mesh.size(), processes.count());
        let ranks = if ranks == 1 { "1 rank".to_owned() } else { format!("{ranks} ranks") };
        Error::usage(format!("the plan has {ranks} for {count} processes")).hint(
            "the number of ranks is the product of the degrees, such as `--ulysses-degree`; make it a multiple of \
             the number of processes",
        )
    })
}

/// Checks that there is a device for each of `ranks`, or a single one for all.
///
/// # Errors
/// If there are several devices, but fewer than there are ranks.
pub fn check_devices(ranks: usize, devices: &[Device]) -> Result<()> {
    let devices = devices.len();
    if devices == 1 || devices >= ranks {
        return Ok(());
    }
    Err(Error::usage(format!("the plan has {ranks} ranks for {devices} devices"))
        .hint("give a device for each rank, or a single one for all"))
}
