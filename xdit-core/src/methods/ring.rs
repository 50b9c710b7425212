//! Ring attention: keys and values go round, partial results are merged by their log-sum-exp.
//!
//! Source: Ring Attention (Liu et al. 2023).

use burn::tensor::Tensor;
use xdit_comm::Comm;
use xdit_kernels::{attention_lse, merge_lse};

use crate::link::wait;
use crate::link::{Place, buffer};

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
        let of = |x: &Tensor<4>| (x.shape().num_elements() * x.dtype().size()) as u64;
        of(&self.k) + of(&self.v)
    }

    /// `length` tokens from `start` on.
    pub fn narrow(&self, start: usize, length: usize) -> Self {
        Self { k: self.k.clone().narrow(1, start, length), v: self.v.clone().narrow(1, start, length) }
    }
}

/// The ranks that pass keys and values round.
#[derive(Clone, Debug)]
pub struct Ring {
    comm: Comm,
}

impl Ring {
    /// Over the ranks of `comm`, in their order.
    pub fn new(comm: Comm) -> Self {
        Self { comm }
    }

    /// Attention of this rank's queries to the keys of all ranks, and to a text that every rank has whole and that
    /// counts once.
    ///
    /// The next keys travel while the present ones are attended to.
    ///
    /// # Shapes
    /// `q`: `[b, nq, h, d]`, also the result; `own`: `[b, tokens[rank], h, d]`.
    pub fn attend(&self, q: Tensor<4>, own: Kv, text: Option<Kv>, tokens: &[usize], scale: f32) -> Tensor<4> {
        let (rank, size) = (self.comm.rank(), self.comm.size());
        let place = Place::of(&own.k);
        let [b, _, h, d] = own.k.dims();
        let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
        let mut travelling = buffer(Tensor::cat(vec![own.k.clone(), own.v.clone()], 0));
        let mut present = match text {
            Some(text) => Kv::cat(vec![text, own]),
            None => own,
        };
        let mut result = None;
        for hop in 0..size {
            let transfer = (hop + 1 < size).then(|| {
                let n = tokens[(rank + size - hop - 1) % size];
                let shape = [2 * b, n, h, d];
                let sends = vec![(next, travelling.clone())];
                (self.comm.send_recv(sends, vec![(previous, place.spec(shape))]), shape)
            });
            let partial = attention_lse(q.clone(), present.k.clone(), present.v.clone(), None, scale);
            result = Some(match result {
                Some(result) => merge_lse(result, partial),
                None => partial,
            });
            if let Some((transfer, shape)) = transfer {
                travelling = wait(transfer).remove(0);
                let stacked: Tensor<4> = place.tensor(&travelling, shape);
                present = Kv { k: stacked.clone().narrow(0, 0, b), v: stacked.narrow(0, b, b) };
            }
        }
        result.expect("a ring has at least one rank").0
    }
}
