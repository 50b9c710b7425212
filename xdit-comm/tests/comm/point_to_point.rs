//! Sends and receives: order, overlap, both directions.

use std::time::Duration;

use xdit_comm::{Buffer, BufferSpec, DType, Error, LaunchOptions, Sim};

use crate::patterns::{recv, send, send_recv};
use crate::watchdog::{launch, run};

fn number(value: i32) -> Buffer {
    Buffer::from_vec(vec![value])
}

const NUMBER: BufferSpec = BufferSpec::new(DType::I32, 1);

#[test]
fn receives_posted_ahead_match_in_order_and_complete_in_any() {
    run(2, |comm| {
        let peer = 1 - comm.rank();
        let mut posted: Vec<_> = (0..20).map(|_| Some(recv(&comm, peer, NUMBER))).collect();
        for value in 0..20 {
            send(&comm, peer, number(value)).wait()?;
        }
        for value in [7, 0, 18].into_iter().chain(0..20) {
            if let Some(pending) = posted[value].take() {
                assert_eq!(pending.wait()?, number(value as i32));
            }
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn two_directions_between_two_stages_do_not_stall() {
    // Both ranks send 64 MiB before either receives: a transport that waits for the receiver would stop here.
    run(2, |comm| {
        let peer = 1 - comm.rank();
        let big = Buffer::from_vec(vec![comm.rank() as u8; 1 << 20]);
        for _ in 0..64 {
            send(&comm, peer, big.clone()).wait()?;
        }
        for _ in 0..64 {
            let got = recv(&comm, peer, big.spec()).wait()?;
            assert!(got.bytes().iter().all(|&byte| byte == peer as u8));
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_pipeline_overlaps_latents_skips_and_the_way_back() {
    // Stages hand patches on while the last one sends results back to the first, all on one communicator.
    for stages in 2..=4 {
        let results = run(stages, move |comm| {
            let (here, last) = (comm.rank(), comm.size() - 1);
            let patches = 6;
            let back: Vec<_> =
                (0..patches).filter(|_| here == 0).map(|_| recv(&comm, last, NUMBER)).collect();
            for patch in 0..patches {
                let latents = match here {
                    0 => number(patch),
                    _ => recv(&comm, here - 1, NUMBER).wait()?,
                };
                let value = latents.elements::<i32>()[0] * 10 + here as i32;
                send(&comm, if here == last { 0 } else { here + 1 }, number(value)).wait()?;
            }
            back.into_iter()
                .map(|pending| Ok(pending.wait()?.elements::<i32>()[0]))
                .collect::<Result<Vec<_>, Error>>()
        })
        .unwrap();
        let through = |patch: i32| (0..stages as i32).fold(patch, |value, stage| value * 10 + stage);
        assert_eq!(results[0], (0..6).map(through).collect::<Vec<_>>());
    }
}

#[test]
fn grouped_transfers_may_be_named_in_any_order() {
    run(3, |comm| {
        let here = comm.rank();
        let (next, previous) = ((here + 1) % 3, (here + 2) % 3);
        let sends = vec![(next, number(1)), (here, number(2)), (previous, number(3)), (next, number(4))];
        let recvs = vec![(next, NUMBER), (previous, NUMBER), (here, NUMBER), (previous, NUMBER)];
        let got = send_recv(&comm, sends, recvs).wait()?;
        assert_eq!(got, [3, 1, 2, 4].map(number));
        Ok(())
    })
    .unwrap();
}

#[test]
fn transfers_in_flight_overlap() {
    let latency = Duration::from_millis(10);
    let network = Sim { latency, jitter: Duration::ZERO, bytes_per_s: f64::INFINITY, ..Sim::new(0) };
    let elapsed = |one_by_one: bool| {
        let report = launch(2, &LaunchOptions::default().sim(network.clone()), move |comm| {
            let peer = 1 - comm.rank();
            let mut flying = Vec::new();
            for value in 0..8 {
                let pending = send_recv(&comm, vec![(peer, number(value))], vec![(peer, NUMBER)]);
                if one_by_one {
                    assert_eq!(pending.wait()?, [number(value)]);
                } else {
                    flying.push(pending);
                }
            }
            for (value, pending) in flying.into_iter().enumerate() {
                assert_eq!(pending.wait()?, [number(value as i32)]);
            }
            Ok::<_, Error>(())
        });
        let elapsed = report.elapsed;
        report.into_result().unwrap();
        elapsed
    };
    assert_eq!(elapsed(true), 8 * latency);
    assert_eq!(elapsed(false), latency);
}
