//! Ranks and bytes: the transport under every parallel method.
//!
//! A [`Communicator`] is one rank's end of a [`Group`]. Its one operation is an [exchange](Communicator::exchange) of
//! typed [`Buffer`]s; collectives are exchanges among all ranks. An exchange returns at once with a [`Pending`], and
//! the transport owns what it sends until that has arrived, so a caller overlaps transfers with work by waiting later.
//!
//! ```
//! use xdit_comm::{Buffer, BufferSpec, DType, Error, Group, LaunchOptions, Operation, run_ranks};
//!
//! let seen = run_ranks(4, &LaunchOptions::default(), |world| {
//!     // Two groups of two, {0, 1} and {2, 3}, which talk at the same time.
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
//! | sim | the same, with seeded delay, loss, death and stalls in simulated time | [`LaunchOptions::sim`] |
//!
//! All three share one implementation over in-process mailboxes: a message is handed over when the operation is
//! issued. No rank therefore depends on another one's [`Pending::wait`] to make progress, and two directions between
//! the same two ranks cannot stall each other.
//!
//! # What holds
//!
//! - **Order.** In one communicator, the k-th buffer that `a` sends to `b` is the k-th that `b` receives from `a`.
//!   Pendings may be waited for in any order. Communicators are independent of each other.
//! - **Shapes are planned.** Receivers say what they expect, there is no handshake; a difference between the two ends
//!   is [`Error::Mismatch`], which names both.
//! - **Nobody hangs.** Each wait has a limit. A rank that returns an error or panics ends the run on all ranks with
//!   [`Error::PeerFailed`], and the launcher reports the first cause. A message nobody took is an error, too.
//!
//! # Bytes, not tensors
//!
//! This crate carries host bytes, and knows nothing of tensors or devices. Transfers of tensors are the trait `Link` of
//! `xdit-core`, of which one implementation stands on a [`Communicator`]. A device transport such as NCCL is another
//! implementation of `Link`; it uses a [`Communicator`] to start, and to learn of failures.
#![forbid(unsafe_code)]

mod buffer;
mod communicator;
mod endpoint;
mod error;
mod fabric;
mod group;
mod launch;
mod local;
mod pending;
pub mod sim;

pub use buffer::{Buffer, BufferSpec, DType, Element};
pub use communicator::{Comm, Communicator};
pub use error::{Call, Error, Operation, Result};
pub use group::Group;
pub use launch::{Cause, LaunchOptions, Outcome, Report, RunError, launch, run_ranks};
pub use local::{ends, local};
pub use pending::{Pending, wait_all};
pub use sim::Sim;
