//! Every message and byte is counted, where it belongs.

use std::time::Duration;

use xdit_comm::{
    Buffer, BufferSpec, Count, DType, Error, Group, LaunchOptions, Operation, Reduce, Sim, Wait,
};

use crate::watchdog::launch;

#[test]
fn counts_follow_from_sizes_and_degrees() {
    let report = launch(4, &LaunchOptions::default(), |world| {
        let first = world.rank() / 2 * 2;
        let tp = world.subgroup(&Group::new("tp", [first, first + 1]))?;
        let ulysses = world.subgroup(&Group::new("ulysses", 0..4))?;
        let floats = |len: usize| Buffer::from_vec(vec![0f32; len]);
        for _ in 0..3 {
            tp.all_reduce(floats(10), Reduce::Sum).wait()?;
        }
        ulysses.all_to_all((0..4).map(|to| floats(to + 1)).collect(), &[world.rank() + 1; 4]).wait()?;
        ulysses.all_gather(floats(5), &[5; 4]).wait()?;
        ulysses.reduce_scatter(vec![floats(2); 4], Reduce::Max).wait()?;
        let halves = (world.rank() == 1).then(|| Buffer::from_bytes(DType::Bf16, vec![0; 6]));
        ulysses.broadcast(1, halves, BufferSpec::new(DType::Bf16, 3)).wait()?;
        let next = (world.rank() + 1) % 4;
        let previous = (world.rank() + 3) % 4;
        // What a rank sends to itself stays at home.
        world
            .send_recv(
                vec![(next, floats(6)), (world.rank(), floats(9))],
                vec![
                    (previous, BufferSpec::new(DType::F32, 6)),
                    (world.rank(), BufferSpec::new(DType::F32, 9)),
                ],
            )
            .wait()?;
        world.barrier().wait()?;
        Ok::<_, Error>(())
    });
    let count =
        |calls, payload_bytes, messages, sent_bytes| Count { calls, payload_bytes, messages, sent_bytes };
    for (rank, traffic) in report.traffic.iter().enumerate() {
        let own = 4 * (rank as u64 + 1);
        assert_eq!(traffic.get("tp", Operation::AllReduce(Reduce::Sum)), count(3, 120, 3, 120));
        assert_eq!(traffic.get("ulysses", Operation::AllToAll), count(1, 40, 3, 40 - own));
        assert_eq!(traffic.get("ulysses", Operation::AllGather), count(1, 20, 3, 60));
        assert_eq!(traffic.get("ulysses", Operation::ReduceScatter(Reduce::Max)), count(1, 32, 3, 24));
        let root = if rank == 1 { count(1, 6, 3, 18) } else { count(1, 0, 0, 0) };
        assert_eq!(traffic.get("ulysses", Operation::Broadcast), root);
        assert_eq!(traffic.get("world", Operation::SendRecv), count(1, 60, 1, 24));
        assert_eq!(traffic.get("world", Operation::Barrier), count(1, 0, 3, 0));
        assert_eq!(traffic.get("tp", Operation::Barrier), Count::default());
        assert_eq!(traffic.of_label("tp"), count(3, 120, 3, 120));
        assert_eq!(traffic.iter().count(), 7);
    }
    let mut all = report.traffic[0].clone();
    report.traffic[1..].iter().for_each(|traffic| all.merge(traffic));
    assert_eq!(all.get("ulysses", Operation::AllToAll), count(4, 160, 12, 120));
    assert_eq!(
        all.total().messages,
        report.traffic.iter().map(|traffic| traffic.total().messages).sum::<u64>()
    );
    let table = all.to_string();
    assert!(table.lines().any(|line| line.starts_with("ulysses") && line.contains("all_to_all")), "{table}");
    report.into_result().unwrap();
}

#[test]
fn waits_last_until_the_last_message_is_there() {
    let latency = Duration::from_millis(1);
    let sim = Sim { latency, jitter: Duration::ZERO, bytes_per_s: 1e6, ..Sim::new(0) };
    let options = LaunchOptions::default().sim(sim).record_waits(true);
    let report = launch(2, &options, |world| {
        let bytes = |len: usize| Buffer::from_vec(vec![0u8; len]);
        if world.rank() == 0 {
            world.send(1, bytes(4_000)).wait()?;
            world.send(1, bytes(500)).wait()?;
        } else {
            let spec = |len| (0, BufferSpec::new(DType::U8, len));
            let both = world.send_recv(Vec::new(), vec![spec(4_000), spec(500)]);
            assert_eq!(world.now(), Duration::ZERO, "nothing was waited for yet");
            both.wait()?;
            assert_eq!(world.now(), Duration::from_millis(5));
        }
        Ok::<_, Error>(world.waits())
    });
    let [sender, receiver] = &report.traffic[..] else { panic!("two ranks") };
    assert_eq!(sender.total_waited(), Duration::ZERO, "a message that leaves holds nobody up");
    assert_eq!(receiver.waited("world", Operation::SendRecv), Duration::from_millis(5));
    let wait = Wait {
        group: "world".into(),
        operation: Operation::SendRecv,
        begin: Duration::ZERO,
        end: Duration::from_millis(5),
        received_bytes: 4_500,
    };
    assert_eq!(report.into_result().unwrap(), [vec![], vec![wait]]);
}

#[test]
fn waits_are_kept_one_by_one_only_if_asked_for() {
    let report = launch(2, &LaunchOptions::default(), |world| {
        world.barrier().wait()?;
        Ok::<_, Error>(world.waits())
    });
    assert!(report.traffic.iter().all(|traffic| traffic.total_waited() > Duration::ZERO));
    assert_eq!(report.into_result().unwrap(), [vec![], vec![]]);
}
