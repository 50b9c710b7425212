//! DistriFusion: every rank owns a strip of the image. It uses the other strips' keys and values of the previous step,
//! and new ones are transferred while this step is computed.
//!
//! Source: DistriFusion (Li et al. 2024), "displaced patch parallelism".

use std::collections::HashMap;
use std::sync::Arc;

use crate::attention::Site;
use crate::link::{Arriving, Link};
use crate::methods::keys::Kv;

/// The ranks that own a strip each, with the keys and values in flight between them.
#[derive(Debug)]
pub struct DistriFusion {
    link: Arc<dyn Link>,
    /// The other ranks' keys and values of the previous step, for each guidance branch and site.
    before: HashMap<(usize, Site), Before>,
}

/// The stacked keys and values of each other rank.
#[derive(Debug)]
struct Before {
    bytes: u64,
    parts: Arriving<4>,
}

/// The mode of a step's exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Whether to wait for this step's keys instead of using those of the previous step.
    pub synchronous: bool,
    /// Whether to send this step's keys because the branch has a next step that will use them.
    pub send: bool,
}

impl DistriFusion {
    /// Creates the exchange over the ranks of `link`, which are in the order of their strips.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link, before: HashMap::new() }
    }

    /// Bytes of the other ranks' keys and values for the next step, whether they have arrived or not.
    pub fn bytes(&self) -> u64 {
        self.before.values().map(|before| before.bytes).sum()
    }

    /// Returns all keys and values that this rank attends to, in rank order: its `own`, and those of the other ranks
    /// from this step or the previous one.
    ///
    /// # Shapes
    /// `own`: `[b, tokens[this rank], h, d]`; result `i` has `tokens[i]` tokens.
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
