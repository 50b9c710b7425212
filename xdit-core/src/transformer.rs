//! The interface between a diffusion transformer and the engine.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor};

use crate::attention::Attention;
use crate::tokens::Tokens;

/// The sizes of a transformer that the engine needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransformerSpec {
    /// Side of the square of latent pixels that becomes a token.
    pub patch: usize,
    /// Channels of the latent.
    pub channels: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Attention heads of each block.
    pub heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Long skip connections: for each `[from, to]`, the output of block `from` is another input of block `to`.
    pub skips: Vec<[usize; 2]>,
    /// Relative numbers of parameters of the blocks; empty if all blocks have equally many.
    pub block_parameters: Vec<usize>,
}

impl TransformerSpec {
    /// Features of a token between blocks.
    pub fn dim(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// The hidden state between blocks.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// The image's tokens.
    pub image: Tokens,
    /// The text's tokens `[b, n, c]`, in models whose blocks change them. If the image passes through the blocks patch
    /// by patch, the text may come with the first patch only; it then is `None` for the others.
    pub text: Option<Tensor<3>>,
    /// Outputs of earlier blocks for [long skip connections](TransformerSpec::skips), keyed by the receiving block.
    pub skips: BTreeMap<usize, Tensor<3>>,
}

impl Hidden {
    /// The input of the first block.
    pub fn new(image: Tokens, text: Option<Tensor<3>>) -> Self {
        Self { image, text, skips: BTreeMap::new() }
    }
}

/// A value as tensors and numbers, the form in which it is sent to other ranks.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The tensors.
    pub tensors: Vec<Part>,
    /// The numbers; integers up to 2⁵³ and every f32 are exact.
    pub numbers: Vec<f64>,
}

/// A tensor of any number of dimensions.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its values, row by row.
    pub x: Tensor<1>,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl<const D: usize> From<Tensor<D>> for Part {
    fn from(x: Tensor<D>) -> Self {
        let shape = x.dims();
        Self { x: x.reshape([shape.iter().product::<usize>()]), shape: shape.to_vec() }
    }
}

impl Part {
    /// The tensor.
    ///
    /// # Panics
    /// If it has another number of dimensions.
    pub fn tensor<const D: usize>(self) -> Tensor<D> {
        let shape: [usize; D] = self.shape.try_into().expect("a part of the value that was taken apart");
        self.x.reshape(shape)
    }
}

/// A value that can be sent to other ranks.
pub trait IntoParts {
    /// Converts the value to parts.
    fn into_parts(self) -> Parts;

    /// Inverse of [`into_parts`](Self::into_parts).
    ///
    /// # Panics
    /// If the parts belong to a value of another type.
    fn from_parts(parts: Parts) -> Self;
}

impl IntoParts for () {
    fn into_parts(self) -> Parts {
        Parts::default()
    }

    fn from_parts(_: Parts) -> Self {}
}

impl<const D: usize> IntoParts for Tensor<D> {
    fn into_parts(self) -> Parts {
        Parts { tensors: vec![self.into()], numbers: Vec::new() }
    }

    fn from_parts(mut parts: Parts) -> Self {
        parts.tensors.remove(0).tensor()
    }
}

/// A diffusion transformer: `embed`, a loop over `block`, `finish`.
///
/// An implementation is single-device code. It may get any run of the image's tokens, and must take their places only
/// from their positions. Image tokens mix only in the [`Attention`] that is passed to a block. If only some blocks are
/// loaded, layers that only other stages use may be left out: `embed` is called on the stage of the first block, and
/// `finish` on the stage of the last.
pub trait Transformer {
    /// The conditions of one guidance branch, such as text embeddings.
    type Conditions: Clone;
    /// The conditions of one or several branches, prepared for the loaded blocks at one timestep.
    type Context: Send + Sync;

    /// The model's sizes.
    fn spec(&self) -> &TransformerSpec;

    /// The element type of the hidden state between blocks.
    fn dtype(&self) -> DType;

    /// Prepares the conditions for each of `timesteps`. The context of several branches is for one batch of their
    /// pictures: those of the first branch, then those of the next.
    ///
    /// Whatever depends only on the conditions and on the timestep, above all the modulation of every block, is
    /// computed here for many steps at once: as many as memory allows, in order. Layers that are used nowhere else
    /// come from [`Weights::once`](crate::weights::Weights::once), so that a run may free them in between. Ranks that
    /// loaded the same blocks share the result, so it must not depend on a rank's part of a layer, and waits for no
    /// transfer.
    ///
    /// # Panics
    /// If there are several branches and a model cannot take them as one batch: if they have several pictures each, or
    /// different sizes of the picture, or texts of different lengths in models whose blocks change the text.
    fn contexts(&self, branches: &[&Self::Conditions], timesteps: &[f32]) -> Vec<Self::Context>;

    /// Bytes of a context that depend on its timestep, for one picture of one branch.
    fn context_bytes(&self) -> usize;

    /// The shape `[b, n, c]` of the [text](Hidden::text) between blocks, in models whose blocks change it. It must
    /// follow from the context without computing the text: ranks that wait for the text need it, too.
    fn text_shape(&self, _context: &Self::Context) -> Option<[usize; 3]> {
        None
    }

    /// Embeds packed latents as the input of the first block.
    ///
    /// # Shapes
    /// `latents`: `[b, n, channels · patch · patch]`.
    fn embed(&self, latents: Tokens, context: &Self::Context) -> Hidden;

    /// Block `index`.
    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &Self::Context,
        attention: &mut dyn Attention,
    ) -> Hidden;

    /// Turns the output of the last block into the prediction, packed like the latents.
    ///
    /// # Shapes
    /// Result `[b, n, channels · patch · patch]`.
    fn finish(&self, hidden: Hidden, context: &Self::Context) -> Tensor<3>;

    /// The whole model on the tokens given.
    fn forward(
        &self,
        latents: Tokens,
        conditions: &Self::Conditions,
        timestep: f32,
        attention: &mut dyn Attention,
    ) -> Tensor<3> {
        let [context] = &self.contexts(&[conditions], &[timestep])[..] else {
            panic!("one timestep has one context");
        };
        let mut hidden = self.embed(latents, context);
        for index in 0..self.spec().blocks {
            hidden = self.block(index, hidden, context, attention);
        }
        self.finish(hidden, context)
    }
}
