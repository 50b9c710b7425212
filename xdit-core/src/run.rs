//! Runs a plan: starts its ranks, gives each its share of the model and its pictures, and collects the latents.

pub mod contexts;
pub mod decode;
pub mod execute;
pub mod observer;
pub mod record;

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use xdit_comm::{Comm, LaunchOptions, local, run_ranks};

use crate::error::{Error, Result};
use crate::link::{Counted, HostLink, Link, Meter, catch, first_cause};
use crate::placement::Share;
use crate::plan::Plan;
use crate::plan::guidance::Guidance;
use crate::plan::mesh::Axis;
use crate::run::contexts::SharedContexts;
use crate::run::execute::{Groups, denoise};
use crate::run::observer::{Observer, Phase};
use crate::run::record::{Activity, RankReport, Recorder};
use crate::scheduler::Scheduler;
use crate::tokens::Tokens;
use crate::transformer::Transformer;

/// The limit on each wait. A rank that fails or ends tells the others at once, so only one that is alive can make them
/// wait this long, and a stage of a large model on a slow machine takes many minutes.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// A share that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The part of the transformer.
    pub transformer: T,
    /// [Bytes of its parameters](crate::weights::Weights::taken_bytes).
    pub parameter_bytes: u64,
}

/// Gives a rank its share of the transformer.
pub type Load<T> = Box<dyn Fn(Share) -> Result<Loaded<T>> + Send + Sync>;

/// What all ranks of a run know.
pub struct Job<T: Transformer> {
    /// Who does what.
    pub plan: Plan,
    /// Loads a share of the model.
    pub load: Load<T>,
    /// The noise scheduler.
    pub scheduler: Box<dyn Scheduler>,
    /// What each picture is conditioned on.
    pub guidance: Vec<Guidance<T::Conditions>>,
    /// The initial latents of each picture, packed and whole.
    pub noise: Vec<Tokens>,
    /// Conditions that were made ready, for the ranks of this process.
    pub contexts: SharedContexts<T::Context>,
}

/// What a rank tells.
enum Event {
    Begin(Phase),
    End(Phase),
    Step(usize),
    Report(Box<RankReport>),
}

impl Event {
    /// Passes it on to who listens to a run of `steps` steps.
    fn tell(self, observer: &mut dyn Observer, steps: usize) {
        match self {
            Self::Begin(phase) => observer.begin(phase),
            Self::End(phase) => observer.end(phase),
            Self::Step(done) => observer.step(done, steps),
            Self::Report(report) => observer.rank(*report),
        }
    }
}

/// Denoises all pictures of `job`; ranks are threads of this process. With one rank, this thread is it.
///
/// # Errors
/// The first cause, if a rank fails. All ranks have ended by then.
pub fn run<T>(job: Job<T>, observer: &mut dyn Observer) -> Result<Vec<Tokens>>
where
    T: Transformer + 'static,
    T::Conditions: Send + Sync,
{
    let (size, steps) = (job.plan.mesh.size(), job.scheduler.timesteps().len());
    let detailed = observer.wants_details();
    if size == 1 {
        return run_rank(&HostLink::new(local()), &job, observer);
    }
    let (events, heard) = channel();
    let job = Arc::new(job);
    let of_ranks: Sender<Option<Event>> = events.clone();
    let work = move |world: Comm| {
        let events = of_ranks.clone();
        // A run outlives a listener that went away.
        rank(&HostLink::new(world), &job, detailed, &mut |event| drop(events.send(Some(event))))
    };
    let options = LaunchOptions::default().timeout(WAIT_LIMIT);
    let ranks = std::thread::spawn(move || {
        let latents = run_ranks(size, &options, work);
        // A rank that was left behind, still busy, could tell of something as long as it lives.
        drop(events.send(None));
        latents
    });
    heard.into_iter().map_while(|event| event).for_each(|event| event.tell(observer, steps));
    let latents = ranks.join().map_err(|_| Error::failure("the launcher of the ranks panicked"))?;
    Ok(latents.map_err(first_cause)?.concat())
}

/// Does what one rank of `world` does for `job`. Every rank calls it, wherever it runs.
///
/// Returns the latents of a data-parallel share's pictures on the first rank of the share, and none on the others.
/// One rank of the world tells of its progress, and each what it did.
///
/// # Errors
/// If the plan is for another number of ranks, the share cannot be loaded, or a transfer fails: then the error names
/// operation, group and rank.
pub fn run_rank<T: Transformer>(
    world: &Arc<dyn Link>,
    job: &Job<T>,
    observer: &mut dyn Observer,
) -> Result<Vec<Tokens>> {
    let (steps, detailed) = (job.scheduler.timesteps().len(), observer.wants_details());
    rank(world, job, detailed, &mut |event| event.tell(observer, steps))
}

fn rank<T: Transformer>(
    world: &Arc<dyn Link>,
    job: &Job<T>,
    detailed: bool,
    tell: &mut dyn FnMut(Event),
) -> Result<Vec<Tokens>> {
    catch(|| {
        let plan = &job.plan;
        let meter = Meter::new(detailed);
        let world = Counted::new(world.clone(), &meter);
        let mut recorder = Recorder::new(world.rank(), meter, detailed);
        let groups = Groups::new(&world, plan)?;
        let at = |axis| plan.mesh.coordinate(world.rank(), axis);
        let first_of = |axes: &[Axis]| axes.iter().all(|&axis| at(axis) == 0);
        let leads = first_of(&[Axis::Cfg, Axis::Pipeline, Axis::Ring, Axis::Ulysses, Axis::Tensor]);
        // Steps end on the last stage, so one of its ranks tells of them.
        let tells = first_of(&[Axis::Data, Axis::Cfg, Axis::Ring, Axis::Ulysses, Axis::Tensor])
            && at(Axis::Pipeline) + 1 == plan.stages.len();
        let mut progress = |event| {
            if tells {
                tell(event);
            }
        };

        progress(Event::Begin(Phase::Load("transformer")));
        let share = Share { blocks: plan.stage(world.rank()), tensor: groups.tensor_share() };
        let Loaded { transformer, parameter_bytes } = recorder.time(Activity::Load, || (job.load)(share))?;
        recorder.hold_parameters(parameter_bytes);
        progress(Event::End(Phase::Load("transformer")));

        let mut latents = Vec::new();
        for image in plan.images[at(Axis::Data)].clone() {
            progress(Event::Begin(Phase::Denoise { image }));
            recorder.begin_image(image);
            let (guidance, noise) = (&job.guidance[image], &job.noise[image]);
            let mut step = |done| progress(Event::Step(done));
            let scheduler = &*job.scheduler;
            let contexts = job.contexts.of_picture(image);
            let end = denoise(
                plan,
                &groups,
                &transformer,
                scheduler,
                guidance,
                noise,
                contexts,
                &mut recorder,
                &mut step,
            );
            latents.extend(end.filter(|_| leads));
            progress(Event::End(Phase::Denoise { image }));
        }
        tell(Event::Report(Box::new(recorder.report())));
        Ok(latents)
    })
}
