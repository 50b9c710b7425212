//! Failure injection: under every seed the right result, or an error that names its place, in bounded time.

use std::time::Duration;

use xdit_comm::sim::FaultKind;
use xdit_comm::{Buffer, BufferSpec, Cause, DType, Error, LaunchOptions, Operation, Outcome, Report, Sim};

use crate::patterns::{all_gather, barrier, broadcast, recv, send};
use crate::program::{self, OPS, Step, Values, Waits};
use crate::watchdog::launch;

const LIMIT: Duration = Duration::from_secs(1);

/// Every operation in groups of several sizes and orders; about twenty operations a rank.
fn steps(size: usize) -> Vec<Step> {
    let step = |(index, op): (usize, program::Op)| {
        let order = (0..size).map(|rank| (rank + index) % size).collect();
        Step { op, order, degree: 1 + (index * 7 + 3) % size, salt: index as u64 }
    };
    OPS.into_iter().cycle().take(20).enumerate().map(step).collect()
}

fn simulate(sim: &Sim, size: usize) -> Report<Vec<Values>, Error> {
    let options = LaunchOptions::default().timeout(LIMIT).sim(sim.clone());
    launch(size, &options, move |comm| program::run(&steps(size), Waits::OneByOne, &comm))
}

#[test]
fn a_thousand_seeds_end_well_or_with_a_named_error() {
    let mut seen = [0; 5];
    for seed in 0..1_000 {
        let size = 2 + seed as usize % 4;
        let sim = Sim::hostile(seed, size, 25);
        let report = simulate(&sim, size);
        assert!(report.elapsed <= Duration::from_secs(5), "seed {seed} took {:?}", report.elapsed);
        let calm = sim.loss == 0.0 && sim.faults.is_empty();
        for (rank, outcome) in report.outcomes.iter().enumerate() {
            let call = match outcome {
                Outcome::Done(values) => {
                    seen[0] += 1;
                    assert_eq!(*values, program::expected(&steps(size), size)[rank], "seed {seed}");
                    continue;
                }
                Outcome::Failed(Error::Timeout { call, peer, .. }) => {
                    seen[1] += 1;
                    assert_ne!(*peer, rank, "seed {seed}");
                    call
                }
                Outcome::Failed(Error::PeerFailed { call, peer, .. }) => {
                    seen[2] += 1;
                    assert!(matches!(report.outcomes[*peer], Outcome::Failed(_)), "seed {seed}");
                    call
                }
                Outcome::Failed(Error::PeerFinished { call, .. }) => call,
                Outcome::Failed(Error::Killed { call }) => {
                    seen[3] += 1;
                    assert!(matches!(sim.faults[0].kind, FaultKind::Die { .. }), "seed {seed}");
                    assert_eq!((report.failures[0], sim.faults[0].rank), (rank, rank), "seed {seed}");
                    call
                }
                other => panic!("seed {seed}: {other:?}"),
            };
            assert!(!calm, "seed {seed} failed without a cause: {outcome:?}");
            assert_eq!((call.rank, &*call.group), (rank, "axis"), "seed {seed}");
        }
        seen[4] += usize::from(report.clone().into_result().is_ok());
    }
    // Enough of everything, or this test shows nothing.
    let [done, timeouts, told, killed, good_runs] = seen;
    assert!(done > 1_000 && timeouts > 100 && told > 100 && killed > 50 && good_runs > 300, "{seen:?}");
}

#[test]
fn a_seed_is_the_whole_story() {
    for seed in 0..200 {
        let sim = Sim::hostile(seed, 4, 25);
        assert_eq!(simulate(&sim, 4), simulate(&sim, 4), "seed {seed}");
    }
}

#[test]
fn a_stall_below_the_limit_only_costs_time() {
    let stall = Duration::from_millis(900);
    for operation in 0..20 {
        let sim = Sim::new(operation).with_fault(1, operation, FaultKind::Stall(stall));
        let report = simulate(&sim, 3);
        assert!((stall..LIMIT).contains(&report.elapsed), "{:?}", report.elapsed);
        assert_eq!(report.into_result().unwrap(), program::expected(&steps(3), 3));
    }
}

#[test]
fn a_stall_above_the_limit_is_named_by_who_waits() {
    let sim = Sim::new(3).with_fault(1, 0, FaultKind::Stall(Duration::from_secs(2)));
    let report = launch(2, &LaunchOptions::default().timeout(LIMIT).sim(sim), |comm| barrier(&comm));
    let error = report.into_result().unwrap_err();
    assert_eq!(
        error.to_string(),
        "rank 0 failed: `all_gather` over `world` on rank 0: nothing from rank 1 within 1s"
    );
}

#[test]
fn a_death_in_the_middle_of_a_collective_reaches_some() {
    let sim = Sim::new(0).with_fault(0, 1, FaultKind::Die { messages: 1 });
    let report: Report<_, Error> = launch(3, &LaunchOptions::default().timeout(LIMIT).sim(sim), |comm| {
        barrier(&comm)?;
        broadcast(
            &comm,
            0,
            (comm.rank() == 0).then(|| Buffer::from_vec(vec![7u8])),
            BufferSpec::new(DType::U8, 1),
        )
        .wait()
    });
    let Outcome::Done(got) = &report.outcomes[1] else { panic!("{:?}", report.outcomes[1]) };
    assert_eq!(*got, Buffer::from_vec(vec![7u8]));
    let Outcome::Failed(Error::Timeout { call, peer: 0, .. }) = &report.outcomes[2] else {
        panic!("{:?}", report.outcomes[2])
    };
    assert_eq!(call.operation, Operation::Broadcast);
    let error = report.into_result().unwrap_err();
    assert_eq!(
        error.to_string(),
        "rank 0 failed: `broadcast` over `world` on rank 0: killed by the simulator"
    );
}

#[test]
fn the_first_cause_is_handed_on_along_a_chain() {
    // 0 waits for 1, 1 for 2, 2 for 3, and 3 is dead. Ranks 0 and 1 come later, so 2 is the first to give up.
    let late = FaultKind::Stall(Duration::from_millis(500));
    let dead = FaultKind::Die { messages: 0 };
    let sim = Sim::new(0).with_fault(3, 0, dead).with_fault(0, 0, late).with_fault(1, 0, late);
    let report: Report<_, Error> = launch(4, &LaunchOptions::default().timeout(LIMIT).sim(sim), |comm| {
        let byte = Buffer::from_vec(vec![1u8]);
        if comm.rank() < 3 {
            recv(&comm, comm.rank() + 1, byte.spec()).wait()?;
        }
        send(&comm, (comm.rank() + 3) % 4, byte).wait()
    });
    let told = |rank: usize| match &report.outcomes[rank] {
        Outcome::Failed(error) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let first = "`recv` over `world` on rank 2: nothing from rank 3 within 1s";
    assert_eq!(told(2), first);
    assert_eq!(told(1), format!("`recv` over `world` on rank 1: stopped because rank 2 failed: {first}"));
    assert_eq!(told(0), format!("`recv` over `world` on rank 0: stopped because rank 2 failed: {first}"));
    assert_eq!(report.failures, [3, 2, 1, 0]);
}

#[test]
fn a_deadlock_is_found_at_once() {
    let options = LaunchOptions::default().timeout(Duration::from_secs(3_600)).sim(Sim::new(1));
    let report = launch(3, &options, |comm| {
        let next = (comm.rank() + 1) % 3;
        recv(&comm, next, BufferSpec::new(DType::U8, 1)).wait()
    });
    assert_eq!(report.elapsed, options.timeout);
    let error = report.into_result().unwrap_err();
    assert_eq!(error.rank, 0);
    assert!(matches!(error.cause, Cause::Failed(Error::Timeout { peer: 1, .. })), "{error}");
}

#[test]
fn size_takes_time() {
    let sim =
        Sim { latency: Duration::from_millis(1), jitter: Duration::ZERO, bytes_per_s: 1e6, ..Sim::new(0) };
    let report: Report<_, Error> = launch(2, &LaunchOptions::default().sim(sim), |comm| {
        all_gather(&comm, Buffer::from_vec(vec![1u8; 4_000]), &[4_000; 2]).wait()
    });
    assert_eq!(report.elapsed, Duration::from_millis(5));
}
