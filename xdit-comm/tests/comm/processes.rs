//! Worlds across processes, here threads of the test that are connected by sockets as processes would be.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use xdit_comm::{
    Arrival, Buffer, BufferSpec, Cause, Comm, DType, Ended, Error, Group, LaunchOptions, MeetError, Meeting,
    Operation, Processes, RunError, run_ranks,
};

use crate::patterns::{barrier, recv, send, send_recv};
use crate::program::{self, OPS, Step, Waits};
use crate::watchdog::{LIMIT, guard};

/// A port that nobody uses.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn meeting(process: usize, processes: usize, port: u16) -> Meeting {
    Meeting {
        process,
        processes,
        host: "127.0.0.1".to_owned(),
        port,
        job: "test".to_owned(),
        program: "xdit test".to_owned(),
        own_host: format!("host-{process}"),
        limit: Duration::from_secs(20),
    }
}

/// Runs `work` in every process, each a thread, with a different view of the meeting.
fn each<T: Send + 'static>(
    meetings: Vec<Meeting>,
    work: impl Fn(Meeting) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let _alive = guard(LIMIT);
    let start = |meeting| {
        let work = work.clone();
        thread::spawn(move || work(meeting))
    };
    let threads: Vec<_> = meetings.into_iter().map(start).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn meetings(processes: usize) -> Vec<Meeting> {
    let port = free_port();
    (0..processes).map(|process| meeting(process, processes, port)).collect()
}

/// Runs `work` in every process, once all have met.
fn together<T: Send + 'static>(
    processes: usize,
    work: impl Fn(&Processes) -> T + Clone + Send + 'static,
) -> Vec<T> {
    each(meetings(processes), move |meeting| {
        let processes = Processes::meet(&meeting).unwrap();
        work(&processes)
    })
}

/// Runs `work` on the ranks of a world of `size` across `processes`, and returns the end in each process.
fn across<T: Send + 'static>(
    processes: usize,
    size: usize,
    work: impl Fn(Comm) -> Result<T, Error> + Clone + Send + Sync + 'static,
) -> Vec<Result<Vec<T>, RunError<Error>>> {
    together(processes, move |processes| {
        let options = LaunchOptions::default().processes(processes.clone());
        run_ranks(size, &options, work.clone())
    })
}

#[test]
fn every_program_has_the_results_of_threads() {
    for (processes, size) in [(1, 2), (2, 2), (2, 4), (4, 4), (3, 6)] {
        for waits in [Waits::OneByOne, Waits::LastFirst] {
            let step = |(salt, op)| {
                let order = (0..size).map(|index| (index * 5 + salt) % size).collect::<Vec<_>>();
                let distinct = (0..size).all(|rank| order.contains(&rank));
                let order = if distinct { order } else { (0..size).rev().collect() };
                Step { op, order, degree: 1 + salt % size, salt: salt as u64 }
            };
            let steps: Vec<Step> = OPS.into_iter().cycle().take(18).enumerate().map(step).collect();
            let expected = program::expected(&steps, size);
            let ends = across(processes, size, move |world| program::run(&steps, waits, &world));
            let ranks: Vec<_> = ends.into_iter().flat_map(Result::unwrap).collect();
            assert_eq!(ranks, expected, "{size} ranks in {processes} processes, {waits:?}");
        }
    }
}

#[test]
fn large_buffers_cross_in_both_directions_at_once() {
    const LEN: usize = 5 << 20;
    let sums = across(2, 2, |world| {
        let (peer, spec) = (1 - world.rank(), BufferSpec::new(DType::F32, LEN));
        let mine = Buffer::from_vec(vec![world.rank() as f32 + 1.0; LEN]);
        let pendings: Vec<_> =
            (0..3).map(|_| send_recv(&world, vec![(peer, mine.clone())], vec![(peer, spec)])).collect();
        let mut sum = 0.0;
        for pending in pendings {
            sum += pending.wait()?[0].elements::<f32>().iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        Ok(sum)
    });
    let sums: Vec<f64> = sums.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(sums, [6.0 * LEN as f64, 3.0 * LEN as f64]);
}

#[test]
fn one_world_follows_another() {
    let ranks = together(2, |processes| {
        let options = LaunchOptions::default().processes(processes.clone());
        (0..5)
            .map(|round| {
                // The second process is late for each world, so the first messages of the other wait for it.
                thread::sleep(Duration::from_millis(20 * processes.process() as u64));
                let values = run_ranks(2, &options, move |world| {
                    let (peer, mine) = (1 - world.rank(), vec![10 * round + world.rank() as i32]);
                    let theirs = vec![(peer, BufferSpec::new(DType::I32, 1))];
                    let sends = vec![(peer, Buffer::from_vec(mine))];
                    let arrived = world.exchange(Operation::SendRecv, sends, theirs).wait()?;
                    Ok::<_, Error>(arrived[0].elements::<i32>()[0])
                });
                values.unwrap()[0]
            })
            .collect::<Vec<_>>()
    });
    assert_eq!(ranks, [[1, 11, 21, 31, 41], [0, 10, 20, 30, 40]]);
}

#[test]
fn a_failed_rank_ends_all_processes_and_is_named_everywhere() {
    let started = Instant::now();
    let ends = across(3, 6, |world| {
        if world.rank() == 3 {
            return Err(world.split(&[Group::new("odd", [9])]).unwrap_err());
        }
        loop {
            // The failed rank is not among those that wait for each other.
            match world.rank() % 2 {
                0 => thread::sleep(Duration::from_millis(1)),
                _ => drop(world.split(&[])),
            }
            world.check()?;
        }
        #[expect(unreachable_code, reason = "gives the closure its type")]
        Ok(())
    });
    assert!(started.elapsed() < Duration::from_secs(10));
    for (process, end) in ends.into_iter().enumerate() {
        let error = end.map(drop).unwrap_err();
        assert_eq!(error.rank, 3, "{error}");
        let expected = match process {
            1 => "rank 3 failed: `split` over `world` on rank 3: rank 9 of `odd` is not in it",
            _ => {
                "rank 3 failed: process 1 on `host-1`: `split` over `world` on rank 3: rank 9 of `odd` is not \
                 in it"
            }
        };
        assert_eq!(error.to_string(), expected);
        assert_eq!(matches!(error.cause, Cause::Elsewhere(_)), process != 1);
    }
}

#[test]
fn a_rank_that_finishes_early_is_named() {
    let ends = across(2, 2, |world| match world.rank() {
        0 => recv(&world, 1, BufferSpec::new(DType::I32, 1)).wait().map(drop),
        _ => Ok(()),
    });
    let error = ends.into_iter().next().unwrap().unwrap_err().to_string();
    assert_eq!(error, "rank 0 failed: `recv` over `world` on rank 0: rank 1 finished without sending");
}

/// Whether the receiver asks before or after the message arrives.
#[test]
fn other_shapes_than_announced_are_refused() {
    for late in [false, true] {
        let ends = across(2, 2, move |world| match world.rank() {
            0 => {
                let receive = || recv(&world, 1, BufferSpec::new(DType::F32, 4));
                let early = (!late).then(receive);
                // Rank 1 sends after this.
                send(&world, 1, Buffer::empty(DType::U8)).wait()?;
                thread::sleep(Duration::from_millis(100));
                early.unwrap_or_else(receive).wait().map(drop)
            }
            _ => {
                recv(&world, 0, BufferSpec::new(DType::U8, 0)).wait()?;
                send(&world, 0, Buffer::from_vec(vec![0i32; 300_000])).wait()?;
                barrier(&world)
            }
        });
        let error = ends.into_iter().next().unwrap().unwrap_err().to_string();
        let expected = "rank 0 failed: `recv` over `world` on rank 0: expected 4 × f32 from rank 1, which sent \
                        300000 × i32";
        assert_eq!(error, expected);
    }
}

#[test]
fn an_aborted_job_ends_everywhere() {
    let ends = together(3, |processes| {
        if processes.process() == 1 {
            processes.abort(true, "interrupted");
            return None;
        }
        let options = LaunchOptions::default().processes(processes.clone());
        // The third rank never comes.
        let end = run_ranks(3, &options, |world| barrier(&world));
        Some((end.unwrap_err().to_string(), processes.ended().unwrap()))
    });
    let cause = "process 1 on `host-1`: interrupted";
    for end in [&ends[0], &ends[2]] {
        let (error, ended) = end.as_ref().unwrap();
        assert_eq!(*error, format!("rank 1 failed: {cause}"));
        assert_eq!(*ended, Ended { process: 1, cancelled: true, cause: cause.into() });
    }
}

#[test]
fn all_processes_share_their_bytes() {
    let shared = together(4, |processes| {
        (0..10)
            .map(|round| {
                let mine = format!("{round} of {}", processes.process());
                let shared = processes.share(mine.as_bytes()).unwrap();
                shared.iter().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    });
    for of_process in shared {
        for (round, texts) in of_process.iter().enumerate() {
            assert_eq!(*texts, [0, 1, 2, 3].map(|process| format!("{round} of {process}")));
        }
    }
}

#[test]
fn a_process_that_leaves_is_missed_by_those_who_wait_for_it() {
    let ends = together(2, |processes| match processes.process() {
        0 => Some(processes.share(b"mine").unwrap_err()),
        _ => None,
    });
    let cause = "process 1 on `host-1` has ended early".into();
    assert_eq!(ends[0], Some(Ended { process: 1, cancelled: false, cause }));
}

#[test]
fn notes_arrive_in_order_even_before_their_topic_is_opened() {
    let arrived = together(2, |processes| {
        let (tell, told) = channel();
        if processes.process() == 1 {
            let topic = processes.topic(|_, _| {});
            (0..100u8).for_each(|note| topic.send(0, vec![note]));
            return Vec::new();
        }
        thread::sleep(Duration::from_millis(50));
        let _topic = processes.topic(move |from, arrival| tell.send((from, arrival)).unwrap());
        told.iter().take(101).collect()
    });
    let (left, notes) = arrived[0].split_last().unwrap();
    assert_eq!(*left, (1, Arrival::Left));
    for (index, note) in notes.iter().enumerate() {
        assert_eq!(*note, (1, Arrival::Note(vec![index as u8].into())));
    }
}

/// All processes are on this host, so one event has the same time for all.
#[test]
fn clocks_agree() {
    let event = Instant::now();
    let times = together(3, move |processes| {
        let shared = processes.shared_time(event);
        assert_eq!(processes.instant(shared), event);
        shared
    });
    for time in &times[1..] {
        assert!((time - times[0]).abs() < 200_000_000, "{times:?}");
    }
}

fn meet_error(meeting: Meeting) -> String {
    Processes::meet(&meeting).unwrap_err().to_string()
}

#[test]
fn a_missing_process_is_named_by_those_who_came() {
    let mut meetings = meetings(4);
    let port = meetings[0].port;
    meetings.iter_mut().for_each(|meeting| meeting.limit = Duration::from_millis(700));
    meetings.remove(2);
    let errors = each(meetings, meet_error);
    let expected = format!("of 4 processes, [2] did not come to `127.0.0.1:{port}` within 700ms");
    assert_eq!(errors[0], expected);
    assert_eq!(errors, [&*expected; 3]);
}

#[test]
fn an_unreachable_address_is_named() {
    let mut alone = meetings(2).remove(1);
    alone.limit = Duration::from_millis(300);
    let at = format!("127.0.0.1:{}", alone.port);
    let error = Processes::meet(&alone).unwrap_err();
    assert!(matches!(&error, MeetError::Unreachable { at: named, .. } if *named == at), "{error}");
    alone.host = "no.such.host.invalid".to_owned();
    let error = meet_error(alone);
    assert!(error.contains("no.such.host.invalid") && error.contains("300ms"), "{error}");
}

#[test]
fn processes_that_do_not_fit_are_told_apart() {
    type Change = fn(&mut Meeting);
    let cases: [(Change, &str); 4] = [
        (
            |meeting| meeting.processes = 3,
            "different numbers of processes: process 1 on `host-1` expects 3, and process 0 on `host-0` 2",
        ),
        (
            |meeting| meeting.program = "xdit 0.0.0".to_owned(),
            "different programs: `xdit 0.0.0` on `host-1`, `xdit test` on `host-0`",
        ),
        (|meeting| meeting.process = 5, "`host-1` has process 5, but there are only 2, counted from 0"),
        (|meeting| (meeting.process, meeting.own_host) = (2, "b".to_owned()), "`b` has process 2"),
    ];
    for (change, expected) in cases {
        let mut meetings = meetings(2);
        change(&mut meetings[1]);
        for error in each(meetings, meet_error) {
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

#[test]
fn two_processes_of_one_rank_are_refused() {
    let port = free_port();
    let mut meetings = vec![meeting(0, 3, port), meeting(1, 3, port), meeting(1, 3, port)];
    meetings[2].own_host = "b".to_owned();
    for error in each(meetings, meet_error) {
        assert!(error.starts_with("there are two processes 1: on `"), "{error}");
        assert!(error.contains("`b`") && error.contains("`host-1`"), "{error}");
    }
}

#[test]
fn a_second_first_process_cannot_listen() {
    let port = free_port();
    let _first = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = meet_error(meeting(0, 2, port));
    assert!(error.starts_with(&format!("process 0 cannot listen at port {port}: ")), "{error}");
}

#[test]
fn strangers_and_other_jobs_do_not_disturb_a_meeting() {
    let meetings = meetings(2);
    let port = meetings[0].port;
    let mut other = meetings[1].clone();
    other.job = "another".to_owned();
    let ends = each(vec![meetings[0].clone(), other, meetings[1].clone()], |meeting| {
        if meeting.job == "another" {
            return meet_error(meeting);
        }
        if meeting.process == 1 {
            // After the strangers.
            thread::sleep(Duration::from_millis(300));
        }
        let processes = Processes::meet(&meeting).unwrap();
        processes.share(b"").unwrap();
        String::new()
    });
    let expected =
        format!("process 1 on `host-1` belongs to job `another`, but job `test` meets at `127.0.0.1:{port}`");
    assert_eq!(ends, ["", &expected, ""]);

    let port = free_port();
    let stranger = thread::spawn(move || {
        let connect = || TcpStream::connect(("127.0.0.1", port)).ok();
        let mut stream = std::iter::repeat_with(connect).flatten().next().unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        stream
    });
    let ends = each(vec![meeting(0, 2, port), meeting(1, 2, port)], |meeting| {
        thread::sleep(Duration::from_millis(300 * meeting.process as u64));
        Processes::meet(&meeting).unwrap().count()
    });
    assert_eq!(ends, [2, 2]);
    drop(stranger.join());
}
