//! What fails says where, and takes the whole run with it at once.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use xdit_comm::{
    Buffer, BufferSpec, Call, Cause, DType, Error, Group, LaunchOptions, Operation, Outcome, Reduce,
};

use crate::watchdog::{launch, run};

const NUMBER: BufferSpec = BufferSpec::new(DType::I32, 1);

fn numbers(len: usize) -> Buffer {
    Buffer::from_vec(vec![0i32; len])
}

/// The error of a run in which every rank returns this crate's error.
fn text(size: usize, work: impl Fn(xdit_comm::Comm) -> Result<(), Error> + Send + Sync + 'static) -> String {
    run(size, work).unwrap_err().to_string()
}

#[test]
fn an_error_on_one_rank_ends_all() {
    let started = Instant::now();
    let report = launch(4, &LaunchOptions::default(), |comm| -> Result<(), String> {
        if comm.rank() == 2 {
            return Err("out of paper".to_owned());
        }
        // In a group of their own, the others do not even wait for the rank that fails.
        let rest = comm.subgroup(&Group::new("rest", [0, 1, 3])).map_err(|error| error.to_string())?;
        loop {
            rest.barrier().wait().map_err(|error| error.to_string())?;
        }
    });
    assert!(started.elapsed() < Duration::from_secs(2));
    for rank in [0, 1, 3] {
        let Outcome::Failed(error) = &report.outcomes[rank] else { panic!("rank {rank} did not fail") };
        let expected =
            format!("`barrier` over `rest` on rank {rank}: stopped because rank 2 failed: out of paper");
        assert_eq!(*error, expected);
    }
    assert_eq!(report.into_result().unwrap_err().to_string(), "rank 2 failed: out of paper");
}

#[test]
fn a_panic_on_one_rank_ends_all() {
    let error = run(3, |comm| {
        assert!(comm.rank() != 1, "shape of `x` is [2, 3]");
        comm.barrier().wait()
    })
    .unwrap_err();
    assert_eq!((error.rank, &error.cause), (1, &Cause::Panicked("shape of `x` is [2, 3]".to_owned())));
    assert_eq!(error.to_string(), "rank 1 panicked: shape of `x` is [2, 3]");
}

#[test]
fn the_first_cause_wins_over_its_consequences() {
    // Consequences of every kind: errors, panics, in chains; the first cause sits at another rank each time.
    for first in 0..5 {
        let error = run(5, move |comm| {
            if comm.rank() == first {
                return Err(comm.subgroup(&Group::new("odd", [9])).unwrap_err());
            }
            match comm.barrier().wait() {
                Err(error) if comm.rank() % 2 == 0 => panic!("{error}"),
                other => other,
            }
        })
        .unwrap_err();
        assert_eq!(error.rank, first);
        assert!(matches!(error.cause, Cause::Failed(Error::NotMember { .. })), "{error}");
    }
}

#[test]
fn a_silent_peer_costs_no_more_than_the_limit() {
    let (go_on, stop) = mpsc::channel::<()>();
    let stop = Arc::new(Mutex::new(stop));
    let options =
        LaunchOptions::default().timeout(Duration::from_millis(50)).grace(Duration::from_millis(50));
    let started = Instant::now();
    let error = launch(2, &options, move |comm| {
        if comm.rank() == 1 {
            // Busy for as long as this test runs.
            stop.lock().unwrap().recv().unwrap_err();
        }
        comm.all_reduce(numbers(1), Reduce::Sum).wait()
    })
    .into_result()
    .unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5));
    let call = Call { operation: Operation::AllReduce(Reduce::Sum), group: "world".into(), rank: 0 };
    assert_eq!(error.cause, Cause::Failed(Error::Timeout { call, peer: 1, limit: options.timeout }));
    assert_eq!(
        error.to_string(),
        "rank 0 failed: `all_reduce(sum)` over `world` on rank 0: nothing from rank 1 within 50ms \
         (left behind, still busy: ranks [1])"
    );
    drop(go_on);
}

#[test]
fn ranks_that_wait_for_each_other_time_out() {
    let options = LaunchOptions::default().timeout(Duration::from_millis(50));
    let error =
        launch(2, &options, |comm| comm.recv(1 - comm.rank(), NUMBER).wait()).into_result().unwrap_err();
    assert!(matches!(error.cause, Cause::Failed(Error::Timeout { .. })), "{error}");
}

#[test]
fn a_peer_that_leaves_early_is_named() {
    let error = text(2, |comm| match comm.rank() {
        0 => comm.recv(1, NUMBER).wait().map(drop),
        _ => Ok(()),
    });
    assert_eq!(error, "rank 0 failed: `recv` over `world` on rank 0: rank 1 finished without sending");
}

#[test]
fn a_message_sent_before_leaving_still_arrives() {
    run(2, |comm| match comm.rank() {
        0 => {
            thread::sleep(Duration::from_millis(20));
            comm.recv(1, NUMBER).wait().map(drop)
        }
        _ => comm.send(0, numbers(1)).wait(),
    })
    .unwrap();
}

#[test]
fn different_shapes_name_both_ends() {
    let error = text(2, |comm| match comm.rank() {
        0 => comm.recv(1, BufferSpec::new(DType::F32, 4)).wait().map(drop),
        _ => comm.send(0, numbers(3)).wait(),
    });
    assert_eq!(
        error,
        "rank 0 failed: `recv` over `world` on rank 0: expected 4 × f32 from rank 1, which sent 3 × i32"
    );
}

#[test]
fn different_shapes_are_seen_by_every_collective() {
    type Work = fn(xdit_comm::Comm) -> Result<(), Error>;
    let cases: [(Work, &str); 5] = [
        (|comm| comm.all_reduce(numbers(comm.rank()), Reduce::Sum).wait().map(drop), "all_reduce(sum)"),
        (|comm| comm.all_gather(numbers(2), &[2, 2 + comm.rank()]).wait().map(drop), "all_gather"),
        (
            |comm| comm.reduce_scatter(vec![numbers(1), numbers(comm.rank())], Reduce::Max).wait().map(drop),
            "reduce_scatter(max)",
        ),
        (
            |comm| comm.all_to_all(vec![numbers(1), numbers(1)], &[1 + comm.rank(), 1]).wait().map(drop),
            "all_to_all",
        ),
        (
            |comm| {
                let buffer = (comm.rank() == 0).then(|| numbers(2));
                let spec = BufferSpec::new(DType::I32, 2 + comm.rank());
                comm.broadcast(0, buffer, spec).wait().map(drop)
            },
            "broadcast",
        ),
    ];
    for (work, operation) in cases {
        let error = run(2, work).unwrap_err();
        let Cause::Failed(Error::Mismatch { call, .. }) = &error.cause else { panic!("{error}") };
        assert_eq!(call.operation.to_string(), operation);
    }
}

#[test]
fn ranks_out_of_step_name_both_operations() {
    let error = run(2, |comm| match comm.rank() {
        0 => comm.all_reduce(numbers(1), Reduce::Sum).wait().map(drop),
        _ => comm.all_reduce(numbers(1), Reduce::Max).wait().map(drop),
    })
    .unwrap_err();
    let rank = error.rank;
    let (mine, theirs) = if rank == 0 { ("sum", "max") } else { ("max", "sum") };
    assert_eq!(
        error.to_string(),
        format!(
            "rank {rank} failed: `all_reduce({mine})` over `world` on rank {rank}: \
             out of step with rank {}, which is in `all_reduce({theirs})`",
            1 - rank
        )
    );
}

#[test]
fn wrong_arguments_are_errors_with_their_values() {
    type Work = fn(xdit_comm::Comm) -> Result<(), Error>;
    let cases: [(Work, &str); 8] = [
        (
            |comm| comm.send(3, numbers(1)).wait(),
            "`send` over `world` on rank 0: no position 3 in a group of 1",
        ),
        (
            |comm| comm.recv(1, NUMBER).wait().map(drop),
            "`recv` over `world` on rank 0: no position 1 in a group of 1",
        ),
        (
            |comm| comm.broadcast(2, None, NUMBER).wait().map(drop),
            "`broadcast` over `world` on rank 0: no position 2 in a group of 1",
        ),
        (
            |comm| comm.broadcast(0, None, NUMBER).wait().map(drop),
            "`broadcast` over `world` on rank 0: the root alone must bring a buffer, and the root is rank 0",
        ),
        (
            |comm| comm.all_gather(numbers(1), &[1, 1]).wait().map(drop),
            "`all_gather` over `world` on rank 0: 2 parts for a group of 1",
        ),
        (
            |comm| comm.all_gather(numbers(1), &[2]).wait().map(drop),
            "`all_gather` over `world` on rank 0: expected 2 × i32 from rank 0, which sent 1 × i32",
        ),
        (
            |comm| comm.all_to_all(Vec::new(), &[1]).wait().map(drop),
            "`all_to_all` over `world` on rank 0: 0 parts for a group of 1",
        ),
        (
            |comm| comm.subgroup(&Group::new("tp", [0, 1])).map(drop),
            "`subgroup` over `world` on rank 0: rank 1 is not in both `tp` and its parent",
        ),
    ];
    for (work, expected) in cases {
        assert_eq!(text(1, work), format!("rank 0 failed: {expected}"));
    }
}
