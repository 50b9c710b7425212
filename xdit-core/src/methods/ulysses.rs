//! Ulysses: tokens are exchanged for heads before attention, and back after it.
//!
//! Source: DeepSpeed-Ulysses (Jacobs et al. 2023).

use std::ops::Range;

use burn::tensor::Tensor;
use xdit_comm::{Buffer, Comm, Pending};

use crate::attention::Qkv;
use crate::link::wait;
use crate::link::{Place, buffer};
use crate::split;

/// The ranks that exchange tokens for heads.
#[derive(Clone, Debug)]
pub struct Ulysses {
    comm: Comm,
}

impl Ulysses {
    /// Over the ranks of `comm`; heads that do not divide are spread as evenly as they can be.
    pub fn new(comm: Comm) -> Self {
        Self { comm }
    }

    /// The heads that this rank computes, of `heads`.
    fn heads(&self, heads: usize) -> Vec<Range<usize>> {
        split::even(heads, self.comm.size())
    }

    /// All tokens of this rank's heads, from all heads of this rank's tokens.
    ///
    /// Queries, keys and values travel by themselves: to put them together first would cost a copy of each.
    ///
    /// # Shapes
    /// `[b, tokens[rank], h, d]` to `[b, Σ tokens, h', d]`; the tokens of rank 0 come first.
    pub fn scatter_heads(&self, qkv: Qkv, tokens: &[usize]) -> Qkv {
        let place = Place::of(&qkv.q);
        let [b, _, h, d] = qkv.q.dims();
        let heads = self.heads(h);
        let mine = heads[self.comm.rank()].len();
        let lens: Vec<usize> = tokens.iter().map(|n| b * n * mine * d).collect();
        let send = |x: Tensor<4>| {
            let part = |heads: &Range<usize>| buffer(x.clone().narrow(2, heads.start, heads.len()));
            self.comm.all_to_all(heads.iter().map(part).collect(), &lens)
        };
        let receive = |travelling: Pending<Vec<Buffer>>| {
            let arrived = wait(travelling);
            let parts = arrived.iter().zip(tokens).map(|(part, &n)| place.tensor(part, [b, n, mine, d]));
            Tensor::cat(parts.collect(), 1)
        };
        // All leave before any is waited for.
        let [q, k, v] = [qkv.q, qkv.k, qkv.v].map(send).map(receive);
        Qkv { q, k, v }
    }

    /// All heads of this rank's tokens, from all tokens of this rank's heads: undoes
    /// [`scatter_heads`](Self::scatter_heads) for a result of attention.
    ///
    /// # Shapes
    /// `out`: `[b, Σ tokens, h', d]` to `[b, tokens[rank], heads, d]`.
    pub fn gather_heads(&self, out: Tensor<4>, tokens: &[usize], heads: usize) -> Tensor<4> {
        let place = Place::of(&out);
        let [b, _, _, d] = out.dims();
        let parts: Vec<Buffer> = split::consecutive(tokens)
            .into_iter()
            .map(|range| buffer(out.clone().narrow(1, range.start, range.len())))
            .collect();
        let mine = tokens[self.comm.rank()];
        let heads = self.heads(heads);
        let lens: Vec<usize> = heads.iter().map(|heads| b * mine * heads.len() * d).collect();
        let arrived = wait(self.comm.all_to_all(parts, &lens));
        let parts = arrived
            .iter()
            .zip(&heads)
            .map(|(part, heads)| place.tensor(part, [b, mine, heads.len(), d]))
            .collect();
        Tensor::cat(parts, 2)
    }

    /// This rank's heads of a text that every rank has whole: nothing travels.
    pub fn own_heads(&self, text: Qkv) -> Qkv {
        let heads = self.heads(text.q.dims()[2])[self.comm.rank()].clone();
        let own = |x: Tensor<4>| x.narrow(2, heads.start, heads.len());
        Qkv { q: own(text.q), k: own(text.k), v: own(text.v) }
    }

    /// All heads of the text's result, on every rank.
    ///
    /// # Shapes
    /// `out`: `[b, n, h', d]` to `[b, n, heads, d]`.
    pub fn gather_text(&self, out: Tensor<4>, heads: usize) -> Tensor<4> {
        let place = Place::of(&out);
        let [b, n, _, d] = out.dims();
        let heads = self.heads(heads);
        let lens: Vec<usize> = heads.iter().map(|heads| b * n * heads.len() * d).collect();
        let arrived = wait(self.comm.all_gather(buffer(out), &lens));
        let parts = arrived
            .iter()
            .zip(&heads)
            .map(|(part, heads)| place.tensor(part, [b, n, heads.len(), d]))
            .collect();
        Tensor::cat(parts, 2)
    }
}
