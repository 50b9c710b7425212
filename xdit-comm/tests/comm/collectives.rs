//! Each pattern, in every small world.

use half::{bf16, f16};
use xdit_comm::{Buffer, BufferSpec, DType, Error, Group, RunError, local};

use crate::patterns::{all_gather, barrier, recv, send};
use crate::program::{self, OPS, Step, Waits};
use crate::watchdog::run;

#[test]
fn each_operation_agrees_with_the_reference() {
    for size in 1..=8 {
        for (index, op) in OPS.into_iter().enumerate() {
            // Every salt has other lengths; among the first ten are empty parts and every root.
            let step =
                |salt| Step { op, order: (0..size).collect(), degree: size, salt: salt + 100 * index as u64 };
            let steps: Vec<_> = (0..10).map(step).collect();
            let expected = program::expected(&steps, size);
            let got = run(size, move |comm| program::run(&steps, Waits::OneByOne, &comm)).unwrap();
            assert_eq!(got, expected, "{op:?} in a world of {size}");
        }
    }
}

#[test]
fn groups_work_in_parallel_in_every_split() {
    for size in 1..=8 {
        for degree in 1..=size {
            // Reversed, so that positions and world ranks differ.
            let step = |op| Step { op, order: (0..size).rev().collect(), degree, salt: degree as u64 };
            let steps: Vec<_> = OPS.into_iter().map(step).collect();
            let expected = program::expected(&steps, size);
            let got = run(size, move |comm| program::run(&steps, Waits::LastFirst, &comm)).unwrap();
            assert_eq!(got, expected, "groups of {degree} in a world of {size}");
        }
    }
}

#[test]
fn every_type_is_carried() {
    run(3, |comm| {
        let rank = comm.rank() as u8 + 1;
        let buffers = [
            Buffer::from_vec(vec![f32::from(rank), 0.5]),
            Buffer::from_vec([f32::from(rank), 0.5].map(bf16::from_f32).to_vec()),
            Buffer::from_vec([f32::from(rank), 0.5].map(f16::from_f32).to_vec()),
            Buffer::from_vec(vec![i32::from(rank), -5]),
            Buffer::from_vec(vec![rank, 5]),
        ];
        for buffer in buffers {
            let gathered = all_gather(&comm, buffer.clone(), &[2; 3]).wait()?;
            assert_eq!(gathered[comm.rank()], buffer);
            assert!(gathered.iter().all(|part| part.spec() == buffer.spec()));
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_sub_group_of_a_sub_group_speaks_of_world_ranks() {
    run(8, |world| {
        let me = world.rank();
        let halves = [0, 1].map(|odd| Group::new("sp", (0..8).filter(move |rank| rank % 2 == odd)));
        let sp = world.split(&halves)?.expect("each rank is in a half");
        let half = sp.group().ranks().to_vec();
        let pairs =
            [0, 1].map(|high| Group::new("ring", half.iter().copied().filter(move |rank| rank / 4 == high)));
        let ring = sp.split(&pairs)?.expect("each rank is in a pair");
        assert_eq!((ring.size(), ring.group().position(me)), (2, Some(ring.rank())));
        let seen = all_gather(&ring, Buffer::from_vec(vec![me as i32]), &[1, 1]).wait()?;
        let seen: Vec<_> = seen.iter().map(|it| it.elements::<i32>()[0] as usize).collect();
        assert_eq!(seen, pairs[me / 4].ranks());
        Ok(())
    })
    .unwrap();
}

#[test]
fn two_communicators_of_one_group_do_not_mix() {
    run(2, |world| {
        let split = || Ok::<_, Error>(world.split(&[Group::new("pp", [0, 1])])?.expect("both are in it"));
        let (forward, back) = (split()?, split()?);
        let peer = 1 - world.rank();
        // Issued in opposite orders by the two ranks, which one communicator would not allow for.
        let sends = [(&forward, 1), (&back, 2)];
        let in_order = |index: usize| if world.rank() == 0 { sends[index] } else { sends[1 - index] };
        for (comm, value) in [in_order(0), in_order(1)] {
            send(comm, peer, Buffer::from_vec(vec![value])).wait()?;
        }
        for (comm, value) in sends {
            let got = recv(comm, peer, BufferSpec::new(DType::I32, 1)).wait()?;
            assert_eq!(got, Buffer::from_vec(vec![value]));
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn ranks_outside_of_all_groups_have_no_part_of_a_split() {
    run(3, |world| {
        let pair = world.split(&[Group::new("pp", [2, 0])])?;
        assert_eq!(pair.map(|pair| pair.rank()), [Some(1), None, Some(0)][world.rank()]);
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_is_sent_stays_alive_and_is_not_copied() {
    let addresses = run(2, |comm| {
        let part = Buffer::from_vec(vec![comm.rank() as f32; 1024]);
        let own = part.bytes().as_ptr() as usize;
        // Neither handle of this rank outlives the statement; the transport's does.
        drop(send(&comm, 1 - comm.rank(), part));
        let received = recv(&comm, 1 - comm.rank(), BufferSpec::new(DType::F32, 1024)).wait()?;
        Ok((own, received.bytes().as_ptr() as usize, received))
    })
    .unwrap();
    assert_eq!(addresses[0].0, addresses[1].1);
    assert_eq!(addresses[1].0, addresses[0].1);
}

#[test]
fn alone_nothing_travels() {
    let steps: Vec<_> = OPS.into_iter().map(|op| Step { op, order: vec![0], degree: 1, salt: 9 }).collect();
    let alone = local();
    assert_eq!(program::run(&steps, Waits::OneByOne, &alone).unwrap(), program::expected(&steps, 1)[0]);
}

#[test]
fn a_barrier_holds_until_the_last_rank_comes() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    for round in 0..50 {
        let come = Arc::new(AtomicUsize::new(0));
        run(4, move |comm| {
            if comm.rank() == round % 4 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            come.fetch_add(1, Ordering::SeqCst);
            barrier(&comm)?;
            assert_eq!(come.load(Ordering::SeqCst), 4);
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_message_nobody_receives_is_an_error() {
    let error: RunError<Error> = run(2, |comm| match comm.rank() {
        0 => send(&comm, 1, Buffer::from_vec(vec![1u8])).wait(),
        _ => Ok(()),
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "`send` over `world` on rank 0: rank 1 finished without receiving this");
}
