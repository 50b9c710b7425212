//! What fails says where, and takes the whole run with it at once.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use xdit_comm::{Buffer, BufferSpec, Call, Cause, DType, Error, Group, LaunchOptions, Operation, Outcome};

use crate::patterns::{all_gather, all_to_all, barrier, broadcast, recv, send, send_recv};
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
        // In a group of their own, the others do not even wait for the rank that fails.
        let Some(rest) = comm.split(&[Group::new("rest", [0, 1, 3])]).map_err(|error| error.to_string())?
        else {
            return Err("out of paper".to_owned());
        };
        loop {
            barrier(&rest).map_err(|error| error.to_string())?;
        }
    });
    assert!(started.elapsed() < Duration::from_secs(2));
    for rank in [0, 1, 3] {
        let Outcome::Failed(error) = &report.outcomes[rank] else { panic!("rank {rank} did not fail") };
        let expected =
            format!("`all_gather` over `rest` on rank {rank}: stopped because rank 2 failed: out of paper");
        assert_eq!(*error, expected);
    }
    assert_eq!(report.into_result().unwrap_err().to_string(), "rank 2 failed: out of paper");
}

#[test]
fn a_panic_on_one_rank_ends_all() {
    let error = run(3, |comm| {
        assert!(comm.rank() != 1, "shape of `x` is [2, 3]");
        barrier(&comm)
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
                return Err(comm.split(&[Group::new("odd", [9])]).unwrap_err());
            }
            match barrier(&comm) {
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
        all_gather(&comm, numbers(1), &[1, 1]).wait()
    })
    .into_result()
    .unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5));
    let call = Call { operation: Operation::AllGather, group: "world".into(), rank: 0 };
    assert_eq!(error.cause, Cause::Failed(Error::Timeout { call, peer: 1, limit: options.timeout }));
    assert_eq!(
        error.to_string(),
        "rank 0 failed: `all_gather` over `world` on rank 0: nothing from rank 1 within 50ms \
         (left behind, still busy: ranks [1])"
    );
    drop(go_on);
}

#[test]
fn ranks_that_wait_for_each_other_time_out() {
    let options = LaunchOptions::default().timeout(Duration::from_millis(50));
    let error =
        launch(2, &options, |comm| recv(&comm, 1 - comm.rank(), NUMBER).wait()).into_result().unwrap_err();
    assert!(matches!(error.cause, Cause::Failed(Error::Timeout { .. })), "{error}");
}

#[test]
fn a_peer_that_leaves_early_is_named() {
    let error = text(2, |comm| match comm.rank() {
        0 => recv(&comm, 1, NUMBER).wait().map(drop),
        _ => Ok(()),
    });
    assert_eq!(error, "rank 0 failed: `recv` over `world` on rank 0: rank 1 finished without sending");
}

#[test]
fn a_message_sent_before_leaving_still_arrives() {
    run(2, |comm| match comm.rank() {
        0 => {
            thread::sleep(Duration::from_millis(20));
            recv(&comm, 1, NUMBER).wait().map(drop)
        }
        _ => send(&comm, 0, numbers(1)).wait(),
    })
    .unwrap();
}

#[test]
fn different_shapes_name_both_ends() {
    let error = text(2, |comm| match comm.rank() {
        0 => recv(&comm, 1, BufferSpec::new(DType::F32, 4)).wait().map(drop),
        _ => send(&comm, 0, numbers(3)).wait(),
    });
    assert_eq!(
        error,
        "rank 0 failed: `recv` over `world` on rank 0: expected 4 × f32 from rank 1, which sent 3 × i32"
    );
}

#[test]
fn different_shapes_are_seen_in_every_pattern() {
    type Work = fn(xdit_comm::Comm) -> Result<(), Error>;
    let cases: [(Work, &str); 4] = [
        (|comm| all_gather(&comm, numbers(2), &[2 + comm.rank(), 2]).wait().map(drop), "all_gather"),
        (
            |comm| all_to_all(&comm, vec![numbers(1), numbers(1)], &[1 + comm.rank(), 1]).wait().map(drop),
            "all_to_all",
        ),
        (
            |comm| {
                let buffer = (comm.rank() == 0).then(|| numbers(2));
                let spec = BufferSpec::new(DType::I32, 2 + comm.rank());
                broadcast(&comm, 0, buffer, spec).wait().map(drop)
            },
            "broadcast",
        ),
        (
            |comm| {
                let (peer, spec) = (1 - comm.rank(), BufferSpec::new(DType::I32, comm.rank() + 1));
                send_recv(&comm, vec![(peer, numbers(1))], vec![(peer, spec)]).wait().map(drop)
            },
            "send_recv",
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
        0 => all_gather(&comm, numbers(1), &[1, 1]).wait().map(drop),
        _ => all_to_all(&comm, vec![numbers(1), numbers(1)], &[1, 1]).wait().map(drop),
    })
    .unwrap_err();
    let rank = error.rank;
    let (mine, theirs) = if rank == 0 { ("all_gather", "all_to_all") } else { ("all_to_all", "all_gather") };
    assert_eq!(
        error.to_string(),
        format!(
            "rank {rank} failed: `{mine}` over `world` on rank {rank}: \
             out of step with rank {}, which is in `{theirs}`",
            1 - rank
        )
    );
}

#[test]
fn wrong_arguments_are_errors_with_their_values() {
    type Work = fn(xdit_comm::Comm) -> Result<(), Error>;
    let cases: [(Work, &str); 4] = [
        (
            |comm| send(&comm, 3, numbers(1)).wait(),
            "`send` over `world` on rank 0: no position 3 in a group of 1",
        ),
        (
            |comm| recv(&comm, 1, NUMBER).wait().map(drop),
            "`recv` over `world` on rank 0: no position 1 in a group of 1",
        ),
        (
            |comm| comm.split(&[Group::new("tp", [0, 1])]).map(drop),
            "`split` over `world` on rank 0: rank 1 of `tp` is not in it",
        ),
        (
            |comm| comm.split(&[Group::new("tp", [0]), Group::new("tp", [0])]).map(drop),
            "`split` over `world` on rank 0: rank 0 is in two of the groups",
        ),
    ];
    for (work, expected) in cases {
        assert_eq!(text(1, work), format!("rank 0 failed: {expected}"));
    }
}
