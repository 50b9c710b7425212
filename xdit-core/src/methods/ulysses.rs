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
    /// Creates the exchange over the ranks of `link`. Heads are spread as evenly as possible.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link }
    }

    /// This rank's index among them.
    pub fn rank(&self) -> usize {
        self.link.rank()
    }

    /// The heads of each rank.
    fn heads(&self, heads: usize) -> Vec<Range<usize>> {
        split::even(heads, self.link.size())
    }

    /// Exchanges all heads of this rank's tokens for all tokens of this rank's heads.
    ///
    /// Queries, keys and values are separate messages of one operation: concatenating them first would copy each.
    ///
    /// # Shapes
    /// `[b, tokens[rank], h, d]` to `[b, Σ tokens, h', d]`; the tokens of rank 0 come first.
    pub fn scatter_heads(&self, qkv: Qkv, tokens: &[usize]) -> Qkv {
        let [b, _, h, d] = qkv.q.dims();
        let heads = self.heads(h);
        let mine = heads[self.link.rank()].len();
        let shapes: Vec<_> = tokens.iter().map(|&n| [b, n, mine, d]).collect();
        let parts = [qkv.q, qkv.k, qkv.v].map(|x| {
            let part = |heads: &Range<usize>| x.clone().narrow(2, heads.start, heads.len());
            heads.iter().map(part).collect()
        });
        let mut arrived = self.link.all_to_all_of(parts.into(), &shapes).wait().into_iter();
        let [q, k, v] = [(); 3].map(|()| Tensor::cat(arrived.by_ref().take(shapes.len()).collect(), 1));
        Qkv { q, k, v }
    }

    /// Exchanges all tokens of this rank's heads for all heads of this rank's tokens. It is the inverse of
    /// [`scatter_heads`](Self::scatter_heads), for a result of attention.
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

    /// This rank's heads of a text that every rank has whole; it needs no transfer.
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
