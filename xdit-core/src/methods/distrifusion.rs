//! DistriFusion: every rank owns a strip of the image; the other strips' keys and values are of the step before,
//! and travel while this step is computed.
//!
//! Source: DistriFusion (Li et al. 2024), "displaced patch parallelism".

use std::collections::HashMap;

use burn::tensor::Tensor;
use xdit_comm::{Buffer, Comm, Pending};

use crate::attention::Site;
use crate::link::wait;
use crate::link::{Place, buffer};
use crate::methods::ring::Kv;

/// The ranks that own a strip each, and what is on its way between them.
#[derive(Debug)]
pub struct DistriFusion {
    comm: Comm,
    /// The keys and values of all ranks at the step before, of each guidance branch at each site.
    travelling: HashMap<(usize, Site), Travelling>,
}

/// Keys and values on their way, and how many bytes they are of all ranks together.
type Travelling = (u64, Pending<Vec<Buffer>>);

/// What a step does with what travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Wait for this step's keys instead of using those of the step before.
    pub synchronous: bool,
    /// Send this step's keys: the branch has a next step that will use them.
    pub send: bool,
}

impl DistriFusion {
    /// Over the ranks of `comm`, in the order of their strips.
    pub fn new(comm: Comm) -> Self {
        Self { comm, travelling: HashMap::new() }
    }

    /// Bytes of all keys and values that the next step will use.
    pub fn bytes(&self) -> u64 {
        self.travelling.values().map(|(bytes, _)| bytes).sum()
    }

    /// All keys and values that this rank attends to: its own, and the others' of this step or the one before.
    ///
    /// # Shapes
    /// `own`: `[b, tokens[rank], h, d]`; the result has Σ tokens.
    pub fn gather(&mut self, branch: usize, site: Site, own: Kv, tokens: &[usize], exchange: Exchange) -> Kv {
        let place = Place::of(&own.k);
        let [b, _, h, d] = own.k.dims();
        let lens: Vec<usize> = tokens.iter().map(|n| 2 * b * n * h * d).collect();
        let stacked = || buffer(Tensor::cat(vec![own.k.clone(), own.v.clone()], 0));
        let bytes = (lens.iter().sum::<usize>() * own.k.dtype().size()) as u64;
        let before = self.travelling.remove(&(branch, site));
        let arrived = if exchange.synchronous {
            let parts = wait(self.comm.all_gather(stacked(), &lens));
            if exchange.send {
                self.travelling.insert((branch, site), (bytes, Pending::ready(Ok(parts.clone()))));
            }
            parts
        } else {
            if exchange.send {
                self.travelling.insert((branch, site), (bytes, self.comm.all_gather(stacked(), &lens)));
            }
            let (_, before) = before.expect("the first step is synchronous and sends");
            wait(before)
        };
        let parts = arrived.iter().zip(tokens).enumerate().map(|(rank, (part, &n))| {
            if rank == self.comm.rank() {
                return own.clone();
            }
            let stacked: Tensor<4> = place.tensor(part, [2 * b, n, h, d]);
            Kv { k: stacked.clone().narrow(0, 0, b), v: stacked.narrow(0, b, b) }
        });
        Kv::cat(parts.collect())
    }
}
