//! Fault injection into whole runs: for every seed, each rank ends in bounded time. Its result is bitwise the same as
//! in a sound network, or it is an error that names the operation and the rank.
//!
//! No protocol can guarantee that all ranks notice a failure, because the lost message may be the last one. A rank
//! whose part was complete by then may therefore succeed while others fail; the run as a whole does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use xdit_comm::sim::FaultKind;
use xdit_comm::{LaunchOptions, Outcome, Report, Sim, launch};
use xdit_core::link::HostLink;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_tests::bits;
use xdit_tests::toy::{Kind, Subject, Toy};
use xdit_tests::watchdog::Watchdog;
use xdit_tests::world::{Job, Loader, Reports, run, run_in, run_rank};

const SEEDS: u64 = 1_000;
/// The limit on each wait, in simulated time.
const LIMIT: Duration = Duration::from_secs(1);
/// The limit on a whole run, in simulated time: the longest stall, one wait, and the regular transfers.
const BOUND: Duration = Duration::from_secs(5);
/// The limit on a seed, in real time: a thousand times the usual duration.
const HANGS: Duration = Duration::from_secs(60);

/// The operations that an error may name.
const OPERATIONS: [&str; 6] = ["all_reduce(sum)", "all_gather", "all_to_all", "send", "recv", "send_recv"];
const GROUPS: [&str; 7] = ["cfg", "pp", "ring", "ulysses", "ringxulysses", "tp", "world"];

/// The bits of the latents of a rank's pictures, or its error.
type End = Result<Vec<Vec<u32>>, String>;

/// A mesh, and the results of a run on it without faults.
struct World {
    name: String,
    job: Arc<(Arc<Loader<Toy>>, xdit_core::run::Job<Tensor<3>>)>,
    size: usize,
    sound: Vec<End>,
    /// The largest number of operations of a rank.
    operations: u64,
}

impl World {
    fn new(kind: Kind, degrees: &[(Axis, usize)], patches: usize, distrifusion: bool) -> Self {
        let text_tokens = if degrees.contains(&(Axis::Cfg, 2)) { vec![1, 2] } else { vec![2] };
        let mut subject = Subject { grid: [3, 5], steps: 2, text_tokens, ..Subject::new(kind) };
        subject.spec.heads = 2;
        if kind != Kind::UShaped {
            subject.spec.blocks = 2;
        }
        let mesh = degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree));
        let config = ParallelConfig {
            mesh,
            patches: Some(patches),
            warmup_steps: 0,
            distrifusion,
            ..ParallelConfig::default()
        };
        let plan = Plan::new(&config, &subject.work()).unwrap();
        let name = format!("{kind:?} on {mesh}, M = {patches}, distrifusion: {distrifusion}");
        let (size, job) = (mesh.size(), Arc::new(subject.job(plan).split()));
        let mut world = Self { name, job, size, sound: Vec::new(), operations: 0 };
        let (report, operations) = world.run(LaunchOptions::default());
        world.operations = operations;
        world.sound = report.outcomes.into_iter().map(end).collect();
        assert!(world.sound.iter().all(Result::is_ok), "{}: {:?}", world.name, world.sound);
        world
    }

    /// The result of each rank, and the largest number of operations among ranks that succeed.
    fn run(&self, options: LaunchOptions) -> (Report<Vec<Vec<u32>>, xdit_core::Error>, u64) {
        let (job, most) = (self.job.clone(), Arc::new(AtomicU64::new(0)));
        let operations = most.clone();
        let report = launch(self.size, &options, move |world| {
            let mut reports = Reports::default();
            let latents = run_rank(&HostLink::new(world), &job, &mut reports)?;
            most.fetch_max(reports.ranks[0].traffic.total().calls, Ordering::Relaxed);
            Ok(latents.iter().map(|latents| bits(&latents.x)).collect())
        });
        (report, operations.load(Ordering::Relaxed))
    }
}

fn end(outcome: Outcome<Vec<Vec<u32>>, xdit_core::Error>) -> End {
    match outcome {
        Outcome::Done(latents) => Ok(latents),
        Outcome::Failed(error) => Err(error.to_string()),
        other => panic!("a rank panicked or did not end: {other:?}"),
    }
}

fn worlds() -> Vec<World> {
    use Axis::{Cfg, Pipeline, Ring, Tensor, Ulysses};
    vec![
        World::new(Kind::Joint, &[(Pipeline, 2)], 2, false),
        World::new(Kind::UShaped, &[(Pipeline, 4)], 4, false),
        World::new(Kind::Joint, &[(Ulysses, 2)], 1, false),
        World::new(Kind::Joint, &[(Ring, 3)], 1, false),
        World::new(Kind::Cross, &[(Tensor, 2)], 1, false),
        World::new(Kind::Joint, &[(Pipeline, 2), (Ulysses, 2)], 3, false),
        World::new(Kind::Alone, &[(Cfg, 2), (Pipeline, 2)], 2, false),
        World::new(Kind::Joint, &[(Ring, 2)], 1, true),
        World::new(Kind::Alone, &[(Ring, 2), (Tensor, 2)], 2, false),
        World::new(Kind::Alone, &[(Cfg, 2), (Pipeline, 2), (Ulysses, 2)], 2, false),
    ]
}

/// Whether `error` names an operation and a group, and `rank` as the rank that reports it.
fn is_named(error: &str, rank: usize) -> bool {
    let named = || {
        let (operation, rest) = error.strip_prefix('`')?.split_once("` over `")?;
        let (group, rest) = rest.split_once('`')?;
        let here = rest.strip_prefix(&format!(" on rank {rank}: "))?;
        Some(OPERATIONS.contains(&operation) && GROUPS.contains(&group) && !here.is_empty())
    };
    named() == Some(true)
}

/// A job for two ranks: one fails while it loads its share, and the other one is slow.
fn half_loaded(axis: Axis, rest: Duration) -> Job<Toy> {
    let subject = Subject::new(Kind::Alone);
    let config = ParallelConfig { mesh: Mesh::default().with(axis, 2), ..ParallelConfig::default() };
    let plan = Plan::new(&config, &Work { images: 2, ..subject.work() }).unwrap();
    let job = subject.job(plan);
    let (load, calls) = (job.load, AtomicUsize::new(0));
    Job {
        load: Box::new(move |share| {
            if calls.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(xdit_core::Error::failure("out of paper"));
            }
            thread::sleep(rest);
            load(share)
        }),
        guidance: vec![subject.guidance(); 2],
        noise: vec![subject.noise(); 2],
        plan: job.plan,
        scheduler: job.scheduler,
    }
}

/// The listener does not wait for the slow rank either.
#[test]
fn a_rank_that_is_busy_holds_nobody_up() {
    let started = Instant::now();
    let error = run(half_loaded(Axis::Pipeline, HANGS), &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "out of paper");
    assert!(started.elapsed() < HANGS / 2, "took {:?}", started.elapsed());
}

#[test]
fn a_rank_that_needs_no_other_stops_when_one_fails() {
    let job = half_loaded(Axis::Data, Duration::from_secs(1));
    let report = run_in(job, &LaunchOptions::default().grace(HANGS), |world| world);
    let failed = |rank: usize| match &report.outcomes[rank] {
        Outcome::Failed(error) => error.to_string(),
        other => panic!("rank {rank}: {other:?}"),
    };
    let first = report.failures[0];
    assert_eq!(failed(first), "out of paper");
    // It was checking, or exchanging conditions.
    let (message, other) = (failed(1 - first), 1 - first);
    let expected =
        format!(" over `world` on rank {other}: stopped because rank {first} failed: out of paper");
    assert!(message.ends_with(&expected), "{message}");
}

#[test]
fn a_thousand_seeds_end_well_or_with_named_errors() {
    let watchdog = Watchdog::new(HANGS);
    let worlds = worlds();
    let [mut well, mut dead, mut lost, mut late, mut beside] = [0; 5];
    for seed in 0..SEEDS {
        let world = &worlds[(seed % worlds.len() as u64) as usize];
        let what = format!("seed {seed}, {}", world.name);
        watchdog.watch(&*what);
        let sim = Sim::hostile(seed, world.size, world.operations);
        let run = || {
            let (report, _) = world.run(LaunchOptions::default().timeout(LIMIT).sim(sim.clone()));
            assert!(report.elapsed <= BOUND, "{what}: took {:?}", report.elapsed);
            assert_eq!(report.unreceived, None, "{what}");
            (report.elapsed, report.failures, report.outcomes.into_iter().map(end).collect::<Vec<_>>())
        };
        let (elapsed, failures, ends) = run();
        for (rank, (end, sound)) in ends.iter().zip(&world.sound).enumerate() {
            match end {
                Ok(_) => assert_eq!(end, sound, "{what}: rank {rank} computes something else"),
                Err(error) => assert!(is_named(error, rank), "{what}: rank {rank} says: {error}"),
            }
        }
        let failed = ends.iter().filter(|end| end.is_err()).count();
        let fault = sim.faults.first();
        match fault.map(|fault| fault.kind) {
            _ if failed == 0 => well += 1,
            Some(FaultKind::Die { .. }) => {
                dead += 1;
                assert_eq!(failures[0], fault.unwrap().rank, "{what}: the dead rank is the first cause");
            }
            Some(FaultKind::Stall(_)) => late += 1,
            None => lost += 1,
        }
        beside += if failed > 0 { ends.len() - failed } else { 0 };
        let harmless = match fault {
            None => sim.loss == 0.0,
            Some(fault) => matches!(fault.kind, FaultKind::Stall(duration) if duration < LIMIT / 2),
        };
        assert!(!harmless || failed == 0, "{what}: {ends:?}");
        if seed % 8 == 3 {
            assert_eq!(run(), (elapsed, failures, ends), "{what}: another outcome the second time");
        }
    }
    println!(
        "of {SEEDS} seeds {well} end well; with errors {dead} after a death, {lost} after a loss, {late} after a stall; \
         {beside} ranks ended well beside a failed one"
    );
    assert!(well > 300 && dead > 50 && lost > 50 && late > 50);
}
