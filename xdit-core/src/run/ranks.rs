//! Ranks as threads of this process, which stay alive between jobs.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use burn::tensor::Device;
use xdit_comm::{Comm, LaunchOptions, run_ranks};

use crate::error::{Error, Result};
use crate::link::{HostLink, first_cause};
use crate::plan::mesh::Mesh;
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
    /// The components of each rank.
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
        Self { model, devices, keep, held: Vec::new(), world: None }
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
        check_devices(&job.plan.mesh, &self.devices)?;
        cancel.check()?;
        let (size, detailed) = (job.plan.mesh.size(), observer.wants_details());
        self.held.resize_with(size, Arc::default);
        if self.world.as_ref().is_some_and(|world| world.orders.len() != size || world.detailed != detailed) {
            self.world = None;
        }
        let world = self.world.take().map_or_else(|| self.start(size, detailed), Ok)?;
        let order = Order { job, contexts: SharedContexts::default(), cancel: cancel.clone() };
        world.carry_out(Arc::new(order), observer)?;
        self.world = Some(world);
        Ok(())
    }

    fn start(&self, size: usize, detailed: bool) -> Result<World<M>> {
        let (orders, inboxes): (Vec<_>, Vec<_>) = (0..size).map(|_| channel()).unzip();
        let inboxes = Mutex::new(inboxes.into_iter().map(Some).collect::<Vec<_>>());
        let (tell, told) = channel();
        let (model, held, keeps) = (self.model.clone(), self.held.clone(), self.keep.keeps_transformer());
        let devices: Vec<Device> = (0..size).map(|rank| device(&self.devices, rank).clone()).collect();
        let to_engine = tell.clone();
        let work = move |world: Comm| -> Result<()> {
            let at = world.rank();
            let inbox: Option<Receiver<Arc<Order<M>>>> =
                inboxes.lock().unwrap_or_else(PoisonError::into_inner)[at].take();
            let rank = Rank::new(HostLink::new(world), model.clone(), devices[at].clone(), detailed);
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
        let options = LaunchOptions::default().timeout(WAIT_LIMIT);
        let launcher = std::thread::Builder::new().name("launcher".to_owned()).spawn(move || {
            let end = run_ranks(size, &options, work);
            drop(tell.send(Message::Ended(end.map(drop).map_err(first_cause))));
        });
        let launcher = launcher
            .map_err(|error| Error::failure(format!("the system has no thread for the ranks: {error}")))?;
        Ok(World { orders, told, detailed, launcher: Some(launcher) })
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
    /// All ranks have ended; the error is the first cause.
    Ended(Result<()>),
}

/// The threads of the ranks, which wait for orders.
struct World<M: Model> {
    /// One per rank.
    orders: Vec<Sender<Arc<Order<M>>>>,
    told: Receiver<Message>,
    detailed: bool,
    launcher: Option<JoinHandle<()>>,
}

impl<M: Model> World<M> {
    fn carry_out(&self, order: Arc<Order<M>>, observer: &mut dyn Observer) -> Result<()> {
        for rank in &self.orders {
            // Sending fails only if the rank has ended, which a message reports below.
            drop(rank.send(order.clone()));
        }
        drop(order);
        let mut busy = self.orders.len();
        while busy > 0 {
            match self.told.recv() {
                Ok(Message::Event(event)) => event.tell(observer),
                Ok(Message::Done) => busy -= 1,
                Ok(Message::Ended(end)) => {
                    return end.and_then(|()| Err(Error::failure("the ranks ended before their job")));
                }
                Err(_) => return Err(Error::failure("the launcher of the ranks panicked")),
            }
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

/// Checks that there is a device for each rank of `mesh`, or a single one for all.
///
/// # Errors
/// If there are several devices, but fewer than there are ranks.
pub fn check_devices(mesh: &Mesh, devices: &[Device]) -> Result<()> {
    let (ranks, devices) = (mesh.size(), devices.len());
    if devices == 1 || devices >= ranks {
        return Ok(());
    }
    Err(Error::usage(format!("the plan has {ranks} ranks for {devices} devices"))
        .hint("give a device for each rank, or a single one for all"))
}
