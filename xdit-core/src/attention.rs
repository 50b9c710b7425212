//! The attention seam: the one place where a model's tokens see other tokens.
//!
//! A model hands queries, keys and values to whatever [`Attention`] it was given, and takes back the result for
//! its own queries. With one rank that is the kernel itself, [`Local`]; the parallel methods are decorators that
//! do their part and hand on.

use burn::tensor::Tensor;
use xdit_kernels::attention;

/// Identifies one attention of one block. Caches are keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Index of the block in the whole model.
    pub block: usize,
    /// Index among the block's attentions that mix image tokens, from 0.
    pub layer: usize,
}

/// Queries, keys and values of one stream of tokens.
///
/// # Shapes
/// All `[b, n, h, d]`.
#[derive(Clone, Debug)]
pub struct Qkv {
    /// Queries.
    pub q: Tensor<4>,
    /// Keys.
    pub k: Tensor<4>,
    /// Values.
    pub v: Tensor<4>,
}

/// Attention as a model sees it.
///
/// Softmax is over `q kᵀ / √d`.
pub trait Attention {
    /// Every image token attends to every image token, and to every text token where the text takes part.
    ///
    /// The image tokens may be a part of a larger image, the rest of which lives on other ranks; the text is always
    /// complete. Returns the results for the image's and the text's queries.
    ///
    /// # Shapes
    /// Results `[b, n, h, d]`, like the queries.
    fn attend(&mut self, site: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>);
}

/// Attention of tokens to a text that every rank has whole: no other rank is involved.
///
/// # Shapes
/// `q`: `[b, n, h, d]`; `k`, `v`: `[b, nk, h, d]`; `bias`: `[b, 1, 1, nk]`.
pub fn cross_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>) -> Tensor<4> {
    let scale = scale(&q);
    attention(q, k, v, bias, scale)
}

/// Attention on a single rank, which has the whole image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Attention for Local {
    fn attend(&mut self, _: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>) {
        let scale = scale(&image.q);
        let Some(text) = text else {
            return (attention(image.q, image.k, image.v, None, scale), None);
        };
        let (n_text, n_image) = (text.q.dims()[1], image.q.dims()[1]);
        let join = |text, image| Tensor::cat(vec![text, image], 1);
        let out = attention(join(text.q, image.q), join(text.k, image.k), join(text.v, image.v), None, scale);
        (out.clone().narrow(1, n_text, n_image), Some(out.narrow(1, 0, n_text)))
    }
}

/// The factor of the scores: 1 / √d.
pub(crate) fn scale(q: &Tensor<4>) -> f32 {
    1.0 / (q.dims()[3] as f32).sqrt()
}
