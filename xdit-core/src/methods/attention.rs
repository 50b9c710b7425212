//! The attention of a rank: the parallel methods around the kernel, outermost first.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use xdit_kernels::{attention, join};

use crate::attention::{Attention, Local, Qkv, Site, Span, scale};
use crate::link::Link;
use crate::methods::distrifusion::{DistriFusion, Exchange};
use crate::methods::keys::{Keys, Kv};
use crate::methods::pipefusion::KvCache;
use crate::methods::ring::Ring;
use crate::methods::stale_rows::{StaleRows, StripPass};
use crate::methods::ulysses::Ulysses;
use crate::methods::vae::SplitRows;
use crate::plan::Plan;
use crate::plan::mesh::Axis;
use crate::rows::{Rows, Whole};
use crate::split;

/// One pass through the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Index of the step.
    pub step: usize,
    /// The patches of the pass: all patches in a synchronous step, one in any other.
    pub patches: Range<usize>,
    /// The guidance branches, whose pictures are one batch.
    pub branches: Range<usize>,
}

/// The way in which the ranks of the ring axis get each other's keys and values.
#[derive(Debug)]
pub enum KeyExchange {
    /// Keys of this step, passed around.
    Ring(Ring),
    /// Keys of the previous step.
    DistriFusion(DistriFusion),
}

/// The kernel, wrapped from the inside out in the ring, PipeFusion's cache and Ulysses, each if the plan uses it.
///
/// Keys are a set: no method here depends on the order of image tokens, as long as keys and values agree. In attention
/// within frames, the methods see places as tokens, each with the heads of all frames (see [`Span`]).
#[derive(Debug)]
pub struct ParallelAttention {
    plan: Plan,
    /// The coordinate of this rank along the ring axis.
    ring_coordinate: usize,
    ulysses: Option<Ulysses>,
    exchange: Option<KeyExchange>,
    /// For each guidance branch that has asynchronous steps with several patches, the cache of each resolution. The first
    /// branch of a pass has the keys of all its branches.
    caches: Vec<Option<BTreeMap<Resolution, KvCache>>>,
    /// The rows of this rank, if others have the rest of the image.
    rows: Option<SplitRows>,
    /// The rows of strips, if they use those of the previous step.
    stale_rows: Option<StaleRows>,
    pass: Pass,
}

/// The number of tokens in an attention in proportion to those of the plan: a place may be one token, and the levels of a
/// UNet have fewer pixels. Each rank has whole places, or whole pieces of rows, so the proportion is the same on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Resolution {
    tokens: usize,
    planned: usize,
}

impl Resolution {
    /// Equal proportions are equal, whatever the numbers.
    fn new(tokens: usize, planned: usize) -> Self {
        let (mut divisor, mut rest) = (tokens, planned);
        while rest > 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        Self { tokens: tokens / divisor, planned: planned / divisor }
    }

    /// The number of tokens in the place of `planned` ones.
    fn of(self, planned: usize) -> usize {
        planned * self.tokens / self.planned
    }
}

impl ParallelAttention {
    /// The attention of a rank at `ring_coordinate`.
    pub fn new(
        plan: Plan,
        ring_coordinate: usize,
        ulysses: Option<Ulysses>,
        exchange: Option<KeyExchange>,
    ) -> Self {
        let caches = (0..plan.branches.len()).map(|branch| plan.caches(branch).then(BTreeMap::new)).collect();
        let pass = Pass { step: 0, patches: 0..plan.patches.len(), branches: 0..1 };
        Self { plan, ring_coordinate, ulysses, exchange, caches, rows: None, stale_rows: None, pass }
    }

    /// The same attention, with rows that are divided among the ranks of `sequence`, for models that
    /// [mix them](Attention::rows). In DistriFusion, these are the ranks of `ring`.
    #[must_use]
    pub fn splitting_rows(self, sequence: Option<Arc<dyn Link>>, ring: Option<Arc<dyn Link>>) -> Self {
        // Tokens stand for rows: only the proportions of the shares matter.
        let all = 0..self.plan.patches.len();
        let shares = |link: &Arc<dyn Link>| (0..link.size()).map(|at| self.plan.tokens(&all, at)).collect();
        let rows = sequence.map(|link| SplitRows::new(link.clone(), shares(&link)));
        let strips = match &ring {
            Some(ring) => (0..ring.size()).map(|at| self.plan.ring_tokens(&all, at)).collect(),
            None => self.plan.patches.iter().map(Range::len).collect(),
        };
        let stale_rows = self.plan.distrifusion.then(|| StaleRows::new(ring, strips));
        Self { rows, stale_rows, ..self }
    }

    /// The operations on rows of the picture between the passes, which use no old values.
    pub fn exact_rows(&self) -> &dyn Rows {
        match &self.rows {
            Some(rows) => rows,
            None => &Whole,
        }
    }

    /// Sets the pass to which the next calls belong.
    pub fn begin(&mut self, pass: Pass) {
        if let Some(rows) = &mut self.stale_rows {
            let Pass { step, patches, branches } = pass.clone();
            let branch = branches.start;
            let exchange = Exchange {
                synchronous: step < self.plan.synchronous_steps,
                send: self.plan.branches[branch].steps.contains(&(step + 1)),
            };
            rows.begin(StripPass { branch, strips: patches, exchange });
        }
        self.pass = pass;
    }

    /// Bytes of the keys and values that are kept for later calls.
    pub fn kv_bytes(&self) -> u64 {
        let exchanged = match &self.exchange {
            Some(KeyExchange::DistriFusion(strips)) => strips.bytes(),
            Some(KeyExchange::Ring(_)) | None => 0,
        };
        self.caches().map(KvCache::bytes).sum::<u64>() + exchanged
    }

    /// The tensors in the caches.
    pub fn cached(&self) -> impl Iterator<Item = &Tensor<3>> {
        self.caches().flat_map(KvCache::tensors)
    }

    fn caches(&self) -> impl Iterator<Item = &KvCache> {
        self.caches.iter().flatten().flat_map(BTreeMap::values)
    }

    /// An empty cache for attention at a resolution.
    fn cache(plan: &Plan, ring_coordinate: usize, at: Resolution) -> KvCache {
        let tokens = |patch| at.of(plan.ring_tokens(&(patch..patch + 1), ring_coordinate));
        KvCache::new(split::consecutive(&(0..plan.patches.len()).map(tokens).collect::<Vec<_>>()))
    }

    /// The runs of each patch of this pass in the tokens that Ulysses has gathered. These are ordered by rank, and within a
    /// rank's share by patch.
    fn runs(&self, at: Resolution) -> Vec<Vec<Range<usize>>> {
        let patches = self.pass.patches.len();
        let first = self.ring_coordinate * self.plan.mesh.degree(Axis::Ulysses);
        let ranks = first..first + self.plan.mesh.degree(Axis::Ulysses);
        let of_rank =
            |rank| self.pass.patches.clone().map(move |patch| at.of(self.plan.shard(patch, rank).len()));
        let runs = split::consecutive(&ranks.flat_map(of_rank).collect::<Vec<_>>());
        (0..patches).map(|patch| runs.iter().skip(patch).step_by(patches).cloned().collect()).collect()
    }

    /// The number of tokens of `patches` on each ring rank.
    fn ring_tokens(&self, patches: &Range<usize>, at: Resolution) -> Vec<usize> {
        let tokens = |ring| at.of(self.plan.ring_tokens(patches, ring));
        (0..self.plan.mesh.degree(Axis::Ring)).map(tokens).collect()
    }
}

impl Attention for ParallelAttention {
    fn attend(&mut self, site: Site, image: Qkv, text: Option<Qkv>) -> (Tensor<4>, Option<Tensor<4>>) {
        if let Span::Place { frames } = site.span {
            assert_eq!(self.plan.grain % frames, 0, "every rank has all frames of its places");
            return Local.attend(site, image, text);
        }
        let (shape, fold) = (image.q.dims(), site.span.fold());
        assert!(self.plan.grain.is_multiple_of(fold), "every rank has all frames of its places");
        assert!(text.is_none() || fold == 1, "a text takes part in attention of all tokens only");
        let image = image.folded(fold);
        let heads = image.q.dims()[2];
        let scale = scale(&image.q);
        let tokens = self.plan.ulysses_tokens(&self.pass.patches, self.ring_coordinate);
        let planned = tokens[self.ulysses.as_ref().map_or(0, Ulysses::rank)];
        let at = Resolution::new(image.q.dims()[1], planned);
        let tokens: Vec<_> = tokens.into_iter().map(|tokens| at.of(tokens)).collect();
        let (image, text) = match &self.ulysses {
            Some(ulysses) => ulysses.scatter_heads(image, text, &tokens),
            None => (image, text),
        };

        let (text_q, text_kv) = match text {
            Some(text) => (Some(text.q), Some(Kv { k: text.k, v: text.v })),
            None => (None, None),
        };
        let fresh = Kv { k: image.k, v: image.v };
        let Pass { step, patches, branches } = self.pass.clone();
        // The branches of a pass have the same steps, and are together in each of them.
        let branch = branches.start;
        let runs = self.runs(at);
        let mut known = patches.clone();
        let (plan, ring) = (&self.plan, self.ring_coordinate);
        let new = || Self::cache(plan, ring, at);
        let keys = match self.caches[branch].as_mut().map(|caches| caches.entry(at).or_insert_with(new)) {
            None => Keys::new(text_kv, fresh),
            Some(cache) if step < self.plan.synchronous_steps => {
                // The first asynchronous step needs the keys of the last synchronous one only.
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

        let tokens_of_keys = self.ring_tokens(&known, at);
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
        let (image_out, text_out) = match &self.ulysses {
            Some(ulysses) => ulysses.gather_heads(image_out, text_out, &tokens, heads),
            None => (image_out, text_out),
        };
        (image_out.reshape(shape), text_out)
    }

    fn rows(&self) -> &dyn Rows {
        match &self.stale_rows {
            Some(rows) => rows,
            None => self.exact_rows(),
        }
    }
}

/// Attention of the queries of an image and of a text to the keys on this rank.
fn attend(image: Tensor<4>, text: Option<Tensor<4>>, kv: Kv, scale: f32) -> (Tensor<4>, Option<Tensor<4>>) {
    let (n_text, n_image) = (text.as_ref().map_or(0, |text| text.dims()[1]), image.dims()[1]);
    let q = match text {
        Some(text) => join(text, image),
        None => image,
    };
    let out = attention(q, kv.k, kv.v, None, scale);
    (out.clone().narrow(1, n_text, n_image), (n_text > 0).then(|| out.narrow(1, 0, n_text)))
}
