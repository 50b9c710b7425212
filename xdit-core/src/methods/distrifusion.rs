//! DistriFusion: every rank owns a strip of the image; the other strips' keys and values are of the step before,
//! and travel while this step is computed.
//!
//! Source: DistriFusion (Li et al. 2024), "displaced patch parallelism".

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::attention::Site;
use crate::link::{Arriving, Link, bytes_of};
use crate::methods::ring::Kv;

/// The ranks that own a strip each, and what is on its way between them.
#[derive(Debug)]
pub struct DistriFusion {
    link: Arc<dyn Link>,
    /// The keys and values of the step before, of each guidance branch at each site.
    before: HashMap<(usize, Site), Before>,
}

/// Keys and values of all ranks at the step before, those of a rank stacked.
#[derive(Debug)]
enum Before {
    Here(Vec<Tensor<4>>),
    /// On their way, and how many bytes they are.
    Travelling(u64, Arriving<4>),
}

/// What a step does with what travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Wait for this step's keys instead of using those of the step before.
    pub synchronous: bool,
    /// Send this step's keys: the branch has a next step that will use them.
    pub send: bool,
}

impl DistriFusion {
    /// Over the ranks of `link`, in the order of their strips.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link, before: HashMap::new() }
    }

    /// Bytes of all keys and values that the next step will use.
    pub fn bytes(&self) -> u64 {
        let bytes = |before: &Before| match before {
            Before::Here(parts) => parts.iter().map(bytes_of).sum(),
            Before::Travelling(bytes, _) => *bytes,
        };
        self.before.values().map(bytes).sum()
    }

    /// All keys and values that this rank attends to: its own, and the others' of this step or the one before.
    ///
    /// # Shapes
    /// `own`: `[b, tokens[rank], h, d]`; the result has Σ tokens.
    pub fn gather(&mut self, branch: usize, site: Site, own: Kv, tokens: &[usize], exchange: Exchange) -> Kv {
        let [b, _, h, d] = own.k.dims();
        let shapes: Vec<_> = tokens.iter().map(|&n| [2 * b, n, h, d]).collect();
        let send = || self.link.all_gather(Tensor::cat(vec![own.k.clone(), own.v.clone()], 0), &shapes);
        let before = self.before.remove(&(branch, site));
        let parts = if exchange.synchronous {
            let parts = send().wait();
            if exchange.send {
                self.before.insert((branch, site), Before::Here(parts.clone()));
            }
            parts
        } else {
            if exchange.send {
                let elements: usize = shapes.iter().map(|shape| shape.iter().product::<usize>()).sum();
                let travelling = Before::Travelling((elements * own.k.dtype().size()) as u64, send());
                self.before.insert((branch, site), travelling);
            }
            match before.expect("the first step is synchronous and sends") {
                Before::Here(parts) => parts,
                Before::Travelling(_, arriving) => arriving.wait(),
            }
        };
        let parts = parts.into_iter().enumerate().map(|(rank, stacked)| match rank == self.link.rank() {
            true => own.clone(),
            false => Kv { k: stacked.clone().narrow(0, 0, b), v: stacked.narrow(0, b, b) },
        });
        Kv::cat(parts.collect())
    }
}
