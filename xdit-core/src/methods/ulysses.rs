//! Ulysses: tokens are exchanged for heads before attention, and back after it.
//!
//! Source: DeepSpeed-Ulysses (Jacobs et al. 2023).

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::attention::Qkv;
use crate::link::Link;
use crate::split;

/// The ranks that exchange tokens for heads.
#[derive(Clone, Debug)]
pub struct Ulysses {
    link: Arc<dyn Link>,
}

impl Ulysses {
    /// Over the ranks of `link`; heads that do not divide are spread as evenly as they can be.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link }
    }

    /// The heads that this rank computes, of `heads`.
    fn heads(&self, heads: usize) -> Vec<Range<usize>> {
        split::even(heads, self.link.size())
    }

    /// All tokens of this rank's heads, from all heads of this rank's tokens.
    ///
    /// Queries, keys and values travel by themselves: to put them together first would cost a copy of each.
    ///
    /// # Shapes
    /// `[b, tokens[rank], h, d]` to `[b, Σ tokens, h', d]`; the tokens of rank 0 come first.
    pub fn scatter_heads(&self, qkv: Qkv, tokens: &[usize]) -> Qkv {
        let [b, _, h, d] = qkv.q.dims();
        let heads = self.heads(h);
        let mine = heads[self.link.rank()].len();
        let shapes: Vec<_> = tokens.iter().map(|&n| [b, n, mine, d]).collect();
        // All leave before any is waited for.
        let [q, k, v] = [qkv.q, qkv.k, qkv.v]
            .map(|x| {
                let parts = heads.iter().map(|heads| x.clone().narrow(2, heads.start, heads.len()));
                self.link.all_to_all(parts.collect(), &shapes)
            })
            .map(|arriving| Tensor::cat(arriving.wait(), 1));
        Qkv { q, k, v }
    }

    /// All heads of this rank's tokens, from all tokens of this rank's heads: undoes
    /// [`scatter_heads`](Self::scatter_heads) for a result of attention.
    ///
    /// # Shapes
    /// `out`: `[b, Σ tokens, h', d]` to `[b, tokens[rank], heads, d]`.
    pub fn gather_heads(&self, out: Tensor<4>, tokens: &[usize], heads: usize) -> Tensor<4> {
        let [b, _, _, d] = out.dims();
        let mine = tokens[self.link.rank()];
        let parts = split::consecutive(tokens).into_iter();
        let parts = parts.map(|range| out.clone().narrow(1, range.start, range.len())).collect();
        let shapes: Vec<_> = self.heads(heads).iter().map(|heads| [b, mine, heads.len(), d]).collect();
        Tensor::cat(self.link.all_to_all(parts, &shapes).wait(), 2)
    }

    /// This rank's heads of a text that every rank has whole: nothing travels.
    pub fn own_heads(&self, text: Qkv) -> Qkv {
        let heads = self.heads(text.q.dims()[2])[self.link.rank()].clone();
        let own = |x: Tensor<4>| x.narrow(2, heads.start, heads.len());
        Qkv { q: own(text.q), k: own(text.k), v: own(text.v) }
    }

    /// All heads of the text's result, on every rank.
    ///
    /// # Shapes
    /// `out`: `[b, n, h', d]` to `[b, n, heads, d]`.
    pub fn gather_text(&self, out: Tensor<4>, heads: usize) -> Tensor<4> {
        let [b, n, _, d] = out.dims();
        let shapes: Vec<_> = self.heads(heads).iter().map(|heads| [b, n, heads.len(), d]).collect();
        Tensor::cat(self.link.all_gather(out, &shapes).wait(), 2)
    }
}
