//! NCCL's communicators and their watch, on a library of these tests that keeps NCCL's rules over the host's memory.
#![expect(unsafe_code, reason = "gives addresses to a library in C")]

use std::ffi::c_void;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use xdit_comm::nccl::{Communicator, Nccl, Part, UniqueId, Watch};
use xdit_comm::{Buffer, BufferSpec, Comm, DType, LaunchOptions, Operation, RunError, run_ranks};

const LONG: Duration = Duration::from_secs(60);

/// Compiles the library, and returns its file.
fn compile(name: &str, arguments: &[&str]) -> PathBuf {
    let file =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("lib{name}-{}.so", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nccl/fake.rs");
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let mut command = Command::new(compiler);
    command.args([
        "--edition",
        "2024",
        "--crate-type",
        "cdylib",
        "-C",
        "opt-level=1",
        "-A",
        "non_snake_case",
    ]);
    let end =
        command.args(["--check-cfg", "cfg(old)"]).args(arguments).arg(source).arg("-o").arg(&file).output();
    let end = end.expect("rustc runs");
    assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stderr));
    file
}

fn nccl() -> Arc<Nccl> {
    static FAKE: OnceLock<Arc<Nccl>> = OnceLock::new();
    FAKE.get_or_init(|| Nccl::open(compile("nccl-fake", &[])).expect("it has all functions")).clone()
}

/// A stream of the library: the number of operations that are over.
#[derive(Clone, Debug, Default)]
struct Stream(Arc<AtomicU64>);

impl Stream {
    fn raw(&self) -> *mut c_void {
        Arc::as_ptr(&self.0).cast_mut().cast()
    }

    fn over(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn wait(&self, operations: u64) {
        let start = Instant::now();
        while self.over() < operations {
            assert!(start.elapsed() < LONG, "{} of {operations} operations are over", self.over());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn part(peer: usize, values: &[f32]) -> Part {
    Part { peer, address: values.as_ptr() as u64, len: values.len(), dtype: DType::F32 }
}

/// The communicator of all ranks of `world`, which meet over it.
fn join(world: &Comm) -> Arc<Communicator> {
    let (nccl, rank, size) = (nccl(), world.rank(), world.size());
    let id = nccl.unique_id().unwrap();
    let spec = BufferSpec::new(DType::U8, UniqueId::BYTES);
    let others = || (0..size).filter(|&peer| peer != rank);
    let sends = others().map(|peer| (peer, Buffer::from_vec(id.bytes().to_vec()))).collect();
    let receives = others().map(|peer| (peer, spec)).collect();
    let arrived = world.exchange(Operation::Split, sends, receives).wait().unwrap();
    let first = if rank == 0 { id.bytes().to_vec() } else { arrived[0].elements::<u8>().into_owned() };
    Communicator::join(&nccl, UniqueId::from_bytes(&first).unwrap(), size, rank).unwrap()
}

/// Gives each rank's number to the next rank and `2 * number` to the one before, as one operation.
fn to_both_neighbours(raw: &Communicator, stream: &Stream) -> [f32; 2] {
    let (rank, size) = (raw.rank(), raw.size());
    let (next, last) = ((rank + 1) % size, (rank + size - 1) % size);
    let (up, down, mut arrived) = ([rank as f32], [2.0 * rank as f32; 3], [[0.0], [0.0]]);
    let (before, mut three) = (stream.over(), [0.0; 3]);
    let nothing = Part { len: 0, ..part(next, &up) };
    // SAFETY: the arrays live until the stream has done the operation.
    unsafe {
        let receives = [part(last, &arrived[0]), part(next, &three)];
        raw.exchange(&[part(next, &up), nothing, part(last, &down)], &receives, stream.raw()).unwrap();
    }
    stream.wait(before + 1);
    // The library wrote to them.
    std::hint::black_box((&mut arrived, &mut three));
    assert!(three.iter().all(|&x| x == three[0]));
    [arrived[0][0], three[0]]
}

fn sum(raw: &Communicator, values: [f32; 2], stream: &Stream) -> [f32; 2] {
    let (mut total, before) = ([0.0; 2], stream.over());
    let addresses = [values.as_ptr() as u64, total.as_mut_ptr() as u64];
    // SAFETY: both live until the stream has done the operation.
    unsafe { raw.sum(addresses, 2, DType::F32, stream.raw()).unwrap() };
    stream.wait(before + 1);
    std::hint::black_box(total)
}

#[test]
fn tensors_go_to_their_ranks_in_the_world_and_in_its_groups() {
    let seen = run_ranks(6, &LaunchOptions::default(), |world| {
        let raw = join(&world);
        let stream = Stream::default();
        let whole = (to_both_neighbours(&raw, &stream), sum(&raw, [1.0, world.rank() as f32], &stream));
        // {0, 2, 4} and {1, 3}; rank 5 is alone without a group.
        let rank = world.rank();
        let color = (rank < 5).then_some(rank % 2);
        let size = if rank % 2 == 0 { 3 } else { 2 };
        let group = raw.split(color, [size, rank / 2]).unwrap();
        let of_group = group.map(|raw| {
            assert_eq!((raw.size(), raw.rank()), (size, rank / 2));
            let sum = sum(&raw, [1.0, rank as f32], &stream);
            (to_both_neighbours(&raw, &stream), sum)
        });
        assert_eq!(raw.check(), Ok(()));
        Ok::<_, xdit_comm::Error>((whole, of_group))
    });
    let seen = seen.unwrap_or_else(|error| panic!("{error}"));
    for (rank, (whole, group)) in seen.into_iter().enumerate() {
        let neighbours =
            |rank: usize, size: usize| [((rank + size - 1) % size) as f32, 2.0 * ((rank + 1) % size) as f32];
        assert_eq!(whole, (neighbours(rank, 6), [6.0, 15.0]), "rank {rank}");
        let expected = match rank {
            5 => None,
            _ if rank % 2 == 0 => Some((neighbours(rank / 2, 3), [3.0, 6.0])),
            _ => Some((neighbours(rank / 2, 2), [2.0, 4.0])),
        };
        assert_eq!(group, expected, "rank {rank}");
    }
}

/// Rank 0 waits on its stream for rank 1, which does `other`. Returns the reason why rank 0's watch has ended, and how
/// long that took.
fn waiting(
    limit: Duration,
    other: impl Fn(&Communicator) -> Result<(), String> + Send + Sync + 'static,
) -> (String, Duration) {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let end: Result<Vec<()>, RunError<String>> = run_ranks(2, &LaunchOptions::default(), move |world| {
        let raw = join(&world);
        let watch = Watch::start(world.clone(), limit)?;
        watch.add(&raw);
        if world.rank() == 1 {
            return other(&raw);
        }
        let (stream, room, start) = (Stream::default(), [0.0; 4], Instant::now());
        // SAFETY: the array lives until the communicator has ended.
        unsafe { raw.exchange(&[], &[part(1, &room)], stream.raw())? };
        let watched = stream.clone();
        watch.expect("all-gather".into(), Box::new(move || (watched.over() > 0).then_some(Ok(()))));
        while watch.failure().is_none() {
            if start.elapsed() > LONG {
                return Err("nothing ended the wait".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let failure = watch.failure().unwrap().to_string();
        tell.lock().unwrap().send((failure, start.elapsed())).unwrap();
        // The abort may follow the reason by a moment. The room may not go before the worker has ended.
        while raw.split(None, [1, 0]).is_ok() {
            assert!(start.elapsed() < LONG);
        }
        Ok(())
    });
    drop(end);
    told.recv().expect("rank 0 has seen a failure")
}

#[test]
fn a_rank_that_fails_ends_those_that_wait_on_their_device() {
    let (failure, after) = waiting(LONG, |_| Err("no memory".to_owned()));
    assert!(failure.contains("rank 1"), "{failure}");
    assert!(after < Duration::from_secs(10), "{after:?}");
}

#[test]
fn a_rank_that_is_silent_ends_the_others_after_the_limit() {
    let (failure, after) = waiting(Duration::from_millis(300), |_| {
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    });
    assert_eq!(failure, "all-gather: not over within 300ms");
    assert!(after >= Duration::from_millis(300), "{after:?}");
}

#[test]
fn an_error_after_the_issue_ends_the_rank() {
    let (failure, _) = waiting(LONG, |raw| {
        let (stream, values) = (Stream::default(), [1.0; 3]);
        // Rank 0 has room for four.
        // SAFETY: the array lives until the communicator has taken it.
        unsafe { raw.exchange(&[part(0, &values)], &[], stream.raw())? };
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    });
    assert_eq!(failure, "`ncclCommGetAsyncError` of NCCL 2.28.4 failed: invalid argument");
}

#[test]
fn calls_that_the_library_refuses_are_named() {
    let one = run_ranks(1, &LaunchOptions::default(), |world| {
        let raw = join(&world);
        let values = [0.0; 1];
        // SAFETY: nothing is read, as there is no such rank.
        let end = unsafe { raw.exchange(&[part(7, &values)], &[], Stream::default().raw()) };
        raw.abort();
        // SAFETY: as above.
        let late = unsafe { raw.exchange(&[], &[], Stream::default().raw()) };
        Ok::<_, String>((end.unwrap_err(), late.unwrap_err()))
    });
    let (refused, late) = one.unwrap_or_else(|error| panic!("{error}")).remove(0);
    assert_eq!(refused, "`ncclSend` of NCCL 2.28.4 failed: invalid argument");
    assert_eq!(late, "the communicator has been aborted");
}

#[test]
fn old_and_foreign_libraries_are_refused() {
    let old = Nccl::open(compile("nccl-old", &["--cfg", "old"])).unwrap_err();
    assert_eq!(old, "version 2.17.3 is older than 2.18.0");
    let foreign = Nccl::open("libm.so.6").unwrap_err();
    assert!(foreign.contains("ncclGetVersion"), "{foreign}");
    assert!(Nccl::open("libno-such-library.so").is_err());
}
