//! PipeFusion's cache: patches that come later in the step still have the keys and values of the previous step.
//!
//! DistriFusion on a single rank uses the same cache; there, all other patches have those of the previous step.
//!
//! Source: PipeFusion (Fang et al. 2024).

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::Tensor;
use xdit_kernels::write_tokens;

use crate::attention::Site;
use crate::link::bytes_of;
use crate::methods::keys::{Keys, Kv};

/// The latest keys and values of all patches at each site, for one guidance branch of one picture.
///
/// Each site has one tensor of keys and one of values, which are written in place. Therefore no pass concatenates
/// tensors, and no view keeps an older tensor alive.
#[derive(Debug)]
pub struct KvCache {
    /// The image tokens of each patch whose keys this rank caches, as ranges in the cache.
    patches: Vec<Range<usize>>,
    sites: HashMap<Site, Held>,
}

/// The keys and values at one site.
#[derive(Debug)]
struct Held {
    /// The text tokens, followed by the tokens of the patches.
    tokens: Buffer,
    /// The number of text tokens.
    text: usize,
    /// The number of patches that are stored.
    known: usize,
    /// In DistriFusion: the keys and values of this step, which no patch may use before the next step.
    next: Option<Buffer>,
}

impl KvCache {
    /// An empty cache for `patches`, as consecutive ranges of image tokens.
    pub fn new(patches: Vec<Range<usize>>) -> Self {
        Self { patches, sites: HashMap::new() }
    }

    /// Stores newly computed keys and values.
    ///
    /// `fresh` holds the tokens of `patches`; `runs` has, for each patch, the runs of its tokens in `fresh`, in order.
    /// `text` is given with the first patch, if the text takes part.
    pub fn store(
        &mut self,
        site: Site,
        text: Option<&Kv>,
        fresh: &Kv,
        patches: Range<usize>,
        runs: &[Vec<Range<usize>>],
    ) {
        let mut held = self.sites.remove(&site).unwrap_or_else(|| {
            let text = text.map_or(0, Kv::tokens);
            let tokens = Buffer::new(fresh, text + self.tokens());
            Held { tokens, text, known: 0, next: None }
        });
        if let Some(text) = text {
            held.tokens = held.tokens.write(0, text);
        }
        held.known = held.known.max(patches.end);
        if let [patch] = &self.patches[patches.clone()] {
            held.tokens = held.tokens.write(held.text + patch.start, fresh);
        } else {
            for (patch, runs) in self.patches[patches].iter().zip(runs) {
                let mut at = held.text + patch.start;
                for run in runs {
                    held.tokens = held.tokens.write(at, &fresh.narrow(run.start, run.len()));
                    at += run.len();
                }
            }
        }
        self.sites.insert(site, held);
    }

    /// Returns all stored keys and values at `site`.
    ///
    /// # Panics
    /// If nothing is stored at `site`.
    pub fn keys(&self, site: Site) -> Keys {
        let Held { tokens, text, known, .. } = &self.sites[&site];
        let image = self.patches[..*known].last().map_or(0, |patch| patch.end);
        let both = tokens.read(text + image);
        Keys {
            text: (*text > 0).then(|| both.narrow(0, *text)),
            image: both.narrow(*text, image),
            both: Some(both),
        }
    }

    /// The number of patches stored at `site`. The first step stores them in order, so they are the first ones.
    pub fn known(&self, site: Site) -> usize {
        self.sites.get(&site).map_or(0, |held| held.known)
    }

    /// Stores the `fresh` keys of `patch`, and returns the keys it attends to in DistriFusion: its fresh ones, and
    /// those of the other patches from the previous step.
    ///
    /// # Panics
    /// If there was no previous step.
    pub fn displace(&mut self, site: Site, fresh: Kv, patch: usize) -> Kv {
        let mut held = self.sites.remove(&site).expect("the first step is synchronous");
        let (image, Range { start, end }) = (self.tokens(), self.patches[patch].clone());
        let before = held.tokens.read(held.text + image).narrow(held.text, image);
        let part = |start, length| (length > 0).then(|| before.narrow(start, length));
        let seen = [part(0, start), Some(fresh.clone()), part(end, image - end)];
        let seen = Kv::cat(seen.into_iter().flatten().collect());
        let next = held.next.take().unwrap_or_else(|| Buffer::new(&fresh, held.text + image));
        let next = next.write(held.text + start, &fresh);
        drop(before);
        if patch + 1 == self.patches.len() {
            held.next = Some(std::mem::replace(&mut held.tokens, next));
        } else {
            held.next = Some(next);
        }
        self.sites.insert(site, held);
        seen
    }

    /// All tensors of the cache.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor<3>> {
        let buffers = self.sites.values().flat_map(|held| [&held.tokens].into_iter().chain(&held.next));
        buffers.flat_map(|buffer| [&buffer.k, &buffer.v])
    }

    /// Bytes of all keys and values in the cache.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(bytes_of).sum()
    }

    /// The number of image tokens of all patches.
    fn tokens(&self) -> usize {
        self.patches.last().map_or(0, |patch| patch.end)
    }
}

/// Keys and values of some tokens. Heads and their features are one dimension, so that a token is written in one piece.
#[derive(Debug)]
struct Buffer {
    /// `[b, n, h·d]`
    k: Tensor<3>,
    /// `[b, n, h·d]`
    v: Tensor<3>,
    heads: usize,
}

impl Buffer {
    /// An uninitialised buffer for `tokens` tokens like those of `kv`.
    fn new(kv: &Kv, tokens: usize) -> Self {
        let [b, _, heads, d] = kv.k.dims();
        let room = || Tensor::empty([b, tokens, heads * d], (&kv.k.device(), kv.k.dtype()));
        Self { k: room(), v: room(), heads }
    }

    /// Replaces the tokens from `start` on by those of `kv`. Writes in place unless the tensors are shared.
    fn write(self, start: usize, kv: &Kv) -> Self {
        let write = |to: Tensor<3>, x: &Tensor<4>| write_tokens(to, start, x.clone());
        Self { k: write(self.k, &kv.k), v: write(self.v, &kv.v), heads: self.heads }
    }

    /// The first `tokens` tokens, as views.
    fn read(&self, tokens: usize) -> Kv {
        let read = |x: &Tensor<3>| {
            let [b, n, features] = x.dims();
            x.clone().reshape([b, n, self.heads, features / self.heads]).narrow(1, 0, tokens)
        };
        Kv { k: read(&self.k), v: read(&self.v) }
    }
}
