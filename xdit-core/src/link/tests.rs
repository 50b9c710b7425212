//! Tensors arrive unchanged, sums are equal on all ranks, and all traffic is counted.

use std::time::Duration;

use burn::tensor::TensorData;
use xdit_comm::{LaunchOptions, run_ranks};

use super::counted::Meter;
use super::*;
use crate::error::Result;

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], dtype: DType) -> Tensor<D> {
    let data = TensorData::new(values.to_vec(), shape);
    Tensor::<D>::from_data(data, (&Device::flex(), DType::F32)).cast(dtype)
}

fn floats(len: usize) -> Tensor<1> {
    tensor(&vec![1.0; len], [len], DType::F32)
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().cast(DType::F32).to_data().try_to_vec().expect("an f32 tensor")
}

/// The results of `work` on `size` ranks.
fn on_ranks<T: Send + 'static>(
    size: usize,
    work: impl Fn(Arc<dyn Link>) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let rank = move |comm| catch(|| Result::Ok(work(HostLink::new(comm))));
    run_ranks(size, &LaunchOptions::default(), rank).unwrap_or_else(|error| panic!("{error}"))
}

/// The sum over ranks that each have one of `parts`.
fn sum(parts: &'static [&'static [f32]], dtype: DType) -> Vec<f32> {
    let sums = on_ranks(parts.len(), move |link| {
        let part = parts[link.rank()];
        values(&link.sum_of(tensor(part, [1, part.len()], dtype)))
    });
    assert!(sums.iter().all(|sum| sum == &sums[0]), "every rank has the same");
    sums[0].clone()
}

#[test]
fn sums_fold_from_the_first_rank_to_the_last() {
    // (1e8 + 1) - 1e8 is 0 in f32, 1e8 - 1e8 + 1 is 1: the order is visible in the bits.
    assert_eq!(sum(&[&[1e8, 1.0], &[1.0, 2.0], &[-1e8, 3.0]], DType::F32), [0.0, 6.0]);
    assert_eq!(sum(&[&[1e8], &[-1e8], &[1.0]], DType::F32), [1.0]);
}

#[test]
fn half_precision_is_rounded_once() {
    // In bf16 itself 256 + 1 + 1 stays 256: the spacing there is 2, and ties go to even.
    assert_eq!(sum(&[&[256.0], &[1.0], &[1.0]], DType::BF16), [258.0]);
    assert_eq!(sum(&[&[2048.0], &[1.0], &[1.0]], DType::F16), [2050.0]);
}

#[test]
fn parts_may_be_views_and_differ_in_shape() {
    let seen = on_ranks(3, |link| {
        let rank = link.rank();
        let all = tensor(&(0..24).map(|i| (100 * rank + i) as f32).collect::<Vec<_>>(), [2, 12], DType::F32);
        // Rank i gets 2 + i columns, which are not contiguous.
        let part = |to: usize| all.clone().narrow(1, 3 * to, 2 + to);
        let arrived = link.all_to_all((0..3).map(part).collect(), &[[2, 2 + rank]; 3]).wait();
        let own = all.clone().narrow(1, rank, 1);
        let gathered = link.all_gather(own, &[[2, 1]; 3]).wait();
        (arrived.iter().map(values).collect::<Vec<_>>(), Tensor::cat(gathered, 1))
    });
    for (rank, (arrived, gathered)) in seen.iter().enumerate() {
        for (from, part) in arrived.iter().enumerate() {
            let row = |row: usize| (0..2 + rank).map(move |i| (100 * from + 12 * row + 3 * rank + i) as f32);
            assert_eq!(*part, row(0).chain(row(1)).collect::<Vec<_>>(), "from {from} to {rank}");
        }
        assert_eq!(values(gathered), [0.0, 101.0, 202.0, 12.0, 113.0, 214.0]);
    }
}

#[test]
fn a_transfer_that_fails_unwinds_with_its_name() {
    let work = |comm: xdit_comm::Comm| {
        let link = HostLink::new(comm);
        let peer = 1 - link.rank();
        catch(|| {
            let slot = Place::of(&floats(1)).slot([2 + link.rank()]);
            Ok(link.exchange(vec![(peer, floats(2))], vec![(peer, slot)]).wait().len())
        })
    };
    let error = run_ranks(2, &LaunchOptions::default(), work).unwrap_err().to_string();
    let expected = "`send_recv` over `world` on rank 1: expected 3 × f32 from rank 0, which sent 2 × f32";
    assert_eq!(error, format!("rank 1 failed: {expected}"));
}

#[test]
fn counts_follow_from_sizes_and_degrees() {
    let traffic = on_ranks(4, |world| {
        let meter = Meter::new(false);
        let world = Counted::new(world, &meter);
        let rank = world.rank();
        let split = |groups: &[Group]| world.split(groups).unwrap().expect("each rank is in a group");
        let tp = split(&[Group::new("tp", [0, 1]), Group::new("tp", [2, 3])]);
        let ulysses = split(&[Group::new("ulysses", 0..4)]);
        for _ in 0..3 {
            tp.sum_of(floats(10));
        }
        ulysses.all_to_all((1..=4).map(floats).collect(), &[[rank + 1]; 4]).wait();
        ulysses.all_gather(floats(5), &[[5]; 4]).wait();
        // A message of a rank to itself does not count as sent.
        let (next, previous) = ((rank + 1) % 4, (rank + 3) % 4);
        let slot = |len| Place::of(&floats(1)).slot([len]);
        let sends = vec![(next, floats(6)), (rank, floats(9))];
        world.exchange(sends, vec![(previous, slot(6)), (rank, slot(9))]).wait();
        (meter.traffic(), meter.totals().1)
    });
    let count =
        |calls, payload_bytes, messages, sent_bytes| Count { calls, payload_bytes, messages, sent_bytes };
    let mut all = Traffic::default();
    for (rank, (traffic, sent_bytes)) in traffic.iter().enumerate() {
        let own = 4 * (rank as u64 + 1);
        assert_eq!(traffic.get("tp", Operation::AllReduce), count(3, 120, 3, 120));
        assert_eq!(traffic.get("ulysses", Operation::AllToAll), count(1, 40, 3, 40 - own));
        assert_eq!(traffic.get("ulysses", Operation::AllGather), count(1, 20, 3, 60));
        assert_eq!(traffic.get("world", Operation::SendRecv), count(1, 60, 1, 24));
        assert_eq!(traffic.get("tp", Operation::AllGather), Count::default());
        assert_eq!(traffic.of_label("tp"), count(3, 120, 3, 120));
        assert_eq!(traffic.iter().count(), 4);
        assert_eq!(traffic.total().sent_bytes, *sent_bytes);
        all.merge(traffic);
    }
    assert_eq!(all.get("ulysses", Operation::AllToAll), count(4, 160, 12, 120));
    let table = all.to_string();
    assert!(table.lines().any(|line| line.starts_with("ulysses") && line.contains("all_to_all")), "{table}");
}

#[test]
fn waits_are_kept_one_by_one_only_if_asked_for() {
    for keeps_waits in [false, true] {
        let waited = on_ranks(2, move |link| {
            // The clock advances by a second at each reading.
            let ticks = std::sync::atomic::AtomicU64::new(0);
            let clock = move || Duration::from_secs(ticks.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            let meter = Meter::with_clock(keeps_waits, clock);
            let link = Counted::new(link, &meter);
            let (peer, slot) = (1 - link.rank(), Place::of(&floats(1)).slot([3]));
            link.exchange(vec![(peer, floats(3))], Vec::new()).wait();
            link.exchange(Vec::new(), vec![(peer, slot)]).wait();
            (meter.traffic(), meter.totals().0, meter.waits())
        });
        let wait = Wait {
            group: "world".into(),
            operation: Operation::Recv,
            begin: Duration::ZERO,
            end: Duration::from_secs(1),
            received_bytes: 12,
        };
        for (traffic, total, waits) in waited {
            assert_eq!(traffic.waited("world", Operation::Send), Duration::ZERO, "a send holds nobody up");
            assert_eq!(traffic.waited("world", Operation::Recv), wait.duration());
            assert_eq!((traffic.total_waited(), total), (wait.duration(), wait.duration()));
            assert_eq!(waits, if keeps_waits { vec![wait.clone()] } else { Vec::new() });
        }
    }
}
