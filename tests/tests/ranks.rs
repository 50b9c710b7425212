//! Ranks that outlive a job: the state that remains after it, however it ended.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use burn::tensor::{Tensor, TensorData};
use xdit_comm::{Comm, LaunchOptions, run_ranks};
use xdit_core::ErrorKind;
use xdit_core::link::HostLink;
use xdit_core::pipeline::{Cancel, Completed, Keep, Observer, Phase, Step};
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::run::ranks::Ranks;
use xdit_core::tokens::Tokens;
use xdit_tests::probe::{BeforeBlock, job};
use xdit_tests::toy::{Kind, Subject};
use xdit_tests::watchdog::Watchdog;
use xdit_tests::world::{picture_noise, run, run_on, run_rank};
use xdit_tests::{bits, device};

/// The time limit for a test that hangs.
const HANGS: Duration = Duration::from_secs(60);

/// A plan for `images` pictures.
fn plan(subject: &Subject, degrees: &[(Axis, usize)], images: usize) -> Plan {
    let mesh = degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree));
    let config = ParallelConfig { mesh, ..ParallelConfig::default() };
    Plan::new(&config, &Work { images, ..subject.work() }).unwrap()
}

/// A callback that does nothing.
fn idle() -> BeforeBlock {
    Arc::new(|_| {})
}

fn latents(pictures: Vec<Tokens>) -> Vec<Vec<u32>> {
    pictures.iter().map(|picture| bits(&picture.x)).collect()
}

/// The latents of the only picture of `plan`, on newly started ranks.
fn alone(subject: &Subject, plan: &Plan) -> Vec<Vec<u32>> {
    latents(run(subject.job(plan.clone()), &mut ()).unwrap())
}

/// Meshes of four ranks, and whether their shares are bound to communicators.
const MESHES: [(&[(Axis, usize)], bool); 5] = [
    (&[], false),
    (&[(Axis::Pipeline, 2), (Axis::Ulysses, 2)], false),
    (&[(Axis::Ring, 2), (Axis::Cfg, 2)], false),
    (&[(Axis::Data, 4)], false),
    (&[(Axis::Tensor, 2), (Axis::Ring, 2)], true),
];

/// Loads are counted by the references to `alive` in shares, and by the number of calls.
#[test]
fn the_next_job_loads_nothing() {
    let _watchdog = Watchdog::new(HANGS);
    let subject = Subject::new(Kind::Joint);
    for (degrees, _) in MESHES {
        let plan = plan(&subject, degrees, 4);
        let alive = Arc::new(());
        let (loads, counted) = (Arc::new(AtomicUsize::new(0)), plan.mesh.size());
        let mut watched = job(&subject, plan.clone(), &idle(), &alive);
        let (load, calls) = (watched.load, loads.clone());
        watched.load = Box::new(move |share| {
            calls.fetch_add(1, Ordering::Relaxed);
            load(share)
        });
        watched.guidance = vec![subject.guidance(); 4];
        watched.noise = vec![subject.noise(); 4];
        let (model, first) = watched.split();
        let mut ranks = Ranks::new(model, vec![device()], Keep::Transformer);
        let mut again = job(&subject, plan.clone(), &idle(), &alive);
        again.guidance = vec![subject.guidance(); 4];
        again.noise = vec![subject.noise(); 4];
        let first = latents(run_on(&mut ranks, first, &Cancel::new(), &mut ()).unwrap());
        let second = latents(run_on(&mut ranks, again.split().1, &Cancel::new(), &mut ()).unwrap());
        assert_eq!(first, second, "{}", plan.mesh);
        assert_eq!(loads.load(Ordering::Relaxed), counted, "{}", plan.mesh);
        assert_eq!(Arc::strong_count(&alive), 1 + counted, "{}: a share a rank", plan.mesh);
        drop(ranks);
        assert_eq!(Arc::strong_count(&alive), 1, "{}: ranks are gone with their engine", plan.mesh);
    }
}

#[test]
fn nothing_is_held_where_nothing_is_to_be_kept() {
    let subject = Subject::new(Kind::Cross);
    let plan = plan(&subject, &[(Axis::Pipeline, 2)], 1);
    let alive = Arc::new(());
    let (model, job) = job(&subject, plan, &idle(), &alive).split();
    let mut ranks = Ranks::new(model, vec![device()], Keep::None);
    run_on(&mut ranks, job, &Cancel::new(), &mut ()).unwrap();
    assert_eq!(Arc::strong_count(&alive), 1);
}

/// A job with other shares drops the old ones before it loads its own.
#[test]
fn another_mesh_has_other_shares() {
    let subject = Subject::new(Kind::Joint);
    let alive = Arc::new(());
    let (model, _) = job(&subject, plan(&subject, &[], 1), &idle(), &alive).split();
    let mut ranks = Ranks::new(model, vec![device()], Keep::All);
    for (degrees, _) in MESHES.into_iter().filter(|(degrees, _)| !degrees.contains(&(Axis::Data, 4))) {
        let plan = plan(&subject, degrees, 1);
        let (_, job) = job(&subject, plan.clone(), &idle(), &alive).split();
        let made = latents(run_on(&mut ranks, job, &Cancel::new(), &mut ()).unwrap());
        assert_eq!(made, alone(&subject, &plan), "{}", plan.mesh);
        assert_eq!(Arc::strong_count(&alive), 1 + plan.mesh.size(), "{}", plan.mesh);
    }
}

/// After a cancellation, from any thread, no rank begins a block. The next job reuses the loaded shares.
#[test]
fn a_cancelled_job_ends_within_a_block() {
    let _watchdog = Watchdog::new(HANGS);
    let subject = Subject::new(Kind::Joint);
    for (degrees, bound) in MESHES {
        let plan = plan(&subject, degrees, 4);
        let (cancel, blocks, after) =
            (Cancel::new(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let before_block: BeforeBlock = {
            let (cancel, blocks, after) = (cancel.clone(), blocks.clone(), after.clone());
            Arc::new(move |_| {
                if cancel.is_cancelled() {
                    after.fetch_add(1, Ordering::Relaxed);
                }
                if blocks.fetch_add(1, Ordering::Relaxed) == 6 {
                    cancel.cancel();
                }
            })
        };
        let alive = Arc::new(());
        let pictures = |watched: BeforeBlock| {
            let mut job = job(&subject, plan.clone(), &watched, &alive);
            job.guidance = vec![subject.guidance(); 4];
            job.noise = vec![subject.noise(); 4];
            job.split()
        };
        let (model, first) = pictures(before_block.clone());
        let mut ranks = Ranks::new(model, vec![device()], Keep::Transformer);
        let error = run_on(&mut ranks, first, &cancel, &mut ()).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Cancelled, "cancelled"), "{}", plan.mesh);
        // A rank may have passed its check just before.
        let after = after.load(Ordering::Relaxed);
        assert!(after < plan.mesh.size(), "{}: {after} blocks after the end", plan.mesh);
        let shares = Arc::strong_count(&alive) - 1;
        assert!(shares <= plan.mesh.size());

        let (_, next) = pictures(idle());
        let made = latents(run_on(&mut ranks, next, &Cancel::new(), &mut ()).unwrap());
        let mut unwatched = subject.job(plan.clone());
        unwatched.guidance = vec![subject.guidance(); 4];
        unwatched.noise = vec![subject.noise(); 4];
        assert_eq!(made, latents(run(unwatched, &mut ()).unwrap()), "{}: the next job", plan.mesh);
        assert_eq!(Arc::strong_count(&alive), 1 + plan.mesh.size(), "{}, bound: {bound}", plan.mesh);
    }
}

/// The first rank fails while another one is in a block that lasts until the test ends it. That rank is left behind;
/// it ends after its block, and releases everything.
#[test]
fn nothing_of_a_failed_job_goes_on() {
    let _watchdog = Watchdog::new(HANGS);
    let subject = Subject::new(Kind::Alone);
    let plan = plan(&subject, &[(Axis::Data, 2)], 2);
    let (release, released) = channel::<()>();
    let (entered, has_entered) = channel::<()>();
    let gates = Mutex::new((released, has_entered));
    let blocks = Arc::new(AtomicUsize::new(0));
    let before_block: BeforeBlock = {
        let blocks = blocks.clone();
        Arc::new(move |_| match std::thread::current().name() {
            Some("rank 0") => {
                let gates: &(_, Receiver<()>) = &gates.lock().unwrap();
                // Rank 1 is in its block.
                gates.1.recv().unwrap();
                panic!("out of paper");
            }
            _ => {
                blocks.fetch_add(1, Ordering::Relaxed);
                entered.send(()).unwrap();
                // The lock is poisoned by the panic of the other rank.
                let gates = gates.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                gates.0.recv().unwrap();
            }
        })
    };
    let alive = Arc::new(());
    let mut job = job(&subject, plan, &before_block, &alive);
    job.guidance = vec![subject.guidance(); 2];
    job.noise = vec![subject.noise(); 2];
    drop(before_block);
    let (model, job) = job.split();
    let mut ranks = Ranks::new(model, vec![device()], Keep::None);
    let error = run_on(&mut ranks, job, &Cancel::new(), &mut ()).unwrap_err();
    assert!(error.message().contains("rank 0 panicked: out of paper"), "{error}");
    assert_eq!(Arc::strong_count(&alive), 2, "rank 1 is still in its block");
    release.send(()).unwrap();
    while Arc::strong_count(&alive) > 1 {
        std::thread::yield_now();
    }
    assert_eq!(blocks.load(Ordering::Relaxed), 1, "no block follows");
}

/// After a rank has failed, every other rank begins no further block. A block that begins between the failure and its
/// publication lasts long enough here for both.
#[test]
fn a_failed_rank_ends_all_ranks_within_a_block() {
    let _watchdog = Watchdog::new(HANGS);
    let subject = Subject::new(Kind::Joint);
    for (degrees, _) in MESHES {
        let plan = plan(&subject, degrees, 4);
        let (blocks, after) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let before_block: BeforeBlock = {
            let (blocks, after) = (blocks.clone(), after.clone());
            Arc::new(move |_| match blocks.fetch_add(1, Ordering::SeqCst) {
                0..6 => {}
                6 => panic!("out of paper"),
                _ => {
                    after.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(200));
                }
            })
        };
        let alive = Arc::new(());
        let mut job = job(&subject, plan.clone(), &before_block, &alive);
        job.guidance = vec![subject.guidance(); 4];
        job.noise = vec![subject.noise(); 4];
        let (model, job) = job.split();
        let mut ranks = Ranks::new(model, vec![device()], Keep::Transformer);
        let error = run_on(&mut ranks, job, &Cancel::new(), &mut ()).unwrap_err();
        assert!(error.message().contains("panicked: out of paper"), "{}: {error}", plan.mesh);
        drop(ranks);
        while Arc::strong_count(&alive) > 1 {
            std::thread::yield_now();
        }
        let after = after.load(Ordering::SeqCst);
        assert!(after < plan.mesh.size(), "{}: {after} blocks after the failure", plan.mesh);
    }
}

/// Noise is created when a picture's turn comes.
#[test]
fn pictures_come_one_by_one() {
    struct Stop<'a> {
        cancel: &'a Cancel,
        completed: Vec<usize>,
    }
    impl Observer for Stop<'_> {
        fn completed(&mut self, completed: Completed) {
            self.completed.push(completed.image);
            if self.completed.len() == 2 {
                self.cancel.cancel();
            }
        }
    }
    let subject = Subject::new(Kind::Alone);
    let images = 10_000;
    let made = Arc::new(AtomicUsize::new(0));
    let (model, mut one) = subject.job(plan(&subject, &[], images)).split();
    one.guidance = vec![one.guidance[0].clone(); images];
    let (noise, count) = (one.noise, made.clone());
    one.noise = Box::new(move |_, device| {
        count.fetch_add(1, Ordering::Relaxed);
        noise(0, device)
    });
    let cancel = Cancel::new();
    let mut stop = Stop { cancel: &cancel, completed: Vec::new() };
    let mut ranks = Ranks::new(model, vec![device()], Keep::None);
    assert_eq!(ranks.run(one, &cancel, &mut stop).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(stop.completed[..2], [0, 1]);
    let made = made.load(Ordering::Relaxed);
    assert!(made < images / 10, "noise of {made} pictures for {}", stop.completed.len());
}

/// Every rank of data parallelism reports its pictures and their steps, in a consistent order.
#[test]
fn all_shares_tell_of_their_progress() {
    #[derive(Default)]
    struct Log(Vec<(Phase, String)>, Option<Instant>);
    impl Observer for Log {
        fn begin(&mut self, phase: Phase, at: Instant) {
            self.1.get_or_insert(at);
            self.0.push((phase, "begin".to_owned()));
        }
        fn end(&mut self, phase: Phase, at: Instant) {
            assert!(Some(at) >= self.1);
            self.0.push((phase, "end".to_owned()));
        }
        fn step(&mut self, Step { phase, done, of }: Step, _: Instant) {
            self.0.push((phase, format!("{done} of {of}")));
        }
        fn completed(&mut self, Completed { image, .. }: Completed) {
            self.0.push((Phase::Denoise { image }, "completed".to_owned()));
        }
    }
    let subject = Subject::new(Kind::Joint);
    for degrees in [&[(Axis::Data, 2)][..], &[(Axis::Data, 2), (Axis::Pipeline, 2), (Axis::Ulysses, 2)]] {
        let mut job = subject.job(plan(&subject, degrees, 5));
        job.guidance = vec![subject.guidance(); 5];
        job.noise = vec![subject.noise(); 5];
        let (model, job) = job.split();
        let mut log = Log::default();
        Ranks::new(model, vec![device()], Keep::None).run(job, &Cancel::new(), &mut log).unwrap();
        for image in 0..5 {
            let own = log.0.iter().filter(|(phase, _)| *phase == Phase::Denoise { image });
            let own: Vec<&str> = own.map(|(_, what)| what.as_str()).collect();
            assert_eq!(own, ["begin", "1 of 3", "2 of 3", "3 of 3", "end", "completed"], "picture {image}");
        }
    }
}

/// As with one process for each rank: only the process of the first rank has encoded the prompts.
#[test]
fn conditions_come_from_the_first_rank() {
    let subject = Subject::new(Kind::Joint);
    let plan = plan(&subject, &[(Axis::Ring, 2), (Axis::Cfg, 2)], 1);
    let expected = alone(&subject, &plan);
    let ranks = run_ranks(4, &LaunchOptions::default(), move |world: Comm| {
        let world = HostLink::new(world);
        let (model, mut job) = subject.job(plan.clone()).split();
        job.conditions = job.conditions.filter(|_| world.rank() == 0);
        run_rank(&world, &(model, job), &mut ())
    });
    assert_eq!(latents(ranks.unwrap().concat()), expected);
}

/// A weight that is NaN is reported in the first step, on any rank.
#[test]
fn latents_that_are_not_finite_are_an_error() {
    let subject = Subject::new(Kind::Cross);
    for (degrees, _) in MESHES.into_iter().filter(|(degrees, _)| !degrees.contains(&(Axis::Data, 4))) {
        let (model, mut job) = subject.job(plan(&subject, degrees, 1)).split();
        let noise = job.noise;
        job.noise = Box::new(move |image, device| {
            let noise = noise(image, device);
            let mut values = noise.latents().x.to_data().try_to_vec::<f32>().unwrap();
            values[7] = f32::NAN;
            let latents = noise.latents();
            let x = Tensor::from_data(TensorData::new(values, latents.x.dims()), device);
            picture_noise(&latents.with(x), image)
        });
        let mut ranks = Ranks::new(model, vec![device()], Keep::None);
        let error = run_on(&mut ranks, job, &Cancel::new(), &mut ()).unwrap_err();
        assert_eq!(error.message(), "the latents after step 1 of 3 are not finite");
    }
}
