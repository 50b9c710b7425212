//! The attention of a rank: the parallel methods around the kernel, outermost first.

use std::ops::Range;

use burn::tensor::Tensor;
use xdit_kernels::attention;

use crate::attention::{Attention, Qkv, Site, scale};
use crate::methods::distrifusion::{DistriFusion, Exchange};
use crate::methods::keys::{Keys, Kv};
use crate::methods::pipefusion::KvCache;
use crate::methods::ring::Ring;
use crate::methods::ulysses::Ulysses;
use crate::plan::Plan;
use crate::plan::mesh::Axis;
use crate::split;

/// One pass through the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Index of the step.
    pub step: usize,
    /// The patches of the pass: all patches in a synchronous step, one in any other.
    pub patches: Range<usize>,
    /// Index of the guidance branch.
    pub branch: usize,
}

/// How the ranks of the ring axis see each other's keys and values.
#[derive(Debug)]
pub enum KeyExchange {
    /// Keys of this step, passed around.
    Ring(Ring),
    /// Keys of the previous step.
    DistriFusion(DistriFusion),
}

/// The kernel, wrapped from the inside out in the ring, PipeFusion's cache and Ulysses, each if the plan uses it.
///
/// Keys are a set: no method here depends on the order of image tokens, as long as keys and values agree.
#[derive(Debug)]
pub struct ParallelAttention {
    plan: Plan,
    /// The coordinate of this rank along the ring axis.
    ring_coordinate: usize,
    ulysses: Option<Ulysses>,
    exchange: Option<KeyExchange>,
    /// Of each guidance branch, if its patches follow each other in an asynchronous step.
    caches: Vec<Option<KvCache>>,
    pass: Pass,
}

impl ParallelAttention {
    /// The attention of a rank at `ring_coordinate`.
    pub fn new(
        plan: Plan,
        ring_coordinate: usize,
        ulysses: Option<Ulysses>,
        exchange: Option<KeyExchange>,
    ) -> Self {
        let tokens = |patch| plan.ring_tokens(&(patch..patch + 1), ring_coordinate);
        let patches = split::consecutive(&(0..plan.patches.len()).map(tokens).collect::<Vec<_>>());
        let cache = |branch| plan.caches(branch).then(|| KvCache::new(patches.clone()));
        let caches = (0..plan.branches.len()).map(cache).collect();
        let pass = Pass { step: 0, patches: 0..plan.patches.len(), branch: 0 };
        Self { plan, ring_coordinate, ulysses, exchange, caches, pass }
    }

    /// Sets the pass to which the next calls belong.
    pub fn begin(&mut self, pass: Pass) {
        self.pass = pass;
    }

    /// Bytes of the keys and values that are kept for later calls.
    pub fn kv_bytes(&self) -> u64 {
        let exchanged = match &self.exchange {
            Some(KeyExchange::DistriFusion(strips)) => strips.bytes(),
            Some(KeyExchange::Ring(_)) | None => 0,
        };
        self.caches.iter().flatten().map(KvCache::bytes).sum::<u64>() + exchanged
    }

    /// The tensors in the caches.
    pub fn cached(&self) -> impl Iterator<Item = &Tensor<3>> {
        self.caches.iter().flatten().flat_map(KvCache::tensors)
    }

    /// Where each patch of this pass lies among the tokens that ulysses brought together: rank by rank, and in
    /// each rank's share patch by patch.
    fn runs(&self) -> Vec<Vec<Range<usize>>> {
        let patches = self.pass.patches.len();
        let first = self.ring_coordinate * self.plan.mesh.degree(Axis::Ulysses);
        let ranks = first..first + self.plan.mesh.degree(Axis::Ulysses);
        let of_rank = |rank| self.pass.patches.clone().map(move |patch| self.plan.shard(patch, rank).len());
        let runs = split::consecutive(&ranks.flat_map(of_rank).collect::<Vec<_>>());
        (0..patches).map(|patch| runs.iter().skip(patch).step_by(patches).cloned().collect()).collect()
    }

    /// Tokens whose keys each ring rank has in this pass: those of `patches`.
    fn ring_tokens(&self, patches: &Range<usize>) -> Vec<usize> {
        (0..self.plan.mesh.degree(Axis::Ring)).map(|ring| self.plan.ring_tokens(patches, ring)).collect()
    }
}

impl Attention for ParallelAttention {
    fn attend(&mut self, site: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>) {
        let heads = image.q.dims()[2];
        let scale = scale(&image.q);
        let tokens = self.plan.ulysses_tokens(&self.pass.patches, self.ring_coordinate);
        let (image, text) = match &self.ulysses {
            Some(ulysses) => {
                (ulysses.scatter_heads(image, &tokens), text.map(|text| ulysses.own_heads(text)))
            }
            None => (image, text),
        };

        let (text_q, text_kv) = match text {
            Some(text) => (Some(text.q), Some(Kv { k: text.k, v: text.v })),
            None => (None, None),
        };
        let fresh = Kv { k: image.k, v: image.v };
        let Pass { step, patches, branch } = self.pass.clone();
        let runs = self.runs();
        let mut known = patches.clone();
        let keys = match &mut self.caches[branch] {
            None => Keys::new(text_kv, fresh),
            Some(cache) if step < self.plan.synchronous_steps => {
                // All that the first asynchronous step sees of an earlier one.
                if step + 1 == self.plan.synchronous_steps {
                    let kept = text_kv.as_ref().filter(|_| !self.plan.distrifusion);
                    cache.store(site, kept, &fresh, patches, &runs);
                }
                Keys::new(text_kv, fresh)
            }
            Some(cache) if self.plan.distrifusion => {
                Keys::new(text_kv, cache.displace(site, fresh, patches.start))
            }
            Some(cache) => {
                cache.store(site, text_kv.as_ref(), &fresh, patches, &runs);
                known = 0..cache.known(site);
                cache.keys(site)
            }
        };

        let tokens_of_keys = self.ring_tokens(&known);
        let (image_out, text_out) = match &mut self.exchange {
            Some(KeyExchange::Ring(ring)) => ring.attend(image.q, text_q, keys, &tokens_of_keys, scale),
            Some(KeyExchange::DistriFusion(strips)) => {
                let exchange = Exchange {
                    synchronous: step < self.plan.synchronous_steps,
                    send: self.plan.branches[branch].steps.contains(&(step + 1)),
                };
                let parts = strips.gather(branch, site, keys.image, &tokens_of_keys, exchange);
                attend(image.q, text_q, Kv::cat(keys.text.into_iter().chain(parts).collect()), scale)
            }
            None => attend(image.q, text_q, keys.both(), scale),
        };
        match &self.ulysses {
            Some(ulysses) => (
                ulysses.gather_heads(image_out, &tokens, heads),
                text_out.map(|text| ulysses.gather_text(text, heads)),
            ),
            None => (image_out, text_out),
        }
    }
}

/// Attention of an image's queries, and of those of a text, to the keys that are here.
fn attend(image: Tensor<4>, text: Option<Tensor<4>>, kv: Kv, scale: f32) -> (Tensor<4>, Option<Tensor<4>>) {
    let (n_text, n_image) = (text.as_ref().map_or(0, |text| text.dims()[1]), image.dims()[1]);
    let q = match text {
        Some(text) => Tensor::cat(vec![text, image], 1),
        None => image,
    };
    let out = attention(q, kv.k, kv.v, None, scale);
    (out.clone().narrow(1, n_text, n_image), (n_text > 0).then(|| out.narrow(1, 0, n_text)))
}
