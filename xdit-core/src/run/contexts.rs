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
    branch: usize,
    steps: Range<usize>,
    stage: Range<usize>,
    device: Device,
}

impl Hash for Key {
    /// Hashes all but the device, which has no hash and is only compared.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.image, self.branch, &self.steps, &self.stage).hash(state);
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
    first_branch: usize,
    branches: Vec<Branch<T::Context>>,
}

struct Branch<C> {
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
        let branches = plan.branches_of(rank);
        let (first_branch, stage) = (branches.start, plan.stage(rank));
        let mut this = Self {
            transformer,
            timesteps,
            guidance,
            picture,
            stage,
            device,
            first_branch,
            branches: Vec::new(),
        };
        for branch in branches {
            let chunks = chunks(&plan.branches[branch].steps, transformer.context_bytes());
            let steps = chunks[0].clone();
            let ready = this.make(branch, &steps);
            let text_shape = transformer.text_shape(&ready[0]);
            this.branches.push(Branch { chunks, steps, ready, text_shape });
        }
        this
    }

    /// The context of `branch` at `step`, which must be ready.
    pub fn at(&self, branch: usize, step: usize) -> &T::Context {
        let Branch { steps, ready, .. } = &self.branches[branch - self.first_branch];
        assert!(steps.contains(&step), "steps {steps:?} are ready, not {step}");
        &ready[step - steps.start]
    }

    /// The shape of the text of `branch` between blocks, which is the same in all steps.
    pub fn text_shape(&self, branch: usize) -> Option<[usize; 3]> {
        self.branches[branch - self.first_branch].text_shape
    }

    /// The branch and step of the context that `action` needs, if it is not ready.
    pub fn missing(&self, action: &Action) -> Option<[usize; 2]> {
        let (Action::Embed { step, branch, .. }
        | Action::Blocks { step, branch, .. }
        | Action::Finish { step, branch, .. }) = action
        else {
            return None;
        };
        let ready = self.branches[branch - self.first_branch].steps.contains(step);
        (!ready).then_some([*branch, *step])
    }

    /// Makes the context of `step` of `branch`, together with those of its chunk. Earlier ones are freed first.
    pub fn prepare(&mut self, [branch, step]: [usize; 2]) {
        let own = &mut self.branches[branch - self.first_branch];
        let chunk = own.chunks.iter().find(|chunk| chunk.contains(&step));
        let steps = chunk.expect("the branch takes part in the step").clone();
        (own.steps, own.ready) = (steps.clone(), Arc::default());
        self.branches[branch - self.first_branch].ready = self.make(branch, &steps);
    }

    fn make(&self, branch: usize, steps: &Range<usize>) -> Arc<Vec<T::Context>> {
        let (stage, device) = (self.stage.clone(), self.device.clone());
        let key = Key { image: self.picture.image, branch, steps: steps.clone(), stage, device };
        let conditions = &self.guidance.branches[branch];
        let make =
            || Ok::<_, Infallible>(self.transformer.contexts(conditions, &self.timesteps[steps.clone()]));
        let Ok(made) = self.picture.shared.0.get(key, make);
        made
    }
}
