//! The attention seam: the one place where a model's tokens mix.
//!
//! A model passes queries, keys and values to its [`Attention`], which returns the result for the model's own queries.
//! On a single rank this is the kernel itself, [`Local`]. The parallel methods are decorators around the kernel.

use burn::tensor::Tensor;
use xdit_kernels::{attention, join};

use crate::rows::{Rows, Whole};

/// Identifies one attention of one block. Caches are keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Index of the block in the whole model.
    pub block: usize,
    /// Index among the block's attentions that mix image tokens, from 0.
    pub layer: usize,
    /// The tokens that attend to each other.
    pub span: Span,
}

impl Site {
    /// An attention of all tokens to each other.
    pub fn new(block: usize, layer: usize) -> Self {
        Self { block, layer, span: Span::All }
    }

    /// The same attention among fewer tokens.
    pub fn within(self, span: Span) -> Self {
        Self { span, ..self }
    }
}

/// The image tokens that attend to each other. A clip's tokens are [ordered](crate::tokens::Positions::clip) by place,
/// then by frame, and each rank has all frames of its places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Span {
    /// All tokens.
    #[default]
    All,
    /// The tokens of each of these frames. No text takes part.
    Frame {
        /// The number of frames.
        frames: usize,
    },
    /// The tokens of each place, one in each of these frames. No text takes part, and no other rank.
    Place {
        /// The number of frames.
        frames: usize,
    },
}

impl Span {
    /// The number of consecutive tokens that are one token for the kernel, each with heads of its own. Since a place's
    /// frames are consecutive, attention within frames *is* attention of places that have `frames` times as many
    /// heads: no value moves.
    pub(crate) fn fold(self) -> usize {
        match self {
            Self::All | Self::Place { .. } => 1,
            Self::Frame { frames } => frames,
        }
    }
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

impl Qkv {
    /// The same values with each `count` consecutive tokens as one token of `count` times as many heads.
    ///
    /// # Shapes
    /// `[b, n, h, d]` to `[b, n / count, count · h, d]`.
    pub(crate) fn folded(self, count: usize) -> Self {
        if count == 1 {
            return self;
        }
        self.map(|x| {
            let [b, n, h, d] = x.dims();
            x.reshape([b, n / count, count * h, d])
        })
    }

    /// The same values with each place as an element of the batch.
    ///
    /// # Shapes
    /// `[b, n, h, d]` to `[b · n / frames, frames, h, d]`.
    fn by_place(self, frames: usize) -> Self {
        self.map(|x| {
            let [b, n, h, d] = x.dims();
            x.reshape([b * n / frames, frames, h, d])
        })
    }

    fn map(self, change: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        Self { q: change(self.q), k: change(self.k), v: change(self.v) }
    }
}

/// Attention, as a model calls it.
///
/// Softmax is over `q kᵀ / √d`.
pub trait Attention {
    /// Computes attention of every image token to every image token in the [span](Site::span) and, if the text takes
    /// part, of all image and text tokens to each other. Returns the results for the image's and the text's queries.
    ///
    /// The image tokens may be part of a larger image, the rest of which is on other ranks. The text is always whole.
    ///
    /// # Shapes
    /// Results `[b, n, h, d]`, like the queries.
    fn attend(&mut self, site: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>);

    /// The operations that mix the rows of the image, for models with convolutions and group norms. The image tokens are
    /// then whole rows.
    ///
    /// By default the rows are those of the whole image: transformers have no such operations.
    fn rows(&self) -> &dyn Rows {
        &Whole
    }
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
    fn attend(&mut self, site: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>) {
        let scale = scale(&image.q);
        assert!(
            text.is_none() || site.span == Span::All,
            "a text takes part in attention of all tokens only"
        );
        let Some(text) = text else {
            let shape = image.q.dims();
            let Qkv { q, k, v } = match site.span {
                Span::Place { frames } => image.by_place(frames),
                span => image.folded(span.fold()),
            };
            return (attention(q, k, v, None, scale).reshape(shape), None);
        };
        let (n_text, n_image) = (text.q.dims()[1], image.q.dims()[1]);
        let out = attention(join(text.q, image.q), join(text.k, image.k), join(text.v, image.v), None, scale);
        (out.clone().narrow(1, n_text, n_image), Some(out.narrow(1, 0, n_text)))
    }
}

/// The factor of the scores: 1 / √d.
pub(crate) fn scale(q: &Tensor<4>) -> f32 {
    1.0 / (q.dims()[3] as f32).sqrt()
}
