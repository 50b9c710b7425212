//! Ring attention: keys and values are passed around, and partial results are merged by their log-sum-exp.
//!
//! Source: Ring Attention (Liu et al. 2023).

use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_kernels::{attention_lse, merge_lse};

use crate::link::{Link, Place};
use crate::methods::keys::{Keys, Kv};

/// The ranks that pass keys and values around.
#[derive(Clone, Debug)]
pub struct Ring {
    link: Arc<dyn Link>,
}

/// The result of attention to some of the keys, and the log-sum-exp of each query.
type Partial = (Tensor<4>, Tensor<3>);

impl Ring {
    /// Creates a ring of the ranks of `link`, in their order.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link }
    }

    /// Computes attention of this rank's image queries, and of the queries of a text that every rank has whole. The
    /// keys are the image keys of all ranks, and the text's keys once.
    ///
    /// The next keys are transferred while attention to the present ones is computed. Partial results of the image
    /// queries are merged at once, which is a different order on each rank. Those of the text queries are kept and
    /// merged in rank order at the end, so that the text has the same bits on all ranks.
    ///
    /// # Shapes
    /// `image`, `text`: `[b, nq, h, d]`, also the results; `keys.image`: `[b, tokens[rank], h, d]`.
    pub fn attend(
        &self,
        image: Tensor<4>,
        text: Option<Tensor<4>>,
        keys: Keys,
        tokens: &[usize],
        scale: f32,
    ) -> (Tensor<4>, Option<Tensor<4>>) {
        let (rank, size) = (self.link.rank(), self.link.size());
        let place = Place::of(&keys.image.k);
        let [b, _, h, d] = keys.image.k.dims();
        let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
        let attend =
            |q: &Tensor<4>, kv: &Kv| attention_lse(q.clone(), kv.k.clone(), kv.v.clone(), None, scale);
        let merge = |merged: Option<Partial>, partial| match merged {
            Some(merged) => merge_lse(merged, partial),
            None => partial,
        };

        let mut of_image = keys.text.as_ref().map(|kv| attend(&image, kv));
        let to_text = text.as_ref().zip(keys.text.as_ref()).map(|(q, kv)| attend(q, kv));
        // Indexed by the rank that owns the keys.
        let mut of_text: Vec<Option<Partial>> = vec![None; size];
        let mut present = keys.image;
        for hop in 0..size {
            let transfer = (hop + 1 < size).then(|| {
                let n = tokens[(rank + size - hop - 1) % size];
                let slot = || (previous, place.slot([b, n, h, d]));
                let sends = [&present.k, &present.v].map(|x| (next, x.clone()));
                self.link.exchange(sends.into(), vec![slot(), slot()])
            });
            of_image = Some(merge(of_image, attend(&image, &present)));
            of_text[(rank + size - hop) % size] = text.as_ref().map(|q| attend(q, &present));
            if let Some(transfer) = transfer {
                let [k, v] = transfer.wait().try_into().expect("keys and values");
                present = Kv { k, v };
            }
        }
        let of_text =
            of_text.into_iter().flatten().fold(to_text, |merged, partial| Some(merge(merged, partial)));
        (of_image.expect("a ring has at least one rank").0, of_text.map(|(text, _)| text))
    }
}
