//! Keys and values, as they pass between the parallel methods.

use burn::tensor::Tensor;
use xdit_kernels::join_grid;

/// Keys and values of some tokens, `[b, n, h, d]` each.
#[derive(Clone, Debug)]
pub struct Kv {
    /// Keys.
    pub k: Tensor<4>,
    /// Values.
    pub v: Tensor<4>,
}

impl Kv {
    /// Concatenates the tokens of all parts.
    pub fn cat(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let (k, v) = parts.into_iter().map(|part| (part.k, part.v)).unzip();
        let joined = |parts: Vec<Tensor<4>>| join_grid(parts.into_iter().map(|part| vec![part]).collect());
        Self { k: joined(k), v: joined(v) }
    }

    /// Copies both into a new tensor, keys first along the batch.
    ///
    /// # Shapes
    /// `[2b, n, h, d]`
    pub fn stack(&self) -> Tensor<4> {
        let both = [&self.k, &self.v].map(Tensor::clone);
        let [b, n, h, d] = self.k.dims();
        match b {
            // The tokens of a second image are as those behind the first one's.
            1 => join_grid(both.map(|x| vec![x]).into()).reshape([2, n, h, d]),
            _ => Tensor::cat(both.into(), 0),
        }
    }

    /// Inverse of [`stack`](Self::stack).
    pub fn unstack(stacked: Tensor<4>) -> Self {
        let b = stacked.dims()[0] / 2;
        Self { k: stacked.clone().narrow(0, 0, b), v: stacked.narrow(0, b, b) }
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.k.dims()[1]
    }

    /// `length` tokens from `start` on.
    pub fn narrow(&self, start: usize, length: usize) -> Self {
        Self { k: self.k.clone().narrow(1, start, length), v: self.v.clone().narrow(1, start, length) }
    }
}

/// All keys and values that a pass attends to on this rank.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Keys and values of the text, if it takes part.
    pub text: Option<Kv>,
    /// Keys and values of image tokens.
    pub image: Kv,
    /// Both, the text first, if they already are contiguous.
    pub both: Option<Kv>,
}

impl Keys {
    /// Separate keys of a text and of image tokens.
    pub fn new(text: Option<Kv>, image: Kv) -> Self {
        Self { text, image, both: None }
    }

    /// Text and image together, the text first.
    pub fn both(self) -> Kv {
        self.both.unwrap_or_else(|| Kv::cat(self.text.into_iter().chain([self.image]).collect()))
    }
}
