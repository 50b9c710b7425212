//! A toy that hands wrong keys to one attention.

use burn::tensor::Tensor;
use xdit_core::attention::{Attention, Qkv, Site, Span};
use xdit_core::transformer::Transformer;
use xdit_tests::toy::Toy;
use xdit_tests::world::Job;
use xdit_tests::wrapped::{Wrapped, wrapped};

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
    /// Attention within frames is to another frame's tokens, or attention within places to another place's.
    SpanMoved,
}

/// The run of `job` with the mistake `keys`, if any, in the block `wrong`.
pub fn with_keys(job: Job<Toy>, keys: Option<Keys>, wrong: usize) -> Job<Wrapped<Toy>> {
    wrapped(job, move || {
        Box::new(move |toy: &Toy, index, hidden, context, attention| match keys.filter(|_| index == wrong) {
            Some(keys) => toy.block(index, hidden, context, &mut MutantAttention { attention, keys }),
            None => toy.block(index, hidden, context, attention),
        })
    })
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
            Keys::SpanMoved => {
                let [b, n, h, d] = image.k.dims();
                let other = |x: Tensor<4>| match site.span {
                    Span::All => panic!("all tokens attend to each other"),
                    Span::Frame { frames } => moved(x.reshape([b * n / frames, frames, h, d]), 1),
                    Span::Place { frames } => moved(x.reshape([b, n / frames, frames * h, d]), 1),
                };
                let other = |x| other(x).reshape([b, n, h, d]);
                (image.k, image.v) = (other(image.k), other(image.v));
            }
        }
        let longer = |x: Tensor<4>| match self.keys {
            Keys::TextTwice => Tensor::cat(vec![x.clone(), x], 1),
            Keys::PaddingSeen => Tensor::cat(vec![x.clone(), x.narrow(1, 0, 1).zeros_like()], 1),
            Keys::Moved | Keys::HeadsMoved | Keys::SpanMoved => x,
        };
        let text = text.map(|text| Qkv { q: text.q, k: longer(text.k), v: longer(text.v) });
        self.attention.attend(site, image, text)
    }
}
