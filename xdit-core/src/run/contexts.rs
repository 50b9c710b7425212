//! The contexts of a picture: its conditions, prepared for some steps at a time, and only once for all ranks of a
//! process that need the same.

use std::convert::Infallible;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Device;

use crate::plan::Plan;
use crate::plan::contexts::chunks;
use crate::plan::guidance::Guidance;
use crate::plan::schedule::Action;
use crate::shared::Shared;
use crate::transformer::Transformer;

/// The contexts in use by the ranks of this process in one job. Each job needs its own value, since pictures are
/// identified by their index.
#[derive(Debug)]
pub struct SharedContexts<C>(Shared<Key, Vec<C>>);

impl<C> Default for SharedContexts<C> {
    fn default() -> Self {
        Self(Shared::default())
    }
}

impl<C> SharedContexts<C> {
    /// The contexts of picture `image`.
    pub fn of_picture(&self, image: usize) -> PictureContexts<'_, C> {
        PictureContexts { shared: self, image }
    }
}

/// The contexts of one picture.
#[derive(Debug)]
pub struct PictureContexts<'a, C> {
    shared: &'a SharedContexts<C>,
    image: usize,
}

/// Everything that contexts depend on within a job. Ranks that differ only along the ring, Ulysses and tensor axes need
/// the same contexts.
#[derive(PartialEq, Eq)]
struct Key {
    image: usize,
    branches: Range<usize>,
    steps: Range<usize>,
    stage: Range<usize>,
    device: Device,
}

impl Hash for Key {
    /// Hashes all but the device, which has no hash and is only compared.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.image, &self.branches, &self.steps, &self.stage).hash(state);
    }
}

/// The contexts of the guidance branches that a rank computes, for the current steps.
pub(super) struct Contexts<'a, T: Transformer> {
    transformer: &'a T,
    timesteps: &'a [f32],
    guidance: &'a Guidance<T::Conditions>,
    picture: PictureContexts<'a, T::Context>,
    stage: Range<usize>,
    device: Device,
    passes: Vec<Pass<T::Context>>,
}

/// The contexts of branches that pass through the blocks as one batch.
struct Pass<C> {
    branches: Range<usize>,
    /// Runs of steps whose contexts are made together.
    chunks: Vec<Range<usize>>,
    /// The steps whose contexts are ready.
    steps: Range<usize>,
    ready: Arc<Vec<C>>,
    text_shape: Option<[usize; 3]>,
}

impl<'a, T: Transformer> Contexts<'a, T> {
    /// The contexts of `rank`, whose tensors are on `device`. Those of the first steps of each branch are made here, so
    /// that the shapes of all texts are known.
    pub fn new(
        plan: &Plan,
        rank: usize,
        transformer: &'a T,
        timesteps: &'a [f32],
        guidance: &'a Guidance<T::Conditions>,
        picture: PictureContexts<'a, T::Context>,
        device: Device,
    ) -> Self {
        let stage = plan.stage(rank);
        let mut this = Self { transformer, timesteps, guidance, picture, stage, device, passes: Vec::new() };
        for branches in plan.passes_of(rank) {
            let bytes = branches.len() * transformer.context_bytes();
            let chunks = chunks(&plan.branches[branches.start].steps, bytes);
            let steps = chunks[0].clone();
            let ready = this.make(&branches, &steps);
            let text_shape = transformer.text_shape(&ready[0]);
            this.passes.push(Pass { branches, chunks, steps, ready, text_shape });
        }
        this
    }

    /// The pass of `branches`.
    fn pass(&self, branches: &Range<usize>) -> usize {
        let place = self.passes.iter().position(|pass| pass.branches == *branches);
        place.expect("a pass of this rank")
    }

    /// The context of `branches` at `step`, which must be ready.
    pub fn at(&self, branches: &Range<usize>, step: usize) -> &T::Context {
        let Pass { steps, ready, .. } = &self.passes[self.pass(branches)];
        assert!(steps.contains(&step), "steps {steps:?} are ready, not {step}");
        &ready[step - steps.start]
    }

    /// The shape of the text of `branches` between blocks, which is the same in all steps.
    pub fn text_shape(&self, branches: &Range<usize>) -> Option<[usize; 3]> {
        self.passes[self.pass(branches)].text_shape
    }

    /// The branches and the step of the context that `action` needs, if it is not ready.
    pub fn missing(&self, action: &Action) -> Option<(Range<usize>, usize)> {
        let (Action::Embed { step, branches, .. }
        | Action::Blocks { step, branches, .. }
        | Action::Finish { step, branches, .. }) = action
        else {
            return None;
        };
        let ready = self.passes[self.pass(branches)].steps.contains(step);
        (!ready).then(|| (branches.clone(), *step))
    }

    /// Makes the context of `step` of `branches`, together with those of its chunk. Earlier ones are freed first.
    pub fn prepare(&mut self, (branches, step): (Range<usize>, usize)) {
        let place = self.pass(&branches);
        let own = &mut self.passes[place];
        let chunk = own.chunks.iter().find(|chunk| chunk.contains(&step));
        let steps = chunk.expect("the branches take part in the step").clone();
        (own.steps, own.ready) = (steps.clone(), Arc::default());
        self.passes[place].ready = self.make(&branches, &steps);
    }

    fn make(&self, branches: &Range<usize>, steps: &Range<usize>) -> Arc<Vec<T::Context>> {
        let (stage, device) = (self.stage.clone(), self.device.clone());
        let key = Key {
            image: self.picture.image,
            branches: branches.clone(),
            steps: steps.clone(),
            stage,
            device,
        };
        let conditions: Vec<_> = self.guidance.branches[branches.clone()].iter().collect();
        let make =
            || Ok::<_, Infallible>(self.transformer.contexts(&conditions, &self.timesteps[steps.clone()]));
        let Ok(made) = self.picture.shared.0.get(key, make);
        made
    }
}
