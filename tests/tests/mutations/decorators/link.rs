//! A link with a mistake in the messages of one group.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use burn::tensor::Tensor;
use xdit_comm::{Error, Group, Operation};
use xdit_core::link::{InFlight, Link, Transfer};

/// The mistake in received messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// No mistake.
    Sound,
    /// In the first half, which contains the keys, the first number is moved to the end.
    KeysMoved,
    /// The second half comes first, so values and keys are swapped where they are one message.
    ValuesFirst,
    /// The rank receives its own message.
    Returned,
    /// The parts are in another order: of ranks or, on a ring, with values before keys.
    PartsMoved,
    /// A message is replaced by an earlier one of the same size, this many messages before it.
    Late(usize),
    /// Rows for convolutions are replaced by those this many exchanges before.
    BordersLate(usize),
    /// Rows from above and from below are in each other's place.
    BordersSwapped,
}

impl Wire {
    /// Whether the mistake is in messages of `operation`.
    fn affects(self, operation: Operation) -> bool {
        match self {
            // All other exchanges between ranks of rows are gathered.
            Self::BordersLate(_) | Self::BordersSwapped => operation != Operation::AllGather,
            _ => true,
        }
    }
}

/// Messages by size, the oldest first; rows of convolutions count as being of one size.
type Kept = HashMap<usize, VecDeque<Vec<Tensor<1>>>>;

/// Behaves like the inner link, except for links split from it with label `label`, which apply the mistake `wire`.
#[derive(Debug)]
pub struct Tampered {
    inner: Arc<dyn Link>,
    label: &'static str,
    wire: Wire,
    kept: Arc<Mutex<Kept>>,
}

impl Tampered {
    #[expect(clippy::new_ret_no_self, reason = "a link is always shared")]
    pub fn new(inner: Arc<dyn Link>, label: &'static str, wire: Wire) -> Arc<dyn Link> {
        Arc::new(Self { inner, label, wire, kept: Arc::default() })
    }

    /// Wraps an operation of this rank, which sent `own`.
    fn arrive(
        &self,
        operation: Operation,
        inner: Box<dyn InFlight>,
        own: Vec<Tensor<1>>,
    ) -> Box<dyn InFlight> {
        if &**self.inner.group().label() != self.label || !self.wire.affects(operation) {
            return inner;
        }
        Box::new(Arriving { inner, own, wire: self.wire, kept: self.kept.clone() })
    }
}

struct Arriving {
    inner: Box<dyn InFlight>,
    own: Vec<Tensor<1>>,
    wire: Wire,
    kept: Arc<Mutex<Kept>>,
}

impl InFlight for Arriving {
    fn is_complete(&mut self) -> bool {
        self.inner.is_complete()
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor<1>>, Error> {
        let mut parts = self.inner.wait()?;
        Ok(match self.wire {
            Wire::Sound => parts,
            Wire::KeysMoved => parts.into_iter().map(keys_moved).collect(),
            Wire::ValuesFirst => parts.into_iter().map(values_first).collect(),
            Wire::Returned => self.own,
            Wire::PartsMoved => {
                parts.rotate_left(1);
                parts
            }
            Wire::Late(messages) => {
                let mut kept = self.kept.lock().unwrap();
                let before = kept.entry(parts.iter().map(|part| part.dims()[0]).sum()).or_default();
                before.push_back(parts.clone());
                if before.len() > messages { before.pop_front().unwrap() } else { parts }
            }
            Wire::BordersLate(exchanges) => {
                let mut kept = self.kept.lock().unwrap();
                let before = kept.entry(0).or_default();
                before.push_back(parts.clone());
                if before.len() <= exchanges {
                    return Ok(parts);
                }
                let late = before.pop_front().unwrap();
                let sizes = |parts: &[Tensor<1>]| parts.iter().map(Tensor::dims).collect::<Vec<_>>();
                assert_eq!(sizes(&late), sizes(&parts), "the same exchange of an earlier step");
                late
            }
            Wire::BordersSwapped => {
                parts.reverse();
                parts
            }
        })
    }
}

/// The first half without its first number, that number, and the second half.
fn keys_moved(part: Tensor<1>) -> Tensor<1> {
    let half = part.dims()[0] / 2;
    cut(part, &[(1, half - 1), (0, 1), (half, half)])
}

fn values_first(part: Tensor<1>) -> Tensor<1> {
    let half = part.dims()[0] / 2;
    cut(part, &[(half, half), (0, half)])
}

fn cut(part: Tensor<1>, runs: &[(usize, usize)]) -> Tensor<1> {
    Tensor::cat(runs.iter().map(|&(start, length)| part.clone().narrow(0, start, length)).collect(), 0)
}

impl Link for Tampered {
    fn group(&self) -> &Group {
        self.inner.group()
    }

    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn split(&self, groups: &[Group]) -> Result<Option<Arc<dyn Link>>, Error> {
        Ok(self.inner.split(groups)?.map(|inner| Self::new(inner, self.label, self.wire)))
    }

    fn transfer(&self, transfer: Transfer) -> Box<dyn InFlight> {
        let own = transfer.sends.iter().map(|(_, x)| x.clone()).collect();
        self.arrive(transfer.operation, self.inner.transfer(transfer), own)
    }

    fn sum(&self, x: Tensor<1>) -> Box<dyn InFlight> {
        let own = vec![x.clone()];
        self.arrive(Operation::AllReduce, self.inner.sum(x), own)
    }

    fn check(&self) -> Result<(), Error> {
        self.inner.check()
    }
}
