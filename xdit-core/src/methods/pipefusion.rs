//! PipeFusion's cache: keys and values of patches whose turn has not come yet are those of the step before.
//!
//! On one rank it also serves for DistriFusion, where those of all other patches are.
//!
//! Source: PipeFusion (Fang et al. 2024).

use std::collections::HashMap;
use std::ops::Range;

use crate::attention::Site;
use crate::methods::ring::Kv;

/// The latest keys and values of each patch at each site, of one guidance branch of one picture.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    image: HashMap<Site, Vec<Option<Kv>>>,
    text: HashMap<Site, Kv>,
    /// What waits for the end of the step, if other patches must not see it earlier.
    held_back: HashMap<Site, Vec<Kv>>,
}

impl KvCache {
    /// Puts in what was just computed and returns all there is, patch by patch.
    ///
    /// `fresh` holds the tokens of `patches`, where `runs` says: for each of them, runs of tokens in order.
    pub fn refresh(
        &mut self,
        site: Site,
        fresh: &Kv,
        patches: Range<usize>,
        runs: &[Vec<Range<usize>>],
    ) -> Kv {
        let cached = self.image.entry(site).or_default();
        if cached.len() < patches.end {
            cached.resize(patches.end, None);
        }
        for (patch, runs) in patches.zip(runs) {
            let parts = runs.iter().map(|run| fresh.narrow(run.start, run.len())).collect();
            cached[patch] = Some(Kv::cat(parts));
        }
        Kv::cat(cached.iter().flatten().cloned().collect())
    }

    /// What patch `patch` attends to in DistriFusion: its `fresh` keys, and the other patches' of the step before.
    ///
    /// # Panics
    /// If there was no step before.
    pub fn displace(&mut self, site: Site, fresh: Kv, patch: usize) -> Kv {
        let cached = self.image.get_mut(&site).expect("the first step is synchronous");
        let before = cached.iter().flatten().enumerate();
        let seen =
            before.map(|(other, kv)| if other == patch { fresh.clone() } else { kv.clone() }).collect();
        let held = self.held_back.entry(site).or_default();
        held.push(fresh);
        if held.len() == cached.len() {
            *cached = held.drain(..).map(Some).collect();
        }
        Kv::cat(seen)
    }

    /// How many patches have been here at `site`. The first pass brings them in order, so they are the first ones.
    pub fn patches(&self, site: Site) -> usize {
        self.image.get(&site).map_or(0, |patches| patches.iter().flatten().count())
    }

    /// Bytes of all keys and values in here.
    pub fn bytes(&self) -> u64 {
        let image = self.image.values().flatten().flatten();
        let held_back = self.held_back.values().flatten();
        image.chain(self.text.values()).chain(held_back).map(Kv::bytes).sum()
    }

    /// The text's keys and values: those just computed, or, between two passes of the text, the last ones.
    pub fn refresh_text(&mut self, site: Site, fresh: Option<Kv>) -> Option<Kv> {
        match fresh {
            Some(fresh) => {
                self.text.insert(site, fresh.clone());
                Some(fresh)
            }
            None => self.text.get(&site).cloned(),
        }
    }
}
