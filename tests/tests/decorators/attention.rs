//! A toy that hands wrong keys to one attention.

use burn::tensor::{DType, Tensor};
use xdit_core::attention::{Attention, Qkv, Site};
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_tests::toy::{Context, Toy};

/// The block whose keys are wrong.
const BLOCK: usize = 1;

/// What is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// They are not in the order of their values.
    Moved,
    /// Each head has another's values.
    HeadsMoved,
    /// The text counts twice.
    TextTwice,
    /// A key of zeros pads the text and is attended to.
    PaddingSeen,
}

/// The toy with a mistake.
pub struct MutantToy {
    pub toy: Toy,
    pub keys: Option<Keys>,
}

impl Transformer for MutantToy {
    type Conditions = Tensor<3>;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        self.toy.spec()
    }

    fn dtype(&self) -> DType {
        self.toy.dtype()
    }

    fn contexts(&self, text: &Tensor<3>, timesteps: &[f32]) -> Vec<Context> {
        self.toy.contexts(text, timesteps)
    }

    fn context_bytes(&self) -> usize {
        self.toy.context_bytes()
    }

    fn text_shape(&self, context: &Context) -> Option<[usize; 3]> {
        self.toy.text_shape(context)
    }

    fn embed(&self, latents: Tokens, context: &Context) -> Hidden {
        self.toy.embed(latents, context)
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        match self.keys.filter(|_| index == BLOCK) {
            Some(keys) => self.toy.block(index, hidden, context, &mut MutantAttention { attention, keys }),
            None => self.toy.block(index, hidden, context, attention),
        }
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        self.toy.finish(hidden, context)
    }
}

struct MutantAttention<'a> {
    attention: &'a mut dyn Attention,
    keys: Keys,
}

/// The last along `dim` first.
fn moved(x: Tensor<4>, dim: usize) -> Tensor<4> {
    let n = x.dims()[dim];
    Tensor::cat(vec![x.clone().narrow(dim, n - 1, 1), x.narrow(dim, 0, n - 1)], dim)
}

impl Attention for MutantAttention<'_> {
    fn attend(&mut self, site: Site, mut image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>) {
        match self.keys {
            Keys::Moved => image.k = moved(image.k, 1),
            Keys::HeadsMoved => image.v = moved(image.v, 2),
            Keys::TextTwice | Keys::PaddingSeen => {}
        }
        let longer = |x: Tensor<4>| match self.keys {
            Keys::TextTwice => Tensor::cat(vec![x.clone(), x], 1),
            Keys::PaddingSeen => Tensor::cat(vec![x.clone(), x.narrow(1, 0, 1).zeros_like()], 1),
            Keys::Moved | Keys::HeadsMoved => x,
        };
        let text = text.map(|text| Qkv { q: text.q, k: longer(text.k), v: longer(text.v) });
        self.attention.attend(site, image, text)
    }
}
