//! Ranks as threads of this process, which stay from job to job.

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

/// The limit on each wait. A rank that fails or ends tells the others at once, so only one that is alive can make them
/// wait this long, and a stage of a large model on a slow machine takes many minutes.
const WAIT_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// The ranks of an engine. Threads, communicators and components stay from one job to the next.
///
/// A job with another mesh is carried out, too: its ranks load the shares that they do not hold. After a job that
/// failed or was cancelled, the next one has new threads and communicators, and the components that there were; only
/// shares of tensor parallelism, which are bound to a communicator, are loaded again.
pub struct Ranks<M: Model> {
    model: Arc<M>,
    devices: Vec<Device>,
    keep: Keep,
    /// The components that each rank holds.
    held: Vec<Arc<Mutex<Held<M>>>>,
    world: Option<World<M>>,
}

impl<M: Model> Ranks<M> {
    /// Ranks that take their shares from `model`. Nothing is loaded and no thread started before the first job.
    ///
    /// # Panics
    /// If there is no device. One stands for all ranks; otherwise there is one a rank.
    pub fn new(model: Arc<M>, devices: Vec<Device>, keep: Keep) -> Self {
        assert!(!devices.is_empty(), "ranks compute on devices");
        Self { model, devices, keep, held: Vec::new(), world: None }
    }

    /// Carries `job` out.
    ///
    /// # Errors
    /// The first cause, if a rank fails, or an error of kind [`Cancelled`](crate::ErrorKind::Cancelled). No rank goes on
    /// with the job by then, except one that is busy with a long block: it stops after it.
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
            // An engine that went away needs no news.
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

/// A job, the contexts that ranks make for it, and the token that ends it.
struct Order<M: Model> {
    job: Job<Conditions<M>>,
    contexts: JobContexts<M>,
    cancel: Cancel,
}

/// What ranks tell the engine.
enum Message {
    Event(Event),
    /// A rank has done its part of the job.
    Done,
    /// All ranks have ended, the last one by an error of its own or of another.
    Ended(Result<()>),
}

/// Threads that wait for orders.
struct World<M: Model> {
    /// One a rank.
    orders: Vec<Sender<Arc<Order<M>>>>,
    told: Receiver<Message>,
    detailed: bool,
    launcher: Option<JoinHandle<()>>,
}

impl<M: Model> World<M> {
    fn carry_out(&self, order: Arc<Order<M>>, observer: &mut dyn Observer) -> Result<()> {
        for rank in &self.orders {
            // A rank that cannot be reached has ended, and its end is told below.
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
        // Without orders to come, ranks end.
        self.orders.clear();
        if let Some(launcher) = self.launcher.take() {
            // The launcher's panic is no concern of a world that is over.
            drop(launcher.join());
        }
    }
}

/// The device of `rank`.
fn device(devices: &[Device], rank: usize) -> &Device {
    devices.get(rank).unwrap_or(&devices[0])
}

/// Checks that there is a device for each rank of `mesh`.
///
/// # Errors
/// If there are several devices, but fewer than ranks.
pub fn check_devices(mesh: &Mesh, devices: &[Device]) -> Result<()> {
    let (ranks, devices) = (mesh.size(), devices.len());
    if devices == 1 || devices >= ranks {
        return Ok(());
    }
    Err(Error::usage(format!("the plan has {ranks} ranks for {devices} devices"))
        .hint("give a device for each rank, or a single one for all"))
}
