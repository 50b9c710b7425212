//! Ulysses: tokens are exchanged for heads before attention, and back after it.
//!
//! Source: DeepSpeed-Ulysses (Jacobs et al. 2023).

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_kernels::{join_grid, narrow};

use crate::attention::Qkv;
use crate::link::{Arriving, Link};
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

    /// Exchanges all heads of this rank's image tokens for all image tokens of this rank's heads. Every rank has the whole
    /// text, and keeps this rank's heads of it.
    ///
    /// Queries, keys and values are separate messages of one operation: concatenating them first would copy each. Text
    /// and image are parts of one tensor afterwards, the text first, so that they are [joined](xdit_kernels::join) without
    /// copying.
    ///
    /// # Shapes
    /// `image`: `[b, tokens[rank], h, d]` to `[b, Σ tokens, h', d]`; the tokens of rank 0 come first. `text`:
    /// `[b, n, h, d]` to `[b, n, h', d]`.
    pub fn scatter_heads(&self, image: Qkv, text: Option<Qkv>, tokens: &[usize]) -> (Qkv, Option<Qkv>) {
        let [b, _, h, d] = image.q.dims();
        let heads = self.heads(h);
        let mine = heads[self.link.rank()].len();
        let shapes: Vec<_> = tokens.iter().map(|&n| [b, n, mine, d]).collect();
        let parts = [image.q, image.k, image.v].map(|x| {
            let part = |heads: &Range<usize>| narrow(&x, 2, heads.start, heads.len());
            heads.iter().map(part).collect()
        });
        let n_text = text.as_ref().map_or(0, |text| text.q.dims()[1]);
        let own = heads[self.link.rank()].clone();
        let own_heads = |x: Tensor<4>| narrow(&x, 2, own.start, own.len());
        let text = match text {
            Some(text) => [text.q, text.k, text.v].map(|x| Some(own_heads(x))),
            None => [const { None }; 3],
        };
        let mut arrived = self.link.all_to_all_of(parts.into(), &shapes).wait().into_iter();
        let joined = text.map(|text| {
            let parts = text.into_iter().chain(arrived.by_ref().take(shapes.len()));
            join_grid(parts.map(|part| vec![part]).collect())
        });
        let n_image = tokens.iter().sum();
        let of = |first, count| {
            let [q, k, v] = joined.each_ref().map(|x| narrow(x, 1, first, count));
            Qkv { q, k, v }
        };
        (of(n_text, n_image), (n_text > 0).then(|| of(0, n_text)))
    }

    /// Exchanges all image tokens of this rank's heads for all heads of this rank's image tokens, and gathers all heads of
    /// the text. It is the inverse of [`scatter_heads`](Self::scatter_heads), for a result of attention.
    ///
    /// # Shapes
    /// `image`: `[b, Σ tokens, h', d]` to `[b, tokens[rank], heads, d]`. `text`: `[b, n, h', d]` to `[b, n, heads, d]`.
    pub fn gather_heads(
        &self,
        image: Tensor<4>,
        text: Option<Tensor<4>>,
        tokens: &[usize],
        heads: usize,
    ) -> (Tensor<4>, Option<Tensor<4>>) {
        let [b, _, _, d] = image.dims();
        let (mine, n_text) = (tokens[self.link.rank()], text.as_ref().map_or(0, |text| text.dims()[1]));
        let parts = split::consecutive(tokens).into_iter();
        let parts = parts.map(|range| narrow(&image, 1, range.start, range.len())).collect();
        let heads = self.heads(heads);
        let shapes = |n| heads.iter().map(|heads| [b, n, heads.len(), d]).collect::<Vec<_>>();
        let image = self.link.all_to_all(parts, &shapes(mine));
        let text = text.map(|text| self.link.all_gather(text, &shapes(n_text)));
        let image = image.wait();
        let joined = join_grid(text.map(Arriving::wait).into_iter().chain([image]).collect());
        let of = |first, count| narrow(&joined, 1, first, count);
        (of(n_text, mine), (n_text > 0).then(|| of(0, n_text)))
    }
}
