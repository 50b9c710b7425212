//! The meeting of all processes at an address of the first one.
//!
//! Every process introduces itself to process 0, which checks that all fit together and sends everyone the list of all.
//! Each pair of the others then connects directly. Process 0 starts the job once all report that they are connected.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::connection::{Peer, start};
use super::wire::{Decoder, Encoder, read_meeting, write_meeting};
use super::{Net, State};

/// The version of everything that processes say to each other.
const PROTOCOL: u64 = 1;
/// The pause between two attempts.
const RETRY: Duration = Duration::from_millis(20);
/// The time that a stranger has to introduce itself.
const GREETING: Duration = Duration::from_secs(2);

/// A process of a job, and the place where it meets the others.
#[derive(Clone, Debug)]
pub struct Meeting {
    /// The index of this process.
    pub process: usize,
    /// The number of processes.
    pub processes: usize,
    /// The host of process 0, as a name or an address.
    pub host: String,
    /// The port at which process 0 listens.
    pub port: u16,
    /// The name of the job: jobs that meet at the same address by mistake are told apart.
    pub job: String,
    /// Name and version of the program, which must be the same everywhere.
    pub program: String,
    /// The name of this host, for messages.
    pub own_host: String,
    /// The limit on the whole meeting.
    pub limit: Duration,
}

/// The reason for which processes did not meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeetError {
    /// Process 0 cannot listen at its port, most likely because another program does.
    #[error("process 0 cannot listen at port {port}: {why}")]
    Listen {
        /// The port.
        port: u16,
        /// The words of the system.
        why: String,
    },
    /// Nobody answers at the address of process 0.
    #[error("no answer from process 0 at `{at}` within {limit:?}: {why}")]
    Unreachable {
        /// The address.
        at: String,
        /// The limit on the meeting.
        limit: Duration,
        /// The last failure.
        why: String,
    },
    /// Some processes did not come in time.
    #[error("of {of} processes, {missing:?} did not come to `{at}` within {limit:?}")]
    Missing {
        /// The missing processes.
        missing: Vec<usize>,
        /// The number of processes.
        of: usize,
        /// The address.
        at: String,
        /// The limit on the meeting.
        limit: Duration,
    },
    /// Two processes do not fit together.
    #[error("{0}")]
    Unfit(String),
    /// A process that had come was lost during the meeting.
    #[error("lost {who} during the meeting: {why}")]
    Lost {
        /// The process.
        who: String,
        /// The words of the system.
        why: String,
    },
}

/// A process, as it introduces itself.
struct Introduction {
    protocol: u64,
    processes: usize,
    process: usize,
    program: String,
    job: String,
    host: String,
    /// The port at which it awaits the processes that follow it.
    port: u16,
}

impl Introduction {
    fn encode(meeting: &Meeting, port: u16) -> Encoder {
        let mut to = Encoder::default();
        to.number(PROTOCOL).number(meeting.processes as u64).number(meeting.process as u64);
        to.text(&meeting.program).text(&meeting.job).text(&meeting.own_host).number(port.into());
        to
    }

    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut from = Decoder(bytes);
        Ok(Self {
            protocol: from.number()?,
            processes: from.size()?,
            process: from.size()?,
            program: from.text()?,
            job: from.text()?,
            host: from.text()?,
            port: from.number()? as u16,
        })
    }
}

/// What process 0 answers to an introduction.
const REFUSED: u64 = 0;
const WELCOME: u64 = 1;

/// Meets all processes of the job.
pub(super) fn meet(meeting: &Meeting) -> Result<Arc<Net>, MeetError> {
    let end = Instant::now().checked_add(meeting.limit).unwrap_or_else(|| Instant::now() + DAY);
    match meeting.process {
        _ if meeting.processes == 1 => {
            Ok(connect_all(0, vec![meeting.own_host.clone()], Vec::new(), 0, Instant::now())?)
        }
        0 => host(meeting, end),
        _ => join(meeting, end),
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes the connections of process `process`, whose streams have the index of the other process.
fn connect_all(
    process: usize,
    hosts: Vec<String>,
    streams: Vec<(usize, TcpStream)>,
    offset_ns: i64,
    origin: Instant,
) -> Result<Arc<Net>, MeetError> {
    let mut peers: Vec<Option<Peer>> = hosts.iter().map(|_| None).collect();
    let mut queues = Vec::new();
    for (other, stream) in streams {
        let (peer, queue) = Peer::new();
        peers[other] = Some(peer);
        queues.push((other, stream, queue));
    }
    let net = Arc::new(Net {
        process,
        hosts: hosts.into_iter().map(Into::into).collect(),
        peers,
        origin,
        offset_ns,
        state: Mutex::new(State::default()),
        cancelled: AtomicBool::new(false),
        reading: AtomicUsize::new(0),
    });
    for (other, stream, queue) in queues {
        start(&net, other, stream, queue).map_err(|error| lost(&net.name(other), &error))?;
    }
    Ok(net)
}

fn lost(who: &str, error: &io::Error) -> MeetError {
    MeetError::Lost { who: who.to_owned(), why: error.to_string() }
}

/// The meeting from the side of process 0.
fn host(meeting: &Meeting, end: Instant) -> Result<Arc<Net>, MeetError> {
    let listener = listen(meeting.port, is_own(&meeting.host))
        .map_err(|error| MeetError::Listen { port: meeting.port, why: error.to_string() })?;
    let mut guests: Vec<Option<(Introduction, TcpStream, IpAddr)>> =
        (0..meeting.processes).map(|_| None).collect();
    // Whoever has come must not wait for its own limit if the meeting fails.
    let fail = |guests: &[Option<(Introduction, TcpStream, IpAddr)>], error: MeetError| {
        for (_, stream, _) in guests.iter().flatten() {
            refuse(stream, &error.to_string());
        }
        error
    };
    while guests[1..].iter().any(Option::is_none) {
        let Some((stream, from)) = accept(&listener, end) else {
            let missing = (1..meeting.processes).filter(|&process| guests[process].is_none()).collect();
            let (of, at, limit) = (meeting.processes, address(meeting), meeting.limit);
            return Err(fail(&guests, MeetError::Missing { missing, of, at, limit }));
        };
        // Whoever says nothing sensible, such as a scanner of ports, is sent away without a word.
        let Ok(guest) = introduction(&stream) else { continue };
        if guest.protocol == PROTOCOL && guest.job != meeting.job {
            let words = format!(
                "process {} on `{}` belongs to job `{}`, but job `{}` meets at `{}`",
                guest.process,
                guest.host,
                guest.job,
                meeting.job,
                address(meeting)
            );
            refuse(&stream, &words);
            continue;
        }
        if let Some(words) = misfit(meeting, &guest, &guests) {
            refuse(&stream, &words);
            return Err(fail(&guests, MeetError::Unfit(words)));
        }
        let process = guest.process;
        guests[process] = Some((guest, stream, from.ip().to_canonical()));
    }
    drop(listener);

    let guests: Vec<_> = guests.into_iter().flatten().collect();
    let token = RandomState::new().build_hasher().finish();
    let mut welcome = Encoder::default();
    welcome.number(WELCOME).number(token).text(&meeting.own_host);
    for (guest, _, ip) in &guests {
        welcome.text(&guest.host).text(&ip.to_string()).number(guest.port.into());
    }
    let origin = Instant::now();
    let name = |guest: &Introduction| format!("process {} on `{}`", guest.process, guest.host);
    let each = |step: &dyn Fn(&TcpStream) -> io::Result<()>| {
        for (guest, stream, _) in &guests {
            if let Err(error) = step(stream) {
                let error = lost(&name(guest), &error);
                guests.iter().for_each(|(_, stream, _)| refuse(stream, &error.to_string()));
                return Err(error);
            }
        }
        Ok(())
    };
    each(&|stream| write_meeting(stream, &welcome))?;
    // Each is connected with all others.
    each(&|stream| {
        stream.set_read_timeout(Some(left(end)))?;
        read_meeting(stream).map(drop)
    })?;
    // The time here at half of a round trip is the time there.
    each(&|stream| {
        let asked = Instant::now();
        write_meeting(stream, &Encoder::default())?;
        let there = Decoder(&read_meeting(stream)?).number()? as i64;
        let here = (asked - origin + asked.elapsed() / 2).as_nanos() as i64;
        write_meeting(stream, Encoder::default().number(WELCOME).number((here - there) as u64))
    })?;
    let mut hosts = vec![meeting.own_host.clone()];
    hosts.extend(guests.iter().map(|(guest, ..)| guest.host.clone()));
    let streams = guests.into_iter().map(|(guest, stream, _)| (guest.process, stream)).collect();
    connect_all(0, hosts, streams, 0, origin)
}

/// The reason for which `guest` cannot take part, if there is one.
fn misfit(
    meeting: &Meeting,
    guest: &Introduction,
    guests: &[Option<(Introduction, TcpStream, IpAddr)>],
) -> Option<String> {
    let Introduction { protocol, processes, process, program, host, .. } = guest;
    let (all, own) = (meeting.processes, &meeting.own_host);
    if *protocol != PROTOCOL || *program != meeting.program {
        return Some(format!(
            "different programs: `{program}` on `{host}`, `{}` on `{own}`",
            meeting.program
        ));
    }
    if *processes != all {
        return Some(format!(
            "different numbers of processes: process {process} on `{host}` expects {processes}, and process 0 on \
             `{own}` {all}"
        ));
    }
    if *process >= all {
        return Some(format!("`{host}` has process {process}, but there are only {all}, counted from 0"));
    }
    let other = match process {
        0 => own,
        _ => &guests[*process].as_ref()?.0.host,
    };
    Some(format!("there are two processes {process}: on `{other}` and on `{host}`"))
}

/// The meeting from the side of any other process.
fn join(meeting: &Meeting, end: Instant) -> Result<Arc<Net>, MeetError> {
    let unreachable =
        |why: String| MeetError::Unreachable { at: address(meeting), limit: meeting.limit, why };
    let zero = format!("process 0 at `{}`", address(meeting));
    let failed = |error: io::Error| lost(&zero, &error);
    let listener = listen(0, is_own(&meeting.host))
        .map_err(|error| MeetError::Listen { port: 0, why: error.to_string() })?;
    let port = listener.local_addr().map_err(failed)?.port();
    let stream = dial(&address(meeting), end).map_err(unreachable)?;
    write_meeting(&stream, &Introduction::encode(meeting, port)).map_err(failed)?;
    // Process 0 waits until the end of its own limit, which began earlier or later.
    stream.set_read_timeout(Some(left(end) + GREETING)).map_err(failed)?;
    let welcome = answer(&stream, &zero)?;

    let mut from = Decoder(&welcome);
    let token = from.number().map_err(failed)?;
    let mut hosts = vec![from.text().map_err(failed)?];
    let mut addresses = Vec::new();
    let zero_ip = stream.peer_addr().map_err(failed)?.ip();
    for _ in 1..meeting.processes {
        hosts.push(from.text().map_err(failed)?);
        let ip: IpAddr = from.text().map_err(failed)?.parse().unwrap_or(zero_ip);
        // A process that reaches process 0 by its loopback address is on the host of process 0.
        let ip = if ip.is_loopback() { zero_ip } else { ip };
        addresses.push(SocketAddr::new(ip, from.number().map_err(failed)? as u16));
    }
    let mut streams = vec![(0, stream)];
    for process in 1..meeting.process {
        let who = format!("process {process} on `{}`", hosts[process]);
        let failed = |error: io::Error| lost(&who, &error);
        let stream = dial(&addresses[process - 1].to_string(), end)
            .map_err(|why| MeetError::Lost { who: who.clone(), why })?;
        write_meeting(&stream, Encoder::default().number(token).number(meeting.process as u64))
            .map_err(failed)?;
        streams.push((process, stream));
    }
    let mut missing: Vec<usize> = (meeting.process + 1..meeting.processes).collect();
    while !missing.is_empty() {
        let Some((stream, _)) = accept(&listener, end) else {
            let (of, at, limit) = (meeting.processes, address(meeting), meeting.limit);
            return Err(MeetError::Missing { missing, of, at, limit });
        };
        let read = || -> io::Result<(u64, usize)> {
            stream.set_read_timeout(Some(GREETING))?;
            let bytes = read_meeting(&stream)?;
            let mut from = Decoder(&bytes);
            Ok((from.number()?, from.size()?))
        };
        let Ok((theirs, process)) = read() else { continue };
        let awaited = missing.iter().position(|&other| other == process).filter(|_| theirs == token);
        if let Some(index) = awaited {
            missing.remove(index);
            streams.push((process, stream));
        }
    }
    let (origin, zero_stream) = (Instant::now(), &streams[0].1);
    write_meeting(zero_stream, &Encoder::default()).map_err(failed)?;
    // A question for the time, unless the meeting has failed, and then the answer.
    let question = read_meeting(zero_stream).map_err(failed)?;
    if !question.is_empty() {
        refused(&question, &zero)?;
    }
    let now = origin.elapsed().as_nanos() as u64;
    write_meeting(zero_stream, Encoder::default().number(now)).map_err(failed)?;
    let offset_ns = Decoder(&answer(zero_stream, &zero)?).number().map_err(failed)? as i64;
    connect_all(meeting.process, hosts, streams, offset_ns, origin)
}

/// Reads an answer of process 0, and returns it unless it is a refusal.
fn answer(stream: &TcpStream, zero: &str) -> Result<Vec<u8>, MeetError> {
    let answer = read_meeting(stream).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            MeetError::Lost { who: zero.to_owned(), why: "it does not answer in time".to_owned() }
        }
        _ => lost(zero, &error),
    })?;
    refused(&answer, zero)?;
    Ok(answer[8..].to_vec())
}

/// The error in an answer, if it is a refusal.
fn refused(answer: &[u8], zero: &str) -> Result<(), MeetError> {
    let mut from = Decoder(answer);
    match from.number() {
        Ok(WELCOME) => Ok(()),
        Ok(REFUSED) => Err(MeetError::Unfit(from.text().map_err(|error| lost(zero, &error))?)),
        Ok(_) => Err(MeetError::Lost { who: zero.to_owned(), why: "an unknown answer".to_owned() }),
        Err(error) => Err(lost(zero, &error)),
    }
}

/// Sends a process away, which reports `words`.
fn refuse(stream: &TcpStream, words: &str) {
    // If it is gone already, it needs no reason.
    drop(write_meeting(stream, Encoder::default().number(REFUSED).text(words)));
}

fn introduction(stream: &TcpStream) -> io::Result<Introduction> {
    stream.set_read_timeout(Some(GREETING))?;
    stream.set_write_timeout(Some(GREETING))?;
    Introduction::decode(&read_meeting(stream)?)
}

/// The address of process 0.
fn address(meeting: &Meeting) -> String {
    match meeting.host.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", meeting.port),
        _ => format!("{}:{}", meeting.host, meeting.port),
    }
}

/// Whether `host` can only be reached from the same host.
fn is_own(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Listens at `port`, for other hosts only if there may be some.
fn listen(port: u16, only_here: bool) -> io::Result<TcpListener> {
    let any: [IpAddr; 2] = match only_here {
        true => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        false => [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
    };
    let first = TcpListener::bind((any[0], port));
    let listener = match first {
        // Only a system without this version of IP listens with the other one.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind((any[1], port))?,
        other => other?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn left(end: Instant) -> Duration {
    // A limit of zero would stand for none.
    end.saturating_duration_since(Instant::now()).max(RETRY)
}

/// The next connection; `None` at `end`.
fn accept(listener: &TcpListener, end: Instant) -> Option<(TcpStream, SocketAddr)> {
    loop {
        // On some systems, a connection inherits that its listener does not block.
        if let Ok((stream, from)) = listener.accept()
            && stream.set_nonblocking(false).is_ok()
        {
            return Some((stream, from));
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(RETRY);
    }
}

/// Connects to `address` as soon as it listens.
///
/// # Errors
/// The last failure, at `end`.
fn dial(address: &str, end: Instant) -> Result<TcpStream, String> {
    loop {
        let mut last = "the name has no address".to_owned();
        match address.to_socket_addrs() {
            Err(error) => last = error.to_string(),
            Ok(found) => {
                for found in found {
                    match TcpStream::connect_timeout(&found, left(end)) {
                        Ok(stream) => return Ok(stream),
                        Err(error) => last = error.to_string(),
                    }
                }
            }
        }
        if Instant::now() + RETRY >= end {
            return Err(last);
        }
        sleep(5 * RETRY);
    }
}
