//! DistriFusion: every rank owns a strip of the image; the other strips' keys and values are of the step before,
//! and travel while this step is computed.
//!
//! Source: DistriFusion (Li et al. 2024), "displaced patch parallelism".

use std::collections::HashMap;
use std::sync::Arc;

use crate::attention::Site;
use crate::link::{Arriving, Link};
use crate::methods::keys::Kv;

/// The ranks that own a strip each, and what is on its way between them.
#[derive(Debug)]
pub struct DistriFusion {
    link: Arc<dyn Link>,
    /// The other ranks' keys and values at the step before, of each guidance branch at each site.
    before: HashMap<(usize, Site), Before>,
}

/// Keys and values of the other ranks, each rank's stacked.
#[derive(Debug)]
struct Before {
    bytes: u64,
    parts: Arriving<4>,
}

/// What a step does with what travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Wait for this step's keys instead of using those of the step before.
    pub synchronous: bool,
    /// Send this step's keys: the branch has a next step that will use them.
    pub send: bool,
}

impl DistriFusion {
    /// Over the ranks of `link`, in the order of their strips.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link, before: HashMap::new() }
    }

    /// Bytes of the other ranks' keys and values that the next step will use, there or on their way.
    pub fn bytes(&self) -> u64 {
        self.before.values().map(|before| before.bytes).sum()
    }

    /// All keys and values that this rank attends to, rank by rank: its own, and the others' of this step or the one
    /// before.
    ///
    /// # Shapes
    /// `own`: `[b, tokens[rank], h, d]`; the results have `tokens`.
    pub fn gather(
        &mut self,
        branch: usize,
        site: Site,
        own: Kv,
        tokens: &[usize],
        exchange: Exchange,
    ) -> Vec<Kv> {
        let [b, _, h, d] = own.k.dims();
        let shapes: Vec<_> = tokens.iter().map(|&n| [2 * b, n, h, d]).collect();
        let before = self.before.remove(&(branch, site));
        let fresh = (exchange.synchronous || exchange.send).then(|| {
            let stacked = own.stack();
            let bytes = (tokens.iter().sum::<usize>() - tokens[self.link.rank()]) * 2 * b * h * d;
            let bytes = (bytes * stacked.dtype().size()) as u64;
            Before { bytes, parts: self.link.gather_others(stacked, &shapes) }
        });
        let (parts, next) = match (exchange.synchronous, fresh) {
            (true, fresh) => {
                let Before { bytes, parts } = fresh.expect("issued above");
                let parts = parts.wait();
                (parts.clone(), Some(Before { bytes, parts: Arriving::here(parts) }))
            }
            (false, fresh) => (before.expect("the first step is synchronous and sends").parts.wait(), fresh),
        };
        if let Some(next) = next.filter(|_| exchange.send) {
            self.before.insert((branch, site), next);
        }
        let mut all: Vec<_> = parts.into_iter().map(Kv::unstack).collect();
        all.insert(self.link.rank(), own);
        all
    }
}
