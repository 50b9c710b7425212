//! DistriFusion: every rank owns a strip of the image. It uses the other strips' keys and values of the previous step,
//! and new ones are transferred while this step is computed.
//!
//! Source: DistriFusion (Li et al. 2024), "displaced patch parallelism".

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::attention::Site;
use crate::link::{Arriving, Link};
use crate::methods::keys::Kv;

/// The ranks that own a strip each, with the keys and values in flight between them.
#[derive(Debug)]
pub struct DistriFusion {
    link: Arc<dyn Link>,
    /// The other ranks' stacked keys and values, for the first guidance branch of each pass and each site.
    before: Delayed<(usize, Site), 4>,
    /// The bytes of those that are kept.
    kept: HashMap<(usize, Site), u64>,
}

/// Tensors of other ranks from the previous step, whether they have arrived or not.
#[derive(Debug)]
pub struct Delayed<K, const D: usize>(HashMap<K, Arriving<D>>);

impl<K, const D: usize> Default for Delayed<K, D> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, const D: usize> Delayed<K, D> {
    /// The tensors that `issue` transfers: those of this step or, if it is not synchronous, of the previous one.
    ///
    /// # Panics
    /// If the step is not synchronous and the previous one sent nothing.
    pub fn exchange(
        &mut self,
        key: K,
        exchange: Exchange,
        issue: impl FnOnce() -> Arriving<D>,
    ) -> Vec<Tensor<D>> {
        let before = self.0.remove(&key);
        let fresh = (exchange.synchronous || exchange.send).then(issue);
        let (parts, next) = match (exchange.synchronous, fresh) {
            (true, fresh) => {
                let parts = fresh.expect("issued above").wait();
                (parts.clone(), Some(Arriving::here(parts)))
            }
            (false, fresh) => (before.expect("the first step is synchronous and sends").wait(), fresh),
        };
        if let Some(next) = next.filter(|_| exchange.send) {
            self.0.insert(key, next);
        }
        parts
    }
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
        Self { link, before: Delayed::default(), kept: HashMap::new() }
    }

    /// Bytes of the other ranks' keys and values for the next step, whether they have arrived or not.
    pub fn bytes(&self) -> u64 {
        self.kept.values().sum()
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
        let link = &self.link;
        let issue = || link.gather_others(own.stack(), &shapes);
        let parts = self.before.exchange((branch, site), exchange, issue);
        let others = tokens.iter().sum::<usize>() - tokens[link.rank()];
        let bytes = others * 2 * b * h * d * own.k.dtype().size();
        self.kept.insert((branch, site), if exchange.send { bytes as u64 } else { 0 });
        let mut all: Vec<_> = parts.into_iter().map(Kv::unstack).collect();
        all.insert(self.link.rank(), own);
        all
    }
}
