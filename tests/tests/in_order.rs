//! Runs the engine on links with the order of NCCL, and checks that these links detect a deadlock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{DType, Tensor};
use xdit_comm::{Error, Group, LaunchOptions, run_ranks};
use xdit_core::link::{HostLink, InFlight, Link, Place, Transfer, catch};
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan};
use xdit_tests::device;
use xdit_tests::in_order::{InOrder, Order, RENDEZVOUS, Rules};
use xdit_tests::toy::{Kind, Subject};
use xdit_tests::world::{pictures, run_in};

/// The behaviour that NCCL permits: small messages are sent before their receive has started.
const EAGER: Rules = Rules { rendezvous: false, ..RENDEZVOUS };

/// One run of each method: kind of model, axis, degree, patches, and whether it is DistriFusion.
const METHODS: [(Kind, Axis, usize, usize, bool); 11] = [
    (Kind::Joint, Axis::Ulysses, 2, 1, false),
    (Kind::Joint, Axis::Ring, 3, 1, false),
    (Kind::Joint, Axis::Ring, 2, 1, true),
    (Kind::Joint, Axis::Tensor, 2, 1, false),
    (Kind::Joint, Axis::Cfg, 2, 1, false),
    (Kind::Joint, Axis::Pipeline, 2, 1, false),
    (Kind::Joint, Axis::Pipeline, 2, 2, false),
    (Kind::Alone, Axis::Pipeline, 4, 4, false),
    (Kind::UShaped, Axis::Pipeline, 2, 2, false),
    (Kind::UShaped, Axis::Pipeline, 3, 3, false),
    (Kind::UShaped, Axis::Pipeline, 5, 2, false),
];

fn plan(subject: &Subject, axis: Axis, degree: usize, patches: usize, distrifusion: bool) -> Plan {
    let mesh = Mesh::default().with(axis, degree);
    let config = ParallelConfig { mesh, patches: Some(patches), distrifusion, ..ParallelConfig::default() };
    Plan::new(&config, &subject.work()).unwrap()
}

#[test]
fn one_order_for_all_edges_of_a_pipeline_is_a_deadlock() {
    for rules in [EAGER, RENDEZVOUS] {
        let rules = Rules { one_order_a_label: true, ..rules };
        for (kind, axis, degree, patches, distrifusion) in METHODS {
            let subject = Subject::new(kind);
            let plan = plan(&subject, axis, degree, patches, distrifusion);
            let order = Order::new(degree, rules);
            let report = run_in(subject.job(plan), &LaunchOptions::default(), move |world| {
                InOrder::world(world, &order)
            });
            let what = format!("{kind:?}, {axis:?} {degree}, M = {patches}, {rules:?}");
            match report.into_result() {
                Ok(_) => assert_ne!(axis, Axis::Pipeline, "{what} went well"),
                Err(error) => {
                    assert_eq!(axis, Axis::Pipeline, "{what}: {error}");
                    let error = error.to_string();
                    assert!(error.contains("over `pp`") && error.contains("nothing from"), "{what}: {error}");
                }
            }
        }
    }
}

#[test]
fn no_method_needs_that_sends_wait_for_their_receives() {
    for (kind, axis, degree, patches, distrifusion) in METHODS {
        let subject = Subject::new(kind);
        let of = |rules: Option<Rules>| {
            let plan = plan(&subject, axis, degree, patches, distrifusion);
            let order = rules.map(|rules| Order::new(degree, rules));
            let [picture] = <[_; 1]>::try_from(pictures(run_in(
                subject.job(plan),
                &LaunchOptions::default(),
                move |world| match &order {
                    Some(order) => InOrder::world(world, order),
                    None => world,
                },
            )))
            .unwrap();
            picture.into_data()
        };
        let expected = of(None);
        assert_eq!(of(Some(EAGER)), expected, "{kind:?}, {axis:?}");
        assert_eq!(of(Some(RENDEZVOUS)), expected, "{kind:?}, {axis:?}");
    }
}

/// The sends that a rank keeps in memory.
#[derive(Debug, Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

/// A link that counts the sends.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Link>,
    held: Arc<Held>,
}

struct HeldSend {
    inner: Option<Box<dyn InFlight>>,
    held: Arc<Held>,
}

impl Drop for HeldSend {
    fn drop(&mut self) {
        self.held.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl InFlight for HeldSend {
    fn is_complete(&mut self) -> bool {
        self.inner.as_mut().is_some_and(|inner| inner.is_complete())
    }

    fn wait(mut self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        self.inner.take().expect("waited for once").wait()
    }
}

impl Link for Counting {
    fn group(&self) -> &Group {
        self.inner.group()
    }

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        let counting = |inner| Arc::new(Self { inner, held: self.held.clone() }) as Arc<dyn Link>;
        Ok(self.inner.split(groups)?.map(counting))
    }

    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight> {
        if transfer.sends.is_empty() {
            return self.inner.transfer(transfer);
        }
        let held = self.held.clone();
        held.most.fetch_max(held.now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        held.all.fetch_add(1, Ordering::Relaxed);
        Box::new(HeldSend { inner: Some(self.inner.transfer(transfer)), held })
    }

    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight> {
        self.inner.sum(x)
    }

    fn check(&self) -> Result<(), Error> {
        self.inner.check()
    }
}

/// Sent tensors stay in memory until they are received, and no longer: at most the sends of one step are kept.
#[test]
fn sends_are_let_go_of_as_they_are_received() {
    let (degree, patches, branches, steps) = (3, 4, 2, 20);
    for kind in [Kind::Joint, Kind::UShaped] {
        let subject = Subject { steps, ..Subject::new(kind) };
        let skips = subject.spec.skips.len();
        let plan = plan(&subject, Axis::Pipeline, degree, patches, false);
        let order = Order::new(degree, RENDEZVOUS);
        let held: Vec<Arc<Held>> = (0..degree).map(|_| Arc::default()).collect();
        let of_ranks = held.clone();
        pictures(run_in(subject.job(plan), &LaunchOptions::default(), move |world| {
            let held = of_ranks[world.rank()].clone();
            Arc::new(Counting { inner: InOrder::world(world, &order), held })
        }));
        for (rank, held) in held.iter().enumerate() {
            let [now, most, all] = [&held.now, &held.most, &held.all].map(|n| n.load(Ordering::Relaxed));
            println!("{kind:?}, rank {rank}: {most} of {all} sends at a time");
            let of_step = patches * branches * (1 + skips);
            assert_eq!(now, 0, "{kind:?}, rank {rank} holds on to {now} sends after the run");
            assert!(most <= of_step, "{kind:?}, rank {rank}: {most} sends, {of_step} in a step");
            assert!(all >= patches * (steps - 1), "{kind:?}, rank {rank}: only {all} sends");
        }
    }
}

fn number() -> Tensor<1> {
    Tensor::ones([1], (&device(), DType::F32))
}

/// Runs `work` on two ranks with links under `rules`, and returns whether it succeeded.
fn ends_well(rules: Rules, work: impl Fn(&dyn Link) + Send + Sync + 'static) -> bool {
    let order = Order::new(2, rules);
    let rank = move |comm| {
        let world = InOrder::world(HostLink::new(comm), &order);
        catch(|| {
            work(&*world);
            Ok(())
        })
    };
    run_ranks(2, &LaunchOptions::default(), rank).is_ok()
}

/// The rules in NCCL's documentation for operations on one communicator and on several.
#[test]
fn the_order_is_that_of_nccl() {
    let send = |link: &dyn Link| link.exchange(vec![(1 - link.rank(), number())], Vec::new());
    let slot = || Place::of(&number()).slot([1]);
    let receive = move |link: &dyn Link| link.exchange(Vec::new(), vec![(1 - link.rank(), slot())]);
    let both = move |link: &dyn Link| {
        link.exchange(vec![(1 - link.rank(), number())], vec![(1 - link.rank(), slot())])
    };
    // In a group, a send and a receive do not wait for each other.
    assert!(ends_well(RENDEZVOUS, move |link| drop(both(link).wait())));
    // Without a group, the receives of both ranks precede the sends that they wait for.
    let receive_first = move |link: &dyn Link| {
        let (received, sent) = (receive(link), send(link));
        received.wait();
        sent.wait();
    };
    assert!(!ends_well(EAGER, receive_first));
    // The same holds for the sends of both ranks, if a send waits for its receive.
    let send_first = move |link: &dyn Link| {
        let (sent, received) = (send(link), receive(link));
        received.wait();
        sent.wait();
    };
    assert!(ends_well(EAGER, send_first));
    assert!(!ends_well(RENDEZVOUS, send_first));
    // With a link for each direction, the order of issue does not matter.
    let by_direction = move |link: &dyn Link| {
        let edge = |from: usize| link.split(&[Group::new("edge", [from, 1 - from])]).unwrap().unwrap();
        let edges = [edge(0), edge(1)];
        let received = edges[1 - link.rank()].exchange(Vec::new(), vec![(0, slot())]);
        let sent = edges[link.rank()].exchange(vec![(1, number())], Vec::<(usize, _)>::new());
        received.wait();
        sent.wait();
    };
    assert!(ends_well(RENDEZVOUS, by_direction));
    // A split completes only after all ranks have called it.
    let alone = |link: &dyn Link| drop((link.rank() == 0).then(|| link.split(&[Group::new("one", [0])])));
    assert!(ends_well(RENDEZVOUS, move |link| {
        alone(link);
        if link.rank() == 1 {
            drop(link.split(&[Group::new("one", [0])]));
        }
    }));
    assert!(!ends_well(RENDEZVOUS, move |link| {
        if link.rank() == 0 {
            link.split(&[Group::new("one", [0])]).map(drop).unwrap();
        }
    }));
}
