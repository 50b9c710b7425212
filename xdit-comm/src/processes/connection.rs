//! The connection to one other process: a queue with a thread that writes, and a thread that reads.

use std::io::{self, BufReader};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Net;
use super::wire::{self, Head, garbled, read_body, read_head, skip_body};

/// The pause after which a connection without traffic carries a sign of life.
const BEAT: Duration = Duration::from_secs(1);
/// The silence after which a process counts as lost.
const SILENCE: Duration = Duration::from_secs(8);
/// The size of the buffer for heads; long bodies bypass it.
const BUFFER: usize = 64 << 10;

/// The queue of frames to one process.
pub(super) struct Peer {
    queue: Sender<Outgoing>,
}

enum Outgoing {
    Frame(Vec<u8>, Bytes),
    /// The last frame.
    Goodbye,
    /// All earlier frames have been written once this is answered.
    Flush(Sender<()>),
}

impl Peer {
    /// A queue, and its other end for [`start`].
    pub fn new() -> (Self, Queue) {
        let (queue, queued) = channel();
        (Self { queue }, Queue(queued))
    }

    /// Queues a frame. The frame is lost if the connection is, which is reported elsewhere.
    pub fn send(&self, head: &Head, body: impl Into<Bytes>) {
        drop(self.queue.send(Outgoing::Frame(head.encode(), body.into())));
    }

    /// Queues the last frame.
    pub fn say_goodbye(&self) {
        drop(self.queue.send(Outgoing::Goodbye));
    }

    /// Waits until all queued frames have been handed to the system, or the connection is lost, or `until`.
    pub fn flush(&self, until: Instant) {
        let (done, wait) = channel();
        drop(self.queue.send(Outgoing::Flush(done)));
        // An error means that the thread has ended, or that it is too late.
        let _ = wait.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// The end of a queue where frames come out.
pub(super) struct Queue(Receiver<Outgoing>);

/// Starts the threads of the connection to `process`.
///
/// # Errors
/// If the system refuses a setting or a thread.
pub(super) fn start(net: &Arc<Net>, process: usize, stream: TcpStream, queue: Queue) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let other = stream.try_clone()?;
    let (writer, reader) = (net.clone(), net.clone());
    net.reading.fetch_add(1, Ordering::AcqRel);
    Builder::new().name(format!("to process {process}")).spawn(move || {
        if let Err(error) = write(&stream, &queue.0) {
            // The reader may know more, such as the reason for which the process ended the job.
            std::thread::sleep(Duration::from_millis(200));
            writer.lost(process, &reason(&error));
        }
    })?;
    Builder::new().name(format!("from process {process}")).spawn(move || {
        if let Err(error) = read(&reader, process, &other) {
            reader.lost(process, &reason(&error));
        }
        reader.reading.fetch_sub(1, Ordering::AcqRel);
    })?;
    Ok(())
}

/// Writes the frames of `queue` until the last one.
fn write(mut stream: &TcpStream, queue: &Receiver<Outgoing>) -> io::Result<()> {
    let heartbeat = Head::Heartbeat.encode();
    loop {
        match queue.recv_timeout(BEAT) {
            Ok(Outgoing::Frame(head, body)) => wire::write_frame(&mut stream, &head, &body)?,
            Ok(Outgoing::Goodbye) => {
                wire::write_frame(&mut stream, &Head::Goodbye.encode(), &[])?;
                // Anything queued later is dropped, and a flush is answered by the end of the thread. An error means
                // that the other side is gone as well.
                drop(stream.shutdown(Shutdown::Write));
                return Ok(());
            }
            // Sending fails only if nobody waits any more.
            Ok(Outgoing::Flush(done)) => drop(done.send(())),
            Err(RecvTimeoutError::Timeout) => wire::write_frame(&mut stream, &heartbeat, &[])?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Reads frames until the last one.
fn read(net: &Net, process: usize, stream: &TcpStream) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    loop {
        let (head, len) = read_head(&mut stream)?;
        let body = match &head {
            Head::Message(message) => {
                if !net.owns(process, message.world, message.address.from, Some(message.address.to)) {
                    return Err(garbled("a message from a rank of another process"));
                }
                // A buffer that is not as announced by the receiver fails there, and its bytes are not kept.
                match net.expected(message).is_some_and(|expected| expected != message.spec) {
                    true => skip_body(&mut stream, len).map(|()| Bytes::new())?,
                    false => read_body(&mut stream, len)?,
                }
            }
            Head::Exit { world, rank, .. } if !net.owns(process, *world, *rank, None) => {
                return Err(garbled("the exit of a rank of another process"));
            }
            _ => read_body(&mut stream, len)?,
        };
        let last = head == Head::Goodbye;
        net.arrived(process, head, body);
        if last {
            return Ok(());
        }
    }
}

/// The reason for the loss of a connection, in words.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "its connection was closed".to_owned()
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("no sign of life for {} s", SILENCE.as_secs())
        }
        _ => error.to_string(),
    }
}
