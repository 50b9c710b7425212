//! Ring attention: keys and values go round, partial results are merged by their log-sum-exp.
//!
//! Source: Ring Attention (Liu et al. 2023).

use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_kernels::{attention_lse, merge_lse};

use crate::link::{Link, Place, bytes_of};

/// Keys and values, `[b, n, h, d]` each.
#[derive(Clone, Debug)]
pub struct Kv {
    /// Keys.
    pub k: Tensor<4>,
    /// Values.
    pub v: Tensor<4>,
}

impl Kv {
    /// The tokens of all parts, one part after the other.
    pub fn cat(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let (k, v) = parts.into_iter().map(|part| (part.k, part.v)).unzip();
        Self { k: Tensor::cat(k, 1), v: Tensor::cat(v, 1) }
    }

    /// Bytes of both.
    pub fn bytes(&self) -> u64 {
        bytes_of(&self.k) + bytes_of(&self.v)
    }

    /// `length` tokens from `start` on.
    pub fn narrow(&self, start: usize, length: usize) -> Self {
        Self { k: self.k.clone().narrow(1, start, length), v: self.v.clone().narrow(1, start, length) }
    }
}

/// The ranks that pass keys and values round.
#[derive(Clone, Debug)]
pub struct Ring {
    link: Arc<dyn Link>,
}

impl Ring {
    /// Over the ranks of `link`, in their order.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link }
    }

    /// Attention of this rank's queries to the keys of all ranks, and to a text that every rank has whole and that
    /// counts once.
    ///
    /// The next keys travel while the present ones are attended to.
    ///
    /// # Shapes
    /// `q`: `[b, nq, h, d]`, also the result; `own`: `[b, tokens[rank], h, d]`.
    pub fn attend(&self, q: Tensor<4>, own: Kv, text: Option<Kv>, tokens: &[usize], scale: f32) -> Tensor<4> {
        let (rank, size) = (self.link.rank(), self.link.size());
        let place = Place::of(&own.k);
        let [b, _, h, d] = own.k.dims();
        let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
        let mut travelling = Tensor::cat(vec![own.k.clone(), own.v.clone()], 0);
        let mut present = match text {
            Some(text) => Kv::cat(vec![text, own]),
            None => own,
        };
        let mut result = None;
        for hop in 0..size {
            let transfer = (hop + 1 < size).then(|| {
                let n = tokens[(rank + size - hop - 1) % size];
                let slot = place.slot([2 * b, n, h, d]);
                self.link.exchange(vec![(next, travelling.clone())], vec![(previous, slot)])
            });
            let partial = attention_lse(q.clone(), present.k.clone(), present.v.clone(), None, scale);
            result = Some(match result {
                Some(result) => merge_lse(result, partial),
                None => partial,
            });
            if let Some(transfer) = transfer {
                travelling = transfer.wait_one();
                present = Kv { k: travelling.clone().narrow(0, 0, b), v: travelling.clone().narrow(0, b, b) };
            }
        }
        result.expect("a ring has at least one rank").0
    }
}
