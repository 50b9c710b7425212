//! Ranks and bytes: the transport under every parallel method.
//!
//! A [`Communicator`] is one rank's end of a [`Group`]; it carries typed [`Buffer`]s and knows nothing of what is in
//! them. Every operation returns at once with a [`Pending`], and what it hands over stays owned by the transport until
//! it has arrived, so a caller overlaps transfers with work by waiting later.
//!
//! ```
//! use xdit_comm::{Buffer, DType, Error, Group, LaunchOptions, Reduce, BufferSpec, run_ranks};
//!
//! let sums = run_ranks(4, &LaunchOptions::default(), |world| {
//!     // Two groups of two, {0, 1} and {2, 3}, which talk at the same time.
//!     let first = world.rank() / 2 * 2;
//!     let pair = world.subgroup(&Group::new("tp", [first, first + 1]))?;
//!
//!     // A receive may be posted long before its send.
//!     let (next, previous) = ((world.rank() + 1) % 4, (world.rank() + 3) % 4);
//!     let arriving = world.recv(previous, BufferSpec::new(DType::F32, 1));
//!
//!     let mine = Buffer::from_vec(vec![world.rank() as f32]);
//!     let sum = pair.all_reduce(mine.clone(), Reduce::Sum).wait()?;
//!     world.send(next, mine).wait()?;
//!     assert_eq!(arriving.wait()?.elements::<f32>()[0], previous as f32);
//!     Ok::<_, Error>(sum.elements::<f32>()[0])
//! })?;
//! assert_eq!(sums, [1.0, 1.0, 5.0, 5.0]);
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
//! All three share one implementation over in-process mailboxes. Each collective there is *one* message between each
//! ordered pair of ranks, handed over when the operation is issued. No rank therefore depends on another one's
//! [`Pending::wait`] to make progress, and two directions between the same two ranks cannot stall each other.
//!
//! # What holds
//!
//! - **Order.** All ranks of a group issue its collectives in the same order; the k-th send from `a` to `b` in a group
//!   meets the k-th receive that `b` posted for `a`. Pendings may be waited for in any order.
//! - **Determinism.** Reductions fold in rank order, so every rank holds the same bits in every run.
//! - **Shapes are planned.** Receivers say what they expect, there is no handshake; a difference between the two ends
//!   is [`Error::Mismatch`], which names both.
//! - **Nobody hangs.** Each wait has a limit. A rank that returns an error or panics ends the run on all ranks with
//!   [`Error::PeerFailed`], and the launcher reports the first cause. A message nobody took is an error, too.
//! - **All is counted.** [`Traffic`] holds calls, messages, bytes and waits by group label and operation.
//!
//! # How device memory fits
//!
//! [`Buffer`] keeps its storage private: today a reference-counted span of host bytes. A CUDA backend adds a second
//! kind of storage beside it, a reference-counted device allocation with the event after which it may be read, and a
//! type of its own that implements [`Communicator`]; nothing above this crate changes, because operations already say
//! all that NCCL wants to know. Receives carry a [`BufferSpec`], so memory is reserved without asking the peer;
//! [`Communicator::send_recv`] is one `ncclGroupStart`/`ncclGroupEnd`, as are the uneven collectives;
//! [`Communicator::subgroup`] is `ncclCommSplit`; [`Pending`] holds the buffers and the event of a transfer, and
//! waiting makes the caller's stream, not the host, wait.
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
mod reduce;
pub mod sim;
mod traffic;

pub use buffer::{Buffer, BufferSpec, DType, Element};
pub use communicator::{Comm, Communicator};
pub use error::{Call, Error, Operation, Result};
pub use group::Group;
pub use launch::{Cause, LaunchOptions, Outcome, Report, RunError, launch, run_ranks};
pub use local::{ends, local};
pub use pending::{Pending, wait_all};
pub use reduce::Reduce;
pub use sim::Sim;
pub use traffic::{Count, Traffic, Wait};
