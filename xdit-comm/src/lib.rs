//! Ranks and bytes: the transport under every parallel method.
//!
//! A [`Communicator`] is one rank's end of a [`Group`]. Its one operation is an [exchange](Communicator::exchange) of
//! typed [`Buffer`]s; collectives are exchanges among all ranks. An exchange returns a [`Pending`] at once, and the
//! transport owns the sent buffers until they have arrived. A caller overlaps transfers with work by waiting later.
//!
//! ```
//! use xdit_comm::{Buffer, BufferSpec, DType, Error, Group, LaunchOptions, Operation, run_ranks};
//!
//! let seen = run_ranks(4, &LaunchOptions::default(), |world| {
//!     // Two groups of two ranks, {0, 1} and {2, 3}, that communicate at the same time.
//!     let groups = [Group::new("tp", [0, 1]), Group::new("tp", [2, 3])];
//!     let pair = world.split(&groups)?.expect("each rank is in a group");
//!
//!     let (peer, mine) = (1 - pair.rank(), Buffer::from_vec(vec![world.rank() as f32]));
//!     let theirs = vec![(peer, BufferSpec::new(DType::F32, 1))];
//!     let arrived = pair.exchange(Operation::SendRecv, vec![(peer, mine)], theirs).wait()?;
//!     Ok::<_, Error>(arrived[0].elements::<f32>()[0])
//! })?;
//! assert_eq!(seen, [1.0, 0.0, 3.0, 2.0]);
//! # Ok::<(), xdit_comm::RunError<Error>>(())
//! ```
//!
//! # Backends
//!
//! | backend | ranks are | made by |
//! |---|---|---|
//! | local | this thread, alone | [`local()`] |
//! | thread | threads of one process: a world emulated on the CPU | [`run_ranks`], [`launch`] |
//! | processes | the same, in several processes connected by TCP | [`LaunchOptions::processes`] |
//! | sim | threads, with seeded delays, losses, deaths and stalls in simulated time | [`LaunchOptions::sim`] |
//!
//! All share one implementation over mailboxes: a message is delivered when the operation is issued, and to another
//! process as soon as its connection allows.
//! Therefore no rank needs another rank's [`Pending::wait`] to make progress, and the two directions between a pair of
//! ranks cannot block each other.
//!
//! # Guarantees
//!
//! - **Order.** In one communicator, the k-th buffer that `a` sends to `b` is the k-th that `b` receives from `a`.
//!   Pendings may be waited for in any order. Communicators are independent of each other.
//! - **Planned shapes.** There is no handshake: a receive states the type and length it expects. If the two ends
//!   disagree, the result is [`Error::Mismatch`], which names both.
//! - **No hangs.** Each wait has a limit. A rank that returns an error or panics ends the run on all ranks with
//!   [`Error::PeerFailed`], and the launcher reports the first cause. An unreceived message is an error, too.
//!
//! # Bytes, not tensors
//!
//! This crate transfers host bytes; it has no tensors and no devices. The trait `Link` of `xdit-core` transfers
//! tensors, and one of its implementations is built on a [`Communicator`]. Another one is built on the module `nccl`
//! (feature `nccl`), whose communicators transfer between addresses of devices. They use a [`Communicator`] to start and
//! to detect failures.
#![deny(unsafe_code)]

mod buffer;
mod communicator;
mod endpoint;
mod error;
mod fabric;
mod group;
mod launch;
mod local;
#[cfg(feature = "nccl")]
#[expect(unsafe_code, reason = "calls functions of a library in C, with addresses of a device")]
pub mod nccl;
mod pending;
mod processes;
pub mod sim;

pub use buffer::{Buffer, BufferSpec, DType, Element};
pub use communicator::{Comm, Communicator};
pub use error::{Call, Error, Operation, Result};
pub use group::Group;
pub use launch::{Cause, LaunchOptions, Outcome, Report, RunError, launch, run_ranks};
pub use local::{ends, local};
pub use pending::{Pending, wait_all};
pub use processes::{Arrival, Ended, MeetError, Meeting, Processes, Topic};
pub use sim::Sim;
