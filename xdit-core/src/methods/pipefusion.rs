//! PipeFusion's cache: keys and values of patches whose turn has not come yet are those of the step before.
//!
//! On one rank it also serves for DistriFusion, where those of all other patches are.
//!
//! Source: PipeFusion (Fang et al. 2024).

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::Tensor;

use crate::attention::Site;
use crate::link::bytes_of;
use crate::methods::keys::{Keys, Kv};

/// The latest keys and values of all patches at each site, of one guidance branch of one picture.
///
/// Each site has one tensor of keys and one of values, which are written in place: nothing is put together for a pass,
/// and no view keeps an older tensor alive.
#[derive(Debug)]
pub struct KvCache {
    /// The image tokens of each patch that this rank attends to by itself, among those of all patches.
    patches: Vec<Range<usize>>,
    sites: HashMap<Site, Held>,
}

/// The keys and values at one site.
#[derive(Debug)]
struct Held {
    /// The text's tokens, then those of the patches.
    tokens: Buffer,
    /// Tokens of the text.
    text: usize,
    /// Patches that are in there.
    known: usize,
    /// Those of this step, if no patch must see them before the next one.
    next: Option<Buffer>,
}

impl KvCache {
    /// For patches of so many image tokens.
    pub fn new(patches: Vec<Range<usize>>) -> Self {
        Self { patches, sites: HashMap::new() }
    }

    /// Writes what was just computed.
    ///
    /// `fresh` holds the tokens of `patches`, where `runs` says: for each of them, runs of tokens in order. The text
    /// comes with the first patch, if it takes part.
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

    /// All that is there.
    ///
    /// # Panics
    /// If nothing was stored at `site`.
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

    /// How many patches have been stored at `site`. The first pass brings them in order, so they are the first ones.
    pub fn known(&self, site: Site) -> usize {
        self.sites.get(&site).map_or(0, |held| held.known)
    }

    /// What patch `patch` attends to in DistriFusion: its `fresh` keys, and the other patches' of the step before.
    ///
    /// # Panics
    /// If there was no step before.
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

    /// Every tensor in here.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor<3>> {
        let buffers = self.sites.values().flat_map(|held| [&held.tokens].into_iter().chain(&held.next));
        buffers.flat_map(|buffer| [&buffer.k, &buffer.v])
    }

    /// Bytes of all keys and values in here.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(bytes_of).sum()
    }

    /// Image tokens of all patches.
    fn tokens(&self) -> usize {
        self.patches.last().map_or(0, |patch| patch.end)
    }
}

/// Keys and values of some tokens, heads and their features in one dimension: a token's numbers are written together.
#[derive(Debug)]
struct Buffer {
    /// `[b, n, h·d]`
    k: Tensor<3>,
    /// `[b, n, h·d]`
    v: Tensor<3>,
    heads: usize,
}

impl Buffer {
    /// Room for `tokens` tokens like those of `kv`.
    fn new(kv: &Kv, tokens: usize) -> Self {
        let [b, _, heads, d] = kv.k.dims();
        let room = || Tensor::empty([b, tokens, heads * d], (&kv.k.device(), kv.k.dtype()));
        Self { k: room(), v: room(), heads }
    }

    /// With the tokens from `start` on replaced by those of `kv`: in place, unless somebody else holds the tensors.
    fn write(self, start: usize, kv: &Kv) -> Self {
        let [b, n, h, d] = kv.k.dims();
        let write = |to: Tensor<3>, x: &Tensor<4>| {
            to.slice_assign([0..b, start..start + n, 0..h * d], x.clone().reshape([b, n, h * d]))
        };
        Self { k: write(self.k, &kv.k), v: write(self.v, &kv.v), heads: self.heads }
    }

    /// The first `tokens` tokens: views.
    fn read(&self, tokens: usize) -> Kv {
        let read = |x: &Tensor<3>| {
            let [b, n, features] = x.dims();
            x.clone().reshape([b, n, self.heads, features / self.heads]).narrow(1, 0, tokens)
        };
        Kv { k: read(&self.k), v: read(&self.v) }
    }
}
